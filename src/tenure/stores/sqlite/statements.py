"""Every statement that the store runs, by name. Parameters are positional, but where one is used twice.

Each finds its rows through an index (a test asks the planner): nothing is proportional to what is stored or idle.
"""

from typing import Final, LiteralString

# --- conversations: the columns in the order of tenure.stores.sqlite.columns ------------------------------------------

ROW: Final = (
    "id, user_id, agent, settings, policy, title, metadata, version, epoch, owner, owner_node, owner_address, owner_since, "
    "token, head, last_command, last_start, unsettled, turn, started, wanted, not_before, lost, failures, stopped, failed, "
    "deleted, agent_status, created_at, updated_at, number, digest, result, released_epoch, released_token, "
    "released_digest, open_start"
)

CONVERSATION: Final = f"SELECT created_no, {ROW} FROM conversations WHERE id = ?"

CONVERSATIONS: Final = f"SELECT created_no, {ROW} FROM conversations WHERE id IN (SELECT value FROM json_each(?))"

INSERT_CONVERSATION: Final = (
    f"INSERT INTO conversations ({ROW}, change, created_no) VALUES ({', '.join('?' * (ROW.count(',') + 3))})"
)

UPDATE_CONVERSATION: Final = f"UPDATE conversations SET {', '.join(f'{column} = ?' for column in ROW.split(', '))}, change = ? WHERE created_no = ?"

# What an append moves that settles nothing. An index is written anew whenever one of its columns is set, be it to what it was: of
# those there are, only that of changes has one here.
MOVE_CONVERSATION: Final = """
UPDATE conversations SET head = ?, updated_at = ?, number = ?, digest = ?, result = ?, change = ? WHERE created_no = ?
"""

# What any other append or a command moves.
ADVANCE_CONVERSATION: Final = """
UPDATE conversations SET
    head = ?, last_command = ?, last_start = ?, unsettled = ?, turn = ?, started = ?, wanted = ?, not_before = ?, lost = ?,
    failures = ?, stopped = ?, failed = ?, agent_status = ?, updated_at = ?, number = ?, digest = ?, result = ?,
    open_start = ?, change = ?
WHERE created_no = ?
"""

# For transactions of other people's, under the write lock: nobody else commits meanwhile.
FENCE: Final = "SELECT 1 FROM conversations WHERE id = ? AND deleted = 0 AND owner = ? AND epoch = ? AND token = ?"

LIST_ALL: Final = f"""
SELECT created_no, {ROW} FROM conversations WHERE created_no > ? ORDER BY created_no LIMIT ?
"""

LIST_OF_USER: Final = f"""
SELECT created_no, {ROW} FROM conversations
WHERE user_id = ? AND deleted = 0 AND created_no > ? ORDER BY created_no LIMIT ?
"""

LIST_OF_OWNER: Final = f"""
SELECT created_no, {ROW} FROM conversations WHERE created_no IN (
    SELECT created_no FROM (
        SELECT created_no FROM conversations WHERE owner = :owner AND created_no > :after ORDER BY created_no LIMIT :limit)
    UNION SELECT created_no FROM (
        SELECT created_no FROM conversations WHERE owner_node = :owner AND created_no > :after ORDER BY created_no LIMIT :limit)
) ORDER BY created_no LIMIT :limit
"""

# The dead among the owners of wanted conversations: skips from owner to owner through the index.
DEAD_OWNERS_OF_WANTED: Final = """
WITH RECURSIVE owners (owner) AS (
    SELECT * FROM (
        SELECT owner FROM conversations INDEXED BY conversations_wanted
        WHERE wanted = 1 AND owner > '' ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (
        SELECT c.owner FROM conversations c INDEXED BY conversations_wanted
        WHERE c.wanted = 1 AND c.owner > owners.owner ORDER BY c.owner LIMIT 1)
    FROM owners WHERE owners.owner IS NOT NULL
)
SELECT owners.owner FROM owners CROSS JOIN nodes ON nodes.incarnation = owners.owner WHERE nodes.dead <> 0
"""

WANTED: Final = """
SELECT id, epoch, owner, token, agent, not_before, created_no FROM conversations
WHERE wanted = 1 AND owner IS ? AND agent = ? AND not_before <= ? AND (not_before, created_no) > (?, ?)
ORDER BY not_before, created_no LIMIT ?
"""

# --- journals ---------------------------------------------------------------------------------------------------------

INSERT_EVENT: Final = """
INSERT INTO events (conversation, seq, epoch, kind, at, body, turn, opens, closes, key, delivery)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

EVENTS: Final = """
SELECT seq, epoch, kind, at, body, turn, opens, closes, key, delivery FROM events
WHERE conversation = ? AND seq > ? ORDER BY seq LIMIT ?
"""

EVENTS_OF_KINDS: Final = """
SELECT seq, epoch, kind, at, body, turn, opens, closes, key, delivery FROM events
WHERE conversation = ? AND seq > ? AND kind IN (SELECT value FROM json_each(?)) ORDER BY seq LIMIT ?
"""

# Epochs rise along a journal, so its last entry that has one has the highest (rule 4).
JOURNAL_EPOCH: Final = """
SELECT epoch FROM events WHERE conversation = ? AND epoch IS NOT NULL ORDER BY seq DESC LIMIT 1
"""

KEY: Final = "SELECT seq, digest FROM keys WHERE conversation = ? AND key = ?"
INSERT_KEY: Final = "INSERT INTO keys (conversation, key, seq, digest) VALUES (?, ?, ?, ?)"

SNAPSHOT: Final = "SELECT seq, fold, loop FROM snapshots WHERE conversation = ?"

# Part by part: the fold moves the seq, a null part keeps its last one.
PUT_SNAPSHOT: Final = """
INSERT INTO snapshots (conversation, seq, fold, loop) VALUES (?, ?, ?, ?)
ON CONFLICT (conversation) DO UPDATE SET
    seq = iif(excluded.fold IS NULL, seq, excluded.seq),
    fold = coalesce(excluded.fold, fold),
    loop = coalesce(excluded.loop, loop)
