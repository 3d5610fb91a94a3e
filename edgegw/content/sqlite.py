"""Content in SQLite: the table `request_contents` of the database that also holds the rows.

In a thread and over a connection of its own, so that the books never queue behind it; they meet at the lock of the
file, which is held for one small transaction at a time. What is deleted is overwritten (`secure_delete`), and what was
deleted on demand leaves the write-ahead log as well.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edgegw.content.record import COLUMNS, Content, content_of, content_row
from edgegw.content.store import Chosen
from edgegw.ledger.schema import Migration
from edgegw.ledger.sqlite import BUSY_TIMEOUT_S, FAILURES
from edgegw.ledger.sqlite_file import SqliteFile

# Rows that go in one transaction: some megabytes at most, for whom the books may have to wait.
PORTION_ROWS = 64

_NAMES = ", ".join(COLUMNS)
_INSERT = (
    f"INSERT INTO request_contents ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    "ON CONFLICT (request_id) DO NOTHING"
)
_FIND = f"SELECT {_NAMES} FROM request_contents WHERE request_id = ?"
_TOO_OLD = f"SELECT rowid FROM request_contents WHERE stored_ns < ? ORDER BY stored_ns LIMIT {PORTION_ROWS}"
_SIZE = "SELECT coalesce(sum(bytes), 0) FROM request_contents"
_OLDEST = f"SELECT rowid, bytes FROM request_contents ORDER BY stored_ns LIMIT {PORTION_ROWS}"


class SqliteContents:
    """A ContentStore (store.py) in one SQLite file, which is made, with its tables, when it is first used."""

    def __init__(self, path: Path, known: tuple[Migration, ...], wall_ns: Callable[[], int]) -> None:
        self._file = SqliteFile(
            path, known, wall_ns, name="content-sqlite", busy_s=BUSY_TIMEOUT_S, failures=FAILURES, opened=_opened
        )

    async def write(self, contents: Sequence[Content]) -> None:
        """See ContentStore.write."""
        await self._file.run(lambda connection: _write(connection, contents))

    async def trim(self, before_ns: int, bytes_max: int) -> int:
        """See ContentStore.trim."""
        return await self._file.run(lambda connection: _trim(connection, before_ns, bytes_max))

    async def find(self, request_id: str) -> Content | None:
        """See ContentStore.find."""
        return await self._file.run(lambda connection: _find(connection, request_id))

    async def delete(self, chosen: Chosen) -> int:
        """See ContentStore.delete."""
        clause, values = chosen.clause("?")
        question = f"SELECT rowid FROM request_contents WHERE {clause} LIMIT {PORTION_ROWS}"
        deleted = 0
        while portion := await self._file.run(partial(_delete_some, question=question, values=values)):
            deleted += portion
        if deleted:
            await self._file.run(_empty_log)
        return deleted

    async def rest(self) -> None:
        """See ContentStore.rest: an open file costs nobody anything."""

    async def close(self) -> None:
        await self._file.close()


# In the thread.


def _opened(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA secure_delete = ON")


def _write(connection: sqlite3.Connection, contents: Sequence[Content]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_INSERT, map(content_row, contents))
    connection.execute("COMMIT")


def _find(connection: sqlite3.Connection, request_id: str) -> Content | None:
    row = connection.execute(_FIND, (request_id,)).fetchone()
    return None if row is None else content_of(row)


def _trim(connection: sqlite3.Connection, before_ns: int, bytes_max: int) -> int:
    rows = [rowid for (rowid,) in connection.execute(_TOO_OLD, (before_ns,))]
    if not rows:
        (size,) = connection.execute(_SIZE).fetchone()
        for rowid, row_bytes in connection.execute(_OLDEST).fetchall() if size > bytes_max else ():
            rows.append(rowid)
            size -= row_bytes
            if size <= bytes_max:
                break
    return _delete(connection, rows)


def _delete_some(connection: sqlite3.Connection, question: str, values: Sequence[str | int]) -> int:
    return _delete(connection, [rowid for (rowid,) in connection.execute(question, values)])


def _delete(connection: sqlite3.Connection, rows: Sequence[int]) -> int:
    if not rows:
        return 0
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("DELETE FROM request_contents WHERE rowid = ?", [(row,) for row in rows])
    connection.execute("COMMIT")
    return len(rows)


def _empty_log(connection: sqlite3.Connection) -> None:
    """What was deleted stands in the write-ahead log until it is written over. With somebody reading just now it is
    emptied at the next occasion."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
