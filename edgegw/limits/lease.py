"""The worker's side of the limits: tokens that were taken from the authority beforehand, and are spent here.

A `Lease` is one tenant's amount in hand. It is topped up before it runs out, follows recent use, gives back what it no
longer needs, and goes on with a small bucket of its own while the authority is away. Here are also the words that
workers and authority exchange (`Want`, `Offer`, `GiveBack`, `Spent`, `Recall`): the channel carries them.

Pure: decides and counts. Who waits for what, and how the words travel, is limiter.py and channel.py. `now_s` are
monotonic seconds of the worker; amounts are tokens.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Generic, TypeVar

from msgspec import Struct

from edgegw.limits.bucket import Bucket
from edgegw.limits.standing import LINES, Standing, duration

CHECK_EVERY_S = 0.1  # how often a lease in use looks at itself: ten small sums a second, and idle means seen idle
IDLE_S = 0.25  # unused for so long (seen at the next check): all of it goes back
RATE_MEMORY_S = 0.5  # time constant of the recent rate: follows a burst within a few checks, forgets it as fast
HORIZON_S = 2.0  # a lease should last so long at the recent rate, half of it before it is topped up: one ask a second
LIMIT_SHARE = 100  # a lease aims at 1/100 of the limit at most and gives back above twice that: 2 % at most lie idle
REMAINING_SHARE = 8  # and at 1/8 of what is left, so that the last tokens of a minute lie where everybody can take them
REFUSAL_HOLDS_S = 0.02  # after a refusal as large a request is refused unasked: a flood of them costs 50 asks a second


class Mode(IntEnum):
    """How an authority counts: as it should, or because it cannot reach what it shares with other replicas, by its own
    share, not at all, or by refusing."""

    EXACT = 0
    LOCAL = 1
    OPEN = 2
    CLOSED = 3


class Want(Struct, array_like=True, tag=1, gc=False):
    """Worker: "`tokens` for this tenant, or at least `need`; I hold `held` unspent." Answered by one Offer."""

    tenant: str
    tokens: int
    need: int
    held: int


class Offer(Struct, array_like=True, tag=2, gc=False):
    """Authority: `granted` are yours (0: there was no room for `need`, there will be in `retry_after_s`, inf: never).

    `remaining` is what is left for everybody after that; below zero is a debt. `resets_s`: until a day or month ends,
    0 for what is counted otherwise. `mode`: how the authority counts at the moment.
    """

    tenant: str
    granted: int
    limit: int
    remaining: int
    retry_after_s: float = 0.0
    resets_s: float = 0.0
    mode: int = 0  # a Mode


class GiveBack(Struct, array_like=True, tag=3, gc=False):
    """Worker: these are not needed (negative: more was used than was leased), and now I hold `held` unspent."""

    tenant: str
    tokens: int
    held: int


class Spent(Struct, array_like=True, tag=4, gc=False):
    """Worker: so much was admitted unasked while you were away."""

    tenant: str
    tokens: int


class Recall(Struct, array_like=True, tag=5, gc=False):
    """Worker, to an authority that started anew: by what your predecessor told me, this would now be left."""

    tenant: str
    level: int


class Lease:
    """One tenant's tokens in this worker. `level` may be spent without asking; below zero it is a debt to be paid."""

    __slots__ = (
        "charged",
        "checked_s",
        "heard_s",
        "level",
        "limit",
        "local",
        "low_water",
        "rate",
        "remaining",
        "spent",
        "target",
        "tenant",
        "used_s",
    )

    def __init__(self, tenant: str, limit: int, now_s: float) -> None:
        self.tenant = tenant
        self.limit = limit
        self.level = 0
        self.spent = 0  # since the last check, net of what was settled back
        self.rate = 0.0  # tokens per second
        self.target = 0  # what a top-up fills to
        self.low_water = 0  # below it a top-up is due
        self.remaining = limit  # as the authority said at heard_s
        self.heard_s: float | None = None
        self.checked_s = now_s
        self.used_s = now_s
        self.local: Bucket | None = None  # while the authority is away
        self.charged = 0  # admitted from `local`, not yet told

    # -- spending --

    def take(self, tokens: int) -> bool:
        if self.level < tokens:
            return False
        self.level -= tokens
        self.spent += tokens
        return True

    def settle(self, difference: int) -> None:
        """`difference` = reserved - used: back into the lease, or out of it, into debt if need be."""
        self.level += difference
        self.spent -= difference

    # -- dealing with the authority --

    def topup_wanted(self) -> int:
        """How much to ask for ahead of need; 0 while there is enough."""
        return self.target - self.level if self.level < self.low_water else 0

    def offered(self, offer: Offer, now_s: float) -> None:
        self.level += offer.granted
        self.limit = offer.limit
        self.remaining = offer.remaining
        self.heard_s = now_s
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

    def check(self, now_s: float) -> None:
        """Every CHECK_EVERY_S: learns the recent rate, and from it what to hold."""
        elapsed_s = now_s - self.checked_s
        if elapsed_s <= 0:
            return
        if self.spent:
            self.used_s = now_s
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

    def _aim(self, now_s: float) -> None:
        remaining = max(0, self.remaining_at(now_s))
        self.target = min(int(self.rate * HORIZON_S), self.limit // LIMIT_SHARE, remaining // REMAINING_SHARE)
        self.low_water = self.target // 2

    # -- while the authority is away --

    def go_local(self, shares: int, now_s: float) -> Bucket:
        """A bucket of limit / `shares`, as full as the share of what was left when the authority was last heard."""
        local = self.local
        if local is None:
            shares = max(1, shares)
            share = max(min(1, self.limit), self.limit // shares)
            level = share if self.heard_s is None else max(0, self.remaining_at(now_s)) // shares
            local = self.local = Bucket(share, now_s, level)
        return local

    def void(self, shares: int, now_s: float) -> None:
        """The channel is gone, and with it the lease: what it held is the authority's again, and what is spent from
        here on (at first out of what was in hand) is charged."""
        held, self.level = self.level, 0
        if held:
            self.go_local(shares, now_s).give(held, now_s)
            self.remaining = min(self.limit, self.remaining_at(now_s) + held)
            self.heard_s = now_s if self.heard_s is not None else None
            self.charged -= min(0, held)

    def take_locally(self, tokens: int, now_s: float) -> bool:
        """A request larger than the share passes when the share is full, and leaves a debt: no request that fits the
        limit is shut out for as long as the authority is away."""
        local = self.local
        if local is None or local.level(now_s) < min(tokens, local.limit):
            return False
        local.give(-tokens, now_s)
        self.charged += tokens
        return True

    def settle_locally(self, difference: int, now_s: float) -> None:
        if self.local is not None:
            self.local.give(difference, now_s)
        self.charged -= difference

    def come_back(self) -> int:
        """The authority is there: ends the local bucket and returns what is to be charged (negative: given back).
        More than the limit is never charged: an empty bucket is the most that can be owed for a past minute."""
        charged, self.charged, self.local = min(self.charged, self.limit), 0, None
        return charged

    # -- what is known --

    def remaining_at(self, now_s: float) -> int:
        """What the authority should have left by now, if nobody else took any."""
        if self.heard_s is None:
            return self.limit
        return min(self.limit, self.remaining + int((now_s - self.heard_s) * self.limit / 60.0))

    def standing(self, now_s: float) -> Standing:
        limit, local = self.limit, self.local
        left = self.remaining_at(now_s) if local is None else local.level(now_s)
        remaining = min(max(left + self.level, 0), limit)
        return Standing(limit, remaining, (limit - remaining) * 60.0 / limit if limit else 0.0)

    def lines(self, now_s: float) -> bytes:
        """The standing as header lines: on the way of every reply, so without a Standing for the usual lease."""
        limit, heard_s = self.limit, self.heard_s
        if self.local is not None or heard_s is None or not limit:
            return self.standing(now_s).lines()
        left = self.remaining + int((now_s - heard_s) * limit / 60.0)
        remaining = (left if left < limit else limit) + self.level
        if remaining < 0:
            remaining = 0
        elif remaining >= limit:
            return LINES % (limit, limit, b"0s")
        return LINES % (limit, remaining, duration((limit - remaining) * 60.0 / limit))

    def wait_s(self, tokens: int, now_s: float) -> float:
        """How long until `tokens` should be there: an estimate, as others take and give back too."""
        if self.local is not None:
            return self.local.room_at(min(tokens, self.local.limit), now_s) - now_s
        missing = tokens - self.level - self.remaining_at(now_s)
        return max(0.0, missing * 60.0 / self.limit) if self.limit else 60.0


L = TypeVar("L", bound=Lease)


class Leases(Generic[L]):
    """The leases of a worker: at most `tenants_max`, of which the one longest idle makes room for a new one."""

    __slots__ = ("_idle", "_tenants_max", "get", "known")

    def __init__(self, tenants_max: int) -> None:
        self.known: dict[str, L] = {}
        self.get = self.known.get
        self._idle: dict[str, None] = {}  # in the order in which they fell idle
        self._tenants_max = tenants_max

    def add(self, lease: L) -> bool:
        """Adds it as an idle one. False: the house is full, and every lease in it is in use."""
        if len(self.known) >= self._tenants_max:
            longest = next(iter(self._idle), None)
            if longest is None:
                return False
            del self._idle[longest], self.known[longest]
        self.known[lease.tenant] = lease
        self._idle[lease.tenant] = None
        return True

    def wake(self, lease: L) -> None:
        self._idle.pop(lease.tenant, None)

    def rest(self, lease: L) -> None:
        self._idle[lease.tenant] = None
