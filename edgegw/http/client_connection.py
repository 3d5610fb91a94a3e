"""One client connection: the asyncio.Protocol around http/connection.py.

It serves the requests of a connection one after the other (pipelined ones wait), enforces every wait, tells a handler
when its client has gone or reads too slowly, and closes without a reset when it refuses a message that is still being
sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, cast

from edgegw.errand import Errand
from edgegw.http.connection import RequestReader
from edgegw.http.date import Date
from edgegw.http.knocks import hear
from edgegw.http.linger import Lingering
from edgegw.http.outbox import Outbox
from edgegw.http.probe import abort_if_gone
from edgegw.http.reply import CONTINUE, Reply
from edgegw.http.request import Request, RequestLimits
from edgegw.http.uptake import LOOKS, Uptake
from edgegw.http.watch import NEVER, Watch

# A client's buffer: above `high` the upstream is paused, below `low` it goes on (research: Envoy 32 KiB, pingora 64).
WRITE_HIGH_BYTES = 64 * 1024
WRITE_LOW_BYTES = 16 * 1024
# A body may stall for `body_timeout_s`, and over all must come with at least this rate after that grace.
BODY_BYTES_PER_S_MIN = 1024


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds. The reasons are in docs/settings.md."""

    head_s: float = 10.0
    body_s: float = 30.0
    keep_alive_s: float = 75.0
    stall_s: float = 60.0


Handler = Callable[[Request, Reply], Coroutine[Any, Any, None]]


class Site(Protocol):
    """What connections share: the server they came in by."""

    loop: asyncio.AbstractEventLoop
    watch: Watch
    handler: Handler
    gate: Callable[[Request], None]
    limits: RequestLimits
    waits: Waits
    outbox: Outbox
    date: Date
    requests_per_connection_max: int
    connections: set[ClientConnection]
    in_work: int
    draining: bool


