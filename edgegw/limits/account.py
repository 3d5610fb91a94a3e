"""A meter's lease in a worker with the requests that wait for it to grow, and what a request counts against.

What an account can say by itself: what to ask the authority for, whom its level admits, and why others are refused. An
`Allowance` is all the accounts of one kind of request (this tenant, this key, this model). When to ask, and what to do
in silence, is the limiter's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import MutableSequence
from dataclasses import dataclass
from math import inf

from edgegw.limits.lease import REFUSAL_HOLDS_S, Lease
from edgegw.limits.meter import Shape, read_meter
from edgegw.limits.standing import Refusal
from edgegw.limits.words import Mode, Offer, Want

_CLOSED, _LOCAL = Mode.CLOSED, Mode.LOCAL
_WINDOW = Shape.WINDOW


@dataclass(slots=True)
class Waiter:
    """A request that waits for the authority; `outcome` is None when it is admitted, or why it is not."""

    amount: int
    since_s: float
    outcome: asyncio.Future[Refusal | None]


class Account(Lease):
    __slots__ = ("active", "alarm", "asked_s", "evicted", "in_tokens", "refused_amount", "refused_until_s", "waiters")

    def __init__(
        self, meter: str, limit: int, now_s: float, tally: MutableSequence[int] | None = None, place: int = 0
    ) -> None:
        super().__init__(meter, limit, now_s, tally, place)
        self.in_tokens = self.measure.unit == "tokens"  # else each request counts 1
        self.active = False  # in the limiter's rotation of checks
        self.evicted = False  # forgotten by the accounts; what is still settled goes to the authority
        self.asked_s: float | None = None  # since when a Want is unanswered; there is one at most
        self.alarm: asyncio.TimerHandle | None = None  # for the first waiter's 50 ms
        self.waiters: deque[Waiter] = deque()
        self.refused_amount = 0
        self.refused_until_s = 0.0

    def question(self) -> Want:
        """What to ask for: what the waiting need, and a top-up ahead of it. Without either: how things stand."""
        want, need = self.topup_wanted(), 0
        if self.waiters:
            need = max(0, self.waiters[0].amount - self.level)
            want = sum(waiter.amount for waiter in self.waiters) + self.target - self.level
        return Want(self.meter, min(want, self.limit), need, self.place)

    def serve(self, offer: Offer, now_s: float) -> bool:
        """After an offer, in the order of their coming: admits or refuses. True: the first who still waits should be
        asked for, as there is room beyond what was offered."""
        waiters = self.waiters
        answered = offer.granted == 0 and offer.retry_after_s > 0  # the offer was a no to the first
        while waiters:
            waiter = waiters[0]
            if waiter.outcome.done():
                answered = False  # its client left, and the no was for it
            else:
                if self.take(waiter.amount):
                    waiter.outcome.set_result(None)
                elif offer.mode == _CLOSED:
                    waiter.outcome.set_result(self._unavailable(waiter.amount, now_s, offer.retry_after_s))
                elif answered or waiter.amount - self.level > offer.remaining:
                    at_least_s = offer.retry_after_s if answered else 0.0  # for the others it is reckoned
                    waiter.outcome.set_result(self._refuse(waiter.amount, now_s, at_least_s))
                    answered = False
                else:
                    return True
            waiters.popleft()
        return False

    def _refuse(self, amount: int, now_s: float, at_least_s: float) -> Refusal:
        """What the authority has no room for; as large a request need not ask it again at once."""
        if amount <= self.limit:
            self.refused_amount = amount
            self.refused_until_s = now_s + min(REFUSAL_HOLDS_S, self.wait_s(amount, now_s))
        return self.refusal(amount, now_s, 0.0 if at_least_s == inf else at_least_s)

    def refused_lately(self, amount: int, now_s: float) -> bool:
        return now_s < self.refused_until_s and amount >= self.refused_amount

    def refusal(self, amount: int, now_s: float, at_least_s: float = 0.0) -> Refusal:
        wait_s = max(self.wait_s(amount, now_s), at_least_s)
        return Refusal(read_meter(self.meter), amount, self.standing(now_s), wait_s)

    def _unavailable(self, amount: int, now_s: float, wait_s: float) -> Refusal:
        return Refusal(read_meter(self.meter), amount, self.standing(now_s), wait_s, closed=True)


class Allowance:
    """What a request counts against: at least the tokens per minute of its tenant, which come first."""

    __slots__ = ("_told", "accounts", "single", "windowed")

    def __init__(self, accounts: tuple[Account, ...]) -> None:
        self.accounts = accounts
        self.single = accounts[0] if len(accounts) == 1 else None  # nearly always
        self.windowed = tuple(account for account in accounts if account.shape is _WINDOW)
        # What x-ratelimit-* tells of, tokens before requests; the fields have no name for days, months and slots.
        minute = [account for account in accounts if account.shape is Shape.REFILLS]
        groups = ([account for account in minute if account.in_tokens is in_tokens] for in_tokens in (True, False))
        self._told = [group for group in groups if group]

    def lines(self, now_s: float) -> bytes:
        """How things stand, as header lines for any reply: of several limits per minute the one with least left."""
        single = self.single
        if single is not None:
            lines, mode = single.lines(now_s), _mode(single)
        else:
            lines = b"".join([_tightest(told, now_s).lines(now_s) for told in self._told])
            mode = max(map(_mode, self.accounts))
        return lines + b"x-edgegw-limits: %b\r\n" % Mode(mode).name.lower().encode() if mode else lines


def _tightest(accounts: list[Account], now_s: float) -> Account:
    """The one of which least is left."""
    if len(accounts) == 1:
        return accounts[0]
    return min(accounts, key=lambda account: account.standing(now_s).remaining)


def _mode(account: Account) -> int:
    """How it is counted at the moment, as a Mode: by the worker alone, or as the authority said."""
    return account.mode if account.local is None else max(account.mode, Mode.LOCAL)
