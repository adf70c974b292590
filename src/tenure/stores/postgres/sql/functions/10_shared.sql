-- What several operations share. `clock` is null, or a test's idea of time: {the store's now, the time of day}.

-- One result of an operation on many. `detail` is a JSON list whose meaning the operation's header tells.
CREATE TYPE answer AS (item integer, outcome text, detail text, wanted boolean, record text);

-- clock_timestamp(), not now(): that one stands still while a statement waits for a lock (C5).
CREATE FUNCTION store_now(clock float8[]) RETURNS float8 LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(clock[1], extract(epoch FROM clock_timestamp())::float8)
$$;

CREATE FUNCTION time_of_day(clock float8[]) RETURNS float8 LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(clock[2], extract(epoch FROM clock_timestamp())::float8)
$$;

-- The record as an answer carries it, a JSON list in the order of answers.record_of: the back-off as what is left of it. One
-- expression, so that it becomes a part of whatever calls it.
CREATE FUNCTION shown(c conversations, now float8) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT json_build_array(c.id, c.user_id, c.agent, c.settings, c.policy, c.title, c.metadata, c.version, c.epoch, c.owner,
        c.owner_node, c.owner_address, c.owner_since, c.token, c.head, c.last_command, c.last_start, c.unsettled, c.turn, c.started,
        c.wanted, CASE WHEN c.not_before > now THEN c.not_before - now END, c.lost, c.failures, c.stopped, c.failed, c.deleted,
        c.agent_status, c.created_at, c.updated_at)::text
$$;

-- Whether a row that was not locked is another's at the moment (busy), or is not there. Who is patient has waited for it.
CREATE FUNCTION is_there(conversation text, patient boolean) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT patient AND EXISTS (SELECT FROM conversations c WHERE c.id = conversation)
$$;

-- What a conversation is created with. `large`: what the store answers if the first event is larger than it takes.
CREATE TYPE creation AS (
    user_id text, agent text, default_agent text, settings text, settings_digest text, policy text, title text, metadata text,
    wanted boolean, body text, large text
);

-- Whether an existing conversation is the one that was asked for.
CREATE FUNCTION fits(c conversations, asked creation) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT c.user_id IS NOT DISTINCT FROM asked.user_id
       AND (asked.agent IS NULL OR asked.agent = c.agent)
       AND (asked.settings IS NULL OR asked.settings_digest = c.settings_digest)
$$;

-- What a new conversation's row would be; nothing is written.
CREATE FUNCTION drawn(conversation text, asked creation, at float8) RETURNS conversations LANGUAGE plpgsql STABLE AS $$
DECLARE
    c conversations;
BEGIN
    c.id := conversation; c.user_id := asked.user_id; c.agent := coalesce(asked.agent, asked.default_agent);
    c.settings := coalesce(asked.settings, '{}'); c.settings_digest := asked.settings_digest;
    c.policy := coalesce(asked.policy, 'enqueue'); c.title := asked.title; c.metadata := coalesce(asked.metadata, '{}');
    c.version := 1; c.epoch := 0; c.head := 1; c.last_command := 0; c.last_start := 0; c.unsettled := 0; c.turn := 'none';
    c.started := false; c.wanted := asked.wanted; c.not_before := 0; c.lost := 0; c.failures := 0; c.stopped := false;
    c.failed := false; c.deleted := false; c.created_at := at; c.updated_at := at;
    RETURN c;
END $$;

-- A new conversation and its first event; null if somebody else has just created it. Creations stand in line, from here to
-- the commit: so their numbers come to light in order, and a list that has passed a number has missed none before it.
-- Whoever is in that line waits for nobody else: an id that turned up meanwhile is the next try's.
CREATE FUNCTION create_conversation(conversation text, asked creation, at float8) RETURNS conversations
LANGUAGE plpgsql AS $$
DECLARE
    c conversations;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tenure: order of creation', 'conversations'::regclass::oid::bigint));
    INSERT INTO conversations (id, user_id, agent, settings, settings_digest, policy, title, metadata, wanted, created_at,
        updated_at)
    VALUES (conversation, asked.user_id, coalesce(asked.agent, asked.default_agent), coalesce(asked.settings, '{}')::json,
        asked.settings_digest, coalesce(asked.policy, 'enqueue'), asked.title, coalesce(asked.metadata, '{}')::json, asked.wanted,
        at, at)
    ON CONFLICT (id) DO NOTHING RETURNING * INTO c;
    IF c.created_no IS NOT NULL THEN
        INSERT INTO events (conversation, seq, kind, at, body) VALUES (c.created_no, 1, 'created', at, asked.body::json);
    END IF;
    RETURN c;
END $$;

-- Remember a refused write, and forget those before the last `kept`.
CREATE FUNCTION refuse(created_no bigint, incarnation text, epoch bigint, token text, operation text, at float8, kept integer)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO refusals (conversation, at, incarnation, epoch, token, operation)
    VALUES (created_no, at, incarnation, epoch, token, operation);
    DELETE FROM refusals r WHERE r.conversation = created_no AND r.no <= (
        SELECT x.no FROM refusals x WHERE x.conversation = created_no ORDER BY x.no DESC LIMIT 1 OFFSET kept);
END $$;

-- Whether the incarnation is buried; null if it was never registered. Death is for good, so "true" needs no lock (C5).
CREATE FUNCTION is_dead(of text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT death IS NOT NULL FROM nodes WHERE incarnation = of
$$;
