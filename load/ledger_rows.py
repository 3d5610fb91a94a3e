"""A PostgreSQL with the books of a busy month in it: the tables as the gateway makes them, filled by SQL.

Who is in the rows: 200 tenants, the largest with a twenty-eighth of all requests (Zipf). Each has one to three keys,
each key is for one use case, and each use case goes to one of 20 models at 5 providers, now and then (a tenth) to a
second one. More by day than by night; one request in fifty fails, one in twenty has a second attempt; a third belongs
to sessions.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edgegw.clock import ManualClock
from edgegw.ledger.postgres.days import TABLES, bounds, partition_of
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.questions import NS_PER_HOUR
from edgegw.ledger.schema import migrations
from edgegw.ledger.usage import SUMS, UsageKey
from edgegw.settings import parse_postgres
from load.processes import Database, PostgresHouse

DAYS = 30
TENANTS, MODELS, PROVIDERS = 200, 20, 5
END_NS = 1_750_000_000_000_000_000 // (24 * NS_PER_HOUR) * (24 * NS_PER_HOUR)
BEGIN_NS = END_NS - DAYS * 24 * NS_PER_HOUR
FILL_TIMEOUT_S = 3600
# What a server for ten million rows would have at least; the rest is as the package ships it.
SERVER = ("shared_buffers=2GB", "work_mem=16MB", "maintenance_work_mem=512MB", "max_wal_size=8GB")

# Whole numbers that look like dice, the same at each run: `salt` tells one die of a row from another.
_FILL = """
SELECT setseed(0.5);
CREATE FUNCTION dice(n bigint, salt int) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (hashint8extended(n, salt) & 1048575) / 1048576.0;

CREATE UNLOGGED TABLE tenants AS
SELECT t AS number, 'tenant-' || t AS tenant, 1.0 / (t + 8) AS weight, 1 + t % 3 AS keys
  FROM generate_series(1, {tenants}) t;
-- Which tenant a die falls on: a thousand places, as many for each as it weighs.
CREATE UNLOGGED TABLE places AS
SELECT place, (SELECT number FROM
         (SELECT number, sum(weight) OVER (ORDER BY number) / sum(weight) OVER () AS upto FROM tenants) w
         WHERE upto * 4096 > place ORDER BY number LIMIT 1) AS number
  FROM generate_series(0, 4095) place;
