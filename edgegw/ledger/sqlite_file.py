"""One SQLite file and the one thread that works on it: the shell of every store that is kept in SQLite.

SQLite calls block, so all of them run in a thread of the file's own, in the order in which they were asked for. With
WAL and synchronous=NORMAL a transaction costs no fsync, survives the death of any process, and the last ones are lost
at most when the machine dies. Several stores and processes may share a file: no reader waits for a writer, and a writer
for another one at most the busy timeout.

Whatever goes wrong, the connection is given up, and with it a transaction that was open; the next call makes it again:
SQLite's errors say little about what a connection is still good for. So it is when the file was moved away or replaced.

Knows no table. What a failure means to its callers is the owner's word, given as a table of errors.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edgegw.ledger.schema import Migration, file_identity, open_database

# What is caught, and as what it is raised; the first line that fits counts. What fits none is raised as it is.
Failures = tuple[tuple[tuple[type[Exception], ...], type[Exception]], ...]

_T = TypeVar("_T")


class SqliteFile:
    """Made, with its tables, when it is first used. `name` is the thread's; `busy_s`: how long SQLite itself waits for
    another process's lock. `opened` is called in the thread with every new connection (in autocommit mode), before any
    work is done over it."""

    def __init__(
        self,
        path: Path,
        known: tuple[Migration, ...],
        wall_ns: Callable[[], int],
        *,
        name: str,
        busy_s: float,
        failures: Failures,
        opened: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self.path = path
        self._known = known
        self._wall_ns = wall_ns
        self._busy_s = busy_s
        self._failures = failures
        self._opened = opened
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        # For what it does not know, None and bool among it, sqlite3 searches its protocols at 0.3 us a value.
        sqlite3.register_adapter(bool, int)
        sqlite3.register_adapter(type(None), _as_it_is)

    async def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `work` returns, called in the thread; a transaction is its own to begin and to commit. Raises what
        `failures` makes of what went wrong, with the file's name before the words."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    async def close(self) -> None:
        """Wait for what is under way, fold the write-ahead log into the file, end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    # From here on: the thread.

    def _guarded(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return work(self._connected())
        except Exception as error:
            self._disconnect()
            for caught, raised in self._failures:
                if isinstance(error, caught):
                    raise raised(f"{self.path.name}: {error}") from error
            raise
        except BaseException:
            self._disconnect()
            raise

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._file == file_identity(self.path):
            return self._connection
        self._disconnect()
        connection = self._connection = open_database(self.path, self._known, self._wall_ns(), self._busy_s)
        self._file = file_identity(self.path)
        if self._opened is not None:
            self._opened(connection)
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _as_it_is(none: None) -> None:
    return none
