"""Laws of what does not refill: days and months of UTC against a calendar, and slots."""

from __future__ import annotations

from calendar import monthrange
from collections import Counter
from datetime import UTC, datetime, timedelta
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.limits.bucket import SLOT_WAIT_S, Bucket, Slots, Window, stock, window_end
from edgegw.limits.meter import BY_CODE

LIMITS = st.sampled_from([1, 7, 60, 50_000, 2_000_000_000])
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2120, 1, 1)).map(lambda d: d.replace(tzinfo=UTC).timestamp())
PAUSES = st.one_of(st.floats(0, 3600), st.floats(0, 40 * 86_400), st.just(86_400.0))
STEPS = st.lists(
    st.tuples(PAUSES, st.sampled_from(["take", "between", "give", "overuse"]), st.floats(0.0, 1.2)), max_size=60
)


def at(text: str) -> float:
    return datetime.fromisoformat(text + "+00:00").timestamp()


@pytest.mark.parametrize(("now", "monthly", "end"), [
    ("2024-02-28T23:59:59.999", False, "2024-02-29T00:00:00"), ("2023-02-28T12:00:00", False, "2023-03-01T00:00:00"),
    ("2024-02-29T00:00:00", False, "2024-03-01T00:00:00"), ("2024-02-01T00:00:00", True, "2024-03-01T00:00:00"),
    ("2024-02-29T23:59:59", True, "2024-03-01T00:00:00"), ("2023-12-31T23:59:59", True, "2024-01-01T00:00:00"),
    ("2023-12-31T00:00:00", False, "2024-01-01T00:00:00"), ("2023-01-31T00:00:00", True, "2023-02-01T00:00:00"),
    ("2100-02-28T00:00:00", False, "2100-03-01T00:00:00"), ("2000-02-28T00:00:00", False, "2000-02-29T00:00:00"),
    # Where clocks are set forward or back in summer, UTC is not.
    ("2024-03-31T01:30:00", False, "2024-04-01T00:00:00"), ("2024-10-27T01:30:00", False, "2024-10-28T00:00:00"),
])  # fmt: skip
def test_windows_end_with_the_day_or_the_month_of_utc(now: str, monthly: bool, end: str) -> None:
    assert window_end(at(now), monthly) == at(end)


@given(MOMENTS, st.booleans())
def test_every_moment_lies_in_one_window_which_is_as_long_as_the_calendar_says(now_s: float, monthly: bool) -> None:
    end_s, moment = window_end(now_s, monthly), datetime.fromtimestamp(now_s, UTC)
    length = timedelta(days=monthrange(moment.year, moment.month)[1] if monthly else 1).total_seconds()
    assert end_s - length <= now_s < end_s
    assert window_end(end_s - length, monthly) == end_s
    assert window_end(end_s, monthly) > end_s


