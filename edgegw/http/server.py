"""The listening side: sockets, and what all client connections of a worker share.

It knows nothing of routes, tenants or providers: `handler(request, reply)` does the rest and must end with
`reply.send`, `reply.end` or `reply.fail`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from edgegw.http.client_connection import ClientConnection, Handler, Waits
from edgegw.http.date import Date
from edgegw.http.knocks import hear
from edgegw.http.outbox import Outbox
from edgegw.http.request import Request, RequestLimits
from edgegw.http.watch import Watch

# For handshakes that are under way, and for the loop to let in who waits.
QUEUE_S = 0.05
# Whoever is let in last has this long to say what they want, before connections without a request are closed.
LATECOMERS_S = 1.0
LATECOMERS_POLL_S = 0.01
# How often a server that drains looks whether all have gone.
GONE_POLL_S = 0.01


class Server:
    """What all connections of a worker share. `handler` never raises."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        watch: Watch,
        handler: Handler,
        gate: Callable[[Request], None],
        *,
        limits: RequestLimits,
        waits: Waits,
        requests_per_connection_max: int = 10_000,
        date: Date,
        outbox: Outbox | None = None,
    ) -> None:
        self.loop = loop
        self.watch = watch
        self.handler = handler
        self.gate = gate
        self.limits = limits
        self.waits = waits
        self.requests_per_connection_max = requests_per_connection_max
        self.outbox = outbox or Outbox()
        self.date = date
        watch.add(date)
        self.connections: set[ClientConnection] = set()
        self.in_work = 0
        self.draining = False
        self._listener: asyncio.AbstractServer | None = None
        self._door: socket.socket | None = None

    async def listen(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._door = sock
        self._listener = await self.loop.create_server(lambda: ClientConnection(self), sock=sock, backlog=4096)

    async def shut_the_door(self) -> None:
        """Stops accepting, and loses nobody over it: to close a listening socket resets who waits in its queue, and to
        close a connection resets who has just sent a request over it. (That nobody new gets into the queue meanwhile
        is for the owner of the socket to see to.)"""
        self.draining = True
        for connection in self.connections:
            if connection.is_new:
                hear(connection.transport.get_extra_info("socket"))
        await asyncio.sleep(QUEUE_S)
        for caller in self._stop_listening():
            with suppress(OSError):  # gone already
                await self.loop.connect_accepted_socket(lambda: ClientConnection(self), caller)
        by_s = self.loop.time() + LATECOMERS_S
        while self.loop.time() < by_s and any(connection.is_new for connection in self.connections):  # noqa: ASYNC110
            await asyncio.sleep(LATECOMERS_POLL_S)

    def drain(self) -> None:
        """Stops accepting and closes what is idle. Whoever is left asks, is answered with `connection: close`, and
        takes the answer."""
        self.draining = True
        for caller in self._stop_listening():
            caller.close()
        for connection in tuple(self.connections):
            connection.close_if_idle()

    async def wait_gone(self, within_s: float) -> None:
        """After `drain`: until the last client has all of its answer and is gone, or the time is over. Who is sending a
        request is waited for, and who reads slowly; nothing is in work for either of them."""
        by_s = self.loop.time() + within_s
        while self.connections and self.loop.time() < by_s:  # noqa: ASYNC110 (an event would cost every connection)
            await asyncio.sleep(GONE_POLL_S)

    def _stop_listening(self) -> list[socket.socket]:
        """The connections that were waiting at the door when it was closed."""
        waiting: list[socket.socket] = []
        if self._listener is not None and self._door is not None:
            with suppress(OSError):  # that nobody waits (any more)
                while True:
                    waiting.append(self._door.accept()[0])
            self._listener.close()
            self._listener = self._door = None
        return waiting

    def cancel_work(self) -> None:
        """Cancels the handlers that are still at work; each may still write the end of its reply."""
        for connection in tuple(self.connections):
            connection.cancel_work()

    def abort(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()
