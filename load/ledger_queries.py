"""Whether the books are read fast enough when there is much in them: the questions of `edgegw usage` and of
`edgegw requests`, as the commands ask them, on a PostgreSQL with ten million requests of a month.

    python -m load.ledger_queries                      ten million requests: up to half an hour, and 12 GB of disk
    python -m load.ledger_queries --rows 50000         a first look

It starts a server of its own, makes the tables with the gateway's own files, fills them by SQL, and asks each question
twenty times. A question fails when its p95 is over the bar, or its plan reads a whole table of rows. Who is in the rows
says ledger_rows.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgegw.ledger.postgres.books import PostgresBooks
from edgegw.ledger.questions import NS_PER_HOUR, Filter, Question, Row, newest, usage, whole_hours
from edgegw.ledger.schema import migrations
from edgegw.settings import parse_postgres
from load.ledger_rows import BEGIN_NS, END_NS, TENANTS, filled
from load.processes import Database

ROWS = 10_000_000
BAR_MS = 200.0
RUNS = 20
LIMIT = 20  # of `edgegw requests`, where it is not said


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
