"""Whether the books are read fast enough when there is much in them: the questions of `edgegw usage` and of
`edgegw requests`, as the commands ask them, on a PostgreSQL with ten million requests of a month.

    python -m load.ledger_queries                      ten million requests; some ten minutes, and 12 GB of disk
    python -m load.ledger_queries --rows 50000         a first look

It starts a server of its own, makes the tables with the gateway's own files, fills them by SQL, and asks each question
twenty times. A question fails when its p95 is over the bar, or its plan reads a whole table of rows.

Who is in the rows: 200 tenants, the largest with a twenty-eighth of all requests (Zipf). Each has one to three keys,
each key is for one use case, and each use case goes to one of 20 models at 5 providers, now and then (a tenth) to a
second one. More by day than by night; one request in fifty fails, one in twenty has a second attempt; a third belongs
to sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgegw.clock import ManualClock
from edgegw.ledger.postgres.books import PostgresBooks
from edgegw.ledger.postgres.days import TABLES, bounds, partition_of
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.questions import NS_PER_HOUR, Filter, Question, Row, newest, usage, whole_hours
from edgegw.ledger.schema import migrations
from edgegw.ledger.usage import SUMS, UsageKey
from edgegw.settings import parse_postgres
from load.processes import Database, PostgresHouse

ROWS = 10_000_000
BAR_MS = 200.0
RUNS = 20
DAYS = 30
TENANTS, MODELS, PROVIDERS = 200, 20, 5
LIMIT = 20  # of `edgegw requests`, where it is not said
END_NS = 1_750_000_000_000_000_000 // (24 * NS_PER_HOUR) * (24 * NS_PER_HOUR)
BEGIN_NS = END_NS - DAYS * 24 * NS_PER_HOUR
FILL_TIMEOUT_S = 3600
# What a server for ten million rows would have at least; the rest is as the package ships it.
SERVER = ("shared_buffers=2GB", "work_mem=16MB", "maintenance_work_mem=512MB", "max_wal_size=8GB")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and what is known of how long it took. `reads`: the indexes of its plan, or how a table is read."""

    name: str
    question: Question
    times_ms: list[float]
    reads: str
    rows: int

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)

    @property
    def p95_ms(self) -> float:
        return sorted(self.times_ms)[round(0.95 * (len(self.times_ms) - 1))]

    @property
    def slow(self) -> bool:
        return self.p95_ms > BAR_MS

    @property
    def scans(self) -> bool:
        return "seq scan of requests" in self.reads or "seq scan of provider_attempts" in self.reads


# -- filling --

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


# -- asking --


def questions(one: Row, late: Row) -> Iterator[tuple[str, Question]]:
    """What the commands ask. `one` is a request from the middle of the month, `late` one of a rare session."""
    day = whole_hours(END_NS - 24 * NS_PER_HOUR, END_NS)
    month = whole_hours(BEGIN_NS, END_NS)
    split = whole_hours(BEGIN_NS + 5 * NS_PER_HOUR, END_NS - 3 * NS_PER_HOUR)
    for by in (
        "tenant",
        "model",
        "provider",
        "use_case",
        "key",
        "day",
        "hour",
        "tenant,model",
        "tenant,day",
        "day,model",
    ):
        names = tuple(by.split(","))
        yield f"usage --by {by}, a month", usage(names, Filter(), *month, "postgres")
        yield f"usage --by {by}, a day", usage(names, Filter(), *day, "postgres")
    yield "usage --by model --tenant, a month", usage(("model",), Filter(tenant="tenant-7"), *month, "postgres")
    yield "usage --by tenant, from 05:00 until 21:00 a month later", usage(("tenant",), Filter(), *split, "postgres")
    middle_ns = (BEGIN_NS + END_NS) // 2
    for name, chosen in (
        ("requests", Filter()),
        ("requests --tenant (large)", Filter(tenant="tenant-1")),
        ("requests --tenant (small)", Filter(tenant=f"tenant-{TENANTS}")),
        ("requests --tenant (none)", Filter(tenant="nobody")),
        ("requests --state complete", Filter(state="complete")),
        ("requests --state failed", Filter(state="failed")),
        ("requests --state (none)", Filter(state="drained")),
        ("requests --tenant --state failed", Filter(tenant=f"tenant-{TENANTS}", state="failed")),
        ("requests --key", Filter(key_id=str(one["key_id"]))),
        ("requests --key (none)", Filter(key_id="nobody's")),
        ("requests --session", Filter(session_id=str(late["session_id"]))),
        ("requests --session (none)", Filter(session_id="nobody's")),
        ("requests --request", Filter(request_id=str(one["id"]))),
        ("requests --since --until", Filter(since_ns=middle_ns, until_ns=middle_ns + NS_PER_HOUR)),
        (
            "requests --tenant --since --until",
            Filter(tenant="tenant-9", since_ns=middle_ns, until_ns=middle_ns + NS_PER_HOUR),
        ),
        ("requests --until, long ago", Filter(until_ns=BEGIN_NS + NS_PER_HOUR)),
    ):
        yield name, newest("requests", chosen, LIMIT)
    yield "attempts", newest("provider_attempts", Filter(), LIMIT)
    yield "attempts --request", newest("provider_attempts", Filter(request_id=str(one["id"])), LIMIT)


