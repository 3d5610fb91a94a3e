"""What the commands about the books print: rows, sums, and rows as they come; as a table, JSON lines or CSV."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal, TextIO

from edgegw.ledger import questions, tables
from edgegw.ledger.books import Books
from edgegw.ledger.questions import Filter, Row, Table
from edgegw.ledger.usage import SUMS

Form = Literal["table", "json", "csv"]

FOLLOW_POLL_S = 0.2
# A followed table cannot know the widths of what is to come; a head is repeated after so many lines.
LINES_PER_HEAD = 40
_SPAN = re.compile(r"(\d{1,9})([smhdw])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800}


class TimeError(ValueError):
    """A time that nobody understands."""


def time_ns(text: str | None, now_ns: int) -> int | None:
    """Unix nanoseconds of `15m`, `24h`, `7d` before `now_ns`, or of an ISO time (UTC unless it says otherwise)."""
    if text is None:
        return None
    span = _SPAN.fullmatch(text)
    if span is not None:
        return max(0, now_ns - int(span[1]) * _UNIT_S[span[2]] * 1_000_000_000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise TimeError(f"not a time (15m, 24h, 7d, 2026-11-22T10:00): {text}") from None
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000)


async def show(books: Books, table: Table, out: TextIO, *, chosen: Filter, limit: int, form: Form = "table") -> None:
    """Prints the last `limit` rows, the latest last. Raises NoLedgerError."""
    rows = await books.rows(questions.newest(table, chosen, limit))
    _print(_lines(table, _latest_last(rows, table), form, out), form, out)


async def tail(
    books: Books, table: Table, out: TextIO, *, chosen: Filter, last: int, form: Form = "table", poll_s: float
) -> None:
    """Prints the `last` rows that were written, and then what is written, without end. Raises NoLedgerError."""
    shown: list[Row] = []
    layout: tables.Layout | None = None
    lines = 0
    if form == "csv":
        print(tables.csv_head(questions.COLUMNS[table]), file=out)
    async for rows in books.follow(table, chosen, last):
        if form != "table":
            _print(_programs_lines(questions.COLUMNS[table], rows, form), form, out)
        else:
            for row in rows:
                shown = [*shown[-LINES_PER_HEAD:], row]
                if layout is None or lines % LINES_PER_HEAD == 0:
                    layout = tables.layout(tables.COLUMNS[table], shown, _width(out))
                    print(layout.head(), file=out)
                lines += 1
                print(layout.row(row), file=out)
        if not rows:
            out.flush()
            await asyncio.sleep(poll_s)


async def usage(
    books: Books,
    out: TextIO,
    notes: TextIO,
    *,
    by: Sequence[str],
    chosen: Filter,
    since_ns: int,
    until_ns: int,
    form: Form = "table",
) -> None:
    """Prints the sums of whole hours, and says which; in a table with a last line for all of them. What is not for
    programs goes to `notes` when the output is. Raises NoLedgerError."""
    since, until = questions.whole_hours(since_ns, until_ns)
    rows = await books.rows(questions.usage(by, chosen, since, until, books.dialect))
    span = f"requests that began from {tables.hour(since)} until {tables.hour(until)} UTC, whole hours"
    print(span, file=out if form == "table" else notes)
    if form == "table":
        _print(_usage_table(by, rows, out), form, out)
        return
    names = (*by, *SUMS)
    if form == "csv":
        print(tables.csv_head(names), file=out)
    _print(_programs_lines(names, tables.with_times(rows), form), form, out)


def _usage_table(by: Sequence[str], rows: list[Row], out: TextIO) -> Iterator[str]:
    total: Row = dict.fromkeys(by, "")
    total[by[0]] = "total"
    for name in SUMS:
        total[name] = sum(value for row in rows if isinstance(value := row[name], int))
    return tables.table(tables.usage_columns(by), [*rows, total], _width(out))


def _lines(table: Table, rows: list[Row], form: Form, out: TextIO) -> Iterator[str]:
    if form == "table":
        yield from tables.table(tables.COLUMNS[table], rows, _width(out))
        return
    if form == "csv":
        yield tables.csv_head(questions.COLUMNS[table])
    yield from _programs_lines(questions.COLUMNS[table], rows, form)


def _programs_lines(names: Sequence[str], rows: Iterable[Row], form: Form) -> Iterator[str]:
    return tables.csv_lines(names, rows) if form == "csv" else tables.json_lines(rows)


def _print(lines: Iterable[str], form: Form, out: TextIO) -> None:
    """CSV is exact in a file; a terminal sees only what it may."""
    guarded = form == "csv" and out.isatty()
    for line in lines:
        print(tables.printable(line) if guarded else line, file=out)


def _latest_last(rows: list[Row], table: Table) -> list[Row]:
    """Newest first becomes newest last, the attempts of one request staying in their order."""
    if table == "requests":
        return rows[::-1]
    return sorted(rows, key=lambda row: (str(row["request_id"]), row["number"]))


def _width(out: TextIO) -> int:
    """Columns of the terminal, 0 (no bound) when it is none."""
    return shutil.get_terminal_size().columns if out.isatty() else 0
