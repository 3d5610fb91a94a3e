"""Routes made ready: the targets of a route with all that is needed to ask them, and how each has been doing.

Made once per route and kept; what has been learned of a target (its breaker) is kept across routes. One set per worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from edgegw.breaker import Breaker, BreakerPolicy, State
from edgegw.exchange import Route, Target
from edgegw.http.upstream import Pool
from edgegw.leg import LegWaits
from edgegw.providers.base import Provider
from edgegw.reply_fields import target_fields
from edgegw.retry import RetryBudget
from edgegw.trace import Announcer

_CLOSED = State.CLOSED

# Breakers and ladders are kept per target and route; patterns let clients name targets, so there is a bound.
TARGETS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider as a worker sees it: what to say to it, the connections to it, and its retry budget."""

    provider: Provider
    pool: Pool
    budget: RetryBudget
    waits: LegWaits
    announcer: Announcer | None = None  # None: it is not told whose trace a call belongs to


@dataclass(slots=True, eq=False)
class Rung:
    """A target of a route, with all that is needed to ask it. `fields`: its lines of a reply's head."""

    target: Target
    upstream: Upstream
    fields: bytes


@dataclass(slots=True, eq=False)
class Ladder:
    """A route made ready: its rungs, from the first choice down, and their breakers."""

    route: Route
    rungs: list[Rung]
    breakers: list[Breaker]


class Ladders:
    """All ladders of a worker."""

    def __init__(self, upstreams: Mapping[str, Upstream], breaker_policy: BreakerPolicy) -> None:
        self._upstreams = upstreams
        self._breaker_policy = breaker_policy
        self._breakers: dict[Target, Breaker] = {}
        self._ladders: dict[int, Ladder] = {}  # by the route's identity: hashing its value costs as much as a record

    @property
    def breakers_open(self) -> int:
        return sum(breaker.state is not _CLOSED for breaker in self._breakers.values())

    def breakers_not_closed(self, most: int) -> list[tuple[Target, State]]:
        """Which targets are not asked, or only by one request to see: at most so many of them."""
        found = ((target, each.state) for target, each in self._breakers.items() if each.state is not _CLOSED)
        return list(islice(found, most))

    def of(self, route: Route) -> Ladder:
        ladder = self._ladders.get(id(route))
        return ladder if ladder is not None and ladder.route is route else self._made_ready(route)

    def _made_ready(self, route: Route) -> Ladder:
        rungs = [
            Rung(target, self._upstreams[target.provider], target_fields(route, target)) for target in route.targets
        ]
        if len(self._ladders) >= TARGETS_MAX:
            self._ladders.clear()
        breakers = [self._breaker(target) for target in route.targets]
        ladder = self._ladders[id(route)] = Ladder(route, rungs, breakers)
        return ladder

    def _breaker(self, target: Target) -> Breaker:
        breaker = self._breakers.get(target)
        if breaker is None:
            if len(self._breakers) >= TARGETS_MAX:
                self._breakers.clear()
                self._ladders.clear()
            breaker = self._breakers[target] = Breaker(self._breaker_policy)
        return breaker
