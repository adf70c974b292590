-- Append owners' batches, each through its fence; a release is the last batch of a lease, and brings a `farewell`.
-- detail: appended and repeated [first, count, head, last_command, at], released [wanted, head, repeated], large
-- [index, bytes, limit]. At most one request per conversation. The rows are locked first, in the order of their ids, by a
-- statement of its own: the one that judges sees what the locks' former holders left, and nobody can change it (C6).
CREATE FUNCTION append(requests json, clock float8[], patient boolean, refusals_kept integer) RETURNS SETOF answer
LANGUAGE plpgsql AS $$
DECLARE
    taken bigint[]; at float8; now float8;
BEGIN
    IF patient THEN
        SELECT array_agg(l.created_no) INTO taken FROM (
            SELECT c.created_no FROM conversations c WHERE c.id IN (SELECT r->>'id' FROM json_array_elements(requests) r)
            ORDER BY c.id FOR UPDATE) l;
    ELSE
        SELECT array_agg(l.created_no) INTO taken FROM (
            SELECT c.created_no FROM conversations c WHERE c.id IN (SELECT r->>'id' FROM json_array_elements(requests) r)
            ORDER BY c.id FOR UPDATE SKIP LOCKED) l;
    END IF;
    now := store_now(clock); at := time_of_day(clock);
    RETURN QUERY WITH q AS MATERIALIZED (
        SELECT * FROM json_to_recordset(requests) AS r(
            item integer, id text, incarnation text, epoch bigint, token text, number bigint, seen bigint, digest text,
            large text, drafts json, count integer, settles boolean, runnable boolean, settled bigint[], turn text,
            turn_ended boolean, started boolean, stopped boolean, failed boolean, agent_status text,
            snaps boolean, snapshot_seq bigint, fold text, loop_state text, farewell text, reason text, retry_in_s float8)
    ), judged AS MATERIALIZED (
        SELECT q.*, c AS before, c.created_no, c.head AS old_head, CASE
            WHEN c.created_no IS NULL THEN 'unknown'
            WHEN c.created_no <> ALL (taken) OR taken IS NULL THEN 'busy'
            WHEN q.farewell IS NOT NULL AND c.owner IS NULL AND NOT c.deleted AND c.epoch = q.epoch
                AND c.released_epoch = q.epoch AND c.released_token = q.token AND c.number = q.number
                AND c.released_digest = q.digest THEN 'released again'
            WHEN c.deleted OR c.owner IS DISTINCT FROM q.incarnation OR c.epoch <> q.epoch
                OR c.token IS DISTINCT FROM q.token THEN 'fenced'
            WHEN q.farewell IS NULL AND q.number = c.number AND q.number > 0 AND c.digest = q.digest THEN 'repeated'
            WHEN q.number <> c.number + 1 OR q.seen > c.head THEN 'fenced'
            WHEN q.large IS NOT NULL THEN 'large'
            ELSE 'applied' END AS verdict
        FROM q LEFT JOIN conversations c ON c.id = q.id
    ), drafts AS (
        SELECT j.created_no, j.epoch, j.old_head + d.n AS seq, d.*
        FROM judged j, ROWS FROM (json_to_recordset(j.drafts) AS (
                kind text, body text, turn text, opens text, closes text, key text, delivery text, digest text))
            WITH ORDINALITY AS d(kind, body, turn, opens, closes, key, delivery, digest, n)
        WHERE j.verdict = 'applied'
    ), moved AS (
        UPDATE conversations u SET
            head = u.head + j.count + CASE WHEN j.farewell IS NULL THEN 0 ELSE 1 END,
            updated_at = CASE WHEN j.count > 0 OR j.farewell IS NOT NULL THEN at ELSE u.updated_at END,
            number = j.number, digest = j.digest,
            result = json_build_array(u.head + 1, j.count, u.head + j.count, u.last_command, at)::text,
            wanted = CASE WHEN j.settles THEN j.runnable OR u.last_command > j.seen ELSE u.wanted END,
            unsettled = u.unsettled - CASE WHEN j.settles THEN cardinality(j.settled) ELSE 0 END,
            turn = CASE WHEN j.settles THEN j.turn ELSE u.turn END,
            started = CASE WHEN j.farewell IS NOT NULL THEN false WHEN j.settles THEN j.started ELSE u.started END,
            stopped = CASE WHEN j.stopped THEN u.last_start <= j.seen ELSE u.stopped END,
            failed = CASE WHEN j.failed THEN u.last_command <= j.seen ELSE u.failed END,
            lost = CASE WHEN j.turn_ended OR j.failed THEN 0 ELSE u.lost END,
            failures = CASE WHEN j.turn_ended THEN 0 ELSE u.failures END + CASE WHEN j.reason = 'failed' THEN 1 ELSE 0 END,
            agent_status = coalesce(j.agent_status, u.agent_status),
            open_start = CASE WHEN j.settles AND u.open_start = ANY (j.settled) THEN NULL ELSE u.open_start END,
            owner = CASE WHEN j.farewell IS NULL THEN u.owner END,
            owner_node = CASE WHEN j.farewell IS NULL THEN u.owner_node END,
            owner_address = CASE WHEN j.farewell IS NULL THEN u.owner_address END,
            owner_since = CASE WHEN j.farewell IS NULL THEN u.owner_since END,
            token = CASE WHEN j.farewell IS NULL THEN u.token END,
            released_epoch = CASE WHEN j.farewell IS NULL THEN u.released_epoch ELSE j.epoch END,
            released_token = CASE WHEN j.farewell IS NULL THEN u.released_token ELSE j.token END,
            released_digest = CASE WHEN j.farewell IS NULL THEN u.released_digest ELSE j.digest END,
            not_before = CASE WHEN j.farewell IS NULL THEN u.not_before
                WHEN j.retry_in_s IS NULL OR u.last_start > j.seen THEN 0 ELSE now + j.retry_in_s END
        FROM judged j WHERE u.created_no = j.created_no AND j.verdict = 'applied'
        RETURNING u.created_no, u.head, u.wanted, u.result
    ), written AS (
        INSERT INTO events (conversation, seq, epoch, kind, at, body, turn, opens, closes, key, delivery)
        SELECT d.created_no, d.seq, CASE WHEN d.delivery IS NULL THEN d.epoch END, d.kind, at, d.body::json, d.turn,
               d.opens::json, d.closes::json, d.key, d.delivery FROM drafts d
        UNION ALL
        SELECT j.created_no, j.old_head + j.count + 1, j.epoch, 'released', at, j.farewell::json, NULL, NULL, NULL, NULL, NULL
        FROM judged j WHERE j.verdict = 'applied' AND j.farewell IS NOT NULL
    ), recorded AS ( -- the commands of a copied past: their keys stand for them
        INSERT INTO keys (conversation, key, seq, digest)
        SELECT d.created_no, d.key, d.seq, d.digest FROM drafts d WHERE d.delivery IS NOT NULL
        ON CONFLICT (conversation, key) DO UPDATE SET seq = excluded.seq, digest = excluded.digest
    ), kept AS ( -- part by part: the fold moves the seq, a null part keeps its last one
        INSERT INTO snapshots AS s (conversation, seq, fold, loop_state)
        SELECT j.created_no, CASE WHEN j.fold IS NULL THEN 0 ELSE j.snapshot_seq END, j.fold::json, j.loop_state::json
        FROM judged j WHERE j.verdict = 'applied' AND j.snaps
        ON CONFLICT (conversation) DO UPDATE SET
            seq = CASE WHEN excluded.fold IS NULL THEN s.seq ELSE excluded.seq END,
            fold = coalesce(excluded.fold, s.fold), loop_state = coalesce(excluded.loop_state, s.loop_state)
    ), refused AS MATERIALIZED (
        SELECT refuse(j.created_no, j.incarnation, j.epoch, j.token,
                      CASE WHEN j.farewell IS NULL THEN 'append' ELSE 'release' END, at, refusals_kept), j.item
        FROM judged j WHERE j.verdict = 'fenced'
    )
    SELECT j.item,
        CASE j.verdict WHEN 'applied' THEN CASE WHEN j.farewell IS NULL THEN 'appended' ELSE 'released' END
            WHEN 'released again' THEN 'released' WHEN 'unknown' THEN 'fenced' ELSE j.verdict END,
        CASE j.verdict
            WHEN 'applied' THEN CASE WHEN j.farewell IS NULL THEN m.result
                ELSE json_build_array(m.wanted, m.head, false)::text END
            WHEN 'repeated' THEN (j.before).result
            WHEN 'released again' THEN json_build_array((j.before).wanted, (j.before).head, true)::text
            WHEN 'large' THEN j.large END,
        m.wanted,
        CASE WHEN j.verdict = 'fenced' THEN shown(j.before, now) END
    FROM judged j LEFT JOIN moved m USING (created_no) LEFT JOIN refused r ON r.item = j.item;
END $$;
