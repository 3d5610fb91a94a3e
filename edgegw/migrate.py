"""`edgegw migrate`: which version the schema of a database has, and bringing it up, for either database.

A gateway does the same when it starts. The command is for those who want it done before, or by a role that may.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgegw.ledger.schema import Migration, migrations, open_database, version
from edgegw.ledger.store import RejectedError, SchemaTooNewError, StoreError
from edgegw.settings import Secret, Settings, parse_postgres

if TYPE_CHECKING:
    from edgegw.ledger.postgres.connection import Session

BUSY_TIMEOUT_S = 10.0
# A gateway whose role may not make partitions has them from here.
DAYS_AHEAD = 7

_T = TypeVar("_T")


class MigrateError(Exception):
    """The database cannot be reached or changed; the words say why."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a database compares with this program. `name` is for people, and holds no secret."""

    name: str
    have: int
    known: tuple[Migration, ...]

    @property
    def missing(self) -> tuple[Migration, ...]:
        return self.known[self.have :]

    @property
    def current(self) -> bool:
        return self.have == self.known[-1].version

    def __str__(self) -> str:
        has = f"{self.name} has schema version {self.have}" if self.have else f"{self.name} has no tables of ours"
        if self.current:
            return f"{has}, as this program needs"
        if self.missing:
            names = ", ".join(migration.name for migration in self.missing)
            return f"{has}; missing: {names} (run `edgegw migrate up`, or start a gateway of this version)"
        return f"{has}, this program knows up to {self.known[-1].version}: it was written by a newer edgegw"


def standing(settings: Settings) -> Standing:
    """Changes nothing. Raises MigrateError."""
    url = settings.postgres_url
    if url is None:
        path = Path(settings.sqlite_path)
        return Standing(str(path), _sqlite_version(path), migrations("sqlite"))
    try:
        from edgegw.ledger.postgres import schema
    except ModuleNotFoundError as error:
        raise MigrateError(f"storage.database_url needs {error.name}: pip install 'edgegw[postgres]'") from None
    return Standing(_name(url), _in_postgres(url, schema.version), migrations("postgres"))


def up(settings: Settings) -> list[str]:
    """What was done, as lines for people. Raises MigrateError."""
    before = standing(settings)
    url = settings.postgres_url
    if url is None:
        with closing(_open_sqlite(Path(settings.sqlite_path), before.known)):
            return [f"applied {migration.name}" for migration in before.missing]
    from edgegw.ledger.postgres import days, partitions, schema

    async def work(session: Session) -> list[str]:
        applied = await schema.migrate(session, before.known, time.time_ns())
        today = days.day_of_ns(time.time_ns())
        missing = set(range(today, today + DAYS_AHEAD + 1)) - await partitions.days_there(session)
        await partitions.make_days(session, missing)
        made = [f"made the partitions of {days.partition_of('', day)[1:]}" for day in sorted(missing)]
        return [*(f"applied {migration.name}" for migration in applied), *made]

    return _in_postgres(url, work)


def _name(url: Secret) -> str:
    address = parse_postgres(url.reveal())
    return f"PostgreSQL {address.place}"


def _in_postgres(url: Secret, work: Callable[[Session], Awaitable[_T]]) -> _T:
    from edgegw.ledger.postgres.connection import Postgres

    async def once() -> _T:
        postgres = Postgres(parse_postgres(url.reveal()))
        try:
            return await postgres.run(work)
        finally:
            await postgres.close()

    try:
        return asyncio.run(once())
    except (StoreError, RejectedError, SchemaTooNewError) as error:
        raise MigrateError(str(error)) from error


def _sqlite_version(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
            return version(connection)
    except sqlite3.Error as error:
        raise MigrateError(f"{path}: {error}") from error


def _open_sqlite(path: Path, known: tuple[Migration, ...]) -> sqlite3.Connection:
    try:
        return open_database(path, known, time.time_ns(), BUSY_TIMEOUT_S)
    except (sqlite3.Error, OSError, SchemaTooNewError) as error:
        raise MigrateError(f"{path}: {error}") from error
