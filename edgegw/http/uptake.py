"""Does a client take what we have for it, if slowly, or nothing at all?

Asked a few times within one wait. What counts is what the client's side has acknowledged: our own buffer moves in
strides of up to a third of the kernel's, for which a slow line needs more than a minute.
"""

from __future__ import annotations

import asyncio
import sys
import termios
from fcntl import ioctl

# Looks within a wait. Nobody is given up before nothing has moved from the first to the last of them: several, so that
# a worker which was stopped itself for a while does not take that for the client's silence.
LOOKS = 4


class Uptake:
    """One per wait for a client that has not taken what it was sent."""

    __slots__ = ("_idle_looks", "_unsent_bytes")

    def __init__(self) -> None:
        self._unsent_bytes = -1
        self._idle_looks = 0

    def goes_on(self, transport: asyncio.Transport) -> bool:
        """The next look: False when there is nothing to take, or nothing was taken for too many looks in a row."""
        if not transport.get_write_buffer_size():
            return False
        unsent_bytes = _not_acknowledged(transport)
        if 0 <= self._unsent_bytes <= unsent_bytes:
            self._idle_looks += 1
            return self._idle_looks < LOOKS - 1
        self._unsent_bytes = unsent_bytes
        self._idle_looks = 0
        return True


def _not_acknowledged(transport: asyncio.Transport) -> int:
    """Bytes in our buffer and in the kernel's."""
    unsent_bytes = transport.get_write_buffer_size()
    try:
        queued = ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:  # a system that does not say
        return unsent_bytes
    return unsent_bytes + int.from_bytes(queued, sys.byteorder)
