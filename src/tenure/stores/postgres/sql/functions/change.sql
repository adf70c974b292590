-- Changes of one conversation that waits for its row: the tombstone, and what people may amend.

-- unknown, stale, deleted [epoch]. Journal, keys, snapshot and vault are erased; the record stays for ever, with its epoch + 1.
CREATE FUNCTION delete_conversation(conversation text, clock float8[], expected_epoch bigint) RETURNS SETOF answer
LANGUAGE plpgsql AS $$
DECLARE
    c conversations; at float8; now float8;
BEGIN
    SELECT * INTO c FROM conversations WHERE id = conversation FOR UPDATE;
    now := store_now(clock); at := time_of_day(clock);
    IF NOT FOUND THEN
        RETURN NEXT (0, 'unknown', NULL, NULL, NULL)::answer;
    ELSIF c.deleted THEN
        RETURN NEXT (0, 'deleted', json_build_array(c.epoch, false)::text, NULL, NULL)::answer;
    ELSIF c.epoch <> expected_epoch THEN
        RETURN NEXT (0, 'stale', NULL, NULL, shown(c, now))::answer;
    ELSE
        DELETE FROM events e WHERE e.conversation = c.created_no;
        DELETE FROM keys k WHERE k.conversation = c.created_no;
        DELETE FROM snapshots s WHERE s.conversation = c.created_no;
        DELETE FROM vault v WHERE v.conversation = c.created_no;
        UPDATE conversations u SET
            epoch = u.epoch + 1, deleted = true, settings = '{}', settings_digest = '', policy = 'enqueue', title = NULL,
            metadata = '{}', version = 1, owner = NULL, owner_node = NULL, owner_address = NULL, owner_since = NULL,
            token = NULL, head = 0, last_command = 0, last_start = 0, unsettled = 0, turn = 'none', started = false,
            wanted = false, not_before = 0, lost = 0, failures = 0, stopped = false, failed = false, agent_status = NULL,
            updated_at = at, number = 0, digest = NULL, result = NULL, released_epoch = 0, released_token = NULL,
            released_digest = NULL, open_start = NULL
        WHERE u.created_no = c.created_no;
        RETURN NEXT (0, 'deleted', json_build_array(c.epoch + 1, true)::text, NULL, NULL)::answer;
    END IF;
END $$;

-- unknown, deleted [epoch], stale, amended. `changes` has title, metadata, settings where they change; the latter two as text,
-- settings with their digest and the body of the event.
CREATE FUNCTION amend(conversation text, clock float8[], expected_version bigint, changes json) RETURNS SETOF answer
LANGUAGE plpgsql AS $$
DECLARE
    c conversations; at float8; now float8; resets boolean := changes->>'settings' IS NOT NULL;
BEGIN
    SELECT * INTO c FROM conversations WHERE id = conversation FOR UPDATE;
    now := store_now(clock); at := time_of_day(clock);
    IF NOT FOUND THEN
        RETURN NEXT (0, 'unknown', NULL, NULL, NULL)::answer;
    ELSIF c.deleted THEN
        RETURN NEXT (0, 'deleted', json_build_array(c.epoch)::text, NULL, NULL)::answer;
    ELSIF c.version <> expected_version THEN
        RETURN NEXT (0, 'stale', NULL, NULL, shown(c, now))::answer;
    ELSE
        UPDATE conversations u SET
            version = u.version + 1, updated_at = at, head = u.head + CASE WHEN resets THEN 1 ELSE 0 END,
            title = CASE WHEN (changes->>'titles')::boolean THEN changes->>'title' ELSE u.title END,
            metadata = coalesce((changes->>'metadata')::json, u.metadata),
            settings = coalesce((changes->>'settings')::json, u.settings),
            settings_digest = coalesce(changes->>'settings_digest', u.settings_digest)
        WHERE u.created_no = c.created_no RETURNING * INTO c;
        IF resets THEN
            INSERT INTO events (conversation, seq, kind, at, body)
            VALUES (c.created_no, c.head, 'settings_changed', at, (changes->>'body')::json);
        END IF;
        RETURN NEXT (0, 'amended', NULL, c.wanted, shown(c, now))::answer;
    END IF;
END $$;
