"""Whose turn it is: laws that hypothesis attacks, and the traces that the policy was chosen for."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.limits.turns import DEBTORS_MAX, WAITING_MAX, WAITING_PER_TENANT_MAX, Turns

Waiter = tuple[str, int]  # its tenant, its number
PLENTY = 1_000_000

weights = st.lists(st.integers(1, 20) | st.sampled_from([50, 300, 1000]), min_size=1, max_size=8)


@dataclass
class House:
    """Places behind which tenants stand in line; `served` is who got one, in order."""

    weights: dict[str, int]
    turns: Turns[Waiter] = field(default_factory=lambda: Turns(waiting_max=PLENTY, per_tenant_max=PLENTY))
    served: list[str] = field(default_factory=list)
    number: int = 0

    def join(self, tenant: str, times: int = 1) -> None:
        for _ in range(times):
            self.number += 1
            assert self.turns.join(tenant, self.weights.get(tenant, 1), (tenant, self.number))

    def next(self) -> str:
        waiter = self.turns.next()
        assert waiter is not None
        self.served.append(waiter[0])
        return waiter[0]

    def one(self) -> str:
        """A single place: taken and given back at once."""
        tenant = self.next()
        self.turns.give_back(tenant)
        return tenant

    def fill(self, backlog: int = 3) -> None:
        """Everybody has waiters, whatever was served."""
        for tenant in self.weights:
            while self.waiting(tenant) < backlog:
                self.join(tenant)

    def waiting(self, tenant: str) -> int:
        line = self.turns._lines.get(tenant)
        return 0 if line is None else len(line.waiters)


def house(*of: int) -> House:
    """Tenants `t0`, `t1`, … with these weights."""
    return House({f"t{n}": weight for n, weight in enumerate(of)})


def is_empty(turns: Turns[Waiter]) -> bool:
    kept = (turns.held, turns._lines, turns._peers, turns._owed)
    return not any(kept) and (turns.waiting, turns._weight, turns._now, turns._turn) == (0, 0, 0, 0)


class TestTurns:
    """One place: nobody ever holds one when it is given, so the turns alone decide."""

    @given(weights, st.integers(1, 400))
    def test_under_constant_backlog_shares_are_by_weight_within_one_turn(self, of: list[int], turns: int) -> None:
        all_of = house(*of)
        got: Counter[str] = Counter()
        for n in range(1, turns + 1):
            all_of.fill()
            got[all_of.one()] += 1
            for tenant, weight in all_of.weights.items():
                assert abs(got[tenant] - n * weight / sum(of)) < 1

    @given(weights, st.integers(0, 60), st.integers(1, 60))
    def test_so_in_any_window(self, of: list[int], skipped: int, window: int) -> None:
        all_of = house(*of)
        for _ in range(skipped + window):
            all_of.fill()
            all_of.one()
        got = Counter(all_of.served[skipped:])
        for tenant, weight in all_of.weights.items():
            assert abs(got[tenant] - window * weight / sum(of)) < 2  # one turn at each end

    @given(weights, st.integers(1, 20), st.integers(0, 200))
    def test_absence_earns_nothing(self, of: list[int], mine: int, away: int) -> None:
        """Whoever joins late has its share from then on, and no more than a turn on top."""
        all_of = house(*of)
        for _ in range(away):
            all_of.fill()
            all_of.one()
        all_of.weights["late"] = mine
        all_of.served.clear()
        for n in range(1, 101):
            all_of.fill()
            all_of.one()
            assert abs(all_of.served.count("late") - n * mine / (sum(of) + mine)) <= 1 + mine / (sum(of) + mine)

    def test_leaving_and_coming_back_gains_nothing(self) -> None:
        """One at a time, so that it has left when its turn is taken: at weight 1 of 4 still every fourth turn."""
        both = House({"crowd": 3, "single": 1})
        both.join("crowd", 500)
        for _ in range(400):
            if not both.waiting("single"):
                both.join("single")
            both.one()
        assert both.served.count("single") == pytest.approx(100, abs=1)

    def test_new_names_without_end_starve_nobody(self) -> None:
        """Each newcomer starts with the present turn, not before those who wait. With every turn of the old one the
        line of names grows by one: w tenants wait after (w * w - 11 * 11) / 2 turns."""
        old = house(1)
        old.join("t0", 50)
        for n in range(10):
            old.join(f"first-{n}")
        for n in range(600):
            old.join(f"new-{n}")
            old.one()
        assert old.served.count("t0") == pytest.approx((2 * 600 + 11 * 11) ** 0.5 - 11, abs=2)

    def test_a_turn_of_who_has_gone_is_nobodys(self) -> None:
        gone: set[Waiter] = set()
        turns: Turns[Waiter] = Turns(gone.__contains__)
        for n in range(4):
            turns.join("a", 1, ("a", n))
            turns.join("b", 1, ("b", n))
        gone |= {("a", 0), ("a", 1), ("b", 3)}
        order = []
        while (waiter := turns.next()) is not None:
            order.append(waiter)
            turns.give_back(waiter[0])
        assert order == [("a", 2), ("b", 0), ("a", 3), ("b", 1), ("b", 2)]
        assert is_empty(turns)


class TestPlaces:
    """Many places, held for any time: who holds least for its weight comes first."""

    @given(
        weights,
        st.integers(1, 30),
        st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), min_size=1, max_size=200),
    )
    def test_whoever_is_served_held_no_more_rounds_than_those_who_wait_on(
        self, of: list[int], places: int, ends: list[tuple[int, bool]]
    ) -> None:
        all_of = house(*of)
        busy: list[str] = []
        for which, everybody in ends:
            if everybody or not all_of.turns.waiting:
                all_of.fill()
            if len(busy) == places:
                all_of.turns.give_back(busy.pop(which % places))
            held = dict(all_of.turns.held)
            waiting = [tenant for tenant in all_of.weights if all_of.waiting(tenant)]
            unit = min(all_of.weights[tenant] for tenant in waiting)
            level = {tenant: held.get(tenant, 0) * unit // all_of.weights[tenant] for tenant in waiting}
            busy.append(all_of.next())
            assert level[busy[-1]] == min(level.values())
            assert Counter(busy) == all_of.turns.held

    @given(st.integers(1, 6), st.integers(1, 40), st.randoms(use_true_random=False))
    def test_equals_come_to_hold_the_same_however_it_began(self, n: int, places: int, dice: object) -> None:
        """All places were one tenant's. When each has fallen free once nobody holds two more than another."""
        assert hasattr(dice, "shuffle")
        all_of = house(*[1] * n)
        for _ in range(places):
            all_of.turns.take("t0")
        order = list(range(places))
        dice.shuffle(order)
        for _ in order:
            all_of.fill()
            all_of.turns.give_back("t0")
            all_of.next()
        held = [all_of.turns.held.get(tenant, 0) for tenant in all_of.weights]
        assert max(held) - min(held) <= 1

    def test_long_answers_hold_no_more_than_short_ones(self) -> None:
        """Ten places; one tenant's answers never end. The other's share does not shrink with every turn."""
        both = house(1, 1)
        both.turns.take("t0")
        for _ in range(9):
            both.turns.take("t1")
        for _ in range(100):
            both.fill()
            both.turns.give_back("t1")
            both.next()
        assert both.turns.held == {"t0": 5, "t1": 5}

    @pytest.mark.parametrize("places", range(1, 13))
    @pytest.mark.parametrize("scale", [1, 100])
    def test_three_to_one_with_any_number_of_places(self, places: int, scale: int) -> None:
        both = house(3 * scale, scale)
        busy: deque[str] = deque()
        for _ in range(1_000 + places):
            both.fill()
            if len(busy) == places:
                both.turns.give_back(busy.popleft())
            busy.append(both.next())
        assert both.served.count("t0") / len(both.served) == pytest.approx(0.75, abs=0.015)

    def test_one_who_wants_less_than_its_share_leaves_the_rest_to_the_others(self) -> None:
        three = house(1, 1, 1)
        modest = three.weights.pop("t0")
        three.turns.take("t0")
        for _ in range(8):
            three.turns.take("t1")
        for _ in range(50):
            three.fill()
            three.turns.give_back(max(three.turns.held, key=three.turns.held.__getitem__))
            three.next()
        assert modest == 1
        assert three.turns.held == {"t0": 1, "t1": 4, "t2": 4}


