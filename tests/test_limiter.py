"""One worker's limiter, alone with a channel that the test holds in its hand: one limit, the tokens per minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from limits_rig import Bench, T, meter, outcome, tokens

from edgegw.errors import GatewayError
from edgegw.limits.standing import duration
from edgegw.limits.words import GiveBack, Offer, Want


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.ready()
    yield bench
    bench.limiter.close()


async def test_the_first_request_asks_and_the_next_spend_what_is_in_hand(bench: Bench) -> None:
    assert bench.now(100) is None
    task = await bench.ask(100)
    assert bench.hand.take_sent() == [Want(T, 100, 100, 0)]
    bench.offer(250, 5750)
    assert tokens(await task) == 100
    assert tokens(bench.now(150)) == 150
    assert bench.now(1) is None
    assert bench.hand.take_sent() == []


async def test_settling_gives_back_into_the_lease_exactly_once(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.offer(100, 5900)
    grant = await task
    grant.settle(40)
    grant.settle(0)
    assert bench.now(61) is None
    assert bench.now(60) is not None


async def test_using_more_than_reserved_is_charged(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.offer(100, 5900)
    (await task).settle(130)
    task = await bench.ask(10)
    assert bench.hand.take_sent()[1:] == [GiveBack(T, -30, -30), Want(T, 10, 10, 0)]
    bench.offer(10, 5860)
    await task


async def test_a_charge_does_not_wait_for_the_next_request(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.offer(100, 5900)
    (await task).settle(130)
    bench.hand.take_sent()
    bench.checks()
    assert bench.hand.take_sent() == [GiveBack(T, -30, -30)]


async def test_what_is_too_much_goes_back_at_the_next_check(bench: Bench) -> None:
    task = await bench.ask(1000)
    bench.offer(1000, 5000)
    (await task).settle(100)
    bench.hand.take_sent()
    bench.checks()
    (message,) = bench.hand.take_sent()
    assert isinstance(message, GiveBack)
    assert message.amount == message.leased
    assert 0 <= 900 - message.amount <= 60, "at most a hundredth of the limit stays"


async def test_an_idle_lease_goes_back_within_350_ms_and_then_nothing_ticks(bench: Bench) -> None:
    for left in (5900, 5800):
        task = await bench.ask(100)
        bench.offer(100, left)
        await task
        bench.hand.take_sent()
        bench.checks()
    assert bench.hand.take_sent() == [Want(T, 60, 0, 0)], "there could be more requests"
    bench.offer(60, 5740)
    bench.checks(3)
    assert bench.hand.take_sent() == [GiveBack(T, 60, 60)]
    assert bench.accounts._timer is None
    assert not bench.accounts._rotation


async def test_a_lone_request_makes_no_lease(bench: Bench) -> None:
    """With a thousand replicas most requests of most tenants are alone on theirs."""
    task = await bench.ask(100)
    bench.offer(100, 5900)
    reservation = await task
    assert bench.hand.take_sent() == [Want(T, 100, 100, 0)]
    bench.checks(4)
    assert bench.hand.take_sent() == []
    reservation.settle(70)
    assert bench.hand.take_sent() == [GiveBack(T, 30, 30)], "nobody here has use for it"
    assert bench.accounts._timer is None, "and nothing has to be looked after for it"


async def test_what_a_lone_request_owes_is_told_at_once(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.offer(100, 5900)
    reservation = await task
    bench.checks(4)
    bench.hand.take_sent()
    reservation.settle(250)
    assert bench.hand.take_sent() == [GiveBack(T, -150, -150)]


async def test_what_is_settled_at_rest_after_the_end_of_a_day_is_not_given_to_the_next() -> None:
    bench = Bench(limits={"tpm": 6000, "day": 9000})
    bench.ready()
    task = await bench.ask(100)
    bench.offer(100, 5900)
    bench.offer(100, 8900, code="day", resets_s=1.0)
    reservation = await task
    bench.checks(4)
    assert not bench.accounts._rotation, "nothing looks after the accounts"
    bench.hand.take_sent()
    bench.clock.jump(1.0)
    reservation.settle(70)
    assert bench.hand.take_sent() == [GiveBack(T, 30, 30)]
    bench.limiter.close()


async def test_use_is_topped_up_ahead_of_need(bench: Bench) -> None:
    """From the second tenth of a second on, that is; the first could be of a lone request."""
    for _ in range(2):
        task = await bench.ask(10)
        bench.offer(10, 4000)
        await task
        bench.checks()
    asked = bench.hand.take_sent()[-1:]
    assert asked == [Want(T, 60, 0, 0)]
    bench.offer(60, 4000)
    for _ in range(60):
        assert bench.now(5) is not None, "no request ever has to wait"
        bench.checks()
        for message in bench.hand.take_sent():
            if isinstance(message, Want):
                asked.append(message)
                bench.offer(message.amount, 4000)
    assert asked
    assert all(isinstance(m, Want) and m.need == 0 for m in asked)


async def test_parallel_requests_ask_once_and_are_served_in_order(bench: Bench) -> None:
    tasks = [await bench.ask(tokens) for tokens in (100, 200, 300)]
    assert bench.hand.take_sent() == [Want(T, 100, 100, 0)]
    bench.offer(100, 5900)
    assert bench.hand.take_sent() == [Want(T, 500, 200, 0)], "the others had come meanwhile, and there should be room"
    bench.offer(500, 5400)
    assert [grant.tokens for grant in await asyncio.gather(*tasks)] == [100, 200, 300]


async def test_a_small_request_is_not_refused_for_the_large_one_before_it(bench: Bench) -> None:
    large, small = await bench.ask(500), await bench.ask(50)
    bench.hand.take_sent()
    bench.offer(0, 80, retry_after_s=4.2)
    error = await outcome(large)
    assert dict(error.headers)[b"retry-after-ms"] == b"4200"
    assert bench.hand.take_sent() == [Want(T, 50, 50, 0)]
    bench.offer(50, 30)
    assert (await small).tokens == 50


async def test_the_refusal_says_what_was_exceeded_whose_and_when_there_is_room(bench: Bench) -> None:
    task = await bench.ask(1200)
    bench.offer(0, 1000, retry_after_s=2.0)
    error = await outcome(task)
    assert (error.kind, error.status, error.type, error.code) == ("rate_limited", 429, "tokens", "rate_limit_exceeded")
    assert error.message == (
        "Rate limit reached for tenant t on tokens per min (TPM): Limit 6000, Used 5000, Requested 1200. "
        "Please try again in 2s."
    )
    assert error.headers == (
        (b"retry-after", b"2"),
        (b"retry-after-ms", b"2000"),
        (b"x-should-retry", b"true"),
        (b"x-ratelimit-limit-tokens", b"6000"),
        (b"x-ratelimit-remaining-tokens", b"1000"),
        (b"x-ratelimit-reset-tokens", b"50s"),
        (b"anthropic-ratelimit-tokens-limit", b"6000"),
        (b"anthropic-ratelimit-tokens-remaining", b"1000"),
        (b"anthropic-ratelimit-tokens-reset", b"2023-11-14T22:14:10Z"),
    )


async def test_what_never_fits_is_refused_at_once_and_says_so(bench: Bench) -> None:
    error = await outcome(await bench.ask(6001))
    assert (error.kind, error.status) == ("never_fits", 413)
    assert "Limit 6000, Requested 6001" in error.message
    assert bench.hand.take_sent() == []


async def test_a_limit_that_was_lowered_meanwhile(bench: Bench) -> None:
    task = await bench.ask(5000)
    bench.hand.say(Offer(T, 0, 1000, 1000, float("inf")))
    assert (await outcome(task)).kind == "never_fits"


async def test_a_flood_of_refusals_does_not_ask_each_time(bench: Bench) -> None:
    task = await bench.ask(1200)
    bench.offer(0, 0, retry_after_s=12.0)
    await outcome(task)
    bench.hand.take_sent()
    for _ in range(10):
        assert (await outcome(await bench.ask(1300))).kind == "rate_limited"
    assert bench.hand.take_sent() == []
    smaller = await bench.ask(1100)
    assert bench.hand.take_sent() == [Want(T, 1100, 1100, 0)], "a smaller one might fit"
    bench.offer(1100, 0)
    await smaller
    bench.clock.jump(0.021)
    again = await bench.ask(1300)
    assert len(bench.hand.take_sent()) == 1
    bench.offer(1300, 0)
    await again


async def test_a_client_that_leaves_while_waiting_takes_nothing(bench: Bench) -> None:
    leaving, staying = await bench.ask(100), await bench.ask(200)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    bench.offer(200, 5800)
    assert (await staying).tokens == 200


async def test_a_client_that_leaves_in_the_moment_of_its_admission_takes_nothing(bench: Bench) -> None:
    task = await bench.ask(100)
    bench.offer(100, 5900)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.now(100) is not None


@pytest.mark.parametrize("name", ["x" * 257, "a\nb", "a\x00", "\ud800"])
async def test_unusable_tenant_names(bench: Bench, name: str) -> None:
    with pytest.raises(GatewayError) as caught:
        bench.allowance(name)
    assert (caught.value.kind, caught.value.param) == ("invalid_value", "metadata.tenant")


async def test_more_tenants_than_there_is_place_for() -> None:
    bench = Bench(cells=4)
    bench.ready()
    tasks = [await bench.ask(10, tenant) for tenant in ("a", "b")]
    with pytest.raises(GatewayError) as caught:
        bench.allowance("c")
    assert caught.value.kind == "overloaded"
    for tenant in ("a", "b"):
        bench.hand.say(Offer(meter("tpm", tenant), 10, 6000, 5990))
    reservations = await asyncio.gather(*tasks)
    for _ in range(5):
        bench.hand.take_sent()
        bench.checks()
        bench.answer()
    third = await bench.ask(10, "c")
    bench.hand.say(Offer(meter("tpm", "c"), 10, 6000, 5990))
    await third
    bench.hand.take_sent()
    reservations[0].settle(4)
    assert bench.hand.take_sent() == [GiveBack(meter("tpm", "a"), 6, 0)], "a was forgotten, its tokens were not"
    bench.limiter.close()


async def test_the_fields_of_every_reply(bench: Bench) -> None:
    full = b"x-ratelimit-limit-tokens: 6000\r\nx-ratelimit-remaining-tokens: 6000\r\nx-ratelimit-reset-tokens: 0s\r\n"
    assert bench.allowance().lines(bench.clock.now()) == full + b"x-edgegw-limits: local\r\n" * bench.away()
    task = await bench.ask(100)
    bench.offer(100, 5900)
    await task
    assert bench.allowance().lines(bench.clock.now()) == (
        b"x-ratelimit-limit-tokens: 6000\r\nx-ratelimit-remaining-tokens: 5900\r\nx-ratelimit-reset-tokens: 1s\r\n"
    )
    bench.clock.jump(0.885)
    assert (
        bench.allowance()
        .lines(bench.clock.now())
        .endswith(b"remaining-tokens: 5988\r\nx-ratelimit-reset-tokens: 120ms\r\n")
    )


@pytest.mark.parametrize(("seconds", "text"), [
    (0.0, b"0s"), (0.0004, b"1ms"), (0.12, b"120ms"), (1.0, b"1s"), (1.2, b"1.2s"), (59.999, b"59.999s"),
    (59.9999, b"1m0s"), (72.0, b"1m12s"), (360.0, b"6m0s"), (3605.0, b"1h0m5s"), (86400.0, b"24h0m0s"),
])  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text
