"""The queue between what happened and whoever wants to hear of it: batches, second tries, and what becomes of the rest.

Nobody ever waits for a destination. What it does not take in time is dropped, counted by reason, and told in one line a
minute at most: rows are exact, spans are a courtesy.

    queue_full   more waits than OTEL_BSP_MAX_QUEUE_SIZE
    unreachable  no connection, no answer in time, or an answer that asks for another try, until no time was left
    refused      the destination does not want it (a 400, a 401, …)
    rejected     it took the batch, but not these
    stopped      the gateway was stopped first
    failed       a defect of ours
    forgotten    an attempt whose request went on for too long (spans.py)
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from edgegw.clock import Clock
from edgegw.telemetry.spans import Told

# As OpenTelemetry's exporters do it: 1 s, then twice as long each time, up to half a minute; less by up to a half.
BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 32.0
LOG_EVERY_S = 60.0
# Prompts and answers in one batch (collectors take 4 MiB by gRPC, as a rule), and in all that waits: beyond that spans
# go without theirs. Those of a single request may be larger.
BATCH_CONTENT_BYTES = 2 * 1024 * 1024
QUEUE_CONTENT_BYTES_MAX = 16 * 1024 * 1024

_log = logging.getLogger(__name__)


class AwayError(Exception):
    """Not now. `after_s`: when the destination wants to be asked again, if it said so."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class RefusedError(Exception):
    """Never: the same batch will not be taken."""


class Destination(Protocol):
    """Where spans go. `pack` is called once for a batch, `post` until it returns or the time is over."""

    async def pack(self, batch: Sequence[Told]) -> Any:
        """What `post` sends, worked out in slices that leave the loop to others."""

    async def post(self, packed: Any) -> int:
        """Sends it, within a bound of its own. The spans that were not taken. Raises AwayError or RefusedError."""

    async def close(self) -> None: ...


@dataclass(slots=True)
class Tally:
    """Spans since the control process started. `bare`: requests whose content there was no room for."""

    sent: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    bare: int = 0


class Exporter:
    """One per destination; `run()` is a task. A batch goes when it is full, or `delay_s` after its first span came;
    `timeout_s` is for all tries of one batch."""

    def __init__(
        self,
        destination: Destination,
        clock: Clock,
        dice: Callable[[], float],
        *,
        delay_s: float,
        queue_spans_max: int,
        batch_spans_max: int,
        timeout_s: float,
    ) -> None:
        self._destination = destination
        self._now = clock.now
        self._dice = dice
        self._delay_s = delay_s
        self._queue_spans_max = queue_spans_max
        self._batch_spans_max = batch_spans_max
        self._timeout_s = timeout_s
        self._queue: deque[Told] = deque()
        self._some, self._enough, self._stopping = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._quiet_until_s = 0.0
        self._unsaid = 0
        self._task: asyncio.Task[None] | None = None
        self._content_bytes = 0
        self.waiting = 0  # spans
        self.tally = Tally()

    def offer(self, told: Told) -> None:
        """Queue it, or drop it. Costs next to nothing."""
        spans = 1 + len(told.attempts)
        if self.waiting + spans > self._queue_spans_max:
            self._drop("queue_full", spans, "more come than are taken")
            return
        size = _content_bytes(told)
        if size and self._content_bytes and self._content_bytes + size > QUEUE_CONTENT_BYTES_MAX:
            told, size = msgspec.structs.replace(told, content=None), 0
            self.tally.bare += 1
        self._content_bytes += size
        self._queue.append(told)
        self.waiting += spans
        if not self._some.is_set():
            self._some.set()
        if self.waiting >= self._batch_spans_max or self._content_bytes >= BATCH_CONTENT_BYTES:
            self._enough.set()

    async def run(self) -> None:
        """Until stopped and empty."""
        self._task = asyncio.current_task()
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._delay_s):
                    await self._enough.wait()
            batch, spans, content_bytes = self._take()
            if batch:
                await self._export(batch, spans)
                self._content_bytes -= content_bytes
            elif self._stopping.is_set():
                return

    async def stop(self, timeout_s: float) -> None:
        """Send what waits, with one try for each batch, then end."""
        self._stopping.set()
        self._some.set()
        self._enough.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=timeout_s)
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self.waiting:
            self._drop("stopped", self.waiting, "the gateway stops")
        await self._destination.close()

    def _take(self) -> tuple[list[Told], int, int]:
        """A batch; how many spans, and how many bytes of content are in it."""
        batch: list[Told] = []
        spans = content_bytes = 0
        queue = self._queue
        while queue and spans < self._batch_spans_max and content_bytes < BATCH_CONTENT_BYTES:
            told = queue.popleft()
            batch.append(told)
            spans += 1 + len(told.attempts)
            content_bytes += _content_bytes(told)
        if not self._stopping.is_set():
            if not queue:
                self._some.clear()
            left_bytes = self._content_bytes - content_bytes
            if self.waiting - spans < self._batch_spans_max and left_bytes < BATCH_CONTENT_BYTES:
                self._enough.clear()
        return batch, spans, content_bytes

    async def _export(self, batch: list[Told], spans: int) -> None:
        """Spans under way count as waiting: a destination that hangs fills the queue, and not the memory."""
        try:
            rejected = await self._insist(await self._destination.pack(batch))
        except AwayError as error:
            self._drop("unreachable", spans, str(error))
        except RefusedError as error:
            self._drop("refused", spans, str(error))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _log.exception("spans cannot be exported")
            self._drop("failed", spans, type(error).__name__)
        else:
            self.tally.sent += spans - rejected
            if rejected:
                self._drop("rejected", rejected, "the collector took the rest of their batch")
        self.waiting -= spans

    async def _insist(self, packed: Any) -> int:
        deadline_s = self._now() + self._timeout_s
        backoff_s = BACKOFF_MIN_S
        while True:
            try:
                return await self._destination.post(packed)
            except AwayError as error:
                pause_s = backoff_s * (1 - self._dice() / 2) if error.after_s is None else error.after_s
                if self._stopping.is_set() or self._now() + pause_s > deadline_s:
                    raise
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def _drop(self, reason: str, spans: int, why: str) -> None:
        dropped = self.tally.dropped
        dropped[reason] = dropped.get(reason, 0) + spans
        self._unsaid += spans
        now_s = self._now()
        if now_s >= self._quiet_until_s:
            _log.warning("%d spans dropped (%s): %s", self._unsaid, reason, why)
            self._unsaid = 0
            self._quiet_until_s = now_s + LOG_EVERY_S


def _content_bytes(told: Told) -> int:
    return 0 if told.content is None else told.content.size
