"""A worker's accounts and its dealings with the authority: what is asked for and given back, what is done in silence.

An account in use is in the rotation: it is looked at ten times a second, topped up ahead of need, and gives back what
it does not need. When the authority does not answer within 50 ms or the channel is gone, the worker goes on by itself
(`degraded`): first with the leases in hand, then with local stocks of limit / workers; and when the authority is back
it is told what was admitted.

Knows meters and amounts; which of them a request counts against is limiter.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import MutableSequence

from edgegw.channel import Channel, Ready, Shares
from edgegw.clock import Clock
from edgegw.errors import GatewayError
from edgegw.limits.account import Account, Waiter
from edgegw.limits.bucket import window_end
from edgegw.limits.lease import CHECK_EVERY_S, Leases
from edgegw.limits.meter import Shape
from edgegw.limits.standing import Refusal
from edgegw.limits.words import GiveBack, Offer, Recall, Spent

ANSWER_WITHIN_S = 0.05  # the authority is a process of this machine and at most one Redis away: later is too late
ASK_AGAIN_S = 1.0  # after so long an unanswered question is taken for lost
METERS_MAX = 20_000  # known at once in a worker, about 12 MiB: two for each of 10,000 tenants
TALLY_CELLS = 2 * METERS_MAX  # each meter has two: what one channel's end reads, the next channel does not touch
CHECKED_AT_ONCE_MAX = 500  # leases looked at in one turn of the loop: under a millisecond
CHECK_PAUSE_S = 0.01  # between such turns

_REFILLS, _SLOTS, _WINDOW = Shape.REFILLS, Shape.SLOTS, Shape.WINDOW


class Accounts:
    """`shares` is the number of workers until the authority says that. `tally` has two cells for each meter that may be
    known at once (tally.py). `degraded` is True from the start until the channel is first open."""

    def __init__(self, channel: Channel, clock: Clock, shares: int = 1, tally: MutableSequence[int] | None = None):
        self.degraded = True
        self.evictions = 0
        self._channel = channel
        self._clock = clock
        self._shares = shares
        self._tally: MutableSequence[int] = [0] * TALLY_CELLS if tally is None else tally
        self._places: list[int] = []  # that were used and are free again
        self._epoch: int | None = None
        self._open = False
        self._leases: Leases[Account] = Leases(len(self._tally) // 2)
        self._rotation: deque[Account] = deque()  # in the order of their last check
        self._timer: asyncio.TimerHandle | None = None
        channel.handle(Ready, self._ready)
        channel.handle(Shares, self._told_shares)
        channel.handle(Offer, self._offered)
        channel.on_closed(self._closed)

    def opened(self, meter: str, limit: int) -> Account:
        """The account of a meter. `limit` counts until the authority has said one. Another one that was long idle may
        have to go for it (`evicted`). Raises GatewayError `overloaded` when too many are in use."""
        account = self._leases.get(meter)
        if account is not None:
            return account
        try:
            evicted = self._leases.make_room()
        except LookupError:
            raise too_many_meters() from None
        if evicted is not None:
            evicted.evicted, evicted.followed = True, False
            self.evictions += 1
            self._places.append(evicted.place)
        place = self._places.pop() if self._places else 2 * len(self._leases.known)
        account = Account(meter, limit, self._clock.now(), self._tally, place)
        if account.shape is _WINDOW:
            account.ends_s = self._window_end(account)
        self._leases.add(account)
        return account

    # -- what the limiter calls --

    def renew(self, windowed: tuple[Account, ...]) -> None:
        """To be called before any use of days and months: of those that are over, what was left is forgotten."""
        now_s = self._clock.now()
        for account in windowed:
            if now_s >= account.ends_s:
                self._renew(account)

    def tend(self, account: Account) -> None:
        """After something was taken: a top-up ahead of need, and a place in the rotation."""
        if account.level < account.low_water and account.asked_s is None:
            self._ask(account)
        if not account.active:
            self._wake(account)

    def wait(self, account: Account, amount: int) -> asyncio.Future[Refusal | None]:
        """Asks the authority for what is missing. The future is done within 50 ms; None: the amount is taken."""
        outcome: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        account.waiters.append(Waiter(amount, self._clock.now(), outcome))
        if not account.active:
            self._wake(account)
        if account.alarm is None:
            self._set_alarm(account, account.waiters[0].since_s)
        if account.asked_s is None:
            self._ask(account)
        return outcome

    def take_locally(self, account: Account, amount: int) -> bool:
        """In hand or not: while the authority is away, what there is."""
        if account.take(amount):
            return True
        now_s = self._clock.now()
        account.go_local(self._shares, now_s)
        if not account.active:
            self._wake(account)
        if self._open and account.asked_s is None:
            self._ask(account)  # its answer ends the degraded mode
        return account.take_locally(amount, now_s)

    def settle(self, account: Account, difference: int) -> None:
        """Of what was taken, so much was not used (negative: so much more was). Never raises."""
        if account.followed and account.local is None:
            account.settle(difference)
            if not account.active:  # nobody here has use for it: at once to where others find it
                self._give_back(account, account.surplus(idle=True))
                self._rest(account)
                return
            if account.shape is _SLOTS:
                self._slot_free(account)
        elif account.evicted or (self._open and account.local is None):  # there is no lease that it could go to
            self._channel.send(GiveBack(account.meter, difference, 0))
            return
        else:
            now_s = self._clock.now()
            account.go_local(self._shares, now_s)
            account.settle_locally(difference, now_s)
        if not account.active:
            self._wake(account)

    def _slot_free(self, account: Account) -> None:
        """At once to where every worker can take it: unlike tokens, nobody has another one meanwhile."""
        account.refused_until_s = 0.0
        if not account.waiters:
            self._give_back(account, account.surplus(idle=False))

    def close(self) -> None:
        """Decides for those who still wait, and gives everything back. Close the channel after it."""
        self._stop_timer()
        self._degrade()
        if self._open:
            self._recover()
        for account in self._rotation:
            account.active = False
            self._give_back(account, account.surplus(idle=True))
        self._rotation.clear()

    # -- the rotation --

    def _wake(self, account: Account) -> None:
        account.active = True
        account.wake(self._clock.now())
        self._leases.wake(account)
        self._rotation.append(account)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECK_EVERY_S, self.check_leases)

    def _rest(self, account: Account) -> None:
        """It may be forgotten to make room; but not a slot that is in use, of which nobody else would know."""
        if account.shape is not _SLOTS or not account.in_use:
            self._leases.rest(account)

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
                self._rest(account)
        if rotation:
            pause_s = max(CHECK_PAUSE_S, rotation[0].checked_s + CHECK_EVERY_S - now_s)
            self._timer = asyncio.get_running_loop().call_later(pause_s, self.check_leases)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, account: Account, now_s: float) -> bool:
        """Returns whether the account stays in use."""
        if now_s >= account.ends_s:
            self._renew(account)
        account.check(now_s)
        asked_s = account.asked_s
        if asked_s is not None and now_s - asked_s > ANSWER_WITHIN_S:
            if not self.degraded:
                self._degrade()
            if now_s - asked_s > ASK_AGAIN_S:
                account.asked_s = None
        if (
            account.shape is _REFILLS
            and account.charged >= 0
            and account.local is not None
            and account.local.full(now_s)
        ):
            account.come_back(now_s)  # a minute's rest: by now the authority has refilled what was admitted here
        rests = account.idle(now_s) and account.asked_s is None and account.local is None and not account.waiters
        if not self._open:
            return not rests
        surplus = account.surplus(rests)
        self._give_back(account, surplus)
        alone = self.degraded and account.local is not None
        inexact = account.mode and not rests  # clients are told so: for no longer than it is true
        due = account.level < account.low_water or alone or inexact
        if due and not surplus and account.asked_s is None:
            self._ask(account)
        return not rests

    # -- dealing with the authority --

    def _ask(self, account: Account) -> None:
        self._give_back(account, account.pay_debt())
        if self._channel.send(account.question()):
            account.asked_s = self._clock.now()

    def _give_back(self, account: Account, amount: int) -> None:
        if amount:
            self._channel.send(GiveBack(account.meter, amount, amount))

    def _renew(self, account: Account) -> None:
        outdated = account.begin_window(self._window_end(account))
        if outdated:
            self._channel.send(GiveBack(account.meter, 0, outdated))

    def _window_end(self, account: Account) -> float:
        """By our own calendar, until the authority says it by its."""
        wall_s = self._clock.wall_ns() / 1e9
        return self._clock.now() + window_end(wall_s, account.measure.code == "month") - wall_s

    def _offered(self, offer: Offer) -> None:
        account = self._leases.get(offer.meter)
        if account is None:
            self._channel.send(GiveBack(offer.meter, offer.granted, offer.granted))
            return
        now_s = self._clock.now()
        account.asked_s = None
        if now_s >= account.ends_s:
            self._renew(account)
        account.offered(offer, now_s)
        if self.degraded:
            self._recover()
        if account.waiters:
            if account.serve(offer, now_s):
                self._ask(account)
            self._set_alarm(account, now_s)
        if not account.active and account.level:
            self._wake(account)

    # -- without it --

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
                taken = self.take_locally(account, waiter.amount)
                waiter.outcome.set_result(None if taken else account.refusal(waiter.amount, now_s))

    def _recover(self) -> None:
        """The authority is there: it is told what was admitted without it."""
        self.degraded = False
        now_s = self._clock.now()
        for account in self._leases.known.values():
            if account.local is None and not account.charged:
                continue
            charged = account.come_back(now_s)
            if account.shape is _SLOTS:  # still in use, or given back already: an exact count either way
                self._tally[account.place] += charged
                account.followed = True
                self._ask(account)  # makes the account known to a control process that is new
                self._give_back(account, -charged)
                if not account.active:
                    self._wake(account)
            elif charged > 0:
                self._channel.send(Spent(account.meter, charged))
            elif charged < 0:
                self._channel.send(GiveBack(account.meter, -charged, 0))

    # -- what the channel says --

    def _ready(self, ready: Ready) -> None:
        now_s = self._clock.now()
        if self._epoch not in (None, ready.epoch):
            for account in self._leases.known.values():
                if now_s >= account.ends_s:
                    self._renew(account)
                level = account.remaining_at(now_s)
                if account.shape is not _SLOTS and level < account.limit:
                    self._channel.send(Recall(account.meter, level))
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
        for account in self._leases.known.values():
            account.asked_s = None
            account.void(self._shares, now_s)
        self._degrade()


def too_many_meters() -> GatewayError:
    return GatewayError("overloaded", "Too many tenants are active at the same time.")
