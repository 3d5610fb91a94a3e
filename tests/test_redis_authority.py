"""The authority for many replicas with a real Redis that is there: what it grants, in how few calls, and that nothing
is counted twice or lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf

import pytest
from redis_rig import Redis

from edgegw.app.parts import SystemClock
from edgegw.limits.meter import BY_CODE, Meter
from edgegw.limits.redis.authority import RedisAuthority
from edgegw.limits.redis.keys import meter_key
from edgegw.limits.redis.script import shipped
from edgegw.limits.redis.server import GATHER_S, OPERATIONS_MAX
from edgegw.limits.words import Mode
from edgegw.settings import WithoutRedis, parse_redis

pytestmark = pytest.mark.system


def meter(code: str = "tpm", tenant: str = "acme") -> str:
    return Meter(BY_CODE[code], tenant).id


class Replica:
    """An authority of one gateway; limits by meter, 600 if nothing is said."""

    def __init__(self, url: str, name: str, without: WithoutRedis = "local") -> None:
        self.limits: dict[str, int] = {}
        self.without = without
        self.authority = RedisAuthority(
            parse_redis(url),
            shipped(),
            lambda meter: self.limits.get(meter, 600),
            lambda tenant: self.without,
            SystemClock(),
            name,
        )
        self.lease = self.authority.lease
        self.give_back = self.authority.give_back
        self.spent = self.authority.spent

    @property
    def state(self) -> str:
        return str(self.authority.status()["state"])


@asynccontextmanager
async def replicas(url: str, count: int = 1, without: WithoutRedis = "local") -> AsyncIterator[list[Replica]]:
    started = [Replica(url, f"replica-{number}", without) for number in range(count)]
    try:
        await asyncio.gather(*(one.authority.start() for one in started))
        yield started
    finally:
        await asyncio.gather(*(one.authority.close() for one in started))


async def told() -> None:
    """Until what is gathered has been told."""
    await asyncio.sleep(2 * GATHER_S)


async def level(replica: Replica, which: str) -> int:
    return (await replica.lease(which, 0, 0)).remaining


async def test_first_come_first_served_on_all_replicas(redis: Redis) -> None:
    async with replicas(redis.url, 2) as (one, other):
        offer = await one.lease(meter(), 400, 100)
        assert (offer.granted, offer.limit, offer.remaining, offer.mode) == (400, 600, 200, Mode.EXACT)
        assert (await other.lease(meter(), 400, 100)).granted == 200
        refused = await one.lease(meter(), 400, 100)
        assert refused.granted == 0
        assert refused.retry_after_s == pytest.approx(10.0, abs=0.2)
        assert (await one.lease(meter(tenant="other"), 600, 600)).granted == 600, "tenants do not share"
        assert (await one.lease(meter(), 601, 601)).retry_after_s == inf


async def test_a_hundred_ask_first_and_there_is_room_for_one(redis: Redis) -> None:
    async with replicas(redis.url, 4) as them:
        for one in them:
            one.limits = dict.fromkeys((meter("rpm"), meter("par"), meter("day")), 1)
        for code in ("rpm", "par", "day"):
            offers = await asyncio.gather(*(them[number % 4].lease(meter(code), 1, 1) for number in range(100)))
            assert sum(offer.granted for offer in offers) == 1, code
            waits = {offer.retry_after_s for offer in offers if not offer.granted}
            assert all(0 < wait_s < inf for wait_s in waits)


async def test_all_that_is_asked_in_one_turn_leaves_in_one_call(redis: Redis) -> None:
    async with replicas(redis.url) as (one,):
        await one.lease(meter(), 0, 0)
        before = redis.evalsha_calls()
        await asyncio.gather(*(one.lease(meter(tenant=f"t{number}"), 5, 5) for number in range(OPERATIONS_MAX)))
        assert redis.evalsha_calls() == before + 1
        await asyncio.gather(*(one.lease(meter(tenant=f"t{number}"), 5, 5) for number in range(OPERATIONS_MAX + 1)))
        assert redis.evalsha_calls() == before + 3, "a call is bounded"


async def test_what_nobody_waits_for_shares_a_call(redis: Redis) -> None:
    async with replicas(redis.url) as (one,):
        await asyncio.gather(*(one.lease(meter(tenant=f"t{number}"), 50, 50) for number in range(40)))
        before = redis.evalsha_calls()
        topups = []
        for number in range(40):
            one.give_back(meter(tenant=f"t{number}"), 3)
            one.give_back(meter(tenant=f"t{number}"), 4)
            topups.append(asyncio.create_task(one.lease(meter(tenant=f"t{number}"), 10, 0)))
            await asyncio.sleep(0)
        offers = await asyncio.gather(*topups)
        assert redis.evalsha_calls() == before + 1
        assert {(offer.granted, offer.remaining) for offer in offers} == {(10, 547)}


async def test_back_and_charged(redis: Redis) -> None:
    async with replicas(redis.url) as (one,):
        one.limits = {meter("day"): 600}
        assert (await one.lease(meter("day"), 600, 600)).granted == 600
        one.give_back(meter("day"), 50)
        await told()
        assert await level(one, meter("day")) == 50
        one.spent(meter("day"), 70)
        await told()
        assert await level(one, meter("day")) == -20, "a debt"
        one.give_back(meter("day"), 20)
        one.give_back(meter("day"), -80)
        await told()
        assert await level(one, meter("day")) == -80
        one.give_back(meter("day"), 10_000)
        await told()
        assert await level(one, meter("day")) == 600, "never above the brim"


async def test_what_comes_back_is_there_for_who_asks_next(redis: Redis) -> None:
    """It is sent before the question, although that does not wait."""
    async with replicas(redis.url) as (one,):
        await one.lease(meter("day"), 600, 600)
        one.give_back(meter("day"), 10)
        assert (await one.lease(meter("day"), 10, 10)).granted == 10


async def test_a_new_limit_holds_at_once_and_forgets_nothing(redis: Redis) -> None:
    async with replicas(redis.url) as (one,):
        for code in ("tpm", "day", "par"):
            which = meter(code)
            one.limits[which] = 600
            await one.lease(which, 500, 500)
            one.limits[which] = 1000
            offer = await one.lease(which, 0, 0)
            assert offer.limit == 1000
            assert offer.remaining == pytest.approx(500, abs=3)
            one.limits[which] = 300
            offer = await one.lease(which, 1, 1)
            assert (offer.granted, offer.limit) == (0, 300)
            assert offer.remaining == pytest.approx(-200, abs=4)


async def test_a_window_says_when_it_ends(redis: Redis) -> None:
    async with replicas(redis.url) as (one,):
        day, month = await one.lease(meter("day"), 1, 1), await one.lease(meter("month"), 1, 1)
        assert 0 < day.resets_s <= 86_400
        assert day.resets_s <= month.resets_s <= 31 * 86_400
        assert (await one.lease(meter(), 1, 1)).resets_s == 0.0


async def test_slots_are_counted_over_replicas_and_let_go_when_one_leaves(redis: Redis) -> None:
    which = meter("par")
    async with replicas(redis.url) as (stays,):
        stays.limits[which] = 5
        async with AsyncExitStack() as leaves:
            (other,) = await leaves.enter_async_context(replicas(redis.url))
            other.limits[which] = 5
            assert (await other.lease(which, 3, 3)).granted == 3
            assert (await stays.lease(which, 3, 3)).granted == 0
            assert (await stays.lease(which, 2, 2)).granted == 2
            other.give_back(which, 1)
            await told()
            assert await level(stays, which) == 1
            other.spent(which, 4)
            await told()
            assert await level(stays, which) == -3, "in use, whether there was room or not"
        assert await level(stays, which) == 3


async def test_slots_are_remembered_when_redis_forgets(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgegw.limits.redis.authority.TOUCH_EVERY_S", 0.0)
    which = meter("par")
    async with replicas(redis.url) as (one,):
        one.limits[which] = 5
        await one.lease(which, 3, 3)
        redis.do("FLUSHALL")
        await asyncio.sleep(1.2)
        assert redis.do("HGET", meter_key(Meter(BY_CODE["par"], "acme")), "used") == b"3"


async def test_replicas_see_each_other(redis: Redis) -> None:
    async with replicas(redis.url, 3) as them:
        await asyncio.sleep(1.2)
        assert [one.authority.status()["replicas"] for one in them] == [3, 3, 3]
        assert redis.do("ZCARD", "edgegw:replicas") == 3
    assert redis.do("ZCARD", "edgegw:replicas") == 0, "they say good-bye"


async def test_nothing_is_lost_or_counted_twice(redis: Redis) -> None:
    """Conservation: what the replicas were granted, less what they gave back, is what Redis counts as used."""
    dice = random.Random(7)
    codes = ("day", "month", "par")
    used = dict.fromkeys(codes, 0)
    async with replicas(redis.url, 3) as them:
        for one in them:
            one.limits = {meter("day"): 5_000, meter("month"): 10**15, meter("par"): 300}

        async def spender(one: Replica) -> None:
            held = dict.fromkeys(codes, 0)
            for _ in range(150):
                code = dice.choice(codes)
                if dice.random() < 0.6:
                    want = dice.randrange(1, 200)
                    granted = (await one.lease(meter(code), want, dice.randrange(want + 1))).granted
                    held[code] += granted
                    used[code] += granted
                else:
                    back = dice.randrange(held[code] + 1)
                    one.give_back(meter(code), back)
                    held[code] -= back
                    used[code] -= back
                if dice.random() < 0.1:
                    await asyncio.sleep(0.005)

        await asyncio.gather(*(spender(one) for one in them for _ in range(4)))
        await told()
        for code in codes:
            limit = them[0].limits[meter(code)]
            assert await level(them[0], meter(code)) == limit - used[code]
            assert 0 <= used[code] <= limit
    assert all(redis.do("PTTL", key) > 0 for key in redis.do("KEYS", "*")), "every key expires"


async def test_a_busy_fleet_makes_few_calls(redis: Redis) -> None:
    """What workers ask at 10,000 requests a second over 100 tenants and 4 replicas: each lease is topped up once a
    second (it holds two seconds of use), and at one in ten somebody waits."""
    dice = random.Random(3)
    async with replicas(redis.url, 4) as them:
        for one in them:
            one.limits = {meter(tenant=f"t{number}"): 10_000_000 for number in range(100)}
        before, loop = redis.evalsha_calls(), asyncio.get_running_loop()
        started_s = loop.time()

        async def leases(one: Replica, tenant: str) -> int:
            asked = 0
            await asyncio.sleep(dice.random())
            while loop.time() < started_s + 2.0:
                offer = await one.lease(meter(tenant=tenant), 5_000, 1 if dice.random() < 0.1 else 0)
                assert offer.granted == 5_000
                one.give_back(meter(tenant=tenant), 500)
                asked += 1
                await asyncio.sleep(1.0)
            return asked

        asked = await asyncio.gather(*(leases(one, f"t{number}") for one in them for number in range(100)))
        seconds = loop.time() - started_s
        calls = redis.evalsha_calls() - before
    assert sum(asked) >= 700
    assert calls / seconds < 350, f"{calls} calls in {seconds:.1f} s"


async def test_a_meter_lately_unused_is_forgotten(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgegw.limits.redis.authority.TABS_BEFORE_SWEEP", 10)
    monkeypatch.setattr("edgegw.limits.redis.authority.TAB_KEPT_S", 0.0)
    async with replicas(redis.url) as (one,):
        one.authority._sweep_at = 10
        await one.lease(meter("par"), 1, 1)
        for number in range(100):
            await one.lease(meter(tenant=f"t{number}"), 1, 1)
        assert len(one.authority._tabs) <= 22
        assert meter("par") in one.authority._tabs, "something is held of it"


async def test_a_caller_that_is_cancelled_keeps_nothing(redis: Redis) -> None:
    async with replicas(redis.url) as (one,):
        waiting = asyncio.create_task(one.lease(meter("day"), 100, 100))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await told()
        await told()
        assert await level(one, meter("day")) == 600
