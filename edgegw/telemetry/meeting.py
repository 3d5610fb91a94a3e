"""Where a request that is over meets what was asked and answered in it, before both go to a collector.

The two come by different ways: the request from the journal, its content from a file that a thread of the worker put
down a moment later, or never (its worker died, there was no room). So a request waits for a bounded time, and goes on
without its content when that is over; content waits too, for a request that is read later, and then it is let go.
No request is ever lost here.

What must not be told is not told, whoever put it down: a tenant that has become `off` since, is off here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edgegw.clock import Clock
from edgegw.content.choice import Choice
from edgegw.content.record import Content
from edgegw.telemetry.spans import Told

# Content is there within some tenths of a second: a file is looked for ten times a second.
TOLD_WAIT_S = 2.0
CONTENT_WAIT_S = 10.0
# Requests that wait at most; beyond it the oldest goes on without its content.
TOLD_MAX = 2048
# Content that waits; beyond it no more is fetched (but what comes in one go may be an eighth more).
CONTENT_BYTES_MAX = 8 * 1024 * 1024
LOOK_EVERY_S = 0.25


@dataclass(slots=True)
class MeetingTally:
    """`attached`: requests that met their content; `missing`: that went on without it; `unclaimed`: content without a
    request; `refused`: content of a tenant that is off."""

    attached: int = 0
    missing: int = 0
    unclaimed: int = 0
    refused: int = 0


class Meeting:
    """`offer` is a sink of spans, `bring` is told by a courier; what has met, or waited long enough, goes to `onward`.
    `choice`: whose content is told."""

    def __init__(self, onward: Callable[[Told], None], choice: Choice, clock: Clock) -> None:
        self._onward = onward
        self._telling = choice.telling
        self._now = clock.now
        # Both in the order in which they came, and so in that in which their time is over.
        self._told: dict[str, tuple[float, Told]] = {}
        self._contents: dict[str, tuple[float, Content]] = {}
        self._content_bytes = 0
        self.tally = MeetingTally()

    @property
    def waiting(self) -> int:
        """Spans."""
        return sum(1 + len(told.attempts) for _, told in self._told.values())

    @property
    def room(self) -> bool:
        return self._content_bytes < CONTENT_BYTES_MAX

    def offer(self, told: Told) -> None:
        id_ = told.end.id
        if id_ in self._contents:
            _, content = self._contents.pop(id_)
            self._content_bytes -= content.size
            self._attach(told, content)
        elif self._has_content(told):
            if len(self._told) >= TOLD_MAX:
                self._go_on(next(iter(self._told)))
            self._told[id_] = self._now() + TOLD_WAIT_S, told
        else:
            self._onward(told)

    def bring(self, content: Content) -> None:
        id_ = content.request_id
        if self._telling(content.tenant, id_) == "off":
            self.tally.refused += 1
        elif id_ in self._told:
            self._attach(self._told.pop(id_)[1], content)
        elif id_ not in self._contents:
            self._contents[id_] = self._now() + CONTENT_WAIT_S, content
            self._content_bytes += content.size

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Whose time is over."""
        now_s = self._now()
        while self._told and next(iter(self._told.values()))[0] <= now_s:
            self._go_on(next(iter(self._told)))
        while self._contents and next(iter(self._contents.values()))[0] <= now_s:
            _, content = self._contents.pop(next(iter(self._contents)))
            self._content_bytes -= content.size
            self.tally.unclaimed += 1

    def close(self) -> None:
        """Nobody waits any more."""
        while self._told:
            self._go_on(next(iter(self._told)))

    def _has_content(self, told: Told) -> bool:
        """Whether a worker has put some down, as far as can be known. One that died has not."""
        end = told.end
        if not told.attempts or end.state == "interrupted":
            return False
        mode = self._telling(end.tenant, end.id)
        return mode == "all" or (mode == "errors" and end.state != "complete")

    def _attach(self, told: Told, content: Content) -> None:
        self.tally.attached += 1
        self._onward(msgspec.structs.replace(told, content=content))

    def _go_on(self, id_: str) -> None:
        self.tally.missing += 1
        self._onward(self._told.pop(id_)[1])
