"""Keys in PostgreSQL: the table `api_keys` of the database that also holds the rows, for all gateways that share it.

Each gateway asks four times a second what is new, over a connection of its own: one look at the end of an index.
Whoever writes holds a lock until its changes are committed, so their numbers become visible in order, and a reader that
has seen one has seen all before it.

What is read first over a new connection (ledger/postgres/connection.py: after any failure) is everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from edgegw.keys.rows import KEY_COLUMNS, key_of, row_of
from edgegw.keys.store import Changes, KeyStoreError
from edgegw.keys.table import Key
from edgegw.ledger.postgres.connection import BEGIN, Postgres, Session
from edgegw.ledger.postgres.schema import migrate
from edgegw.ledger.schema import Migration
from edgegw.ledger.store import RejectedError, SchemaTooNewError, StoreError
from edgegw.settings import PostgresAddress

# A look takes a millisecond; after this the database counts as away, and /readyz says so.
LOOK_TIMEOUT_S = 5.0

# Which of the advisory locks of a database is ours: "edgegw", and a number beside those of ledger/postgres/schema.py.
LOCK_KEYS = 0x6564_6765_6777_10

_COLUMNS = ", ".join(KEY_COLUMNS)
_VERSION = "SELECT coalesce(max(changed), 0) FROM api_keys"
_CHANGED = f"SELECT {_COLUMNS} FROM api_keys WHERE changed > $1 ORDER BY changed"
# What is asked once the lock is ours sees the largest number: BEGIN is of the kind in which each statement looks anew.
_LOCK = f"{BEGIN}; SELECT pg_advisory_xact_lock({LOCK_KEYS})"
# An end that is set is only ever moved nearer; `least` takes a NULL for none.
_WRITE = f"""
INSERT INTO api_keys ({_COLUMNS}, changed)
VALUES ({", ".join(f"${place + 1}" for place in range(len(KEY_COLUMNS)))}, ({_VERSION}) + 1)
ON CONFLICT (id) DO UPDATE SET
    changed = excluded.changed,
    limits = excluded.limits,
    expires_ns = least(api_keys.expires_ns, excluded.expires_ns),
    revoked_ns = least(api_keys.revoked_ns, excluded.revoked_ns)
"""

_T = TypeVar("_T")


class PostgresKeys:
    """A KeyStore (store.py) in a PostgreSQL database, whose tables are made when it is first used."""

    def __init__(self, address: PostgresAddress, known: tuple[Migration, ...], wall_ns: Callable[[], int]) -> None:
        self._postgres = Postgres(address, self._opened)
        self._known = known
        self._wall_ns = wall_ns
        self._fresh = True  # nothing has been read over this connection

    async def changes(self, since: int) -> Changes:
        """See KeyStore.changes."""
        return await self._run(lambda session: self._changes(session, since))

    async def write(self, keys: Sequence[Key]) -> None:
        """See KeyStore.write."""
        await self._run(lambda session: _write(session, keys))

    async def close(self) -> None:
        await self._postgres.close()

    async def _run(self, work: Callable[[Session], Awaitable[_T]]) -> _T:
        try:
            return await self._postgres.run(work)
        except (StoreError, RejectedError, SchemaTooNewError, msgspec.DecodeError) as error:
            raise KeyStoreError(str(error)) from error

    async def _opened(self, session: Session) -> None:
        await migrate(session, self._known, self._wall_ns())
        self._fresh = True

    async def _changes(self, session: Session, since: int) -> Changes:
        version = int(await session.fetchval(_VERSION, timeout=LOOK_TIMEOUT_S))
        whole = self._fresh or version < since
        if version == since and not whole:
            return Changes((), version, False)
        # A change between the two looks is read now and once more next time; never missed.
        rows = await session.fetch(_CHANGED, 0 if whole else since, timeout=LOOK_TIMEOUT_S)
        keys = tuple(key_of(row.values()) for row in rows)
        self._fresh = False
        return Changes(keys, version, whole)


async def _write(session: Session, keys: Sequence[Key]) -> None:
    await session.execute(_LOCK)
    for key in keys:
        await session.execute(_WRITE, *row_of(key))
    await session.execute("COMMIT")
