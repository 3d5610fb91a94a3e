"""One worker's limiter, while the authority is silent, away or new: what it decides by itself, and what it tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from limits_rig import Bench, T, outcome, tokens

from edgegw.channel import Shares
from edgegw.limits.limiter import Reservation
from edgegw.limits.words import GiveBack, Mode, Offer, Recall, Spent, Want


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.ready()
    yield bench
    bench.limiter.close()


async def test_before_the_channel_is_open_the_local_share_is_spent_and_reported() -> None:
    bench = Bench(limit=6000, shares=4)
    assert bench.away()
    grant = await bench.reserve(1000)
    assert (await outcome(await bench.ask(1000))).kind == "rate_limited"
    grant.settle(900)
    bench.ready()
    assert not bench.away()
    assert bench.hand.take_sent() == [Spent(T, 900)]
    bench.limiter.close()


async def test_silence_is_waited_for_50_ms_once_and_ends_with_the_first_word(bench: Bench) -> None:
    started_s = time.monotonic()
    first = await bench.ask(100)
    async with asyncio.timeout(5):
        assert tokens(await first) == 100
    assert 0.04 < time.monotonic() - started_s < 0.5
    assert bench.away()
    assert tokens(await bench.reserve(2900)) == 2900  # half of 6000 in all: the share
    assert (await outcome(await bench.ask(100))).kind == "rate_limited"
    assert bench.hand.take_sent() == [Want(T, 100, 100, 0)]
    bench.offer(100, 5900)
    assert not bench.away()
    assert bench.hand.take_sent() == [Spent(T, 3000)]
    assert bench.now(100) is not None, "the late lease can be spent"


async def test_in_silence_the_lease_in_hand_is_spent_first(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.offer(400, 0)
    await task
    async with asyncio.timeout(5):
        assert (await outcome(await bench.ask(500))).kind == "rate_limited"  # nobody answers; nothing was left
    assert bench.limiter.degraded
    assert bench.now(300) is not None
    assert bench.now(1) is None
    bench.offer(0, 0)
    assert not [m for m in bench.hand.sent if isinstance(m, Spent)], "nothing was admitted locally"


async def test_an_unanswered_topup_is_silence_too(bench: Bench) -> None:
    for _ in range(2):
        task = await bench.ask(10)
        bench.offer(110, 4000)
        await task
        bench.checks()
    for _ in range(40):
        assert bench.now(5) is not None
        bench.checks()
        if bench.limiter.degraded:
            break
    assert bench.limiter.degraded
    assert [m for m in bench.hand.sent if isinstance(m, Want)]


async def test_when_the_channel_breaks_those_who_wait_are_decided_at_once(bench: Bench) -> None:
    tasks = [await bench.ask(1000) for _ in range(5)]
    bench.hand.breaks()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, Reservation) for result in results] == [True, True, True, False, False]
    assert bench.limiter.degraded
    bench.hand.take_sent()
    bench.ready(epoch=1)
    assert bench.hand.take_sent() == [Spent(T, 3000)]


async def test_a_new_authority_is_told_what_the_old_one_knew(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.offer(150, 1000)
    await task
    bench.hand.breaks()
    assert bench.now(30) is not None
    bench.clock.jump(1.0)
    bench.hand.take_sent()
    bench.ready(epoch=2)
    assert bench.hand.take_sent() == [Recall(T, 1150), Spent(T, 30)], "1000 + 50 unspent + 1 s of refill"


async def test_what_is_settled_while_away_counts(bench: Bench) -> None:
    task = await bench.ask(1000)
    bench.offer(1000, 5000)
    grant = await task
    bench.hand.breaks()
    grant.settle(300)
    bench.hand.take_sent()
    bench.ready(epoch=1)
    assert bench.hand.take_sent() == [GiveBack(T, 700, 0)]


async def test_shares_follow_the_workers(bench: Bench) -> None:
    bench.hand.say(Shares(6))
    bench.hand.breaks()
    assert tokens(await bench.reserve(1000)) == 1000
    assert bench.now(1) is None


async def test_an_unanswered_question_is_asked_again(bench: Bench) -> None:
    await (await bench.ask(100))
    for _ in range(30):
        bench.now(100)
        bench.checks()
    wants = [m for m in bench.hand.sent if isinstance(m, Want)]
    assert 3 <= len(wants) <= 5, "about once a second"


async def test_who_waits_when_the_limiter_is_closed_gets_an_answer(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.limiter.close()
    assert tokens(await task) == 100
    assert bench.hand.take_sent() == [Want(T, 100, 100, 0), Spent(T, 100)]


async def test_while_an_authority_is_not_exact_it_is_asked_whether_it_is_again(bench: Bench) -> None:
    """A lease that lasts must not say for seconds what is over."""
    task = await bench.ask(10)
    bench.hand.say(Offer(T, 2000, 6000, 4000, 0.0, 0.0, Mode.LOCAL))
    await task
    assert b"x-edgegw-limits: local" in bench.allowance().lines(bench.clock.now())
    bench.hand.take_sent()
    bench.checks(2)
    assert [message for message in bench.hand.take_sent() if isinstance(message, Want)] == [Want(T, 0, 0, 0)]
    bench.offer(0, 4000)
    assert b"x-edgegw-limits" not in bench.allowance().lines(bench.clock.now())
    bench.checks(2)
    assert not [message for message in bench.hand.take_sent() if isinstance(message, Want)]