class TestWaiters:
    @given(
        st.lists(st.tuples(st.sampled_from(["join", "leave", "next", "give"]), st.integers(0, 4), st.integers(0, 99)))
    )
    def test_against_a_plain_model(self, steps: list[tuple[str, int, int]]) -> None:
        """Nobody is lost or served twice, order within a tenant is kept, a place is given whenever somebody waits, and
        nothing remains of those who have left."""
        turns: Turns[Waiter] = Turns()
        lines: dict[str, list[Waiter]] = {}
        held: Counter[str] = Counter()
        for number, (step, who, which) in enumerate(steps):
            tenant = f"t{who}"
            line = lines.setdefault(tenant, [])
            if step == "join":
                assert turns.join(tenant, who + 1, (tenant, number))
                line.append((tenant, number))
            elif step == "leave" and line:
                turns.leave(tenant, line.pop(which % len(line)))
            elif step == "leave":
                turns.leave(tenant, (tenant, number))  # harmless
            elif step == "give" and held[tenant]:
                held[tenant] -= 1
                turns.give_back(tenant)
            elif step == "next":
                waiter = turns.next()
                if waiter is None:
                    assert not any(lines.values())
                else:
                    assert lines[waiter[0]].pop(0) == waiter
                    held[waiter[0]] += 1
            assert turns.waiting == sum(map(len, lines.values()))
            assert turns.held == +held
        assert sorted(turns.dismiss()) == sorted(waiter for line in lines.values() for waiter in line)
        for tenant in list(held.elements()):
            turns.give_back(tenant)
        assert turns.next() is None
        assert is_empty(turns)

    def test_one_that_floods_is_refused_while_others_may_wait(self) -> None:
        turns: Turns[Waiter] = Turns()
        for n in range(WAITING_PER_TENANT_MAX + 5):
            assert turns.join("flood", 1, ("flood", n)) is (n < WAITING_PER_TENANT_MAX)
        assert turns.join("other", 1, ("other", 0))

    @pytest.mark.parametrize("floods", [2, 3, 9])
    def test_several_that_flood_leave_room_as_well(self, floods: int) -> None:
        turns: Turns[Waiter] = Turns()
        for n in range(WAITING_MAX):
            for who in range(floods):
                turns.join(f"flood-{who}", 1, (f"flood-{who}", n))
        room = WAITING_MAX - turns.waiting
        assert room == pytest.approx(WAITING_MAX / (floods + 1), abs=floods)
        assert sum(turns.join("other", 1, ("other", n)) for n in range(room)) >= room // 2

    def test_all_together_are_bounded(self) -> None:
        turns: Turns[Waiter] = Turns()
        joined = sum(turns.join(f"t{n}", 1, (f"t{n}", n)) for n in range(2 * WAITING_MAX))
        assert joined == turns.waiting == WAITING_MAX

    def test_names_that_come_and_go_do_not_pile_up(self) -> None:
        crowd = house(1_000)
        crowd.join("t0", 20_000)
        for n in range(5_000):
            crowd.join(f"new-{n}")
            crowd.one()
            assert len(crowd.turns._owed) <= DEBTORS_MAX
        heaps = sum(len(peers._heap) for peers in crowd.turns._peers.values())
        assert heaps <= 2 * len(crowd.turns._lines) + 16 * len(crowd.turns._peers)
