-- The tables of a Tenure store in PostgreSQL. Times are seconds since 1970 by the server's clock; JSON is kept as the text
-- that came. Texts of clients have their NUL characters escaped (tenure.stores.postgres.text). Tables only grow from here:
-- a later migration adds, and takes away only what no release that is still supported reads (docs/operating/postgres.md).

CREATE TABLE meta (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    schema integer NOT NULL,              -- the last migration that ran
    oldest integer NOT NULL,              -- the oldest release (by its last migration) that can still work with it
    store  uuid    NOT NULL DEFAULT gen_random_uuid()
);

CREATE TABLE nodes (
    no          bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    incarnation text    NOT NULL COLLATE "C" UNIQUE, -- the trace: never removed
    node        text    NOT NULL,
    address     text    NOT NULL,
    capacity    integer NOT NULL,
    agents      json    NOT NULL,
    started_at  float8  NOT NULL,
    ttl_s       float8  NOT NULL,
    expires     float8  NOT NULL,
    beat        bigint  NOT NULL DEFAULT 0,
    nonce       text    NOT NULL DEFAULT '',
    owned       integer NOT NULL DEFAULT 0,
    draining    boolean NOT NULL DEFAULT false,
    death       text                                 -- expired, retired or exited; null while it may live
) WITH (fillfactor = 50);

CREATE INDEX nodes_living ON nodes (no) WHERE death IS NULL;

-- The record (tenure.conversation.Record) with what only the store needs (tenure.stores.rules.Row).
CREATE TABLE conversations (
    created_no      bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- order of creation: given under one lock, held to the commit
    id              text    NOT NULL COLLATE "C" UNIQUE,
    user_id         text    COLLATE "C",
    agent           text    NOT NULL COLLATE "C",
    settings        json    NOT NULL,
    settings_digest text    NOT NULL,
    policy          text    NOT NULL,
    title           text,
    metadata        json    NOT NULL,
    version         bigint  NOT NULL DEFAULT 1,
    epoch           bigint  NOT NULL DEFAULT 0,
    owner           text    COLLATE "C",
    owner_node      text    COLLATE "C",
    owner_address   text,
    owner_since     float8,
    token           text,
    head            bigint  NOT NULL DEFAULT 1,
    last_command    bigint  NOT NULL DEFAULT 0,
    last_start      bigint  NOT NULL DEFAULT 0,
    unsettled       integer NOT NULL DEFAULT 0,
    turn            text    NOT NULL DEFAULT 'none',
    started         boolean NOT NULL DEFAULT false,
    wanted          boolean NOT NULL DEFAULT false,
    not_before      float8  NOT NULL DEFAULT 0,    -- 0: no back-off
    lost            integer NOT NULL DEFAULT 0,
    failures        integer NOT NULL DEFAULT 0,
    stopped         boolean NOT NULL DEFAULT false,
    failed          boolean NOT NULL DEFAULT false,
    deleted         boolean NOT NULL DEFAULT false,
    agent_status    text,
    created_at      float8  NOT NULL,
    updated_at      float8  NOT NULL,
    number          bigint  NOT NULL DEFAULT 0,    -- of the owner's last batch
    digest          text,
    result          text,
    released_epoch  bigint  NOT NULL DEFAULT 0,
    released_token  text,
    released_digest text,
    open_start      bigint
) WITH (fillfactor = 60);

-- What a sweep reads: only what is wanted, by owner, so that the wanted conversations of living owners cost nothing.
CREATE INDEX conversations_wanted ON conversations (owner, agent, not_before, created_no) WHERE wanted;
CREATE INDEX conversations_of_user ON conversations (user_id, created_no) WHERE NOT deleted AND user_id IS NOT NULL;
CREATE INDEX conversations_of_owner ON conversations (owner, created_no) WHERE owner IS NOT NULL;
CREATE INDEX conversations_of_node ON conversations (owner_node, created_no) WHERE owner_node IS NOT NULL;

CREATE TABLE events (
    conversation bigint NOT NULL,       -- created_no
    seq          bigint NOT NULL,
    epoch        bigint,
    kind         text   NOT NULL,
    at           float8 NOT NULL,
    body         json   NOT NULL,
    turn         text,
    opens        json,                  -- a list, or null for none
    closes       json,
    key          text,
    delivery     text,
    PRIMARY KEY (conversation, seq)     -- the journal's order; even a fault in our code cannot write one seq twice
);

CREATE TABLE keys (
    conversation bigint NOT NULL,
    key          text   NOT NULL COLLATE "C",
    seq          bigint NOT NULL,
    digest       text   NOT NULL,
    PRIMARY KEY (conversation, key)
);

CREATE TABLE snapshots (
    conversation bigint PRIMARY KEY,
    seq          bigint NOT NULL,
    fold         json,
    loop_state   json
);

CREATE TABLE vault (
    conversation bigint NOT NULL,
    name         text   NOT NULL COLLATE "C",
    ciphertext   bytea  NOT NULL,
    version      bigint NOT NULL,
    PRIMARY KEY (conversation, name)
);

CREATE TABLE papers (
    kind     text   NOT NULL COLLATE "C",
    id       text   NOT NULL COLLATE "C",
    document json   NOT NULL,
    version  bigint NOT NULL,
    PRIMARY KEY (kind, id)
);

-- The last refused writes of each conversation; trimmed as it grows.
CREATE TABLE refusals (
    no           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation bigint NOT NULL,
    at           float8 NOT NULL,
    incarnation  text   NOT NULL,
    epoch        bigint NOT NULL,
    token        text   NOT NULL,
    operation    text   NOT NULL
);

CREATE INDEX refusals_newest ON refusals (conversation, no);

INSERT INTO meta (schema, oldest) VALUES (1, 1);
