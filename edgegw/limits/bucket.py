"""A token bucket that refills continuously, in whole numbers: what may still be taken, and when there will be room.

The capacity is one minute's worth of tokens. Levels are kept in *parts*, 60,000,000 to the token, so that one
microsecond refills exactly `limit` parts: nothing is ever rounded, however often somebody looks.

The law (tests/test_bucket.py): over any window of w seconds what is taken, less what is given back, is at most
`limit + limit / 60 * w`. Knows no clock: `now_s` are monotonic seconds, and time that runs backwards refills nothing.
"""

from __future__ import annotations

from math import inf

PARTS = 60_000_000  # per token: microseconds in a minute
MICROS_PER_S = 1_000_000


class Bucket:
    """`limit` tokens per minute, at most `limit` at once; full when new unless `level` says otherwise.

    A level below zero is a debt: somebody used more than was reserved. It is paid back by the refill, and nothing is
    granted until it is.
    """

    __slots__ = ("_level", "_stamp_us", "limit")

    def __init__(self, limit: int, now_s: float, level: int | None = None) -> None:
        self.limit = limit
        self._level = (limit if level is None else min(level, limit)) * PARTS
        self._stamp_us = round(now_s * MICROS_PER_S)

    def level(self, now_s: float) -> int:
        """Whole tokens that are there (a debt: whole tokens that are missing, as a negative number)."""
        return self._refill(now_s) // PARTS

    def full(self, now_s: float) -> bool:
        return self._refill(now_s) >= self.limit * PARTS

    def take(self, tokens: int, now_s: float) -> bool:
        """All of `tokens`, or nothing."""
        level = self._refill(now_s)
        if level < tokens * PARTS:
            return False
        self._level = level - tokens * PARTS
        return True

    def take_between(self, need: int, want: int, now_s: float) -> int:
        """As much as there is of `want`, but not less than `need`: 0 when not even that is there."""
        room = self._refill(now_s) // PARTS
        if room < need or room <= 0:
            return 0
        granted = min(room, max(want, need))
        self._level -= granted * PARTS
        return granted

    def give(self, tokens: int, now_s: float) -> None:
        """Back into the bucket, never above its brim. A negative number charges, into debt if need be."""
        self._level = min(self._refill(now_s) + tokens * PARTS, self.limit * PARTS)

    def drain(self, tokens: int, now_s: float) -> None:
        """Takes up to `tokens`, but makes no debt."""
        level = self._refill(now_s)
        self._level = max(level - tokens * PARTS, min(level, 0))

    def resize(self, limit: int, now_s: float) -> None:
        """Another limit from now on. What was used stays used, so that lowering a limit can leave a debt."""
        self._level = self._refill(now_s) + (limit - self.limit) * PARTS
        self.limit = limit

    def room_at(self, tokens: int, now_s: float) -> float:
        """When `tokens` will be there if nobody takes any, in monotonic seconds: `now_s` if they are, inf if never."""
        missing = tokens * PARTS - self._refill(now_s)
        if missing <= 0:
            return now_s
        if tokens > self.limit or self.limit == 0:
            return inf
        wait_us = -(-missing // self.limit)
        return (self._stamp_us + wait_us) / MICROS_PER_S

    def _refill(self, now_s: float) -> int:
        now_us = round(now_s * MICROS_PER_S)
        elapsed_us = now_us - self._stamp_us
        if elapsed_us > 0:
            self._stamp_us = now_us
            self._level = min(self._level + elapsed_us * self.limit, self.limit * PARTS)
        return self._level
