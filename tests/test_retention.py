"""Rows become no older than they may: in portions, with whoever writes in between, and the sums stay."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from ledger_traces import WAIT_S, WALL_NS, die, open_journal, play, ship_all, sqlite_store
from rig import Simulator, StartGateway, ask, chat, eventually, providers

from edgegw.clock import ManualClock, uuid7
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.sqlite_file import SqliteFile
from edgegw.ledger.sqlite_retention import HOUR_NS, PORTION_REQUESTS, SqliteRetention
from edgegw.ledger.store import StoreError
from edgegw.ledger.upkeep import Upkeeper

HOUR_MS = 3_600_000
FIRST_HOUR_NS = (WALL_NS // HOUR_NS + 1) * HOUR_NS  # the first whole hour after the first rows
TO_FIRST_HOUR_MS = (FIRST_HOUR_NS - WALL_NS) // 1_000_000
DAY_S = 86_400.0
DAY_NS = 24 * HOUR_NS

T = TypeVar("T")


class Books:
    """A database with rows of hours -1, 0, 1, … about FIRST_HOUR_NS."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "edgegw.db"
        self.store: SqliteStore = sqlite_store(self.path)
        self._lives = 0

    async def add(self, *hours_and_numbers: tuple[int, int]) -> None:
        """So many requests, with two attempts each, in such an hour."""
        self._lives += 1
        journal = open_journal(self.directory, self._lives)
        for hour, number in hours_and_numbers:
            for each in range(number):
                play(journal, TO_FIRST_HOUR_MS + hour * HOUR_MS + each, failures=1)
        die(journal)
        await ship_all(self.directory, self.store)

    def ask(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    def hours(self, table: str = "requests", column: str = "started_ns") -> dict[int, int]:
        """How many rows there are by hour."""
        query = f"SELECT {column} / {HOUR_NS}, count(*) FROM {table} GROUP BY 1"
        return {hour - FIRST_HOUR_NS // HOUR_NS: number for hour, number in self.ask(query)}

    @property
    def kept_since_ns(self) -> int:
        ((kept_since_ns,),) = self.ask("SELECT kept_since_ns FROM retention")
        assert isinstance(kept_since_ns, int)
        return kept_since_ns


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    books = Books(tmp_path)
    yield books
    await books.store.close()


def retention(file: SqliteFile, seconds: float = DAY_S) -> SqliteRetention:
    return SqliteRetention(file, seconds, pause_s=0)


async def test_what_is_older_goes_with_its_attempts_and_the_sums_stay(books: Books) -> None:
    await books.add((-1, 2 * PORTION_REQUESTS), (0, PORTION_REQUESTS + 1), (1, 3))
    sums = books.ask("SELECT * FROM usage_hours ORDER BY 1, 2, 3, 4, 5, 6")
    for now_ns, left in (
        (FIRST_HOUR_NS + DAY_NS - 1, {-1: 2 * PORTION_REQUESTS, 0: PORTION_REQUESTS + 1, 1: 3}),
        (FIRST_HOUR_NS + DAY_NS, {0: PORTION_REQUESTS + 1, 1: 3}),
        (FIRST_HOUR_NS + DAY_NS + HOUR_NS - 1, {0: PORTION_REQUESTS + 1, 1: 3}),
        (FIRST_HOUR_NS + DAY_NS + HOUR_NS, {1: 3}),
        (FIRST_HOUR_NS + 2 * DAY_NS, {}),
    ):
        await retention(books.store.file).keep(now_ns)
        assert books.hours() == left
        assert books.hours("provider_attempts") == {hour: 2 * number for hour, number in left.items()}
        assert books.kept_since_ns == (now_ns - DAY_NS) // HOUR_NS * HOUR_NS
    assert books.ask("SELECT * FROM usage_hours ORDER BY 1, 2, 3, 4, 5, 6") == sums


async def test_a_longer_retention_brings_nothing_back_and_says_so(books: Books) -> None:
    await books.add((0, 1))
    await retention(books.store.file).keep(FIRST_HOUR_NS + DAY_NS)
    await retention(books.store.file, 90 * DAY_S).keep(FIRST_HOUR_NS + DAY_NS)
    assert books.kept_since_ns == FIRST_HOUR_NS


async def test_a_span_that_reaches_back_before_1970_keeps_everything(books: Books) -> None:
    await books.add((0, 1))
    await retention(books.store.file, 36_500 * DAY_S).keep(FIRST_HOUR_NS)
    assert (books.hours(), books.kept_since_ns) == ({0: 1}, 0)


class Recorder:
    """A SqliteFile that remembers in which order things were done, and does something else before the n-th."""

    def __init__(self, file: SqliteFile, before: Callable[[int], None]) -> None:
        self._file = file
        self._before = before
        self.done: list[str] = []

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._before(len([name for name in self.done if name == "portion"]))
        result = await self._file.run(work)
        self.done.append("portion")
        return result


async def test_who_writes_waits_for_one_portion_at_most(books: Books) -> None:
    await books.add((0, 4 * PORTION_REQUESTS))
    writes: list[asyncio.Task[None]] = []

    async def write() -> None:
        await books.store.file.run(lambda _: None)
        recorder.done.append("write")

    def asks_now(number: int) -> None:
        writes.append(asyncio.get_running_loop().create_task(write()))

    recorder = Recorder(books.store.file, asks_now)
    await retention(recorder).keep(FIRST_HOUR_NS + 2 * DAY_NS)  # type: ignore[arg-type]
    await asyncio.gather(*writes)
    portions = 0
    for name in recorder.done:
        portions = portions + 1 if name == "portion" else 0
        assert portions <= 2, recorder.done  # the one under way when it was asked for, and the one asked for before
    assert recorder.done.count("portion") == 5, "the mark, and four times a portion"


@pytest.mark.parametrize("portion", range(5))
async def test_cancelled_in_between_and_done_by_the_next(books: Books, portion: int) -> None:
    await books.add((0, 4 * PORTION_REQUESTS), (1, 1))

    def cancel(number: int) -> None:
        if number == portion:
            raise asyncio.CancelledError

    recorder = Recorder(books.store.file, cancel)
    with pytest.raises(asyncio.CancelledError):
        await retention(recorder).keep(FIRST_HOUR_NS + HOUR_NS + DAY_NS)  # type: ignore[arg-type]
    left, attempts = books.hours(), books.hours("provider_attempts")
    assert attempts == {hour: 2 * number for hour, number in left.items()}, "no request without its attempts"
    assert books.kept_since_ns == (FIRST_HOUR_NS + HOUR_NS if portion else 0), "said before it is done"
    await retention(books.store.file).keep(FIRST_HOUR_NS + HOUR_NS + DAY_NS)
    assert books.hours() == {1: 1}


async def test_what_the_database_does_not_do_is_the_upkeepers_to_repeat(books: Books) -> None:
    await books.add((0, 1))
    with closing(sqlite3.connect(books.path, isolation_level=None)) as rude:
        rude.execute("ALTER TABLE retention RENAME TO elsewhere")
        with pytest.raises(StoreError, match="retention"):
            await retention(books.store.file).keep(FIRST_HOUR_NS + 2 * DAY_NS)
        assert books.hours() == {0: 1}
        rude.execute("ALTER TABLE elsewhere RENAME TO retention")
    await retention(books.store.file).keep(FIRST_HOUR_NS + 2 * DAY_NS)
    assert books.hours() == {}


class Chore:
    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.asked_ns: list[int] = []

    async def keep(self, now_ns: int) -> None:
        self.asked_ns.append(now_ns)
        if self.outcomes and (error := self.outcomes.pop(0)) is not None:
            raise error


async def test_what_fails_is_told_once_and_hinders_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "edgegw.ledger.upkeep")
    clock = ManualClock(wall_ns=77)
    failing, other = Chore(StoreError("books.db: locked"), StoreError("books.db: locked"), None), Chore()
    upkeeper = Upkeeper([failing, other], clock)
    assert [await upkeeper.keep() for _ in range(3)] == [False, False, True]
    assert other.asked_ns == [77, 77, 77]
    assert (upkeeper.tally.errors, upkeeper.tally.failing) == (2, None)
    assert [record.message for record in caplog.records] == [
        "the upkeep of the ledger fails, and is tried again: books.db: locked",
        "the upkeep of the ledger is done again",
    ]


async def test_a_defect_is_shown_with_its_place_and_is_no_end_either(caplog: pytest.LogCaptureFixture) -> None:
    upkeeper = Upkeeper([Chore(ZeroDivisionError("oh"), ZeroDivisionError("oh"))], ManualClock())
    assert [await upkeeper.keep() for _ in range(3)] == [False, False, True]
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_it_is_done_at_the_start_and_then_by_the_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("edgegw.ledger.upkeep.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await Upkeeper([Chore(None, StoreError("away"))], ManualClock()).run()
    assert slept == [3600.0, 60.0, 3600.0]


@pytest.mark.system
def test_a_gateway_deletes_what_is_older_at_its_start_and_keeps_the_sums(
    simulator: Simulator, gateway: StartGateway
) -> None:
    settings = {"providers": providers(simulator), "models": {"*": {"targets": ["sim/*"]}}}
    before = gateway(settings)
    for _ in range(3):
        assert chat(before.url, "gpt-5-mini").status == 200
    before.stop()
    path = before.state_dir / "edgegw.db"

    def asked(query: str) -> int:
        with closing(sqlite3.connect(path)) as connection:
            return int(connection.execute(query).fetchone()[0])

    two_hours_ago = uuid7(time.time_ns() - 2 * HOUR_NS, 7)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (newest,) = connection.execute("SELECT max(id) FROM requests").fetchone()
        connection.execute("UPDATE provider_attempts SET request_id = ? WHERE request_id = ?", (two_hours_ago, newest))
        connection.execute("UPDATE requests SET id = ? WHERE id = ?", (two_hours_ago, newest))
    after = gateway({**settings, "storage": {"database_url": f"sqlite:///{path}", "retention": "1h"}})
    eventually("two rows", lambda: asked("SELECT count(*) FROM requests"), lambda rows: rows == 2, WAIT_S)
    assert asked("SELECT count(*) FROM provider_attempts") == 2
    assert asked("SELECT sum(requests) FROM usage_hours") == 3
    assert asked("SELECT kept_since_ns FROM retention") % HOUR_NS == 0
    figures = ask(after.admin_url, "GET", "/metrics").body.decode()
    assert "edgegw_ledger_upkeep_errors_total 0" in figures
    code, said = after.stop()
    assert (code, "now deleted: 1" in said) == (0, True), said
