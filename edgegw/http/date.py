"""The `date` of replies (RFC 9110 6.6.1), written once a second and not for each."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import formatdate

_NS = 1_000_000_000


class Date:
    """`line` is the header line of now. A waiter of the Watch. `wall_ns` tells Unix nanoseconds."""

    __slots__ = ("_wall_ns", "expires_s", "line")

    def __init__(self, wall_ns: Callable[[], int]) -> None:
        self._wall_ns = wall_ns
        self.line = b""
        self.expires_s = 0.0
        self.expire(0.0)

    def expire(self, now_s: float) -> None:
        """The second is over."""
        second, beyond_ns = divmod(self._wall_ns(), _NS)
        self.line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")
        self.expires_s = now_s + 1 - beyond_ns / _NS