async def ask(database: Database, runs: int) -> list[Asked]:
    books = PostgresBooks(parse_postgres(database.dsn), migrations("postgres"))
    try:
        middle = Filter(until_ns=(BEGIN_NS + END_NS) // 2)
        (one,) = await books.rows(newest("requests", middle, 1))
        some = await books.rows(newest("requests", middle, 200))
        late = next(row for row in some if row["session_id"] is not None)
        return [await timed(books, name, question, runs) for name, question in questions(one, late)]
    finally:
        await books.close()


async def timed(books: PostgresBooks, name: str, question: Question, runs: int) -> Asked:
    """Warm: the first answer does not count."""
    explained = await books.rows(Question(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {question.text}", question.values))
    plan = explained[0]["QUERY PLAN"]
    assert isinstance(plan, str)
    (tree,) = json.loads(plan)
    rows = len(await books.rows(question))
    times_ms: list[float] = []
    for _ in range(runs):
        began_s = time.perf_counter()
        await books.rows(question)
        times_ms.append((time.perf_counter() - began_s) * 1000)
    return Asked(name, question, times_ms, ", ".join(sorted(set(reads(tree["Plan"])))), rows)


def reads(node: dict[str, Any]) -> Iterator[str]:
    """How the parts of a plan that were run come by their rows: an index by the name of the parent's, or a scan."""
    if node.get("Actual Loops", 1):
        relation = str(node.get("Relation Name", "")).rstrip("0123456789").rstrip("_")
        if node["Node Type"] == "Seq Scan":
            yield f"seq scan of {relation}"
        elif "Index Name" in node:
            yield without_day(str(node["Index Name"]))
    for below in node.get("Plans", ()):
        yield from reads(below)


def without_day(index: str) -> str:
    """The index of a partition without its day."""
    return "_".join(part for part in index.split("_") if not (part.isdigit() and len(part) == 8))


# -- the table --


def lines(asked: list[Asked]) -> Iterator[str]:
    yield "| question | rows | median ms | p95 ms | reads |"
    yield "|---|---|---|---|---|"
    for each in asked:
        mark = " **over the bar**" if each.slow else ""
        yield f"| `{each.name}` | {each.rows} | {each.median_ms:.1f} | {each.p95_ms:.1f}{mark} | {each.reads} |"


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m load.ledger_queries", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="requests to fill in")
    parser.add_argument("--runs", type=int, default=RUNS, help="times that each question is asked")
    options = parser.parse_args(arguments)
    began_s = time.monotonic()
    with filled(options.rows) as database:
        tables = ("requests", "provider_attempts", "usage_hours", "usage_days")
        counts = [f"{database.value(f'SELECT count(*) FROM {table}'):,} {table}" for table in tables]
        size = database.value("SELECT pg_size_pretty(pg_database_size(current_database()))")
        print(f"{', '.join(counts)}; {size}, filled in {time.monotonic() - began_s:.0f} s\n", flush=True)
        asked = asyncio.run(ask(database, options.runs))
    print("\n".join(lines(asked)))
    wrong = [each.name for each in asked if each.slow or each.scans]
    print(f"\n{len(wrong)} of {len(asked)} questions are too slow, or read a whole table: {'; '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
