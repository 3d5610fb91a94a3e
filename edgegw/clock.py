"""The clock that shells hand to everybody else, and ids made from it.

Pure modules never read the time: they take `now_s` (monotonic seconds) or `wall_ns` (Unix nanoseconds) as arguments.
What owns a clock owns one of these; tests own a `ManualClock` and jump.
"""

from __future__ import annotations

from typing import Protocol

_UUID_VERSION_7 = 7 << 76
_UUID_VARIANT = 2 << 62
_LOW_62_BITS = (1 << 62) - 1
_HIGH_12_BITS = 0xFFF << 64


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


def uuid7(wall_ns: int, dice_80: int) -> str:
    """A UUIDv7 (RFC 9562, 5.7) in its text form: 48 bits of `wall_ns` in milliseconds, 74 of the 80 bits of `dice_80`."""
    number = (
        (wall_ns // 1_000_000) << 80
        | _UUID_VERSION_7
        | (dice_80 & _HIGH_12_BITS)
        | _UUID_VARIANT
        | (dice_80 & _LOW_62_BITS)
    )
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
