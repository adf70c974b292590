-- Deltas and hints: what followers hear. It runs on a connection of its own, apart from every write: a transaction that
-- notifies takes a lock of the whole database at its commit. It also gets a number, for which the commit would wait for the disk:
-- what may be lost waits for nothing.

-- Hand deltas to whoever listens: sent, or fenced. A delta is cut into payloads that fit into a notification each.
CREATE FUNCTION publish(requests json, clock float8[], channel text, refusals_kept integer) RETURNS SETOF answer
LANGUAGE plpgsql AS $$
DECLARE
    q record; c conversations;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR q IN SELECT * FROM json_to_recordset(requests) AS r(
        item integer, id text, incarnation text, epoch bigint, token text, payloads json
    ) ORDER BY r.item LOOP
        SELECT * INTO c FROM conversations WHERE id = q.id;
        IF FOUND AND NOT c.deleted AND c.owner = q.incarnation AND c.epoch = q.epoch AND c.token = q.token THEN
            PERFORM pg_notify(channel, p.value) FROM json_array_elements_text(q.payloads) p;
            RETURN NEXT (q.item, 'sent', NULL, NULL, NULL)::answer;
        ELSE
            IF c.created_no IS NOT NULL THEN
                PERFORM refuse(c.created_no, q.incarnation, q.epoch, q.token, 'publish', time_of_day(clock), refusals_kept);
            END IF;
            RETURN NEXT (q.item, 'fenced', NULL, NULL,
                CASE WHEN c.created_no IS NOT NULL THEN shown(c, store_now(clock)) END)::answer;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION tell(channel text, payloads text[]) RETURNS void LANGUAGE sql AS $$
    SELECT set_config('synchronous_commit', 'off', true);
    SELECT pg_notify($1, p) FROM unnest($2) p
$$;
