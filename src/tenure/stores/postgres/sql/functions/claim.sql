-- Make incarnations owners: a compare-and-swap on the epoch that each caller saw. detail: held [created], deleted [epoch],
-- refused [reason]. Rows are taken in the order of their ids. Whether an owner is dead is a fact on its own record, read
-- after the lock, and never a judgement of its lease (C5). `body` is the event's, without `previous` and `death`, which are known here only.
CREATE FUNCTION claim(requests json, clock float8[], patient boolean) RETURNS SETOF answer LANGUAGE plpgsql AS $$
DECLARE
    q record; taken record; asked creation; c conversations; state text; at float8; now float8; created boolean; outcome text; new_epoch bigint;
BEGIN
    FOR q IN SELECT * FROM json_to_recordset(requests) AS r(
        item integer, id text, incarnation text, token text, expected_epoch bigint, node text, address text, body text,
        forced boolean, death text, floor bigint, creates boolean, creation json
    ) ORDER BY r.id COLLATE "C", r.item LOOP
        SELECT t.state, t.c INTO taken FROM take(q.id, patient) t;
        state := taken.state; c := taken.c;
        now := store_now(clock); at := time_of_day(clock); created := false;
        asked := CASE WHEN q.creates THEN json_populate_record(NULL::creation, q.creation) END;
        outcome := CASE
            WHEN state = 'busy' THEN 'busy'
            WHEN state = 'none' AND NOT q.creates THEN 'unknown'
            WHEN state = 'none' AND is_dead(q.incarnation) IS DISTINCT FROM false THEN 'dead'
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
        outcome := CASE
            WHEN is_dead(q.incarnation) IS DISTINCT FROM false THEN 'dead'
            WHEN q.creates AND NOT created AND NOT fits(c, asked) THEN 'refused'
            WHEN c.owner IS NOT NULL AND c.owner <> q.incarnation AND NOT q.forced AND is_dead(c.owner) IS DISTINCT FROM true
                THEN 'elsewhere'
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
            (left(q.body, -1) || ',"previous":' || coalesce(to_json(c.owner)::text, 'null') || ',"death":'
                || coalesce(to_json(CASE WHEN c.owner IS NOT NULL THEN q.death END)::text, 'null') || '}')::json);
        UPDATE conversations u SET
            epoch = new_epoch, owner = q.incarnation, owner_node = q.node, owner_address = q.address, owner_since = at,
            token = q.token, head = u.head + 1, started = false, updated_at = at, number = 0, digest = NULL, result = NULL,
            lost = u.lost + CASE WHEN u.owner IS NOT NULL AND (u.turn = 'open' OR NOT u.started) THEN 1 ELSE 0 END
        WHERE u.created_no = c.created_no RETURNING * INTO c;
        RETURN NEXT (q.item, 'held', json_build_array(created)::text, c.wanted, shown(c, now))::answer;
    END LOOP;
END $$;