CREATE UNIQUE INDEX ON places (place);
ANALYZE tenants, places;
"""
_OF_DAY = """
CREATE UNLOGGED TABLE filling AS
WITH drawn AS (
    SELECT n, {begin_ms} + floor((n - {first}) * 86400000.0 / {count}
             + 9000000 * sin((n - {first}) * 6.2831853 / {count}))::bigint AS ms
      FROM generate_series({first}::bigint, {last}::bigint) n
), placed AS (
    SELECT n, greatest({begin_ms}, least(ms, {begin_ms} + 86399999)) AS ms, t.*, floor(dice(n, 3) * keys)::int AS key
      FROM drawn JOIN places ON place = floor(dice(n, 1) * 4096) JOIN tenants t USING (number)
)
SELECT (lpad(to_hex(ms), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid
           AS id, ms * 1000000 + n % 1000000 AS started_ns, tenant,
       'case-' || (number + key) % 7 AS use_case, 'key-' || number || '-' || key AS key_id,
       (number + key + (dice(n, 4) < 0.1)::int) % {models} AS model,
       CASE WHEN dice(n, 5) < 0.02 THEN 'failed' WHEN dice(n, 5) < 0.025 THEN 'client_gone' ELSE 'complete' END
           AS state,
       dice(n, 6) < 0.05 AS again,
       CASE WHEN dice(n, 7) < 0.33 THEN 'session-' || number || '-' || floor(dice(n, 8) * 5000) END AS session_id,
       (20 + dice(n, 9) * 4000)::bigint AS input, (5 + dice(n, 10) * 1500)::bigint AS output,
       (200000 + dice(n, 11) * 9000000)::bigint AS duration_us
  FROM placed
"""
_REQUESTS = """
INSERT INTO requests (id, started_ns, tenant, use_case, route, dialect, model_asked, stream, state, status, error_kind,
    attempts, provider, model, input_tokens, output_tokens, cached_tokens, cache_write_tokens, reasoning_tokens,
    estimated, first_byte_us, duration_us, overhead_us, bytes_in, bytes_out, key_id, session_id, model_served,
    first_token_us, cost_usd_micro, price_version)
SELECT id, started_ns, tenant, use_case, 'use_case:' || use_case, 'openai_chat', NULL, true, state,
    CASE state WHEN 'complete' THEN 200 WHEN 'failed' THEN 502 ELSE 499 END,
    CASE state WHEN 'failed' THEN 'upstream_error' END, 1 + again::int, 'provider-' || model % {providers},
    'model-' || model, CASE WHEN state <> 'failed' THEN input END, CASE WHEN state <> 'failed' THEN output END,
    CASE WHEN state <> 'failed' THEN 0 END, CASE WHEN state <> 'failed' THEN 0 END,
    CASE WHEN state <> 'failed' THEN 0 END, state = 'client_gone', duration_us / 4, duration_us, 900, 2000, output * 40,
    key_id, session_id, 'model-' || model, duration_us / 3,
    CASE WHEN state <> 'failed' THEN input + 4 * output ELSE 0 END, 'prices-1'
  FROM filling ORDER BY id
"""
_ATTEMPTS = """
INSERT INTO provider_attempts (request_id, number, kind, provider, model, started_ns, status, error_kind, retry_reason,
    first_byte_us, first_token_us, duration_us, input_tokens, output_tokens, cached_tokens, cache_write_tokens,
    reasoning_tokens, estimated, finish_reason, upstream_request_id, upstream_model, reused, tenant, use_case, key_id,
    cost_usd_micro, price_version)
SELECT id, number, CASE number WHEN 1 THEN 'primary' ELSE 'retry' END, 'provider-' || model % {providers},
    'model-' || model, started_ns + number, CASE WHEN good THEN 200 ELSE 500 END,
    CASE WHEN NOT good THEN 'upstream_error' END, CASE number WHEN 2 THEN 'upstream_error' END, duration_us / 4,
    duration_us / 3, duration_us / 2, CASE WHEN good THEN input END, CASE WHEN good THEN output END,
    CASE WHEN good THEN 0 END, CASE WHEN good THEN 0 END, CASE WHEN good THEN 0 END, good AND state = 'client_gone',
    CASE WHEN good THEN 'stop' END, 'req_' || substr(id::text, 20) || number, 'model-' || model, true, tenant, use_case,
    key_id, CASE WHEN good THEN input + 4 * output ELSE 0 END, 'prices-1'
  FROM filling, generate_series(1, 1 + again::int) number,
       LATERAL (SELECT number = 1 + again::int AND state <> 'failed' AS good) g ORDER BY id, number
"""
_USAGE = """
INSERT INTO usage_hours
SELECT started_ns / {ns_per_hour} AS hour, tenant, use_case, key_id, 'provider-' || model % {providers},
    'model-' || model, '', count(*), count(*) FILTER (WHERE state <> 'complete'), sum(1 + again::int),
    coalesce(sum(input) FILTER (WHERE state <> 'failed'), 0), coalesce(sum(output) FILTER (WHERE state <> 'failed'), 0),
    0, 0, 0, coalesce(sum(input + 4 * output) FILTER (WHERE state <> 'failed'), 0), 0,
    count(*) FILTER (WHERE state = 'client_gone')
  FROM filling GROUP BY hour, tenant, use_case, key_id, model
"""
# As the upkeep has it when it has merged them.
_USAGE_DAYS = """
INSERT INTO usage_days
SELECT day, {key}, {sums} FROM (
    SELECT hour / 24 AS day, * FROM usage_hours WHERE hour >= {begin_ms} / 3600000 AND hour < {begin_ms} / 3600000 + 24
) h GROUP BY day, {key}
"""


async def fill(database: Database, rows: int) -> None:
    """The tables as the gateway makes them, and a month of rows in them."""
    address = parse_postgres(database.dsn)
    clock = ManualClock(wall_ns=END_NS)
    store = PostgresStore(address, migrations("postgres"), clock, "0" * 16)
    await store.read_checkpoint()
    await store.close()
    numbers = {"tenants": TENANTS, "models": MODELS, "providers": PROVIDERS, "ns_per_hour": NS_PER_HOUR}
    names = {"key": ", ".join(UsageKey._fields[1:]), "sums": ", ".join(f"sum({name})" for name in SUMS)}
    do(database, _FILL.format(**numbers))
    for day in range(DAYS):
        first, last = rows * day // DAYS, rows * (day + 1) // DAYS - 1
        begin_ms = BEGIN_NS // 10**6 + day * 86_400_000
        place = {"begin_ms": begin_ms, "first": first, "last": last, "count": max(1, last - first + 1)}
        texts = (
            partitions(begin_ms // 86_400_000),
            _OF_DAY,
            _REQUESTS,
            _ATTEMPTS,
            _USAGE,
            _USAGE_DAYS,
            "DROP TABLE filling",
        )
        do(database, ";\n".join(text.format(**numbers, **names, **place) for text in texts))
        print(f"\rfilled {last + 1:,} requests", end="", file=sys.stderr, flush=True)
    for table in ("requests", "provider_attempts", "usage_hours", "usage_days"):
        do(database, f"VACUUM ANALYZE {table}")
    do(database, "CHECKPOINT")
    print(file=sys.stderr)


def partitions(day: int) -> str:
    """As postgres/partitions.py makes them."""
    first, end = bounds(day)
    return ";\n".join(
        f"CREATE TABLE {partition_of(table, day)} PARTITION OF {table} FOR VALUES FROM ('{first}') TO ('{end}')"
        for table in TABLES
    )


def do(database: Database, sql: str) -> None:
    database.server.do(sql, database.name, timeout_s=FILL_TIMEOUT_S)


@contextmanager
def filled(rows: int) -> Iterator[Database]:
    """A database with so many requests."""
    house = PostgresHouse()
    try:
        database = house.server(*SERVER).database()
        asyncio.run(fill(database, rows))
        yield database
    finally:
        house.end()
