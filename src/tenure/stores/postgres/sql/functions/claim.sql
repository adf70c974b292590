-- The event of a claim: `body` came without `previous` and `death`, which are known here only.
CREATE FUNCTION claimed_body(body text, previous text, death text) RETURNS json LANGUAGE sql IMMUTABLE AS $$
    SELECT (left(body, -1) || ',"previous":' || coalesce(to_json(previous)::text, 'null') || ',"death":'
        || coalesce(to_json(CASE WHEN previous IS NOT NULL THEN death END)::text, 'null') || '}')::json
$$;

-- Make incarnations owners: a compare-and-swap on the epoch that each caller saw. detail: held [created], deleted [epoch],
-- refused [reason]. Rows are taken in the order of their ids. Whether an owner is dead is a fact on its own record, read
-- after the lock, and never a judgement of its lease (C5).
CREATE FUNCTION claim(requests json, clock float8[], patient boolean) RETURNS SETOF answer LANGUAGE plpgsql AS $$
DECLARE
    q record; asked creation; c conversations; state text; at float8; now float8; created boolean; outcome text; new_epoch bigint;
    claimant text; claimant_dead boolean; buried text; -- as far as this statement has looked: death is for good
BEGIN
    FOR q IN SELECT * FROM json_to_recordset(requests) AS r(
        item integer, id text, incarnation text, token text, expected_epoch bigint, node text, address text, body text,
        forced boolean, death text, floor bigint, creates boolean, creation json
    ) ORDER BY r.id COLLATE "C", r.item LOOP
        IF patient THEN
            SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE;
        ELSE
            SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE SKIP LOCKED;
        END IF;
        state := CASE WHEN FOUND THEN 'found' WHEN is_there(q.id, patient) THEN 'busy' ELSE 'none' END;
        IF q.incarnation IS DISTINCT FROM claimant THEN
            claimant := q.incarnation; claimant_dead := is_dead(claimant) IS DISTINCT FROM false;
        END IF;
        now := store_now(clock); at := time_of_day(clock); created := false;
        IF q.creates THEN asked := json_populate_record(NULL::creation, q.creation); END IF;
        outcome := CASE
            WHEN state = 'busy' THEN 'busy'
            WHEN state = 'none' AND NOT q.creates THEN 'unknown'
            WHEN state = 'none' AND claimant_dead THEN 'dead'
            WHEN state = 'none' AND asked.large IS NOT NULL THEN 'large'
            WHEN state = 'none' AND q.expected_epoch <> 0 THEN 'none'
        END;
        IF outcome = 'large' THEN
            RETURN NEXT (q.item, 'refused', '["settings-too-large"]', NULL, NULL)::answer; CONTINUE;
        ELSIF outcome IS NOT NULL AND outcome <> 'none' THEN
            RETURN NEXT (q.item, outcome, NULL, NULL, NULL)::answer; CONTINUE;
        ELSIF outcome = 'none' THEN -- it would be stale, so it is not created either: answered with what it would be
            RETURN NEXT (q.item, 'stale', NULL, NULL, shown(drawn(q.id, asked, at), now))::answer; CONTINUE;
        ELSIF state = 'none' THEN
            c := create_conversation(q.id, asked, at);
            created := c.created_no IS NOT NULL;
            IF NOT created THEN
                RETURN NEXT (q.item, 'busy', NULL, NULL, NULL)::answer; CONTINUE;
            END IF;
        END IF;
        IF c.deleted THEN
            RETURN NEXT (q.item, 'deleted', json_build_array(c.epoch)::text, NULL, NULL)::answer; CONTINUE;
        ELSIF c.owner = q.incarnation AND c.token = q.token THEN
            RETURN NEXT (q.item, 'held', '[false]', NULL, shown(c, now))::answer; CONTINUE;
        END IF;
        IF c.owner <> q.incarnation AND c.owner IS DISTINCT FROM buried AND is_dead(c.owner) THEN buried := c.owner; END IF;
        outcome := CASE
            WHEN claimant_dead THEN 'dead'
            WHEN q.creates AND NOT created AND NOT fits(c, asked) THEN 'refused'
            WHEN c.owner <> q.incarnation AND NOT q.forced AND c.owner IS DISTINCT FROM buried THEN 'elsewhere'
            WHEN c.epoch <> q.expected_epoch THEN 'stale'
        END;
        IF outcome IS NOT NULL THEN
            RETURN NEXT (q.item, outcome, CASE WHEN outcome = 'refused' THEN '["conversation-exists"]' END, NULL,
                CASE WHEN outcome <> 'dead' THEN shown(c, now) END)::answer;
            CONTINUE;
        END IF;
        new_epoch := greatest(c.epoch, q.floor, (
            SELECT e.epoch FROM events e WHERE e.conversation = c.created_no AND e.epoch IS NOT NULL ORDER BY e.seq DESC LIMIT 1
        )) + 1;
        INSERT INTO events (conversation, seq, epoch, kind, at, body) VALUES (c.created_no, c.head + 1, new_epoch, 'claimed', at,
            claimed_body(q.body, c.owner, q.death));
        IF c.owner IS NOT NULL AND (c.turn = 'open' OR NOT c.started) THEN c.lost := c.lost + 1; END IF;
        c.epoch := new_epoch; c.owner := q.incarnation; c.owner_node := q.node; c.owner_address := q.address; c.owner_since := at;
        c.token := q.token; c.head := c.head + 1; c.started := false; c.updated_at := at;
        UPDATE conversations u SET
            epoch = new_epoch, owner = c.owner, owner_node = c.owner_node, owner_address = c.owner_address, owner_since = at,
            token = c.token, head = c.head, started = false, updated_at = at, number = 0, digest = NULL, result = NULL,
            lost = c.lost
        WHERE u.created_no = c.created_no;
        RETURN NEXT (q.item, 'held', json_build_array(created)::text, c.wanted, shown(c, now))::answer;
    END LOOP;
END $$;
