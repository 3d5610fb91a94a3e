"""The control process's part: sees what changed in the database, and says it to all workers.

The store is asked four times a second; one that fails is told once, asked less often, and workers go on with what they
know. Each worker has a teller of its own, which gives it everything when it joins and then what is new, never more at a
time than its link holds. A key that is gone from the store is told as revoked.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice, takewhile
from typing import Any

from msgspec.structs import replace

from edgegw.channel import KeyIs, KeysComplete
from edgegw.channel_server import ChannelServer, ControlLink
from edgegw.clock import Clock
from edgegw.keys.store import Changes, KeyStore, KeyStoreError
from edgegw.keys.table import Key, KeyLimits

POLL_EVERY_S = 0.25  # a change is to be in force within a second
POLL_AGAIN_MAX_S = 2.0  # while it fails: a database that comes back is not run over by all who missed it
PORTION_KEYS = 32  # of some 300 bytes, and at most 20 KiB (a key may act for 16 tenants with long names)

logger = logging.getLogger("edgegw.keys")


class KeyFeed:
    """One per control process, while `auth` is `keys`. `run` until cancelled."""

    def __init__(self, store: KeyStore, channel: ChannelServer, limits: KeyLimits, clock: Clock) -> None:
        self._store = store
        self._limits = limits
        self._wall_ns = clock.wall_ns
        self._version: int | None = None  # of the store; None: never read
        self._number = 0  # of the last change as workers are told them
        self._keys: dict[str, tuple[int, Key]] = {}  # by id, in the order of `number`
        self._tellers: dict[ControlLink, asyncio.Event] = {}
        self._failing = False
        channel.on_joined.append(self._joined)

    async def run(self) -> None:
        pause_s = POLL_EVERY_S
        try:
            while True:
                await self.look()
                pause_s = min(2 * pause_s, POLL_AGAIN_MAX_S) if self._failing else POLL_EVERY_S
                await asyncio.sleep(pause_s)
        finally:
            await self._store.close()

    async def look(self) -> None:
        """Asks the store once. Never raises for what is wrong with it."""
        try:
            changes = await self._store.changes(self._version or 0)
        except KeyStoreError as error:
            if not self._failing:
                logger.error("keys cannot be read, workers go on with those they know: %s", error)
            self._failing = True
            return
        if self._failing:
            logger.info("keys can be read again")
        self._failing = False
        self._take(changes)

    @property
    def failing(self) -> bool:
        return self._failing

    @property
    def known(self) -> int:
        return len(self._keys)

    def details(self) -> dict[str, Any]:
        """For /readyz."""
        state = "failing" if self._failing else "loading" if self._version is None else "ok"
        return {"state": state, "known": len(self._keys), "version": self._version or 0}

    # -- what is known --

    def _take(self, changes: Changes) -> None:
        news = self._version is None or bool(changes.keys)
        if changes.whole:
            news |= self._drop_all_but({key.id for key in changes.keys})
        for key in changes.keys:
            self._note(key)
        self._version = changes.version
        if news:
            for wake in self._tellers.values():
                wake.set()

    def _note(self, key: Key) -> None:
        known = self._keys.get(key.id)
        if known is not None and known[1] == key:
            return
        self._limits.set_key(key.id, key.tenant, key.limits_now)
        self._keys.pop(key.id, None)
        self._number += 1
        self._keys[key.id] = (self._number, key)

    def _drop_all_but(self, ids: set[str]) -> bool:
        gone = [key for id_, (_, key) in self._keys.items() if id_ not in ids and key.revoked_ns is None]
        for key in gone:
            self._note(replace(key, revoked_ns=self._wall_ns()))
        return bool(gone)

    def _after(self, number: int) -> list[Key]:
        """Changed after change `number`, oldest first."""
        changed = list(takewhile(lambda entry: entry[0] > number, reversed(self._keys.values())))
        return [key for _, key in reversed(changed)]

    # -- telling it --

    def _joined(self, link: ControlLink) -> None:
        wake = self._tellers[link] = asyncio.Event()
        wake.set()
        teller = asyncio.get_running_loop().create_task(self._tell(link, wake))

        def left(_: object) -> None:
            self._tellers.pop(link, None)
            teller.cancel()

        link.gone.add_done_callback(left)

    async def _tell(self, link: ControlLink, wake: asyncio.Event) -> None:
        """Everything, then whatever is new, for as long as the worker is there."""
        told = 0
        while True:
            await wake.wait()
            wake.clear()
            if self._version is None:
                continue
            keys, told, version = iter(self._after(told)), self._number, self._version
            while portion := list(islice(keys, PORTION_KEYS)):
                for key in portion:
                    link.send(KeyIs(key))
                await link.room()
            link.send(KeysComplete(version))
