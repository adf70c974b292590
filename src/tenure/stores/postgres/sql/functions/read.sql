-- Reading: each function is one statement, and all of its answer is of one moment.

-- The first row carries the record and the snapshot, the others an event each. No row: no such conversation.
CREATE FUNCTION read(conversation text, clock float8[], after bigint, most bigint, of_kinds text[], from_snapshot boolean)
RETURNS TABLE (record text, snapshot_seq bigint, fold json, loop_state json, seq bigint, epoch bigint, kind text, at float8, body json,
               turn text, opens json, closes json, key text, delivery text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    c conversations; s snapshots; first bigint := after;
BEGIN
    SELECT * INTO c FROM conversations WHERE id = conversation;
    IF NOT FOUND THEN RETURN; END IF;
    IF from_snapshot THEN
        SELECT * INTO s FROM snapshots x WHERE x.conversation = c.created_no;
        IF s.fold IS NOT NULL THEN first := greatest(after, s.seq); END IF;
    END IF;
    RETURN QUERY SELECT shown(c, store_now(clock)), s.seq, s.fold, s.loop_state, NULL::bigint, NULL::bigint, NULL, NULL::float8,
        NULL::json, NULL, NULL::json, NULL::json, NULL, NULL;
    RETURN QUERY SELECT NULL, NULL::bigint, NULL::json, NULL::json, e.seq, e.epoch, e.kind, e.at, e.body, e.turn, e.opens,
        e.closes, e.key, e.delivery
    FROM events e WHERE e.conversation = c.created_no AND e.seq > first AND (of_kinds IS NULL OR e.kind = ANY (of_kinds))
    ORDER BY e.seq LIMIT most;
END $$;

CREATE FUNCTION records(conversations text[], clock float8[]) RETURNS TABLE (id text, record text) LANGUAGE sql STABLE AS $$
    SELECT c.id, shown(c, store_now(clock)) FROM conversations c WHERE c.id = ANY ($1)
$$;

-- Up to `most` conversations after a number, in order; deleted ones and those of other agents are left to the caller.
CREATE FUNCTION list_conversations(clock float8[], after bigint, most integer, of_user text, of_owner text)
RETURNS TABLE (created_no bigint, record text) LANGUAGE plpgsql STABLE AS $$
DECLARE
    now float8 := store_now(clock);
BEGIN
    IF of_user IS NOT NULL THEN
        RETURN QUERY SELECT c.created_no, shown(c, now) FROM conversations c
        WHERE c.user_id = of_user AND NOT c.deleted AND c.created_no > after ORDER BY c.created_no LIMIT most;
    ELSIF of_owner IS NOT NULL THEN
        RETURN QUERY SELECT c.created_no, shown(c, now) FROM conversations c WHERE c.created_no IN (
            (SELECT o.created_no FROM conversations o WHERE o.owner = of_owner AND o.created_no > after
             ORDER BY o.created_no LIMIT most)
            UNION
            (SELECT o.created_no FROM conversations o WHERE o.owner_node = of_owner AND o.created_no > after
             ORDER BY o.created_no LIMIT most)
        ) ORDER BY c.created_no LIMIT most;
    ELSE
        RETURN QUERY SELECT c.created_no, shown(c, now) FROM conversations c WHERE c.created_no > after
        ORDER BY c.created_no LIMIT most;
    END IF;
END $$;

-- What is wanted of these agents, its back-off over, that nobody owns, a buried one, or `me`: in order of owner (nobody
-- first), agent, end of the back-off, creation. A place in that order is where the page before ended.
CREATE FUNCTION wanted(clock float8[], me text, agents text[], after_owner text, after_agent text, after_time float8,
                       after_no bigint, most integer)
RETURNS TABLE (id text, epoch bigint, owner text, token text, agent text, not_before float8, created_no bigint)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    now float8 := store_now(clock); g record; rest integer := most; found integer;
BEGIN
    FOR g IN
        WITH RECURSIVE owners (owner) AS (
            (SELECT c.owner FROM conversations c WHERE c.wanted AND c.owner IS NOT NULL ORDER BY c.owner LIMIT 1)
            UNION ALL
            SELECT (SELECT c.owner FROM conversations c WHERE c.wanted AND c.owner > o.owner ORDER BY c.owner LIMIT 1)
            FROM owners o WHERE o.owner IS NOT NULL
        ), these (owner) AS (
            SELECT ''::text COLLATE "C"
            UNION SELECT me WHERE me IS NOT NULL
            UNION SELECT n.incarnation FROM owners o JOIN nodes n ON n.incarnation = o.owner WHERE n.death IS NOT NULL
        )
        SELECT t.owner, a.agent FROM these t, unnest(agents) a(agent)
        WHERE (t.owner, a.agent COLLATE "C") >= (after_owner, after_agent) ORDER BY t.owner, a.agent COLLATE "C"
    LOOP
        IF g.owner = '' THEN
            RETURN QUERY SELECT c.id, c.epoch, c.owner, c.token, c.agent, c.not_before, c.created_no FROM conversations c
            WHERE c.wanted AND c.owner IS NULL AND c.agent = g.agent AND c.not_before <= now
              AND ((g.owner, g.agent) <> (after_owner, after_agent) OR (c.not_before, c.created_no) > (after_time, after_no))
            ORDER BY c.not_before, c.created_no LIMIT rest;
        ELSE
            RETURN QUERY SELECT c.id, c.epoch, c.owner, c.token, c.agent, c.not_before, c.created_no FROM conversations c
            WHERE c.wanted AND c.owner = g.owner AND c.agent = g.agent AND c.not_before <= now
              AND ((g.owner, g.agent) <> (after_owner, after_agent) OR (c.not_before, c.created_no) > (after_time, after_no))
            ORDER BY c.not_before, c.created_no LIMIT rest;
        END IF;
        GET DIAGNOSTICS found = ROW_COUNT;
        rest := rest - found;
        EXIT WHEN rest <= 0;
    END LOOP;
END $$;
