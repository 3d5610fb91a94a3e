"""What can be asked of the books, as SQL: filters, the newest rows, sums by whatever somebody wants to know.

One text for SQLite and PostgreSQL: the columns are the same (sql/), a `?` stands for a value, and what the two would
understand differently is not used. Who asks is books.py, or postgres/books.py.

Pure: words and numbers in, text and values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgegw.ledger.record import ATTEMPT_COLUMNS, INTEGER_MAX, REQUEST_COLUMNS
from edgegw.ledger.usage import SUMS

Row = dict[str, object]
Table = Literal["requests", "provider_attempts"]
Dialect = Literal["sqlite", "postgres"]

LIMIT_DEFAULT = 50
NS_PER_HOUR = 3_600_000_000_000
HOURS_PER_DAY = 24
# The last moment that a UUIDv7 can tell, and the hour behind it.
MS_MAX = 2**48 - 1
HOUR_MAX = MS_MAX // 3_600_000 + 1


class BadQuestionError(ValueError):
    """Nobody can answer this; the message says what can be asked."""


@dataclass(frozen=True, slots=True)
class Question:
    """SQL with `?` for each of the values, in their order. `yes_or_no`: columns of the answer that are that."""

    text: str
    values: tuple[object, ...] = ()
    yes_or_no: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Filter:
    """What to read: rows where all that is given holds. Of requests that started at `since_ns` or later, and before
    `until_ns` (Unix nanoseconds)."""

    tenant: str | None = None
    use_case: str | None = None
    provider: str | None = None
    model: str | None = None
    state: str | None = None
    status: int | None = None
    error_kind: str | None = None
    kind: str | None = None
    key_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    request_id: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None


_OF_BOTH = ("tenant", "use_case", "key_id", "provider", "model", "status", "error_kind")
# Which of these each table has, and under which name.
_FIELDS: dict[Table, dict[str, str]] = {
    "requests": {name: name for name in (*_OF_BOTH, "state", "session_id", "user_id")} | {"request_id": "id"},
    "provider_attempts": {name: name for name in (*_OF_BOTH, "kind", "request_id")},
}
# UUIDv7 sorts by time: newest first, and within a request in the order of its attempts.
_ID: dict[Table, str] = {"requests": "id", "provider_attempts": "request_id"}
_ORDER: dict[Table, str] = {"requests": "id DESC", "provider_attempts": "request_id DESC, number"}
COLUMNS: dict[Table, tuple[str, ...]] = {
    "requests": REQUEST_COLUMNS,
    "provider_attempts": (*ATTEMPT_COLUMNS, "target"),
}
# Columns of rows that say yes or no; SQLite has numbers there.
YES_OR_NO = frozenset({"stream", "estimated", "reused"})

# What usage can be summed by, and what that is in the table.
BY = {
    "tenant": "tenant",
    "use_case": "use_case",
    "key": "key_id",
    "provider": "provider",
    "model": "model",
    "day": "day",
    "hour": "hour",
}
_TIMES = ("day", "hour")
_LINE = ("tenant", "use_case", "key_id", "provider", "model")


def newest(table: Table, chosen: Filter, limit: int) -> Question:
    """The newest rows first, those of one request in their order."""
    where, values = conditions(table, chosen)
    return Question(f"{select(table)} {where} ORDER BY {_ORDER[table]} LIMIT ?", (*values, limit), YES_OR_NO)


def select(table: Table, *further: str) -> str:
    """The beginning of a question for whole rows, as `Row`s with the names of COLUMNS."""
    return f"SELECT {', '.join((*further, *COLUMNS[table]))} FROM {table}"


def conditions(table: Table, chosen: Filter) -> tuple[str, tuple[object, ...]]:
    """The WHERE clause (or nothing) and its values. BadQuestionError for a filter that the table has no column for."""
    found: list[str] = []
    values: list[object] = []
    names = _FIELDS[table]
    for name in Filter.__dataclass_fields__:
        value = getattr(chosen, name)
        if value is None:
            continue
        if name in ("since_ns", "until_ns"):
            found.append(f"{_ID[table]} {'>=' if name == 'since_ns' else '<'} ?")
            values.append(first_id_at(value))
        elif name in names:
            found.append(f"{names[name]} = ?")
            values.append(value)
        else:
            raise BadQuestionError(f"{table} have no {name}")
    return f"WHERE {' AND '.join(found)}" if found else "", tuple(values)


def usage(by: Sequence[str], chosen: Filter, since_hour: int, until_hour: int, dialect: Dialect = "sqlite") -> Question:
    """Sums over the hours from `since_hour` on and before `until_hour`, a row for each that they are summed `by`: times
    in their order, then what cost most. Of a filter only what usage is summed by counts."""
    lines, values = _lines_of_hours(since_hour, until_hour, "")
    whole = (-(-since_hour // HOURS_PER_DAY), until_hour // HOURS_PER_DAY)
    if dialect == "postgres" and "hour" not in by and whole[0] < whole[1]:
        lines, values = _lines_of_days(*whole, since_hour, until_hour)
    where: list[str] = []
    for name in _LINE:
        value = getattr(chosen, name)
        if value is not None:
            where.append(f"{name} = ?")
            values.append(value)
    keys = [f"{BY[name]} AS {name}" for name in by]
    # As the tables hold it: no sum is more than a column can be.
    sums = [
        f"CAST(CASE WHEN sum({name}) > {INTEGER_MAX} THEN {INTEGER_MAX} ELSE sum({name}) END AS BIGINT) AS {name}"
        for name in SUMS
    ]
    places = {name: str(place) for place, name in enumerate(by, 1)}
    order = [place for name, place in places.items() if name in _TIMES]
    order += ["sum(cost_usd_micro) DESC", "sum(input_tokens) + sum(output_tokens) DESC", "sum(requests) DESC"]
    order += [place for name, place in places.items() if name not in _TIMES]
    return Question(
        f"SELECT {', '.join(keys + sums)} FROM ({lines}) l {'WHERE ' if where else ''}{' AND '.join(where)} "
        f"GROUP BY {', '.join(places.values())} ORDER BY {', '.join(order)}",
        tuple(values),
    )


def _lines_of_hours(since_hour: int, until_hour: int, further: str) -> tuple[str, list[object]]:
    names = ", ".join((*_LINE, *SUMS))
    text = f"SELECT hour, hour / {HOURS_PER_DAY} AS day, {names} FROM usage_hours WHERE hour >= ? AND hour < ?{further}"
    return text, [since_hour, until_hour]


def _lines_of_days(first: int, behind: int, since_hour: int, until_hour: int) -> tuple[str, list[object]]:
    """Whole days from their sums (sql/postgres/0003), with what is not merged into these yet, and the hours before and
    behind them."""
    names = ", ".join((*_LINE, *SUMS))
    text = f"SELECT 0 AS hour, day, {names} FROM usage_days WHERE day >= ? AND day < ?"
    values: list[object] = [first, behind]
    first_hour, behind_hour = first * HOURS_PER_DAY, behind * HOURS_PER_DAY
    for hours in (
        (first_hour, behind_hour, " AND journal <> ''"),
        (since_hour, first_hour, ""),
        (behind_hour, until_hour, ""),
    ):
        if hours[0] < hours[1]:
            further, of_further = _lines_of_hours(*hours)
            text += f" UNION ALL {further}"
            values += of_further
    return text, values


def by_names(text: str) -> tuple[str, ...]:
    """`tenant,day` as the names that usage can be summed by. Raises BadQuestionError with the list of them."""
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in BY:
            raise BadQuestionError(f"not among {', '.join(BY)}: {name}")
    if not names:
        raise BadQuestionError(f"one or more of {', '.join(BY)}")
    return names


def first_id_at(wall_ns: int) -> str:
    """No UUIDv7 made at `wall_ns` or later sorts before this; all that were made earlier do."""
    digits = f"{max(0, min(wall_ns // 1_000_000, MS_MAX)):012x}"
    return f"{digits[:8]}-{digits[8:]}-0000-0000-000000000000"


def whole_hours(since_ns: int, until_ns: int) -> tuple[int, int]:
    """The hours since 1970 that a span of time touches: the first, and the one behind the last."""
    first = max(0, since_ns // NS_PER_HOUR)
    return first, max(first, min(HOUR_MAX, -(-until_ns // NS_PER_HOUR)))
