"""Workers and an authority, attacked: messages of both directions are under way for as long as it pleases, workers die
at any moment, channels break, and the control process is killed and comes back, with what it remembers or without.

What holds to the unit is demanded to the unit: of days and slots, which do not refill, nothing is ever lost and nothing
admitted twice, as long as nobody has to decide alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import tried
from limits_rig import CELLS, DAY, PAR, Hand, T, Table

from edgegw.channel import Message, Ready
from edgegw.clock import ManualClock
from edgegw.errors import GatewayError
from edgegw.limits import accounts as accounts_module
from edgegw.limits.accounts import Accounts
from edgegw.limits.authority import MemoryAuthority, Remembered
from edgegw.limits.holdings import Holdings
from edgegw.limits.limiter import Limiter, Reservation
from edgegw.limits.words import GiveBack, Offer, Recall, Spent, Want


class Link:
    """One channel. What was said is under way until it is delivered; a broken one delivers nothing to the worker."""

    def __init__(self, tally: list[int]) -> None:
        self.up: list[Message] = []
        self.down: list[Offer] = []
        self.holdings = Holdings(tally)


class Member:
    """A worker. `running` are its reservations, `asking` the requests that wait."""

    def __init__(self, fleet: Fleet) -> None:
        self.tally = [0] * CELLS
        self.hand = Hand()
        self.accounts = Accounts(self.hand, fleet.clock, len(fleet.members) + 1, self.tally)
        self.limiter = Limiter(self.accounts, fleet.rules, fleet.clock)
        self.link = Link(self.tally)
        self.running: list[Reservation] = []
        self.used = 0  # by its requests that are over
        self.asking: list[tuple[int, asyncio.Task[Reservation]]] = []

    def hear(self) -> None:
        """What it says goes under way; who was answered runs, or was refused."""
        self.link.up += self.hand.take_sent()
        for tokens, task in list(self.asking):
            if task.done():
                self.asking.remove((tokens, task))
                error = task.exception()
                if error is None:
                    self.running.append(task.result())
                elif not isinstance(error, GatewayError):
                    raise error


class Fleet:
    def __init__(self, limits: Mapping[str, int], workers: int = 3) -> None:
        self.clock = ManualClock()
        self.started_s = self.clock.now()
        self.rules = Table(limits)
        self.authority = MemoryAuthority(self.rules.limit, self.clock)
        self.epoch = 1
        self.members: list[Member] = []
        self.broken: list[Link] = []  # the control process has not noticed yet
        self.used = 0  # by requests that are over
        self.undecided = 0  # of the day: what requests had taken that died while they waited for another limit
        self.saved: list[Remembered] = []
        for _ in range(workers):
            self.join()

    def join(self) -> None:
        member = Member(self)
        self.members.append(member)
        member.hand.say(Ready(self.epoch, 3))

    @property
    def admitted(self) -> int:
        return self.used + sum(run.tokens for member in self.members for run in member.running)

    @property
    def at_once(self) -> int:
        return sum(len(member.running) for member in self.members)

    @property
    def refill(self) -> float:
        """Of the tokens per minute, since the beginning."""
        return self.rules.limits["tpm"] * (self.clock.now() - self.started_s) / 60

    # -- messages --

    async def turn(self) -> None:
        """The loop turns often enough for everybody to see what was delivered."""
        for _ in range(3):
            await asyncio.sleep(0)
        for member in self.members:
            member.hear()

    async def up(self, link: Link, count: int) -> None:
        """The first `count` messages of a worker arrive."""
        arrived, link.up[:] = link.up[:count], link.up[count:]
        for message in arrived:
            if isinstance(message, Want):
                link.holdings.asked(message.meter, message.place)
                offer = await self.authority.lease(message.meter, message.amount, message.need)
                link.holdings.leased(offer.meter, offer.granted)
                link.down.append(offer)
            elif isinstance(message, GiveBack):
                link.holdings.leased(message.meter, -message.leased)
                self.authority.give_back(message.meter, message.amount)
            elif isinstance(message, Spent):
                self.authority.spent(message.meter, message.amount)
            elif isinstance(message, Recall):
                self.authority.recall(message.meter, message.level)

    async def down(self, member: Member, count: int) -> None:
        arrived, member.link.down[:] = member.link.down[:count], member.link.down[count:]
        for message in arrived:
            member.hand.say(message)
        await self.turn()

    async def pump(self) -> None:
        """Until nobody has anything to say."""
        await self.turn()
        while any(member.link.up or member.link.down for member in self.members):
            for member in self.members:
                await self.up(member.link, len(member.link.up))
                await self.down(member, len(member.link.down))

    # -- what happens --

    async def reserve(self, member: Member, tokens: int) -> None:
        allowance = member.limiter.allowance("t", None, "m")
        reservation = member.limiter.reserve_now(allowance, tokens)
        if reservation is not None:
            member.running.append(reservation)
        else:
            member.asking.append((tokens, asyncio.create_task(member.limiter.reserve(allowance, tokens))))
        await self.turn()

    def settle(self, member: Member, number: int, percent: int) -> None:
        if member.running:
            run = member.running.pop(number % len(member.running))
            used = run.tokens * percent // 100
            self.used += used
            member.used += used
            run.settle(used)

    async def leave(self, member: Member, number: int) -> None:
        """A client leaves while its request waits."""
        if member.asking:
            _, task = member.asking.pop(number % len(member.asking))
            if task.done() and task.exception() is None:
                member.running.append(task.result())
            else:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def check(self) -> None:
        self.clock.jump(0.1001)
        for member in self.members:
            member.accounts.check_leases()

    def lost(self, link: Link) -> None:
        for meter, amount in link.holdings.returned().items():
            self.authority.give_back(meter, amount)

    async def kill(self, member: Member, flushed: int) -> None:
        """kill -9: of what it had said only `flushed` messages were on their way. Another one takes its place."""
        self.members.remove(member)
        member.hear()
        await self.up(member.link, flushed)
        self.lost(member.link)
        reserved = sum(run.tokens for run in member.running)
        self.used += reserved
        day = member.accounts._leases.get(DAY)
        if day is not None and member.asking:
            self.undecided += day.in_use - reserved - member.used
        await bury(member)
        self.join()

    def cut(self, member: Member) -> None:
        """The channel breaks; the worker sees it at once, the control process when `notice` is called."""
        if member.hand.is_open:
            member.hear()
            self.broken.append(member.link)
            member.link = Link(member.tally)
            member.hand.breaks()

    async def notice(self, flushed: int) -> None:
        for link in self.broken:
            await self.up(link, flushed)
            self.lost(link)
        self.broken.clear()

    def back(self, member: Member) -> None:
        if not member.hand.is_open:
            member.hand.say(Ready(self.epoch, 3))

    def unspent(self) -> Counter[str]:
        unspent: Counter[str] = Counter()
        for member in self.members:
            unspent.update(member.link.holdings.unspent())
        return unspent

    def restart(self, *, remembering: bool, complete: bool = False) -> None:
        """The control process is killed and back at once. `complete`: it had saved what it knew as it left."""
        self.epoch += 1
        before = self.authority
        self.authority = MemoryAuthority(self.rules.limit, self.clock)
        if complete:
            self.saved = before.remember(self.unspent())
        if remembering:
            self.authority.restore(self.saved, complete=complete)
        self.broken.clear()
        for member in self.members:
            self.cut(member)
        self.broken.clear()
        for member in self.members:
            self.back(member)

    async def rest(self) -> None:
        """All requests end, everything arrives, and every lease goes back."""
        await self.notice(1000)
        for member in self.members:
            self.back(member)
        await self.pump()
        for member in self.members:
            while member.running:
                self.settle(member, 0, 100)
        for _ in range(30):
            await self.pump()
            self.check()
        await self.pump()

    async def close(self) -> None:
        for member in self.members:
            await bury(member)


async def bury(member: Member) -> None:
    """For its timers' sake: nothing it says arrives."""
    member.hand.is_open = False
    for _, task in member.asking:
        task.cancel()
    await asyncio.gather(*(task for _, task in member.asking), return_exceptions=True)
    member.limiter.close()


