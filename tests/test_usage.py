"""Sums by the hour: the same however the rows are split into batches, in whatever order, and those of a plain loop."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from ledger_traces import WALL_NS

from edgegw.clock import uuid7
from edgegw.ledger.record import ATTEMPT_COLUMNS, REQUEST_COLUMNS, AttemptRecord, End, attempt_row, request_row
from edgegw.ledger.schema import migrate, migrations, open_database
from edgegw.ledger.usage import SUMS, UsageKey, hour_of, usage_of

_HOUR_NS = 3_600_000_000_000
_count = st.integers(0, 10**6)
_maybe = st.none() | _count
_name = st.sampled_from(["", "a", "b"])
_id = st.builds(lambda hour, dice: uuid7(WALL_NS + hour * _HOUR_NS, dice), st.integers(0, 2), st.integers(0, 2**40))


def a_request(
    id_: str, tenant: str, use_case: str | None, key_id: str | None, state: str, provider: str | None, model: str | None
) -> End:
    head = (2, 1, id_, int(id_[:8] + id_[9:13], 16) * 1_000_000, tenant, use_case, None, "openai_chat", None, False)
    return End(*head, state, 200, None, 1, provider, model, 1, 1, 0, 0, 0, False, None, 1, 0, 0, 0, key_id)


def an_attempt(
    id_: str, number: int, provider: str, model: str, tokens: Sequence[int | None], *, estimated: bool = False
) -> AttemptRecord:
    head = (2, 1, id_, number, "primary", provider, model, WALL_NS, 200, None, None, None, None, 1)
    input_, output, cached, written, reasoning = tokens
    return AttemptRecord(*head, input_, output, cached, written, reasoning, estimated, None, None, None, False)


_optional = st.none() | st.sampled_from(["a", "b"])


@st.composite
def requests(draw: st.DrawFn) -> End:
    state = draw(st.sampled_from(["complete", "failed", "client_gone", "refused"]))
    use_case, key_id, provider, model = (draw(_optional) for _ in range(4))
    return a_request(draw(_id), draw(_name), use_case, key_id, state, provider, model)


@st.composite
def attempts(draw: st.DrawFn) -> AttemptRecord:
    counted = draw(st.booleans())
    tokens = [draw(_count) if counted else None for _ in range(5)]
    estimated = counted and draw(st.booleans())
    record = an_attempt(draw(_id), 1, draw(_name), draw(_name), tokens, estimated=estimated)
    record.tenant, record.use_case, record.key_id = draw(_name), draw(_optional), draw(_optional)
    record.cost_usd_micro = draw(_maybe)
    return record


_rows = st.tuples(st.lists(requests(), max_size=12), st.lists(attempts(), max_size=12))


def added(parts: Iterable[dict[UsageKey, list[int]]]) -> dict[UsageKey, list[int]]:
    total: dict[UsageKey, list[int]] = {}
    for part in parts:
        for key, sums in part.items():
            line = total.setdefault(key, [0] * len(SUMS))
            total[key] = [have + more for have, more in zip(line, sums, strict=True)]
    return total


@given(_rows, st.lists(st.integers(0, 12), max_size=3), st.randoms())
def test_any_split_of_the_rows_adds_up_to_the_same(
    rows: tuple[list[End], list[AttemptRecord]], places: list[int], dice: Any
) -> None:
    ends, tries = list(rows[0]), list(rows[1])
    whole = usage_of(ends, tries)
    dice.shuffle(ends)
    dice.shuffle(tries)
    edges = [0, *sorted(places), 12]
    parts = [usage_of(ends[a:b], tries[a:b]) for a, b in pairwise(edges)]
    assert added(parts) == whole


@given(_rows)
def test_the_sums_are_those_of_a_plain_loop(rows: tuple[list[End], list[AttemptRecord]]) -> None:
    ends, tries = rows
    usage = usage_of(ends, tries)

    def total(name: str) -> int:
        return sum(line[SUMS.index(name)] for line in usage.values())

    assert total("requests") == len(ends)
    assert total("failed") == sum(end.state != "complete" for end in ends)
    assert total("attempts") == len(tries)
    for name in ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens"):
        assert total(name) == sum(getattr(row, name) or 0 for row in tries)
    assert total("cost_usd_micro") == sum(row.cost_usd_micro or 0 for row in tries)
    used = [row for row in tries if row.input_tokens is not None]
    assert total("unpriced") == sum(row.cost_usd_micro is None for row in used)
    assert total("estimated") == sum(row.estimated for row in tries)


def test_a_failed_attempt_is_not_unpriced() -> None:
    """It used nothing, so nobody misses its price."""
    (line,) = usage_of([], [an_attempt(uuid7(WALL_NS, 1), 1, "p", "m", [None] * 5)]).values()
    assert line[SUMS.index("unpriced")] == 0


def test_the_hour_is_that_of_the_id() -> None:
    assert hour_of(uuid7(WALL_NS, 5)) == WALL_NS // _HOUR_NS
    assert hour_of("no id") == 0
    assert hour_of("") == 0


# -- a database from before there were sums --


def test_a_database_without_sums_gets_those_of_its_rows(tmp_path: Path) -> None:
    """0003 over rows of 0002: what it adds up is what usage_of makes of the same rows."""
    ends, tries = _some_rows()
    known = migrations("sqlite")
    with closing(open_database(tmp_path / "books.db", known[:2], 0, 1.0)) as connection:
        _insert(connection, "requests", REQUEST_COLUMNS, [request_row(end) for end in ends])
        _insert(connection, "provider_attempts", ATTEMPT_COLUMNS, [attempt_row(row) for row in tries])
        migrate(connection, known, 0)
        columns = ", ".join((*UsageKey._fields, *SUMS))
        lines = connection.execute(f"SELECT {columns} FROM usage_hours").fetchall()
    keys = len(UsageKey._fields)
    found = {UsageKey(*line[:keys]): list(line[keys:]) for line in lines}
    assert found == usage_of(ends, tries)
    assert sum(sums[SUMS.index("unpriced")] for sums in found.values()) == 2  # nobody can tell any more


def _insert(connection: sqlite3.Connection, table: str, columns: Sequence[str], rows: list[tuple[object, ...]]) -> None:
    """Into those columns that the table has."""
    there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    kept = [at for at, column in enumerate(columns) if column in there]
    names, marks = ", ".join(columns[at] for at in kept), ", ".join("?" for _ in kept)
    connection.executemany(
        f"INSERT INTO {table} ({names}) VALUES ({marks})", [[row[at] for at in kept] for row in rows]
    )


def _some_rows() -> tuple[list[End], list[AttemptRecord]]:
    """Two hours; a request that asked nobody, and one with a failed attempt before the good one."""
    ends: list[End] = []
    tries: list[AttemptRecord] = []
    for number, (hour, tried) in enumerate(((0, 1), (0, 0), (1, 2))):
        id_ = uuid7(WALL_NS + hour * _HOUR_NS, number)
        for attempt in range(1, tried + 1):
            tokens = (10, 20, 4, 1, 2) if attempt == tried else (None,) * 5
            row = an_attempt(id_, attempt, "p", f"m{attempt}", tokens, estimated=attempt == 2)
            row.tenant, row.key_id = "acme", "acme.ci"
            tries.append(row)
        target = ("p", f"m{tried}") if tried else (None, None)
        ends.append(a_request(id_, "acme", None, "acme.ci", "complete" if tried else "refused", *target))
    return ends, tries
