-- The vault, the papers, the refusals.

-- unknown, deleted [epoch], stale, sealed.
CREATE FUNCTION seal(conversation text, clock float8[], of_name text, with_ciphertext bytea, expected_version bigint)
RETURNS SETOF answer LANGUAGE plpgsql AS $$
DECLARE
    c conversations; old bigint;
BEGIN
    SELECT * INTO c FROM conversations WHERE id = conversation FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NEXT (0, 'unknown', NULL, NULL, NULL)::answer; RETURN;
    ELSIF c.deleted THEN
        RETURN NEXT (0, 'deleted', json_build_array(c.epoch)::text, NULL, NULL)::answer; RETURN;
    END IF;
    SELECT v.version INTO old FROM vault v WHERE v.conversation = c.created_no AND v.name = of_name;
    IF coalesce(old, 0) <> expected_version THEN
        RETURN NEXT (0, 'stale', NULL, NULL, shown(c, store_now(clock)))::answer; RETURN;
    END IF;
    INSERT INTO vault VALUES (c.created_no, of_name, with_ciphertext, expected_version + 1)
    ON CONFLICT ON CONSTRAINT vault_pkey DO UPDATE SET ciphertext = excluded.ciphertext, version = excluded.version;
    RETURN NEXT (0, 'sealed', NULL, NULL, NULL)::answer;
END $$;

CREATE FUNCTION secrets(of_conversation text, of_name text) RETURNS TABLE (name text, ciphertext bytea, version bigint)
LANGUAGE sql STABLE AS $$
    SELECT v.name, v.ciphertext, v.version FROM conversations c JOIN vault v ON v.conversation = c.created_no
    WHERE c.id = of_conversation AND (of_name IS NULL OR v.name = of_name) ORDER BY v.name
$$;

-- Whether it is gone now.
CREATE FUNCTION forget(of_conversation text, of_name text, expected_version bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    no bigint;
BEGIN
    SELECT c.created_no INTO no FROM conversations c WHERE c.id = of_conversation FOR UPDATE;
    DELETE FROM vault v WHERE v.conversation = no AND v.name = of_name AND v.version = expected_version;
    RETURN NOT EXISTS (SELECT FROM vault v WHERE v.conversation = no AND v.name = of_name);
END $$;

-- Whether it was written: the stored version was the expected one, 0 for none.
CREATE FUNCTION put_paper(of_kind text, of_id text, new_document json, expected_version bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    IF expected_version = 0 THEN
        INSERT INTO papers (kind, id, document, version) VALUES (of_kind, of_id, new_document, 1) ON CONFLICT DO NOTHING;
    ELSE
        UPDATE papers SET document = new_document, version = expected_version + 1
        WHERE kind = of_kind AND id = of_id AND version = expected_version;
    END IF;
    RETURN FOUND;
END $$;

CREATE FUNCTION list_papers(of_kind text, first_id text, before_id text, most integer)
RETURNS TABLE (id text, document json, version bigint) LANGUAGE sql STABLE AS $$
    SELECT p.id, p.document, p.version FROM papers p
    WHERE p.kind = of_kind AND p.id >= first_id AND p.id < before_id ORDER BY p.id LIMIT most
$$;

-- Whether it is gone now.
CREATE FUNCTION remove_paper(of_kind text, of_id text, expected_version bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM papers WHERE kind = of_kind AND id = of_id AND version = expected_version;
    RETURN NOT EXISTS (SELECT FROM papers WHERE kind = of_kind AND id = of_id);
END $$;

CREATE FUNCTION list_refusals(conversation text, most integer)
RETURNS TABLE (at float8, incarnation text, epoch bigint, token text, operation text) LANGUAGE sql STABLE AS $$
    SELECT r.at, r.incarnation, r.epoch, r.token, r.operation FROM conversations c JOIN refusals r ON r.conversation = c.created_no
    WHERE c.id = $1 ORDER BY r.no DESC LIMIT most
$$;
