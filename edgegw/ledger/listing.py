"""Reading the books: rows for `edgegw requests` and `edgegw attempts`, as tables and as JSON lines.

Reads the SQLite file itself, read-only, whether a gateway is writing it or none is running. Rows are plain dicts of
column names (sql/sqlite/). Names in them came from clients: `table` shows no control character as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

Row = dict[str, object]
Table = Literal["requests", "provider_attempts"]

LIMIT_DEFAULT = 50
# Rows that one look of `follow` hands out at most; the rest comes with the next look, at once.
FOLLOW_ROWS_MAX = 1000
BUSY_TIMEOUT_S = 5.0
# To make a table fit, names are first cut to the fair width, then columns are left out, then everything is cut to the
# least width; a terminal that is narrower still wraps.
CELL_WIDTH_MAX = 48
CELL_WIDTH_FAIR = 18
CELL_WIDTH_MIN = 6


class NoLedgerError(Exception):
    """There is no database to read, or it is none of ours."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What to read: rows where all that is given holds. `since_ns`: started then or later (Unix nanoseconds)."""

    tenant: str | None = None
    use_case: str | None = None
    provider: str | None = None
    model: str | None = None
    state: str | None = None
    status: int | None = None
    error_kind: str | None = None
    kind: str | None = None
    request_id: str | None = None
    since_ns: int | None = None


# Which of these each table has, and under which name.
_FIELDS: dict[Table, dict[str, str]] = {
    "requests": {
        "tenant": "tenant",
        "use_case": "use_case",
        "provider": "provider",
        "model": "model",
        "state": "state",
        "status": "status",
        "error_kind": "error_kind",
        "request_id": "id",
    },
    "provider_attempts": {
        "provider": "provider",
        "model": "model",
        "status": "status",
        "error_kind": "error_kind",
        "kind": "kind",
        "request_id": "request_id",
    },
}
# UUIDv7 text sorts by time: newest first, and within a request in the order of its attempts.
_ID: dict[Table, str] = {"requests": "id", "provider_attempts": "request_id"}
_ORDER: dict[Table, str] = {"requests": "id DESC", "provider_attempts": "request_id DESC, number"}


def requests(db_path: Path, chosen: Filter | None = None, *, limit: int = LIMIT_DEFAULT) -> list[Row]:
    """The newest requests first. Raises NoLedgerError."""
    return _rows(db_path, "requests", chosen or Filter(), limit)


def attempts(db_path: Path, chosen: Filter | None = None, *, limit: int = LIMIT_DEFAULT) -> list[Row]:
    """The attempts of the newest requests first, those of one request in their order. Raises NoLedgerError."""
    return _rows(db_path, "provider_attempts", chosen or Filter(), limit)


def follow(
    db_path: Path, table: Table, wait: Callable[[], object], chosen: Filter | None = None, *, last: int = 0
) -> Iterator[Row]:
    """Rows as they are written, without end, after the `last` ones that are there; `wait` is called when there is
    nothing new (a sleep; it may raise to end this). Raises NoLedgerError."""
    where, values = _where(table, chosen or Filter())
    with _reading(db_path) as connection:
        (newest,) = connection.execute(f"SELECT coalesce(max(rowid), 0) FROM {table}").fetchone()
        seen = connection.execute(
            f"SELECT coalesce(min(rowid) - 1, ?) FROM (SELECT rowid FROM {table} {where} ORDER BY rowid DESC LIMIT ?)",
            (newest, *values, last),
        ).fetchone()[0]
        query = (
            f"SELECT rowid AS at, * FROM {table} {where} {'AND' if where else 'WHERE'} rowid > ? ORDER BY rowid LIMIT ?"
        )
        while True:
            rows = [dict(row) for row in connection.execute(query, (*values, seen, FOLLOW_ROWS_MAX))]
            for row in rows:
                seen = row.pop("at")
                yield row
            if not rows:
                wait()


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Each row as one line of JSON, with all columns."""
    encode = msgspec.json.Encoder().encode
    for row in rows:
        yield encode(row).decode()


# Tables.


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, and how a row's cell looks. Columns with the highest `rank` are the first to be
    left out when a terminal is narrow; one that is `whole` is of no use when cut."""

    title: str
    cell: Callable[[Row], str]
    rank: int = 0
    right: bool = False
    whole: bool = False


