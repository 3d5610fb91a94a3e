"""Adoption: what a gateway that is gone has left in its journal is stored by another one, once, under its own name."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from ledger_traces import (
    WALL_NS,
    begin,
    conclude,
    die,
    finish,
    open_journal,
    play,
    ship_all,
    states,
)

from edgegw import doors
from edgegw.app.parts import SystemClock
from edgegw.clock import ManualClock
from edgegw.doors import Doors, StartError
from edgegw.ledger.adoption import Adoption
from edgegw.ledger.assembly import unpriced
from edgegw.ledger.identity import ADOPTED, LOCK_FILE, identity
from edgegw.ledger.record import End, Record
from edgegw.ledger.schema import migrations
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.store import Batch, Checkpoint, StoreError
from edgegw.ledger.telling import Observer

WAIT_S = 10.0


def store_in(database: Path) -> Callable[[str], SqliteStore]:
    """One file for the books of all, as a PostgreSQL would be."""
    return lambda journal: SqliteStore(database, migrations("sqlite"), ManualClock(wall_ns=WALL_NS), journal)


def adoption(
    tmp_path: Path, *, store_for: Callable[[str], SqliteStore] | None = None, observers: Sequence[Observer] = ()
) -> Adoption:
    own = tmp_path / "gateways" / "own"
    own.mkdir(parents=True, exist_ok=True)
    return Adoption(
        own,
        [str(tmp_path / "gateways" / "*"), str(tmp_path / "nowhere")],
        store_for or store_in(tmp_path / "books.db"),
        SystemClock(),
        unpriced,
        observers,
        watch_every_s=0.002,
        patience_s=0.2,
    )


def gone(tmp_path: Path, name: str, number: int = 0) -> Path:
    """A gateway that has died with two workers: ten exchanges that ended, and one that did not."""
    state_dir = tmp_path / "gateways" / name
    for life in (1, 2):
        journal = open_journal(state_dir, life)
        for at in range(5):
            play(journal, number + life * 100 + at)
        if life == 2:
            begin(journal, number + 999)
        die(journal)
    return state_dir


def hold(state_dir: Path) -> int:
    """What a supervisor does."""
    state_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


async def test_what_is_left_is_stored_under_its_own_name_and_let_go(tmp_path: Path) -> None:
    first, second = gone(tmp_path, "a"), gone(tmp_path, "b", 5000)
    told: list[Record] = []
    adopting = adoption(tmp_path, observers=[told.extend])
    await adopting.look()
    assert sum(isinstance(record, End) for record in told) == 22
    found = states(tmp_path / "books.db")
    assert sorted(found.values()) == ["complete"] * 20 + ["interrupted"] * 2
    assert (adopting.adopted.journals, adopting.adopted.failures, adopting.adopted.shipping) == (2, 0, None)
    assert adopting.adopted.rows == 44
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        journals = connection.execute("SELECT journal, sum(requests) FROM usage_hours GROUP BY journal").fetchall()
    assert dict(journals) == {identity(first): 11, identity(second): 11}
    for state_dir in (first, second):
        assert not list((state_dir / "journal").iterdir())
        assert (state_dir / LOCK_FILE).read_bytes() == b""
        os.close(hold(state_dir))
    await adopting.look()
    assert (adopting.adopted.journals, adopting.adopted.rows) == (2, 44)


async def test_what_was_stored_before_is_not_stored_again(tmp_path: Path) -> None:
    state_dir = gone(tmp_path, "a")
    name = identity(state_dir)
    store = store_in(tmp_path / "books.db")(name)
    await ship_all(state_dir, store)
    await store.close()
    gone(tmp_path, "a")  # the same records once more, as if nothing had been deleted
    adopting = adoption(tmp_path)
    await adopting.look()
    assert len(states(tmp_path / "books.db")) == 11
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        assert connection.execute("SELECT sum(requests) FROM usage_hours").fetchone() == (11,)


async def test_a_gateway_that_lives_is_left_alone_and_so_are_we(tmp_path: Path) -> None:
    held = hold(gone(tmp_path, "a"))
    gone(tmp_path, "own", 5000)
    adopting = adoption(tmp_path)
    await adopting.look()
    assert not (tmp_path / "books.db").exists()
    os.close(held)
    await adopting.look()
    assert len(states(tmp_path / "books.db")) == 11
    assert len(list((tmp_path / "gateways" / "own" / "journal").iterdir())) == 2


async def test_a_worker_that_still_drains_is_waited_for_at_another_look(tmp_path: Path) -> None:
    state_dir = tmp_path / "gateways" / "a"
    journal = open_journal(state_dir)
    play(journal, 1)
    exchange = begin(journal, 2)
    adopting = adoption(tmp_path)
    await adopting.look()
    assert adopting.adopted.journals == 0
    os.close(hold(state_dir))  # it was let go
    finish(exchange.attempts[0])
    conclude(exchange)
    journal.end(exchange)
    journal.close()
    await adopting.look()
    assert list(states(tmp_path / "books.db").values()) == ["complete", "complete"]
    assert adopting.adopted.journals == 1


async def test_one_directory_that_cannot_be_had_is_no_matter_of_the_others(tmp_path: Path) -> None:
    broken = gone(tmp_path, "a")
    (broken / LOCK_FILE).mkdir()
    gone(tmp_path, "b", 5000)
    adopting = adoption(tmp_path)
    await adopting.look()
    assert len(states(tmp_path / "books.db")) == 11
    assert (adopting.adopted.journals, adopting.adopted.failures) == (1, 1)


class _Away(SqliteStore):
    """A database that is away."""

    async def read_checkpoint(self) -> Checkpoint:
        raise StoreError("away")

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        raise StoreError("away")


async def test_a_database_that_is_away_keeps_no_lock_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgegw.ledger.adoption.STOP_S", 0.05)
    state_dir = gone(tmp_path, "a")

    def away(journal: str) -> SqliteStore:
        return _Away(tmp_path / "books.db", migrations("sqlite"), ManualClock(wall_ns=WALL_NS), journal)

    await adoption(tmp_path, store_for=away).look()
    os.close(hold(state_dir))
    await adoption(tmp_path).look()
    assert len(states(tmp_path / "books.db")) == 11


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144])
async def test_adoption_may_be_ended_anywhere_and_is_gone_on_with(tmp_path: Path, turns: int) -> None:
    gone(tmp_path, "a")
    task = asyncio.create_task(adoption(tmp_path).run())
    for _ in range(turns):
        await asyncio.sleep(0.0002)
    task.cancel()
    await asyncio.wait((task,))
    adopting = adoption(tmp_path)
    await adopting.look()
    assert sorted(states(tmp_path / "books.db").values()) == ["complete"] * 10 + ["interrupted"]
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        assert connection.execute("SELECT sum(requests) FROM usage_hours").fetchone() == (11,)
        assert connection.execute("SELECT count(*) FROM open_exchanges").fetchone() == (0,)


def test_a_gateway_whose_directory_is_being_adopted_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir = tmp_path / "a"
    held = hold(state_dir)
    os.pwrite(held, ADOPTED, 0)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            os.close(held)

    monkeypatch.setattr(time, "sleep", sleep)
    Doors(("127.0.0.1", 0), ("127.0.0.1", 0), 1, str(state_dir)).close()
    assert len(waited) == 3
    held = hold(state_dir)
    os.ftruncate(held, 0)
    os.pwrite(held, ADOPTED, 0)
    monkeypatch.setattr(doors, "ADOPTED_WAIT_S", 0.0)
    with pytest.raises(StartError, match="ships what was left"):
        Doors(("127.0.0.1", 0), ("127.0.0.1", 0), 1, str(state_dir))
    os.close(held)
