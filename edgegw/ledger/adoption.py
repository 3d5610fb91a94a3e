"""The journals of gateways that are gone, shipped by one that is there: `storage.journal.adopt`.

A pod that dies for good leaves a state directory on a shared or host volume, and records in it that nobody reads. Every
supervisor holds the lock of its state directory for as long as any process of its control plane lives, so a lock that
can be had belongs to a gateway that is gone. Whoever has it ships that journal as its own control process would: under
that directory's journal identity, so that what was stored before is known, and nothing twice. Then it lets go.

One directory at a time, for as long as that gets on. A gateway that comes back meanwhile waits for the lock (doors.py).
Its metrics are not told of what is adopted: they are of its own requests. Its traces are: somebody waits for the end of
the others.
"""

from __future__ import annotations

import asyncio
import fcntl
import glob
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgegw.clock import Clock
from edgegw.ledger.assembly import Price
from edgegw.ledger.identity import ADOPTED, LOCK_FILE, identity
from edgegw.ledger.life import JOURNAL_DIR, LIFE_NAME
from edgegw.ledger.reader import Damage
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.store import Store
from edgegw.ledger.telling import Observer

LOOK_EVERY_S = 60.0
# How often it is seen whether an adopted journal is shipped.
WATCH_EVERY_S = 0.2
# A journal that does not get on (the database is away, a worker still drains) is let go until the next look.
PATIENCE_S = 10.0
# For what is under way when we are told to go.
STOP_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Adopted:
    """Since this control process started. `journals`: shipped to their end; `failures`: directories that could not be
    looked at, locked or shipped, at each look; `shipping`: the identity of the one that is being shipped."""

    journals: int = 0
    rows: int = 0
    failures: int = 0
    shipping: str | None = None
    damage: Damage = field(default_factory=Damage)


class Adoption:
    """`run()` is a task of the control process. `patterns` name state directories and may have wildcards; `own` is
    left out. `store_for` makes the store of a journal, by its identity; it is closed here."""

    def __init__(
        self,
        own: Path,
        patterns: Sequence[str],
        store_for: Callable[[str], Store],
        clock: Clock,
        price: Price,
        observers: Sequence[Observer] = (),
        *,
        watch_every_s: float = WATCH_EVERY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._own = own
        self._patterns = tuple(patterns)
        self._store_for = store_for
        self._clock = clock
        self._price = price
        self._observers = tuple(observers)
        self._watch_every_s = watch_every_s
        self._patience_s = patience_s
        self.adopted = Adopted()

    async def run(self) -> None:
        """At the start, and then now and then."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Adopt what can be had now."""
        for state_dir in await asyncio.to_thread(self._orphans):
            try:
                await self._adopt_if_gone(state_dir)
            except Exception as error:  # whatever is wrong with one directory is no matter of the others
                self.adopted.failures += 1
                _log.warning("the journal in %s cannot be adopted: %s", state_dir, error)

    def _orphans(self) -> list[Path]:
        """State directories with a journal in them, whoever has them."""
        found = {Path(name) for pattern in self._patterns for name in glob.glob(pattern)}
        return sorted(path for path in found if any(_lives(path)) and not self._is_own(path))

    def _is_own(self, path: Path) -> bool:
        with suppress(OSError):
            return path.samefile(self._own)
        return False

    async def _adopt_if_gone(self, state_dir: Path) -> None:
        locking = asyncio.ensure_future(asyncio.to_thread(_lock, state_dir))
        try:
            if await asyncio.shield(locking) is not None:
                await self._adopt(state_dir)
        finally:  # also when we are told to go while the thread is at it
            lock_fd = await locking
            if lock_fd is not None:
                _let_go(lock_fd)

    async def _adopt(self, state_dir: Path) -> None:
        adopted = self.adopted
        name = adopted.shipping = await asyncio.to_thread(identity, state_dir)
        store = self._store_for(name)
        shipper = Shipper(state_dir, store, self._clock, self._price, self._observers)
        shipping = asyncio.create_task(shipper.run())
        try:
            if await self._until_shipped(state_dir, shipper, shipping):
                adopted.journals += 1
                adopted.damage += shipper.tally.damage
                _log.info("the journal %s of a gateway that is gone is shipped: %d rows", name, shipper.tally.rows)
        finally:
            adopted.rows += shipper.tally.rows
            adopted.shipping = None
            await shipper.stop(STOP_S)
            await store.close()

    async def _until_shipped(self, state_dir: Path, shipper: Shipper, shipping: asyncio.Task[None]) -> bool:
        """True when nothing of it is left; False when it does not get on. Raises what the shipper raised."""
        tally, now = shipper.tally, self._clock.now
        seen, seen_s = -1, now()
        while True:
            await asyncio.wait((shipping,), timeout=self._watch_every_s)
            if shipping.done():
                shipping.result()
            left = await asyncio.to_thread(lambda: len(list(_lives(state_dir))))
            if not left:
                return True
            if tally.batches - left != seen:
                seen, seen_s = tally.batches - left, now()
            elif now() - seen_s >= self._patience_s:
                return False


def _lives(state_dir: Path) -> Iterable[str]:
    try:
        names = os.listdir(state_dir / JOURNAL_DIR)
    except OSError:
        return []
    return filter(LIFE_NAME.fullmatch, names)


def _lock(state_dir: Path) -> int | None:
    """The lock of a state directory whose gateway is gone, None when it is not. Raises OSError."""
    fd = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, ADOPTED, 0)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def _let_go(fd: int) -> None:
    with suppress(OSError):
        os.ftruncate(fd, 0)
    os.close(fd)
