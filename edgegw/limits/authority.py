"""The control side of the limits: who decides how much each worker may spend.

`Authority` is what the channel's server asks; `MemoryAuthority` keeps the buckets of one process group in memory. An
authority for many replicas (Redis) implements the same protocol. `Holdings` remembers what one worker was leased and
said it had left, for the day it dies.

Knows no sockets and no workers by name; time comes from the clock it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgegw.clock import Clock
from edgegw.limits.bucket import Bucket
from edgegw.limits.lease import Offer

BUCKETS_BEFORE_SWEEP = 10_000  # about 2 MiB; only full buckets are swept, and a full one is as good as a new one


class Authority(Protocol):
    """Grants tokens before they are spent. Only `lease` may take time; the others return at once and never raise."""

    async def lease(self, tenant: str, want: int, need: int) -> Offer:
        """`want` tokens, or at least `need`; granted 0 and `retry_after_s` when there is no room, never a queue.

        First come, first served. With `need` 0 it is a top-up: as much of `want` as there is. Whoever raises or does
        not answer is taken to be away, and the workers go on by themselves.
        """
        ...

    def give_back(self, tenant: str, tokens: int) -> None:
        """Tokens that were leased and not used; negative ones were used without a lease and become a debt."""
        ...

    def spent(self, tenant: str, tokens: int) -> None:
        """Admitted by a worker unasked while nobody could be asked: taken from what is there, without a debt."""
        ...

    def recall(self, tenant: str, level: int) -> None:
        """A worker remembers that no more than `level` is left: for authorities that forget when they restart."""
        ...


class MemoryAuthority:
    """One bucket per tenant. `limits` gives a tenant's tokens per minute, for any name, and may change its mind: a new
    limit holds from the next ask on and forgets nothing that was used."""

    def __init__(self, limits: Callable[[str], int], clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._recalled: dict[str, Bucket] = {}
        self._sweep_at = BUCKETS_BEFORE_SWEEP

    async def lease(self, tenant: str, want: int, need: int) -> Offer:
        now_s = self._clock.now()
        bucket = self._bucket(tenant, now_s)
        granted = bucket.take_between(need, want, now_s)
        retry_after_s = 0.0 if granted else bucket.room_at(need, now_s) - now_s
        return Offer(tenant, granted, bucket.limit, bucket.level(now_s), retry_after_s)

    def give_back(self, tenant: str, tokens: int) -> None:
        now_s = self._clock.now()
        self._bucket(tenant, now_s).give(tokens, now_s)

    def spent(self, tenant: str, tokens: int) -> None:
        now_s = self._clock.now()
        self._bucket(tenant, now_s).drain(tokens, now_s)

    def recall(self, tenant: str, level: int) -> None:
        """Several workers remember, and the lowest level counts; what was taken from the new bucket meanwhile stays
        taken. So each one lowers the bucket only by what the ones before did not."""
        now_s = self._clock.now()
        bucket = self._bucket(tenant, now_s)
        lowest = self._recalled.get(tenant)
        if lowest is None:
            lowest = self._recalled[tenant] = Bucket(bucket.limit, now_s)
        lower_by = lowest.level(now_s) - level
        if lower_by > 0:
            lowest.give(-lower_by, now_s)
            bucket.give(-lower_by, now_s)

    def level(self, tenant: str) -> int:
        """Tokens not leased to anybody right now."""
        now_s = self._clock.now()
        return self._bucket(tenant, now_s).level(now_s)

    def _bucket(self, tenant: str, now_s: float) -> Bucket:
        limit = self._limits(tenant)
        bucket = self._buckets.get(tenant)
        if bucket is None:
            self._sweep(now_s)
            bucket = self._buckets[tenant] = Bucket(limit, now_s)
        elif bucket.limit != limit:
            bucket.resize(limit, now_s)
        return bucket

    def _sweep(self, now_s: float) -> None:
        """Forgets full buckets, each time twice as many as are in use have gathered: constant work per new tenant."""
        if len(self._buckets) < self._sweep_at:
            return
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if not bucket.full(now_s)}
        self._recalled = {name: bucket for name, bucket in self._recalled.items() if not bucket.full(now_s)}
        self._sweep_at = max(BUCKETS_BEFORE_SWEEP, 2 * len(self._buckets))


class Holdings:
    """What one worker holds of each tenant, by its own words.

    When it dies, what it last said it had unspent goes back, never more than it was leased since. What it was leased
    after its last word is taken as spent. So a death gives away at most what the worker spent since its last word, and
    loses at most the lease that followed it: either way no more than one lease (2 % of the limit and the request at
    hand), once, and the refill mends it.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, list[int]] = {}  # tenant -> [unspent as last said, leased and not given back]

    def said(self, tenant: str, held: int, given_back: int = 0) -> None:
        """A word from the worker. Tenants of which it holds nothing are forgotten."""
        if held <= 0:
            self._held.pop(tenant, None)
            return
        entry = self._held.setdefault(tenant, [0, 0])
        entry[0] = held
        entry[1] = max(0, entry[1] - max(0, given_back))

    def leased(self, tenant: str, granted: int) -> None:
        if granted > 0:
            self._held.setdefault(tenant, [0, 0])[1] += granted

    def returned(self) -> list[tuple[str, int]]:
        """The worker is gone: tenants and tokens that go back. Empties the list."""
        held, self._held = self._held, {}
        return [(tenant, min(entry)) for tenant, entry in held.items() if min(entry) > 0]
