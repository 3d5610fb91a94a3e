"""From the journals to the store: the loop of the control process that keeps the books.

    read records -> tell the observers -> assemble rows -> one transaction with the checkpoint -> delete what is shipped

What is stored is stored together with how far we are, so a crash anywhere only means that something is done again. An
observer hears of every record once in the life of this process, also while the store is away: then a second reader goes
ahead for the observers alone, and what it has told is not told again.

Reading is done on the event loop, in portions of a few milliseconds; the store does its own waiting elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgegw.clock import Clock
from edgegw.ledger.assembly import Assembler, Price
from edgegw.ledger.reader import Damage, LifeReader, Reader
from edgegw.ledger.record import End, Record, happened_ns
from edgegw.ledger.store import Batch, Checkpoint, Position, Store, StoreError

POLL_S = 0.1
# When no row was due for a while, looking less often is enough: a gateway that idles should cost nothing.
IDLE_AFTER_S = 5.0
IDLE_POLL_S = 0.25
# About 2 ms of reading, telling and assembling on the loop, and some 330 requests in one transaction.
BATCH_RECORDS_MAX = 1000
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0

Observer = Callable[[Record], None]
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What the shipper has done since it started, for metrics and /readyz. `failing` is the store's latest complaint
    while it fails, None when it works."""

    batches: int = 0
    requests: int = 0
    attempts: int = 0
    interrupted: int = 0
    errors: int = 0
    observer_errors: int = 0
    failing: str | None = None
    damage: Damage = field(default_factory=Damage)

    @property
    def rows(self) -> int:
        return self.requests + self.attempts


