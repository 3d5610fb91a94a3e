"""Who sends what: tenants of several classes, their limits, and requests that come in bursts and by the time of day.

Tenants are weighted by Zipf's law. How a limit stands to the demand makes the class; the class is drawn, so that there
are large and small tenants in each. Everything follows from the dice that are given.
"""

from __future__ import annotations

import random
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, pi, sin

from edgegw.limits.meter import BY_CODE, Meter

ZIPF = 1.0  # its exponent; 0: all alike
PROMPT_TOKENS, ANSWER_TOKENS = 600, 300  # medians of log-normal sizes, large requests are ten times that
SIZE_SIGMA = 0.8
ESTIMATE_SIGMA = 0.15  # of a prompt: bytes per token are learned, but differ from text to text
ANSWER_RESERVED = exp(1.2816 * SIZE_SIGMA)  # times the median: the 90th percentile, as the gateway reserves
FIRST_TOKEN_S, TOKEN_S = 0.5, 0.02  # of an answer; 50 tokens a second
STREAM_SHARE, STREAM_MEAN_S, STREAM_MAX_S = 0.05, 60.0, 300.0  # some go on for minutes whatever their size
BURST_FACTOR, BURST_MEAN_S = 4.0, 2.0
QUIET_FACTOR, QUIET_MEAN_S = 0.8, 28.0  # so that the mean is 1.01
DAY_SWING = 0.5  # of the demand, up and down
SMALL_TOKENS = (1, 20)  # of a request of a tenant with 60 tokens a minute


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of tenants: tokens per minute are `room` times the mean demand."""

    name: str
    share: float
    room: float
    also: str = ""  # a second measure that is the tight one, at `room` times its demand


KINDS = (
    Kind("saturated", 0.20, 0.5),
    Kind("near", 0.20, 1.1),
    Kind("ample", 0.40, 10.0),
    Kind("small", 0.05, 0.0),
    Kind("few requests", 0.05, 10.0, "rpm"),
    Kind("slots", 0.05, 10.0, "par"),
    Kind("day", 0.05, 10.0, "day"),
)
_MEAN_OF_SIZE = exp(SIZE_SIGMA**2 / 2)
MEAN_TOKENS = (PROMPT_TOKENS + ANSWER_TOKENS) * _MEAN_OF_SIZE
MEAN_S = (1 - STREAM_SHARE) * (FIRST_TOKEN_S + ANSWER_TOKENS * _MEAN_OF_SIZE * TOKEN_S) + STREAM_SHARE * STREAM_MEAN_S


@dataclass(slots=True)
class Tenant:
    name: str
    kind: Kind
    requests_s: float
    meters: list[tuple[str, int]] = field(default_factory=list)
    tight: str = ""  # the meter that its class is about
    phase: float = 0.0  # of its day
    factor: float = QUIET_FACTOR
    changes_s: float = 0.0


@dataclass(slots=True, eq=False)
class Request:
    tenant: Tenant
    reserved: int
    used: int
    lasts_s: float
    came_s: float


def tenants(
    number: int, requests_s: float, minutes: float, dice: random.Random, zipf: float = ZIPF, only: str = ""
) -> list[Tenant]:
    """The largest first. `only`: all are of the class of this name."""
    weights = [1 / rank**zipf for rank in range(1, number + 1)]
    total = sum(weights)
    chosen = [kind for kind in KINDS if only in ("", kind.name)]
    kinds = dice.choices(chosen, [kind.share for kind in chosen], k=number)
    return [
        _tenant(f"t{rank}", kind, requests_s * weight / total, minutes, dice)
        for rank, (kind, weight) in enumerate(zip(kinds, weights, strict=True), 1)
    ]


def _tenant(name: str, kind: Kind, requests_s: float, minutes: float, dice: random.Random) -> Tenant:
    tenant = Tenant(name, kind, requests_s, phase=dice.random())
    tenant.changes_s = dice.expovariate(1 / QUIET_MEAN_S)
    if kind.name == "small":
        limits = {"tpm": 60}
    else:
        limits = {"tpm": max(int(kind.room * requests_s * MEAN_TOKENS * 60), int(8 * MEAN_TOKENS))}
    if kind.also == "rpm":
        limits["rpm"] = max(1, int(0.5 * requests_s * 60))
    elif kind.also == "par":
        limits["par"] = max(1, int(0.5 * requests_s * MEAN_S))
    elif kind.also == "day":
        limits["day"] = max(int(0.5 * requests_s * MEAN_TOKENS * 60 * minutes), int(8 * MEAN_TOKENS))
    tenant.meters = [(Meter(BY_CODE[code], name).id, limit) for code, limit in limits.items()]
    tenant.tight = tenant.meters[-1][0]
    return tenant


class Traffic:
    """Requests one after the other. Candidates come evenly at the highest rate there may be; most are let go."""

    def __init__(self, known: list[Tenant], day_s: float, dice: random.Random) -> None:
        self._tenants = known
        self._day_s = day_s
        self._dice = dice
        self._cumulated = list(accumulate(tenant.requests_s for tenant in known))
        self._peak = BURST_FACTOR * (1 + DAY_SWING)
        self._candidates_s = self._cumulated[-1] * self._peak

    def next(self, now_s: float) -> tuple[float, Tenant]:
        """When the next request comes, and whose it is."""
        dice, cumulated, total = self._dice, self._cumulated, self._cumulated[-1]
        while True:
            now_s += dice.expovariate(self._candidates_s)
            tenant = self._tenants[bisect(cumulated, dice.random() * total)]
            if now_s >= tenant.changes_s:
                self._turn(tenant, now_s)
            hour = 1 + DAY_SWING * sin(2 * pi * (now_s / self._day_s + tenant.phase))
            if dice.random() * self._peak < tenant.factor * hour:
                return now_s, tenant

    def _turn(self, tenant: Tenant, now_s: float) -> None:
        bursts = tenant.factor == QUIET_FACTOR and now_s - tenant.changes_s < BURST_MEAN_S  # else nobody saw the burst
        tenant.factor = BURST_FACTOR if bursts else QUIET_FACTOR
        tenant.changes_s = now_s + self._dice.expovariate(1 / (BURST_MEAN_S if bursts else QUIET_MEAN_S))

    def request(self, tenant: Tenant, now_s: float) -> Request:
        """Its size and its length. What is reserved differs from what is used as the gateway's estimates do."""
        dice = self._dice
        if tenant.kind.name == "small":
            used = dice.randint(*SMALL_TOKENS)
            return Request(tenant, max(1, round(used * dice.lognormvariate(0, ESTIMATE_SIGMA))), used, 0.5, now_s)
        prompt = PROMPT_TOKENS * dice.lognormvariate(0, SIZE_SIGMA)
        answer = ANSWER_TOKENS * dice.lognormvariate(0, SIZE_SIGMA)
        reserved = prompt * dice.lognormvariate(0, ESTIMATE_SIGMA) + ANSWER_TOKENS * ANSWER_RESERVED
        lasts_s = FIRST_TOKEN_S + answer * TOKEN_S
        if dice.random() < STREAM_SHARE:
            lasts_s = min(STREAM_MAX_S, dice.expovariate(1 / STREAM_MEAN_S))
        return Request(tenant, int(reserved), int(prompt + answer), lasts_s, now_s)
