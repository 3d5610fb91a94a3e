"""What a request waits for with `storage.journal.sync: always`: that the disk has its records, not only the kernel.

A group commit: one sync at a time, in a thread, and whoever comes while one runs shares the next. So the loop goes on,
a request waits for one sync or two, and a disk that syncs 200 times a second carries more than 200 requests.

A disk that fails here ends in the policy of the journal: what is about to go upstream is refused, or goes on and is
counted. Nobody is kept from an answer that is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from edgegw.errand import Wakeup
from edgegw.errors import GatewayError
from edgegw.ledger.journal import Journal
from edgegw.ledger.room import Trouble, trouble_of


class _Group:
    """Those who wait for the same sync, and what came of it."""

    __slots__ = ("trouble", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Wakeup] = []
        self.trouble: Trouble | None = None


class Durable:
    """One per worker. To be awaited in a request's own errand (errand.py)."""

    def __init__(self, journal: Journal, loop: asyncio.AbstractEventLoop, *, refuses: bool) -> None:
        self._journal = journal
        self._loop = loop
        self._refuses = refuses
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        self._gathering = _Group()
        self._syncing = False

    async def before_upstream(self) -> None:
        """Until what was written so far is on the disk. Raises GatewayError when it cannot be and that is not taken."""
        group, wakeup = self._join()
        await wakeup
        if group.trouble is not None:
            self._journal.unsynced += 1
            if self._refuses:
                raise GatewayError("overloaded", "The disk of the ledger fails.")

    async def before_client(self) -> None:
        """The same at the end of a request. Never raises: who is cancelled meanwhile has an end on the disk as well."""
        group, wakeup = self._join()
        while not wakeup.fired:
            try:
                await wakeup
            except asyncio.CancelledError:
                continue
        self._journal.unsynced += group.trouble is not None

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _join(self) -> tuple[_Group, Wakeup]:
        group, wakeup = self._gathering, Wakeup()
        group.waiting.append(wakeup)
        if not self._syncing:
            self._start()
        return group, wakeup

    def _start(self) -> None:
        group, self._gathering = self._gathering, _Group()
        self._syncing = True
        try:
            sync: Callable[[], None] = self._journal.syncing()
        except OSError as error:  # no descriptor left
            self._loop.call_soon(self._over, group, error)
            return
        self._loop.run_in_executor(self._thread, sync).add_done_callback(partial(self._done, group))

    def _done(self, group: _Group, synced: asyncio.Future[None]) -> None:
        self._over(group, None if synced.cancelled() else synced.exception())

    def _over(self, group: _Group, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, OSError):
            raise error
        group.trouble = self._journal.sync_trouble = None if error is None else trouble_of(error)
        self._syncing = False
        if self._gathering.waiting:
            self._start()
        for wakeup in group.waiting:
            wakeup.fire()