class Shipper:
    """`run()` is a task of the control process; `stop()` ends it when everything that is there is stored."""

    def __init__(
        self,
        state_dir: Path,
        store: Store,
        clock: Clock,
        price: Price,
        observers: Sequence[Observer] = (),
        *,
        poll_s: float = POLL_S,
        batch_records_max: int = BATCH_RECORDS_MAX,
    ) -> None:
        self._state_dir = state_dir
        self._store = store
        self._clock = clock
        self._price = price
        self._observers = tuple(observers)
        self._poll_s = poll_s
        self._batch_records_max = batch_records_max
        self._durable: dict[str, Position] = {}
        self._ahead: Reader | None = None
        self._told: dict[str, Position] = {}
        self._oldest_ns = 0
        self._busy_until_s = clock.now() + IDLE_AFTER_S
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.tally = Tally()

    @property
    def lag_s(self) -> float:
        """The age of the oldest record that should be a row and is none yet, 0 when there is none."""
        return max(0, self._clock.wall_ns() - self._oldest_ns) / 1e9 if self._oldest_ns else 0.0

    async def run(self) -> None:
        """Ship until stopped. Raises only what no repetition mends (SchemaTooNewError)."""
        self._task = asyncio.current_task()
        remembered = await self._insist(self._store.read_checkpoint)
        self._durable = dict(remembered.positions)
        reader = Reader(self._state_dir, remembered.positions, self.tally.damage)
        assembler = Assembler(remembered, self._price)
        try:
            self._end_lost_lives(reader, assembler, remembered)
            while True:
                last_round = self._stopping.is_set()
                self._gather(reader, assembler)
                if self._due(reader, assembler):
                    await self._ship(reader, assembler)
                    self._busy_until_s = self._clock.now() + IDLE_AFTER_S
                if reader.behind:
                    await asyncio.sleep(0)
                elif last_round:
                    return
                else:
                    await self._pause()
        finally:
            reader.close()
            self._stop_looking_ahead()

    async def stop(self, timeout_s: float) -> bool:
        """Ship what is there, then end; False when the time was over first (the rest is shipped at the next start)."""
        self._stopping.set()
        task = self._task
        if task is None:
            return True
        done, _ = await asyncio.wait((task,), timeout=timeout_s)
        if not done:
            task.cancel()
            await asyncio.wait((task,))
        return bool(done)

    def _gather(self, reader: Reader, assembler: Assembler) -> None:
        """One portion of what is new: to the observers and into rows."""
        for life, records in reader.read(self._batch_records_max):
            assembler.add(life.name, records)
            self._tell_news(life, records)
        for life in reader.lives.values():
            if life.drained:
                self._end_life(assembler, life.name, life.position.wall_ns)
        if not self._oldest_ns and (oldest := assembler.oldest) is not None:
            self._oldest_ns = happened_ns(oldest)

    def _end_life(self, assembler: Assembler, name: str, wall_ns: int) -> None:
        added = assembler.end_life(name, wall_ns)
        self.tally.interrupted += sum(isinstance(record, End) for record in added)
        self._tell(added)

    def _end_lost_lives(self, reader: Reader, assembler: Assembler, remembered: Checkpoint) -> None:
        """Lives of the checkpoint whose directories are gone: shipped and deleted, or taken away by somebody."""
        named = remembered.positions.keys() | {exchange.life for exchange in remembered.opened.values()}
        for name in named - reader.lives.keys():
            self._end_life(assembler, name, remembered.positions.get(name, Position()).wall_ns)
            assembler.forget_life(name)

    def _due(self, reader: Reader, assembler: Assembler) -> bool:
        """Rows are due; a mere change of position is only when it lets a file go."""
        if assembler.due:
            return True
        started = Position()
        return any(
            life.drained or life.position.segment != self._durable.get(name, started).segment
            for name, life in reader.lives.items()
        )

    async def _ship(self, reader: Reader, assembler: Assembler) -> None:
        positions = reader.positions()
        batch, checkpoint = assembler.take(
            {name: position for name, position in positions.items() if position != self._durable.get(name)}
        )
        await self._insist(lambda: self._store.write(batch, checkpoint), reader)
        self._count(batch)
        self._oldest_ns = 0
        released = [
            life for name, life in reader.lives.items() if positions[name].segment != self._segment_stored(name)
        ]
        self._durable.update(positions)
        for life in released:
            life.release(positions[life.name])
        for name in [name for name, life in reader.lives.items() if life.drained]:
            reader.remove(name)
            del self._durable[name]
            self._told.pop(name, None)
            assembler.forget_life(name)

    def _segment_stored(self, name: str) -> int:
        return self._durable[name].segment if name in self._durable else 0

    def _count(self, batch: Batch) -> None:
        tally = self.tally
        tally.batches += 1
        tally.requests += len(batch.requests)
        tally.attempts += len(batch.attempts)

    async def _insist(self, call: Callable[[], Awaitable[_T]], reader: Reader | None = None) -> _T:
        """Until the store does it. What was read stays read, what was told stays told."""
        tally = self.tally
        backoff_s = BACKOFF_MIN_S
        while True:
            try:
                result = await call()
            except StoreError as error:
                tally.errors += 1
                if tally.failing is None:
                    _log.warning("the ledger's store fails, rows wait in the journal: %s", error)
                tally.failing = str(error)
            else:
                if tally.failing is not None:
                    _log.warning("the ledger's store works again")
                    tally.failing = None
                    self._stop_looking_ahead()
                return result
            rounds = max(1, round(backoff_s / self._poll_s))
            for _ in range(rounds):
                if reader is not None:
                    self._look_ahead(reader)
                await asyncio.sleep(backoff_s / rounds)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _pause(self) -> None:
        busy = self._clock.now() < self._busy_until_s
        try:
            async with asyncio.timeout(self._poll_s if busy else IDLE_POLL_S):
                await self._stopping.wait()
        except TimeoutError:
            pass

    # Observers.

    def _look_ahead(self, reader: Reader) -> None:
        """The store is away: metrics and spans go on, from a second reader that stores and deletes nothing."""
        if self._ahead is None:
            positions = reader.positions()
            for name, told in self._told.items():
                if name not in positions or told.seq > positions[name].seq:
                    positions[name] = told
            self._ahead = Reader(self._state_dir, positions, Damage())
        for life, records in self._ahead.read(self._batch_records_max):
            self._tell(records)
            self._told[life.name] = life.position

    def _stop_looking_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _tell_news(self, life: LifeReader, records: list[Record]) -> None:
        """Tell what was not told ahead."""
        told = self._told.get(life.name)
        if told is None:
            self._tell(records)
        elif told.seq <= records[-1].seq:
            self._tell([record for record in records if record.seq > told.seq])
            del self._told[life.name]

    def _tell(self, records: Sequence[Record]) -> None:
        for observer in self._observers:
            for record in records:
                try:
                    observer(record)
                except Exception:
                    if not self.tally.observer_errors:
                        _log.exception("an observer of the ledger fails; the books go on")
                    self.tally.observer_errors += 1
