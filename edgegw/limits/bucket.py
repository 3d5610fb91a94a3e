"""What may still be taken of a meter, and when there will be room: a class for each shape (meter.py), in whole numbers.

`Bucket` refills continuously, its capacity within a minute. Levels are kept in *parts*, 60,000,000 to the token, so
that one microsecond refills exactly `limit` parts: nothing is ever rounded, however often somebody looks. The law
(tests/test_bucket.py): over any window of w seconds what is taken, less what is given back, is at most
`limit + limit / 60 * w`. `Window` is full at the beginning of each day or month (UTC); `Slots` never refills.

Knows no clock: `now_s` are monotonic seconds for Bucket and Slots, Unix seconds for Window. Time that runs backwards
refills nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from math import inf

from edgegw.limits.meter import Measure, Shape

PARTS = 60_000_000  # per token: microseconds in a minute
MICROS_PER_S = 1_000_000
DAY_S = 86_400.0
SLOT_WAIT_S = 1.0  # nobody knows when a request ends; come back so soon


class Stock(ABC):
    """What the three have in common. `limit` is the most that can be there; a level below zero is a debt: somebody used
    more than was reserved. It is paid before anything is granted."""

    __slots__ = ("limit",)

    shape: Shape
    limit: int

    @abstractmethod
    def level(self, now_s: float) -> int:
        """Whole tokens that are there (a debt: whole tokens that are missing, as a negative number)."""

    @abstractmethod
    def give(self, tokens: int, now_s: float) -> None:
        """Back into it, never above the brim. A negative number charges, into debt if need be."""

    @abstractmethod
    def resize(self, limit: int, now_s: float) -> None:
        """Another limit from now on. What was used stays used, so that lowering a limit can leave a debt."""

    @abstractmethod
    def room_at(self, tokens: int, now_s: float) -> float:
        """When `tokens` will be there if nobody takes any: `now_s` if they are, inf if never."""

    def full(self, now_s: float) -> bool:
        return self.level(now_s) >= self.limit

    def take(self, tokens: int, now_s: float) -> bool:
        """All of `tokens`, or nothing."""
        if self.level(now_s) < tokens:
            return False
        self.give(-tokens, now_s)
        return True

    def take_between(self, need: int, want: int, now_s: float) -> int:
        """As much as there is of `want`, but not less than `need`: 0 when not even that is there."""
        room = self.level(now_s)
        if room < need or room <= 0:
            return 0
        granted = min(room, max(want, need))
        self.give(-granted, now_s)
        return granted

    def drain(self, tokens: int, now_s: float) -> None:
        """Takes up to `tokens`, but makes no debt."""
        self.give(-max(0, min(tokens, self.level(now_s))), now_s)

    def resets_s(self, now_s: float) -> float:
        """Until all of it is there again whatever happens; 0 for what knows no such moment."""
        return 0.0


class Bucket(Stock):
    """`limit` tokens per minute, at most `limit` at once; full when new unless `level` says otherwise."""

    __slots__ = ("_level", "_stamp_us")

    shape = Shape.REFILLS

    def __init__(self, limit: int, now_s: float, level: int | None = None) -> None:
        self.limit = limit
        self._level = (limit if level is None else min(level, limit)) * PARTS
        self._stamp_us = round(now_s * MICROS_PER_S)

    def level(self, now_s: float) -> int:
        return self._refill(now_s) // PARTS

    def full(self, now_s: float) -> bool:
        return self._refill(now_s) >= self.limit * PARTS

    def give(self, tokens: int, now_s: float) -> None:
        self._level = min(self._refill(now_s) + tokens * PARTS, self.limit * PARTS)

    def drain(self, tokens: int, now_s: float) -> None:
        level = self._refill(now_s)
        self._level = max(level - tokens * PARTS, min(level, 0))

    def resize(self, limit: int, now_s: float) -> None:
        self._level = self._refill(now_s) + (limit - self.limit) * PARTS
        self.limit = limit

    def room_at(self, tokens: int, now_s: float) -> float:
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


class Window(Stock):
    """`limit` tokens in each calendar day or month of UTC. `now_s` are Unix seconds. A debt ends with its window.

    A clock that is set back does not fill it again; one that had been wrong by more than a window does not make it last
    until then."""

    __slots__ = ("_ends_s", "_level", "_monthly")

    shape = Shape.WINDOW

    def __init__(self, limit: int, now_s: float, level: int | None = None, *, monthly: bool = False) -> None:
        self.limit = limit
        self._monthly = monthly
        self._level = limit if level is None else min(level, limit)
        self._ends_s = window_end(now_s, monthly)

    def level(self, now_s: float) -> int:
        if now_s >= self._ends_s:
            self._level = self.limit
            self._ends_s = window_end(now_s, self._monthly)
        elif self._ends_s - now_s > (62 if self._monthly else 2) * DAY_S:
            self._ends_s = window_end(now_s, self._monthly)
        return self._level

    def give(self, tokens: int, now_s: float) -> None:
        self._level = min(self.level(now_s) + tokens, self.limit)

    def resize(self, limit: int, now_s: float) -> None:
        self._level = self.level(now_s) + limit - self.limit
        self.limit = limit

    def room_at(self, tokens: int, now_s: float) -> float:
        if tokens <= self.level(now_s):
            return now_s
        return self._ends_s if tokens <= self.limit else inf

    def resets_s(self, now_s: float) -> float:
        self.level(now_s)
        return self._ends_s - now_s


class Slots(Stock):
    """`limit` requests at once. Who takes one gives it back, sooner or later."""

    __slots__ = ("_level",)

    shape = Shape.SLOTS

    def __init__(self, limit: int, now_s: float, level: int | None = None) -> None:
        self.limit = limit
        self._level = limit if level is None else min(level, limit)

    def level(self, now_s: float) -> int:
        return self._level

    def give(self, tokens: int, now_s: float) -> None:
        self._level = min(self._level + tokens, self.limit)

    def resize(self, limit: int, now_s: float) -> None:
        self._level += limit - self.limit
        self.limit = limit

    def room_at(self, tokens: int, now_s: float) -> float:
        if tokens <= self._level:
            return now_s
        return now_s + SLOT_WAIT_S if tokens <= self.limit else inf


def stock(measure: Measure, limit: int, now_s: float, level: int | None = None) -> Stock:
    """A new one of the measure's shape; `level` when it is not full."""
    if measure.shape is Shape.REFILLS:
        return Bucket(limit, now_s, level)
    if measure.shape is Shape.SLOTS:
        return Slots(limit, now_s, level)
    return Window(limit, now_s, level, monthly=measure.code == "month")


def window_end(now_s: float, monthly: bool) -> float:
    """When the day or month of UTC in which `now_s` lies is over; both are Unix seconds."""
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    following = (day.replace(day=1) + timedelta(days=32)).replace(day=1) if monthly else day + timedelta(days=1)
    return following.timestamp()
