"""Traces as the control process has them: the observer of records and the exporters behind it, as one thing; and where
prompts and answers are told, who brings them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from edgegw.content.courier import Courier
from edgegw.telemetry.export import Exporter
from edgegw.telemetry.meeting import Meeting
from edgegw.telemetry.spans import Spans

FETCH_TIMEOUT_S = 1.0


class Contents(NamedTuple):
    """Who brings prompts and answers, and where they meet their requests."""

    courier: Courier
    meeting: Meeting


class Tracing:
    """`spans.observe` is told of every record; between `start()` and `stop()` what it keeps is exported."""

    def __init__(self, spans: Spans, exporters: Sequence[Exporter], contents: Contents | None = None) -> None:
        """`contents`: None when no content is told."""
        self.spans = spans
        self.contents = contents
        self._exporters = tuple(exporters)
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._running = [asyncio.create_task(exporter.run()) for exporter in self._exporters]
        if self.contents is not None:
            self.contents.courier.start()
            self._running.append(asyncio.create_task(self.contents.meeting.run()))

    async def stop(self, timeout_s: float) -> None:
        """Export what there is, for so long at most, and a moment for what is still to be fetched."""
        if self.contents is not None:
            await self.contents.courier.stop(FETCH_TIMEOUT_S)
            self._running.pop().cancel()
            self.contents.meeting.close()
        await asyncio.gather(*(exporter.stop(timeout_s) for exporter in self._exporters))

    @property
    def sent(self) -> int:
        return sum(exporter.tally.sent for exporter in self._exporters)

    @property
    def waiting(self) -> int:
        waiting = 0 if self.contents is None else self.contents.meeting.waiting
        return waiting + sum(exporter.waiting for exporter in self._exporters)

    @property
    def dropped(self) -> dict[tuple[str, ...], int]:
        """Spans by (reason,)."""
        dropped: dict[tuple[str, ...], int] = {}
        for exporter in self._exporters:
            for reason, count in exporter.tally.dropped.items():
                dropped[reason,] = dropped.get((reason,), 0) + count
        if self.spans.forgotten:
            dropped["forgotten",] = self.spans.forgotten
        return dropped

    @property
    def content(self) -> dict[tuple[str, ...], int]:
        """Requests by (what became of their content,); nothing where none is told."""
        if self.contents is None:
            return {}
        tally = self.contents.meeting.tally
        bare = sum(exporter.tally.bare for exporter in self._exporters)
        outcomes = {"attached": tally.attached - bare, "no_room": bare, "missing": tally.missing}
        outcomes |= {"unclaimed": tally.unclaimed, "refused": tally.refused}
        return {(outcome,): count for outcome, count in outcomes.items()}
