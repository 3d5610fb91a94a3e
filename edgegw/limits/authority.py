"""The control side of the limits: who decides how much each worker may spend.

`Authority` is what the channel's server asks; `MemoryAuthority` keeps the stocks of one process group in memory. The
authority of many replicas (Redis) implements the same protocol.

Knows no sockets and no workers by name; time comes from the clock it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from edgegw.clock import Clock
from edgegw.limits.bucket import Stock, stock
from edgegw.limits.meter import Shape, read_meter
from edgegw.limits.words import Offer

STOCKS_BEFORE_SWEEP = 20_000  # about 4 MiB; only full ones are swept, and a full one is as good as a new one


class Authority(Protocol):
    """Grants what is spent before it is spent. Only `lease` may take time; the others return at once and never raise.
    `meter` is an id (meter.py)."""

    @property
    def replicas(self) -> int:
        """How many of us there are: lately seen, this one included."""
        ...

    async def lease(self, meter: str, want: int, need: int) -> Offer:
        """`want`, or at least `need`; granted 0 and `retry_after_s` when there is no room, never a queue.

        First come, first served. With `need` 0 it is a top-up: as much of `want` as there is. Whoever raises or does
        not answer is taken to be away, and the workers go on by themselves.
        """
        ...

    def give_back(self, meter: str, amount: int) -> None:
        """What was leased and not used; a negative amount was used without a lease and becomes a debt."""
        ...

    def spent(self, meter: str, amount: int) -> None:
        """Admitted by a worker unasked while nobody could be asked: becomes a debt where it is not there any more."""
        ...

    def recall(self, meter: str, level: int) -> None:
        """A worker remembers that no more than `level` is left: for authorities that forget when they restart."""
        ...

    def standing(self, meter: str) -> tuple[int, int] | None:
        """Its limit, and what is left of it and leased to nobody, as far as we know; None when nobody asked lately."""
        ...


class Remembered(Struct, array_like=True):
    """A stock as it is kept over a restart. `wall_s`: the Unix seconds at which `level` was true, of `limit`."""

    meter: str
    limit: int
    level: int
    wall_s: float


class MemoryAuthority:
    """One stock per meter. `limits` says what a meter allows and may change its mind: a new limit holds from the next
    ask on and forgets nothing that was used."""

    replicas = 1

    def __init__(self, limits: Callable[[str], int], clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._stocks: dict[str, Stock] = {}
        self._recalled: dict[str, Stock] = {}
        self._sweep_at = STOCKS_BEFORE_SWEEP
        self._complete = False  # what was restored is all that there was

    async def lease(self, meter: str, want: int, need: int) -> Offer:
        found, now_s = self._stock(meter)
        granted = found.take_between(need, want, now_s)
        retry_after_s = 0.0 if granted else found.room_at(need, now_s) - now_s
        return Offer(meter, granted, found.limit, found.level(now_s), retry_after_s, found.resets_s(now_s))

    def give_back(self, meter: str, amount: int) -> None:
        found, now_s = self._stock(meter)
        found.give(amount, now_s)

    def spent(self, meter: str, amount: int) -> None:
        self.give_back(meter, -amount)

    def recall(self, meter: str, level: int) -> None:
        """Several workers remember, and the lowest level counts; what was taken from the new stock meanwhile stays
        taken. So each one lowers the stock only by what the ones before, and our own memory, did not."""
        if self._complete:
            return
        found, now_s = self._stock(meter)
        lowest = self._recalled.get(meter)
        if lowest is None:
            lowest = self._recalled[meter] = stock(read_meter(meter).measure, found.limit, now_s)
        lower_by = lowest.level(now_s) - level
        if lower_by > 0:
            lowest.give(-lower_by, now_s)
            found.give(-lower_by, now_s)

    def level(self, meter: str) -> int:
        """What is not leased to anybody right now."""
        found, now_s = self._stock(meter)
        return found.level(now_s)

    def standing(self, meter: str) -> tuple[int, int] | None:
        if meter not in self._stocks:
            return None
        found, now_s = self._stock(meter)
        return found.limit, found.level(now_s)

    # -- over a restart --

    def remember(self, unspent: Mapping[str, int]) -> list[Remembered]:
        """All stocks that are not full, as if what workers hold `unspent` had come back already: they keep it and say
        what they spent of it. Slots are left out, as they are counted by who holds them."""
        wall_s = self._clock.wall_ns() / 1e9
        kept: list[Remembered] = []
        for meter, found in self._stocks.items():
            now_s = self._now_s(found.shape)
            if found.shape is not Shape.SLOTS and not found.full(now_s):
                level = min(found.level(now_s) + unspent.get(meter, 0), found.limit)
                kept.append(Remembered(meter, found.limit, level, wall_s))
        return kept

    def restore(self, kept: list[Remembered], *, complete: bool = False) -> None:
        """What an authority before this one remembered. Refilled for the time between; what was used stays used.
        `complete`: it had decided nothing after that, so that what workers recall is older, and not listened to."""
        self._complete = complete
        wall_s = self._clock.wall_ns() / 1e9
        for entry in kept:
            measure = read_meter(entry.meter).measure
            if measure.shape is Shape.WINDOW:
                found = stock(measure, entry.limit, entry.wall_s, entry.level)
                found.level(wall_s)  # the day may be over
            else:
                refilled = int(max(0.0, wall_s - entry.wall_s) * entry.limit / 60.0)
                now_s = self._now_s(measure.shape)
                found = stock(measure, entry.limit, now_s, min(entry.limit, entry.level + refilled))
            self._stocks[entry.meter] = found
            now_s = self._now_s(measure.shape)
            self._recalled[entry.meter] = stock(measure, entry.limit, now_s, found.level(now_s))

    def _stock(self, meter: str) -> tuple[Stock, float]:
        """The meter's stock, of its present limit, and the time that it goes by."""
        limit = self._limits(meter)
        found = self._stocks.get(meter)
        if found is None:
            measure = read_meter(meter).measure
            now_s = self._now_s(measure.shape)
            self._sweep()
            found = self._stocks[meter] = stock(measure, limit, now_s)
            return found, now_s
        now_s = self._now_s(found.shape)
        if found.limit != limit:
            found.resize(limit, now_s)
        return found, now_s

    def _now_s(self, shape: Shape) -> float:
        return self._clock.wall_ns() / 1e9 if shape is Shape.WINDOW else self._clock.now()

    def _sweep(self) -> None:
        """Forgets full stocks, each time twice as many as are in use have gathered: constant work per new meter."""
        if len(self._stocks) < self._sweep_at:
            return
        self._stocks, self._recalled = (
            {meter: found for meter, found in stocks.items() if not found.full(self._now_s(found.shape))}
            for stocks in (self._stocks, self._recalled)
        )
        self._sweep_at = max(STOCKS_BEFORE_SWEEP, 2 * len(self._stocks))
