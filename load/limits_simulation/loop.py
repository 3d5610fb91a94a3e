"""An event loop whose time is virtual: it runs what is due, in a fixed order, and jumps to the next timer.

No sockets, no threads, no wall clock: two runs of the same program do the same. Only what the simulated parts use of
asyncio is here: callbacks, timers, futures, tasks, and connecting to an address, which leads to whoever listens in
`addresses` (wire.py). An exception that nobody catches ends the run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from heapq import heappop, heappush
from typing import Any

from edgegw.clock import Clock

MIDNIGHT_S = 75  # of UTC: a day and its limits end while the simulation runs
UNIX_AT_START_S = 1_900_022_400 - MIDNIGHT_S  # in March 2030: later than a real Redis's now, which drops what is past


class Timer(asyncio.TimerHandle):
    """As asyncio's, without its context and debugging: half of a simulation is timers."""

    __slots__ = ()

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], when_s: float) -> None:
        self._callback, self._args, self._when, self._cancelled = callback, args, when_s, False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = _nothing, ()

    def __repr__(self) -> str:
        return f"<Timer at {self._when} of {self._callback!r}>"


class VirtualLoop(asyncio.AbstractEventLoop):
    def __init__(self) -> None:
        self._now_s = 0.0
        self._ready: deque[Timer] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0  # of timers: those of one moment run in the order of their making
        self._failure: BaseException | None = None
        self.addresses: dict[str, Callable[[asyncio.Protocol], Awaitable[asyncio.Transport]]] = {}

    def run_until(self, until_s: float) -> None:
        """Raises whatever a callback or a task nobody waits for raised."""
        asyncio._set_running_loop(self)
        ready, timers = self._ready, self._timers
        try:
            while self._failure is None:
                while ready:
                    due = ready.popleft()
                    due._callback(*due._args)
                if not timers or timers[0][0] > until_s:
                    break
                self._now_s = now_s = max(self._now_s, timers[0][0])
                while timers and timers[0][0] <= now_s:
                    ready.append(heappop(timers)[2])
            self._now_s = max(self._now_s, until_s)
        finally:
            asyncio._set_running_loop(None)
        if self._failure is not None:
            raise self._failure

    def time(self) -> float:
        return self._now_s

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Timer:  # type: ignore[override]
        due = Timer(callback, args, self._now_s)
        self._ready.append(due)
        return due

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Timer:  # type: ignore[override]
        return self.call_at(self._now_s + delay, callback, *args)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Timer:  # type: ignore[override]
        timer = Timer(callback, args, when)
        self._count += 1
        heappush(self._timers, (when, self._count, timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name)

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **options: Any) -> Any:
        """Raises OSError, or never returns, as the listener pleases."""
        protocol = protocol_factory()
        return await self.addresses[path](protocol), protocol

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._failure = context.get("exception")  # without one: a task of a process that was killed in the story

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


def new_loop() -> VirtualLoop:
    """Abstract are only methods that nobody calls here."""
    return VirtualLoop()  # type: ignore[abstract]


class VirtualClock(Clock):
    """The clock of one machine: the loop's time, by which jumps it is off."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ahead_s = 0.0
        self._wall_ahead_s = 0.0

    def now(self) -> float:
        return self._loop.time() + self._ahead_s

    def wall_ns(self) -> int:
        return int((UNIX_AT_START_S + self._loop.time() + self._wall_ahead_s) * 1e9)

    def jump(self, seconds: float, wall_s: float) -> None:
        """The machine slept for so long (its monotonic clock never runs backwards), its wall clock was set."""
        self._ahead_s += max(0.0, seconds)
        self._wall_ahead_s += wall_s


def _nothing() -> None: ...
