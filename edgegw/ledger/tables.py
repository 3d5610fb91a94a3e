"""Rows of the books for people and programs: as a table that fits a terminal, as CSV, as JSON lines.

Names in rows came from clients. In a table nothing reaches the terminal but text; a CSV cell that a spreadsheet would
take for a formula is marked as text; JSON is exact, with what does not print as \\u escapes.

Pure: rows in, lines out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from edgegw.ledger.questions import HOURS_PER_DAY, Row, Table

# To make a table fit, names are first cut to the fair width, then columns are left out, then everything is cut to the
# least width; a terminal that is narrower still wraps.
CELL_WIDTH_MAX = 48
CELL_WIDTH_FAIR = 18
CELL_WIDTH_MIN = 6
# What a spreadsheet takes for the beginning of a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MICRO = 1_000_000
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its title, and how a row's cell looks. Columns with the highest `rank` are the first to be
    left out when a terminal is narrow; one that is `whole` is of no use when cut."""

    title: str
    cell: Callable[[Row], str]
    rank: int = 0
    right: bool = False
    whole: bool = False


# -- values --


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


def hour(number: object) -> str:
    """An hour since 1970 as UTC."""
    return moment(number * _SECONDS_PER_HOUR * 10**9)[:16] if isinstance(number, int) else "-"


def day(number: object) -> str:
    """A day since 1970."""
    return hour(number * HOURS_PER_DAY)[:10] if isinstance(number, int) else "-"


def money(micro: object) -> str:
    """Micro-dollars: to the cent from a hundred dollars on, to its hundredth from one cent on, below it exactly."""
    if not isinstance(micro, int):
        return "-"
    digits = 2 if abs(micro) >= 100 * _MICRO else 4 if abs(micro) >= _MICRO // 100 else 6 if micro else 0
    return f"{'-' if micro < 0 else ''}${abs(micro) / _MICRO:.{digits}f}"


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would not simply show."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# -- columns --


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] in (None, "") else printable(str(row[name]))


def _time(name: str) -> Callable[[Row], str]:
    return lambda row: duration(row[name])


