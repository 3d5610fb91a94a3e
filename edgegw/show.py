"""What `edgegw requests` and `edgegw attempts` print: rows of the ledger, a table or JSON lines, the latest last."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from edgegw.ledger import listing
from edgegw.ledger.listing import Filter, Row, Table

FOLLOW_POLL_S = 0.2
# A followed table cannot know the widths of what is to come; a head is repeated after so many lines.
LINES_PER_HEAD = 40
_SPAN = re.compile(r"(\d+)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class TimeError(ValueError):
    """A time that nobody understands."""


def since_ns(text: str | None) -> int | None:
    """Unix nanoseconds of `15m`, `24h`, `7d` ago, or of an ISO time (UTC unless it says otherwise)."""
    if text is None:
        return None
    span = _SPAN.fullmatch(text)
    if span is not None:
        return time.time_ns() - int(span[1]) * _UNIT_S[span[2]] * 1_000_000_000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise TimeError(f"not a time (15m, 24h, 7d, 2026-11-22T10:00): {text}") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e9)


def show(
    table: Table, db: Path, out: TextIO, *, chosen: Filter, limit: int, as_json: bool = False, follow: bool = False
) -> None:
    """Prints the last `limit` rows; with `follow` it goes on until interrupted. Raises NoLedgerError."""
    if follow:
        _follow(table, db, out, chosen, limit, as_json)
        return
    read = listing.requests if table == "requests" else listing.attempts
    rows = _latest_last(read(db, chosen, limit=limit), table)
    lines = listing.json_lines(rows) if as_json else listing.table(table, rows, _width(out))
    for line in lines:
        print(line, file=out)


def _latest_last(rows: list[Row], table: Table) -> list[Row]:
    """Newest first becomes newest last, the attempts of one request staying in their order."""
    if table == "requests":
        return rows[::-1]
    return sorted(rows, key=lambda row: (str(row["request_id"]), row["number"]))


def _follow(table: Table, db: Path, out: TextIO, chosen: Filter, last: int, as_json: bool) -> None:
    shown: list[Row] = []
    layout: listing.Layout | None = None
    lines = 0

    def wait() -> None:
        out.flush()
        time.sleep(FOLLOW_POLL_S)

    for row in listing.follow(db, table, wait, chosen, last=last):
        if as_json:
            print(*listing.json_lines([row]), file=out)
            continue
        shown = [*shown[-LINES_PER_HEAD:], row]
        if layout is None or lines % LINES_PER_HEAD == 0:
            layout = _layout(table, shown, out)
            print(layout.head(), file=out)
        lines += 1
        print(layout.row(row), file=out)


def _layout(table: Table, rows: Sequence[Row], out: TextIO) -> listing.Layout:
    return listing.layout(table, rows, _width(out))


def _width(out: TextIO) -> int:
    """Columns of the terminal, 0 (no bound) when it is none."""
    return shutil.get_terminal_size().columns if out.isatty() else 0
