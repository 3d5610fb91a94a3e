"""Several limits at once: all or nothing, the tightest decides, and days, months and slots have ways of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from limits_rig import DAY, MONTH, PAR, RPM, Bench, T, Table, meter, outcome, tokens

from edgegw.errors import GatewayError
from edgegw.limits.accounts import Accounts
from edgegw.limits.limiter import Limiter
from edgegw.limits.meter import BY_CODE, Meter, Scope
from edgegw.limits.words import GiveBack, Offer, Recall, Spent, Want

DAY_S = 86_400
LEFT_S = 6_400  # of the day at which a bench's clock starts: 2023-11-14, 22:13:20 UTC
MONTH_LEFT_S = 16 * DAY_S + LEFT_S
StartBench = Callable[..., Bench]


@pytest.fixture
async def benches() -> AsyncIterator[StartBench]:
    started: list[Bench] = []

    def start(limits: Mapping[str, int], **options: Any) -> Bench:
        bench = Bench(limits=limits, **options)
        bench.ready()
        started.append(bench)
        return bench

    yield start
    for bench in started:
        bench.limiter.close()


def fill(bench: Bench, **amounts: int) -> None:
    """So much in hand of each, and much left at the authority."""
    bench.allowance()
    for code, amount in amounts.items():
        bench.offer(amount, bench.rules.limits[code] - amount, code=code)
    bench.hand.take_sent()


def in_hand(bench: Bench) -> dict[str, int]:
    return {account.measure.code: account.level for account in bench.allowance().accounts}


# -- all or nothing --


async def test_a_request_takes_of_each_and_gives_back_what_each_gets_back(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "rpm": 60, "par": 5, "day": 100_000})
    fill(bench, tpm=500, rpm=5, par=5, day=500)
    reservation = bench.now(200)
    assert in_hand(bench) == {"tpm": 300, "rpm": 4, "par": 4, "day": 300}
    assert reservation is not None
    reservation.settle(50)
    assert in_hand(bench) == {"tpm": 450, "rpm": 4, "par": 0, "day": 450}, "a request that was begun stays begun"
    assert GiveBack(PAR, 5, 5) in bench.hand.sent, "a slot is free for every worker at once"


async def test_what_is_missing_is_asked_for_at_once_and_the_rest_is_taken_from_what_is_in_hand(
    benches: StartBench,
) -> None:
    bench = benches({"tpm": 6000, "rpm": 60, "day": 100_000})
    fill(bench, tpm=500)
    task = await bench.ask(200)
    assert {(want.meter, want.need) for want in bench.wants()} == {(RPM, 1), (DAY, 200)}
    assert in_hand(bench)["tpm"] == 300
    bench.offer(1, 59, code="rpm")
    await asyncio.sleep(0)
    assert not task.done()
    bench.offer(200, 99_800, code="day")
    assert (await task).tokens == 200
    assert in_hand(bench) == {"tpm": 300, "rpm": 0, "day": 0}


async def test_when_one_is_refused_nothing_stays_taken_of_the_others(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "rpm": 60, "par": 2, "day": 100_000})
    fill(bench, tpm=500, par=1)
    task = await bench.ask(200)
    bench.offer(1, 59, code="rpm")
    bench.offer(0, 0, 3600.0, code="day", resets_s=3600.0)
    assert "tokens per day" in (await outcome(task)).message
    levels = in_hand(bench)
    assert (levels["tpm"], levels["rpm"]) == (500, 1)
    assert levels["par"] + sum(m.amount for m in bench.hand.sent if isinstance(m, GiveBack) and m.meter == PAR) == 1
    assert [account.in_use for account in bench.allowance().accounts if account.meter == PAR] == [0]


@pytest.mark.parametrize("answered", [(), ("rpm",), ("day",), ("rpm", "day")])
async def test_a_client_that_leaves_while_two_are_asked_takes_nothing(
    benches: StartBench, answered: tuple[str, ...]
) -> None:
    bench = benches({"tpm": 6000, "rpm": 60, "par": 3, "day": 100_000})
    fill(bench, tpm=500, par=3)
    task = await bench.ask(200)
    for code in answered:
        bench.offer({"rpm": 1, "day": 200}[code], 50, code=code)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for code in {"rpm", "day"} - set(answered):
        bench.offer({"rpm": 1, "day": 200}[code], 50, code=code)
    bench.hand.take_sent()
    levels = in_hand(bench)
    assert (levels["tpm"], levels["rpm"], levels["day"]) == (500, 1, 200)
    assert [account.in_use for account in bench.allowance().accounts if account.meter == PAR] == [0]


async def test_a_no_to_a_client_that_has_left_is_no_answer_to_the_next(benches: StartBench) -> None:
    bench = benches({"tpm": 6000})
    large, small = await bench.ask(500), await bench.ask(50)
    large.cancel()
    bench.hand.take_sent()
    bench.offer(0, 80, retry_after_s=4.2)
    assert bench.hand.take_sent() == [Want(T, 50, 50, 0)]
    bench.offer(50, 30)
    assert (await small).tokens == 50


# -- what a client is told --


@pytest.mark.parametrize(("scope", "name", "whose"), [
    ("", "", "tenant t"), ("key", "t.ci", "key t.ci of tenant t"), ("model", "gpt-5*", "tenant t and model gpt-5*"),
])  # fmt: skip
@pytest.mark.parametrize(("code", "spoken", "unit", "retry_s", "should_retry"), [
    ("tpm", "tokens per min (TPM)", "tokens", 1.5, b"true"),
    ("rpm", "requests per min (RPM)", "requests", 1.0, b"true"),
    ("par", "concurrent requests", "requests", 1.0, b"true"),
    ("day", "tokens per day (TPD)", "tokens", 6400.0, b"false"),
    ("month", "tokens per month", "tokens", 100_000.0, b"false"),
])  # fmt: skip
async def test_a_refusal_says_which_limit_whose_and_when_there_is_room(
    code: str, spoken: str, unit: str, retry_s: float, should_retry: bytes, scope: Scope, name: str, whose: str
) -> None:
    class Rules(Table):
        def meters(self, tenant: str, key_id: str | None, model: str) -> list[tuple[str, int]]:
            return [(T, 6000), (exceeded, 100)] if exceeded != T else [(T, 100)]

    exceeded = Meter(BY_CODE[code], "t", scope, name).id
    bench = Bench(limits={"tpm": 6000})
    limiter = Limiter(bench.accounts, Rules({}), bench.clock)
    bench.ready()
    allowance = limiter.allowance("t", "t.ci", "gpt-5-mini")
    task = asyncio.create_task(limiter.reserve(allowance, 50))
    await asyncio.sleep(0)
    resets_s = retry_s if code in ("day", "month") else 0.0
    if exceeded != T:
        bench.hand.say(Offer(T, 50, 6000, 5950))
    bench.hand.say(Offer(exceeded, 0, 100, 10 if unit == "tokens" else 0, retry_s, resets_s))
    error = await outcome(task)
    asked = ", Requested 50" if unit == "tokens" else ""
    used = 90 if unit == "tokens" else 100
    assert error.message.startswith(f"Rate limit reached for {whose} on {spoken}: Limit 100, Used {used}{asked}. ")
    assert (error.kind, error.status, error.type) == ("rate_limited", 429, unit)
    fields = dict(error.headers)
    wait_ms = int(fields[b"retry-after-ms"])
    assert retry_s * 1e3 <= wait_ms <= max(retry_s, 24.0) * 1e3
    assert int(fields[b"retry-after"]) == -(-wait_ms // 1000)
    assert fields[b"x-should-retry"] == should_retry
    named = {field for field in fields if b"ratelimit" in field}
    if code == "par":
        assert not named, "there is no moment at which slots are all free"
    else:
        parts = (b"limit", b"remaining", b"reset")
        assert named == {b"x-ratelimit-%b-%b" % (part, unit.encode()) for part in parts} | {
            b"anthropic-ratelimit-%b-%b" % (unit.encode(), part) for part in parts
        }
        assert fields[b"anthropic-ratelimit-%b-limit" % unit.encode()] == b"100"
    if code == "day":
        assert fields[b"anthropic-ratelimit-tokens-reset"] == b"2023-11-15T00:00:00Z"
        assert fields[b"x-ratelimit-reset-tokens"] == b"1h46m40s"
    limiter.close()


@pytest.mark.parametrize("first", ["tpm", "day"])
async def test_of_two_that_are_exceeded_the_one_that_lasts_longer_is_told(benches: StartBench, first: str) -> None:
    bench = benches({"tpm": 6000, "day": 100_000})
    task = await bench.ask(100)
    for code, wait_s in sorted({"tpm": 1.0, "day": 5000.0}.items(), key=lambda item: item[0] != first):
        bench.offer(0, 0, wait_s, code=code, resets_s=wait_s if code == "day" else 0.0)
    error = await outcome(task)
    assert "tokens per day" in error.message
    assert dict(error.headers)[b"retry-after"] == b"5000"


async def test_what_can_never_fit_is_told_before_what_might_fit_tomorrow(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "day": 100_000})
    task = await bench.ask(5000)
    bench.offer(0, 0, 5000.0, code="day", resets_s=5000.0)
    bench.hand.say(Offer(T, 0, 1000, 1000, float("inf")))
    error = await outcome(task)
    assert (error.kind, "tokens per min" in error.message) == ("never_fits", True)


async def test_every_limit_that_a_request_can_never_fit_refuses_it_at_once(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "day": 500})
    error = await outcome(await bench.ask(501))
    assert (error.kind, error.status) == ("never_fits", 413)
    assert "tokens per day (TPD): Limit 500, Requested 501" in error.message
    assert bench.hand.sent == []


async def test_the_fields_of_a_reply_tell_of_tokens_and_of_requests_the_tightest_of_each() -> None:
    class Rules(Table):
        def meters(self, tenant: str, key_id: str | None, model: str) -> list[tuple[str, int]]:
            key = [Meter(BY_CODE[code], "t", "key", "t.ci").id for code in ("tpm", "rpm")]
            return [(T, 6000), (RPM, 60), (DAY, 9), (key[0], 600), (key[1], 30)]

    bench = Bench()
    limiter = Limiter(bench.accounts, Rules({}), bench.clock)
    bench.ready()
    allowance = limiter.allowance("t", "t.ci", "m")
    meters = [account.meter for account in allowance.accounts]
    for meter_, limit, left in zip(meters, (6000, 60, 9, 600, 30), (500, 20, 0, 590, 21), strict=True):
        bench.hand.say(Offer(meter_, 0, limit, left))
    assert allowance.lines(bench.clock.now()) == (
        b"x-ratelimit-limit-tokens: 6000\r\nx-ratelimit-remaining-tokens: 500\r\nx-ratelimit-reset-tokens: 55s\r\n"
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 20\r\nx-ratelimit-reset-requests: 40s\r\n"
    )
    bench.hand.say(Offer(DAY, 0, 9, 0, mode=2))
    assert allowance.lines(bench.clock.now()).endswith(b"x-edgegw-limits: open\r\n")
    limiter.close()


async def test_a_tenant_that_is_not_served_uncounted_is_told_so(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "rpm": 60})
    task = await bench.ask(100)
    bench.offer(1, 59, code="rpm")
    bench.hand.say(Offer(T, 0, 6000, 0, 2.0, mode=3))
    error = await outcome(task)
    assert (error.kind, dict(error.headers)[b"retry-after"]) == ("overloaded", b"2")
    assert in_hand(bench) == {"tpm": 0, "rpm": 1}


# -- days and months --


async def test_what_an_ended_day_had_left_is_gone(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "day": 100_000})
    fill(bench, tpm=500)
    bench.offer(500, 50_000, code="day", resets_s=3600.0)
    bench.clock.jump(3600.0)
    task = await bench.ask(100)
    assert bench.hand.sent == [GiveBack(DAY, 0, 500), Want(DAY, 100, 100, 2)]
    bench.offer(100, 99_900, code="day", resets_s=DAY_S)
    assert (await task).tokens == 100


async def test_a_request_that_runs_past_the_end_of_a_day_gives_nothing_back_to_the_next(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "day": 100_000, "month": 1_000_000})
    fill(bench, tpm=500)
    bench.offer(400, 50_000, code="day", resets_s=3600.0)
    bench.offer(400, 500_000, code="month", resets_s=1_000_000.0)
    within, past = bench.now(100), bench.now(300)
    assert within is not None
    assert past is not None
    within.settle(40)
    assert in_hand(bench) == {"tpm": 160, "day": 60, "month": 60}
    bench.clock.jump(3600.0)
    past.settle(100)
    assert in_hand(bench) == {"tpm": 360, "day": 0, "month": 260}, "the month has not ended"


async def test_what_was_used_beyond_a_reservation_is_charged_to_the_day_in_which_that_is_known(
    benches: StartBench,
) -> None:
    bench = benches({"tpm": 6000, "day": 100_000})
    fill(bench, tpm=500)
    bench.offer(400, 50_000, code="day", resets_s=3600.0)
    reservation = bench.now(400)
    assert reservation is not None
    bench.clock.jump(3600.0)
    reservation.settle(450)
    bench.clock.jump(0.2)
    bench.accounts.check_leases()
    charged = [m.amount for m in bench.hand.sent if isinstance(m, GiveBack) and m.meter == DAY]
    assert sum(charged) in (0, -50), "of a debt the new day pays at most what was too much"


async def test_yesterday_is_not_recalled(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "day": 100_000})
    task = await bench.ask(100)
    bench.offer(100, 5900)
    bench.offer(100, 700, code="day", resets_s=LEFT_S)
    (await task).settle(100)
    bench.hand.breaks()
    bench.clock.jump(LEFT_S - 1.0)
    bench.hand.take_sent()
    bench.ready(epoch=2)
    assert bench.hand.take_sent() == [Recall(DAY, 700)]
    bench.hand.breaks()
    bench.clock.jump(1.0)
    bench.ready(epoch=3)
    assert bench.hand.take_sent() == []


async def test_a_new_day_comes_without_the_authority_too(benches: StartBench) -> None:
    bench = benches({"tpm": 6_000_000, "day": 1000}, shares=2)
    bench.hand.breaks()
    assert tokens(bench.now(500)) == 500
    assert bench.now(1) is None
    bench.clock.jump(LEFT_S)
    assert tokens(bench.now(500)) == 500
    assert bench.now(1) is None
    bench.clock.jump(DAY_S)
    assert tokens(bench.now(400)) == 400
    bench.hand.take_sent()
    bench.ready()
    assert Spent(DAY, 400) in bench.hand.sent, "what was admitted on days that are over is not held against this one"


async def test_while_away_a_day_is_left_to_each_by_its_share_and_does_not_refill(benches: StartBench) -> None:
    bench = benches({"tpm": 6_000_000, "day": 100_000}, shares=2)
    task = await bench.ask(100)
    bench.offer(100, 5_900_000)
    bench.offer(100, 1000, code="day", resets_s=LEFT_S)
    await task
    bench.hand.breaks()
    bench.clock.jump(100.0)
    assert tokens(bench.now(500)) == 500
    assert bench.now(1) is None
    error = await outcome(await bench.ask(1))
    assert "tokens per day" in error.message
    assert dict(error.headers)[b"retry-after"] == b"%d" % (LEFT_S - 100)


# -- slots --


async def test_a_slot_in_use_outlives_the_channel_and_is_told_to_the_next_control_process(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "par": 3})
    fill(bench, tpm=500, par=2)
    first, second = bench.now(10), bench.now(10)
    assert first is not None
    assert second is not None
    bench.hand.breaks()
    first.settle(10)
    bench.ready(epoch=2)
    told = [m for m in bench.hand.take_sent() if m.meter == PAR]  # type: ignore[union-attr]
    assert [(m.meter, m.amount, m.leased) for m in told if isinstance(m, GiveBack)] == [(PAR, -1, -1)]
    assert isinstance(told[0], Want), "so that it knows the meter before it counts"
    second.settle(10)
    assert GiveBack(PAR, 1, 1) in bench.hand.sent
    assert [account.in_use for account in bench.allowance().accounts][1] == 0


async def test_while_away_each_worker_has_its_share_of_slots_whoever_used_them_before(benches: StartBench) -> None:
    bench = benches({"tpm": 6_000_000, "par": 4}, shares=2)
    fill(bench, tpm=5000)
    bench.offer(0, 0, 1.0, code="par")  # all in use elsewhere
    bench.hand.breaks()
    running = [bench.now(1), bench.now(1)]
    assert None not in running
    assert bench.now(1) is None
    assert running[0] is not None
    running[0].settle(1)
    assert bench.now(1) is not None
    assert bench.now(1) is None


async def test_what_runs_here_counts_towards_the_share_of_slots(benches: StartBench) -> None:
    bench = benches({"tpm": 6_000_000, "par": 4}, shares=2)
    fill(bench, tpm=5000, par=3)
    running = [bench.now(1) for _ in range(3)]
    bench.hand.breaks()
    for reservation in running[:2]:
        assert bench.now(1) is None
        assert reservation is not None
        reservation.settle(1)
    assert bench.now(1) is not None, "one of three still runs, and the share is two"
    assert bench.now(1) is None


async def test_slots_lowered_below_what_runs_are_counted_as_they_are(benches: StartBench) -> None:
    bench = benches({"tpm": 6_000_000, "par": 5})
    fill(bench, tpm=5000, par=5)
    running = [bench.now(1) for _ in range(5)]
    bench.hand.say(Offer(PAR, 0, 2, -3, 1.0))
    bench.hand.breaks()
    bench.ready(epoch=2)
    assert GiveBack(PAR, -5, -5) in bench.hand.take_sent()
    for reservation in running:
        assert reservation is not None
        reservation.settle(1)
    assert sum(m.amount for m in bench.hand.sent if isinstance(m, GiveBack) and m.meter == PAR) == 5


async def test_a_slot_that_is_settled_in_silence_is_told_when_the_silence_ends_without_any_request(
    benches: StartBench,
) -> None:
    bench = benches({"tpm": 6_000_000, "par": 6})
    fill(bench, tpm=5000, par=1)
    held = bench.now(1)
    task = await bench.ask(1)  # nobody answers for 50 ms
    async with asyncio.timeout(5):
        (await task).settle(1)
    assert held is not None
    held.settle(1)
    assert bench.away()
    bench.hand.take_sent()
    bench.checks(12)  # the question counts as lost after a second
    assert [want.meter for want in bench.wants()] == [PAR]
    bench.hand.take_sent()
    bench.offer(0, 5, code="par")
    assert not bench.away()
    assert sum(m.leased for m in bench.hand.sent if isinstance(m, GiveBack) and m.meter == PAR) == 1


# -- the house of meters --


async def test_a_slot_in_use_is_not_forgotten_however_long_its_request_runs() -> None:
    bench = Bench(limits={"tpm": 6000, "par": 2}, cells=8)
    bench.ready()
    fill(bench, tpm=100, par=1)
    reservation = bench.now(100)
    assert reservation is not None
    for _ in range(5):
        bench.answer()
        bench.checks()
    for tenant in ("u", "v", "w", "x"):
        bench.allowance(tenant)
    assert bench.accounts.evictions > 2, "the tokens per minute had to go"
    bench.hand.take_sent()
    reservation.settle(100)
    assert GiveBack(PAR, 1, 1) in bench.hand.sent, "a forgotten one would say that it was never leased"
    before = bench.accounts.evictions
    for tenant in ("y", "z", "x"):
        bench.allowance(tenant)
    assert bench.accounts.evictions == before + 6
    assert bench.accounts._leases.get(PAR) is None, "now it may go"
    bench.limiter.close()


async def test_an_allowance_is_never_made_of_accounts_that_had_to_go_for_each_other() -> None:
    bench = Bench(limits={"tpm": 6000, "rpm": 60}, cells=4)
    bench.ready()
    bench.allowance("a")
    bench.accounts._leases.wake(bench.allowance("a").accounts[0])  # in use
    with pytest.raises(GatewayError) as caught:
        bench.allowance("b")
    assert caught.value.kind == "overloaded"
    assert not bench.allowance("a").accounts[0].evicted
    bench.limiter.close()


async def test_after_a_failed_look_up_no_allowance_is_used_whose_account_had_to_go() -> None:
    bench = Bench(limits={"tpm": 6000, "rpm": 60, "day": 9000}, cells=12)
    bench.ready()
    old = bench.allowance("a")
    for account in bench.allowance("b").accounts:
        bench.accounts._leases.wake(account)
    for account in old.accounts[1:]:
        bench.accounts._leases.wake(account)
    with pytest.raises(GatewayError):
        bench.allowance("c")  # takes the place of a's first account, and finds no second one
    assert old.accounts[0].evicted
    assert not any(account.evicted for account in bench.allowance("a").accounts)
    bench.limiter.close()


async def test_a_place_that_is_used_again_does_not_change_what_is_known_of_the_one_before() -> None:
    tally = [0, 0]
    bench = Bench()
    bench.accounts = Accounts(bench.hand, bench.clock, 1, tally)
    bench.ready()
    first = bench.accounts.opened(meter("tpm", "a"), 6000)
    bench.hand.say(Offer(first.meter, 100, 6000, 5900))
    assert first.take(100)
    for _ in range(5):
        bench.answer()
        bench.checks()
    second = bench.accounts.opened(meter("tpm", "b"), 6000)
    assert first.evicted
    assert second.place == 0
    assert tally[0] == 100, "the control process still reads there what was spent of a's"
    bench.accounts.settle(first, 40)
    bench.accounts.settle(second, 0)
    assert tally[0] == 100
    assert bench.hand.sent[-2] == GiveBack(first.meter, 40, 0)
    bench.accounts.close()


async def test_what_is_settled_after_a_new_channel_before_anything_is_leased_goes_straight_back(
    benches: StartBench,
) -> None:
    bench = benches({"tpm": 6000})
    fill(bench, tpm=100)
    reservation = bench.now(100)
    assert reservation is not None
    bench.hand.breaks()
    bench.ready(epoch=1)
    reservation.settle(40)
    assert bench.hand.take_sent() == [GiveBack(T, 60, 0)], "it was never leased on this channel"
    assert bench.tally[:2] == [100, 0]


async def test_what_never_fits_does_not_fit_in_the_absence_of_the_authority_either(benches: StartBench) -> None:
    bench = benches({"tpm": 6000}, shares=1)
    bench.hand.breaks()
    assert bench.now(6001) is None
    assert (await outcome(await bench.ask(6001))).kind == "never_fits"
    assert tokens(bench.now(6000)) == 6000


async def test_what_was_not_used_is_given_back_even_when_it_filled_the_local_share(benches: StartBench) -> None:
    bench = benches({"tpm": 6000}, shares=2)
    fill(bench, tpm=6000)
    reservation = bench.now(6000)
    assert reservation is not None
    bench.hand.breaks()
    reservation.settle(0)
    bench.checks(5)
    bench.ready(epoch=1)
    assert GiveBack(T, 6000, 0) in bench.hand.sent


async def test_limits_of_keys_that_came_are_counted_from_the_next_request_on(benches: StartBench) -> None:
    bench = benches({"tpm": 6000})
    fill(bench, tpm=500)
    assert tokens(bench.now(100)) == 100
    bench.rules.limits["rpm"] = 60
    assert len(bench.allowance().accounts) == 1
    bench.limiter.rules_changed()
    assert [account.meter for account in bench.allowance().accounts] == [T, RPM]
    assert in_hand(bench)["tpm"] == 400, "what was used stays used"


async def test_a_month_and_a_day_end_by_our_own_calendar_until_the_authority_has_said(benches: StartBench) -> None:
    bench = benches({"tpm": 6000, "day": 9000, "month": 90_000})
    ends = {account.meter: account.ends_s - bench.clock.now() for account in bench.allowance().accounts[1:]}
    assert ends == {DAY: pytest.approx(LEFT_S), MONTH: pytest.approx(MONTH_LEFT_S)}
