"""One timer for all the waits of a worker.

A timer per request costs two to three microseconds to make and cancel, and most never fire. Here everything that waits
has a field `expires_s`, changed by assignment, and one tick looks at all of them. The price is precision: a wait ends
up to one tick late, which nobody notices in waits of seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

TICK_S = 0.1
NEVER = float("inf")


class Waiter(Protocol):
    """Something with a deadline. `expire` is called in the first tick after it, and again each tick until
    `expires_s` has been moved or the waiter removed."""

    expires_s: float

    def expire(self, now_s: float) -> None: ...


class Watch:
    """`now_s` is the time of the last tick: good enough (and far cheaper than a clock) for stamping activity."""

    __slots__ = ("_clock", "_handle", "_loop", "_waiters", "add", "discard", "now_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._waiters: set[Waiter] = set()
        self.add = self._waiters.add  # what is called per request goes straight to the set
        self.discard = self._waiters.discard
        self._handle: asyncio.TimerHandle | None = None
        self.now_s = clock()

    def start(self) -> None:
        self._handle = self._loop.call_later(TICK_S, self._tick)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        now_s = self.now_s = self._clock()
        self._handle = self._loop.call_later(TICK_S, self._tick)
        for waiter in [waiter for waiter in self._waiters if waiter.expires_s <= now_s]:
            try:
                waiter.expire(now_s)
            except Exception as error:  # of one of them, which neither the others nor the next tick should meet
                self.discard(waiter)
                self._loop.call_exception_handler({"message": "a wait ended in an error", "exception": error})
