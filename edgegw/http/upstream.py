"""The pool of connections to one provider: an idle one at once, or a new one, or a bounded wait for a place.

A *place* is the right to hold one connection; there are `connections_max`. Whoever asks owns a place from then on, with
or without a connection in it; a place that falls free goes straight to the waiter whose turn it is (limits/turns.py:
tenants share by weight), so nobody overtakes and `send()` never finds an idle connection while somebody waits.

What each tenant holds is counted for every request, crowded or not: 0.25 us. To count only when somebody begins to wait
would cost as much as there are connections, at the very moment when there is most to do.

Owns the waits for a place and for a connection, and the age of idle connections; how long a reply may take is the
caller's business. Knows no HTTP beyond what `Connection` does and no address beyond its `origin`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from edgegw.clock import Clock
from edgegw.errors import UpstreamFault
from edgegw.http.outbox import Outbox
from edgegw.http.proxies import Origin
from edgegw.http.upstream_connection import Connection, Sink, State
from edgegw.limits.turns import Turns

_NEW, _READY, _DIALLING, _IDLE = State.NEW, State.READY, State.DIALLING, State.IDLE

CLOSE_TIMEOUT_S = 2.0
"""For the sockets of a closed pool to be gone; they were aborted, so one turn of the loop does."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Defaults and their reasons are those of the settings (providers.*)."""

    connections_max: int = 1000
    pool_wait_s: float = 5.0
    keep_alive_s: float = 60.0  # below what providers keep: the one who closes first knows about it
    connect_s: float = 2.0
    tls_s: float = 5.0
    head_bytes_max: int = 64 * 1024
    informational_max: int = 10


Waiter = asyncio.Future[Connection | None]
"""Gets a place, and perhaps a connection in it."""


class Dials(Protocol):
    """What connects protocols: `dial.Dialer`, or a test's stand-in."""

    async def connect(self, origin: Origin, protocol: asyncio.Protocol, *, connect_s: float, tls_s: float) -> None: ...


