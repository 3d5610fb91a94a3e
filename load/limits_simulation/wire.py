"""Connections in virtual time: bytes that take a while, arrive in order, wait out a partition, or are lost with an end.

A `Wire` has two ends, transports of asyncio protocols that do not know the difference. Kernel buffers are endless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any

from load.limits_simulation.loop import VirtualLoop

UNDER_WAY_S = 0.005  # after an abort so long what is in the network may still arrive

Delay = Callable[[], float]
"""How long what is sent now is under way, in seconds."""


class End(asyncio.Transport):
    def __init__(self, loop: VirtualLoop, protocol: asyncio.Protocol, delay: Delay) -> None:
        super().__init__()
        self.other: End | None = None
        self._loop = loop
        self._protocol = protocol
        self._delay = delay
        self._arrives_s = 0.0  # of the last byte: none overtakes another
        self._lost_after_s = inf
        self._gone = False

    def write(self, data: Any) -> None:
        if not self._gone:
            self._send(self.other_end()._arrived, bytes(data))

    def close(self) -> None:
        """What was written arrives, and then the end."""
        if not self._gone:
            self._send(self.other_end()._ended)
            self._gone = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """What is held back on its way (by a partition) is never sent again."""
        self._lost_after_s = self._loop.time() + UNDER_WAY_S
        self.close()

    def vanish(self) -> None:
        """Our process is dead: nobody on this side hears anything any more; the other one hears the end."""
        if not self._gone:
            self._send(self.other_end()._ended)
            self._gone = True

    def is_closing(self) -> bool:
        return self._gone

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def other_end(self) -> End:
        assert self.other is not None
        return self.other

    def _send(self, arrive: Callable[..., None], *what: bytes) -> None:
        self._arrives_s = max(self._arrives_s, self._loop.time() + self._delay())
        self._loop.call_at(self._arrives_s, self._over, arrive, *what)

    def _over(self, arrive: Callable[..., None], *what: bytes) -> None:
        if not what or self._loop.time() <= self._lost_after_s:
            arrive(*what)

    def _arrived(self, data: bytes) -> None:
        if not self._gone:
            self._protocol.data_received(data)

    def _ended(self) -> None:
        if not self._gone:
            self._gone = True
            self._protocol.connection_lost(None)


def connect(loop: VirtualLoop, near: asyncio.Protocol, far: asyncio.Protocol, delay: Delay) -> End:
    """Joins two protocols; returns the near end."""
    ends = End(loop, near, delay), End(loop, far, delay)
    ends[0].other, ends[1].other = ends[1], ends[0]
    far.connection_made(ends[1])
    near.connection_made(ends[0])
    return ends[0]
