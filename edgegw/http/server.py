"""The listening side: sockets, and what all client connections of a worker share.

It knows nothing of routes, tenants or providers: `handler(request, reply)` does the rest and must end with
`reply.send`, `reply.end` or `reply.fail`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from edgegw.http.client_connection import ClientConnection, Handler, Waits
from edgegw.http.outbox import Outbox
from edgegw.http.request import Request, RequestLimits
from edgegw.http.watch import Watch


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
        self.connections: set[ClientConnection] = set()
        self.in_work = 0
        self.draining = False
        self._listener: asyncio.AbstractServer | None = None

    async def listen(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._listener = await self.loop.create_server(lambda: ClientConnection(self), sock=sock, backlog=4096)

    def drain(self) -> None:
        """Stops accepting and closes what is idle; requests in work end with `connection: close`."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in tuple(self.connections):
            connection.close_if_idle()

    def cancel_work(self) -> None:
        """Cancels the handlers that are still at work; each may still write the end of its reply."""
        for connection in tuple(self.connections):
            connection.cancel_work()

    def abort(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()
