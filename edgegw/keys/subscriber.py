"""The worker's end of the feed: what the control process says about keys goes into the table and to the limits.

The channel may break and come back at any time: meanwhile the table stays as it is. The first complete set after that
also says which keys are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edgegw.channel import Channel, KeyIs, KeysComplete
from edgegw.keys.table import Key, KeyLimits, KeyTable
from edgegw.settings import OwnLimits


class KeySubscriber:
    """One per worker that asks for keys. `complete`: everything was known at least once. `limits_changed` is called
    after a limit of some key has."""

    def __init__(
        self, channel: Channel, table: KeyTable, limits: KeyLimits, limits_changed: Callable[[], None]
    ) -> None:
        self._table = table
        self._limits = limits
        self._limits_changed = limits_changed
        self._heard: set[str] | None = set()  # since the channel opened, until all is said
        self._first = asyncio.Event()
        channel.handle(KeyIs, self._put)
        channel.handle(KeysComplete, self._complete)
        channel.on_closed(self._begin_anew)

    def complete(self) -> bool:
        return self._first.is_set()

    async def wait_complete(self, timeout_s: float) -> bool:
        """Whether everything is known, within `timeout_s`."""
        try:
            await asyncio.wait_for(self._first.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _put(self, message: KeyIs) -> None:
        key = message.key
        old = self._table.put(key)
        self._limit(key, None if old is None else old.limits_now, key.limits_now)
        if self._heard is not None:
            self._heard.add(key.id)

    def _complete(self, message: KeysComplete) -> None:
        if self._heard is not None:
            for key in self._table.retain(self._heard):
                self._limit(key, key.limits_now, None)
            self._heard = None
        self._first.set()

    def _limit(self, key: Key, before: OwnLimits | None, now: OwnLimits | None) -> None:
        if before != now:
            self._limits.set_key(key.id, key.tenant, now)
            self._limits_changed()

    def _begin_anew(self) -> None:
        self._heard = set()
