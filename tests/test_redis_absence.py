"""What a replica grants while Redis is away, and what it tells Redis afterwards. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.limits.bucket import Bucket
from edgegw.limits.meter import BY_CODE
from edgegw.limits.redis.absence import Absence

TPM = BY_CODE["tpm"]
LIMIT = 6000  # 100 a second
seconds = st.floats(0, 30).map(lambda number: round(number, 6))
steps = st.lists(st.tuples(seconds, st.sampled_from(["take", "give", "leased"]), st.integers(0, LIMIT)), max_size=20)


def test_what_is_granted_out_of_the_refill_is_charged_because_redis_has_refilled_too() -> None:
    absence = Absence(TPM, LIMIT, 1, 0, 100.0)
    assert absence.take(1, LIMIT, 110.0) == 1000
    assert absence.owed(110.0) == 1000


def test_what_was_granted_out_of_a_full_bucket_is_paid_by_the_refill() -> None:
    absence = Absence(TPM, LIMIT, 1, LIMIT, 100.0)
    assert absence.take(1000, 1000, 100.0) == 1000
    assert absence.owed(100.0) == 1000
    assert absence.owed(104.0) == 600
    assert absence.owed(120.0) == 0


def test_what_was_admitted_with_nothing_there_is_charged() -> None:
    absence = Absence(TPM, LIMIT, 1, 50, 100.0)
    absence.spent(200, 100.0)
    assert absence.level(100.0) == 0
    assert absence.owed(100.0) == 200


@pytest.mark.parametrize("left", [0, 100, LIMIT // 2, LIMIT])
@given(steps)
def test_redis_is_left_with_what_it_would_have_if_it_had_been_there(
    left: int, steps: list[tuple[float, str, int]]
) -> None:
    """One replica alone. `leased`: comes back, and was leased before Redis went away."""
    now_s = 100.0
    absence = Absence(TPM, LIMIT, 1, left, now_s)
    redis, truth = Bucket(LIMIT, now_s, left), Bucket(LIMIT, now_s, left)
    granted = 0
    for pause_s, what, amount in steps:
        now_s += pause_s
        if what == "take":
            taken = absence.take(amount, amount, now_s)
            truth.give(-taken, now_s)
            granted += taken
        else:
            back = min(amount, granted) if what == "give" else amount
            granted -= back if what == "give" else 0
            redis.give(absence.give(back, now_s), now_s)
            truth.give(back, now_s)
    redis.drain(absence.owed(now_s), now_s)
    assert abs(redis.level(now_s) - truth.level(now_s)) <= 1
