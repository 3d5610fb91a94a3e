"""Paced streams: many at once, each begun again when it ends, and a window in the middle in which events are counted.

An event counts when its content text has arrived, so all contenders are counted alike, whether they passed the
provider's bytes through or translated them. A stream is good when every event and the dialect's terminator came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from load.measure import percentile
from load.wire import EVENTS_PER_STREAM, LAST_CHUNK, MARK

# Starts are spread over one second and the window opens half a second later, when all are under way.
RAMP_S = 1.0
SETTLE_S = 0.5
_KEEP = len(MARK) - 1  # what of the last bytes may be the beginning of a mark


@dataclass(slots=True)
class StreamTally:
    """`events` and `seconds` are of the window alone, everything else of the whole run."""

    events: int = 0
    seconds: float = 0.0
    finished: int = 0
    failed: int = 0
    first_failure: str = ""
    first_byte_p50_s: float = 0.0


class _Counts:
    __slots__ = ("events", "failed", "finished", "first_bytes_s", "first_failure", "stopping")

    def __init__(self) -> None:
        self.events = 0
        self.finished = 0
        self.failed = 0
        self.first_failure = ""
        self.first_bytes_s: list[float] = []
        self.stopping = False

    def fail(self, what: str) -> None:
        self.failed += 1
        self.first_failure = self.first_failure or what


class _Stream(asyncio.Protocol):
    """One connection with one stream after another on it."""

    __slots__ = (
        *("_counts", "_dropped", "_fresh", "_marks", "_request", "_sent_at", "_tail", "_terminated", "_terminator"),
        "_transport",
    )

    def __init__(self, counts: _Counts, request: bytes, terminator: bytes) -> None:
        self._counts = counts
        self._request = request
        self._terminator = terminator
        self._dropped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of asyncio's classes
        self._begin()

    def _begin(self) -> None:
        self._fresh = True
        self._marks = 0
        self._tail = b""
        self._terminated = False
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        counts = self._counts
        if self._fresh:
            self._fresh = False
            counts.first_bytes_s.append(time.perf_counter() - self._sent_at)
            if not data.startswith(b"HTTP/1.1 200"):
                self._broken(data[:300].decode("latin-1"))
                return
        joined = self._tail + data
        marks = joined.count(MARK)
        self._marks += marks
        counts.events += marks
        self._tail = joined[-_KEEP:]
        if self._terminator in data:
            self._terminated = True
        if data.endswith(LAST_CHUNK):
            self._ended()

    def _ended(self) -> None:
        if self._marks != EVENTS_PER_STREAM or not self._terminated:
            ending = "with" if self._terminated else "without"
            self._broken(f"{self._marks} of {EVENTS_PER_STREAM} events, {ending} the terminator")
            return
        self._counts.finished += 1
        if not self._counts.stopping:
            self._begin()

    def _broken(self, what: str) -> None:
        self._counts.fail(what)
        self.drop()

    def drop(self) -> None:
        self._dropped = True
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._dropped:
            self._counts.fail(f"connection lost in a stream: {exc or 'closed'}")


async def run(
    port: int,
    request: bytes,
    terminator: bytes,
    *,
    streams: int,
    seconds: float,
    at_edge: Callable[[], None],
) -> StreamTally:
    """Keep `streams` going for `seconds` after the ramp. `at_edge` is called when the window opens and when it closes,
    right beside the reading of the event count: take the CPU figures there. Streams still going then are dropped."""
    loop = asyncio.get_running_loop()
    counts = _Counts()
    opened: list[_Stream] = []
    for _ in range(streams):
        try:
            _, stream = await loop.create_connection(lambda: _Stream(counts, request, terminator), "127.0.0.1", port)
        except OSError as error:
            counts.fail(f"cannot connect: {error}")
            continue
        opened.append(stream)
        await asyncio.sleep(RAMP_S / streams)
    await asyncio.sleep(SETTLE_S)
    at_edge()
    events_before, opened_at = counts.events, time.perf_counter()
    await asyncio.sleep(seconds)
    at_edge()
    tally = StreamTally(events=counts.events - events_before, seconds=time.perf_counter() - opened_at)
    counts.stopping = True
    for stream in opened:
        stream.drop()
    tally.finished, tally.failed, tally.first_failure = counts.finished, counts.failed, counts.first_failure
    tally.first_byte_p50_s = percentile(counts.first_bytes_s, 0.5) if counts.first_bytes_s else 0.0
    return tally
