"""Content in PostgreSQL: the table `request_contents` of the database that also holds the rows.

Over a connection of its own, so that the books never queue behind it. Several gateways may write and trim the same
table: what one of them is trimming the others leave alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from edgegw.content.record import COLUMNS, Content, content_of, content_row
from edgegw.content.store import Chosen
from edgegw.ledger.postgres.connection import BEGIN, Postgres, Session
from edgegw.ledger.postgres.schema import LOCK_CONTENTS, migrate
from edgegw.ledger.schema import Migration
from edgegw.settings import PostgresAddress

# Rows that go in one transaction.
PORTION_ROWS = 256

_NAMES = ", ".join(COLUMNS)
_TYPES = ("uuid", "text", "bigint", "bigint", "text", "boolean", "boolean", "boolean", "bytea", "bytea")
_ARRAYS = ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(_TYPES, 1))
_INSERT = f"INSERT INTO request_contents ({_NAMES}) SELECT * FROM unnest({_ARRAYS}) ON CONFLICT DO NOTHING"
_FIND = f"SELECT {_NAMES} FROM request_contents WHERE request_id = $1"
_DELETE = "DELETE FROM request_contents WHERE request_id IN"
_TOO_OLD = (
    f"{_DELETE} (SELECT request_id FROM request_contents WHERE stored_ns < $1 ORDER BY stored_ns LIMIT {PORTION_ROWS})"
)
_SIZE = "SELECT coalesce(sum(bytes), 0)::bigint FROM request_contents"
# Of the oldest, those that come before the excess is covered.
_EXCESS = f"""
{_DELETE} (
    SELECT request_id FROM (
        SELECT request_id, sum(bytes) OVER (ORDER BY stored_ns, request_id) - bytes AS before
          FROM (SELECT request_id, stored_ns, bytes FROM request_contents ORDER BY stored_ns, request_id
                LIMIT {PORTION_ROWS}) AS oldest
    ) AS summed WHERE before < $1
)
"""


class PostgresContents:
    """A ContentStore (store.py) in a PostgreSQL database, whose tables are made when it is first used."""

    def __init__(self, address: PostgresAddress, known: tuple[Migration, ...], wall_ns: Callable[[], int]) -> None:
        self._known = known
        self._wall_ns = wall_ns
        self._postgres = Postgres(address, self._opened)

    async def write(self, contents: Sequence[Content]) -> None:
        """See ContentStore.write."""
        await self._postgres.run(lambda session: _write(session, contents))

    async def trim(self, before_ns: int, bytes_max: int) -> int:
        """See ContentStore.trim."""
        return await self._postgres.run(lambda session: _trim(session, before_ns, bytes_max))

    async def find(self, request_id: str) -> Content | None:
        """See ContentStore.find."""
        return await self._postgres.run(lambda session: _find(session, request_id))

    async def delete(self, chosen: Chosen) -> int:
        """See ContentStore.delete."""
        clause, values = chosen.clause("${}")
        query = f"{_DELETE} (SELECT request_id FROM request_contents WHERE {clause} LIMIT {PORTION_ROWS})"
        deleted = 0
        while portion := await self._postgres.run(partial(_delete, query=query, values=values)):
            deleted += portion
        return deleted

    async def rest(self) -> None:
        """See ContentStore.rest."""
        await self._postgres.close()

    async def close(self) -> None:
        await self._postgres.close()

    async def _opened(self, session: Session) -> None:
        await migrate(session, self._known, self._wall_ns())


async def _write(session: Session, contents: Sequence[Content]) -> None:
    await session.execute(BEGIN)
    await session.execute(_INSERT, *zip(*map(content_row, contents), strict=True))
    await session.execute("COMMIT")


async def _trim(session: Session, before_ns: int, bytes_max: int) -> int:
    await session.execute(BEGIN)
    trimmed = 0
    if await session.fetchval(f"SELECT pg_try_advisory_xact_lock({LOCK_CONTENTS})"):
        trimmed = _count(await session.execute(_TOO_OLD, before_ns))
        if not trimmed:
            excess = await session.fetchval(_SIZE) - bytes_max
            if excess > 0:
                trimmed = _count(await session.execute(_EXCESS, excess))
    await session.execute("COMMIT")
    return trimmed


async def _find(session: Session, request_id: str) -> Content | None:
    row = await session.fetchrow(_FIND, request_id)
    return None if row is None else content_of(tuple(row))


async def _delete(session: Session, query: str, values: Sequence[str | int]) -> int:
    await session.execute(BEGIN)
    deleted = _count(await session.execute(query, *values))
    await session.execute("COMMIT")
    return deleted


def _count(tag: str) -> int:
    """Of `DELETE 17`."""
    return int(tag.rpartition(" ")[2])
