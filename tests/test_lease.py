"""The lease: what it holds, when it asks, what it gives back; traces in seconds that jump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits_rig import T, meter

from edgegw.limits.lease import CHECK_EVERY_S, IDLE_S, Lease, Leases
from edgegw.limits.words import Offer

LIMIT = 60_000


def lease_in_use(tokens_per_s: float, limit: int = LIMIT, seconds: float = 5.0) -> tuple[Lease, float]:
    """A lease that was used evenly for a while, always topped up to what it wants."""
    lease, now_s = Lease(T, limit, 100.0), 100.0
    lease.offered(Offer(T, 0, limit, limit), now_s)
    while now_s < 100.0 + seconds:
        tokens = int(tokens_per_s * CHECK_EVERY_S)
        if lease.level < tokens:
            lease.offered(Offer(T, tokens - lease.level + lease.target, limit, limit), now_s)
        assert lease.take(tokens)
        now_s += CHECK_EVERY_S
        lease.check(now_s)
        wanted = lease.topup_wanted()
        if wanted:
            lease.offered(Offer(T, wanted, limit, limit), now_s)
    return lease, now_s


def test_nothing_is_spent_that_was_not_offered() -> None:
    lease = Lease(T, LIMIT, 0.0)
    assert not lease.take(1)
    lease.offered(Offer(T, 10, LIMIT, 500), 0.0)
    assert lease.take(10)
    assert not lease.take(1)


def test_a_new_tenant_is_leased_no_more_than_its_request_needs() -> None:
    lease = Lease(T, LIMIT, 0.0)
    lease.offered(Offer(T, 100, LIMIT, LIMIT - 100), 0.0)
    assert lease.take(100)
    assert lease.topup_wanted() == 0


@pytest.mark.parametrize("tokens_per_s", [20.0, 100.0, 200.0, 1000.0])
def test_the_lease_follows_recent_use_up_to_its_share_of_the_limit(tokens_per_s: float) -> None:
    lease, _ = lease_in_use(tokens_per_s)
    assert lease.target == pytest.approx(min(2 * tokens_per_s, LIMIT / 100), rel=0.03)
    assert lease.low_water == lease.target // 4


@given(st.integers(0, 10_000_000), st.floats(0, 1e7), st.integers(-100, 10_000_000), st.integers(0, 10_000_000))
def test_at_most_two_percent_of_the_limit_lie_idle(limit: int, rate: float, remaining: int, level: int) -> None:
    lease = Lease(T, limit, 0.0)
    lease.rate = rate
    lease.offered(Offer(T, level, limit, remaining), 0.0)
    lease.surplus(idle=False)
    assert 0 <= lease.level <= limit / 50
    assert lease.topup_wanted() + lease.level <= limit / 50


def test_a_topup_is_due_before_the_lease_runs_out() -> None:
    lease, _ = lease_in_use(100.0)
    lease.level = lease.target
    while not lease.topup_wanted():
        assert lease.take(10)
    assert lease.level >= 0.15 * lease.target
    assert lease.level + lease.topup_wanted() == lease.target


def test_when_little_is_left_little_is_held() -> None:
    lease, now_s = lease_in_use(1000.0)
    assert lease.target == LIMIT // 100
    lease.level = 0
    lease.offered(Offer(T, 0, LIMIT, 80), now_s)
    assert lease.target == 10
    lease.offered(Offer(T, 0, LIMIT, -500), now_s)
    assert lease.target == lease.topup_wanted() == 0


def test_what_was_settled_back_and_is_too_much_goes_to_the_authority() -> None:
    lease, _ = lease_in_use(100.0)
    lease.level = lease.target
    lease.settle(5000)
    assert lease.surplus(idle=False) == 5000
    assert lease.level == lease.target
    lease.settle(lease.target)
    assert lease.surplus(idle=False) == 0, "up to twice the target stays"


def test_an_idle_lease_goes_back_whole() -> None:
    lease, now_s = lease_in_use(100.0)
    held = lease.level
    while not lease.idle(now_s):
        assert now_s - lease.used_s < IDLE_S
        now_s += CHECK_EVERY_S
        lease.check(now_s)
    assert now_s - lease.used_s < IDLE_S + CHECK_EVERY_S
    assert lease.surplus(idle=True) == held > 0
    assert lease.level == 0


def test_waking_after_a_long_time_the_rate_is_forgotten() -> None:
    lease, now_s = lease_in_use(100.0)
    lease.wake(now_s + 0.5)
    assert lease.rate == pytest.approx(50.0, rel=0.05)
    lease.wake(now_s + 10.0)
    assert lease.rate == 0.0


def test_a_debt_is_paid_once() -> None:
    lease = Lease(T, LIMIT, 0.0)
    lease.offered(Offer(T, 100, LIMIT, 0), 0.0)
    assert lease.take(100)
    lease.settle(-40)  # 140 were used
    assert not lease.take(0)
    assert lease.pay_debt() == -40
    assert lease.pay_debt() == 0
    lease.settle(-3)
    assert lease.surplus(idle=False) == -3
    assert lease.surplus(idle=False) == 0


# -- while the authority is away --


def test_the_local_bucket_is_as_full_as_what_was_left() -> None:
    lease = Lease(T, 6000, 0.0)
    assert lease.go_local(4, 0.0).level(0.0) == 1500, "nothing is known: a full share"
    lease = Lease(T, 6000, 0.0)
    lease.offered(Offer(T, 0, 6000, 1000), 0.0)
    assert lease.go_local(4, 10.0).level(10.0) == 500, "1000 and ten seconds of refill, among four"


def test_what_is_admitted_locally_is_charged_once() -> None:
    lease = Lease(T, 6000, 0.0)
    lease.go_local(4, 0.0)
    assert lease.take_locally(1000, 0.0)
    assert not lease.take_locally(1000, 0.0)
    lease.settle_locally(300, 0.0)  # of the 1000 only 700 were used
    assert lease.take_locally(800, 0.0)
    assert lease.come_back(0.0) == 1500
    assert lease.local is None
    assert lease.come_back(0.0) == 0


def test_a_request_larger_than_the_share_passes_a_full_share_and_leaves_a_debt() -> None:
    lease = Lease(T, 6000, 0.0)
    local = lease.go_local(6, 0.0)
    assert lease.take_locally(3000, 0.0)
    assert local.level(0.0) == -2000
    assert not lease.take_locally(1, 119.0)
    assert lease.wait_s(1, 0.0) == pytest.approx(120.0, abs=0.1)
    assert lease.take_locally(1, 121.0)


@pytest.mark.parametrize(("left", "owed"), [(600, 10), (0, 600)])
def test_what_the_refill_has_paid_is_not_charged_and_never_more_than_the_limit(left: int, owed: int) -> None:
    """Ten minutes of ten a second, which is the refill. A bucket that was full would not have been refilled but for
    that; one that was empty was refilled until it was full, and does not know that this was used."""
    lease = Lease(T, 600, 0.0)
    lease.offered(Offer(T, 0, 600, left), 0.0)
    lease.go_local(1, 0.0)
    admitted = sum(10 for second in range(1, 601) if lease.take_locally(10, float(second)))
    assert admitted == 6000
    assert lease.come_back(600.0) == owed


def test_a_refill_that_was_spent_is_charged() -> None:
    lease = Lease(T, 600, 0.0)
    lease.offered(Offer(T, 0, 600, 0), 0.0)
    lease.go_local(2, 0.0)
    assert lease.take_locally(15, 3.0)
    assert lease.come_back(3.0) == 15


@given(
    limit=st.integers(1, 100_000),
    shares=st.integers(1, 16),
    asks=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5000)), max_size=60),
)
def test_local_admission_is_bounded(limit: int, shares: int, asks: list[tuple[float, int]]) -> None:
    lease, now_s, admitted = Lease(T, limit, 0.0), 0.0, 0
    lease.go_local(shares, 0.0)
    share = max(1, limit // shares)
    for pause_s, tokens in asks:
        now_s += pause_s
        if tokens <= limit and lease.take_locally(tokens, now_s):
            admitted += tokens
        assert admitted <= share + share * now_s / 60 + min(limit, 5000) + 1


def test_when_the_channel_breaks_the_lease_is_void_and_what_was_in_hand_is_spent_on_account() -> None:
    lease = Lease(T, 6000, 0.0)
    lease.offered(Offer(T, 100, 6000, 0), 0.0)
    lease.void(4, 0.0)
    assert lease.level == 0
    assert lease.remaining_at(0.0) == 100, "the authority has them again"
    assert lease.take_locally(100, 0.0)
    assert not lease.take_locally(1, 0.0)
    assert lease.come_back(0.0) == 100


def test_a_debt_survives_the_channel() -> None:
    tally = [0, 0]
    lease = Lease(T, 6000, 0.0, tally)
    lease.offered(Offer(T, 100, 6000, 5900), 0.0)
    assert lease.take(100)
    lease.settle(-70)
    lease.void(4, 0.0)
    assert tally[0] == 170, "the control process reads it there, whenever it sees that the channel is gone"
    assert lease.go_local(4, 0.0).level(0.0) == 5900 // 4 - 70
    assert lease.remaining_at(0.0) == 5830, "so much does a new authority learn of it"
    assert lease.come_back(0.0) == 0, "nobody is told twice"


# -- what is told --


def test_the_standing_refills_and_stays_within_its_bounds() -> None:
    lease = Lease(T, 6000, 0.0)
    lease.offered(Offer(T, 50, 6000, 2950), 0.0)
    standing = lease.standing(0.0)
    assert (standing.limit, standing.remaining, standing.reset_s) == (6000, 3000, 30.0)
    assert lease.standing(10.0).remaining == 4000
    assert lease.standing(1000.0).remaining == 6000
    assert lease.standing(1000.0).reset_s == 0.0
    lease.offered(Offer(T, 0, 6000, -9000), 0.0)
    assert lease.standing(0.0).remaining == 0


@given(st.integers(1, 10_000_000), st.integers(-1000, 10_000_000), st.integers(1, 10_000_000))
def test_after_the_wait_there_is_room(limit: int, remaining: int, tokens: int) -> None:
    lease = Lease(T, limit, 0.0)
    lease.offered(Offer(T, 0, limit, min(remaining, limit)), 0.0)
    wait_s = lease.wait_s(min(tokens, limit), 0.0)
    assert lease.remaining_at(wait_s + 1e-3) + 1 >= min(tokens, limit)


# -- the house of leases --


def leases_of(size: int, tenants: str) -> tuple[Leases[Lease], list[Lease]]:
    leases: Leases[Lease] = Leases(size)
    known = [Lease(meter("tpm", tenant), 1, 0.0) for tenant in tenants]
    for lease in known:
        assert leases.make_room() is None
        leases.add(lease)
    return leases, known


def test_the_longest_idle_lease_makes_room() -> None:
    leases, (a, b, c) = leases_of(3, "abc")
    d, e = (Lease(meter("tpm", tenant), 1, 0.0) for tenant in "de")
    leases.wake(a)
    assert leases.make_room() is b
    leases.add(d)
    assert leases.get(b.meter) is None
    assert leases.get(a.meter) is a
    leases.rest(a)
    leases.wake(c)
    assert leases.make_room() is d, "it is idle for longer than a"
    leases.add(e)
    assert set(leases.known.values()) == {a, c, e}


def test_a_house_full_of_leases_in_use_takes_no_more() -> None:
    leases, known = leases_of(2, "ab")
    for lease in known:
        leases.wake(lease)
    with pytest.raises(LookupError):
        leases.make_room()
    assert set(leases.known.values()) == set(known)
