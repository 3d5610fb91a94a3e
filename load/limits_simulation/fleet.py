"""The simulation itself: replicas before one Redis, traffic that is spread over them, and what goes wrong meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from edgegw.errors import GatewayError
from edgegw.limits.account import Allowance
from edgegw.limits.limiter import Reservation
from edgegw.limits.redis.script import shipped
from load.limits_simulation.books import Books
from load.limits_simulation.faults import Faults
from load.limits_simulation.loop import new_loop
from load.limits_simulation.plan import STARTED_S, Plan
from load.limits_simulation.redis import VirtualRedis
from load.limits_simulation.replica import Meters, Replica, Worker
from load.limits_simulation.traffic import Request, Tenant, Traffic, tenants

TRIES = 5  # of a load balancer
HELD_EVERY_S = 1.0  # what lies in hand is looked at so often
IN_HAND_TENANTS = 1_000  # the largest: of the others there is nothing in hand most of the time
DAY_S = 120.0  # a "day" of the traffic


@dataclass(slots=True)
class Seen:
    """What was counted beside the books."""

    at_once: int = 0  # admitted or refused without asking
    asked: int = 0
    waited_s: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    worst_in_hand: float = 0.0  # of one worker, in shares of a limit, of meters that count tokens
    in_hand: list[float] = field(default_factory=list)  # all workers together, of saturated tenants
    faults: Counter[str] = field(default_factory=Counter)
    calls: int = 0  # of the script; before the counting began they are below zero
    operations: Counter[str] = field(default_factory=Counter)


class Fleet:
    def __init__(self, plan: Plan) -> None:
        dice = random.Random(plan.seed)
        self.plan = plan
        self.loop = new_loop()
        self.redis = VirtualRedis(self.loop, random.Random(dice.random()), plan.record)
        self.tenants = tenants(plan.tenants, plan.requests_s, plan.minutes, dice, plan.zipf, plan.only)
        self.traffic = Traffic(self.tenants, DAY_S, random.Random(dice.random()))
        self.ends_s = STARTED_S + plan.minutes * 60
        self.books = Books(self.tenants, STARTED_S + plan.warm_s)
        self.seen = Seen()
        self._dice = dice
        self._running: dict[Worker, dict[Request, None]] = {}
        by_tenant = {tenant.name: tenant.meters for tenant in self.tenants}
        limits = {meter: limit for known in by_tenant.values() for meter, limit in known}
        meters, script = Meters(limits, by_tenant), shipped()
        self.replicas = [
            Replica(self.loop, self.redis, number, plan.workers, meters, script, lambda tenant: plan.without_redis)
            for number in range(plan.replicas)
        ]
        self.alive = list(self.replicas)

    def run(self) -> None:
        loop = self.loop
        for replica in self.replicas:
            loop.call_at(self._dice.random(), replica.start)
        loop.call_at(STARTED_S, self._next)
        loop.call_at(self.books.warm_s, self._begin_counting)
        Faults(self, random.Random(self._dice.random())).start()
        loop.run_until(self.ends_s)
        self.seen.calls += self.redis.calls
        self.seen.operations.update(self.redis.operations)

    @property
    def counted_s(self) -> float:
        return self.ends_s - self.books.warm_s

    # -- requests --

    def _next(self) -> None:
        at_s, tenant = self.traffic.next(self.loop.time())
        if at_s < self.ends_s:
            self.loop.call_at(at_s, self._arrive, tenant)

    def _arrive(self, tenant: Tenant) -> None:
        self._next()
        now_s = self.loop.time()
        request = self.traffic.request(tenant, now_s)
        worker = self._worker()
        if worker is None:
            self.seen.faults["requests that found nobody"] += 1
            return
        if self.books.came(request, now_s):
            self.loop.call_later(request.lasts_s, self._ideal_over, request)
        limiter = worker.limiter
        allowance = limiter.allowance(tenant.name, None, "m")
        reservation = limiter.reserve_now(allowance, request.reserved)
        if reservation is None:
            self.loop.create_task(self._ask(worker, allowance, request, now_s))
        else:
            self._count(0.0)
            self._admit(worker, request, reservation)

    def _worker(self) -> Worker | None:
        """Whom the load balancer chooses: it tries some replicas before it gives up."""
        for _ in range(min(TRIES, len(self.alive))):
            ready = [worker for worker in self._dice.choice(self.alive).workers if worker.ready]
            if ready:
                return self._dice.choice(ready) if len(ready) > 1 else ready[0]
        return None

    async def _ask(self, worker: Worker, allowance: Allowance, request: Request, since_s: float) -> None:
        try:
            reservation = await worker.limiter.reserve(allowance, request.reserved)
        except GatewayError as error:
            if worker.alive:
                self._count(self.loop.time() - since_s)
                self.seen.refusals[error.kind] += 1
                self.books.refuse(request, self.loop.time())
            return
        if worker.alive:
            self._count(self.loop.time() - since_s)
            self._admit(worker, request, reservation)

    def _count(self, waited_s: float) -> None:
        if self.loop.time() < self.books.warm_s:
            return
        if waited_s > 0:
            self.seen.asked += 1
            self.seen.waited_s.append(waited_s)
        else:
            self.seen.at_once += 1

    def _admit(self, worker: Worker, request: Request, reservation: Reservation) -> None:
        self.books.admit(request, self.loop.time())
        self._running.setdefault(worker, {})[request] = None
        self.loop.call_later(request.lasts_s, self._over, worker, request, reservation)

    def _over(self, worker: Worker, request: Request, reservation: Reservation) -> None:
        if worker.alive:
            self._running[worker].pop(request)
            self.books.over(request, self.loop.time())
            reservation.settle(request.used)

    def _ideal_over(self, request: Request) -> None:
        self.books.ideal_over(request, self.loop.time())

    # -- faults (faults.py) --

    def kill_worker(self, worker: Worker) -> None:
        """With all requests that it has."""
        for request in self._running.pop(worker, {}):
            self.books.died(request, self.loop.time())
        worker.replica.kill_worker(worker)

    def kill_replica(self, replica: Replica) -> None:
        self.alive.remove(replica)
        for worker in list(replica.workers):
            self.kill_worker(worker)
        replica.kill_control()

    def revive(self, replica: Replica) -> None:
        replica.start()
        self.alive.append(replica)

    # -- looking --

    def _begin_counting(self) -> None:
        self.seen.calls -= self.redis.calls
        self.seen.operations.subtract(self.redis.operations)
        self._look()

    def _look(self) -> None:
        """At what lies in hand."""
        in_hand: Counter[str] = Counter()
        books, seen = self.books.meters, self.seen
        for replica in self.alive:
            for worker in replica.workers:
                for meter, amount in worker.held().items():
                    in_hand[meter] += amount
                    if not books[meter].is_slots:
                        seen.worst_in_hand = max(seen.worst_in_hand, amount / books[meter].limit)
        for tenant in self.tenants[:IN_HAND_TENANTS]:
            if tenant.kind.name == "saturated":
                seen.in_hand.append(in_hand[tenant.tight] / books[tenant.tight].limit)
        self.loop.call_later(HELD_EVERY_S, self._look)
