"""All that `edgegw ledger verify` looks at, within one view of the books.

The view comes first and the journals after it: a segment goes only when its rows are stored, so what is missing in a
journal by then was in the rows already, or is not of this view. Where a gateway that runs may have been faster than we
(rows ahead of their checkpoint, a life that has just been deleted), the database is looked at again after a moment.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from edgegw.ledger.books import Books
from edgegw.ledger.identity import known_identity
from edgegw.ledger.life import JOURNAL_DIR, LIFE_NAME
from edgegw.ledger.questions import NS_PER_HOUR, Question, first_id_at
from edgegw.ledger.rejected import rows_set_aside
from edgegw.ledger.verify.findings import Report
from edgegw.ledger.verify.lives import Doubt, Lives, Standing, read_standing
from edgegw.ledger.verify.rows import check_rows

LOOKS = 10
LOOK_S = 0.5


async def verify(books: Books, state_dir: Path, since_ns: int, *, look_s: float = LOOK_S) -> Report:
    """What is wrong with the books, and with the journals of this state directory. `since_ns` bounds what is looked at
    among the rows. Raises NoLedgerError, and OSError when a journal cannot be read."""
    report = Report()
    journal = known_identity(state_dir)
    if journal is None:
        report.notes.append(f"no gateway has kept a journal in {state_dir}: only the database was looked at")
    async with books.snapshot():
        kept_since_ns = await _kept_since_ns(books)
        standing = await read_standing(books, journal or "-")
        lives = Lives(books, report, standing, _set_aside(report, state_dir), first_id_at(kept_since_ns))
        await lives.check(state_dir / JOURNAL_DIR, _life_names(state_dir / JOURNAL_DIR))
        await check_rows(books, report, standing.open_ids, max(since_ns, kept_since_ns) // NS_PER_HOUR)
    doubts = lives.doubts
    for _ in range(LOOKS):
        if not doubts:
            break
        await asyncio.sleep(look_s)
        standing = await read_standing(books, journal or "-")
        doubts = [doubt for doubt in doubts if not _is_settled(doubt, standing)]
    for doubt in doubts:
        report.found(doubt.kind, doubt.where, doubt.what)
    return report


def _set_aside(report: Report, state_dir: Path) -> set[tuple[object, object]]:
    """Keys of rows that the database did not take. Each is a finding: what it stands for is not in the books."""
    keys: set[tuple[object, object]] = set()
    for said in rows_set_aside(state_dir):
        row = said["row"]
        key = (row.get("id") or row.get("request_id"), row.get("number"))
        keys.add(key)
        which = "request" if said["table"] == "requests" else f"attempt {key[1]} of request"
        report.found("set aside", f"{which} {key[0]}", f"the database did not take it: {said.get('reason')}")
    return keys


def _is_settled(doubt: Doubt, standing: Standing) -> bool:
    position = standing.positions.get(doubt.life)
    if position is None:
        return doubt.life not in standing.open_lives.values()
    return 0 <= doubt.seq <= position.seq


async def _kept_since_ns(books: Books) -> int:
    """From when on rows are kept; what is older was deleted, or is about to be."""
    (row,) = await books.rows(Question("SELECT max(kept_since_ns) AS kept_since_ns FROM retention"))
    kept_since_ns = row["kept_since_ns"]
    return kept_since_ns if isinstance(kept_since_ns, int) else 0


def _life_names(root: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(root) if LIFE_NAME.fullmatch(name))
    except FileNotFoundError:
        return []