@contextmanager
def patience() -> Iterator[None]:
    """Nobody takes the authority for absent, however long a message is under way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts_module, "ANSWER_WITHIN_S", 1e6)
        yield


LIMITS = {"tpm": 60_000, "rpm": 600, "par": 4, "day": 20_000}
AMOUNT = st.integers(1, 100)  # percent, or how many messages
MEMBER = st.integers(0, 2)
CALM = [*["reserve"] * 4, *["settle"] * 3, "check", "up", "up", "down", "down", "pump", "pump", "pump"]


def steps(*more: str, least: int = 0) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    return st.lists(st.tuples(st.sampled_from([*CALM, *more]), MEMBER, AMOUNT), min_size=least, max_size=150)


async def act(fleet: Fleet, action: str, number: int, amount: int, largest: int) -> None:
    member = fleet.members[number]
    if action == "reserve":
        await fleet.reserve(member, max(1, largest * amount // 100))
    elif action == "settle":
        fleet.settle(member, amount, amount)
    elif action == "leave":
        await fleet.leave(member, amount)
    elif action == "check":
        fleet.check()
    elif action == "pause":
        fleet.clock.jump(amount / 10)
    elif action == "pump":
        await fleet.pump()
    elif action == "up":
        await fleet.up(member.link, amount % 5)
    elif action == "down":
        await fleet.down(member, amount % 5)
    elif action == "kill":
        await fleet.kill(member, amount % 5)
    elif action == "save":
        fleet.saved = fleet.authority.remember(fleet.unspent())
    elif action == "cut":
        fleet.cut(member)
    elif action == "notice":
        await fleet.notice(amount % 5)
    elif action == "back":
        fleet.back(member)
    await fleet.turn()


@given(steps("leave", "pause", "kill"))
@tried(1.5)
async def test_through_deaths_at_any_moment_nothing_is_lost_and_nothing_admitted_twice(
    script: list[tuple[str, int, int]],
) -> None:
    fleet = Fleet(LIMITS)
    with patience():
        for action, number, amount in script:
            await act(fleet, action, number, amount, 6000)
            assert fleet.admitted <= LIMITS["day"]
            assert fleet.admitted <= LIMITS["tpm"] + fleet.refill + 1
            assert fleet.at_once <= LIMITS["par"]
        await fleet.rest()
        assert not any(member.limiter.degraded for member in fleet.members)
        assert fleet.authority.level(DAY) == LIMITS["day"] - fleet.used - fleet.undecided
        assert fleet.authority.level(PAR) == LIMITS["par"], "all come back"
        await fleet.close()


@given(st.sampled_from([60, 5_000, 1_000_000]), steps("leave", "pause", "kill"))
@tried(0.6)
async def test_tokens_per_minute_stay_within_the_limit_and_its_refill(
    limit: int, script: list[tuple[str, int, int]]
) -> None:
    fleet = Fleet({"tpm": limit})
    with patience():
        for action, number, amount in script:
            await act(fleet, action, number, amount, max(1, limit // 5))
            assert fleet.admitted <= limit + fleet.refill + 1
        await fleet.rest()
        assert fleet.authority.level(T) >= limit - fleet.used - 1
        await fleet.close()


@pytest.mark.parametrize("memory", ["none", "of a moment ago", "saved as it left"])
@given(script=steps("kill", "save", "restart", "restart", least=20))
@tried(0.4)
async def test_a_restart_forgets_nothing_that_was_used(memory: str, script: list[tuple[str, int, int]]) -> None:
    """Everything arrives at once here, so that what the workers remember is all there is to know. What a worker used
    that is gone only the memory knows, and only when it is young."""
    fleet = Fleet(LIMITS)
    with patience():
        for action, number, amount in script:
            if action == "restart":
                fleet.restart(remembering=memory != "none", complete=memory == "saved as it left")
            elif action != "kill" or memory == "saved as it left":
                await act(fleet, action, number, amount, 6000)
            await fleet.pump()
            assert fleet.admitted <= LIMITS["day"]
            assert fleet.admitted <= LIMITS["tpm"] + fleet.refill + 1
        await fleet.rest()
        left = LIMITS["day"] - fleet.used - fleet.undecided
        assert fleet.authority.level(DAY) <= left
        assert fleet.authority.level(DAY) == left or memory != "saved as it left", "a reload loses nothing"
        assert fleet.authority.level(PAR) == LIMITS["par"]
        await fleet.close()


@given(steps("leave", "pause", "kill", "cut", "notice", "back", "back", "restart"))
@tried(1.5)
async def test_through_broken_channels_what_is_admitted_alone_is_bounded_and_every_slot_comes_back(
    script: list[tuple[str, int, int]],
) -> None:
    fleet = Fleet(LIMITS)
    share, absences = 1 / 3, 0
    for action, number, amount in script:
        absences += action in ("cut", "check")  # a check finds that an answer takes too long
        if action == "restart":
            absences += 3
            fleet.restart(remembering=False)
        else:
            await act(fleet, action, number, amount, 6000)
        alone = absences * (share * LIMITS["day"] + 6000) * 3
        assert fleet.admitted <= LIMITS["day"] + alone
    await fleet.rest()
    assert not any(member.limiter.degraded for member in fleet.members)
    assert fleet.authority.level(PAR) == LIMITS["par"], "all come back"
    await fleet.close()
