"""Writes of one turn of the loop, sent together at its end.

A write wakes the process on the other side, and waking one that sleeps on another core costs more than the write. Under
load a turn of the loop serves dozens of connections: when their writes leave back to back, the first one wakes the
other side and the rest find it awake. A turn with a single write pays a microsecond or two for it.

Only whole messages go through here: requests to providers, replies that are not streamed. Who writes to a transport
directly calls `flush()` first, so that nothing overtakes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Writes(Protocol):
    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool: ...


class Outbox:
    """One per worker. Without a loop nothing is held back."""

    __slots__ = ("_held", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._held: list[tuple[Writes, bytes]] = []

    def write(self, transport: Writes, data: bytes) -> None:
        if self._loop is None:
            transport.write(data)
            return
        held = self._held
        if not held:
            self._loop.call_soon(self.flush)
        held.append((transport, data))

    def flush(self) -> None:
        """Everything leaves now."""
        held = self._held
        if held:
            self._held = []
            for transport, data in held:
                if not transport.is_closing():
                    transport.write(data)