@given(LIMITS, MOMENTS, st.booleans(), STEPS)
def test_each_day_and_month_admits_its_limit_and_not_one_more(
    limit: int, now_s: float, monthly: bool, steps: list[tuple[float, str, float]]
) -> None:
    window = Window(limit, now_s, monthly=monthly)
    out: Counter[str] = Counter()  # taken and not given back, by day or month

    def key() -> str:
        return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m" if monthly else "%Y-%m-%d")

    for pause_s, action, share in steps:
        now_s += pause_s
        amount = int(share * limit)
        if action == "take":
            fits = out[key()] + amount <= limit
            assert window.take(amount, now_s) == fits
            out[key()] += amount if fits else 0
        elif action == "between":
            granted = window.take_between(amount // 2, amount, now_s)
            room = limit - out[key()]
            assert granted == (min(room, amount) if room > 0 and room >= amount // 2 else 0)
            out[key()] += granted
        elif action == "give":
            back = max(0, min(amount, out[key()]))
            window.give(back, now_s)
            out[key()] -= back
        else:
            window.give(-amount, now_s)
            out[key()] += amount
        assert window.level(now_s) == limit - out[key()]
        assert window.full(now_s) == (out[key()] == 0)
        assert now_s < now_s + window.resets_s(now_s) == window_end(now_s, monthly)


@given(LIMITS, MOMENTS, st.booleans(), st.floats(0, 1.5), st.floats(0, 1.0))
def test_room_is_there_when_it_was_promised_and_not_before(
    limit: int, now_s: float, monthly: bool, share: float, used: float
) -> None:
    tokens = int(limit * share)
    window = Window(limit, now_s, level=int(limit * used), monthly=monthly)
    at_s = window.room_at(tokens, now_s)
    if tokens > limit:
        assert at_s == inf
    elif at_s > now_s:
        assert at_s == window_end(now_s, monthly)
        assert not window.take(tokens, max(now_s, at_s - 1e-3))
        assert window.take(tokens, at_s)
    else:
        assert window.take(tokens, at_s)


def test_another_limit_forgets_nothing_within_the_day_and_is_all_there_in_the_next() -> None:
    now_s = at("2024-02-29T12:00:00")
    window = Window(1000, now_s)
    assert window.take(600, now_s)
    window.resize(500, now_s)
    assert window.level(now_s) == -100, "a debt, until midnight"
    window.resize(800, now_s)
    assert window.level(now_s) == 200
    window.resize(500, now_s)
    assert window.level(at("2024-03-01T00:00:00")) == 500


def test_a_debt_ends_with_its_day() -> None:
    window = Window(100, at("2024-02-29T12:00:00"))
    window.give(-250, at("2024-02-29T12:00:00"))
    assert window.level(at("2024-02-29T23:59:59.999")) == -150
    assert window.level(at("2024-03-01T00:00:00")) == 100


def test_a_clock_that_is_set_back_over_midnight_does_not_fill_the_day_again() -> None:
    window = Window(100, at("2024-02-29T12:00:00"))
    assert window.take(100, at("2024-03-01T00:00:00.5"))
    for moment in ("2024-02-29T23:59:59.9", "2024-03-01T00:00:00", "2024-03-01T23:59:59"):
        assert window.level(at(moment)) == 0
    assert window.level(at("2024-03-02T00:00:00")) == 100


@pytest.mark.parametrize(("monthly", "next_window"), [(False, "2024-03-02T00:00:00"), (True, "2024-04-01T00:00:00")])
def test_a_clock_that_was_years_ahead_does_not_end_all_windows(monthly: bool, next_window: str) -> None:
    window = Window(100, at("2024-03-01T12:00:00"), monthly=monthly)
    assert window.take(100, at("2099-01-01T00:00:00"))
    assert window.level(at("2024-03-01T12:00:00")) == 0, "what was used stays used"
    assert window.level(at(next_window)) == 100


# -- slots --


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.sampled_from(["take", "between", "give", "resize"]), st.integers(0, 25)), max_size=60),
)
def test_never_more_at_once_than_there_are_slots(limit: int, steps: list[tuple[str, int]]) -> None:
    slots, used = Slots(limit, 0.0), 0
    for number, (action, amount) in enumerate(steps):
        now_s = number * 100.0
        if action == "take":
            fits = used + amount <= limit
            assert slots.take(amount, now_s) == fits
            used += amount if fits else 0
        elif action == "between":
            granted = slots.take_between(amount // 2, amount, now_s)
            assert granted == 0 or used + granted <= limit
            used += granted
        elif action == "give":
            slots.give(min(amount, used), now_s)
            used -= min(amount, used)
        else:
            slots.resize(amount, now_s)
            limit = amount
        assert slots.level(now_s) == limit - used
        assert slots.resets_s(now_s) == 0.0


def test_nobody_knows_when_a_slot_will_be_free() -> None:
    slots = Slots(2, 0.0)
    assert slots.room_at(2, 5.0) == 5.0
    assert slots.take(1, 5.0)
    assert slots.room_at(2, 5.0) == 5.0 + SLOT_WAIT_S
    assert slots.room_at(3, 5.0) == inf
    slots.give(100, 5.0)
    assert slots.level(5.0) == 2, "never more than there are"


def test_each_measure_has_its_shape() -> None:
    made = {code: stock(measure, 10, 0.0) for code, measure in BY_CODE.items()}
    assert {code: type(one) for code, one in made.items()} == {
        "tpm": Bucket, "rpm": Bucket, "par": Slots, "day": Window, "month": Window
    }  # fmt: skip
    assert (made["day"].resets_s(0.0), made["month"].resets_s(0.0)) == (86_400.0, 31 * 86_400.0)
