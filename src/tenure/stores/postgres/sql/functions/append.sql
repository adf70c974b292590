-- Append owners' batches, each through its fence; a release is the last batch of a lease, and brings a `farewell`.
-- detail: appended and repeated [first, count, head, last_command, at], released [wanted, head, repeated], large
-- [index, bytes, limit]. Each row is locked, and judged as the lock's former holder left it: the lock is the fence (C6). Rows
-- are taken in the order of their ids. Small statements, one after the other: setting up one that does it all took a millisecond.
CREATE FUNCTION append(requests json, clock float8[], patient boolean, refusals_kept integer) RETURNS SETOF answer
LANGUAGE plpgsql AS $$
DECLARE
    q record; c conversations; verdict text; at float8; now float8; first bigint;
BEGIN
    FOR q IN SELECT * FROM json_to_recordset(requests) AS r(
        item integer, id text, incarnation text, epoch bigint, token text, number bigint, seen bigint, digest text,
        large text, kind text, body text, turn text, drafts json, recorded boolean, count integer, settles boolean, runnable boolean,
        settled bigint[], turn_state text, turn_ended boolean, started boolean, stopped boolean, failed boolean,
        agent_status text, snaps boolean, snapshot_seq bigint, fold text, loop_state text, farewell text, reason text,
        retry_in_s float8
    ) ORDER BY r.id COLLATE "C", r.item LOOP
        IF patient THEN
            SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE;
        ELSE
            SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE SKIP LOCKED;
        END IF;
        IF NOT FOUND THEN
            RETURN NEXT (q.item, CASE WHEN is_there(q.id, patient) THEN 'busy' ELSE 'fenced' END, NULL, NULL, NULL)::answer;
            CONTINUE;
        END IF;
        verdict := CASE
            WHEN q.farewell IS NOT NULL AND c.owner IS NULL AND NOT c.deleted AND c.epoch = q.epoch
                AND c.released_epoch = q.epoch AND c.released_token = q.token AND c.number = q.number
                AND c.released_digest = q.digest THEN 'released again'
            WHEN c.deleted OR c.owner IS DISTINCT FROM q.incarnation OR c.epoch <> q.epoch
                OR c.token IS DISTINCT FROM q.token THEN 'fenced'
            WHEN q.farewell IS NULL AND q.number = c.number AND q.number > 0 AND c.digest = q.digest THEN 'repeated'
            WHEN q.number <> c.number + 1 OR q.seen > c.head THEN 'fenced'
            WHEN q.large IS NOT NULL THEN 'large'
            ELSE 'applied' END;
        now := store_now(clock); at := time_of_day(clock);
        IF verdict = 'fenced' THEN
            PERFORM refuse(c.created_no, q.incarnation, q.epoch, q.token,
                CASE WHEN q.farewell IS NULL THEN 'append' ELSE 'release' END, at, refusals_kept);
            RETURN NEXT (q.item, 'fenced', NULL, NULL, shown(c, now))::answer;
            CONTINUE;
        ELSIF verdict = 'released again' THEN
            RETURN NEXT (q.item, 'released', json_build_array(c.wanted, c.head, true)::text, NULL, NULL)::answer;
            CONTINUE;
        ELSIF verdict <> 'applied' THEN
            RETURN NEXT (q.item, verdict, CASE WHEN verdict = 'large' THEN q.large ELSE c.result END, NULL, NULL)::answer;
            CONTINUE;
        END IF;

        first := c.head + 1;
        c.head := c.head + q.count; c.number := q.number; c.digest := q.digest;
        c.result := json_build_array(first, q.count, c.head, c.last_command, at)::text;
        IF q.count > 0 THEN c.updated_at := at; END IF;
        IF q.settles THEN
            c.wanted := q.runnable OR c.last_command > q.seen;
            c.unsettled := c.unsettled - cardinality(q.settled);
            c.turn := q.turn_state; c.started := q.started;
            c.agent_status := coalesce(q.agent_status, c.agent_status);
            IF c.open_start = ANY (q.settled) THEN c.open_start := NULL; END IF;
            IF q.stopped THEN c.stopped := c.last_start <= q.seen; END IF;
            IF q.failed THEN c.failed := c.last_command <= q.seen; END IF;
            IF q.turn_ended THEN c.failures := 0; END IF;
            IF q.turn_ended OR q.failed THEN c.lost := 0; END IF;
        END IF;
        IF q.farewell IS NOT NULL THEN
            c.head := c.head + 1; c.updated_at := at; c.started := false;
            c.not_before := CASE WHEN q.retry_in_s IS NULL OR c.last_start > q.seen THEN 0 ELSE now + q.retry_in_s END;
            c.released_epoch := q.epoch; c.released_token := q.token; c.released_digest := q.digest;
            c.owner := NULL; c.owner_node := NULL; c.owner_address := NULL; c.owner_since := NULL; c.token := NULL;
            IF q.reason = 'failed' THEN c.failures := c.failures + 1; END IF;
        END IF;
        IF q.settles OR q.farewell IS NOT NULL THEN
            UPDATE conversations u SET
                head = c.head, updated_at = c.updated_at, number = c.number, digest = c.digest, result = c.result,
                wanted = c.wanted, unsettled = c.unsettled, turn = c.turn, started = c.started, stopped = c.stopped,
                failed = c.failed, lost = c.lost, failures = c.failures, agent_status = c.agent_status,
                open_start = c.open_start, not_before = c.not_before, owner = c.owner, owner_node = c.owner_node,
                owner_address = c.owner_address, owner_since = c.owner_since, token = c.token,
                released_epoch = c.released_epoch, released_token = c.released_token, released_digest = c.released_digest
            WHERE u.created_no = c.created_no;
        ELSE
            UPDATE conversations u SET
                head = c.head, updated_at = c.updated_at, number = c.number, digest = c.digest, result = c.result
            WHERE u.created_no = c.created_no;
        END IF;
        IF q.kind IS NOT NULL THEN
            INSERT INTO events (conversation, seq, epoch, kind, at, body, turn)
            VALUES (c.created_no, first, q.epoch, q.kind, at, q.body::json, q.turn);
        ELSIF q.count > 0 THEN
            PERFORM write_drafts(c.created_no, first, q.epoch, at, q.drafts, q.recorded);
        END IF;
        IF q.farewell IS NOT NULL THEN
            INSERT INTO events (conversation, seq, epoch, kind, at, body)
            VALUES (c.created_no, c.head, q.epoch, 'released', at, q.farewell::json);
        END IF;
        IF q.snaps THEN
            PERFORM keep_snapshot(c.created_no, q.snapshot_seq, q.fold::json, q.loop_state::json);
        END IF;
        RETURN NEXT (q.item, CASE WHEN q.farewell IS NULL THEN 'appended' ELSE 'released' END,
            CASE WHEN q.farewell IS NULL THEN c.result ELSE json_build_array(c.wanted, c.head, false)::text END,
            c.wanted, NULL)::answer;
    END LOOP;
