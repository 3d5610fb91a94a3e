"""Laws of the token bucket: what may be taken in any window, when there will be room, and that nothing drifts."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.limits.bucket import Bucket

LIMITS = st.sampled_from([1, 7, 60, 50_000, 10_000_000, 2_000_000_000])
# Exact microseconds, so that windows can be measured without a float's error.
STEPS = st.lists(
    st.tuples(st.integers(0, 90_000_000), st.sampled_from(["take", "between", "give"]), st.floats(0.0, 1.5)),
    min_size=1,
    max_size=60,
)


@given(LIMITS, STEPS)
def test_any_window_admits_at_most_the_limit_and_the_refill(limit: int, steps: list[tuple[int, str, float]]) -> None:
    bucket = Bucket(limit, 0.0)
    now_us = 0
    taken: list[tuple[int, int]] = []  # when, how much (negative: given back)
    out = 0
    for pause_us, action, share in steps:
        now_us += pause_us
        now_s, tokens = now_us / 1e6, int(share * limit)
        amount = 0
        if action == "take":
            amount = tokens if bucket.take(tokens, now_s) else 0
        elif action == "between":
            amount = bucket.take_between(tokens // 2, tokens, now_s)
            assert amount == 0 or tokens // 2 <= amount <= tokens
        else:
            amount = -min(tokens, out)  # never more than was taken
            bucket.give(-amount, now_s)
        out += amount
        taken.append((now_us, amount))
        assert bucket.level(now_s) <= limit
    for first in range(len(taken)):
        admitted = 0
        for when, amount in taken[first:]:
            admitted += max(amount, 0)
            given_back = -sum(a for w, a in taken[first:] if a < 0 and w <= when)
            window_us = when - taken[first][0] + 1  # + 1: a stamp is a whole microsecond
            assert admitted - given_back <= limit + Fraction(limit * window_us, 60_000_000)


@given(LIMITS, st.integers(1, 50), st.integers(1, 5_000_000))
def test_looking_often_changes_nothing(limit: int, looks: int, pause_us: int) -> None:
    often, once = Bucket(limit, 0.0, level=0), Bucket(limit, 0.0, level=0)
    for look in range(1, looks + 1):
        often.level(look * pause_us / 1e6)
    now_s = looks * pause_us / 1e6
    assert often.level(now_s) == once.level(now_s) == min(limit, looks * pause_us * limit // 60_000_000)


@given(LIMITS, st.floats(0.01, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1e6))
def test_room_is_there_when_it_was_promised_and_not_before(
    limit: int, share: float, filled: float, now_s: float
) -> None:
    tokens = max(1, int(limit * share))
    bucket = Bucket(limit, now_s, level=int(limit * filled))
    at_s = bucket.room_at(tokens, now_s)
    assert at_s == now_s or not bucket.take(tokens, at_s - 5e-6)
    assert bucket.take(tokens, at_s)


def test_no_promise_of_what_can_never_be() -> None:
    assert Bucket(60, 0.0).room_at(61, 0.0) == inf
    assert Bucket(0, 0.0).room_at(1, 0.0) == inf
    assert not Bucket(0, 0.0).take(1, 1e6)


def test_a_debt_is_paid_by_the_refill_before_anything_is_granted() -> None:
    bucket = Bucket(60, 0.0)
    assert bucket.take(60, 0.0)
    bucket.give(-30, 0.0)
    assert bucket.level(0.0) == -30
    assert not bucket.take(1, 30.0)
    assert bucket.take(1, 31.0)
    assert bucket.room_at(60, 31.0) == pytest.approx(91.0, abs=1e-5)


def test_a_charge_counts_from_now_even_if_nobody_looked_for_an_hour() -> None:
    bucket = Bucket(60, 0.0)
    bucket.give(-30, 3600.0)
    assert bucket.level(3600.0) == 30


def test_time_that_runs_backwards_refills_nothing() -> None:
    bucket = Bucket(60, 100.0, level=0)
    assert bucket.level(50.0) == 0
    assert bucket.level(101.0) == 1


@pytest.mark.parametrize(("need", "want", "level", "granted"), [
    (10, 20, 100, 20), (10, 20, 15, 15), (10, 20, 9, 0), (0, 20, 5, 5), (0, 20, 0, 0), (0, 20, -5, 0), (0, 0, 50, 0),
    (20, 10, 50, 20),
])  # fmt: skip
def test_taking_between_need_and_want(need: int, want: int, level: int, granted: int) -> None:
    bucket = Bucket(100, 0.0, level=level)
    assert bucket.take_between(need, want, 0.0) == granted
    assert bucket.level(0.0) == level - granted


@given(LIMITS, LIMITS, st.floats(0.0, 1.0))
def test_another_limit_forgets_nothing_that_was_used(old: int, new: int, used_share: float) -> None:
    bucket, used = Bucket(old, 0.0), int(old * used_share)
    assert bucket.take(used, 0.0)
    bucket.resize(new, 0.0)
    assert bucket.level(0.0) == new - used
    assert bucket.limit == new


@given(st.integers(0, 200), st.integers(-50, 100))
def test_draining_makes_no_debt(tokens: int, level: int) -> None:
    bucket = Bucket(100, 0.0, level=level)
    bucket.drain(tokens, 0.0)
    assert bucket.level(0.0) == (level if level < 0 else max(0, level - tokens))


def test_full() -> None:
    bucket = Bucket(60, 0.0)
    assert bucket.full(0.0)
    assert bucket.take(1, 0.0)
    assert not bucket.full(0.5)
    assert bucket.full(1.0)
