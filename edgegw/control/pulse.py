"""How late the control process's loop is: what reads, tells, writes rows and answers workers all runs on it."""

from __future__ import annotations

import asyncio

from edgegw.clock import Clock

EVERY_S = 0.25


class Pulse:
    """`run()` until cancelled. `lag_s` is the worst since it was last asked for."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.now
        self._lag_s = 0.0
        self._due_s = clock.now() + EVERY_S

    async def run(self) -> None:
        while True:
            self._due_s = self._now() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self._lag_s = max(self._lag_s, self._now() - self._due_s)

    def lag_s(self) -> float:
        """A wait that is going on and late already counts."""
        lag_s, self._lag_s = max(self._lag_s, self._now() - self._due_s, 0.0), 0.0
        return lag_s
