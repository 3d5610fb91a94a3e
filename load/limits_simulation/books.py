"""The truth about every meter, beside the gateway: what was admitted, and what one exact counter would have admitted.

Per meter three of the gateway's own stocks, which everything is told at once and in full:

- `admitted`: what was reserved is taken, and what of it was not used comes back. Below zero it is overshoot: no error
  of an estimate is in it.
- `used`: what was used beyond the estimate is charged as well. It says what there really is: a refusal with room in
  here is one too many, and below zero it is overshoot and settle error together.
- `ideal`: one counter for all that admits by itself, in the order of coming, at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgegw.limits.bucket import stock
from edgegw.limits.meter import Shape, read_meter
from load.limits_simulation.loop import MIDNIGHT_S, UNIX_AT_START_S
from load.limits_simulation.traffic import Request, Tenant


class Book:
    def __init__(self, meter: str, limit: int, now_s: float) -> None:
        measure = read_meter(meter).measure
        self.limit = limit
        self.in_tokens = measure.unit == "tokens"
        self.is_slots = measure.shape is Shape.SLOTS
        self.is_day = measure.shape is Shape.WINDOW
        self.admitted, self.used, self.ideal = (stock(measure, limit, now_s) for _ in range(3))
        # Of a unit that refills only whole ones count: a grant is a millisecond older than what is admitted by it.
        self._part = 1 if measure.shape is Shape.REFILLS else 0
        self.overshoot = 0  # the worst, in units of the meter
        self.overshoot_sum = 0  # all that was admitted at a moment when there was nothing
        self.with_error = 0  # the worst, settle error included

    def take(self, amount: int, now_s: float) -> None:
        self.admitted.give(-amount, now_s)
        self.used.give(-amount, now_s)
        below = -self.admitted.level(now_s) - self._part
        if below > 0:
            self.overshoot = max(self.overshoot, below)
            self.overshoot_sum += min(below, amount)
        self.with_error = max(self.with_error, -self.used.level(now_s))

    def settle(self, difference: int, now_s: float) -> None:
        if difference > 0:
            self.admitted.give(difference, now_s)
        self.used.give(difference, now_s)


@dataclass(slots=True)
class Account:
    """Of one tenant, over the time that counts."""

    tenant: Tenant
    requests: int = 0
    admitted: int = 0
    refused: int = 0
    refused_with_room: int = 0
    failed: int = 0  # neither: not to be counted, not admitted
    reserved: int = 0  # tokens
    error: int = 0  # tokens used beyond what was reserved, summed over the requests where it was so
    ideal_admitted: int = 0
    ideal_tokens: int = 0
    tokens: int = 0  # used by what was admitted
    room_when_refused: list[float] = field(default_factory=list)  # shares of the limit of the tight meter


class Books:
    def __init__(self, tenants: Iterable[Tenant], warm_s: float) -> None:
        self.meters = {
            meter: Book(meter, limit, UNIX_AT_START_S) for tenant in tenants for meter, limit in tenant.meters
        }
        self.accounts = {tenant.name: Account(tenant) for tenant in tenants}
        self.warm_s = warm_s  # what comes before it is not counted, but for overshoot

    def came(self, request: Request, now_s: float) -> bool:
        """Whether the ideal counter admits it; then `ideal_over` is to be called at its end."""
        amounts = self._amounts(request.tenant, request.reserved)
        wall_s = UNIX_AT_START_S + now_s
        fits = all(book.ideal.level(wall_s) >= amount for book, amount in amounts)
        if fits:
            for book, amount in amounts:
                book.ideal.give(-amount, wall_s)
        if now_s >= self.warm_s:
            account = self.accounts[request.tenant.name]
            account.requests += 1
            if fits:
                account.ideal_admitted += 1
                account.ideal_tokens += request.used
        return fits

    def ideal_over(self, request: Request, now_s: float) -> None:
        for book, amount in self._back(request, now_s):
            book.ideal.give(amount, UNIX_AT_START_S + now_s)

    def admit(self, request: Request, now_s: float) -> None:
        for book, amount in self._amounts(request.tenant, request.reserved):
            book.take(amount, UNIX_AT_START_S + now_s)
        if now_s >= self.warm_s:
            account = self.accounts[request.tenant.name]
            account.admitted += 1
            account.reserved += request.reserved
            account.tokens += request.used
            account.error += max(0, request.used - request.reserved)

    def over(self, request: Request, now_s: float) -> None:
        for book, amount in self._back(request, now_s):
            book.settle(amount, UNIX_AT_START_S + now_s)

    def died(self, request: Request, now_s: float) -> None:
        """With its worker: what it reserved stays used, its slot is free."""
        for book, amount in self._amounts(request.tenant, request.reserved):
            if book.is_slots:
                book.settle(amount, UNIX_AT_START_S + now_s)

    def refuse(self, request: Request, now_s: float) -> None:
        if now_s < self.warm_s:
            return
        account, wall_s = self.accounts[request.tenant.name], UNIX_AT_START_S + now_s
        account.refused += 1
        account.refused_with_room += all(
            book.used.level(wall_s) >= amount for book, amount in self._amounts(request.tenant, request.reserved)
        )
        tight = self.meters[request.tenant.tight]
        account.room_when_refused.append(max(0, tight.used.level(wall_s)) / tight.limit)

    def _amounts(self, tenant: Tenant, tokens: int) -> list[tuple[Book, int]]:
        books = self.meters
        return [(book := books[meter], tokens if book.in_tokens else 1) for meter, _ in tenant.meters]

    def _back(self, request: Request, now_s: float) -> list[tuple[Book, int]]:
        """At the end of a request. What a day had left is gone with it."""
        difference = request.reserved - request.used
        yesterdays = request.came_s < MIDNIGHT_S <= now_s and difference > 0
        amounts = self._amounts(request.tenant, difference)
        return [
            (book, amount)
            for book, amount in amounts
            if (book.in_tokens or book.is_slots) and not (yesterdays and book.is_day)
        ]
