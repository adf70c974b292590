-- The tables of a Tenure store in SQLite. Version 1; `meta.schema` holds the number and keeps its place for ever, so
-- that every version can tell a newer one. Times of day are seconds since 1970; `expires` and `not_before` are boot
-- time of the boot in `meta.boot`. Booleans are 0 or 1; JSON is text.

CREATE TABLE meta (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    schema  INTEGER NOT NULL,
    store   TEXT    NOT NULL,            -- random id of this store; a copy of the file has the same
    boot    TEXT    NOT NULL,            -- which boot the store's clock counts from
    changes INTEGER NOT NULL DEFAULT 0,  -- rises with every change that somebody may follow
    created INTEGER NOT NULL DEFAULT 0   -- the last creation number given
) STRICT;

CREATE TABLE nodes (
    no          INTEGER PRIMARY KEY,     -- order of registration
    incarnation TEXT    NOT NULL UNIQUE, -- the trace: never removed
    node        TEXT    NOT NULL,
    address     TEXT    NOT NULL,
    capacity    INTEGER NOT NULL,
    agents      TEXT    NOT NULL,        -- JSON list
    started_at  REAL    NOT NULL,
    ttl_s       REAL    NOT NULL,
    expires     REAL    NOT NULL,        -- 0 after another boot
    beat        INTEGER NOT NULL DEFAULT 0,
    nonce       TEXT    NOT NULL DEFAULT '',
    owned       INTEGER NOT NULL DEFAULT 0,
    draining    INTEGER NOT NULL DEFAULT 0,
    dead        INTEGER NOT NULL DEFAULT 0 -- 1 expired, 2 retired, 3 exited
) STRICT;

CREATE INDEX nodes_living ON nodes (no) WHERE dead = 0;

-- The record (tenure.conversation.Record) with what only the store needs (tenure.stores.rules.Row).
CREATE TABLE conversations (
    created_no      INTEGER PRIMARY KEY, -- order of creation; never moves, never reused: tombstones stay
    id              TEXT    NOT NULL UNIQUE,
    user_id         TEXT,
    agent           TEXT    NOT NULL,
    settings        TEXT    NOT NULL,
    policy          TEXT    NOT NULL,
    title           TEXT,
    metadata        TEXT    NOT NULL,
    version         INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    owner           TEXT,
    owner_node      TEXT,
    owner_address   TEXT,
    owner_since     REAL,
    token           TEXT,
    head            INTEGER NOT NULL,
    last_command    INTEGER NOT NULL,
    last_start      INTEGER NOT NULL,
    unsettled       INTEGER NOT NULL,
    turn            TEXT    NOT NULL,
    started         INTEGER NOT NULL,
    wanted          INTEGER NOT NULL,
    not_before      REAL    NOT NULL,    -- 0: no back-off
    lost            INTEGER NOT NULL,
    failures        INTEGER NOT NULL,
    stopped         INTEGER NOT NULL,
    failed          INTEGER NOT NULL,
    deleted         INTEGER NOT NULL,
    agent_status    TEXT,
    created_at      REAL    NOT NULL,
    updated_at      REAL    NOT NULL,
    number          INTEGER NOT NULL,    -- of the owner's last batch
    digest          TEXT,
    result          TEXT,
    released_epoch  INTEGER NOT NULL,
    released_token  TEXT,
    released_digest TEXT,
    open_start      INTEGER,
    change          INTEGER NOT NULL     -- meta.changes when it was last written
) STRICT;

-- What a sweep reads: only what is wanted, by owner, so that the wanted conversations of living owners cost nothing.
CREATE INDEX conversations_wanted ON conversations (owner, agent, not_before) WHERE wanted = 1;
CREATE INDEX conversations_backing_off ON conversations (not_before) WHERE not_before > 0;
CREATE INDEX conversations_changed ON conversations (change);
CREATE INDEX conversations_of_user ON conversations (user_id) WHERE deleted = 0 AND user_id IS NOT NULL;
CREATE INDEX conversations_of_owner ON conversations (owner) WHERE owner IS NOT NULL;
CREATE INDEX conversations_of_node ON conversations (owner_node) WHERE owner_node IS NOT NULL;

CREATE TABLE events (
    conversation INTEGER NOT NULL,       -- created_no
    seq          INTEGER NOT NULL,
    epoch        INTEGER,
    kind         TEXT    NOT NULL,
    at           REAL    NOT NULL,
    body         TEXT    NOT NULL,
    turn         TEXT,
    opens        TEXT,                   -- JSON list, or null for none
    closes       TEXT,
    key          TEXT,
    delivery     TEXT
) STRICT;

-- The journal's order; unique, so that even a fault in our code cannot write one seq twice.
CREATE UNIQUE INDEX events_journal ON events (conversation, seq);

CREATE TABLE keys (
    conversation INTEGER NOT NULL,
    key          TEXT    NOT NULL,
    seq          INTEGER NOT NULL,
    digest       TEXT    NOT NULL,
    PRIMARY KEY (conversation, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshots (
    conversation INTEGER PRIMARY KEY,
    seq          INTEGER NOT NULL,
    fold         TEXT,
    loop         TEXT
) STRICT;

CREATE TABLE vault (
    conversation INTEGER NOT NULL,
    name         TEXT    NOT NULL,
    ciphertext   BLOB    NOT NULL,
    version      INTEGER NOT NULL,
    PRIMARY KEY (conversation, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE papers (
    kind     TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    document TEXT    NOT NULL,
    version  INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;

-- The last refused writes of each conversation; trimmed as it grows.
CREATE TABLE refusals (
    no           INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL,
    at           REAL    NOT NULL,
    incarnation  TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,
    token        TEXT    NOT NULL,
    operation    TEXT    NOT NULL
) STRICT;

CREATE INDEX refusals_newest ON refusals (conversation, no);

-- What followers hear beside changed conversations: burials, requests to a node, deltas. Only the latest are kept.
CREATE TABLE signals (
    change  INTEGER PRIMARY KEY,
    topic   TEXT NOT NULL,
    subject TEXT NOT NULL,
    delta   TEXT
) STRICT;
