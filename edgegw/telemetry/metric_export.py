"""All metrics to a collector, once a minute.

They are cumulative, so what one export did not bring the next one does: nothing is queued, and a collector that is away
costs nothing but an attempt a minute, counted and told when it begins and when it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from typing import Protocol

from edgegw.clock import Clock
from edgegw.telemetry.export import AwayError, RefusedError
from edgegw.telemetry.metrics import Metrics
from edgegw.telemetry.otlp_metrics import MetricEncoder

# Families encoded before others have their turn on the loop.
SLICE = 8

_log = logging.getLogger(__name__)


class Post(Protocol):
    """A collector that takes messages (collector.py)."""

    async def request(self, body: bytes) -> bytes: ...

    async def post(self, packed: bytes) -> int: ...

    async def close(self) -> None: ...


class MetricExporter:
    """`run()` is a task; `stop()` exports a last time. `failures` are by reason."""

    def __init__(
        self,
        metrics: Metrics,
        encoder: MetricEncoder,
        collector: Post,
        clock: Clock,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        self._metrics = metrics
        self._encoder = encoder
        self._collector = collector
        self._wall_ns = clock.wall_ns
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self.exports = 0
        self.failures: Counter[tuple[str, ...]] = Counter()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self, timeout_s: float) -> None:
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=timeout_s)
            self._task.cancel()
            await asyncio.wait((self._task,))
        await self._collector.close()

    async def _run(self) -> None:
        last = False
        while not last:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._stopping.wait()
            last = self._stopping.is_set()
            await self._export()

    async def _export(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                refused = await self._collector.post(await self._collector.request(await self._message()))
        except (AwayError, TimeoutError) as error:
            self._failed("unreachable", str(error) or "not within OTEL_METRIC_EXPORT_TIMEOUT")
        except RefusedError as error:
            self._failed("refused", str(error))
        except Exception as error:
            if not self._failing:
                _log.exception("a defect in the export of metrics")
            self._failed("failed", type(error).__name__)
        else:
            self.exports += 1
            if refused:
                self._failed("rejected", f"the collector does not take {refused} of the points")
            elif self._failing:
                self._failing = False
                _log.info("metrics are exported again")

    async def _message(self) -> bytes:
        now_ns = self._wall_ns()
        encoded = []
        for number, (family, samples) in enumerate(self._metrics.families()):
            encoded.append(self._encoder.metric(family, samples, now_ns))
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return self._encoder.request(encoded)

    def _failed(self, reason: str, why: str) -> None:
        self.failures[reason,] += 1
        if not self._failing:
            _log.warning("metrics are not exported (%s): %s", reason, why)
        self._failing = True
