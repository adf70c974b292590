-- Journal clients' commands; not fenced. detail: accepted [seq, created], duplicate [seq], key_reused [seq], refused [reason],
-- deleted [epoch], large [index, bytes, limit]. A null kind only creates. Rows are taken in the order of their ids.
CREATE FUNCTION submit(requests json, clock float8[], patient boolean, most_unsettled integer) RETURNS SETOF answer
LANGUAGE plpgsql AS $$
DECLARE
    q record; asked creation; c conversations; known record; state text; reason text;
    at float8; now float8; created boolean; seq bigint;
BEGIN
    FOR q IN SELECT * FROM json_to_recordset(requests) AS r(
        item integer, id text, kind text, body text, key text, delivery text, digest text, creates boolean, creation json
    ) ORDER BY r.id COLLATE "C", r.item LOOP
        IF patient THEN
            SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE;
        ELSE
            SELECT * INTO c FROM conversations x WHERE x.id = q.id FOR UPDATE SKIP LOCKED;
        END IF;
        state := CASE WHEN FOUND THEN 'found' WHEN is_there(q.id, patient) THEN 'busy' ELSE 'none' END;
        now := store_now(clock); at := time_of_day(clock); created := false;
        IF q.creates THEN asked := json_populate_record(NULL::creation, q.creation); END IF;
        IF state = 'none' AND NOT q.creates THEN
            RETURN NEXT (q.item, 'unknown', NULL, NULL, NULL)::answer; CONTINUE;
        ELSIF state = 'none' AND asked.large IS NOT NULL THEN
            RETURN NEXT (q.item, 'large', asked.large, NULL, NULL)::answer; CONTINUE;
        ELSIF state = 'none' THEN
            c := create_conversation(q.id, asked, at);
            created := c.created_no IS NOT NULL;
            state := CASE WHEN created THEN 'found' ELSE 'busy' END;
        END IF;
        IF state = 'busy' THEN
            RETURN NEXT (q.item, 'busy', NULL, NULL, NULL)::answer; CONTINUE;
        END IF;
        IF c.deleted THEN
            RETURN NEXT (q.item, 'deleted', json_build_array(c.epoch)::text, NULL, NULL)::answer; CONTINUE;
        ELSIF q.creates AND NOT created AND NOT fits(c, asked) THEN
            RETURN NEXT (q.item, 'refused', '["conversation-exists"]', NULL, shown(c, now))::answer; CONTINUE;
        ELSIF q.kind IS NULL THEN
            RETURN NEXT (q.item, CASE WHEN created THEN 'accepted' ELSE 'duplicate' END,
                json_build_array(c.head, created)::text, c.wanted, shown(c, now))::answer;
            CONTINUE;
        END IF;
        IF NOT created THEN
            SELECT k.seq, k.digest INTO known FROM keys k WHERE k.conversation = c.created_no AND k.key = q.key;
            IF FOUND THEN
                RETURN NEXT (q.item, CASE WHEN known.digest = q.digest THEN 'duplicate' ELSE 'key_reused' END,
                    json_build_array(known.seq)::text, NULL, shown(c, now))::answer;
                CONTINUE;
            ELSIF q.kind = 'start' AND c.open_start IS NOT NULL THEN
                RETURN NEXT (q.item, 'duplicate', json_build_array(c.open_start)::text, NULL, shown(c, now))::answer; CONTINUE;
            END IF;
            reason := CASE
                WHEN q.delivery = 'turn' AND c.stopped THEN 'conversation-stopped'
                WHEN c.unsettled >= most_unsettled AND q.kind <> 'stop' THEN 'too-many-unsettled'
                WHEN q.kind = 'message' AND c.policy = 'reject' AND c.turn <> 'none' THEN 'turn-open'
            END;
            IF reason IS NOT NULL THEN
                RETURN NEXT (q.item, 'refused', json_build_array(reason)::text, NULL, shown(c, now))::answer; CONTINUE;
            END IF;
        END IF;
        seq := c.head + 1;
        c.head := seq; c.last_command := seq; c.unsettled := c.unsettled + 1; c.wanted := true; c.failed := false;
        c.updated_at := at;
        IF q.kind = 'start' THEN
            c.stopped := false; c.lost := 0; c.failures := 0; c.not_before := 0; c.last_start := seq; c.open_start := seq;
        END IF;
        UPDATE conversations u SET
            head = seq, last_command = seq, unsettled = c.unsettled, wanted = true, failed = false, updated_at = at,
            stopped = c.stopped, lost = c.lost, failures = c.failures, not_before = c.not_before, last_start = c.last_start,
            open_start = c.open_start
        WHERE u.created_no = c.created_no;
        INSERT INTO events (conversation, seq, kind, at, body, key, delivery) VALUES (c.created_no, seq, q.kind, at, q.body::json,
            q.key, CASE WHEN q.kind = 'message' AND c.policy = 'steer' AND c.turn <> 'none' THEN 'now' ELSE q.delivery END);
        INSERT INTO keys (conversation, key, seq, digest) VALUES (c.created_no, q.key, seq, q.digest);
        RETURN NEXT (q.item, 'accepted', json_build_array(seq, created)::text, true, shown(c, now))::answer;
    END LOOP;
END $$;
