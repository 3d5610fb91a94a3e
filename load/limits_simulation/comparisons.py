"""Runs that belong together: more replicas, each kind of fault, other constants of the lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from edgegw.limits import account, lease
from load.limits_simulation.figures import Figures, figures
from load.limits_simulation.fleet import Fleet
from load.limits_simulation.plan import Plan

REPLICAS = (1, 10, 100, 1000)

# What happens, as fields of the plan.
FAULTS: dict[str, dict[str, float | str | bool]] = {
    "none": {},
    "1 packet of 10,000 lost": {"packets_lost": 1e-4},
    "workers crash": {"worker_crashes": 20},
    "replicas die": {"replica_deaths": 6},
    "control processes crash": {"control_crashes": 10},
    "clocks jump": {"clock_jumps": 20},
    "1/5 cut off, 20 s": {"partition_share": 0.2, "partition_s": 20},
    "Redis away 1 s": {"redis_away_s": 1},
    "Redis away 10 s": {"redis_away_s": 10},
    "the same, closed": {"redis_away_s": 10, "without_redis": "closed"},
    "Redis back empty": {"redis_away_s": 10, "redis_loses_data": True},
}

LEASES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("HORIZON_S", (0.5, 1.0, 4.0)),
    ("LOW_WATER_SHARE", (2, 16)),
    ("LIMIT_SHARE", (20, 1000)),
    ("REMAINING_SHARE", (2, 32)),
    ("IDLE_S", (0.1, 1.0)),
    ("RATE_MEMORY_S", (0.2, 2.0)),
    ("REFUSAL_HOLDS_S", (0.0, 0.2)),
    ("LONE_CHECKS", (0, 3)),
)


def run(plan: Plan) -> Figures:
    fleet = Fleet(plan)
    fleet.run()
    return figures(fleet)


def replicas(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Up to those of the plan."""
    for number in REPLICAS:
        if number <= plan.replicas:
            yield f"{number} replicas", run(replace(plan, replicas=number))


def faults(plan: Plan) -> Iterator[tuple[str, Figures]]:
    for name, fault in FAULTS.items():
        yield name, run(replace(plan, **fault))  # type: ignore[arg-type]


def leases(plan: Plan) -> Iterator[tuple[str, Figures]]:
    yield "as they are", run(plan)
    for constant, values in LEASES:
        for value in values:
            with other(constant, value):
                yield f"{constant} = {value:g}", run(plan)


@contextmanager
def other(constant: str, value: float) -> Iterator[None]:
    """The lease with another constant. account.py has its own name for one of them."""
    modules = [module for module in (lease, account) if hasattr(module, constant)]
    was = getattr(lease, constant)
    for module in modules:
        setattr(module, constant, value)
    try:
        yield
    finally:
        for module in modules:
            setattr(module, constant, was)
