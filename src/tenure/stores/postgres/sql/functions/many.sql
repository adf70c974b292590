-- What most of a large group asks, in three statements for all of it: no refusal, no repeat, nothing created, one event each.
-- Whatever is different, or locked by somebody, is left alone, and is no row of the answer: append(), submit() or claim() is
-- asked of it then, does it or tells why not. Setting up these statements takes as long as four items do there, one item then
-- half as long. At most one request per conversation. As there, the lock is the fence (C5, C6): the rows are locked first, in the
-- order of their ids, and judged by the next statement, which sees what the locks' former holders left.
CREATE FUNCTION take_many(requests json) RETURNS bigint[] LANGUAGE sql AS $$
    SELECT array_agg(l.created_no) FROM (
        SELECT c.created_no FROM conversations c WHERE c.id IN (SELECT r->>'id' FROM json_array_elements(requests) r)
        ORDER BY c.id FOR UPDATE SKIP LOCKED) l
$$;

CREATE FUNCTION append_many(requests json, clock float8[]) RETURNS SETOF answer LANGUAGE plpgsql AS $$
DECLARE
    taken bigint[] := take_many(requests); at float8 := time_of_day(clock);
BEGIN
    RETURN QUERY WITH q AS MATERIALIZED (
        SELECT * FROM json_to_recordset(requests) AS r(
            item integer, id text, incarnation text, epoch bigint, token text, number bigint, seen bigint, digest text, kind text,
            body text, turn text)
    ), moved AS (
        UPDATE conversations u SET
            head = u.head + 1, updated_at = at, number = q.number, digest = q.digest,
            result = json_build_array(u.head + 1, 1, u.head + 1, u.last_command, at)::text
        FROM q
        WHERE u.id = q.id AND u.created_no = ANY (taken) AND NOT u.deleted AND u.owner = q.incarnation AND u.epoch = q.epoch
          AND u.token = q.token AND u.number + 1 = q.number AND u.head >= q.seen
        RETURNING q.item, q.epoch, q.kind, q.body, q.turn, u.created_no, u.head, u.wanted, u.result
    ), written AS (
        INSERT INTO events (conversation, seq, epoch, kind, at, body, turn)
        SELECT m.created_no, m.head, m.epoch, m.kind, at, m.body::json, m.turn FROM moved m
    )
    SELECT m.item, 'appended', m.result, m.wanted, NULL FROM moved m;
END $$;

-- Neither start nor stop, which the limits and the back-off treat in their own way.
CREATE FUNCTION submit_many(requests json, clock float8[], most_unsettled integer) RETURNS SETOF answer LANGUAGE plpgsql AS $$
DECLARE
    taken bigint[] := take_many(requests); at float8 := time_of_day(clock); now float8 := store_now(clock);
BEGIN
    RETURN QUERY WITH q AS MATERIALIZED (
        SELECT * FROM json_to_recordset(requests) AS r(
            item integer, id text, kind text, body text, key text, delivery text, digest text)
    ), moved AS (
        UPDATE conversations u SET
            head = u.head + 1, last_command = u.head + 1, unsettled = u.unsettled + 1, wanted = true, failed = false,
            updated_at = at
        FROM q
        WHERE u.id = q.id AND u.created_no = ANY (taken) AND NOT u.deleted AND u.unsettled < most_unsettled
          AND NOT (q.delivery = 'turn' AND u.stopped)
          AND NOT (q.kind = 'message' AND u.policy = 'reject' AND u.turn <> 'none')
          AND (SELECT k.seq FROM keys k WHERE k.conversation = u.created_no AND k.key = q.key) IS NULL
        RETURNING q.*, u.created_no, u.head, shown(u, now) AS record,
            q.kind = 'message' AND u.policy = 'steer' AND u.turn <> 'none' AS steers
    ), written AS (
        INSERT INTO events (conversation, seq, kind, at, body, key, delivery)
        SELECT m.created_no, m.head, m.kind, at, m.body::json, m.key, CASE WHEN m.steers THEN 'now' ELSE m.delivery END FROM moved m
    ), known AS (
        INSERT INTO keys (conversation, key, seq, digest) SELECT m.created_no, m.key, m.head, m.digest FROM moved m
    )
    SELECT m.item, 'accepted', json_build_array(m.head, false)::text, true, m.record FROM moved m;
END $$;

-- Of nobody's, or a buried incarnation's. Who lives was read after the locks, as a fact on the record of each.
CREATE FUNCTION claim_many(requests json, clock float8[]) RETURNS SETOF answer LANGUAGE plpgsql AS $$
DECLARE
    taken bigint[] := take_many(requests); at float8 := time_of_day(clock); now float8 := store_now(clock);
BEGIN
    RETURN QUERY WITH q AS MATERIALIZED (
        SELECT * FROM json_to_recordset(requests) AS r(
            item integer, id text, incarnation text, token text, expected_epoch bigint, node text, address text, body text,
            death text, floor bigint)
    ), judged AS MATERIALIZED (
        SELECT q.*, c.created_no, c.owner AS before, greatest(c.epoch, q.floor, (
            SELECT e.epoch FROM events e WHERE e.conversation = c.created_no AND e.epoch IS NOT NULL ORDER BY e.seq DESC LIMIT 1
        )) + 1 AS new_epoch
        FROM q JOIN conversations c ON c.id = q.id JOIN nodes n ON n.incarnation = q.incarnation
        WHERE c.created_no = ANY (taken) AND NOT c.deleted AND c.epoch = q.expected_epoch AND n.death IS NULL
          AND (c.owner IS NULL OR (SELECT o.death FROM nodes o WHERE o.incarnation = c.owner) IS NOT NULL)
    ), moved AS (
        UPDATE conversations u SET
            epoch = j.new_epoch, owner = j.incarnation, owner_node = j.node, owner_address = j.address, owner_since = at,
            token = j.token, head = u.head + 1, started = false, updated_at = at, number = 0, digest = NULL, result = NULL,
            lost = u.lost + CASE WHEN u.owner IS NOT NULL AND (u.turn = 'open' OR NOT u.started) THEN 1 ELSE 0 END
        FROM judged j WHERE u.created_no = j.created_no
        RETURNING j.item, j.body, j.death, j.before, u.created_no, u.epoch, u.head, u.wanted, shown(u, now) AS record
    ), written AS (
        INSERT INTO events (conversation, seq, epoch, kind, at, body)
        SELECT m.created_no, m.head, m.epoch, 'claimed', at, claimed_body(m.body, m.before, m.death) FROM moved m
    )
    SELECT m.item, 'held', '[false]', m.wanted, m.record FROM moved m;
END $$;
