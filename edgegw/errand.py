"""A handler's coroutine, run on the spot until it has to wait.

A task costs a turn of the loop before its first step and another after each wait (each turn a system call), and most
requests wait exactly once: for their upstream. So an `Errand` steps its coroutine directly: at once when it is started,
and again from within `Wakeup.fire()`, that is from within the upstream's `data_received`. Only when the coroutine waits
for anything else (a new connection, a backoff, the limits' authority) does it go on as an ordinary task.

What is stepped on the spot must not use what needs a task around it (asyncio.timeout, current_task): put such work into
a task of its own and wait for that.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol


class Wakeup:
    """Something to wait for that is fired once, by plain code: `await wakeup`. Firing it first is fine."""

    __slots__ = ("_resume", "fired")

    def __init__(self) -> None:
        self.fired = False
        self._resume: Callable[[], None] | None = None

    def fire(self) -> None:
        """Whoever waits goes on before this returns (or soon, if it is a task). A second time nothing happens."""
        if self.fired:
            return
        self.fired = True
        resume = self._resume
        if resume is not None:
            self._resume = None
            resume()

    def __await__(self) -> Generator[Wakeup, None, None]:
        if not self.fired:
            yield self

    def as_future(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """The same for a task to wait for."""
        future: asyncio.Future[None] = loop.create_future()

        def resume() -> None:
            if not future.done():
                future.set_result(None)

        if self.fired:
            resume()
        else:
            self._resume = resume
        return future


class Owed(Protocol):
    """What somebody waits for while an errand is run."""

    def break_off(self) -> None:
        """It will not come (any more)."""


class Errand:
    """One run of a coroutine that returns nothing and handles its own exceptions. One that it does not handle all the
    same is told to the loop, and `owed` is broken off, so that nobody waits for it in vain."""

    __slots__ = ("_coroutine", "_loop", "_owed", "_task", "_wakeup")

    def __init__(
        self, coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, owed: Owed | None = None
    ) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._owed = owed
        self._wakeup: Wakeup | None = None
        self._task: asyncio.Task[None] | None = None

    def step(self) -> None:
        """Runs it until it waits or ends. Call it once; from then on what it waits for does."""
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            return
        except (Exception, asyncio.CancelledError) as error:
            self._failed(error)
            return
        self._wait_for(awaited)

    def cancel(self) -> None:
        """Throws CancelledError into it where it waits: on the spot, or in the loop's next turn if it is a task."""
        wakeup = self._wakeup
        if self._task is not None:
            # Not at once: a task that is cancelled before its first step never runs, and what it was to go on with ends
            # without a word: no record, and nothing given back.
            self._loop.call_soon(self._task.cancel)
        elif wakeup is not None and not wakeup.fired:
            wakeup._resume = None
            try:
                awaited = self._coroutine.throw(asyncio.CancelledError())
            except StopIteration:
                return
            except (Exception, asyncio.CancelledError) as error:
                self._failed(error)
                return
            self._wait_for(awaited)

    def _wait_for(self, awaited: Any) -> None:
        if isinstance(awaited, Wakeup):
            self._wakeup = awaited
            awaited._resume = self.step
        else:
            self._wakeup = None
            self._task = self._loop.create_task(self._finish(awaited))

    async def _finish(self, awaited: Any) -> None:
        try:
            await _rest_of(self._coroutine, awaited, self._loop)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": "a handler failed", "exception": error})
        if self._owed is not None:
            self._owed.break_off()


@types.coroutine
def _rest_of(
    coroutine: Coroutine[Any, Any, None], awaited: Any, loop: asyncio.AbstractEventLoop
) -> Generator[Any, Any, None]:
    """What is left of a coroutine that was stepped until it awaited `awaited`, for a task to run."""
    while True:
        move: Callable[[Any], Any] = coroutine.send
        given: Any = None
        try:
            if isinstance(awaited, Wakeup):
                yield from awaited.as_future(loop).__await__()
            else:
                given = yield awaited
        except BaseException as error:
            move, given = coroutine.throw, error
        try:
            awaited = move(given)
        except StopIteration:
            return
