"""Redis goes away and comes back, really: nobody waits, what each mode grants, and that it is told afterwards."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from redis_rig import House, Redis, Slow
from test_redis_authority import Replica, level, meter, replicas, told

from edgegw.limits.words import Mode, Offer

pytestmark = pytest.mark.system

PATIENCE_S = 0.06  # no lease call may take longer, whatever happens to Redis
BACK_WITHIN_S = 2.0


@dataclass
class Watch:
    """Asks all the time, as workers do, and keeps what was answered and how long it took."""

    offers: list[tuple[float, Offer]] = field(default_factory=list)
    longest_s: float = 0.0

    async def run(self, one: Replica, which: str) -> None:
        asking: set[asyncio.Task[None]] = set()
        try:
            while True:
                task = asyncio.create_task(self._ask(one, which))
                asking.add(task)
                task.add_done_callback(asking.discard)
                await asyncio.sleep(0.005)
        finally:
            await asyncio.gather(*asking)

    async def _ask(self, one: Replica, which: str) -> None:
        started_s = time.monotonic()
        offer = await one.lease(which, 1, 1)
        ended_s = time.monotonic()
        self.longest_s = max(self.longest_s, ended_s - started_s)
        self.offers.append((ended_s, offer))

    def modes(self, after_s: float = 0.0) -> set[int]:
        return {offer.mode for ended_s, offer in self.offers if ended_s > after_s}


@asynccontextmanager
async def watched(one: Replica, which: str = meter()) -> AsyncIterator[Watch]:
    one.limits.setdefault(which, 10_000_000)
    watch = Watch()
    task = asyncio.create_task(watch.run(one, which))
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert watch.longest_s < PATIENCE_S, f"a lease call took {watch.longest_s * 1e3:.0f} ms"


async def until(state: Callable[[], bool], within_s: float) -> float:
    """Seconds until it was so."""
    started_s = time.monotonic()
    while not state():
        assert time.monotonic() < started_s + within_s, f"not within {within_s:g} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - started_s


Fault = Callable[[Redis], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def killed(redis: Redis) -> AsyncIterator[None]:
    redis.kill()
    yield
    await asyncio.to_thread(redis.start)


@asynccontextmanager
async def stopped(redis: Redis) -> AsyncIterator[None]:
    redis.signal(signal.SIGSTOP)
    yield
    redis.signal(signal.SIGCONT)


@asynccontextmanager
async def paused(redis: Redis) -> AsyncIterator[None]:
    redis.do("CLIENT", "PAUSE", 1_000, "ALL")  # which holds up UNPAUSE too
    yield


@asynccontextmanager
async def full(redis: Redis) -> AsyncIterator[None]:
    redis.do("CONFIG", "SET", "maxmemory", 1)
    yield
    redis.do("CONFIG", "SET", "maxmemory", 0)


@asynccontextmanager
async def read_only(redis: Redis) -> AsyncIterator[None]:
    redis.do("REPLICAOF", "127.0.0.1", 1)
    yield
    redis.do("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def master_down(redis: Redis) -> AsyncIterator[None]:
    redis.do("CONFIG", "SET", "replica-serve-stale-data", "no")
    async with read_only(redis):
        yield


@asynccontextmanager
async def no_rights(redis: Redis) -> AsyncIterator[None]:
    redis.do("ACL", "SETUSER", "default", "-hset")
    yield
    redis.do("ACL", "SETUSER", "default", "+hset")


@pytest.mark.parametrize(("fault", "kind"), [
    (killed, "connection"), (stopped, "timeout"), (paused, "timeout"), (full, "oom"), (read_only, "readonly"),
    (master_down, "masterdown"), (no_rights, "noperm"),
])  # fmt: skip
async def test_redis_away_and_back(redises: House, caplog: pytest.LogCaptureFixture, fault: Fault, kind: str) -> None:
    """Away for half a second and more. One line when it goes, one when it is back, and nobody waits for it."""
    redis = redises.redis()
    caplog.set_level(logging.INFO)
    async with replicas(redis.url) as (one,), watched(one) as watch:
        await asyncio.sleep(0.2)
        assert one.state == "exact"
        assert watch.modes() == {Mode.EXACT}
        async with fault(redis):
            await until(lambda: one.state == "away", 0.2)
            away_s = time.monotonic()
            await asyncio.sleep(0.6)
            assert watch.modes(away_s) == {Mode.LOCAL}
            assert one.authority.status()["away_seconds"] > 0.5
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        await until(lambda: watch.modes(time.monotonic() - 0.1) == {Mode.EXACT}, BACK_WITHIN_S)
        assert one.authority.tally.failures.get(kind, 0) >= 1
        absences = one.authority.tally.absences  # more than one only where processors are scarce
    said = [record.getMessage() for record in caplog.records if record.name == "edgegw.limits"]
    assert [line.split(" (")[0] for line in said] == ["Redis is away", "Redis is back"] * absences, said
    assert absences < 3
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_slow_redis_is_away_and_what_it_granted_too_late_comes_back(redises: House) -> None:
    redis = redises.redis()
    which = meter("day")
    async with Slow(redis).running() as slow, replicas(slow.url) as (one,):
        one.limits[which] = 1_000
        assert (await one.lease(which, 100, 100)).mode == Mode.EXACT
        slow.delay_s = 0.2
        started_s = time.monotonic()
        offers = await asyncio.gather(*(one.lease(which, 50, 50) for _ in range(4)))
        assert time.monotonic() - started_s < PATIENCE_S
        assert {offer.mode for offer in offers} == {Mode.LOCAL}
        await asyncio.sleep(0.7)
        assert one.state == "away", "200 ms are not good enough"
        slow.delay_s = 0.0
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        await told()
        granted = 100 + sum(offer.granted for offer in offers)
        assert await level(one, which) == 1_000 - granted, "late grants went back, local ones are charged"


async def test_lost_scripts_are_sent_again_and_nobody_notices(redises: House) -> None:
    redis = redises.redis()
    async with replicas(redis.url) as (one,), watched(one) as watch:
        for _ in range(5):
            await asyncio.sleep(0.05)
            redis.do("SCRIPT", "FLUSH")
        await asyncio.sleep(0.1)
        assert watch.modes() == {Mode.EXACT}
        assert one.authority.tally.failures.keys() == {"noscript"}


async def test_a_redis_that_loads_is_away(redises: House) -> None:
    """`DEBUG` makes loading slow enough to be seen: a snapshot of some keys, a millisecond each."""
    redis = redises.redis("--enable-debug-command", "yes", "--key-load-delay", "5000")
    async with replicas(redis.url) as (one,), watched(one) as watch:
        await asyncio.sleep(0.1)
        client = redis.client()
        for number in range(100):
            client.do("SET", f"k{number}", 1)
        client.close()
        reload = asyncio.create_task(asyncio.to_thread(redis.do, "DEBUG", "RELOAD"))
        await until(lambda: one.state == "away", 2)
        away_s = time.monotonic()
        await reload
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        assert Mode.LOCAL in watch.modes(away_s)


async def test_when_redis_is_not_there_at_the_start(redises: House, caplog: pytest.LogCaptureFixture) -> None:
    redis = redises.redis()
    redis.kill()
    started_s = time.monotonic()
    async with replicas(redis.url) as (one,):
        assert time.monotonic() - started_s < 1.5
        assert (await one.lease(meter(), 100, 100)).mode == Mode.LOCAL
        assert one.state == "away"
        await asyncio.to_thread(redis.start)
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        await told()
        assert await level(one, meter()) == pytest.approx(500, abs=15)
    assert caplog.text.count("Redis is away") == 1


# -- what each mode grants --


@asynccontextmanager
async def without(redis: Redis, count: int = 1) -> AsyncIterator[list[Replica]]:
    """Replicas that know each other and whose Redis was killed."""
    async with replicas(redis.url, count) as them:
        await asyncio.sleep(1.1 if count > 1 else 0.0)
        for one in them:
            one.limits = {meter(code): 600 for code in ("tpm", "day", "par")}
        yield them


async def test_local_is_this_replicas_share_of_what_was_left(redises: House) -> None:
    redis = redises.redis()
    async with without(redis, 3) as them:
        for code in ("tpm", "day", "par"):
            await them[0].lease(meter(code), 300, 300)
            for one in them[1:]:
                await one.lease(meter(code), 0, 0)
        redis.kill()
        await until(lambda: all(one.state == "away" for one in them), 0.2)
        for code in ("tpm", "day", "par"):
            offers = [await one.lease(meter(code), 600, 0) for one in them]
            assert [offer.granted for offer in offers] == pytest.approx([100, 100, 100], abs=2), code
            assert {(offer.mode, offer.limit) for offer in offers} == {(Mode.LOCAL, 600)}
            refused = await them[0].lease(meter(code), 50, 50)
            assert refused.granted == 0
            assert refused.retry_after_s > 0
        await asyncio.to_thread(redis.start)  # and has forgotten everything
        await until(lambda: all(one.state == "exact" for one in them), BACK_WITHIN_S)
        await told()
        assert await level(them[0], meter("day")) == 300
        assert await level(them[0], meter()) == pytest.approx(300, abs=30)
        assert await level(them[0], meter("par")) == 600 - 300 - 300, "slots of before are said again"


async def test_local_lets_every_request_pass_that_fits_the_limit(redises: House) -> None:
    redis = redises.redis()
    async with without(redis, 2) as them:
        redis.kill()
        await until(lambda: them[0].state == "away", 0.2)
        assert (await them[0].lease(meter("day"), 500, 500)).granted == 500, "larger than the share: once, as a debt"
        assert (await them[0].lease(meter("day"), 1, 1)).granted == 0


async def test_what_comes_back_while_away_is_told_later(redises: House) -> None:
    redis = redises.redis("--save", "", "--appendonly", "no")
    async with without(redis) as (one,):
        for code in ("day", "par"):
            await one.lease(meter(code), 400, 400)
        async with stopped(redis):
            one.give_back(meter("par"), 0)
            await one.lease(meter("day"), 10, 10)
            await until(lambda: one.state == "away", 0.2)
            for code in ("day", "par"):
                one.give_back(meter(code), 150)
                await one.lease(meter(code), 30, 30)
                one.give_back(meter(code), -5)
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        await told()
        assert await level(one, meter("day")) == 600 - (400 + 10 - 150 + 30 + 5)
        assert await level(one, meter("par")) == 600 - (400 - 150 + 30 + 5)


async def test_open_grants_everything_and_closed_nothing(redises: House) -> None:
    redis = redises.redis()
    async with without(redis) as (one,):
        for code in ("day", "par"):
            await one.lease(meter(code), 500, 500)
        redis.signal(signal.SIGSTOP)
        one.without = "open"
        offer = await one.lease(meter("day"), 5_000, 400)
        assert (offer.granted, offer.mode, offer.limit) == (5_000, Mode.OPEN, 600)
        assert (await one.lease(meter("par"), 300, 1)).granted == 300
        one.give_back(meter("day"), 4_000)
        one.without = "closed"
        offer = await one.lease(meter("day"), 10, 10)
        assert (offer.granted, offer.mode, offer.remaining) == (0, Mode.CLOSED, 0)
        assert 0 < offer.retry_after_s <= 2
        redis.signal(signal.SIGCONT)
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        await told()
        assert await level(one, meter("day")) == 100, "neither counted nor given back"
        assert await level(one, meter("par")) == -200, "in use all the same"


async def test_the_refill_pays_what_was_admitted_long_ago(redises: House) -> None:
    redis = redises.redis()
    async with without(redis) as (one,):
        one.limits[meter()] = 6_000_000  # 100,000 a second
        await one.lease(meter(), 0, 0)
        redis.signal(signal.SIGSTOP)
        assert (await one.lease(meter(), 60_000, 60_000)).mode == Mode.LOCAL
        await asyncio.sleep(0.8)
        redis.signal(signal.SIGCONT)
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        await told()
        assert await level(one, meter()) == 6_000_000


async def test_a_limit_changed_while_away_holds(redises: House) -> None:
    redis = redises.redis()
    async with without(redis) as (one,):
        redis.kill()
        await until(lambda: one.state == "away", 0.2)
        assert (await one.lease(meter("day"), 500, 500)).granted == 500
        one.limits[meter("day")] = 1000
        offer = await one.lease(meter("day"), 0, 0)
        assert (offer.limit, offer.remaining) == (1000, 500)


async def test_what_is_in_doubt_is_decided_for_the_limit(redises: House) -> None:
    """The connection ends with orders under way: what came back is forgotten, what was charged is charged again."""
    redis = redises.redis()
    async with without(redis) as (one,):
        await one.lease(meter("day"), 400, 400)
        redis.signal(signal.SIGSTOP)
        one.give_back(meter("day"), 100)
        one.give_back(meter("day"), -30)
        await told()
        redis.kill()
        await until(lambda: one.state == "away", 0.2)
        await asyncio.to_thread(redis.start)  # empty
        await until(lambda: one.state == "exact", BACK_WITHIN_S)
        await told()
        assert await level(one, meter("day")) == 570


async def test_away_again_and_again(redises: House) -> None:
    """Connections, timers and tasks do not gather, and slots are right in the end."""
    redis = redises.redis()
    which = meter("par")
    async with without(redis) as (one,), watched(one):
        one.limits[which] = 50
        held = 0
        for _ in range(4):
            held += (await one.lease(which, 2, 2)).granted
            async with stopped(redis):
                await until(lambda: one.state == "away", 0.3)
                held += (await one.lease(which, 3, 3)).granted
            await until(lambda: one.state == "exact", BACK_WITHIN_S)
            one.give_back(which, 1)
            held -= 1
        await told()
        await told()
        assert await level(one, which) == 50 - held == 34
        assert int(redis.do("INFO", "clients").split(b"connected_clients:")[1].split()[0]) <= 4
