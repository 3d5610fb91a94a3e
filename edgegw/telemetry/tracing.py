"""Traces as the control process has them: the observer of records and the exporters behind it, as one thing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from edgegw.telemetry.export import Exporter
from edgegw.telemetry.spans import Spans


class Tracing:
    """`spans.observe` is told of every record; between `start()` and `stop()` what it keeps is exported."""

    def __init__(self, spans: Spans, exporters: Sequence[Exporter]) -> None:
        self.spans = spans
        self._exporters = tuple(exporters)
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._running = [asyncio.create_task(exporter.run()) for exporter in self._exporters]

    async def stop(self, timeout_s: float) -> None:
        """Export what there is, for so long at most."""
        await asyncio.gather(*(exporter.stop(timeout_s) for exporter in self._exporters))

    @property
    def sent(self) -> int:
        return sum(exporter.tally.sent for exporter in self._exporters)

    @property
    def waiting(self) -> int:
        return sum(exporter.waiting for exporter in self._exporters)

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
