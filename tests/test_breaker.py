"""The breaker as traces on a clock that jumps, and the laws behind them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgegw.breaker import NOBODY, TRANSITIONS, Breaker, BreakerPolicy, Event, Pass, State, choose, ready_from

POLICY = BreakerPolicy()
MIDDLE = 0.5  # these dice leave a pause as it is


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    for _ in range(5):
        assert breaker.allows(now_s) is Pass.NORMAL
        breaker.failed(now_s, MIDDLE)
    assert is_in(breaker, State.OPEN)
    return breaker


def is_in(breaker: Breaker, state: State) -> bool:
    return breaker.state is state


def probing(now_s: float = 5.0) -> Breaker:
    breaker = opened()
    assert breaker.allows(now_s) is Pass.PROBE
    return breaker


def test_opens_at_five_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(POLICY)
    for outcome in "FFFFSFFFF":
        breaker.failed(0.0, MIDDLE) if outcome == "F" else breaker.succeeded(0.0)
        assert is_in(breaker, State.CLOSED)
    breaker.failed(0.0, MIDDLE)
    assert is_in(breaker, State.OPEN)
    assert breaker.allows(4.9) is Pass.REFUSED


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("SF" * 9 + "S", State.CLOSED),  # 19 calls
        ("SF" * 10, State.OPEN),  # 20 calls, half of them failed
        ("SSF" * 30, State.CLOSED),  # a third
        ("S" * 100 + "FFFF", State.CLOSED),
    ],
)
def test_opens_at_half_of_twenty(outcomes: str, state: State) -> None:
    breaker = Breaker(POLICY)
    for outcome in outcomes:
        breaker.failed(1.0, MIDDLE) if outcome == "F" else breaker.succeeded(1.0)
    assert breaker.state is state


def test_failures_longer_ago_than_the_window_do_not_count() -> None:
    breaker = Breaker(POLICY)
    for number in range(40):  # half of them fail, but no ten seconds hold twenty
        now_s = number * 0.6
        breaker.failed(now_s, MIDDLE) if number % 2 else breaker.succeeded(now_s)
    assert is_in(breaker, State.CLOSED)
    for number in range(40):
        now_s = 100.0 + number * 0.4
        breaker.failed(now_s, MIDDLE) if number % 2 else breaker.succeeded(now_s)
    assert is_in(breaker, State.OPEN)


def half_failing(first_s: float, calls: int) -> Breaker:
    """Every second call fails, a third of a second apart."""
    breaker = Breaker(POLICY)
    for number in range(calls):
        now_s = first_s + number * 0.33
        breaker.failed(now_s, MIDDLE) if number % 2 else breaker.succeeded(now_s)
    return breaker


def test_a_long_silence_empties_the_window() -> None:
    breaker = half_failing(1.0, calls=18)
    breaker.succeeded(1e6)
    breaker.failed(1e6, MIDDLE)
    assert is_in(breaker, State.CLOSED)


def test_a_recovery_empties_the_window() -> None:
    breaker = half_failing(0.0, calls=20)
    assert is_in(breaker, State.OPEN)
    assert breaker.allows(11.3) is Pass.PROBE
    breaker.succeeded(11.3, Pass.PROBE)
    breaker.failed(11.3, MIDDLE)
    assert is_in(breaker, State.CLOSED)


def test_one_probe_and_its_success_closes() -> None:
    breaker = probing()
    assert breaker.allows(5.0) is Pass.REFUSED
    assert not breaker.ready(5.0)
    breaker.succeeded(6.0, Pass.PROBE)
    assert is_in(breaker, State.CLOSED)
    assert breaker.allows(6.0) is Pass.NORMAL
    breaker.failed(6.0, MIDDLE)  # with a clean sheet: one failure is one
    assert is_in(breaker, State.CLOSED)


def test_pauses_double_up_to_a_minute_and_start_again_after_a_recovery() -> None:
    breaker, now_s = opened(), 0.0
    for pause_s in (5, 10, 20, 40, 60, 60):
        assert breaker.allows(now_s + pause_s - 0.01) is Pass.REFUSED
        now_s += pause_s
        assert breaker.allows(now_s) is Pass.PROBE
        breaker.failed(now_s, MIDDLE, Pass.PROBE)
        assert is_in(breaker, State.OPEN)
    now_s += 60
    assert breaker.allows(now_s) is Pass.PROBE
    breaker.succeeded(now_s, Pass.PROBE)
    for _ in range(5):
        breaker.failed(now_s, MIDDLE)
    assert breaker.opens_at_s == now_s + 5


@pytest.mark.parametrize(("dice", "pause_s"), [(0.0, 3.75), (0.5, 5.0), (0.999999, 6.25)])
def test_pauses_are_jittered(dice: float, pause_s: float) -> None:
    breaker = Breaker(POLICY)
    for _ in range(5):
        breaker.failed(0.0, dice)
    assert breaker.opens_at_s == pytest.approx(pause_s, abs=1e-4)


def test_a_probe_without_a_verdict_is_released() -> None:
    breaker = probing()
    breaker.released(Pass.PROBE)
    assert is_in(breaker, State.OPEN)
    assert breaker.allows(5.0) is Pass.PROBE


def test_a_probe_never_heard_of_again_blocks_for_a_minute_only() -> None:
    breaker = probing()
    assert breaker.allows(64.9) is Pass.REFUSED
    assert breaker.allows(65.0) is Pass.PROBE
    assert breaker.allows(65.0) is Pass.REFUSED


@pytest.mark.parametrize("tell", ["succeeded", "failed", "released"])
def test_stragglers_from_before_change_nothing(tell: str) -> None:
    for breaker in (opened(), probing()):
        before = breaker.state, breaker.opens_at_s
        if tell == "succeeded":
            breaker.succeeded(6.0, Pass.NORMAL)
        elif tell == "failed":
            breaker.failed(6.0, MIDDLE, Pass.NORMAL)
        else:
            breaker.released(Pass.NORMAL)
        assert (breaker.state, breaker.opens_at_s) == before


def test_a_step_that_is_not_in_the_table_is_loud() -> None:
    legal = set(TRANSITIONS)
    assert (State.CLOSED, Event.PAUSE_OVER) not in legal
    assert (State.CLOSED, Event.RELAPSED) not in legal
    assert {state for state, _ in legal} == set(State)
    assert {event for _, event in legal} == set(Event)


# -- which target --


def test_the_first_that_may_be_asked_is_chosen() -> None:
    well = Breaker(POLICY)
    assert choose([well, well], 0, 0.0) == (0, Pass.NORMAL)
    assert choose([opened(), well], 0, 1.0) == (1, Pass.NORMAL)
    assert choose([opened(), well], 0, 5.0) == (0, Pass.PROBE)
    assert choose([well, opened()], 1, 1.0) == (NOBODY, Pass.REFUSED)
    assert choose([well, opened()], 2, 1.0) == (NOBODY, Pass.REFUSED)
    assert choose([], 0, 1.0) == (NOBODY, Pass.REFUSED)


def test_panic_tries_the_one_that_opens_soonest() -> None:
    late, soon = opened(now_s=2.0), opened(now_s=1.0)
    assert choose([late, soon], 0, 3.0) == (1, Pass.PANIC)
    soon.failed(3.0, MIDDLE, Pass.PANIC)
    assert (soon.state, soon.opens_at_s) == (State.OPEN, 6.0)
    soon.succeeded(3.0, Pass.PANIC)
    assert choose([late, soon], 0, 3.0) == (1, Pass.NORMAL)


def test_panic_does_not_disturb_a_probe() -> None:
    breaker = probing()
    assert choose([breaker], 0, 5.0) == (0, Pass.PANIC)
    breaker.failed(5.0, MIDDLE, Pass.PANIC)
    breaker.released(Pass.PANIC)
    assert is_in(breaker, State.HALF_OPEN)
    breaker.succeeded(5.0, Pass.PANIC)  # it answered: that is what the probe was to find out
    assert is_in(breaker, State.CLOSED)
    breaker.succeeded(5.0, Pass.PROBE)
    assert is_in(breaker, State.CLOSED)


def test_counting_those_that_are_ready_hands_out_nothing() -> None:
    breakers = [Breaker(POLICY), opened(), opened()]
    assert ready_from(breakers, 0, 1.0) == 1
    assert ready_from(breakers, 1, 1.0) == 0
    assert ready_from(breakers, 1, 5.0) == 2
    assert [breaker.state for breaker in breakers] == [State.CLOSED, State.OPEN, State.OPEN]


# -- laws --


@given(failures=st.lists(st.booleans(), max_size=300), gaps_s=st.lists(st.floats(0, 3), min_size=300, max_size=300))
def test_the_window_opens_neither_too_early_nor_too_late(failures: list[bool], gaps_s: list[float]) -> None:
    """Against a log kept in full. The window moves in tenths, so it holds the last nine to ten seconds: the breaker
    opens only if some such stretch justifies it, and a failure leaves it closed only if some such stretch does not."""
    breaker, now_s, in_a_row = Breaker(POLICY), 0.0, 0
    log: list[tuple[float, bool]] = []
    for failed, gap_s in zip(failures, gaps_s, strict=False):
        now_s += gap_s
        log.append((now_s, failed))
        in_a_row = in_a_row + 1 if failed else 0
        breaker.failed(now_s, MIDDLE) if failed else breaker.succeeded(now_s)
        starts_s = [now_s - 10.001, now_s - 8.999, *(at_s for at_s, _ in log if 8.999 <= now_s - at_s <= 10.001)]
        stretches = [[failed for at_s, failed in log if at_s >= start_s] for start_s in starts_s]
        justified = [len(stretch) >= 20 and 2 * sum(stretch) >= len(stretch) for stretch in stretches]
        if is_in(breaker, State.OPEN):
            assert in_a_row == 5 or any(justified)
            return
        assert in_a_row < 5
        assert not (failed and all(justified))


class LegalMoves(RuleBasedStateMachine):
    """Any order of passes and verdicts: one probe at a time, and nobody waits for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(POLICY)
        self.now_s = 0.0
        self.out: list[Pass] = []
        self.last_probe_s = -1e9

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0, 61.0]))
    def jump(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def ask(self) -> None:
        ready = self.breaker.ready(self.now_s)
        leave = self.breaker.allows(self.now_s)
        assert bool(leave) == ready
        if leave is Pass.PROBE:
            lost = self.now_s >= self.last_probe_s + POLICY.probe_wait_s
            assert Pass.PROBE not in self.out or lost
            self.last_probe_s = self.now_s
        if leave:
            self.out.append(leave)

    @precondition(lambda self: self.out)
    @rule(how=st.sampled_from("SFR"), which=st.integers(0, 100), dice=st.floats(0, 1, exclude_max=True))
    def finish(self, how: str, which: int, dice: float) -> None:
        leave = self.out.pop(which % len(self.out))
        if how == "S":
            self.breaker.succeeded(self.now_s, leave)
        elif how == "F":
            self.breaker.failed(self.now_s, dice, leave)
        else:
            self.breaker.released(leave)

    @invariant()
    def somebody_may_ask_before_long(self) -> None:
        assert self.breaker.ready(self.now_s + POLICY.pause_max_s * (1 + POLICY.jitter) + POLICY.probe_wait_s)

    @invariant()
    def pauses_are_bounded(self) -> None:
        if self.breaker.state is State.OPEN:
            assert self.breaker.opens_at_s <= self.now_s + POLICY.pause_max_s * (1 + POLICY.jitter)


TestLegalMoves = LegalMoves.TestCase
