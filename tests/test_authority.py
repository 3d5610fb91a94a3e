"""The authority in memory."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits_rig import T, meter

from edgegw.clock import ManualClock
from edgegw.limits import authority as authority_module
from edgegw.limits.authority import MemoryAuthority
from edgegw.limits.words import Offer

BUSY = meter("tpm", "busy")


class House:
    """An authority with limits that can be changed."""

    def __init__(self, limit: int = 600) -> None:
        self.clock = ManualClock()
        self.limits: dict[str, int] = {}
        self.authority = MemoryAuthority(lambda meter: self.limits.get(meter, limit), self.clock)


async def test_first_come_first_served_and_nobody_is_kept_waiting() -> None:
    house = House()
    lease = house.authority.lease
    assert await lease(T, 400, 100) == Offer(T, 400, 600, 200)
    assert await lease(T, 400, 100) == Offer(T, 200, 600, 0)
    refused = await lease(T, 400, 100)
    assert (refused.granted, refused.remaining) == (0, 0)
    assert refused.retry_after_s == pytest.approx(10.0, abs=1e-3)
    house.clock.jump(refused.retry_after_s)
    assert (await lease(T, 100, 100)).granted == 100
    assert (await lease(meter("tpm", "other"), 600, 600)).granted == 600, "meters do not share"


async def test_what_never_fits_never_has_room() -> None:
    assert (await House().authority.lease(T, 601, 601)).retry_after_s == inf


async def test_a_topup_takes_what_there_is() -> None:
    house = House()
    assert (await house.authority.lease(T, 1000, 0)).granted == 600
    assert await house.authority.lease(T, 1000, 0) == Offer(T, 0, 600, 0, 0.0)


async def test_back_and_charged() -> None:
    house = House()
    await house.authority.lease(T, 600, 600)
    house.authority.give_back(T, 50)
    assert house.authority.level(T) == 50
    house.authority.give_back(T, -80)
    assert house.authority.level(T) == -30
    house.clock.jump(3600)
    house.authority.give_back(T, 1000)
    assert house.authority.level(T) == 600, "never above the brim"


async def test_what_was_admitted_meanwhile_is_a_debt_where_others_had_taken_it() -> None:
    house = House()
    await house.authority.lease(T, 500, 500)
    house.authority.spent(T, 70)
    assert house.authority.level(T) == 30
    house.authority.spent(T, 70)
    assert house.authority.level(T) == -40


async def test_a_new_limit_holds_at_once_and_forgets_nothing() -> None:
    house = House()
    await house.authority.lease(T, 500, 500)
    house.limits[T] = 1000
    assert await house.authority.lease(T, 0, 0) == Offer(T, 0, 1000, 500)
    house.limits[T] = 300
    offer = await house.authority.lease(T, 1, 1)
    assert (offer.granted, offer.remaining, offer.limit) == (0, -200, 300)
    assert offer.retry_after_s == pytest.approx(201 * 60 / 300, abs=1e-3)


@pytest.mark.parametrize("order", [(200, 350), (350, 200), (200, 200)])
async def test_of_what_workers_recall_the_lowest_level_counts(order: tuple[int, int]) -> None:
    house = House()
    for level in order:
        house.authority.recall(T, level)
        house.authority.spent(T, 10)
    assert house.authority.level(T) == 180


async def test_what_was_granted_before_the_recall_stays_granted() -> None:
    house = House()
    assert (await house.authority.lease(T, 500, 500)).granted == 500
    house.authority.recall(T, 200)
    assert house.authority.level(T) == -300


async def test_a_recall_of_a_minute_ago_is_not_held_against_anybody() -> None:
    house = House()
    house.authority.recall(T, 0)
    house.clock.jump(60)
    house.authority.recall(T, 550)
    assert house.authority.level(T) == 550


async def test_full_stocks_are_forgotten_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority_module, "STOCKS_BEFORE_SWEEP", 100)
    house = House()
    await house.authority.lease(BUSY, 600, 600)
    for number in range(1000):
        await house.authority.lease(meter("tpm", f"t{number}"), 1, 1)
        house.clock.jump(0.05)
    assert len(house.authority._stocks) <= 100
    assert house.authority.level(BUSY) in (499, 500), "empty 50 s ago: kept, and refilled"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300), st.floats(0, 20)), max_size=40))
async def test_leases_spent_and_returned_never_exceed_the_limit(steps: list[tuple[int, int, float]]) -> None:
    house = House()
    started_s = house.clock.now()
    admitted = held = 0
    for action, tokens, pause_s in steps:
        house.clock.jump(pause_s)
        if action <= 1:
            held += (await house.authority.lease(T, tokens, tokens if action else 0)).granted
        elif action == 2:
            used = min(held, tokens)
            admitted, held = admitted + used, held - used
        else:
            back = min(held, tokens)
            house.authority.give_back(T, back)
            held -= back
        assert admitted + held <= 600 + 10 * (house.clock.now() - started_s) + 1
