-- What an owner asks most often, by itself: one event, nothing settled, no snapshot. Small statements with their values as they are:
-- two thirds of what append() takes for it. As in many.sql, whatever is different, or locked by somebody, is left alone, and gives
-- no row: append() is asked of it then. The lock is the fence (C6): the row is locked first, and judged by the next statement.
CREATE FUNCTION append_one(conversation text, of_incarnation text, of_epoch bigint, of_token text, of_number bigint, of_seen bigint,
    of_digest text, of_kind text, of_body text, of_turn text, clock float8[]) RETURNS SETOF answer LANGUAGE plpgsql AS $$
DECLARE
    m record; at float8;
BEGIN
    PERFORM FROM conversations c WHERE c.id = conversation FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN RETURN; END IF;
    at := time_of_day(clock);
    UPDATE conversations u SET
        head = u.head + 1, updated_at = at, number = of_number, digest = of_digest,
        result = json_build_array(u.head + 1, 1, u.head + 1, u.last_command, at)::text
    WHERE u.id = conversation AND NOT u.deleted AND u.owner = of_incarnation AND u.epoch = of_epoch
      AND u.token = of_token AND u.number + 1 = of_number AND u.head >= of_seen
    RETURNING u.created_no, u.head, u.wanted, u.result INTO m;
    IF NOT FOUND THEN RETURN; END IF;
    INSERT INTO events (conversation, seq, epoch, kind, at, body, turn)
    VALUES (m.created_no, m.head, of_epoch, of_kind, at, of_body::json, of_turn);
    RETURN NEXT (0, 'appended', m.result, m.wanted, NULL)::answer;
END $$;