def duration(us: object) -> str:
    """Microseconds as people say them: 35us, 1.2ms, 812ms, 4.31s, 12m05s; a dash for None."""
    if not isinstance(us, int):
        return "-"
    if us < 1000:
        return f"{us}us"
    if us < 9_950:
        return f"{us / 1000:.1f}ms"
    if us < 999_500:
        return f"{us / 1000:.0f}ms"
    if us < 59_995_000:
        return f"{us / 1e6:.2f}s"
    minutes, seconds = divmod(round(us / 1e6), 60)
    return f"{minutes}m{seconds:02d}s"


def moment(ns: object) -> str:
    """Unix nanoseconds as UTC, to the millisecond."""
    if not isinstance(ns, int) or not 0 <= ns < 253_402_300_800 * 10**9:
        return "-"
    return datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{ns // 10**6 % 1000:03d}"


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] in (None, "") else printable(str(row[name]))


def _time(name: str) -> Callable[[Row], str]:
    return lambda row: duration(row[name])


def _tokens(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{'~' if row['estimated'] else ''}{row[name]}"


def _target(row: Row) -> str:
    return "-" if row["provider"] is None else printable(f"{row['provider']}/{row['model']}")


COLUMNS: dict[Table, tuple[Column, ...]] = {
    "requests": (
        Column("TIME (UTC)", lambda row: moment(row["started_ns"]), whole=True),
        Column("TENANT", _text("tenant"), 1),
        Column("USE CASE", _text("use_case"), 4),
        Column("ROUTE", _text("route"), 7),
        Column("MODEL", _target, 2),
        Column("STATE", _text("state")),
        Column("STATUS", _text("status"), right=True),
        Column("ERROR", _text("error_kind"), 3),
        Column("TRIES", _text("attempts"), 5, right=True),
        Column("IN", _tokens("input_tokens"), 4, right=True),
        Column("OUT", _tokens("output_tokens"), 4, right=True),
        Column("FIRST", _time("first_byte_us"), 6, right=True),
        Column("TOOK", _time("duration_us"), right=True),
        Column("OURS", _time("overhead_us"), 6, right=True),
        Column("ID", _text("id"), 8, whole=True),
    ),
    "provider_attempts": (
        Column("TIME (UTC)", lambda row: moment(row["started_ns"]), whole=True),
        Column("REQUEST", _text("request_id"), 5, whole=True),
        Column("#", _text("number"), right=True),
        Column("KIND", _text("kind")),
        Column("TARGET", _target),
        Column("STATUS", _text("status"), right=True),
        Column("ERROR", _text("error_kind")),
        Column("BECAUSE", _text("retry_reason"), 1),
        Column("IN", _tokens("input_tokens"), 3, right=True),
        Column("OUT", _tokens("output_tokens"), 3, right=True),
        Column("FIRST", _time("first_byte_us"), 4, right=True),
        Column("TOKEN", _time("first_token_us"), 6, right=True),
        Column("TOOK", _time("duration_us"), right=True),
        Column("FINISH", _text("finish_reason"), 2),
        Column("UPSTREAM ID", _text("upstream_request_id"), 7),
    ),
}


@dataclass(slots=True)
class Layout:
    """Which columns are shown and how wide they are: fixed with the first rows, so that later ones line up."""

    columns: list[Column]
    widths: list[int] = field(default_factory=list)

    def line(self, cells: Sequence[str]) -> str:
        parts = []
        for cell, column, width in zip(cells, self.columns, self.widths, strict=True):
            short = cell if len(cell) <= width else cell[: width - 1] + "…"
            parts.append(short.rjust(width) if column.right else short.ljust(width))
        return "  ".join(parts).rstrip()

    def row(self, row: Row) -> str:
        return self.line([column.cell(row) for column in self.columns])

    def head(self) -> str:
        return self.line([column.title for column in self.columns])


def layout(table: Table, rows: Sequence[Row], width: int) -> Layout:
    """The columns that fit into `width` characters (0: no bound), the most important ones first; long names are cut."""
    columns = list(COLUMNS[table])
    cells = [[column.cell(row) for row in rows] for column in columns]
    widths = [
        min(CELL_WIDTH_MAX, max(len(text) for text in (column.title, *texts)))
        for column, texts in zip(columns, cells, strict=True)
    ]
    while width and _total(_fair(columns, widths)) > width and any(column.rank for column in columns):
        worst = max(range(len(columns)), key=lambda index: (columns[index].rank, index))
        del columns[worst], widths[worst]
    if width:
        _shrink(widths, _fair(columns, widths), width)
        _shrink(widths, [min(each, CELL_WIDTH_MIN) for each in widths], width)
    return Layout(columns, widths)


def _fair(columns: Sequence[Column], widths: Sequence[int]) -> list[int]:
    return [each if column.whole else min(each, CELL_WIDTH_FAIR) for column, each in zip(columns, widths, strict=True)]


def _shrink(widths: list[int], least: Sequence[int], width: int) -> None:
    """Take from the widest, one by one, until the table fits or each column has its least width."""
    while _total(widths) > width:
        room = [(each, index) for index, each in enumerate(widths) if each > least[index]]
        if not room:
            return
        widths[max(room)[1]] -= 1


def table(name: Table, rows: Sequence[Row], width: int = 0) -> Iterator[str]:
    """The lines of a table: a head, then one line per row."""
    shape = layout(name, rows, width)
    yield shape.head()
    for row in rows:
        yield shape.row(row)


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not simply show."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


# Queries.


def _rows(db_path: Path, table: Table, chosen: Filter, limit: int) -> list[Row]:
    where, values = _where(table, chosen)
    query = f"SELECT * FROM {table} {where} ORDER BY {_ORDER[table]} LIMIT ?"
    with _reading(db_path) as connection:
        return [dict(row) for row in connection.execute(query, (*values, limit))]


def _where(table: Table, chosen: Filter) -> tuple[str, list[object]]:
    """The WHERE clause (or nothing) and its values. A filter that the table has no column for is a ValueError."""
    conditions: list[str] = []
    values: list[object] = []
    names = _FIELDS[table]
    for name in Filter.__dataclass_fields__:
        value = getattr(chosen, name)
        if value is None:
            continue
        if name == "since_ns":
            conditions.append(f"{_ID[table]} >= ?")
            values.append(first_id_at(value))
        elif name in names:
            conditions.append(f"{names[name]} = ?")
            values.append(value)
        else:
            raise ValueError(f"{table} have no {name}")
    return f"WHERE {' AND '.join(conditions)}" if conditions else "", values


def first_id_at(wall_ns: int) -> str:
    """No UUIDv7 made at `wall_ns` or later sorts before this."""
    digits = f"{max(0, wall_ns) // 1_000_000:012x}"[:12]
    return f"{digits[:8]}-{digits[8:]}"


@contextmanager
def _reading(db_path: Path) -> Iterator[sqlite3.Connection]:
    if not db_path.is_file():
        raise NoLedgerError(f"no ledger at {db_path}: no gateway has run with this state directory yet")
    try:
        address = f"{db_path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
            connection.row_factory = sqlite3.Row
            yield connection
    except sqlite3.Error as error:
        raise NoLedgerError(f"cannot read the ledger at {db_path}: {error}") from error
