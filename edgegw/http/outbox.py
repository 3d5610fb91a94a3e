"""Writes of one turn of the loop, sent together at its end.

A write wakes the process on the other side, and waking one that sleeps on another core costs more than the write. Under
load a turn of the loop serves dozens of connections: when their writes leave back to back, the first one wakes the
other side and the rest find it awake. A turn with a single write pays a microsecond or two for it.

Everything that a worker sends to clients and providers goes through here, so nothing overtakes. Who closes a transport
calls `flush()` first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Writes(Protocol):
    def write(self, data: bytes) -> None: ...


class Outbox:
    """One per worker. `soon` calls at the end of the turn (a loop's call_soon); without it nothing is held back."""

    __slots__ = ("_held", "_soon")

    def __init__(self, soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        self._soon = soon
        self._held: list[tuple[Writes, bytes]] = []

    def write(self, transport: Writes, data: bytes) -> None:
        if self._soon is None:
            transport.write(data)
            return
        held = self._held
        if not held:
            self._soon(self.flush)
        held.append((transport, data))

    def copying(self, sink: Callable[[bytes], None]) -> CopyingOutbox:
        """The same, for one writer whose bytes are told to `sink` as well."""
        return CopyingOutbox(self.write, sink)

    def flush(self) -> None:
        """Everything leaves now."""
        held = self._held
        if held:
            self._held = []
            for transport, data in held:
                try:
                    transport.write(data)
                except RuntimeError:  # uvloop's word for a transport that was closed in this turn
                    continue


class CopyingOutbox:
    """What a writer is given instead of the outbox, whose bytes are to be copied."""

    __slots__ = ("_sink", "_write")

    def __init__(self, write: Callable[[Writes, bytes], None], sink: Callable[[bytes], None]) -> None:
        self._write = write
        self._sink = sink

    def write(self, transport: Writes, data: bytes) -> None:
        self._sink(data)
        self._write(transport, data)
