"""What the gateway asks before it spends a tenant's tokens, and tells afterwards. One per worker.

Joins the leases (lease.py: how much may be spent here) with the channel (who grants more). `reserve_now` is the way of
nearly every request: a subtraction. `reserve` is for the rest: it asks the authority and waits at most 50 ms. When the
authority does not answer or the channel is gone, the limiter goes on by itself (`degraded`): first with the lease in
hand, then with a local bucket of limit / workers; and when the authority is back it is told what was admitted.

Knows nothing of HTTP beyond the header fields that clients of OpenAI read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from edgegw.channel import Channel, Ready, Shares
from edgegw.clock import Clock
from edgegw.errors import GatewayError
from edgegw.exchange import Grant
from edgegw.limits.account import Account, Waiter
from edgegw.limits.lease import CHECK_EVERY_S, GiveBack, Leases, Offer, Recall, Spent
from edgegw.limits.standing import Standing, too_large

ANSWER_WITHIN_S = 0.05  # the authority is a process of this machine and at most one Redis away: later is too late
ASK_AGAIN_S = 1.0  # after so long an unanswered question is taken for lost
TENANTS_MAX = 10_000  # known at once in a worker, about 6 MiB
WAITING_MAX = 4_096  # requests of one tenant that wait for the authority
TENANT_CHARS_MAX = 256  # of a name: it is a key here, in the authority and in every message between
CHECKED_AT_ONCE_MAX = 500  # leases looked at in one turn of the loop: under a millisecond
CHECK_PAUSE_S = 0.01  # between such turns


class Limiter:
    """`limits` gives a tenant's tokens per minute where the authority has not said it yet; `shares` is the number of
    workers until the authority says that. `degraded` is True from the start until the channel is first open."""

    def __init__(self, channel: Channel, limits: Callable[[str], int], clock: Clock, shares: int = 1) -> None:
        self.degraded = True
        self._channel = channel
        self._limits = limits
        self._clock = clock
        self._shares = shares
        self._epoch: int | None = None
        self._open = False
        self._accounts: Leases[Account] = Leases(TENANTS_MAX)
        self._get = self._accounts.get
        self._rotation: deque[Account] = deque()  # in the order of their last check
        self._timer: asyncio.TimerHandle | None = None
        channel.handle(Ready, self._ready)
        channel.handle(Shares, self._told_shares)
        channel.handle(Offer, self._offered)
        channel.on_closed(self._closed)

    # -- what the gateway calls --

    def reserve_now(self, tenant: str, tokens: int) -> Grant | None:
        """`tokens` (at least 0) out of what is in hand. None: not without asking; await `reserve`."""
        account = self._get(tenant)
        if account is None or account.waiters:
            return None
        if not account.take(tokens):
            return self._reserve_locally(account, tokens) if self.degraded else None
        if account.level < account.low_water and account.asked_s is None:
            self._ask(account)
        if not account.active:
            self._wake(account)
        return Grant(tenant, tokens)

    async def reserve(self, tenant: str, tokens: int) -> Grant:
        """`tokens`, after asking the authority if need be: at most 50 ms. Raises GatewayError: `rate_limited` with what
        was exceeded and when there will be room, `never_fits` when there never will, `invalid_value` for an unusable
        name, `overloaded` when too many wait or too many tenants are in use."""
        account = self._get(tenant) or self._add(tenant)
        if tokens > account.limit:
            raise too_large(tenant, tokens, account.limit)
        grant = self.reserve_now(tenant, tokens)
        if grant is not None:
            return grant
        now_s = self._clock.now()
        if self.degraded or account.refused_lately(tokens, now_s):
            raise account.refusal(tokens, now_s)
        if len(account.waiters) >= WAITING_MAX:
            raise GatewayError("overloaded", "Too many requests of this tenant wait for its rate limit.")
        return await self._wait(account, tokens)

    def settle(self, grant: Grant, used_tokens: int) -> None:
        """The request is over and used so many tokens. The first call counts. Never raises."""
        if grant.settled:
            return
        grant.settled = True
        difference = grant.tokens - used_tokens
        account = self._get(grant.tenant)
        if account is None:
            self._channel.send(GiveBack(grant.tenant, difference, 0))
        elif account.local is None and self._open:
            account.settle(difference)
            if not account.active:
                self._wake(account)
        else:
            self._settle_locally(account, difference)

    def standing(self, tenant: str) -> Standing | None:
        """Where the tenant stands as far as this worker knows; None when it does not know the tenant."""
        account = self._get(tenant)
        return None if account is None else account.standing(self._clock.now())

    def headers(self, tenant: str) -> bytes:
        """The same as header lines, each ended by CRLF; empty for a tenant that is not known."""
        account = self._get(tenant)
        return b"" if account is None else account.lines(self._clock.now())

    def close(self) -> None:
        """Decides for those who still wait, and gives everything back. Close the channel after it."""
        self._stop_timer()
        self._degrade()
        if self._open:
            self._recover()
        for account in self._rotation:
            account.active = False
            tokens = account.surplus(idle=True)
            if tokens:
                self._channel.send(GiveBack(account.tenant, tokens, 0))
        self._rotation.clear()

    # -- tenants --

    def _add(self, tenant: str) -> Account:
        if len(tenant) > TENANT_CHARS_MAX or not tenant.isprintable():
            message = f"The tenant's name must be printable and have at most {TENANT_CHARS_MAX} characters."
            raise GatewayError("invalid_value", message, param="metadata.tenant")
        account = Account(tenant, self._limits(tenant), self._clock.now())
        if not self._accounts.add(account):
            raise GatewayError("overloaded", "Too many tenants are active at the same time.")
        return account

    def _wake(self, account: Account) -> None:
        account.active = True
        account.wake(self._clock.now())
        self._accounts.wake(account)
        self._rotation.append(account)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECK_EVERY_S, self.check_leases)

    def check_leases(self) -> None:
        """Looks after the leases whose turn it is: called by our own timer for as long as one is in use."""
        self._stop_timer()
        now_s = self._clock.now()
        rotation = self._rotation
        for _ in range(min(len(rotation), CHECKED_AT_ONCE_MAX)):
            if rotation[0].checked_s + CHECK_EVERY_S > now_s:
                break
            account = rotation[0]
            stays = self._check(account, now_s)
            rotation.popleft()
            if stays:
                rotation.append(account)
            else:
                account.active = False
                self._accounts.rest(account)
        if rotation:
            pause_s = max(CHECK_PAUSE_S, rotation[0].checked_s + CHECK_EVERY_S - now_s)
            self._timer = asyncio.get_running_loop().call_later(pause_s, self.check_leases)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, account: Account, now_s: float) -> bool:
        """Returns whether the account stays in use."""
        account.check(now_s)
        asked_s = account.asked_s
        if asked_s is not None and now_s - asked_s > ANSWER_WITHIN_S:
            if not self.degraded:
                self._degrade()
            if now_s - asked_s > ASK_AGAIN_S:
                account.asked_s = None
        if account.local is not None and account.local.full(now_s):
            account.come_back()  # a minute's rest: by now the authority has refilled what was admitted here
        rests = account.idle(now_s) and account.asked_s is None and account.local is None and not account.waiters
        if not self._open:
            return not rests
        tokens = account.surplus(rests)
        if tokens:
            self._channel.send(GiveBack(account.tenant, tokens, account.level))
        elif account.level < account.low_water and account.asked_s is None:
            self._ask(account)
        return not rests

    # -- dealing with the authority --

    async def _wait(self, account: Account, tokens: int) -> Grant:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Grant | GatewayError] = loop.create_future()
        account.waiters.append(Waiter(tokens, self._clock.now(), outcome))
        if not account.active:
            self._wake(account)
        if account.alarm is None:
            self._set_alarm(account, account.waiters[0].since_s)
        if account.asked_s is None:
            self._ask(account)
        try:
            result = await outcome
        except asyncio.CancelledError:
            if outcome.done() and not outcome.cancelled() and isinstance(granted := outcome.result(), Grant):
                self.settle(granted, 0)  # the client left in the moment in which it was admitted
            raise
        if isinstance(result, GatewayError):
            raise result
        return result

    def _ask(self, account: Account) -> None:
        debt = account.pay_debt()
        if debt:
            self._channel.send(GiveBack(account.tenant, debt, 0))
        if self._channel.send(account.question()):
            account.asked_s = self._clock.now()

    def _offered(self, offer: Offer) -> None:
        account = self._get(offer.tenant)
        if account is None:
            self._channel.send(GiveBack(offer.tenant, offer.granted, 0))
            return
        now_s = self._clock.now()
        account.asked_s = None
        account.offered(offer, now_s)
        if self.degraded:
            self._recover()
        if account.waiters:
            if account.serve(offer, now_s):
                self._ask(account)
            self._set_alarm(account, now_s)
        if not account.active and account.level:
            self._wake(account)

    # -- without the authority --

    def _set_alarm(self, account: Account, now_s: float) -> None:
        """For the moment in which the first of those who wait has waited for as long as anybody may."""
        if account.alarm is not None:
            account.alarm.cancel()
            account.alarm = None
        if account.waiters:
            left_s = account.waiters[0].since_s + ANSWER_WITHIN_S - now_s
            account.alarm = asyncio.get_running_loop().call_later(max(0.0, left_s), self._degrade)

    def _degrade(self) -> None:
        """From now on nobody waits: those who do are decided here. (Who waits is in the rotation, and stays in it.)"""
        self.degraded = True
        for account in self._rotation:
            if account.waiters:
                self._decide_locally(account)

    def _decide_locally(self, account: Account) -> None:
        now_s = self._clock.now()
        waiters, account.waiters = account.waiters, deque()
        self._set_alarm(account, now_s)
        for waiter in waiters:
            if not waiter.outcome.done():
                grant = self.reserve_now(account.tenant, waiter.tokens)
                waiter.outcome.set_result(grant or account.refusal(waiter.tokens, now_s))

    def _reserve_locally(self, account: Account, tokens: int) -> Grant | None:
        now_s = self._clock.now()
        account.go_local(self._shares, now_s)
        if not account.active:
            self._wake(account)
        if self._open and account.asked_s is None:
            self._ask(account)  # its answer ends the degraded mode
        return Grant(account.tenant, tokens) if account.take_locally(tokens, now_s) else None

    def _settle_locally(self, account: Account, difference: int) -> None:
        now_s = self._clock.now()
        account.go_local(self._shares, now_s)
        account.settle_locally(difference, now_s)
        if not account.active:
            self._wake(account)

    def _recover(self) -> None:
        """The authority is there: it is told what was admitted without it."""
        self.degraded = False
        for account in self._rotation:
            if account.local is None and not account.charged:
                continue
            charged = account.come_back()
            if charged > 0:
                self._channel.send(Spent(account.tenant, charged))
            elif charged < 0:
                self._channel.send(GiveBack(account.tenant, -charged, account.level))

    # -- what the channel says --

    def _ready(self, ready: Ready) -> None:
        now_s = self._clock.now()
        if self._epoch not in (None, ready.epoch):
            for account in self._accounts.known.values():
                level = account.remaining_at(now_s)
                if level < account.limit:
                    self._channel.send(Recall(account.tenant, level))
        self._epoch = ready.epoch
        self._open = True
        self._shares = ready.shares
        self._recover()

    def _told_shares(self, message: Shares) -> None:
        self._shares = message.shares

    def _closed(self) -> None:
        """A lease lives as long as its channel."""
        now_s = self._clock.now()
        self._open = False
        for account in self._rotation:
            account.asked_s = None
            account.void(self._shares, now_s)
        self._degrade()
