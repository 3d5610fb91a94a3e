"""What the gateway asks before it spends a tenant's tokens, and tells afterwards. One per worker.

`allowance` finds what a request counts against. `reserve_now` is the way of nearly every request: a subtraction for
each of its limits. `reserve` is for the rest: it has the authority asked for what is missing and waits at most 50 ms
(accounts.py, which also goes on when the authority is away). Of several limits the tightest decides.

Knows nothing of HTTP beyond the header fields that clients of OpenAI read.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from edgegw.clock import Clock
from edgegw.errors import GatewayError
from edgegw.limits.account import Account, Allowance
from edgegw.limits.accounts import Accounts, too_many_meters
from edgegw.limits.meter import Shape, read_meter
from edgegw.limits.standing import Refusal, too_large

ALLOWANCES_MAX = 20_000  # remembered; clients can name models, so there is a bound
WAITING_MAX = 4_096  # requests that wait for one meter
TENANT_CHARS_MAX = 256  # of a name: it is a key here, in the authority and in every message between

_SLOTS = Shape.SLOTS


class Meters(Protocol):
    """What a request counts against, each with its limit where the authority has not said it yet: rules.py."""

    def meters(self, tenant: str, key_id: str | None, model: str) -> list[tuple[str, int]]: ...


class Reservation:
    """What was reserved for one exchange: `tokens` of everything that counts tokens, 1 of what counts requests."""

    __slots__ = ("_accounts", "_allowance", "_settled", "_windows", "tokens")

    def __init__(self, accounts: Accounts, allowance: Allowance, tokens: int) -> None:
        self._accounts = accounts
        self._allowance = allowance
        self._settled = False
        self._windows = [account.window for account in allowance.windowed] if allowance.windowed else ()
        self.tokens = tokens

    def settle(self, used_tokens: int) -> None:
        """The request is over and used so many tokens. The first call counts. Never raises."""
        if self._settled:
            return
        self._settled = True
        allowance, difference = self._allowance, self.tokens - used_tokens
        if allowance.single is not None:
            self._accounts.settle(allowance.single, difference)
            return
        over = self._over() if allowance.windowed and difference > 0 else ()
        for account in allowance.accounts:
            if account.in_tokens:
                if account not in over:  # what an ended day had left is gone
                    self._accounts.settle(account, difference)
            elif account.shape is _SLOTS:
                self._accounts.settle(account, 1)

    def _over(self) -> list[Account]:
        """The days and months that ended since we reserved of them."""
        windowed = self._allowance.windowed
        self._accounts.renew(windowed)
        return [account for account, window in zip(windowed, self._windows, strict=True) if account.window != window]


class Limiter:
    """The gateway's face of the limits."""

    def __init__(self, accounts: Accounts, rules: Meters, clock: Clock) -> None:
        self._accounts = accounts
        self._rules = rules
        self._clock = clock
        self._allowances: dict[tuple[str, str | None, str], Allowance] = {}

    @property
    def degraded(self) -> bool:
        """The authority is away, and this worker decides alone."""
        return self._accounts.degraded

    def allowance(self, tenant: str, key_id: str | None, model: str) -> Allowance:
        """What a request of this tenant, by this key, for this model counts against. Raises GatewayError:
        `invalid_value` for an unusable name, `overloaded` when too many meters are in use."""
        return self._allowances.get((tenant, key_id, model)) or self._made(tenant, key_id, model)

    def reserve_now(self, allowance: Allowance, tokens: int) -> Reservation | None:
        """`tokens` (at least 0) out of what is in hand. None: not without asking; await `reserve`."""
        account = allowance.single
        if account is None:
            return self._reserve_all(allowance, tokens)
        if account.waiters:
            return None
        if not account.take(tokens):
            return self._reserve_locally(allowance, tokens) if self._accounts.degraded else None
        if (account.level < account.low_water and account.asked_s is None) or not account.active:
            self._accounts.tend(account)
        return Reservation(self._accounts, allowance, tokens)

    async def reserve(self, allowance: Allowance, tokens: int) -> Reservation:
        """`tokens`, after asking the authority if need be: at most 50 ms. Raises GatewayError: `rate_limited` with what
        was exceeded and when there will be room, `never_fits` when there never will, `overloaded` when too many wait or
        the tenant is not to be served uncounted."""
        for account in allowance.accounts:
            if account.in_tokens and tokens > account.limit:
                raise too_large(read_meter(account.meter), tokens, account.limit)
        reservation = self.reserve_now(allowance, tokens)
        if reservation is not None:
            return reservation
        now_s = self._clock.now()
        refusals = [
            account.refusal(amount, now_s)
            for account, amount in _amounts(allowance, tokens)
            if self._accounts.degraded or account.refused_lately(amount, now_s)
        ]
        if refusals:
            raise self._refused(refusals)
        if any(len(account.waiters) >= WAITING_MAX for account in allowance.accounts):
            raise GatewayError("overloaded", "Too many requests of this tenant wait for its rate limit.")
        await self._wait(allowance, tokens)
        return Reservation(self._accounts, allowance, tokens)

    def rules_changed(self) -> None:
        """Limits of keys came or changed: what requests count against is looked up anew. What was used stays used."""
        self._allowances.clear()

    def close(self) -> None:
        """Decides for those who still wait, and gives everything back. Close the channel after it."""
        self._accounts.close()

    # -- one by one --

    def _made(self, tenant: str, key_id: str | None, model: str) -> Allowance:
        if len(tenant) > TENANT_CHARS_MAX or not tenant.isprintable():
            message = f"The tenant's name must be printable and have at most {TENANT_CHARS_MAX} characters."
            raise GatewayError("invalid_value", message, param="metadata.tenant")
        meters, evictions = self._rules.meters(tenant, key_id, model), self._accounts.evictions
        allowance = Allowance(tuple(self._accounts.opened(meter, limit) for meter, limit in meters))
        if len(self._allowances) >= ALLOWANCES_MAX or evictions != self._accounts.evictions:
            self._allowances.clear()  # one of them may have an account that had to go
        if any(account.evicted for account in allowance.accounts):  # one for the next: there is no room for all
            raise too_many_meters()
        self._allowances[tenant, key_id, model] = allowance
        return allowance

    def _reserve_all(self, allowance: Allowance, tokens: int) -> Reservation | None:
        if allowance.windowed:
            self._accounts.renew(allowance.windowed)
        for account in allowance.accounts:
            if account.level < (tokens if account.in_tokens else 1) or account.waiters:
                return self._reserve_locally(allowance, tokens) if self._accounts.degraded else None
        for account in allowance.accounts:
            account.take(tokens if account.in_tokens else 1)
            self._accounts.tend(account)
        return Reservation(self._accounts, allowance, tokens)

    def _reserve_locally(self, allowance: Allowance, tokens: int) -> Reservation | None:
        """While the authority is away: all or nothing, out of what there is."""
        taken: list[tuple[Account, int]] = []
        for account, amount in _amounts(allowance, tokens):
            if not self._accounts.take_locally(account, amount):
                self._release(taken)
                return None
            taken.append((account, amount))
        return Reservation(self._accounts, allowance, tokens)

    async def _wait(self, allowance: Allowance, tokens: int) -> None:
        """Takes what is in hand, has all that is missing asked for at once, and waits for every answer. Raises
        GatewayError; then, and when the client leaves, nothing stays taken."""
        taken: list[tuple[Account, int]] = []
        waiting: list[tuple[Account, int, asyncio.Future[Refusal | None]]] = []
        for account, amount in _amounts(allowance, tokens):
            if not account.waiters and account.take(amount):
                self._accounts.tend(account)
                taken.append((account, amount))
            else:
                waiting.append((account, amount, self._accounts.wait(account, amount)))
        refusals: list[Refusal] | None = None
        try:
            refusals = [refusal for *_, outcome in waiting if (refusal := await outcome) is not None]
        finally:
            if refusals != []:  # somebody said no, or the client left, perhaps in the moment of its admission
                self._release(taken)
                for account, amount, outcome in waiting:
                    if not outcome.cancel() and not outcome.cancelled() and outcome.result() is None:
                        self._release([(account, amount)])
        if refusals:
            raise self._refused(refusals)

    def _release(self, taken: list[tuple[Account, int]]) -> None:
        for account, amount in taken:
            self._accounts.settle(account, amount)

    def _refused(self, refusals: list[Refusal]) -> GatewayError:
        """Of several limits the tightest decides: one that the request can never fit, else the one that makes it wait
        longest."""
        longest = max(refusals, key=lambda refusal: (refusal.amount > refusal.standing.limit, refusal.wait_s))
        return longest.error(self._clock.wall_ns() / 1e9)


def _amounts(allowance: Allowance, tokens: int) -> list[tuple[Account, int]]:
    return [(account, tokens if account.in_tokens else 1) for account in allowance.accounts]