"""

ERASE: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM events WHERE conversation = ?",
    "DELETE FROM keys WHERE conversation = ?",
    "DELETE FROM snapshots WHERE conversation = ?",
    "DELETE FROM vault WHERE conversation = ?",
)
ERASE_DELTAS: Final = "DELETE FROM signals WHERE topic = 'conversation' AND subject = ?"

INSERT_REFUSAL: Final = """
INSERT INTO refusals (conversation, at, incarnation, epoch, token, operation) VALUES (?, ?, ?, ?, ?, ?)
"""
TRIM_REFUSALS: Final = """
DELETE FROM refusals WHERE conversation = :conversation AND no <= (
    SELECT no FROM refusals WHERE conversation = :conversation ORDER BY no DESC LIMIT 1 OFFSET :kept)
"""
REFUSALS: Final = """
SELECT refusals.at, id, refusals.incarnation, refusals.epoch, refusals.token, refusals.operation
FROM conversations JOIN refusals ON refusals.conversation = created_no
WHERE id = ? ORDER BY refusals.no DESC LIMIT ?
"""

# --- changes, for followers -------------------------------------------------------------------------------------------

COUNTERS: Final = "SELECT changes, created FROM meta"
UPDATE_COUNTERS: Final = "UPDATE meta SET changes = ?, created = ?"
DATA_VERSION: Final = "PRAGMA data_version"

CHANGED: Final = """
SELECT change, id, head, wanted, owner FROM conversations WHERE change > ? ORDER BY change
"""
INSERT_SIGNAL: Final = "INSERT INTO signals (change, topic, subject, delta) VALUES (?, ?, ?, ?)"
TRIM_SIGNALS: Final = "DELETE FROM signals WHERE change <= ?"
SIGNALS: Final = "SELECT change, topic, subject, delta FROM signals WHERE change > ? ORDER BY change"

# --- nodes ------------------------------------------------------------------------------------------------------------

INSERT_NODE: Final = """
INSERT INTO nodes (incarnation, node, address, capacity, agents, started_at, ttl_s, expires)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (incarnation) DO NOTHING
"""
LEASE_OF_NODE: Final = "SELECT ttl_s, expires, beat, nonce, dead FROM nodes WHERE incarnation = ?"
DEAD: Final = "SELECT dead FROM nodes WHERE incarnation = ?"
RENEW: Final = """
UPDATE nodes SET ttl_s = ?, expires = ?, beat = ?, nonce = ?, owned = ?, draining = ? WHERE incarnation = ?
"""
CLAMP: Final = "UPDATE nodes SET expires = ? WHERE incarnation = ?"
BURY: Final = "UPDATE nodes SET dead = ?, expires = ? WHERE incarnation = ?"

# The living, and the dead that a conversation still names (skips from owner to owner through the index).
NODES: Final = """
WITH RECURSIVE owners (owner) AS (
    SELECT * FROM (SELECT owner FROM conversations WHERE owner > '' ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (SELECT c.owner FROM conversations c WHERE c.owner > owners.owner ORDER BY c.owner LIMIT 1)
    FROM owners WHERE owners.owner IS NOT NULL
), listed (no) AS (
    SELECT no FROM nodes WHERE dead = 0
    UNION
    SELECT no FROM owners CROSS JOIN nodes ON nodes.incarnation = owners.owner
)
SELECT incarnation, node, address, capacity, agents, started_at, owned, draining, beat, expires, dead
FROM nodes WHERE no IN listed ORDER BY no
"""

# --- vault and papers -------------------------------------------------------------------------------------------------

SECRET: Final = "SELECT ciphertext, version FROM vault WHERE conversation = ? AND name = ?"
SECRET_OF: Final = """
SELECT name, ciphertext, vault.version FROM conversations JOIN vault ON conversation = created_no WHERE id = ? AND name = ?
"""
SECRETS_OF: Final = """
SELECT name, ciphertext, vault.version FROM conversations JOIN vault ON conversation = created_no WHERE id = ? ORDER BY name
"""
PUT_SECRET: Final = "INSERT OR REPLACE INTO vault (conversation, name, ciphertext, version) VALUES (?, ?, ?, ?)"
FORGET_SECRET: Final = "DELETE FROM vault WHERE conversation = ? AND name = ? AND version = ?"

PAPER: Final = "SELECT document, version FROM papers WHERE kind = ? AND id = ?"
PAPERS: Final = """
SELECT id, document, version FROM papers WHERE kind = ? AND id >= ? AND id < ? ORDER BY id LIMIT ?
"""
PUT_PAPER: Final = "INSERT OR REPLACE INTO papers (kind, id, document, version) VALUES (?, ?, ?, ?)"
REMOVE_PAPER: Final = "DELETE FROM papers WHERE kind = ? AND id = ? AND version = ?"
