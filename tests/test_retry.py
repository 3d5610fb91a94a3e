"""What follows from a failed attempt: the table row by row, and laws that hold whatever fails."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.errors import KINDS, Source, UpstreamFault
from edgegw.exchange import RetryPolicy
from edgegw.retry import VERDICTS, Action, Decision, Health, RetryBudget, decide, verdict

SAME, NEXT, UP = Action.RETRY_SAME, Action.NEXT_TARGET, Action.GIVE_UP
UPSTREAM_KINDS = sorted(name for name, kind in KINDS.items() if kind.source is Source.UPSTREAM)


def fault(
    kind: str, status: int = 0, *, sent: bool = True, retry_after_s: float | None = None, code: str | None = None
) -> UpstreamFault:
    return UpstreamFault(kind, "x", status, sent=sent, retry_after_s=retry_after_s, code=code)


def after(
    what: UpstreamFault,
    policy: RetryPolicy | None = None,
    *,
    tries: int = 1,
    total: int = 1,
    left: int = 1,
    now_s: float = 100.0,
    deadline_s: float = 700.0,
    budget_ok: bool = True,
    dice: float = 0.5,
) -> Decision:
    return decide(
        what,
        policy or RetryPolicy(),
        tries_on_target=tries,
        attempts_total=total,
        targets_left=left,
        now_s=now_s,
        deadline_s=deadline_s,
        budget_ok=budget_ok,
        dice=dice,
    )


def test_every_kind_that_an_attempt_can_end_with_has_a_row() -> None:
    assert sorted(VERDICTS) == sorted([*UPSTREAM_KINDS, "internal"])


# fault; then: with another target left, alone, alone and out of tries
TABLE = [
    (fault("upstream_connect", sent=False), SAME, SAME, UP),
    (fault("upstream_tls", sent=False), NEXT, UP, UP),
    (fault("upstream_busy", sent=False), NEXT, UP, UP),
    (fault("upstream_timeout", sent=False), NEXT, SAME, UP),  # while connecting: it never left
    (fault("upstream_timeout", sent=True), NEXT, UP, UP),  # still at work on it, perhaps, and billing
    (fault("upstream_timeout", 504), NEXT, SAME, UP),  # the provider itself says that it is over
    (fault("upstream_stalled", 200), NEXT, SAME, UP),
    (fault("upstream_cut"), SAME, SAME, UP),
    (fault("upstream_garbage", 200), NEXT, SAME, UP),
    (fault("upstream_auth", 401), NEXT, UP, UP),
    (fault("upstream_refused", 400), UP, UP, UP),
    (fault("upstream_refused", 422), UP, UP, UP),
    (fault("upstream_refused", 404), NEXT, UP, UP),  # this provider has no such model; another may
    (fault("upstream_refused", 400, code="context_length_exceeded"), NEXT, UP, UP),
    (fault("upstream_refused", 400, code="model_not_found"), NEXT, UP, UP),
    (fault("upstream_rate_limited", 429), NEXT, SAME, UP),
    (fault("upstream_quota", 429), NEXT, UP, UP),
    (fault("upstream_overloaded", 529), NEXT, SAME, UP),
    (fault("upstream_error", 500), SAME, SAME, UP),
    (fault("internal", 200), UP, UP, UP),
]


@pytest.mark.parametrize(("what", "another", "alone", "spent"), TABLE, ids=lambda value: getattr(value, "kind", None))
def test_what_follows(what: UpstreamFault, another: Action, alone: Action, spent: Action) -> None:
    policy = RetryPolicy(attempts=2, attempts_max=5)
    assert after(what, policy).action is another
    assert after(what, policy, left=0).action is alone
    assert after(what, policy, left=0, tries=2, total=2).action is spent


@pytest.mark.parametrize(
    ("kind", "health"),
    [
        ("upstream_refused", Health.ALIVE),
        ("upstream_busy", Health.UNKNOWN),
        ("internal", Health.UNKNOWN),
        *((kind, Health.ILL) for kind in UPSTREAM_KINDS if kind not in ("upstream_refused", "upstream_busy")),
    ],
)
def test_what_a_fault_says_about_its_target(kind: str, health: Health) -> None:
    assert verdict(fault(kind, 400)).health is health


def test_a_model_the_provider_does_not_have_says_nothing_against_it() -> None:
    assert verdict(fault("upstream_refused", 404)).health is Health.ALIVE


def test_a_fault_that_is_not_the_providers_is_a_bug() -> None:
    with pytest.raises(KeyError):
        verdict(fault("rate_limited"))


# tries so far, dice -> seconds
@pytest.mark.parametrize(
    ("tries", "dice", "delay_s"),
    [(1, 0.0, 0.0), (1, 0.5, 0.1), (2, 0.5, 0.2), (3, 0.5, 0.4), (6, 0.5, 2.0), (9, 0.75, 3.0), (5000, 0.5, 2.0)],
)
def test_backoff_doubles_up_to_its_cap_and_is_jittered_in_full(tries: int, dice: float, delay_s: float) -> None:
    policy = RetryPolicy(attempts=10_000, attempts_max=10_000)
    decision = after(fault("upstream_error", 500), policy, tries=tries, dice=dice)
    assert decision.action is SAME
    assert decision.delay_s == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("retry_after_s", "left", "decision"),
    [
        (3.0, 1, Decision(NEXT)),  # somewhere else at once
        (3.0, 0, Decision(SAME, 3.1)),  # nowhere else to go: as asked, and spread out
        (20.0, 0, Decision(SAME, 20.1)),
        (20.5, 0, Decision(UP)),  # longer than we would wait
        (math.inf, 0, Decision(UP)),
        (math.nan, 0, Decision(SAME, 0.1)),  # nonsense and dates gone by: as if nothing had been said
        (-5.0, 0, Decision(SAME, 0.1)),
    ],
)
@pytest.mark.parametrize("kind", ["upstream_rate_limited", "upstream_overloaded", "upstream_error"])
def test_retry_after(kind: str, retry_after_s: float, left: int, decision: Decision) -> None:
    decided = after(fault(kind, 503, retry_after_s=retry_after_s), left=left)
    assert decided.action is decision.action
    assert decided.delay_s == pytest.approx(decision.delay_s)


def test_retry_after_does_not_make_the_unrepeatable_repeatable() -> None:
    for kind in ("upstream_auth", "upstream_quota", "upstream_refused"):
        assert after(fault(kind, 403, retry_after_s=0.0), left=0) == Decision(UP)


def test_nothing_begins_after_the_deadline() -> None:
    what = fault("upstream_error", 500)
    assert after(what, left=0, dice=0.5, now_s=699.8) == Decision(SAME, 0.1)
    assert after(what, left=0, dice=0.5, now_s=699.9) == Decision(UP)
    assert after(what, left=1, dice=0.5, now_s=699.95) == Decision(NEXT)
    assert after(what, left=1, now_s=700.0) == Decision(UP)


def test_an_empty_budget_holds_back_retries_and_lets_fallbacks_pass() -> None:
    what = fault("upstream_error", 500)
    assert after(what, left=1, budget_ok=False) == Decision(NEXT)
    assert after(what, left=0, budget_ok=False) == Decision(UP)


FAULTS = st.builds(
    UpstreamFault,
    kind=st.sampled_from(sorted(VERDICTS)),
    message=st.just("x"),
    status=st.sampled_from([0, 200, 400, 401, 404, 429, 500, 503, 529]),
    retry_after_s=st.none() | st.floats(),
    code=st.sampled_from([None, "context_length_exceeded", "x"]),
    sent=st.booleans(),
)
POLICIES = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 5),
    attempts_max=st.integers(1, 6),
    base_s=st.floats(0, 10),
    cap_s=st.floats(0, 60),
    retry_after_max_s=st.floats(0, 60),
)


@given(
    what=FAULTS,
    policy=POLICIES,
    tries=st.integers(1, 6),
    before=st.integers(0, 6),
    left=st.integers(0, 3),
    now_s=st.floats(0, 1000),
    remaining_s=st.floats(-1, 100),
    budget_ok=st.booleans(),
    dice=st.floats(0, 1, exclude_max=True),
)
def test_whatever_fails(
    what: UpstreamFault,
    policy: RetryPolicy,
    tries: int,
    before: int,
    left: int,
    now_s: float,
    remaining_s: float,
    budget_ok: bool,
    dice: float,
) -> None:
    total = tries + before
    deadline_s = now_s + remaining_s
    decision = after(
        what,
        policy,
        tries=tries,
        total=total,
        left=left,
        now_s=now_s,
        deadline_s=deadline_s,
        budget_ok=budget_ok,
        dice=dice,
    )
    assert 0.0 <= decision.delay_s <= policy.cap_s + policy.retry_after_max_s
    if decision.action is UP:
        assert decision.delay_s == 0.0
        return
    assert total < policy.attempts_max
    assert now_s + decision.delay_s < deadline_s
    if decision.action is NEXT:
        assert left > 0
        assert decision.delay_s == 0.0
    else:
        assert budget_ok
        assert tries < policy.attempts
        assert what.kind not in ("upstream_refused", "upstream_auth", "upstream_quota", "upstream_tls", "upstream_busy")
        if what.retry_after_s is not None:
            assert left == 0
            assert not decision.delay_s < what.retry_after_s


@given(st.lists(st.tuples(st.sampled_from(["live", "retry", "close"]), st.integers(0, 100)), max_size=200))
def test_a_budget_is_never_overdrawn_and_never_leaks(steps: list[tuple[str, int]]) -> None:
    budget, opened = RetryBudget(), list[bool]()
    for step, pick in steps:
        if step == "close":
            if opened:
                budget.closed(opened.pop(pick % len(opened)))
            continue
        retry = step == "retry"
        if retry and not budget.allows():
            assert budget.retries >= 3
            assert budget.retries + 1 > 0.2 * budget.live
            continue
        budget.opened(retry)
        opened.append(retry)
        if retry:
            assert budget.retries <= max(3, 0.2 * budget.live)
    assert (budget.live, budget.retries) == (len(opened), sum(opened))
    for retry in opened:
        budget.closed(retry)
    assert (budget.live, budget.retries) == (0, 0)


@pytest.mark.parametrize(("live", "retries"), [(0, 3), (10, 3), (100, 25), (1000, 250)])
def test_a_budget_in_an_outage(live: int, retries: int) -> None:
    """Everything fails and wants to be retried: of all that is in flight, a fifth are retries."""
    budget = RetryBudget()
    for _ in range(live):
        budget.opened()
    granted = 0
    while budget.allows():
        budget.opened(retry=True)
        granted += 1
    assert granted == pytest.approx(retries, abs=1)
    assert granted <= max(3, 0.2 * (live + granted))
