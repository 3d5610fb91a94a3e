"""Short shares of the acceptance programs in load/: several real gateways, one real Redis, and tenants that want more
than they may have. The programs themselves take longer and print tables."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from load import fleet, kills, redis_faults
from load.clients import Client, chat
from load.processes import Plane, credential, plane

pytestmark = pytest.mark.system

GATEWAYS = 4
ASKING = 100
# Room for one each; what a request reserves before anything is known: a fourth of its bytes and its whole answer.
ONE_EACH = {
    "tokens": {"tokens_per_minute": 80},
    "daily": {"tokens_per_minute": 10**9, "tokens_per_day": 80},
    "requests": {"tokens_per_minute": 10**9, "requests_per_minute": 1},
    "slots": {"tokens_per_minute": 10**9, "concurrent_requests": 1},
}


@pytest.fixture(scope="module")
def house() -> Iterator[Plane]:
    with plane({name: {"limits": limits} for name, limits in ONE_EACH.items()}, GATEWAYS) as house:
        yield house


@pytest.mark.parametrize("tenant", ONE_EACH)
def test_of_100_parallel_first_requests_with_room_for_one_one_is_admitted(house: Plane, tenant: str) -> None:
    request = chat(credential(tenant), "sim-tokens-40-latency-500ms", "Hi", max_tokens=40)

    async def all_at_once() -> Counter[int]:
        clients = [Client(house.ports[number % GATEWAYS]) for number in range(ASKING)]
        seen = await asyncio.gather(*(client.ask(request) for client in clients))
        for client in clients:
            client.close()
        return Counter(one.status for one in seen)

    assert asyncio.run(all_at_once()) == {200: 1, 429: ASKING - 1}


def test_a_fleet_admits_what_the_limits_say() -> None:
    """Eight seconds are too short for the smallest limit: what is left of it is no request's worth."""
    demands = [replace(one, clients=max(4, one.clients // 2)) for one in fleet.DEMANDS]
    report = fleet.run(1 / 7.5, GATEWAYS, 1, demands)
    said = fleet.shown(report)
    print(said)
    missed = [what for what in report.missed if not what.startswith("small: ") or "of the limit used" not in what]
    assert not missed, said
    assert report.redis_calls_per_s < 500, said


def test_a_redis_that_stops_is_noticed_by_nobody() -> None:
    cases = [one for one in redis_faults.CASES if one.name.startswith("SIGSTOP")]
    pace = redis_faults.Pace(before_s=2.0, fault_s=1.5, after_s=1.5)
    rows = asyncio.run(redis_faults.on_one_server(cases, 2, 1, pace))
    said = redis_faults.shown(rows)
    print(said)
    assert not [what for row in rows for what in row.missed if not what.startswith("a request waited")], said
    assert all(row.away_ms < 250 for row in rows), said  # 60 on a quiet machine: the program's bar


def test_workers_that_are_killed_take_nothing_with_them() -> None:
    """With memory: tests/test_limits_system.py."""
    report = kills.run("redis", 3, 1)
    assert not report.missed, kills.shown([report])
    assert report.broken > 0, "requests were under way"
