"""What a replica owes after an absence of Redis: with it, Redis stands as if it had been there all the time."""

from __future__ import annotations

import random

import pytest

from edgegw.limits.bucket import Bucket
from edgegw.limits.meter import BY_CODE
from edgegw.limits.redis.absence import Absence

LIMIT = 6_000  # 100 a second
TPM = BY_CODE["tpm"]


def test_a_refill_that_was_spent_is_owed() -> None:
    """Redis refilled as well while it was away, and does not know that this was used."""
    absence = Absence(TPM, LIMIT, 1, 0, 0.0)
    for second in range(1, 6):
        assert absence.take(100, 100, float(second)) == 100
    assert absence.owed(5.0) == 500


def test_a_share_that_is_full_again_owes_nothing() -> None:
    absence = Absence(TPM, LIMIT, 2, LIMIT, 0.0)
    assert absence.take(1_000, 1_000, 0.0) == 1_000
    assert absence.owed(0.0) == 1_000
    assert absence.owed(10.0) == 500, "Redis was full, and so did not refill"
    assert absence.owed(30.0) == 0


@pytest.mark.parametrize("seed", range(40))
def test_what_is_owed_makes_redis_whole(seed: int) -> None:
    """Redis refills, unasked, and is told at the end; beside it a bucket that saw everything when it happened."""
    dice = random.Random(seed)
    left = dice.randrange(LIMIT + 1)
    now_s = 0.0
    absence = Absence(TPM, LIMIT, 1, left, now_s)
    redis, witness = Bucket(LIMIT, now_s, left), Bucket(LIMIT, now_s, left)
    outstanding = 500  # Redis granted it before; it comes back by and by
    for _ in range(dice.randrange(60)):
        now_s += dice.random() * 2
        if dice.random() < 0.7:
            granted = absence.take(dice.randrange(300), dice.randrange(600), now_s)
            witness.give(-granted, now_s)
            outstanding += granted
        elif outstanding:
            back = dice.randrange(min(outstanding, 200))
            outstanding -= back
            redis.give(absence.give(back, now_s), now_s)
            witness.give(back, now_s)
    owed = absence.owed(now_s)
    redis.give(-owed, now_s)
    assert redis.level(now_s) == pytest.approx(witness.level(now_s), abs=1), f"seed {seed}"


def test_what_workers_admitted_unasked_is_owed_as_far_as_it_was_there() -> None:
    absence = Absence(TPM, LIMIT, 1, 100, 0.0)
    absence.spent(400, 0.0)
    assert (absence.level(0.0), absence.owed(0.0), absence.unpaid) == (0, 100, 300)


def test_what_was_lent_uncounted_is_neither_owed_nor_given_back() -> None:
    absence = Absence(TPM, LIMIT, 1, 1_000, 0.0)
    absence.lend(700)
    assert absence.give(500, 0.0) == 0
    assert absence.owed(0.0) == 0
    assert absence.give(300, 0.0) == 0
    assert absence.owed(0.0) == -100, "these were not lent"
