"""One Redis server as a place where limits are counted: it gathers what is to be asked, and knows whether it is there.

It is *away* from the first call on that is not answered within 45 ms, that is refused, or whose connection ends; then
everybody who waits is told at once to decide alone, and nobody waits again. It is back when the real script, with all
it writes, was answered in time: that is tried four times a second, on a connection that is made anew.

Knows no meter and no limit. All orders (tab.py) of one turn of the loop leave in one call; what can wait waits 20 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from edgegw.clock import Clock
from edgegw.limits.redis.connection import Connection, Lost, RedisError, Refused
from edgegw.limits.redis.script import Operation, Script, Tally, answers, refusal
from edgegw.limits.redis.tab import Order, Tab

ANSWER_WITHIN_S = 0.045  # of the 50 ms that a worker waits, the rest is the channel's
LOOK_AGAIN_S = 0.002  # of those: when our own loop was late, the answer lies there already, and is read before
GATHER_S = 0.02  # what nobody waits for may wait so long for others to share its call: at most 50 such calls a second
OPERATIONS_MAX = 256  # in one call: under a millisecond of the server, which does nothing else meanwhile
PROBE_EVERY_S = 0.25  # so that we are back well within 2 s of its return
STEADY_S = 10.0  # one that goes away so soon after it came back is not tried again at once,
UNSTEADY_WAIT_S = 1.0  # but after this: it comes and goes once a second at the worst
CONNECT_WITHIN_S = 1.0  # with names, TLS and login; also how long a probe may be unanswered before it is dialled anew
LINGER_S = 60.0  # how long an abandoned connection may still bring late answers, which say what has to go back
ABANDONED_MAX = 4  # such connections: one per absence, and each ends with its last answer

# Refusals after which another server may be the right one: what led to this one is asked again.
_ELSEWHERE = {"readonly", "masterdown", "noauth", "wrongpass", "noperm"}
_REDIRECTS = {"moved", "ask", "tryagain"}


@dataclass(frozen=True, slots=True)
class House:
    """What all servers of an authority share. `settle` gives what is to be told of a tab; `away` and `here` are called
    with a server whose state has changed; `redirected` takes over a call that another node should have got, and says
    whether it did; `apart` divides orders into those that may share a call."""

    script: Script
    replica: bytes
    clock: Clock
    tally: Tally
    settle: Callable[[Tab], list[Order]]
    away: Callable[[Server, str], None]
    here: Callable[[Server], None]
    redirected: Callable[[Server, Call, str, str], bool]
    apart: Callable[[list[Order]], list[list[Order]]]


@dataclass(slots=True, eq=False)
class Call:
    """Some orders in one command."""

    orders: list[Order]
    sent_s: float
    in_full: bool = False  # with the script's text
    asking: bool = False  # a cluster's node is to answer although the slot is only on its way there
    overdue: bool = False
    alarm: asyncio.TimerHandle | None = None

    def over(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None


class Server:
    """`connect` gives a connection to it that is logged in; `probe` operations that write, on keys of its own."""

    def __init__(
        self,
        name: str,
        house: House,
        connect: Callable[[], Awaitable[Connection]],
        probe: Callable[[], list[Operation]],
    ) -> None:
        self.name = name
        self.here = False
        self.away_since_s = house.clock.now()
        self.reason = "not connected yet"
        self._house = house
        self._connect = connect
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._abandoned: set[Connection] = set()
        self._calls: set[Call] = set()  # not answered, on the connection
        self._tabs: dict[Tab, None] = {}
        self._orders: list[Order] = []
        self._gathering: asyncio.Handle | None = None  # until the next flush
        self._at_once = False  # that flush comes in this turn of the loop
        self._returning: asyncio.Task[None] | None = None
        self._steady_s = 0.0  # from then on

    def start(self) -> None:
        """Begins to look for it."""
        steady = self._house.clock.now() >= self._steady_s
        self._returning = self._loop.create_task(self._return(0.0 if steady else UNSTEADY_WAIT_S))

    async def close(self) -> None:
        """Tells what is to be told, waits for the answers for as long as a call may take, and hangs up."""
        self._flush()
        if self._connection is not None and self._calls:
            with contextlib.suppress(TimeoutError, RedisError):
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    await self._connection.ask("PING")  # answered after all that was sent before
        self.here = False
        if self._returning is not None:
            self._returning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._returning
        for connection in (self._connection, *self._abandoned):
            if connection is not None:
                connection.lost = self._hung_up
                connection.abort()

    def leave(self, reason: str) -> None:
        """It is not the right one any more: what led to it is asked again, at once."""
        self._steady_s = 0.0
        self._go_away("switched", reason)

    # -- what is to be asked --

    def ask(self, order: Order, at_once: bool) -> None:
        """Adds an order; for `at_once` somebody waits."""
        self._orders.append(order)
        self._gather(at_once)

    def tell(self, tab: Tab) -> None:
        """What is on the tab is to be told, soon."""
        self._tabs[tab] = None
        self._gather(False)

    def repeat(self, call: Call) -> None:
        """Sends a call, which may have been to another node before: it has no more time for that."""
        if self.here:
            self._send(call)
        else:
            _refuse(call.orders)

    def _gather(self, at_once: bool) -> None:
        if at_once and not self._at_once:
            if self._gathering is not None:
                self._gathering.cancel()
            self._at_once = True
            self._gathering = self._loop.call_soon(self._flush)
        elif self._gathering is None:
            self._gathering = self._loop.call_later(GATHER_S, self._flush)

    def _flush(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
        self._gathering, self._at_once = None, False
        tabs, self._tabs = self._tabs, {}
        orders, self._orders = self._orders, []
        if not self.here:
            _refuse(orders)  # what is on a tab stays there
            return
        settle = self._house.settle
        orders = [order for tab in tabs for order in settle(tab)] + orders
        for order in orders:
            order.leaves()
        self._send_all(orders)

    def _send_all(self, orders: list[Order]) -> None:
        for together in self._house.apart(orders):
            for first in range(0, len(together), OPERATIONS_MAX):
                self.repeat(Call(together[first : first + OPERATIONS_MAX], self._house.clock.now()))

    def _send(self, call: Call) -> None:
        connection, house = self._connection, self._house
        assert connection is not None
        write = house.script.in_full if call.in_full else house.script.by_name
        if call.alarm is None:
            left_s = call.sent_s + ANSWER_WITHIN_S - LOOK_AGAIN_S - house.clock.now()
            call.alarm = self._loop.call_later(max(0.0, left_s), self._late, call)
        self._calls.add(call)
        house.tally.calls += 1
        house.tally.operations += len(call.orders)
        if call.asking:
            connection.send(("ASKING",), _heedless)
        connection.send(write(house.replica, call.orders), partial(self._replied, connection, call))

    # -- what comes back --

    def _replied(self, connection: Connection, call: Call, reply: object) -> None:
        self._calls.discard(call)
        if connection is not self._connection and not connection.unanswered:
            self._loop.call_soon(connection.abort)  # was abandoned, and has brought what there was
        if isinstance(reply, Refused):
            self._refused(call, str(reply))
            return
        call.over()
        self._house.tally.answered_s += self._house.clock.now() - call.sent_s
        try:
            for order, answer in zip(call.orders, answers(reply, len(call.orders)), strict=True):
                order.answered(answer)
        except ValueError as error:
            broken = isinstance(reply, Lost)
            self._fail(call, "connection" if broken else "other", str(reply if broken else error))
            for order in call.orders:
                order.lost()
        self._tell_again(call)

    def _refused(self, call: Call, message: str) -> None:
        kind = refusal(message)
        again = self.here and not call.overdue
        if again and kind == "noscript" and not call.in_full:
            self._house.tally.failed(kind)
            call.in_full = True
            self._send(call)
        elif again and kind in _REDIRECTS and self._house.redirected(self, call, kind, message):
            self._house.tally.failed(kind)
        else:
            call.over()
            self._fail(call, kind, message)
            _refuse(call.orders)
            self._tell_again(call)

    def _fail(self, call: Call, kind: str, reason: str) -> None:
        """A call that is overdue says nothing of the server as it is now."""
        if not call.overdue:
            self._go_away(kind, reason)

    def _tell_again(self, call: Call) -> None:
        """What stands on a tab because of how the call went. (While we are away it just stays there.)"""
        for order in call.orders:
            if order.tab is not None and order.tab.owes:
                self.tell(order.tab)

    def _late(self, call: Call) -> None:
        """Time is up. But timers come before answers when the loop was held up: one look at those first."""
        call.alarm = self._loop.call_later(LOOK_AGAIN_S, self._go_away, "timeout", "no answer within 45 ms")

    # -- away and back --

    def _go_away(self, kind: str, reason: str) -> None:
        if not self.here:
            return
        house = self._house
        self.here = False
        self.away_since_s = house.clock.now()
        self.reason = reason
        house.tally.failed(kind)
        house.tally.absences += 1
        self._abandon()
        house.away(self, reason)
        calls, self._calls = self._calls, set()
        for call in calls:
            call.over()
            call.overdue = True
            for order in call.orders:
                order.overdue()
        self._flush()
        self.start()

    def _abandon(self) -> None:
        """The connection may still bring late answers. Nothing new is sent on it."""
        connection, self._connection = self._connection, None
        if connection is not None and connection.open:
            connection.lost = self._hung_up
            if connection.unanswered and len(self._abandoned) < ABANDONED_MAX:
                self._abandoned.add(connection)
                self._loop.call_later(LINGER_S, connection.abort)
            else:
                self._loop.call_soon(connection.abort)

    def _hung_up(self, connection: Connection) -> None:
        self._abandoned.discard(connection)

    def _lost(self, connection: Connection) -> None:
        if connection is self._connection:
            self._go_away("connection", "the connection was closed")

    async def _return(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        while not self.here:
            connection: Connection | None = None
            try:
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    connection = await self._connect()
                if await self._try(connection) and connection.open:
                    self._come_back(connection)
                    return
            except TimeoutError:
                self.reason = "no answer within 1 s"
            except (OSError, RedisError) as error:
                self.reason = str(error) or type(error).__name__
            finally:
                if connection is not None and not self.here:
                    connection.abort()
            await asyncio.sleep(PROBE_EVERY_S)

    async def _try(self, connection: Connection) -> bool:
        """Until it answers in time, as long as it is worth trying on this connection."""
        house, probe = self._house, self._probe()
        while connection.open:
            sent_s = house.clock.now()
            try:
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    try:
                        await connection.ask(*house.script.by_name(house.replica, probe))
                    except Refused as error:
                        if refusal(str(error)) != "noscript":
                            raise
                        await connection.ask(*house.script.in_full(house.replica, probe))
            except Refused as error:
                self.reason = str(error)
                if refusal(str(error)) in _ELSEWHERE | _REDIRECTS:
                    return False
            else:
                if house.clock.now() - sent_s <= ANSWER_WITHIN_S:
                    return True
                self.reason = "slow"
            await asyncio.sleep(PROBE_EVERY_S)
        raise Lost("the connection was closed")

    def _come_back(self, connection: Connection) -> None:
        self._connection = connection
        self._returning = None
        self._steady_s = self._house.clock.now() + STEADY_S
        self.here = True
        connection.lost = self._lost
        self._house.here(self)


def _refuse(orders: list[Order]) -> None:
    for order in orders:
        order.refused()


def _heedless(_: object) -> None:
    """The answer to ASKING is always OK."""
