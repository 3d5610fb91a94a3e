"""The clock that shells hand to everybody else, and ids made from it.

Pure modules never read the time: they take `now_s` (monotonic seconds) or `wall_ns` (Unix nanoseconds) as arguments.
What owns a clock owns one of these; tests own a `ManualClock` and jump.
"""

from __future__ import annotations

from typing import Protocol

_VARIANT = 0b10 << 14  # the two bits after which the second half of the dice begins


class Clock(Protocol):
    """Two readings: `now()` monotonic seconds for waits and durations, `wall_ns()` Unix nanoseconds for the books."""

    def now(self) -> float: ...

    def wall_ns(self) -> int: ...


class ManualClock:
    """A clock that stands still until it is told to jump (tests and simulations)."""

    def __init__(self, now_s: float = 1_000.0, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_s = now_s
        self._wall_ns = wall_ns

    def now(self) -> float:
        return self._now_s

    def wall_ns(self) -> int:
        return self._wall_ns

    def jump(self, seconds: float) -> None:
        self._now_s += seconds
        self._wall_ns += int(seconds * 1e9)


def uuid7(wall_ns: int, dice_74: int) -> str:
    """A UUIDv7 (RFC 9562, 5.7) in its text form: 48 bits of `wall_ns` in milliseconds and 74 bits of dice."""
    ms = wall_ns // 1_000_000
    return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031 (half the cost of an f-string with five formats)
        ms >> 16,
        ms & 0xFFFF,
        dice_74 >> 62 & 0xFFF,
        _VARIANT | dice_74 >> 48 & 0x3FFF,
        dice_74 & 0xFFFF_FFFF_FFFF,
    )
