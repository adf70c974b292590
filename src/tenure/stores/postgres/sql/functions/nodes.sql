-- The nodes: their leases, judged under the lock of each node's own row.

CREATE FUNCTION register(name text, clock float8[], about json, ttl float8) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO nodes (incarnation, node, address, capacity, agents, started_at, ttl_s, expires)
    VALUES (name, about->>'node', about->>'address', (about->>'capacity')::integer, about->'agents',
            (about->>'started_at')::float8, ttl, store_now(clock) + ttl)
    ON CONFLICT (incarnation) DO NOTHING;
    RETURN FOUND;
END $$;

-- The next beat, or null: buried, expired, unknown, or another copy's beat. now is read after the lock was waited for.
CREATE FUNCTION renew(name text, clock float8[], at_beat bigint, with_nonce text, ttl float8, now_owned integer, leaving boolean)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    n nodes; now float8;
BEGIN
    SELECT * INTO n FROM nodes WHERE incarnation = name FOR UPDATE;
    now := store_now(clock);
    IF NOT FOUND OR n.death IS NOT NULL OR now >= n.expires
        OR NOT (at_beat = n.beat OR (at_beat = n.beat - 1 AND with_nonce = n.nonce)) THEN
        RETURN NULL;
    END IF;
    UPDATE nodes SET ttl_s = ttl, expires = now + ttl, beat = at_beat + 1, nonce = with_nonce, owned = now_owned,
        draining = leaving WHERE no = n.no;
    RETURN at_beat + 1;
END $$;

-- What is left of the lease, in seconds, and why it is dead: null if it is not; `fresh` if it was this call that buried it. A lease that
-- runs for longer than its ttl is clamped: the server's clock stepped back.
CREATE FUNCTION bury(name text, clock float8[], asked_why text, OUT known boolean, OUT why text, OUT fresh boolean,
                     OUT left_s float8) LANGUAGE plpgsql AS $$
DECLARE
    n nodes; now float8;
BEGIN
    SELECT * INTO n FROM nodes WHERE incarnation = name FOR UPDATE;
    known := FOUND; now := store_now(clock); left_s := least(n.expires - now, n.ttl_s);
    why := coalesce(n.death, CASE WHEN known AND (asked_why <> 'expired' OR left_s <= 0) THEN asked_why END);
    fresh := why IS NOT NULL AND n.death IS NULL;
    IF fresh OR (known AND n.death IS NULL AND now + left_s < n.expires) THEN
        UPDATE nodes SET death = why, expires = now + left_s WHERE no = n.no;
    END IF;
END $$;

-- The living, and the dead that a conversation still names: skips from owner to owner through the index.
CREATE FUNCTION list_nodes(clock float8[]) RETURNS TABLE (
    incarnation text, node text, address text, capacity integer, agents json, started_at float8, owned integer,
    draining boolean, beat bigint, expires_in_s float8, dead boolean
) LANGUAGE sql VOLATILE AS $$
    WITH RECURSIVE owners (owner) AS (
        (SELECT c.owner FROM conversations c WHERE c.owner IS NOT NULL ORDER BY c.owner LIMIT 1)
        UNION ALL
        SELECT (SELECT c.owner FROM conversations c WHERE c.owner IS NOT NULL AND c.owner > o.owner ORDER BY c.owner LIMIT 1)
        FROM owners o WHERE o.owner IS NOT NULL
    )
    SELECT n.incarnation, n.node, n.address, n.capacity, n.agents, n.started_at, n.owned, n.draining, n.beat,
           n.expires - store_now(clock), n.death IS NOT NULL
    FROM nodes n WHERE n.death IS NULL OR n.incarnation IN (SELECT o.owner FROM owners o) ORDER BY n.no
$$;
