"""The books as something to ask: rows for questions (questions.py), one consistent view for many, rows as they come.

`Books` is the same for both databases; SQLite's are here, those in PostgreSQL in postgres/books.py. The SQLite file is
opened read-only, whether a gateway is writing it or none is running. Whoever asks has nothing else to do meanwhile (a
command), so SQLite's calls are made on the spot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from edgegw.ledger.questions import YES_OR_NO, Dialect, Filter, Question, Row, Table, conditions, select
from edgegw.ledger.schema import Migration, version

BUSY_TIMEOUT_S = 5.0
# Rows that one look of `follow` hands out at most; the rest comes with the next look, at once.
FOLLOW_ROWS_MAX = 1000


class NoLedgerError(Exception):
    """There is no database to read, it is none of ours, or it does not answer."""


class Books(Protocol):
    """All of it raises NoLedgerError. `name` is for people and holds no secret."""

    name: str
    dialect: Dialect

    async def rows(self, question: Question) -> list[Row]:
        """What the database answers; ids are text, what says yes or no is a bool."""
        ...

    def snapshot(self) -> AbstractAsyncContextManager[None]:
        """All questions within see the books as they were at the first one."""
        ...

    def follow(self, table: Table, chosen: Filter, last: int) -> AsyncGenerator[list[Row], None]:
        """Rows as they are written, without end, after the `last` ones that are there; an empty portion when there is
        nothing new."""
        ...

    async def close(self) -> None: ...


class SqliteBooks:
    """Books in a SQLite file. `known`: the schema that this program writes (schema.py)."""

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path, known: tuple[Migration, ...]) -> None:
        self.name = str(path)
        self._path = path
        self._known = known
        self._connection: sqlite3.Connection | None = None

    async def rows(self, question: Question) -> list[Row]:
        """See Books.rows."""
        with self._reading() as connection:
            return [_row(row, question.yes_or_no) for row in connection.execute(question.text, question.values)]

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """See Books.snapshot."""
        with self._reading() as connection:
            connection.execute("BEGIN")
        try:
            yield
        finally:
            with self._reading() as connection:
                connection.execute("ROLLBACK")

    async def follow(self, table: Table, chosen: Filter, last: int) -> AsyncGenerator[list[Row], None]:
        """See Books.follow: rowid is the order in which rows were written."""
        where, values = conditions(table, chosen)
        with self._reading() as connection:
            (newest,) = connection.execute(f"SELECT coalesce(max(rowid), 0) FROM {table}").fetchone()
            (seen,) = connection.execute(
                f"SELECT coalesce(min(at) - 1, ?) "
                f"FROM (SELECT rowid AS at FROM {table} {where} ORDER BY rowid DESC LIMIT ?)",
                (newest, *values, last),
            ).fetchone()
        further = f"{'AND' if where else 'WHERE'} rowid > ? ORDER BY rowid LIMIT ?"
        text = f"{select(table, 'rowid AS at')} {where} {further}"
        while True:
            with self._reading() as connection:
                found = connection.execute(text, (*values, seen, FOLLOW_ROWS_MAX))
                rows = [_row(row, YES_OR_NO) for row in found]
            for row in rows:
                seen = row.pop("at")
            yield rows

    async def close(self) -> None:
        """See Books.close."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connected()
        except sqlite3.Error as error:
            raise NoLedgerError(f"cannot read the ledger at {self.name}: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            if not self._path.is_file():
                raise NoLedgerError(f"no ledger at {self.name}: no gateway has run with this state directory yet")
            address = f"{self._path.absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                connection.row_factory = sqlite3.Row
                have = version(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            check_version(self.name, have, self._known[-1].version)
        return self._connection


def check_version(name: str, have: int, known: int) -> None:
    """Raise NoLedgerError when a database lacks what this program would ask for. A newer one has more, which we leave
    out."""
    if have == 0:
        raise NoLedgerError(f"cannot read the ledger at {name}: there are no tables of ours in it")
    if have < known:
        raise NoLedgerError(
            f"cannot read the ledger at {name}: its schema is version {have}, this program reads {known}; "
            "a gateway of this version brings it up to date when it starts"
        )


def _row(found: sqlite3.Row, yes_or_no: frozenset[str]) -> Row:
    row: Row = dict(found)
    for name in yes_or_no & row.keys():
        value = row[name]
        row[name] = None if value is None else bool(value)
    return row
