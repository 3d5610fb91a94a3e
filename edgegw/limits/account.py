"""A tenant's lease in a worker, and the requests that wait for it to grow.

What an account can say by itself: what to ask the authority for, whom its level admits, and in which words the others
are refused. When to ask, and what to do in silence, is the limiter's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from math import inf

from edgegw.errors import GatewayError
from edgegw.exchange import Grant
from edgegw.limits.lease import REFUSAL_HOLDS_S, Lease, Offer, Want
from edgegw.limits.standing import no_room, too_large


@dataclass(slots=True)
class Waiter:
    """A request that waits for the authority; `outcome` is its grant, or why there is none."""

    tokens: int
    since_s: float
    outcome: asyncio.Future[Grant | GatewayError]


class Account(Lease):
    __slots__ = ("active", "alarm", "asked_s", "refused_tokens", "refused_until_s", "waiters")

    def __init__(self, tenant: str, limit: int, now_s: float) -> None:
        super().__init__(tenant, limit, now_s)
        self.active = False  # in the limiter's rotation of checks
        self.asked_s: float | None = None  # since when a Want is unanswered; there is one at most
        self.alarm: asyncio.TimerHandle | None = None  # for the first waiter's 50 ms
        self.waiters: deque[Waiter] = deque()
        self.refused_tokens = 0
        self.refused_until_s = 0.0

    def question(self) -> Want:
        """What to ask for: what the waiting need, and a top-up ahead of it. Without either: how things stand."""
        want, need = self.topup_wanted(), 0
        if self.waiters:
            need = max(0, self.waiters[0].tokens - self.level)
            want = sum(waiter.tokens for waiter in self.waiters) + self.target - self.level
        return Want(self.tenant, min(want, self.limit), need, self.level)

    def serve(self, offer: Offer, now_s: float) -> bool:
        """After an offer, in the order of their coming: admits or refuses. True: the first who still waits should be
        asked for, as there is room beyond what was offered."""
        waiters = self.waiters
        answered = offer.granted == 0  # the offer was a no to the first
        while waiters:
            waiter = waiters[0]
            if not waiter.outcome.done():  # else its client left
                if self.take(waiter.tokens):
                    waiter.outcome.set_result(Grant(self.tenant, waiter.tokens))
                elif answered or waiter.tokens - self.level > offer.remaining:
                    at_least_s = offer.retry_after_s if answered else 0.0  # for the others it is reckoned
                    waiter.outcome.set_result(self.refuse(waiter.tokens, now_s, at_least_s))
                    answered = False
                else:
                    return True
            waiters.popleft()
        return False

    def refuse(self, tokens: int, now_s: float, at_least_s: float) -> GatewayError:
        """What the authority has no room for; as large a request need not ask it again at once."""
        if tokens > self.limit:
            return too_large(self.tenant, tokens, self.limit)
        self.refused_tokens = tokens
        self.refused_until_s = now_s + min(REFUSAL_HOLDS_S, self.wait_s(tokens, now_s))
        return self.refusal(tokens, now_s, 0.0 if at_least_s == inf else at_least_s)

    def refused_lately(self, tokens: int, now_s: float) -> bool:
        return now_s < self.refused_until_s and tokens >= self.refused_tokens

    def refusal(self, tokens: int, now_s: float, at_least_s: float = 0.0) -> GatewayError:
        return no_room(self.tenant, tokens, self.standing(now_s), max(self.wait_s(tokens, now_s), at_least_s))
