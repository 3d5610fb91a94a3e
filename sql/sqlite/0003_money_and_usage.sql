-- What a request cost, who it was for, and sums by the hour.
--
-- cost_usd_micro is micro-dollars; NULL when no price is known for what was used, or when nobody knows what was used (the
-- worker died). price_version says whose prices they were. What an attempt belongs to (tenant, use_case, key_id) stands
-- with it too, so that its tokens and its cost can be summed without a join.

ALTER TABLE requests ADD COLUMN session_id TEXT;
ALTER TABLE requests ADD COLUMN user_id TEXT;
ALTER TABLE requests ADD COLUMN model_served TEXT;
ALTER TABLE requests ADD COLUMN first_token_us INTEGER;
ALTER TABLE requests ADD COLUMN cost_usd_micro INTEGER;
ALTER TABLE requests ADD COLUMN price_version TEXT;

ALTER TABLE provider_attempts ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE provider_attempts ADD COLUMN use_case TEXT;
ALTER TABLE provider_attempts ADD COLUMN key_id TEXT;
ALTER TABLE provider_attempts ADD COLUMN cost_usd_micro INTEGER;
ALTER TABLE provider_attempts ADD COLUMN price_version TEXT;

-- Sums of the rows, made in the transaction that writes them: `edgegw usage` reads these. `hour` is hours since 1970, of
-- the request's id. requests and failed count requests by their last attempt's provider and model (empty: none was asked);
-- the rest are sums over attempts. NULLs are '' here. `journal` is the gateway that wrote the rows: each adds to lines
-- of its own, so gateways never wait for one another.
CREATE TABLE usage_hours (
    hour               INTEGER NOT NULL,
    tenant             TEXT    NOT NULL,
    use_case           TEXT    NOT NULL,
    key_id             TEXT    NOT NULL,
    provider           TEXT    NOT NULL,
    model              TEXT    NOT NULL,
    journal            TEXT    NOT NULL,
    requests           INTEGER NOT NULL,
    failed             INTEGER NOT NULL,
    attempts           INTEGER NOT NULL,
    input_tokens       INTEGER NOT NULL,
    output_tokens      INTEGER NOT NULL,
    cached_tokens      INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens   INTEGER NOT NULL,
    cost_usd_micro     INTEGER NOT NULL,
    unpriced           INTEGER NOT NULL,
    estimated          INTEGER NOT NULL,
    PRIMARY KEY (hour, tenant, use_case, key_id, provider, model, journal)
) WITHOUT ROWID;

-- Rows from before there were sums.
INSERT INTO usage_hours
SELECT hour, tenant, use_case, key_id, provider, model, '',
       sum(requests), sum(failed), sum(attempts), sum(input_tokens), sum(output_tokens), sum(cached_tokens),
       sum(cache_write_tokens), sum(reasoning_tokens), 0, sum(unpriced), sum(estimated)
FROM (
    SELECT started_ns / 3600000000000 AS hour, tenant, coalesce(use_case, '') AS use_case, coalesce(key_id, '') AS key_id,
           coalesce(provider, '') AS provider, coalesce(model, '') AS model, 1 AS requests,
           state <> 'complete' AS failed, 0 AS attempts, 0 AS input_tokens, 0 AS output_tokens, 0 AS cached_tokens,
           0 AS cache_write_tokens, 0 AS reasoning_tokens, 0 AS unpriced, 0 AS estimated
    FROM requests
    UNION ALL
    SELECT r.started_ns / 3600000000000, r.tenant, coalesce(r.use_case, ''), coalesce(r.key_id, ''), a.provider, a.model,
           0, 0, 1, coalesce(a.input_tokens, 0), coalesce(a.output_tokens, 0), coalesce(a.cached_tokens, 0),
           coalesce(a.cache_write_tokens, 0), coalesce(a.reasoning_tokens, 0), a.input_tokens IS NOT NULL, a.estimated
    FROM provider_attempts a JOIN requests r ON r.id = a.request_id
)
GROUP BY hour, tenant, use_case, key_id, provider, model;

-- How far each worker life is read, by the journal (the state directory) that it belongs to: a database may serve several.
-- `gaps`, `torn` and `unreadable` count what was wrong with the life; one with damage is kept when it has ended.
ALTER TABLE checkpoints RENAME TO checkpoints_before;
CREATE TABLE checkpoints (
    journal    TEXT    NOT NULL,
    life       TEXT    NOT NULL,
    segment    INTEGER NOT NULL,
    offset     INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    wall_ns    INTEGER NOT NULL,
    gaps       INTEGER NOT NULL DEFAULT 0,
    torn       INTEGER NOT NULL DEFAULT 0,
    unreadable INTEGER NOT NULL DEFAULT 0,
    ended      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (journal, life)
) WITHOUT ROWID;
INSERT INTO checkpoints (journal, life, segment, offset, seq, wall_ns)
SELECT '', life, segment, offset, seq, wall_ns FROM checkpoints_before;
DROP TABLE checkpoints_before;
ALTER TABLE open_exchanges ADD COLUMN journal TEXT NOT NULL DEFAULT '';
