"""The shipper is cancelled and killed everywhere: at every await, every statement and every file operation, one after
the other. After each a fresh one goes on; at the end the books are those of a shipper that nobody disturbed.

What it ships has everything in it: lives that are dead, damaged and alive, several segments, retries, refusals, streams
that stay open, and rows that no column holds.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import shutil
import sqlite3
import tempfile
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ledger_traces import (
    UNPAYABLE,
    WAIT_S,
    WALL_NS,
    begin,
    die,
    open_journal,
    play,
    priced,
    refuse,
    sqlite_store,
)
from rig import memory

from edgegw.clock import ManualClock
from edgegw.ledger.life import JOURNAL_DIR, LIFE_FILE
from edgegw.ledger.rejected import rows_set_aside
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.store import Store

BATCH_ROWS = 24
LONG = "t" * 512  # so that few records fill a segment

Books = dict[str, object]


class Crash(BaseException):
    """The control process is gone, here."""


@pytest.fixture(autouse=True)
def tidied() -> Iterator[None]:
    """What a crash abandoned asyncio complains of when it is collected. Not within another test: one that parsed
    Python just then failed, because the complaint's traceback is made with the same parser."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory where a sync costs nothing, if there is one: hundreds of databases are made here."""
    with tempfile.TemporaryDirectory(dir=memory()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def prepared(place: Path) -> Path:
    """A state directory as workers leave it."""
    state_dir = place / "prepared"
    dead = open_journal(state_dir, 1)
    for number in range(1, 16):
        match number % 5:
            case 0:
                refuse(dead, number)
            case 1:
                begin(dead, number, failures=1)
            case _:
                play(dead, number, failures=number % 5 - 2, within_end=number % 2 == 0)
    die(dead)
    damaged = open_journal(state_dir, 2)
    for number in range(100, 106):
        play(damaged, number)
    damaged._map[damaged._at - 40] ^= 0xFF  # in the last record
    die(damaged)
    alive = open_journal(state_dir, 3)
    begin(alive, 200, failures=1)
    play(alive, 201, tenant=LONG, failures=2)
    play(alive, 202, target=UNPAYABLE, within_end=True)
    for number in range(203, 232):
        play(alive, number, tenant=LONG, within_end=True)
    die(alive)  # until a copy of it is locked
    return state_dir


@contextmanager
def ground(prepared: Path) -> Iterator[Path]:
    """A copy, whose third life is alive."""
    at = prepared.with_name("state")
    shutil.copytree(prepared, at)
    (alive,) = (at / JOURNAL_DIR).glob("0-1003-*")
    with (alive / LIFE_FILE).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield at
    shutil.rmtree(at)


@types.coroutine
def stepped(coroutine: Coroutine[Any, Any, None], at: int, then: Callable[[], None]) -> Generator[Any, None, int]:
    """Runs it, and at its `at`-th wait does something to it; how often it has waited."""
    waits = 0
    thrown: BaseException | None = None
    while True:
        try:
            waiting = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
        except StopIteration:
            return waits
        thrown = None
        if waits == at:
            then()
        waits += 1
        try:
            yield waiting
        except BaseException as error:
            thrown = error


def cancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def abandon() -> None:
    """As by kill -9: nothing of it runs any more, no `finally` either."""
    raise Crash


async def ship(state_dir: Path, at: int = -1, then: Callable[[], None] = abandon) -> int:
    """A control process's life, with SQLite; how many waits it had. Raises Crash and CancelledError."""
    store = sqlite_store(state_dir / "books.db")
    return await lived(state_dir, store, partial(quiet, store), at, then)


async def lived(
    state_dir: Path, store: Store, died: Callable[[], Awaitable[None]], at: int, then: Callable[[], None]
) -> int:
    """`died` does what the kernel would do for a process that is gone."""
    clock = ManualClock(wall_ns=WALL_NS)
    shipper = Shipper(state_dir, store, clock, priced, poll_s=0.002, batch_rows_max=BATCH_ROWS)
    life = shipper.run()

    async def run() -> int:
        return await stepped(life, at, then)

    running = asyncio.create_task(run())
    await asyncio.sleep(0)
    await shipper.stop(WAIT_S)
    await died()
    try:
        return await running
    finally:
        with suppress(Crash, RuntimeError):
            life.close()


async def quiet(store: SqliteStore) -> None:
    """Its thread ends what it is at: the transaction is whole by then or was never begun."""
    with suppress(Crash):
        await store.close()


def books(state_dir: Path) -> Books:
    with closing(sqlite3.connect(state_dir / "books.db")) as connection:
        found: Books = {
            table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr)
            for table in ("requests", "provider_attempts", "usage_hours", "checkpoints", "open_exchanges")
        }
    found["rejected"] = sorted(map(repr, rows_set_aside(state_dir)))
    found["journal"] = sorted(str(path.relative_to(state_dir)) for path in (state_dir / JOURNAL_DIR).rglob("*"))
    return found


