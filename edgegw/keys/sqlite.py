"""Keys in SQLite: the table `api_keys` of the database that also holds the rows.

Two processes share the table: the command line writes it, the control process asks four times a second what is new.
What is read first over a new connection (sqlite_file.py: after an error, and when the file was replaced) is everything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgegw.keys.rows import KEY_COLUMNS, key_of, row_of
from edgegw.keys.store import Changes, KeyStoreError
from edgegw.keys.table import Key
from edgegw.ledger.schema import Migration
from edgegw.ledger.sqlite_file import SqliteFile
from edgegw.ledger.store import SchemaTooNewError

# How long SQLite waits for another process's lock: the reader asks again soon anyway, a person has more patience.
READER_BUSY_S = 1.0
WRITER_BUSY_S = 5.0

_FAILURES = (
    ((sqlite3.Error, OSError, OverflowError, UnicodeError, msgspec.DecodeError, SchemaTooNewError), KeyStoreError),
)

_COLUMNS = ", ".join(KEY_COLUMNS)
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


class SqliteKeys:
    """A KeyStore (store.py) in one SQLite file, which is made, with its tables, when it is first used."""

    def __init__(
        self, path: Path, known: tuple[Migration, ...], wall_ns: Callable[[], int], busy_s: float = READER_BUSY_S
    ) -> None:
        self._file = SqliteFile(
            path, known, wall_ns, name="keys-sqlite", busy_s=busy_s, failures=_FAILURES, opened=self._opened
        )
        self._fresh = True  # nothing has been read over this connection

    async def changes(self, since: int) -> Changes:
        """See KeyStore.changes."""
        return await self._file.run(lambda connection: self._changes(connection, since))

    async def write(self, keys: Sequence[Key]) -> None:
        """See KeyStore.write."""
        await self._file.run(lambda connection: _write(connection, keys))

    async def close(self) -> None:
        await self._file.close()

    # From here on: the thread.

    def _opened(self, connection: sqlite3.Connection) -> None:
        self._fresh = True

    def _changes(self, connection: sqlite3.Connection, since: int) -> Changes:
        (version,) = connection.execute(_VERSION).fetchone()
        whole = self._fresh or version < since
        if version == since and not whole:
            return Changes((), version, False)
        # A change between the two looks is read now and once more next time; never missed.
        rows = connection.execute(_CHANGED, (0 if whole else since,)).fetchall()
        keys = tuple(key_of(row) for row in rows)
        self._fresh = False
        return Changes(keys, version, whole)


def _write(connection: sqlite3.Connection, keys: Sequence[Key]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_WRITE, [row_of(key) for key in keys])
    connection.execute("COMMIT")
