"""Books (ledger/books.py) in PostgreSQL: questions over a connection that only reads.

Gateways commit in any order: a row may come to light after others that were stored later than it. Who follows along
therefore looks back, as far as there are transactions that may still bring something, and remembers what it has shown.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import TypeVar
from uuid import UUID

from edgegw.ledger.books import NoLedgerError, check_version
from edgegw.ledger.postgres.connection import Postgres, Session
from edgegw.ledger.postgres.schema import version
from edgegw.ledger.questions import Dialect, Filter, Question, Row, Table, conditions, newest, select
from edgegw.ledger.schema import Migration
from edgegw.ledger.store import RejectedError, StoreError
from edgegw.settings import PostgresAddress

# How far a follower looks back at least: a transaction begins, and so stores, before it can be seen to write. And at
# most: one that has hung for longer is not waited for; its rows are in the lists, and not in what is followed.
LOOK_BACK_MIN_S = 10
LOOK_BACK_MAX_S = 60
# Rows of which a follower asks at a time.
FOLLOW_ROWS_MAX = 500

_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 0"
# Of transactions of other roles we may not be told.
_MARK = f"""
SELECT greatest(
    least(now() - interval '{LOOK_BACK_MIN_S} s', min(xact_start)), now() - interval '{LOOK_BACK_MAX_S} s') AS mark
  FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL
"""
_KEY: dict[Table, tuple[str, ...]] = {"requests": ("id",), "provider_attempts": ("request_id", "number")}

_T = TypeVar("_T")
_Key = tuple[object, ...]


class PostgresBooks:
    """`known`: the schema that this program writes (schema.py)."""

    dialect: Dialect = "postgres"

    def __init__(self, address: PostgresAddress, known: tuple[Migration, ...]) -> None:
        self.name = str(address).partition("?")[0]
        self._postgres = Postgres(address, self._opened)
        self._known = known
        self._snapshot: Session | None = None

    async def rows(self, question: Question) -> list[Row]:
        """See Books.rows."""
        text = _numbered(question.text)

        async def ask(session: Session) -> list[Row]:
            if self._snapshot is not None and session is not self._snapshot:
                raise StoreError("the connection broke, and with it the view of the books")
            return [
                {name: _plain(value) for name, value in row.items()}
                for row in await session.fetch(text, *question.values)
            ]

        return await self._run(ask)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """See Books.snapshot."""

        async def begin(session: Session) -> Session:
            await session.execute(_SNAPSHOT)
            return session

        self._snapshot = await self._run(begin)
        try:
            yield
        finally:
            self._snapshot = None
            await self._run(lambda session: session.execute("ROLLBACK"))

    async def follow(self, table: Table, chosen: Filter, last: int) -> AsyncGenerator[list[Row], None]:
        """See Books.follow."""
        mark = await self._mark()
        shown = dict(await self._keys(table, chosen, mark))
        rows = await self.rows(newest(table, chosen, last)) if last else []
        shown |= {_key(table, row): mark for row in rows if _key(table, row) not in shown}
        yield rows[::-1]
        while True:
            next_mark = await self._mark()
            found = await self._keys(table, chosen, mark)
            news = [key for key, _ in found if key not in shown]
            for start in range(0, len(news), FOLLOW_ROWS_MAX):
                yield await self._rows_of(table, news[start : start + FOLLOW_ROWS_MAX])
            # What was stored before the mark will not be found again.
            mark = next_mark
            shown = {key: at for key, at in (shown | dict(found)).items() if at >= mark}
            if not news:
                yield []

    async def close(self) -> None:
        """See Books.close."""
        await self._postgres.close()

    async def _mark(self) -> datetime:
        """What was stored before this moment is there by now."""
        ((row),) = await self.rows(Question(_MARK))
        mark = row["mark"]
        assert isinstance(mark, datetime)
        return mark

    async def _keys(self, table: Table, chosen: Filter, mark: datetime) -> list[tuple[_Key, datetime]]:
        """Of rows that were stored at the mark or later, in that order, and when."""
        where, values = conditions(table, chosen)
        names = ", ".join(_KEY[table])
        text = f"SELECT stored_at, {names} FROM {table} {where} {'AND' if where else 'WHERE'} stored_at >= ? "
        found: list[tuple[_Key, datetime]] = []
        for row in await self.rows(Question(f"{text} ORDER BY stored_at, {names}", (*values, mark))):
            stored_at = row["stored_at"]
            assert isinstance(stored_at, datetime)
            found.append((_key(table, row), stored_at))
        return found

    async def _rows_of(self, table: Table, keys: list[_Key]) -> list[Row]:
        ids = list(dict.fromkeys(key[0] for key in keys))
        marks = ", ".join("?" * len(ids))
        found = await self.rows(Question(f"{select(table)} WHERE {_KEY[table][0]} IN ({marks})", tuple(ids)))
        rows = {_key(table, row): row for row in found}
        return [rows[key] for key in keys if key in rows]

    async def _opened(self, session: Session) -> None:
        check_version(self.name, await version(session), self._known[-1].version)

    async def _run(self, work: Callable[[Session], Awaitable[_T]]) -> _T:
        try:
            return await self._postgres.run(work)
        except (StoreError, RejectedError) as error:
            raise NoLedgerError(f"cannot read the ledger: {error}") from error


def _numbered(text: str) -> str:
    """`?` as $1, $2, … No text of ours has one that means anything else."""
    numbers = count(1)
    first, *rest = text.split("?")
    return first + "".join(f"${next(numbers)}{part}" for part in rest)


def _plain(value: object) -> object:
    """Ids as text, sums as whole numbers."""
    if isinstance(value, UUID):
        return str(value)
    return int(value) if isinstance(value, Decimal) else value


def _key(table: Table, row: Row) -> _Key:
    return tuple(row[name] for name in _KEY[table])
