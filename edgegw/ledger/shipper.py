"""From the journals to the store: the loop of the control process that keeps the books.

    read records -> tell the observers -> assemble rows -> one transaction with the checkpoint -> delete what is shipped

What is stored is stored together with how far we are, so a crash anywhere only means that something is done again. A
batch that the database refuses as it is goes in by halves, and the rows to blame are set aside (rejected.py), before
the checkpoint passes them. While the store is away, observers are told ahead (telling.py).

Reading is done on the event loop, in portions of a few milliseconds; the store does its own waiting elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgegw.clock import Clock
from edgegw.ledger.assembly import Assembler, Price
from edgegw.ledger.reader import Damage, Reader
from edgegw.ledger.record import End, about, happened_ns
from edgegw.ledger.rejected import lines_of, row_of, set_aside, write_by_halves
from edgegw.ledger.store import Batch, Checkpoint, Position, RejectedError, Store, StoreError
from edgegw.ledger.telling import Observer, Teller

POLL_S = 0.1
# A transaction costs about as much as 50 requests in it: where fewer come between two looks, it waits for more of them.
# So a gateway that idles, or nearly, costs next to nothing. With a longer wait, the first rows of a rush would be more
# spans than an exporter's queue holds.
FEW_ROWS = 100
FEW_POLLS = 2.5
# About 3 ms of reading, telling and assembling; then others have their turn on the loop.
PORTION_RECORDS = 500
# At each look ahead of a store that is away: 10,000 a second.
AHEAD_RECORDS = 1000
# Of one transaction, when there is a backlog. PostgreSQL is not faster with more, SQLite by a thirtieth. But the loop
# is kept for longer, and those who take spans have their turn while a transaction is written.
BATCH_ROWS_MAX = 1000
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What the shipper has done since it started, for metrics and /readyz. `failing` is the store's latest complaint
    while it fails, None when it works. `write_s`: time that writes took that succeeded. `rejected`: rows that were set
    aside; `rejected_lost` of them found no room there."""

    batches: int = 0
    write_s: float = 0.0
    requests: int = 0
    attempts: int = 0
    interrupted: int = 0
    errors: int = 0
    rejected: int = 0
    rejected_lost: int = 0
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
        batch_rows_max: int = BATCH_ROWS_MAX,
    ) -> None:
        self._state_dir = state_dir
        self._store = store
        self._clock = clock
        self._price = price
        self._poll_s = poll_s
        self._rows_before = 0  # of the last round
        self._batch_rows_max = batch_rows_max
        self._durable: dict[str, Position] = {}
        self._teller = Teller(state_dir, observers, price)
        self._oldest_ns = 0
        self._waited_polls = 1.0
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.tally = Tally()

    @property
    def lag_s(self) -> float:
        """The age of the oldest record that should be a row and is none yet, 0 when there is none."""
        return max(0, self._clock.wall_ns() - self._oldest_ns) / 1e9 if self._oldest_ns else 0.0

    @property
    def observer_errors(self) -> int:
        return self._teller.errors

    async def run(self) -> None:
        """Ship until stopped. Raises only what no repetition mends (SchemaTooNewError)."""
        self._task = asyncio.current_task()
        remembered = await self._insist(self._store.read_checkpoint)
        self._durable = dict(remembered.positions)
        reader = Reader(self._state_dir, remembered.positions, self.tally.damage)
        assembler = Assembler(remembered, self._price)
        try:
            for life in reader.lives.values():  # whoever was here before us may have died before it came to that
                life.release(life.position)
            self._end_lost_lives(reader, assembler, remembered)
            while True:
                last_round = self._stopping.is_set()
                await self._gather(reader, assembler)
                self._rows_before = assembler.rows
                if self._due(reader, assembler):
                    await self._ship(reader, assembler)
                self._teller.go_along(reader, PORTION_RECORDS)
                if reader.behind or (last_round and assembler.due):
                    await asyncio.sleep(0)
                elif last_round:
                    return
                else:
                    await self._pause()
        finally:
            reader.close()
            self._teller.close()

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
            _log.warning(
                "the ledger stops before all is stored: what waits in the journal, since %.1f s, is stored at the next "
                "start (%s)",
                self.lag_s,
                self.tally.failing or "the time was over",
            )
        return bool(done)

    async def _gather(self, reader: Reader, assembler: Assembler) -> None:
        """What is new, at most a batch of it: to the observers and into rows."""
        portion = min(PORTION_RECORDS, self._batch_rows_max)
        while True:
            for life, records in reader.read(portion):
                assembler.add(life.name, records)
                self._teller.read(life, records)
            for life in reader.lives.values():
                if life.drained:
                    self._end_life(assembler, life.name, life.position.wall_ns)
            if (oldest := assembler.oldest) is not None:
                self._oldest_ns = happened_ns(oldest)
            elif not reader.behind:
                self._oldest_ns = 0
            if not reader.behind or assembler.rows >= self._batch_rows_max:
                return
            await asyncio.sleep(0)

    def _end_life(self, assembler: Assembler, name: str, wall_ns: int) -> None:
        added = assembler.end_life(name, wall_ns)
        self.tally.interrupted += sum(isinstance(record, End) for record in added)
        self._teller.ended(name, added)

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
        ahead = partial(self._teller.go_ahead, reader, assembler, AHEAD_RECORDS)
        try:
            await self._insist(lambda: self._write(batch, checkpoint), ahead)
        except RejectedError as error:
            await self._write_what_is_taken(batch, checkpoint, str(error), ahead)
        # With a backlog the next row is about as old as the last one, until it is read.
        self._oldest_ns = batch.newest_ns if reader.behind else 0
        released = [
            life for name, life in reader.lives.items() if positions[name].segment != self._segment_stored(name)
        ]
        self._durable.update(positions)
        for life in released:
            life.release(positions[life.name])
        for name in [name for name, life in reader.lives.items() if life.drained]:
            reader.remove(name)
            del self._durable[name]
            self._teller.removed(name)
            assembler.forget_life(name)

    def _segment_stored(self, name: str) -> int:
        return self._durable[name].segment if name in self._durable else 0

    async def _write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        began_s = self._clock.now()
        await self._store.write(batch, checkpoint)
        tally = self.tally
        tally.batches += 1
        tally.write_s += self._clock.now() - began_s
        tally.requests += len(batch.requests)
        tally.attempts += len(batch.attempts)

    async def _write_what_is_taken(
        self, batch: Batch, checkpoint: Checkpoint, reason: str, ahead: Callable[[], None]
    ) -> None:
        """The batch was refused. All rows that are not to blame first, then those that are into a file, and only then
        the checkpoint: wherever we die, what was not stored is read again."""

        async def write_part(part: Batch) -> None:
            await self._insist(lambda: self._write(part, Checkpoint()))

        blamed = await self._insist(lambda: write_by_halves(batch, write_part, reason), ahead)
        if blamed:
            lines = lines_of(batch, blamed, self._clock.wall_ns())
            lost = await self._insist(lambda: self._set_aside(lines), ahead)
            if not self.tally.rejected:
                first = min(blamed, key=lambda one: one.number)
                message = "the database does not take %d rows; they are set aside. The first: %s"
                _log.error(message, len(blamed), first.reason, extra=about(row_of(batch, first)))
            self.tally.rejected += len(blamed)
            self.tally.rejected_lost += lost
        await self._insist(lambda: self._write_checkpoint(checkpoint), ahead)

    async def _set_aside(self, lines: list[bytes]) -> int:
        try:
            return await asyncio.to_thread(set_aside, self._state_dir, lines, self._clock.wall_ns())
        except OSError as error:
            raise StoreError(f"rows cannot be set aside: {error}") from error

    async def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        try:
            await self._write(Batch(), checkpoint)
        except RejectedError as error:  # no row is to blame, so nothing can be set aside
            raise StoreError(f"the checkpoint is refused: {error}") from error

    async def _insist(self, call: Callable[[], Awaitable[_T]], ahead: Callable[[], None] | None = None) -> _T:
        """Until the store does it. What was read stays read; observers are told `ahead` when it takes long."""
        tally = self.tally
        backoff_s = BACKOFF_MIN_S
        telling = None if ahead is None else _Repeated(ahead, self._poll_s)
        try:
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
                    return result
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        finally:
            if telling is not None:
                telling.cancel()

    async def _pause(self) -> None:
        self._waited_polls = polls_to_wait(self._rows_before, self._waited_polls)
        try:
            async with asyncio.timeout(self._poll_s * self._waited_polls):
                await self._stopping.wait()
        except TimeoutError:
            pass


def polls_to_wait(rows: int, waited: float) -> float:
    """Until the next look, when so many `rows` came in the time of the last wait."""
    return 1.0 if rows >= FEW_ROWS * waited else FEW_POLLS


class _Repeated:
    """Calls again and again, first when a poll and a bit is over: a store that works has answered by then."""

    def __init__(self, call: Callable[[], None], every_s: float) -> None:
        self._call = call
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(2 * every_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._every_s, self._tick)
        self._call()

    def cancel(self) -> None:
        self._timer.cancel()