@pytest.fixture(scope="module")
def undisturbed(prepared: Path) -> Books:
    with ground(prepared) as state_dir:
        asyncio.run(ship(state_dir))
        return books(state_dir)


def test_what_is_shipped_has_everything_in_it(undisturbed: Books) -> None:
    counted = {name: len(rows) for name, rows in undisturbed.items()}  # type: ignore[arg-type]
    assert counted["requests"] == 51
    assert counted["rejected"] == 2  # the request and its attempt
    assert counted["open_exchanges"] == 1
    alive, damaged = sorted(undisturbed["checkpoints"], key=lambda row: row[-1])  # type: ignore[call-overload]
    assert (alive[6:], damaged[6:]) == ((0, 0, 0, 0), (0, 1, 0, 1))  # gaps, torn, unreadable, ended
    assert len([path for path in undisturbed["journal"] if str(path).endswith(".seg")]) == 1  # type: ignore[attr-defined]


async def after(state_dir: Path, expected: Books) -> None:
    """A fresh control process goes on."""
    await ship(state_dir)
    found = books(state_dir)
    for name, rows in expected.items():
        assert found[name] == rows, name


@pytest.mark.parametrize("then", [cancel, abandon])
async def test_at_every_await(prepared: Path, undisturbed: Books, then: Callable[[], None]) -> None:
    with ground(prepared) as state_dir:
        waits = await ship(state_dir)
    assert waits > 20
    for at in range(waits):
        with ground(prepared) as state_dir:
            with pytest.raises((Crash, asyncio.CancelledError)):
                await ship(state_dir, at, then)
            await after(state_dir, undisturbed)


class Counted:
    """Calls that may be the last: `raising` is the number of the one at which everything ends. `torn`: half of what it
    should write is written."""

    def __init__(self, raising: int = -1, *, late: bool = False) -> None:
        self.calls = 0
        self.raised = False
        self._raising = raising
        self._late = late

    def wrap(self, real: Callable[..., Any], counts: Callable[..., bool] = lambda *_, **__: True) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.raised:
                raise Crash  # nothing is done by who is dead
            if not counts(*arguments, **named):
                return real(*arguments, **named)
            number = self.calls
            self.calls += 1
            if number != self._raising:
                return real(*arguments, **named)
            self.raised = True
            if self._late:
                real(*(argument[: len(argument) // 2] if real is os.write else argument for argument in arguments))
            raise Crash

        return call


async def swept(prepared: Path, expected: Books, patched: Callable[[Counted], Any], *, late: bool = False) -> int:
    """At every call that is counted; how many there were."""
    with ground(prepared) as state_dir, patched(counted := Counted()):
        await ship(state_dir)
    for number in range(counted.calls):
        with ground(prepared) as state_dir:
            with patched(at := Counted(number, late=late)), suppress(Crash):
                await ship(state_dir)
            assert at.raised
            await after(state_dir, expected)
    return counted.calls


@contextmanager
def statements(counted: Counted) -> Iterator[None]:
    class Connection(sqlite3.Connection):
        execute = counted.wrap(sqlite3.Connection.execute)
        executemany = counted.wrap(sqlite3.Connection.executemany)

    with pytest.MonkeyPatch.context() as patch:
        real = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *arguments, **named: real(*arguments, **named, factory=Connection))
        yield


@contextmanager
def commits(counted: Counted) -> Iterator[None]:
    class Connection(sqlite3.Connection):
        execute = counted.wrap(sqlite3.Connection.execute, lambda _, statement, *__: statement == "COMMIT")

    with pytest.MonkeyPatch.context() as patch:
        real = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *arguments, **named: real(*arguments, **named, factory=Connection))
        yield


@contextmanager
def file_operations(counted: Counted) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlink", "rmdir", "mkdir", "fsync", "write"):
            patch.setattr(os, name, counted.wrap(getattr(os, name)))
        patch.setattr(os, "open", counted.wrap(os.open, lambda _, flags, *__, **___: bool(flags & os.O_CREAT)))
        yield


@contextmanager
def writes(counted: Counted) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", counted.wrap(os.write, lambda fd, data: len(data) > 8))  # not the loop's own pipe
        yield


@pytest.mark.system
async def test_before_every_statement(prepared: Path, undisturbed: Books) -> None:
    assert await swept(prepared, undisturbed, statements) > 100


async def test_after_every_commit(prepared: Path, undisturbed: Books) -> None:
    assert await swept(prepared, undisturbed, commits, late=True) > 10


async def test_before_every_file_operation(prepared: Path, undisturbed: Books) -> None:
    assert await swept(prepared, undisturbed, file_operations) > 10


async def test_in_the_middle_of_every_write_to_a_file(prepared: Path, undisturbed: Books) -> None:
    assert await swept(prepared, undisturbed, writes, late=True) == 1