class ClientConnection(asyncio.Protocol):
    """One client connection. A waiter of the Watch: `expires_s` is the end of whatever it waits for."""

    __slots__ = (
        "_body_since_s",
        "_eof",
        "_errand",
        "_lingering",
        "_paused_reading",
        "_reader",
        "_reply",
        "_requests",
        "_server",
        "_serving",
        "_uptake",
        "date",
        "expires_s",
        "outbox",
        "transport",
        "write_paused",
    )

    def __init__(self, server: Site) -> None:
        self._server = server
        self._reader = RequestReader(server.limits, server.gate)
        self._reply: Reply | None = None
        self._errand: Errand | None = None
        self._serving = False
        self._requests = 0
        self._body_since_s = 0.0
        self._lingering: Lingering | None = None
        self._uptake: Uptake | None = None
        self._eof = False
        self._paused_reading = False
        self.write_paused = False
        self.outbox = server.outbox
        self.date = server.date
        self.expires_s = NEVER
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        server = self._server
        server.connections.add(self)
        server.watch.add(self)
        if server.draining:
            hear(transport.get_extra_info("socket"))
        # A connection that says nothing is as idle as one between two requests.
        self.expires_s = server.watch.now_s + server.waits.keep_alive_s

    def data_received(self, data: bytes) -> None:
        lingering = self._lingering
        if lingering is not None:
            self._throw_away(lingering, len(data))
            return
        reader = self._reader
        reader.feed(data)
        if self._reply is None:
            self._serve()
        if reader.held and not self._paused_reading:
            self._paused_reading = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        self._reader.eof()
        reply = self._reply
        if reply is None:
            if self._lingering is not None:  # it has seen our end, and this is its own
                return False
            self._serve()
            return self._is_owing or self._lingering is not None
        if not reply.request.http_1_0 and reply.probe():
            abort_if_gone(self.transport, self._server.loop, lambda: self._reply is reply)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        server = self._server
        server.connections.discard(self)
        server.watch.discard(self)
        if self._reply is not None:
            self._reply.lost()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._wait_for_client()
        reply = self._reply
        if reply is not None and reply.on_pause is not None:
            reply.on_pause()

    def resume_writing(self) -> None:
        self.write_paused = False
        reply = self._reply
        if reply is None:
            if self._lingering is None:
                self._serve()
            return
        self.expires_s = NEVER
        if reply.on_resume is not None:
            reply.on_resume()

    # -- requests, one after the other --

    def _serve(self) -> None:
        """Hands out what is ready, one request after the other, then waits for more. A handler may be done before it
        returns: so a loop, and no call of itself from within `finished`. Who sends more than fits into one turn of the
        loop waits for the next; who does not take the answers gets no more of them."""
        if self._serving:
            return
        reader = self._reader
        self._serving = True
        try:
            while self._reply is None and reader.ready and not self.write_paused:
                self._hand_out(reader.ready.pop(0))
        finally:
            self._serving = False
        if self._reply is None and self._lingering is None and not (self.write_paused and self._is_owing):
            if reader.held:
                self._server.loop.call_soon(self._go_on)
            elif reader.dead or self._eof:
                self.outbox.flush()
                self.transport.close()
            elif reader.at_rest:
                self._rest()
            else:
                self._wait_for_rest()

    @property
    def _is_owing(self) -> bool:
        """A request has come and was not answered."""
        return self._reply is not None or bool(self._reader.ready or self._reader.held)

    def _go_on(self) -> None:
        reader = self._reader
        if not (self._reply or reader.ready or self.write_paused or self.transport.is_closing()):
            reader.go_on()
            if not reader.held:
                self._resume_reading()
            self._serve()

    def _resume_reading(self) -> None:
        if self._paused_reading:
            self._paused_reading = False
            self.transport.resume_reading()

    def _rest(self) -> None:
        """Between two requests: the wait of an idle connection, unless the last reply is still on its way."""
        if not self.write_paused:
            self.expires_s = self._server.watch.now_s + self._server.waits.keep_alive_s
        self._body_since_s = 0.0

    def _hand_out(self, request: Request) -> None:
        server = self._server
        self._requests += 1
        if self._requests >= server.requests_per_connection_max or server.draining:
            request.keep_alive = False
        self.expires_s = NEVER
        self._reply = reply = Reply(self, request)
        server.in_work += 1
        self._errand = errand = Errand(server.handler(request, reply), server.loop, reply)
        errand.step()

    def finished(self, reply: Reply, keep_alive: bool) -> None:
        """A reply was written to its end."""
        if self._reply is not reply:
            return
        self._reply = self._errand = None
        server = self._server
        server.in_work -= 1
        if self.transport.is_closing():
            return
        if not keep_alive or server.draining:
            self._reader.stop()
            self._close()
            return
        reader = self._reader
        if self._eof or not reader.at_rest or reader.ready:
            self._serve()
        else:  # nearly always: nothing has come meanwhile
            self._rest()

    def break_off(self, reply: Reply) -> None:
        """Whoever wrote this reply failed."""
        if self._reply is reply:
            self.transport.abort()

    def abandon(self) -> None:
        """The client is gone: whoever works for it is told by `on_gone`, or cancelled where nobody listens."""
        reply, errand = self._reply, self._errand
        self._reply = self._errand = None
        self._server.in_work -= 1
        if errand is not None and (reply is None or reply.on_gone is None):
            errand.cancel()

    def _wait_for_rest(self) -> None:
        """Sets the wait that the reader's state asks for. An absolute one for the head, a sliding one for the body."""
        reader, server = self._reader, self._server
        now_s = server.watch.now_s
        if reader.mid_body:
            if not self._body_since_s:
                self._body_since_s = now_s
            grace_s = server.waits.body_s
            slowest_s = self._body_since_s + grace_s + reader.body_size / BODY_BYTES_PER_S_MIN
            self.expires_s = min(now_s + grace_s, slowest_s)
            if reader.wants_continue:
                reader.wants_continue = False
                if not reader.body_size:
                    self.outbox.write(self.transport, CONTINUE)
            return
        self._body_since_s = 0.0
        if not reader.head_timed:
            reader.head_timed = True
            self.expires_s = now_s + server.waits.head_s

    def expire(self, now_s: float) -> None:
        """Some wait is over: a slow client, an idle connection, or the end of lingering."""
        if self._takes_slowly():
            return
        self.expires_s = NEVER
        if self._reply is not None:
            if self.write_paused:
                self._reply.too_slow()
        elif self._lingering is not None or self.write_paused:
            self.transport.abort()
        elif self._reader.mid_head or self._reader.mid_body:
            self._reader.time_out()
            self._serve()
        else:
            self.transport.close()

    def _wait_for_client(self) -> None:
        """It does not take what we have for it: it is looked at a few times within `stall_s`."""
        self._uptake = Uptake()
        self._look_again()

    def _look_again(self) -> None:
        self.expires_s = self._server.watch.now_s + self._server.waits.stall_s / LOOKS

    def _takes_slowly(self) -> bool:
        """The wait was for a client that reads, if slowly: it goes on."""
        uptake = self._uptake = self._uptake or Uptake()
        if not uptake.goes_on(self.transport):
            return False
        self._look_again()
        return True

    # -- ends --

    def _close(self) -> None:
        """Closes; when the client may still be sending, only after reading on for a while."""
        transport = self.transport
        self.outbox.flush()
        if self._eof or not transport.can_write_eof():
            transport.close()
            return
        now_s = self._server.watch.now_s
        self._lingering = Lingering(now_s)
        self._uptake = None
        self.expires_s = self._lingering.until_s(now_s)  # later, for as long as it takes what is unsent
        transport.write_eof()
        self._resume_reading()

    def _throw_away(self, lingering: Lingering, size: int) -> None:
        if lingering.takes(size):
            self.expires_s = lingering.until_s(self._server.watch.now_s)
        else:
            self.transport.abort()

    @property
    def is_new(self) -> bool:
        """Nothing has been asked over it yet."""
        return self._requests == 0

    def close_if_idle(self) -> None:
        if not (self._is_owing or self._lingering or self._reader.mid_head or self._reader.mid_body):
            self.outbox.flush()
            self.transport.close()

    def cancel_work(self) -> None:
        if self._errand is not None:
            self._errand.cancel()

    def abort(self) -> None:
        self.transport.abort()