class Pool:
    """Connections to `origin`. All methods run on the event loop that the connections live on. `weights` are what the
    tenants' shares of the places are measured by, when there are too few of them: 1 and more."""

    def __init__(
        self,
        origin: Origin,
        *,
        limits: PoolLimits,
        dialer: Dials,
        clock: Clock,
        outbox: Outbox | None = None,
        weights: Callable[[str], int] = lambda tenant: 1,
    ) -> None:
        self._outbox = outbox or Outbox()
        self._origin = origin
        self._limits = limits
        self._dialer = dialer
        self._clock = clock
        self._places = 0  # taken
        self._idle: dict[Connection, None] = {}  # a stack that can lose its middle; oldest first
        self._weights = weights
        self._turns: Turns[Waiter] = Turns(asyncio.Future.done)
        self._held = self._turns.held  # places by tenant
        self._open: set[Connection] = set()  # every connection that has or is about to get a socket
        self._sweeper: asyncio.TimerHandle | None = None
        self.dialled = 0  # connections begun so far
        self.waits = 0  # requests that had to wait for a place so far
        self._closed = False
        self._all_gone: asyncio.Event | None = None

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Places with a request in them, those still connecting included."""
        return self._places - len(self._idle)

    @property
    def waiting(self) -> int:
        return self._turns.waiting

    # Asking for a connection.

    def send(self, data: bytes, sink: Sink, tenant: str = "default") -> Connection | None:
        """Send a whole request on an idle connection, None when there is none (then `await open(...)`). The one used
        last comes first, so that the rest can grow old. `sink` hears of the reply, never before this returns."""
        idle = self._idle
        if idle:
            too_old_s = self._clock.now() - self._limits.keep_alive_s
            while idle:
                connection = idle.popitem()[0]
                if connection.idle_since_s > too_old_s and connection.usable:
                    connection.reused = True
                    connection.tenant = tenant
                    held = self._held  # as turns.take() does it, nobody waiting where there are idle ones
                    held[tenant] = held.get(tenant, 0) + 1
                    connection.start(data, sink)
                    return connection
                connection.retire()
        return None

    async def open(self, data: bytes, sink: Sink, tenant: str = "default") -> Connection:
        """Send a whole request on an idle or else a new connection, waiting for a place when all are taken.

        Raises UpstreamFault upstream_busy when no turn came within `pool_wait_s` (at once when too many wait),
        upstream_connect, upstream_tls or upstream_timeout when connecting failed; always `sent=False` and without
        telling the sink. Cancelling it leaves nothing behind.
        """
        connection = self.send(data, sink, tenant)
        if connection is not None:
            return connection
        if self._closed:
            raise _busy("The gateway is stopping.")
        if self._places < self._limits.connections_max:
            self._places += 1
            self._turns.take(tenant)
        else:
            connection = await self._wait(tenant)
        try:
            if connection is not None and connection.usable:
                connection.reused = True
            else:
                connection = self._new()
                await self._connect(connection)
                if not connection.usable:
                    raise UpstreamFault("upstream_connect", "The provider closed a new connection.", sent=False)
        except BaseException:
            self._give_back(tenant)
            raise
        connection.tenant = tenant
        connection.start(data, sink)
        return connection

    async def _wait(self, tenant: str) -> Connection | None:
        """A place, and perhaps a connection in it."""
        loop = asyncio.get_running_loop()
        self.waits += 1
        place: Waiter = loop.create_future()
        if not self._turns.join(tenant, self._weights(tenant), place):
            raise _busy("Too many requests wait for a connection to the provider.")
        timer = loop.call_later(self._limits.pool_wait_s, self._give_up, tenant, place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._return(tenant, place.result())  # it came too late for us, not for the next
            else:
                self._turns.leave(tenant, place)
            raise
        finally:
            timer.cancel()

    def _give_up(self, tenant: str, place: Waiter) -> None:
        if not place.done():
            self._turns.leave(tenant, place)
            place.set_exception(_busy("All connections to the provider are in use."))

    def _new(self) -> Connection:
        limits = self._limits
        connection = Connection(
            self, self._outbox, head_bytes_max=limits.head_bytes_max, informational_max=limits.informational_max
        )
        self._open.add(connection)
        self.dialled += 1
        return connection

    async def _connect(self, connection: Connection) -> None:
        """Give `connection` a socket, or raise UpstreamFault."""
        limits = self._limits
        try:
            await self._dialer.connect(self._origin, connection, connect_s=limits.connect_s, tls_s=limits.tls_s)
        except BaseException:
            self.gone(connection)
            raise

    # What connections tell.

    def keep(self, connection: Connection) -> None:
        self._pass_on(connection.tenant, connection)

    def forget(self, connection: Connection, state: State) -> None:
        if state == _IDLE:
            self._idle.pop(connection, None)  # send() has taken it out already
            self._places -= 1  # nobody's, and nobody waits
        elif state not in (_NEW, _READY):  # else whoever is about to use it still owns the place
            self._give_back(connection.tenant)

    def redial(self, connection: Connection) -> None:
        connection.dialling = asyncio.get_running_loop().create_task(self._redial(connection))

    async def _redial(self, connection: Connection) -> None:
        try:
            await self._connect(connection)
        except UpstreamFault as fault:
            fault.sent = True  # on the connection that was lost
            connection.refuse(fault)

    def gone(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._all_gone is not None and not self._open:
            self._all_gone.set()

    # Places.

    def _return(self, tenant: str, connection: Connection | None) -> None:
        if connection is not None and connection.usable:
            self._pass_on(tenant, connection)
        else:
            self._give_back(tenant)

    def _pass_on(self, tenant: str, connection: Connection) -> None:
        """The tenant's place with a connection without a request: to whose turn it is, else to the idle ones."""
        turns = self._turns
        turns.give_back(tenant)
        if turns.waiting:
            place = turns.next()
            if place is not None:
                connection.state = _READY
                place.set_result(connection)
                return
        connection.state = _IDLE
        connection.idle_since_s = self._clock.now()
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._limits.keep_alive_s, self._sweep)

    def _give_back(self, tenant: str) -> None:
        """The tenant's place without a connection: to whose turn it is, who then connects."""
        self._turns.give_back(tenant)
        place = self._turns.next()
        if place is not None:
            place.set_result(None)
        else:
            self._places -= 1

    # Time.

    def sweep(self) -> None:
        """Close the connections that have been idle for `keep_alive_s`."""
        too_old_s = self._clock.now() - self._limits.keep_alive_s
        old = []
        for connection in self._idle:
            if connection.idle_since_s > too_old_s:
                break
            old.append(connection)
        for connection in old:
            connection.retire()

    def _sweep(self) -> None:
        self.sweep()
        self._sweeper = None
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            wait_s = oldest.idle_since_s + self._limits.keep_alive_s - self._clock.now()
            self._sweeper = asyncio.get_running_loop().call_later(wait_s, self._sweep)

    async def close(self) -> None:
        """Close every connection; whoever waits gets upstream_busy, requests in work end with upstream_cut."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for place in self._turns.dismiss():
            if not place.done():
                place.set_exception(_busy("The gateway is stopping."))
        for connection in list(self._open):
            if connection.state in (_NEW, _DIALLING):
                self._open.discard(connection)  # has no socket yet and will not keep one
            connection.refuse(UpstreamFault("upstream_cut", "The gateway is stopping."))
        if self._open:
            self._all_gone = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._all_gone.wait()


def _busy(message: str) -> UpstreamFault:
    return UpstreamFault("upstream_busy", message, sent=False)
