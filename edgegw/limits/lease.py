"""The worker's side of the limits: what was taken from the authority beforehand, and is spent here.

A `Lease` is one meter's amount in hand. It is topped up before it runs out, follows recent use, gives back what it no
longer needs, and goes on with a small stock of its own while the authority is away. `Leases` keeps them.

Pure: decides and counts. Who waits for what, and how words travel, is limiter.py and channel.py. `now_s` are monotonic
seconds of the worker; amounts are in the meter's unit, here called tokens.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from math import inf
from typing import Generic, TypeVar

from edgegw.limits.bucket import SLOT_WAIT_S, Bucket, Slots, Stock
from edgegw.limits.meter import Shape, read_meter
from edgegw.limits.standing import LINES, Standing, duration
from edgegw.limits.words import Offer

CHECK_EVERY_S = 0.1  # how often a lease in use looks at itself: ten small sums a second, and idle means seen idle
IDLE_S = 0.25  # unused for so long (seen at the next check): all of it goes back
RATE_MEMORY_S = 0.5  # time constant of the recent rate: follows a burst within a few checks, forgets it as fast
HORIZON_S = 2.0  # a lease should last so long at the recent rate
LOW_WATER_SHARE = 4  # and is topped up when a quarter is left: an ask in 1.5 s, and half a second for the answer
LIMIT_SHARE = 100  # a lease aims at 1/100 of the limit at most and gives back above twice that: 2 % at most lie idle
REMAINING_SHARE = 8  # and at 1/8 of what is left, so that the last tokens of a minute lie where everybody can take them
LONE_CHECKS = 1  # so many checks that saw use make no lease yet: a lone request takes what it needs, and is gone
REFUSAL_HOLDS_S = 0.02  # after a refusal as large a request is refused unasked: a flood of them costs 50 asks a second

_REFILLS, _SLOTS = Shape.REFILLS, Shape.SLOTS


class Lease:
    """One meter's tokens in this worker. `level` may be spent without asking; below zero it is a debt to be paid.

    `tally[place]` counts what was spent of what was leased, settlements included: others can read it after our death
    (tally.py). It is never set back, as nobody knows who reads it at the moment; `base` is where it began. There is a
    second cell beside it, for the next channel, `place ^ 1`.
    """

    __slots__ = (
        "base",
        "charged",
        "checked_s",
        "ends_s",
        "followed",
        "heard_s",
        "level",
        "limit",
        "local",
        "low_water",
        "measure",
        "meter",
        "mode",
        "place",
        "rate",
        "remaining",
        "shape",
        "spent",
        "tally",
        "target",
        "untouched",
        "used_s",
        "uses",
        "window",
    )

    def __init__(
        self, meter: str, limit: int, now_s: float, tally: MutableSequence[int] | None = None, place: int = 0
    ) -> None:
        self.meter = meter
        self.measure = read_meter(meter).measure
        self.shape = self.measure.shape
        self.limit = limit
        self.tally: MutableSequence[int] = [0, 0] if tally is None else tally
        self.place = place
        self.base = self.tally[place]
        self.followed = False  # the control process reads our cell: it has answered since the channel opened
        self.level = 0
        self.spent = 0  # since the last check, net of what was settled back
        self.rate = 0.0  # tokens per second
        self.target = 0  # what a top-up fills to
        self.low_water = 0  # below it a top-up is due
        self.remaining = limit  # as the authority said at heard_s
        self.heard_s: float | None = None
        self.mode = 0  # a Mode: how the authority counted when it was last heard
        self.ends_s = inf  # of the day or month
        self.window = 0  # how many of them are over
        self.checked_s = now_s
        self.used_s = now_s
        self.uses = 0  # checks that saw something spent, since it woke
        self.local: Stock | None = None  # while the authority is away
        self.untouched: Stock | None = None  # beside it: as it would be if nothing had been admitted from it
        self.charged = 0  # admitted from `local`, not yet told

    # -- spending --

    def take(self, tokens: int) -> bool:
        if self.level < tokens:
            return False
        self.level -= tokens
        self.spent += tokens
        self.tally[self.place] += tokens
        return True

    def settle(self, difference: int) -> None:
        """`difference` = reserved - used: back into the lease, or out of it, into debt if need be."""
        self.level += difference
        self.tally[self.place] -= difference
        if self.shape is not _SLOTS:  # all of those come back; what counts is how many are asked for
            self.spent -= difference

    # -- dealing with the authority --

    def topup_wanted(self) -> int:
        """How much to ask for ahead of need; 0 while there is enough."""
        return self.target - self.level if self.level < self.low_water else 0

    def offered(self, offer: Offer, now_s: float) -> None:
        self.followed = True
        self.level += offer.granted
        self.limit = offer.limit
        self.remaining = offer.remaining
        self.mode = offer.mode
        self.heard_s = now_s
        if offer.resets_s:
            self.ends_s = now_s + offer.resets_s
        self._aim(now_s)

    def pay_debt(self) -> int:
        """What is owed, as a negative number (0: nothing). Whoever calls it tells the authority."""
        debt = min(self.level, 0)
        self.level -= debt
        return debt

    def wake(self, now_s: float) -> None:
        """In use again. The rate of before counts the less the longer that is ago."""
        self.rate *= max(0.0, 1.0 - (now_s - self.checked_s))
        self.checked_s = self.used_s = now_s
        self.uses = 0

    def check(self, now_s: float) -> None:
        """Every CHECK_EVERY_S: learns the recent rate, and from it what to hold."""
        elapsed_s = now_s - self.checked_s
        if elapsed_s <= 0:
            return
        if self.spent:
            self.used_s = now_s
            self.uses += self.spent > 0
        recent = max(0, self.spent) / elapsed_s
        self.rate += (recent - self.rate) * min(1.0, elapsed_s / RATE_MEMORY_S)
        self.spent = 0
        self.checked_s = now_s
        self._aim(now_s)

    def idle(self, now_s: float) -> bool:
        return now_s - self.used_s >= IDLE_S

    def surplus(self, idle: bool) -> int:
        """Takes out and returns what should go to the authority now: all when idle, else what exceeds twice the target.
        Negative: a debt that it should know."""
        if idle or self.level < 0:
            surplus = self.level
        elif self.level > 2 * self.target:
            surplus = self.level - self.target
        else:
            return 0
        self.level -= surplus
        return surplus

    def begin_window(self, ends_s: float) -> int:
        """The day or month was over, and another ends at `ends_s`. What is in hand is worth nothing any more: takes it
        out and returns it. What was admitted without the authority is nobody's concern any more."""
        outdated, self.level = self.level, 0
        self.local, self.untouched, self.charged = None, None, 0
        self.heard_s = None
        self.ends_s = ends_s
        self.window += 1
        return outdated

    def _aim(self, now_s: float) -> None:
        if self.uses <= LONE_CHECKS:
            self.target = self.low_water = 0
            return
        remaining = max(0, self.remaining_at(now_s))
        self.target = min(int(self.rate * HORIZON_S), self.limit // LIMIT_SHARE, remaining // REMAINING_SHARE)
        self.low_water = self.target // LOW_WATER_SHARE

    # -- while the authority is away --

    def go_local(self, shares: int, now_s: float) -> Stock:
        """A stock of limit / `shares`, as full as the share of what was left when the authority was last heard."""
        local = self.local
        if local is None:
            shares = max(1, shares)
            share = max(min(1, self.limit), self.limit // shares)
            if self.shape is _SLOTS:  # what others have in use will never come back here
                level = share - self.in_use
            else:
                level = share if self.heard_s is None else max(0, self.remaining_at(now_s)) // shares
            # A window has no refill within it, which is what Slots do.
            shape = Bucket if self.shape is _REFILLS else Slots
            local = self.local = shape(share, now_s, level)
            self.untouched = shape(share, now_s, level)
        return local

    def void(self, shares: int, now_s: float) -> None:
        """The channel is gone, and with it the lease: what it held (or owed) is the authority's again, and what is
        spent from here on (at first out of what was in hand) is charged. Slots in use are to be taken anew. The cell
        stays as it is: the control process may not have read it yet."""
        held, self.level = self.level, 0
        if self.shape is _SLOTS:
            self.charged = self.in_use
        elif held:
            self.go_local(shares, now_s).give(held, now_s)
            if self.untouched is not None:
                self.untouched.give(held, now_s)
        if held:
            self.remaining = min(self.limit, self.remaining_at(now_s) + held)
            self.heard_s = now_s if self.heard_s is not None else None
        self.followed = False
        self.place ^= 1
        self.base = self.tally[self.place]

    def take_locally(self, tokens: int, now_s: float) -> bool:
        """A request larger than the share passes when the share is full, and leaves a debt: no request that fits the
        limit is shut out for as long as the authority is away."""
        local = self.local
        if local is None or local.level(now_s) < min(tokens, local.limit) or tokens > self.limit:
            return False
        local.give(-tokens, now_s)
        self.charged += tokens
        return True

    def settle_locally(self, difference: int, now_s: float) -> None:
        if self.local is not None:
            self.local.give(difference, now_s)
        self.charged -= difference

    def come_back(self, now_s: float) -> int:
        """The authority is there: ends the local stock and returns what is to be charged (negative: given back). Of
        something per minute that is by how much less is left of our share than if nothing had been admitted from it:
        the authority was refilled meanwhile, and what went into a full share went into a full bucket there."""
        charged, local, untouched = self.charged, self.local, self.untouched
        self.charged, self.local, self.untouched = 0, None, None
        if self.shape is _REFILLS and local is not None and untouched is not None:
            charged = min(charged, max(0, untouched.level(now_s) - local.level(now_s)))
        return charged if self.shape is _SLOTS else min(charged, self.limit)

    # -- what is known --

    @property
    def in_use(self) -> int:
        """Of slots: how many requests run here."""
        return self.tally[self.place] - self.base + self.charged

    def remaining_at(self, now_s: float) -> int:
        """What the authority should have left by now, if nobody else took any."""
        if self.heard_s is None:
            return self.limit
        if self.shape is not _REFILLS:
            return min(self.limit, self.remaining)
        return min(self.limit, self.remaining + int((now_s - self.heard_s) * self.limit / 60.0))

    def standing(self, now_s: float) -> Standing:
        limit, local = self.limit, self.local
        left = self.remaining_at(now_s) if local is None else local.level(now_s)
        remaining = min(max(left + self.level, 0), limit)
        return Standing(limit, remaining, self._reset_s(remaining, now_s))

    def _reset_s(self, remaining: int, now_s: float) -> float:
        if self.shape is _REFILLS:
            return (self.limit - remaining) * 60.0 / self.limit if self.limit else 0.0
        return max(0.0, self.ends_s - now_s) if self.ends_s < inf else 0.0

    def lines(self, now_s: float) -> bytes:
        """The standing as header lines: on the way of every reply, so without a Standing for the usual lease."""
        limit, heard_s, lines = self.limit, self.heard_s, LINES[self.measure.unit]
        if self.local is not None or heard_s is None or not limit:
            return self.standing(now_s).lines(self.measure.unit)
        left = self.remaining + int((now_s - heard_s) * limit / 60.0)
        remaining = (left if left < limit else limit) + self.level
        if remaining < 0:
            remaining = 0
        elif remaining >= limit:
            return lines % (limit, limit, b"0s")
        return lines % (limit, remaining, duration((limit - remaining) * 60.0 / limit))

    def wait_s(self, tokens: int, now_s: float) -> float:
        """How long until `tokens` should be there: an estimate, as others take and give back too."""
        if self.local is not None:
            tokens = min(tokens, self.local.limit)
            if self.shape is _REFILLS or tokens <= self.local.level(now_s):
                return self.local.room_at(tokens, now_s) - now_s
            missing = tokens
        else:
            missing = tokens - self.level - self.remaining_at(now_s)
        if missing <= 0:
            return 0.0
        if self.shape is _REFILLS:
            return missing * 60.0 / self.limit if self.limit else 60.0
        return max(0.0, self.ends_s - now_s) if self.ends_s < inf else SLOT_WAIT_S


L = TypeVar("L", bound=Lease)


class Leases(Generic[L]):
    """The leases of a worker: at most `meters_max`, of which the one longest idle makes room for a new one."""

    __slots__ = ("_idle", "_meters_max", "get", "known")

    def __init__(self, meters_max: int) -> None:
        self.known: dict[str, L] = {}
        self.get = self.known.get
        self._idle: dict[str, None] = {}  # in the order in which they fell idle
        self._meters_max = meters_max

    def make_room(self) -> L | None:
        """Takes out the lease that has to go before another can be added; None when there is room. Raises LookupError
        when every lease in the house is in use."""
        if len(self.known) < self._meters_max:
            return None
        longest = next(iter(self._idle), None)
        if longest is None:
            raise LookupError
        del self._idle[longest]
        return self.known.pop(longest)

    def add(self, lease: L) -> None:
        """Adds it as an idle one; call `make_room` before."""
        self.known[lease.meter] = lease
        self._idle[lease.meter] = None

    def wake(self, lease: L) -> None:
        self._idle.pop(lease.meter, None)

    def rest(self, lease: L) -> None:
        if lease.meter in self.known:
            self._idle[lease.meter] = None
