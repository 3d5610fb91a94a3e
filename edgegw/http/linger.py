"""How long the rest of a refused message is read on, and thrown away.

Whoever closes a connection on which something still comes resets it, and to some clients (Node) a reset while they send
is the end, though the refusal was there before it (RFC 9112 9.6). So it is read on: for a moment, as long as it comes
with some speed, and not without end.
"""

from __future__ import annotations

LINGER_S = 2.0
BYTES_PER_S_MIN = 256 * 1024
BYTES_MAX = 64 * 1024 * 1024


class Lingering:
    """One connection's end."""

    __slots__ = ("_bytes", "_since_s")

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._bytes = 0

    def until_s(self, now_s: float) -> float:
        """When whoever sends on has to be gone, as far as is known now."""
        return LINGER_S + min(now_s, self._since_s + self._bytes / BYTES_PER_S_MIN)

    def takes(self, size: int) -> bool:
        """That much more has come. False: it is too much."""
        self._bytes += size
        return self._bytes <= BYTES_MAX
