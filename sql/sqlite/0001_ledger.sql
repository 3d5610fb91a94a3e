-- The books: one row per request, one per attempt at a provider, and how far the journals have been read.
--
-- Times are Unix nanoseconds (*_ns) and microseconds since the start of the row (*_us). Token columns are NULL when
-- nothing was counted; input includes cached and cache_write, output includes reasoning (OpenAI's sense).
-- Rows are inserted once, in the order in which exchanges end; rowid is that order, and what `--follow` goes by.
-- Ids are UUIDv7, whose text sorts by the start of the request: the index on id is the index on time.

CREATE TABLE requests (
    id                 TEXT    NOT NULL PRIMARY KEY,
    started_ns         INTEGER NOT NULL,
    tenant             TEXT    NOT NULL,
    use_case           TEXT,
    route              TEXT,
    dialect            TEXT    NOT NULL,
    model_asked        TEXT,
    stream             INTEGER NOT NULL,
    state              TEXT    NOT NULL,
    status             INTEGER NOT NULL,
    error_kind         TEXT,
    attempts           INTEGER NOT NULL,
    provider           TEXT,
    model              TEXT,
    input_tokens       INTEGER,
    output_tokens      INTEGER,
    cached_tokens      INTEGER,
    cache_write_tokens INTEGER,
    reasoning_tokens   INTEGER,
    estimated          INTEGER NOT NULL,
    first_byte_us      INTEGER,
    duration_us        INTEGER NOT NULL,
    overhead_us        INTEGER NOT NULL,
    bytes_in           INTEGER NOT NULL,
    bytes_out          INTEGER NOT NULL
);

CREATE INDEX requests_by_tenant ON requests (tenant, id);

CREATE TABLE provider_attempts (
    request_id          TEXT    NOT NULL,
    number              INTEGER NOT NULL,
    kind                TEXT    NOT NULL,
    provider            TEXT    NOT NULL,
    model               TEXT    NOT NULL,
    started_ns          INTEGER NOT NULL,
    status              INTEGER NOT NULL,
    error_kind          TEXT,
    retry_reason        TEXT,
    first_byte_us       INTEGER,
    first_token_us      INTEGER,
    duration_us         INTEGER NOT NULL,
    input_tokens        INTEGER,
    output_tokens       INTEGER,
    cached_tokens       INTEGER,
    cache_write_tokens  INTEGER,
    reasoning_tokens    INTEGER,
    estimated           INTEGER NOT NULL,
    finish_reason       TEXT,
    upstream_request_id TEXT,
    upstream_model      TEXT,
    reused              INTEGER NOT NULL,
    target              TEXT    GENERATED ALWAYS AS (provider || '/' || model) VIRTUAL,
    PRIMARY KEY (request_id, number)
);

-- How far each worker life is read. A life is forgotten when its directory is gone.
CREATE TABLE checkpoints (
    life    TEXT    NOT NULL PRIMARY KEY,
    segment INTEGER NOT NULL,
    offset  INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    wall_ns INTEGER NOT NULL
) WITHOUT ROWID;

-- Exchanges that have begun and not ended, so that their segments can be deleted meanwhile. `state` is msgpack.
CREATE TABLE open_exchanges (
    id    TEXT NOT NULL PRIMARY KEY,
    life  TEXT NOT NULL,
    state BLOB NOT NULL
) WITHOUT ROWID;
