"""Keys in SQLite: the table `api_keys` of the database that also holds the rows.

SQLite calls block, so all of them run in a thread of the store's own. Two processes share the table: the command line
writes it, the control process asks four times a second what is new. With WAL neither waits for the other's reading, and
for a writer (the shipper is one) at most the busy timeout.

After an error the connection is given up and made again at the next call, and so it is when the file was replaced. What
is read first over a new connection is everything.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from edgegw.keys.store import Changes, KeyStoreError
from edgegw.keys.table import Key
from edgegw.ledger.schema import Migration, file_identity, open_database
from edgegw.ledger.store import SchemaTooNewError

# How long SQLite waits for another process's lock: the reader asks again soon anyway, a person has more patience.
READER_BUSY_S = 1.0
WRITER_BUSY_S = 5.0

_NAMES = Key.__struct_fields__
_COLUMNS = ", ".join(_NAMES)
_CHANGED = f"SELECT {_COLUMNS} FROM api_keys WHERE changed > ? ORDER BY changed"
_VERSION = "SELECT coalesce(max(changed), 0) FROM api_keys"
# An end that is set is only ever moved nearer (min of a NULL is NULL, hence the two orders).
_WRITE = f"""
INSERT INTO api_keys ({_COLUMNS}, changed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT coalesce(max(changed), 0) + 1 FROM api_keys))
ON CONFLICT (id) DO UPDATE SET
    changed = excluded.changed,
    limits = excluded.limits,
    expires_ns = min(coalesce(expires_ns, excluded.expires_ns), coalesce(excluded.expires_ns, expires_ns)),
    revoked_ns = min(coalesce(revoked_ns, excluded.revoked_ns), coalesce(excluded.revoked_ns, revoked_ns))
"""

_T = TypeVar("_T")


class SqliteKeys:
    """A KeyStore (store.py) in one SQLite file, which is made, with its tables, when it is first used."""

    def __init__(
        self, path: Path, known: tuple[Migration, ...], wall_ns: Callable[[], int], busy_s: float = READER_BUSY_S
    ) -> None:
        self._path = path
        self._known = known
        self._wall_ns = wall_ns
        self._busy_s = busy_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys-sqlite")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._fresh = True  # nothing has been read over this connection

    async def changes(self, since: int) -> Changes:
        """See KeyStore.changes."""
        return await self._in_thread(lambda: self._changes(since))

    async def write(self, keys: Sequence[Key]) -> None:
        """See KeyStore.write."""
        await self._in_thread(lambda: self._write(keys))

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    # From here on: the thread.

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (sqlite3.Error, OSError, OverflowError, UnicodeError, msgspec.DecodeError, SchemaTooNewError) as error:
            self._disconnect()
            raise KeyStoreError(f"{self._path.name}: {error}") from error
        except BaseException:
            self._disconnect()
            raise

    def _changes(self, since: int) -> Changes:
        connection = self._connected()
        (version,) = connection.execute(_VERSION).fetchone()
        whole = self._fresh or version < since
        if version == since and not whole:
            return Changes((), version, False)
        # A change between the two looks is read now and once more next time; never missed.
        rows = connection.execute(_CHANGED, (0 if whole else since,)).fetchall()
        keys = tuple(_key(row) for row in rows)
        self._fresh = False
        return Changes(keys, version, whole)

    def _write(self, keys: Sequence[Key]) -> None:
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_WRITE, [_row(key) for key in keys])
        connection.execute("COMMIT")

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._file == file_identity(self._path):
            return self._connection
        self._disconnect()
        connection = open_database(self._path, self._known, self._wall_ns(), self._busy_s)
        self._connection = connection
        self._file = file_identity(self._path)
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._fresh = True
        if connection is not None:
            connection.close()


def _row(key: Key) -> tuple[object, ...]:
    limits = {name: limit for name, limit in msgspec.structs.asdict(key.limits).items() if limit is not None}
    lists = (msgspec.json.encode(key.acts_for).decode(), msgspec.json.encode(limits).decode())
    return (*msgspec.structs.astuple(key)[:-2], *lists)


def _key(row: tuple[object, ...]) -> Key:
    *plain, acts_for, limits = row
    read = msgspec.json.decode
    return msgspec.convert(dict(zip(_NAMES, (*plain, read(str(acts_for)), read(str(limits))), strict=True)), Key)
