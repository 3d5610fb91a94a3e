"""What is known of a worker's holdings when it dies: to the unit."""

from __future__ import annotations

from limits_rig import PAR, T, meter

from edgegw.limits.holdings import Holdings


def test_a_dead_workers_unspent_tokens_come_back_to_the_unit() -> None:
    tally = [0, 0]
    holdings = Holdings(tally)
    holdings.asked(T, 1)
    holdings.leased(T, 100)
    tally[1] += 60
    holdings.leased(T, 60)  # under way when it died: it was never read, and is unspent
    holdings.leased(meter("tpm", "u"), 10)  # never asked for
    assert holdings.unspent() == {T: 100}
    assert holdings.returned() == {T: 100}
    assert holdings.returned() == {}


def test_who_gave_everything_back_holds_nothing() -> None:
    tally = [0]
    holdings = Holdings(tally)
    holdings.asked(T, 0)
    holdings.leased(T, 10)
    holdings.leased(T, -10)
    assert holdings.unspent() == {}
    holdings.leased(T, 10)
    tally[0] += 4
    holdings.leased(T, -6)
    assert holdings.returned() == {}


def test_of_slots_all_come_back() -> None:
    tally = [0]
    holdings = Holdings(tally)
    holdings.asked(PAR, 0)
    holdings.leased(PAR, 5)
    tally[0] += 3  # requests that run, and died with the worker
    assert holdings.unspent() == {}, "slots are held by requests"
    assert holdings.returned() == {PAR: 5}


def test_of_a_worker_without_a_tally_nothing_is_assumed_but_its_slots() -> None:
    holdings = Holdings(None)
    for number, meter_ in enumerate((T, PAR)):
        holdings.asked(meter_, number)
        holdings.leased(meter_, 7)
    assert holdings.unspent() == {}
    assert holdings.returned() == {PAR: 7}
