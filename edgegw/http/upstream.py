"""The pool of connections to one provider: an idle one at once, or a new one, or a bounded wait for a place.

A *place* is the right to hold one connection; there are `connections_max`. Whoever asks owns a place from then on, with
or without a connection in it; a place that falls free goes straight to whoever waited longest, so nobody overtakes and
`send()` never finds an idle connection while somebody waits.

Owns the waits for a place and for a connection, and the age of idle connections; how long a reply may take is the
caller's business. Knows no HTTP beyond what `Connection` does and no address beyond its `origin`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from edgegw.clock import Clock
from edgegw.errors import UpstreamFault
from edgegw.http.dial import Origin
from edgegw.http.outbox import Outbox
from edgegw.http.upstream_connection import Connection, Sink, State

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


class Dials(Protocol):
    """What connects protocols: `dial.Dialer`, or a test's stand-in."""

    async def connect(self, origin: Origin, protocol: asyncio.Protocol, *, connect_s: float, tls_s: float) -> None: ...


class Pool:
    """Connections to `origin`. All methods run on the event loop that the connections live on."""

    def __init__(
        self, origin: Origin, *, limits: PoolLimits, dialer: Dials, clock: Clock, outbox: Outbox | None = None
    ) -> None:
        self._outbox = outbox or Outbox()
        self._origin = origin
        self._limits = limits
        self._dialer = dialer
        self._clock = clock
        self._places = 0  # taken
        self._idle: dict[Connection, None] = {}  # a stack that can lose its middle; oldest first
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._open: set[Connection] = set()  # every connection that has or is about to get a socket
        self._sweeper: asyncio.TimerHandle | None = None
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
        return len(self._waiting)

    # Asking for a connection.

    def send(self, data: bytes, sink: Sink) -> Connection | None:
        """Send a whole request on an idle connection, None when there is none (then `await open(...)`). The one used
        last comes first, so that the rest can grow old. `sink` hears of the reply, never before this returns."""
        idle = self._idle
        if idle:
            too_old_s = self._clock.now() - self._limits.keep_alive_s
            while idle:
                connection = idle.popitem()[0]
                if connection.idle_since_s > too_old_s and connection.usable:
                    connection.reused = True
                    connection.start(data, sink)
                    return connection
                connection.retire()
        return None

    async def open(self, data: bytes, sink: Sink) -> Connection:
        """Send a whole request on an idle or else a new connection, waiting for a place when all are taken.

        Raises UpstreamFault upstream_busy when no place fell free within `pool_wait_s`, upstream_connect, upstream_tls
        or upstream_timeout when connecting failed; always `sent=False` and without telling the sink. Cancelling it
        leaves nothing behind.
        """
        connection = self.send(data, sink)
        if connection is not None:
            return connection
        if self._closed:
            raise _busy("The gateway is stopping.")
        if self._places < self._limits.connections_max:
            self._places += 1
        else:
            connection = await self._wait()
        try:
            if connection is not None and connection.usable:
                connection.reused = True
            else:
                connection = self._new()
                await self._connect(connection)
                if not connection.usable:
                    raise UpstreamFault("upstream_connect", "The provider closed a new connection.", sent=False)
        except BaseException:
            self._vacate()
            raise
        connection.start(data, sink)
        return connection

    async def _wait(self) -> Connection | None:
        """A place, and perhaps a connection in it."""
        loop = asyncio.get_running_loop()
        place: asyncio.Future[Connection | None] = loop.create_future()
        timer = loop.call_later(self._limits.pool_wait_s, self._give_up, place)
        self._waiting.append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._return(place.result())  # it came too late for us, not for the next
            elif place in self._waiting:
                self._waiting.remove(place)
            raise
        finally:
            timer.cancel()

    def _give_up(self, place: asyncio.Future[Connection | None]) -> None:
        if not place.done():
            self._waiting.remove(place)
            place.set_exception(_busy("All connections to the provider are in use."))

    def _new(self) -> Connection:
        limits = self._limits
        connection = Connection(
            self, self._outbox, head_bytes_max=limits.head_bytes_max, informational_max=limits.informational_max
        )
        self._open.add(connection)
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
        """A connection without a request: to whoever waited longest, else to the idle ones."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                connection.state = _READY
                place.set_result(connection)
                return
        connection.state = _IDLE
        connection.idle_since_s = self._clock.now()
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._limits.keep_alive_s, self._sweep)

    def forget(self, connection: Connection, state: State) -> None:
        self._idle.pop(connection, None)
        if state not in (_NEW, _READY):  # else whoever is about to use it still owns the place
            self._vacate()

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

    def _return(self, connection: Connection | None) -> None:
        if connection is not None and connection.usable:
            self.keep(connection)
        else:
            self._vacate()

    def _vacate(self) -> None:
        """A place without a connection: to whoever waited longest, who then connects."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
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
        while self._waiting:
            place = self._waiting.popleft()
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
