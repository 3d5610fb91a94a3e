"""Observers hear of every record once, and completed: while the store works, while it is away, and in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import tried
from ledger_traces import (
    WAIT_S,
    WALL_NS,
    begin,
    conclude,
    die,
    fail_over,
    finish,
    open_journal,
    play,
    priced,
    sqlite_store,
)

from edgegw.clock import ManualClock
from edgegw.exchange import Exchange
from edgegw.ledger.assembly import Assembler
from edgegw.ledger.journal import Journal
from edgegw.ledger.reader import Damage, Reader
from edgegw.ledger.record import AttemptRecord, End, Record
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.store import Batch, Checkpoint, StoreError
from edgegw.ledger.telling import Teller


class Heard:
    """What an observer heard; each is judged on the spot, as an observer would use it."""

    def __init__(self) -> None:
        self.times: Counter[tuple[str, str, int]] = Counter()
        self.incomplete: list[Record] = []

    def observe(self, records: Iterable[Record]) -> None:
        for record in records:
            self._hear(record)

    def _hear(self, record: Record) -> None:
        if isinstance(record, AttemptRecord):
            self.times["attempt", record.request_id, record.number] += 1
            good = record.tenant == "acme" and record.use_case == "support_summary"
            good &= record.cost_usd_micro == {None: 7, "upstream_error": 0}.get(record.error_kind)
        elif isinstance(record, End):
            self.times["end", record.id, 0] += 1
            good = record.state == "interrupted" or record.cost_usd_micro == 7
        else:
            return
        if not good:
            self.incomplete.append(record)


class Workers:
    """Three workers that write; what they have written is what must be heard."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._lives = 0
        self._number = 0
        self._journals = [self._open() for _ in range(3)]
        self._going: list[list[Exchange]] = [[], [], []]
        self.expected: Counter[tuple[str, str, int]] = Counter()

    def _open(self) -> Journal:
        self._lives += 1
        return open_journal(self._state_dir, self._lives)

    def begin(self, at: int) -> None:
        self._number += 1
        self._going[at].append(begin(self._journals[at], self._number))

    def fail(self, at: int) -> None:
        """The first attempt of the oldest exchange fails, a second one begins."""
        for exchange in self._going[at]:
            if len(exchange.attempts) == 1:
                fail_over(self._journals[at], exchange)
                self.expected["attempt", exchange.id, 1] += 1
                return

    def end(self, at: int) -> None:
        if self._going[at]:
            exchange = self._going[at].pop(0)
            finish(exchange.attempts[-1])
            conclude(exchange)
            self._journals[at].end(exchange)
            self.expected["attempt", exchange.id, len(exchange.attempts)] += 1
            self.expected["end", exchange.id, 0] += 1

    def die(self, at: int) -> None:
        die(self._journals[at])
        for exchange in self._going[at]:
            self.expected["attempt", exchange.id, len(exchange.attempts)] += 1
            self.expected["end", exchange.id, 0] += 1
        self._going[at] = []
        self._journals[at] = self._open()

    def close(self) -> None:
        for at in range(3):
            self.die(at)
            self._journals[at].close()


STEPS = ("begin", "begin", "fail", "end", "end", "die", "ship", "ahead", "along")


@tried(0.6)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2)), max_size=60), st.integers(1, 9))
def test_once_and_completed_in_whatever_order_the_two_readers_come(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], limit: int
) -> None:
    state_dir = tmp_path_factory.mktemp("state")
    workers, heard = Workers(state_dir), Heard()
    teller = Teller(state_dir, [heard.observe], priced)
    reader = Reader(state_dir, {}, Damage())
    assembler = Assembler(Checkpoint(), priced)

    def ship(limit: int) -> None:
        """As the shipper does it."""
        for life, records in reader.read(limit):
            assembler.add(life.name, records)
            teller.read(life, records)
        for life in list(reader.lives.values()):
            if life.drained:
                teller.ended(life.name, assembler.end_life(life.name, life.position.wall_ns))
        assembler.take({})
        for life in list(reader.lives.values()):
            if life.drained:
                reader.remove(life.name)
                teller.removed(life.name)

    for step, at in steps:
        match step:
            case "ship":
                ship(limit)
            case "ahead":
                teller.go_ahead(reader, assembler, limit)
            case "along":
                teller.go_along(reader, limit)
            case _:
                getattr(workers, step)(at)
    workers.close()
    for _ in range(1000):
        ship(limit)
        teller.go_along(reader, limit)
        if not list((state_dir / "journal").iterdir()):
            break
    reader.close()
    teller.close()
    assert heard.times == workers.expected
    assert not heard.incomplete


class Away:
    """A store that hangs or fails when told to."""

    def __init__(self, path: Path) -> None:
        self._store = sqlite_store(path)
        self.mode = "works"

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        while self.mode == "hangs":  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        if self.mode == "fails":
            raise StoreError("away")
        await self._store.write(batch, checkpoint)

    async def read_checkpoint(self) -> Checkpoint:
        return await self._store.read_checkpoint()

    async def close(self) -> None:
        await self._store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("mode", ["fails", "hangs"])
async def test_a_store_that_is_away_keeps_nobody_from_hearing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("edgegw.ledger.shipper.BACKOFF_MIN_S", 0.004)
    store, heard = Away(tmp_path / "books.db"), Heard()
    clock = ManualClock(wall_ns=WALL_NS)
    shipper = Shipper(tmp_path, store, clock, priced, [heard.observe], poll_s=0.002, batch_rows_max=20)
    running = asyncio.create_task(shipper.run())
    journal = open_journal(tmp_path)
    for round_ in range(4):
        store.mode = mode if round_ % 2 == 0 else "works"
        for number in range(round_ * 50, round_ * 50 + 50):
            play(journal, number, failures=number % 2, within_end=True)
        heard_of = (round_ + 1) * 125
        await until(lambda heard_of=heard_of: heard.times.total() == heard_of)  # type: ignore[misc]
    store.mode = "works"
    journal.close()
    assert await shipper.stop(WAIT_S)
    await running
    await store.close()
    assert set(heard.times.values()) == {1}
    assert not heard.incomplete
    assert shipper.tally.rows == heard.times.total()
