-- Sums by the day, so that a month of them is read in no time; and indexes for further questions about requests.
--
-- A line of usage_days is the sum of the lines of usage_hours of that day that have no journal: those that were merged
-- (ledger/postgres/upkeep.py), which adds to both in one transaction. So a whole day is its lines here and the lines of
-- its hours that still have a journal, whenever one asks.

CREATE TABLE usage_days (
    day                bigint NOT NULL,
    tenant             text   NOT NULL,
    use_case           text   NOT NULL,
    key_id             text   NOT NULL,
    provider           text   NOT NULL,
    model              text   NOT NULL,
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
    PRIMARY KEY (day, tenant, use_case, key_id, provider, model)
);

COMMENT ON TABLE usage_days IS 'Sums by the day of the lines of usage_hours that have no journal';
COMMENT ON COLUMN usage_days.day IS 'Days since 1970 (UTC), of the request''s id';

INSERT INTO usage_days
SELECT hour / 24, tenant, use_case, key_id, provider, model, sum(requests), sum(failed), sum(attempts), sum(input_tokens),
       sum(output_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(reasoning_tokens), sum(cost_usd_micro),
       sum(unpriced), sum(estimated)
  FROM usage_hours WHERE journal = ''
 GROUP BY hour / 24, tenant, use_case, key_id, provider, model;

-- The lines that are not merged yet: the latest hours, and what came late.
CREATE INDEX usage_hours_unmerged ON usage_hours (hour) WHERE journal <> '';

CREATE INDEX requests_by_key ON requests (key_id, id) WHERE key_id IS NOT NULL;
CREATE INDEX requests_by_session ON requests (session_id, id) WHERE session_id IS NOT NULL;