END $$;

-- The events of a batch, from `first` on. `recorded`: those with a delivery are the commands of a copied past, whose keys stand for
-- them.
CREATE FUNCTION write_drafts(of bigint, first bigint, of_epoch bigint, at float8, drafts json, recorded boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (conversation, seq, epoch, kind, at, body, turn, opens, closes, key, delivery)
    SELECT of, first + d.n - 1, CASE WHEN d.delivery IS NULL THEN of_epoch END, d.kind, at, d.body::json, d.turn, d.opens::json,
        d.closes::json, d.key, d.delivery
    FROM ROWS FROM (json_to_recordset(drafts) AS (
            kind text, body text, turn text, opens text, closes text, key text, delivery text))
        WITH ORDINALITY AS d(kind, body, turn, opens, closes, key, delivery, n);
    IF recorded THEN
        INSERT INTO keys (conversation, key, seq, digest)
        SELECT of, d.key, first + d.n - 1, d.digest
        FROM ROWS FROM (json_to_recordset(drafts) AS (key text, delivery text, digest text))
            WITH ORDINALITY AS d(key, delivery, digest, n)
        WHERE d.delivery IS NOT NULL
        ON CONFLICT ON CONSTRAINT keys_pkey DO UPDATE SET seq = excluded.seq, digest = excluded.digest;
    END IF;
END $$;

-- Part by part: the fold moves the seq, a null part keeps its last one.
CREATE FUNCTION keep_snapshot(of bigint, of_seq bigint, new_fold json, new_state json) RETURNS void LANGUAGE sql AS $$
    INSERT INTO snapshots AS s (conversation, seq, fold, loop_state)
    VALUES (of, CASE WHEN new_fold IS NULL THEN 0 ELSE of_seq END, new_fold, new_state)
    ON CONFLICT (conversation) DO UPDATE SET
        seq = CASE WHEN excluded.fold IS NULL THEN s.seq ELSE excluded.seq END,
        fold = coalesce(excluded.fold, s.fold), loop_state = coalesce(excluded.loop_state, s.loop_state)
$$;
