-- The books: one row per request, one per attempt at a provider, sums by the hour, and how far the journals are read.
--
-- Tables and columns are those of SQLite (sql/sqlite). Times are Unix nanoseconds (*_ns) and microseconds since the start
-- of the row (*_us). Token columns are NULL when nothing was counted; input includes cached and cache_write, output
-- includes reasoning (OpenAI's sense). Numbers are bigint throughout: what a record holds fits, whatever it is.
--
-- Ids are UUIDv7, whose order is the start of the request. So a day is a range of ids: both large tables are partitioned
-- by it, and the primary key stays the id alone. The gateway makes a day's partitions before they are needed; who asks for
-- a time asks for `id >= first_request_id(time)`, and other days are not looked at.

CREATE TABLE requests (
    id                 uuid    NOT NULL PRIMARY KEY,
    started_ns         bigint  NOT NULL,
    tenant             text    NOT NULL,
    use_case           text,
    route              text,
    dialect            text    NOT NULL,
    model_asked        text,
    stream             boolean NOT NULL,
    state              text    NOT NULL,
    status             bigint  NOT NULL,
    error_kind         text,
    attempts           bigint  NOT NULL,
    provider           text,
    model              text,
    input_tokens       bigint,
    output_tokens      bigint,
    cached_tokens      bigint,
    cache_write_tokens bigint,
    reasoning_tokens   bigint,
    estimated          boolean NOT NULL,
    first_byte_us      bigint,
    duration_us        bigint  NOT NULL,
    overhead_us        bigint  NOT NULL,
    bytes_in           bigint  NOT NULL,
    bytes_out          bigint  NOT NULL,
    key_id             text,
    session_id         text,
    user_id            text,
    model_served       text,
    first_token_us     bigint,
    cost_usd_micro     bigint,
    price_version      text,
    started_at         timestamptz GENERATED ALWAYS AS (to_timestamp(started_ns / 1e9::float8)) STORED,
    stored_at          timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (id);

CREATE INDEX requests_by_tenant ON requests (tenant, id);
-- What went wrong is looked for more often than it happens.
CREATE INDEX requests_not_complete ON requests (state, id) WHERE state <> 'complete';
-- What is new, for those who follow along.
CREATE INDEX requests_by_storage ON requests USING brin (stored_at) WITH (pages_per_range = 16);

COMMENT ON TABLE requests IS 'One row per request, written when it has ended. Partitioned by day, as ranges of id.';
COMMENT ON COLUMN requests.id IS 'UUIDv7: its order is the start of the request';
COMMENT ON COLUMN requests.started_ns IS 'Unix nanoseconds';
COMMENT ON COLUMN requests.tenant IS 'Empty where a key was asked for and none was valid';
COMMENT ON COLUMN requests.state IS 'How it ended: complete, refused, failed, truncated, client_gone, interrupted, …';
COMMENT ON COLUMN requests.status IS 'HTTP status that the client was told; 0: not known, the worker died';
COMMENT ON COLUMN requests.provider IS 'Of the last attempt';
COMMENT ON COLUMN requests.model IS 'Of the last attempt';
COMMENT ON COLUMN requests.input_tokens IS 'Includes cached_tokens and cache_write_tokens; NULL: nothing was counted';
COMMENT ON COLUMN requests.output_tokens IS 'Includes reasoning_tokens; NULL: nothing was counted';
COMMENT ON COLUMN requests.estimated IS 'The gateway counted the tokens, not the provider';
COMMENT ON COLUMN requests.overhead_us IS 'The gateway''s own share of duration_us';
COMMENT ON COLUMN requests.key_id IS 'The key that the request came with; NULL: none';
COMMENT ON COLUMN requests.cost_usd_micro IS 'Micro-dollars, the sum of its attempts; NULL: not known';
COMMENT ON COLUMN requests.price_version IS 'Whose prices they were';
COMMENT ON COLUMN requests.stored_at IS 'When the transaction began that wrote the row';

CREATE TABLE provider_attempts (
    request_id          uuid    NOT NULL,
    number              bigint  NOT NULL,
    kind                text    NOT NULL,
    provider            text    NOT NULL,
    model               text    NOT NULL,
    started_ns          bigint  NOT NULL,
    status              bigint  NOT NULL,
    error_kind          text,
    retry_reason        text,
    first_byte_us       bigint,
    first_token_us      bigint,
    duration_us         bigint  NOT NULL,
    input_tokens        bigint,
    output_tokens       bigint,
    cached_tokens       bigint,
    cache_write_tokens  bigint,
    reasoning_tokens    bigint,
    estimated           boolean NOT NULL,
    finish_reason       text,
    upstream_request_id text,
    upstream_model      text,
    reused              boolean NOT NULL,
    tenant              text    NOT NULL DEFAULT '',
    use_case            text,
    key_id              text,
    cost_usd_micro      bigint,
    price_version       text,
    target              text GENERATED ALWAYS AS (provider || '/' || model) STORED,
    started_at          timestamptz GENERATED ALWAYS AS (to_timestamp(started_ns / 1e9::float8)) STORED,
    stored_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (request_id, number)
) PARTITION BY RANGE (request_id);

CREATE INDEX provider_attempts_by_storage ON provider_attempts USING brin (stored_at) WITH (pages_per_range = 16);

COMMENT ON TABLE provider_attempts IS 'One row per try at a provider. Partitioned as requests is.';
COMMENT ON COLUMN provider_attempts.number IS 'From 1, in the order of the tries';
COMMENT ON COLUMN provider_attempts.kind IS 'primary, retry or fallback';
COMMENT ON COLUMN provider_attempts.status IS 'HTTP status of the provider; 0: no reply came';
COMMENT ON COLUMN provider_attempts.reused IS 'Over a connection that had served before';
COMMENT ON COLUMN provider_attempts.cost_usd_micro IS 'Micro-dollars; NULL: not known';
COMMENT ON COLUMN provider_attempts.stored_at IS 'When the transaction began that wrote the row';

-- Sums of the rows, made in the transaction that writes them. Lines of past hours are merged into journal '' later.
CREATE TABLE usage_hours (
    hour               bigint NOT NULL,
    tenant             text   NOT NULL,
    use_case           text   NOT NULL,
    key_id             text   NOT NULL,
    provider           text   NOT NULL,
    model              text   NOT NULL,
    journal            text   NOT NULL,
    requests           bigint NOT NULL,
    failed             bigint NOT NULL,
    attempts           bigint NOT NULL,
    input_tokens       bigint NOT NULL,
    output_tokens      bigint NOT NULL,
    cached_tokens      bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    reasoning_tokens   bigint NOT NULL,
    cost_usd_micro     bigint NOT NULL,
    unpriced           bigint NOT NULL,
    estimated          bigint NOT NULL,
    PRIMARY KEY (hour, tenant, use_case, key_id, provider, model, journal)
) WITH (fillfactor = 50);

-- What is still to be merged.
CREATE INDEX usage_hours_of_journals ON usage_hours (hour) WHERE journal <> '';

COMMENT ON TABLE usage_hours IS 'Sums of the rows by the hour, exact at every moment';
COMMENT ON COLUMN usage_hours.hour IS 'Hours since 1970, of the request''s id';
COMMENT ON COLUMN usage_hours.journal IS 'The gateway that wrote the rows: each adds to lines of its own, so none waits';
COMMENT ON COLUMN usage_hours.requests IS 'Requests, and how many failed, by their last attempt; the rest are sums of attempts';
COMMENT ON COLUMN usage_hours.unpriced IS 'Attempts that used tokens nobody has a price for';
COMMENT ON COLUMN usage_hours.estimated IS 'Attempts whose tokens the gateway counted';

-- From when on rows are kept (storage.retention). One line; 0: all.
CREATE TABLE retention (
    kept_since_ns bigint NOT NULL
);

INSERT INTO retention VALUES (0);

COMMENT ON TABLE retention IS 'From when on rows are kept: partitions of earlier days are dropped, or about to be';

CREATE TABLE checkpoints (
    journal    text    NOT NULL,
    life       text    NOT NULL,
    segment    bigint  NOT NULL,
    "offset"   bigint  NOT NULL,
    seq        bigint  NOT NULL,
    wall_ns    bigint  NOT NULL,
    gaps       bigint  NOT NULL DEFAULT 0,
    torn       bigint  NOT NULL DEFAULT 0,
    unreadable bigint  NOT NULL DEFAULT 0,
    ended      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (journal, life)
) WITH (fillfactor = 50);

COMMENT ON TABLE checkpoints IS 'How far each life of a worker is read; of one that was damaged it stays, as evidence';
COMMENT ON COLUMN checkpoints.journal IS 'The state directory that the life belongs to (journal.id)';

CREATE TABLE open_exchanges (
    id      text  NOT NULL PRIMARY KEY,
    life    text  NOT NULL,
    state   bytea NOT NULL,
    journal text  NOT NULL
);

CREATE INDEX open_exchanges_by_journal ON open_exchanges (journal);

COMMENT ON TABLE open_exchanges IS 'Requests that have begun and not ended, so that their journal can be deleted';
COMMENT ON COLUMN open_exchanges.state IS 'msgpack';

-- Keys of tenants. A key is known by the SHA-256 of the whole credential, which itself is nowhere. Rows are written by
-- `edgegw keys`, never deleted, and read by the control process: `changed` numbers all changes.
CREATE TABLE api_keys (
    id         text   NOT NULL PRIMARY KEY,
    changed    bigint NOT NULL,
    digest     bytea  NOT NULL,
    tenant     text   NOT NULL,
    name       text   NOT NULL,
    prefix     text   NOT NULL,
    created_ns bigint NOT NULL,
    expires_ns bigint,
    revoked_ns bigint,
    acts_for   text   NOT NULL,
    limits     text   NOT NULL
);

CREATE UNIQUE INDEX api_keys_by_change ON api_keys (changed);
CREATE UNIQUE INDEX api_keys_by_digest ON api_keys (digest);

COMMENT ON TABLE api_keys IS 'Keys of tenants, each by the SHA-256 of the whole credential';
COMMENT ON COLUMN api_keys.acts_for IS 'A JSON list of tenants, * for any';
COMMENT ON COLUMN api_keys.limits IS 'A JSON object of measures and numbers';

-- The smallest id of a request that started at a moment, or later.
CREATE FUNCTION first_request_id(moment timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid;

COMMENT ON FUNCTION first_request_id IS 'The smallest id of a request that started then or later';
