-- Keys of tenants, and which of them a request came with.
--
-- A key is known by the SHA-256 of the whole credential, which itself is nowhere. Rows are written by `edgegw keys`, never
-- deleted, and read by the control process: `changed` numbers all changes, so that it sees what is new. Times are Unix
-- nanoseconds. `acts_for` is a JSON list of tenants (`*` for any), `limits` a JSON object of measures and numbers.

CREATE TABLE api_keys (
    id         TEXT    NOT NULL PRIMARY KEY,
    changed    INTEGER NOT NULL,
    digest     BLOB    NOT NULL,
    tenant     TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    prefix     TEXT    NOT NULL,
    created_ns INTEGER NOT NULL,
    expires_ns INTEGER,
    revoked_ns INTEGER,
    acts_for   TEXT    NOT NULL,
    limits     TEXT    NOT NULL
);

CREATE UNIQUE INDEX api_keys_by_change ON api_keys (changed);

CREATE UNIQUE INDEX api_keys_by_digest ON api_keys (digest);

-- NULL: no key was asked for, or none was found.
ALTER TABLE requests ADD COLUMN key_id TEXT;