def _tokens(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else f"{'~' if row['estimated'] else ''}{row[name]}"


def _cost(row: Row) -> str:
    told = money(row["cost_usd_micro"])
    return f"~{told}" if row["estimated"] and row["cost_usd_micro"] else told


def _target(row: Row) -> str:
    return "-" if row["provider"] is None else printable(f"{row['provider']}/{row['model']}")


COLUMNS: dict[Table, tuple[Column, ...]] = {
    "requests": (
        Column("TIME (UTC)", lambda row: moment(row["started_ns"]), whole=True),
        Column("TENANT", _text("tenant"), 1),
        Column("USE CASE", _text("use_case"), 5),
        Column("ROUTE", _text("route"), 7),
        Column("MODEL", _target, 2),
        Column("STATE", _text("state")),
        Column("STATUS", _text("status"), right=True),
        Column("ERROR", _text("error_kind"), 3),
        Column("TRIES", _text("attempts"), 5, right=True),
        Column("IN", _tokens("input_tokens"), 4, right=True),
        Column("OUT", _tokens("output_tokens"), 4, right=True),
        Column("COST", _cost, 3, right=True),
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
        Column("TENANT", _text("tenant"), 8),
        Column("TARGET", _target),
        Column("STATUS", _text("status"), right=True),
        Column("ERROR", _text("error_kind")),
        Column("BECAUSE", _text("retry_reason"), 1),
        Column("IN", _tokens("input_tokens"), 3, right=True),
        Column("OUT", _tokens("output_tokens"), 3, right=True),
        Column("COST", _cost, 2, right=True),
        Column("FIRST", _time("first_byte_us"), 4, right=True),
        Column("TOKEN", _time("first_token_us"), 6, right=True),
        Column("TOOK", _time("duration_us"), right=True),
        Column("FINISH", _text("finish_reason"), 3),
        Column("UPSTREAM ID", _text("upstream_request_id"), 7),
    ),
}
_OF_USAGE = (
    ("requests", "REQUESTS", 0),
    ("failed", "FAILED", 1),
    ("attempts", "ATTEMPTS", 3),
    ("input_tokens", "INPUT", 0),
    ("cached_tokens", "CACHED", 4),
    ("cache_write_tokens", "WRITTEN", 6),
    ("output_tokens", "OUTPUT", 0),
    ("reasoning_tokens", "REASONING", 5),
)
_TIMES: dict[str, Callable[[object], str]] = {"hour": hour, "day": day}


def usage_columns(by: Sequence[str]) -> tuple[Column, ...]:
    """The columns of sums `by` these names (questions.BY)."""
    return (
        *(Column(name.upper().replace("_", " "), _summed_by(name), whole=name in _TIMES) for name in by),
        *(Column(title, _text(name), rank, right=True) for name, title, rank in _OF_USAGE),
        Column("COST", lambda row: money(row["cost_usd_micro"]), right=True, whole=True),
        Column("UNPRICED", _text("unpriced"), 2, right=True),
        Column("ESTIMATED", _text("estimated"), 2, right=True),
    )


def _summed_by(name: str) -> Callable[[Row], str]:
    said = _TIMES.get(name)
    if said is None:
        return _text(name)
    return lambda row: said(row[name]) if isinstance(row[name], int) else _text(name)(row)


def with_times(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of usage for programs: an hour or a day as ISO has it."""
    for row in rows:
        times: Row = {}
        if "day" in row:
            times["day"] = day(row["day"])
        if "hour" in row:
            times["hour"] = hour(row["hour"]).replace(" ", "T") + "Z"
        yield row | times


# -- tables --


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


def layout(columns: Sequence[Column], rows: Sequence[Row], width: int) -> Layout:
    """The columns that fit into `width` characters (0: no bound), the most important ones first; long names are cut."""
    kept = list(columns)
    cells = [[column.cell(row) for row in rows] for column in kept]
    widths = [
        min(CELL_WIDTH_MAX, max(len(text) for text in (column.title, *texts)))
        for column, texts in zip(kept, cells, strict=True)
    ]
    while width and _total(_fair(kept, widths)) > width and any(column.rank for column in kept):
        worst = max(range(len(kept)), key=lambda index: (kept[index].rank, index))
        del kept[worst], widths[worst]
    if width:
        _shrink(widths, _fair(kept, widths), width)
        _shrink(widths, [min(each, CELL_WIDTH_MIN) for each in widths], width)
    return Layout(kept, widths)


def _fair(columns: Sequence[Column], widths: Sequence[int]) -> list[int]:
    return [each if column.whole else min(each, CELL_WIDTH_FAIR) for column, each in zip(columns, widths, strict=True)]


def _shrink(widths: list[int], least: Sequence[int], width: int) -> None:
    """Take from the widest, one by one, until the table fits or each column has its least width."""
    while _total(widths) > width:
        room = [(each, index) for index, each in enumerate(widths) if each > least[index]]
        if not room:
            return
        widths[max(room)[1]] -= 1


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def table(columns: Sequence[Column], rows: Sequence[Row], width: int = 0) -> Iterator[str]:
    """The lines of a table: a head, then one line per row."""
    shape = layout(columns, rows, width)
    yield shape.head()
    for row in rows:
        yield shape.row(row)


# -- for programs --


def json_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Each row as one line of JSON, with all columns."""
    encode = msgspec.json.Encoder().encode
    for row in rows:
        line = encode(row).decode()
        yield line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


def _escaped(character: str) -> str:
    """As JSON writes it in ASCII: one or two \\uXXXX."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def csv_head(names: Sequence[str]) -> str:
    """The first line of CSV."""
    return ",".join(names)


def csv_lines(names: Sequence[str], rows: Iterable[Row]) -> Iterator[str]:
    """Each row as a line of CSV (RFC 4180), its columns in this order; nothing for None."""
    for row in rows:
        yield ",".join(_csv_cell(row[name]) for name in names)


def _csv_cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if isinstance(value, str) and text.startswith(_FORMULA):
        text = f"'{text}"
    if any(c in text for c in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    return text
