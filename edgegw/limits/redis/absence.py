"""One meter while Redis is away: what this replica may grant by itself, and what Redis is to be told of that.

Its share is the limit divided by the replicas last seen, and begins with the same share of what was left when Redis
was last heard. Redis refills while it is away, and so would this share have done if nothing had been granted from it:
how much less is left of it is what Redis does not know yet. (So a share that is full again owes nothing, as Redis was
full too, and one that spent its refill owes that.) Slots are not owed: whoever has them says so.

Pure. `now_s` are seconds of the meter's own clock: Unix time for windows, else monotonic.
"""

from __future__ import annotations

from edgegw.limits.bucket import stock
from edgegw.limits.meter import Measure


class Absence:
    __slots__ = ("_lent", "_replicas", "_stock", "_untouched", "unpaid")

    def __init__(self, measure: Measure, limit: int, replicas: int, left: int | None, now_s: float) -> None:
        """`left`: what should be left for everybody by now; None when that was never heard."""
        self._replicas = max(1, replicas)
        share = self._share(limit)
        level = None if left is None else max(0, left) // self._replicas
        self._stock = stock(measure, share, now_s, level)
        self._untouched = stock(measure, share, now_s, level)
        self.unpaid = 0  # was admitted by workers, unasked, and the share did not have it
        self._lent = 0

    def limit(self, limit: int, now_s: float) -> None:
        """The limit that holds now, which may have changed."""
        share = self._share(limit)
        if share != self._stock.limit:
            self._stock.resize(share, now_s)
            self._untouched.resize(share, now_s)

    def take(self, need: int, want: int, now_s: float) -> int:
        """At most `want`, at least `need`, or nothing. A request larger than the share passes when the share is full,
        and leaves a debt: none that fits the limit is shut out for as long as Redis is away."""
        own = self._stock
        granted = own.take_between(need, want, now_s)
        if not granted and need > own.limit > 0 and own.full(now_s):
            granted = need
            own.give(-need, now_s)
        return granted

    def give(self, tokens: int, now_s: float) -> int:
        """Comes back unused, whoever granted it (negative: was used without a lease). Returns what the share has no
        room for: that is Redis's."""
        if tokens > 0:
            uncounted = min(tokens, self._lent)
            self._lent -= uncounted
            tokens -= uncounted
            tokens, over = self._room(tokens, now_s)
        else:
            over = 0
        self._stock.give(tokens, now_s)
        return over

    def lend(self, tokens: int) -> None:
        """Granted without being counted, so that what of it comes back is not counted either."""
        self._lent += tokens

    def spent(self, tokens: int, now_s: float) -> None:
        """Was admitted by a worker, unasked."""
        self.unpaid += tokens - min(tokens, max(0, self._stock.level(now_s)))
        self._stock.drain(tokens, now_s)

    def level(self, now_s: float) -> int:
        return self._stock.level(now_s)

    def room_in_s(self, need: int, now_s: float) -> float:
        """When `need` could be granted here."""
        return self._stock.room_at(min(need, self._stock.limit), now_s) - now_s

    def resets_s(self, now_s: float) -> float:
        return self._stock.resets_s(now_s)

    def owed(self, now_s: float) -> int:
        """What was granted here and Redis does not know; below zero: what came back of what Redis had granted."""
        return self._untouched.level(now_s) - self._stock.level(now_s)

    def _room(self, tokens: int, now_s: float) -> tuple[int, int]:
        """How much of what comes back fits in, and how much does not."""
        fits = max(0, min(tokens, self._stock.limit - self._stock.level(now_s)))
        return fits, tokens - fits

    def _share(self, limit: int) -> int:
        return max(min(1, limit), limit // self._replicas)
