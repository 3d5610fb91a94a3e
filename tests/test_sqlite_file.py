"""The shell of what is kept in SQLite: one thread, in order; a failure is its owner's, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgegw.ledger.schema import Migration
from edgegw.ledger.sqlite_file import SqliteFile
from edgegw.ledger.store import SchemaTooNewError

KNOWN = (Migration(1, "0001_things.sql", "CREATE TABLE things (name TEXT PRIMARY KEY);"),)


class TakenError(Exception):
    pass


class AwayError(Exception):
    pass


FAILURES = (((sqlite3.IntegrityError,), TakenError), ((sqlite3.Error, OSError), AwayError))


class House:
    def __init__(self, path: Path) -> None:
        self.opened = 0
        self.file = SqliteFile(
            path, KNOWN, lambda: 1, name="things", busy_s=0.05, failures=FAILURES, opened=self._opened
        )

    def _opened(self, connection: sqlite3.Connection) -> None:
        self.opened += 1

    async def names(self) -> list[str]:
        return await self.file.run(lambda db: [name for (name,) in db.execute("SELECT name FROM things")])

    async def add(self, *names: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("BEGIN")
            for name in names:
                db.execute("INSERT INTO things VALUES (?)", (name,))
            db.execute("COMMIT")

        await self.file.run(work)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path / "things.db")
    yield house
    await house.file.close()


async def test_the_first_line_that_fits_says_what_is_raised_and_nothing_is_left_behind(house: House) -> None:
    await house.add("one")
    with pytest.raises(TakenError, match=r"things\.db: UNIQUE"):
        await house.add("two", "one")
    assert await house.names() == ["one"]
    with pytest.raises(AwayError, match=r"things\.db: no such table"):
        await house.file.run(lambda db: db.execute("SELECT * FROM others"))
    with pytest.raises(ZeroDivisionError):
        await house.file.run(lambda db: 1 // 0)
    assert await house.names() == ["one"]
    assert house.opened == 4, "after each failure the connection is a new one"


async def test_work_is_done_in_one_thread_in_the_order_in_which_it_was_asked_for(house: House) -> None:
    seen: list[tuple[int, int]] = []

    def work(number: int) -> Callable[[sqlite3.Connection], None]:
        return lambda _: seen.append((number, threading.get_ident()))

    await asyncio.gather(*(house.file.run(work(number)) for number in range(20)))
    assert [number for number, _ in seen] == list(range(20))
    threads = {thread for _, thread in seen}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_file_that_is_gone_is_made_again(house: House) -> None:
    await house.add("one")
    for ending in ("", "-wal", "-shm"):
        os.unlink(f"{house.file.path}{ending}")
    assert await house.names() == []
    assert house.opened == 2


async def test_a_newer_schema_is_refused_as_what_it_is(house: House) -> None:
    await house.add("one")
    await house.file.run(lambda db: db.execute("INSERT INTO schema_migrations VALUES (2, 'later', 1)"))
    later = House(house.file.path)
    with pytest.raises(SchemaTooNewError):
        await later.names()
    await later.file.close()
