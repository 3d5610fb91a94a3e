"""Rows in SQLite become no older than `storage.retention`: what is older is deleted, a few hundred at a time.

All of it happens in the thread that also writes the books: a portion is short, and in the pause after it whoever waits
comes first. The sums of `usage_hours` stay. The file does not shrink: its room is used again.

From when on rows are kept stands in the table `retention` before the first of them goes, so that whoever compares rows
with sums (`edgegw ledger verify`) knows what is not to be missed.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from functools import partial

from edgegw.clock import uuid7
from edgegw.ledger.sqlite_file import SqliteFile

# Of requests; each goes together with its attempts.
PORTION_REQUESTS = 150
PAUSE_S = 0.05
HOUR_NS = 3_600_000_000_000

_LAST = f"SELECT id FROM requests WHERE id < ? ORDER BY id LIMIT 1 OFFSET {PORTION_REQUESTS}"

_log = logging.getLogger(__name__)


class SqliteRetention:
    """An Upkeep (upkeep.py) of the file in which a SqliteStore keeps its books."""

    def __init__(self, file: SqliteFile, retention_s: float, *, pause_s: float = PAUSE_S) -> None:
        self._file = file
        self._retention_ns = int(retention_s * 1e9)
        self._pause_s = pause_s

    async def keep(self, now_ns: int) -> None:
        """See Upkeep.keep."""
        kept_since_ns = (now_ns - self._retention_ns) // HOUR_NS * HOUR_NS
        if kept_since_ns <= 0:
            return
        await self._file.run(partial(_mark, kept_since_ns=kept_since_ns))
        work = partial(_delete_portion, first_id=uuid7(kept_since_ns, 0))
        requests = 0
        while True:
            found, more = await self._file.run(work)
            requests += found
            if not more:
                break
            await asyncio.sleep(self._pause_s)
        if requests:
            _log.info("requests older than storage.retention, now deleted: %d", requests)


def _mark(connection: sqlite3.Connection, kept_since_ns: int) -> None:
    connection.execute("UPDATE retention SET kept_since_ns = ?1 WHERE kept_since_ns < ?1", (kept_since_ns,))


def _delete_portion(connection: sqlite3.Connection, first_id: str) -> tuple[int, bool]:
    """Of what began before the request `first_id` would have; how many requests went, and whether there are more."""
    connection.execute("BEGIN IMMEDIATE")
    last = connection.execute(_LAST, (first_id,)).fetchone()
    before = first_id if last is None else last[0]
    connection.execute("DELETE FROM provider_attempts WHERE request_id < ?", (before,))
    requests = connection.execute("DELETE FROM requests WHERE id < ?", (before,)).rowcount
    connection.execute("COMMIT")
    return requests, last is not None
