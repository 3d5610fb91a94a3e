"""Many replicas in virtual time (load/limits_simulation): the bounds of docs/limits.md, and the port of the script.

Small and seeded; `python -m load.limits_simulation` is the same at any size.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import replace

import pytest

from edgegw.limits.redis.script import shipped
from load.limits_simulation.comparisons import run
from load.limits_simulation.figures import Figures
from load.limits_simulation.fleet import Fleet
from load.limits_simulation.loop import new_loop
from load.limits_simulation.plan import Plan
from load.limits_simulation.replay import compare, timed

PLAN = Plan(replicas=20, tenants=200, requests_s=50, minutes=2)  # the end of a day is in it
# What was leased, or was on its way back, while a bucket was full may be admitted on top of the full bucket.
HELD_AT_THE_BRIM = 0.005
pytestmark = pytest.mark.system  # real processes are in one only, but all take as long


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Every replica says when Redis is away."""
    caplog.set_level(logging.ERROR, "edgegw.limits")


def exact(found: Figures) -> None:
    """Nothing beyond the limits, and nothing that an exact counter would have let through is missing."""
    for one in found.classes:
        assert one.overshoot_worst <= HELD_AT_THE_BRIM, one
        if one.name in ("small", "few requests"):
            assert one.overshoot_worst == 0, one
            assert one.refused_with_room <= 0.002 * one.refused, one
        if one.requests > 1000:
            assert one.used_of_ideal >= 0.98, one
    assert found.wait_max_ms <= 50.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_without_faults_limits_are_exact(seed: int) -> None:
    found = run(replace(PLAN, seed=seed))
    exact(found)
    assert found.operations_per_request < 3, "one of five is a heartbeat"


def test_a_tenant_whose_requests_come_everywhere_uses_its_limit() -> None:
    """4 replicas, a saturated tenant; and what lies in hand is within 2 % of the limit per replica."""
    found = run(Plan(replicas=4, tenants=2, requests_s=200, only="saturated", minutes=2))
    exact(found)
    assert found.in_hand_worst <= 0.02
    saturated = found.of("saturated")
    assert saturated is not None
    assert saturated.refused > 1000
    assert saturated.elsewhere <= 0.02


def test_deaths_of_workers_admit_nothing_twice() -> None:
    found = run(replace(PLAN, worker_crashes=60))
    assert found.faults["worker crashes"] > 50
    assert found.overshoot_worst <= HELD_AT_THE_BRIM


def test_while_redis_is_away_no_more_is_admitted_than_is_documented() -> None:
    """What a full bucket holds, what refills meanwhile, and one request (an eighth of the smallest limit, or three) of
    each replica; and nobody waits longer than 50 ms."""
    away_s, replicas = 10.0, 5
    plan = replace(PLAN, replicas=replicas, minutes=1, redis_away_s=away_s)
    found = run(plan)
    assert found.faults["times Redis was away"] == 1
    assert found.wait_max_ms <= 50.1
    assert 0 < found.overshoot_worst <= 1 + away_s / 60 + replicas * 3 / 8
    closed = run(replace(plan, without_redis="closed"))
    assert closed.overshoot_worst <= HELD_AT_THE_BRIM
    assert closed.refusals["overloaded"] > 100


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_the_script_answers_as_its_port_does() -> None:
    plan = replace(PLAN, worker_crashes=10, replica_deaths=4, control_crashes=6, partition_share=0.3, partition_s=4)
    plan = replace(plan, requests_s=100, minutes=1.2)
    fleet = Fleet(replace(plan, record=100_000))
    fleet.run()
    found = compare(fleet.redis.recorded)
    assert found.operations > 8_000
    asked = {argument for call in fleet.redis.recorded for argument in call.arguments[1::6]}
    assert asked >= {b"take", b"give", b"touch", b"beat"}, "drain needs Redis and a control process away at once"
    assert not found.differences


def test_only_the_time_of_the_script_is_replaced() -> None:
    text = shipped().text
    changed = [pair for pair in zip(text.splitlines(), timed(text).splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    with pytest.raises(ValueError, match="asks for the time"):
        timed(text + b"redis.call('TIME')")


def test_the_same_seed_gives_the_same_figures() -> None:
    plan = replace(PLAN, minutes=0.5, warm_s=5, worker_crashes=60, partition_share=0.3, partition_s=2)
    assert run(plan) == run(plan)
    assert run(plan) != run(replace(plan, seed=2))


def test_virtual_time_jumps_and_keeps_order() -> None:
    loop, seen = new_loop(), []

    async def sleeps() -> None:
        await asyncio.sleep(3600)
        seen.append(f"slept until {loop.time()}")
        raise ValueError("nobody waits for this task")

    task = loop.create_task(sleeps())
    for name in ("first", "second"):
        loop.call_at(10.0, seen.append, name)
    loop.call_later(5.0, seen.append, "cancelled").cancel()
    loop.run_until(20.0)
    assert seen == ["first", "second"]
    assert loop.time() == 20.0
    loop.run_until(4000.0)
    assert seen[2:] == ["slept until 3600.0"]
    assert isinstance(task.exception(), ValueError)
