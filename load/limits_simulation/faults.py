"""What goes wrong: processes die and come back, Redis is away for some or for all, clocks jump."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from load.limits_simulation.plan import STARTED_S, Plan
from load.limits_simulation.replica import Replica, Worker

if TYPE_CHECKING:
    from load.limits_simulation.fleet import Fleet

WORKER_RESTART_S = 1.0
CONTROL_RESTART_S = 0.5
REPLICA_RESTART_S = 10.0
ONCE_S = 60.0  # partitions and absences: the first 25 s after the traffic began
FIRST_S = 25.0
CLOCK_JUMP_MAX_S = 30.0  # the monotonic clock, ahead
WALL_JUMP_MAX_S = 3600.0  # the wall clock, either way


class Faults:
    def __init__(self, fleet: Fleet, dice: random.Random) -> None:
        self._fleet = fleet
        self._dice = dice
        self._loop = fleet.loop

    def start(self) -> None:
        plan: Plan = self._fleet.plan
        for a_minute, fault in (
            (plan.worker_crashes, self._crash_worker),
            (plan.replica_deaths, self._kill_replica),
            (plan.control_crashes, self._crash_control),
            (plan.clock_jumps, self._jump_clock),
        ):
            if a_minute:
                self._now_and_then(fault, a_minute)
        if plan.partition_share or plan.redis_away_s:
            self._loop.call_at(STARTED_S + FIRST_S, self._every_minute)
        self._fleet.redis.slow_s, self._fleet.redis.lost = plan.redis_slow_s, plan.packets_lost

    def _now_and_then(self, fault: Callable[[], None], a_minute: float) -> None:
        def strike() -> None:
            fault()
            self._now_and_then(fault, a_minute)

        pause_s = self._dice.expovariate(a_minute / 60)
        self._loop.call_at(max(self._loop.time(), STARTED_S) + pause_s, strike)

    def _replica(self) -> Replica | None:
        return self._dice.choice(self._fleet.alive) if self._fleet.alive else None

    def _crash_worker(self) -> None:
        replica = self._replica()
        if replica is None or not replica.workers:
            return
        worker: Worker = self._dice.choice(replica.workers)
        self._fleet.kill_worker(worker)
        self._fleet.seen.faults["worker crashes"] += 1
        life = replica.lives

        def again() -> None:
            if replica.lives == life and replica in self._fleet.alive:
                replica.start_worker(worker.slot)

        self._loop.call_later(WORKER_RESTART_S, again)

    def _crash_control(self) -> None:
        replica = self._replica()
        if replica is None or replica.authority is None:
            return
        replica.kill_control()
        self._fleet.seen.faults["control processes killed"] += 1
        life = replica.lives

        def again() -> None:
            if replica.lives == life and replica in self._fleet.alive:
                replica.start_control()

        self._loop.call_later(CONTROL_RESTART_S, again)

    def _kill_replica(self) -> None:
        replica = self._replica()
        if replica is not None:
            self._fleet.kill_replica(replica)
            self._fleet.seen.faults["replicas killed"] += 1
            self._loop.call_later(REPLICA_RESTART_S, self._fleet.revive, replica)

    def _jump_clock(self) -> None:
        replica = self._replica()
        if replica is not None:
            ahead_s = self._dice.random() * CLOCK_JUMP_MAX_S
            replica.clock.jump(ahead_s, self._dice.uniform(-1, 1) * WALL_JUMP_MAX_S)
            self._fleet.seen.faults["clock jumps"] += 1

    def _every_minute(self) -> None:
        fleet, plan = self._fleet, self._fleet.plan
        if plan.partition_share:
            cut = self._dice.sample(fleet.replicas, max(1, round(plan.partition_share * len(fleet.replicas))))
            for replica in cut:
                fleet.redis.cut(str(replica.number), plan.partition_s)
            fleet.seen.faults["replicas cut off"] += len(cut)
        if plan.redis_away_s:
            fleet.redis.stop(keep_data=not plan.redis_loses_data)
            fleet.seen.faults["times Redis was away"] += 1
            self._loop.call_later(plan.redis_away_s, fleet.redis.start)
        self._loop.call_later(ONCE_S, self._every_minute)
