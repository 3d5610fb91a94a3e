"""One connection to a provider: a request at a time, its reply handed to a sink, then back to the pool or closed.

The `asyncio.Protocol` around `response.ResponseReader`, which judges the bytes; this shell owns the socket, and tells
truncation from an end and a dead pooled connection from a failing provider. It knows nothing of addresses, retries,
JSON or SSE, and it has no timer: who waits for a reply owns the clock and calls `abort()`.

How to read it: `start()` writes a request, `data_received()` is the whole way of a reply; `_finish()`, `_fail()` and
`abort()` are the three ways in which it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol, cast

from edgegw.errors import UpstreamFault, own_fault
from edgegw.http.outbox import Outbox
from edgegw.http.response import Headers, ResponseReader

Lane = Callable[[bytes], bool]


class Sink(Protocol):
    """What receives one reply: `on_head`, any number of `on_body`, then exactly one of `on_end` and `on_fault`, last
    (`on_fault` may come first and alone). After `Connection.abort()` it is told nothing more. It should not raise: what
    it raises comes back to it as an `on_fault`, and that one must not raise."""

    def on_head(self, status: int, headers: Headers) -> None:
        """The head of the reply, status 200..599; names in lower case. They are the sink's to keep."""

    def on_body(self, data: bytes) -> None:
        """What one read brought of the body, without chunk framing; never empty."""

    def on_end(self) -> None:
        """The reply is complete as its framing promised. The connection is no longer the sink's."""

    def on_fault(self, fault: UpstreamFault) -> None:
        """The reply will not be complete. The connection is no longer the sink's."""


class State(IntEnum):
    """NEW and READY belong to whoever is about to `start()` a request and owns the place in the pool; from DIALLING to
    IDLE the connection owns its place itself. DIALLING: connected once more for the request it holds."""

    NEW = 0
    READY = 1
    DIALLING = 2
    HEAD = 3
    BODY = 4
    IDLE = 5
    CLOSED = 6


_NEW, _READY, _DIALLING, _HEAD, _BODY, _IDLE, _CLOSED = State


class Owner(Protocol):
    """What a connection asks of its pool."""

    def keep(self, connection: Connection) -> None:
        """The reply is over and the connection clean: use it again."""

    def forget(self, connection: Connection, state: State) -> None:
        """The connection was in `state` and is CLOSED now."""

    def redial(self, connection: Connection) -> None:
        """A pooled connection was dead before its reply began: connect the same object again."""

    def gone(self, connection: Connection) -> None:
        """The loop has let go of the socket."""


_CUT_BEFORE = "The provider closed the connection without an answer."
_CUT_WITHIN = "The provider closed the connection before its answer was complete."


class Connection(asyncio.Protocol):
    """See the module. `lane`, when set, is offered raw reads while the parser stands exactly between two chunks; it
    returns True when it has taken them, and then they must have been whole chunks and not the last one (size 0), so
    that the parser, which never sees them, stays in step. `reused` says whether the request went out on a connection
    that had already served one, `tenant` whose it is; the pool writes both. Only the sink of the request in work may
    call `abort`, `pause` and `resume`.
    """

    __slots__ = (
        "_head_bytes_max",
        "_informational_max",
        "_outbox",
        "_owner",
        "_paused",
        "_reader",
        "_request",
        "_sink",
        "_transport",
        "dialling",
        "idle_since_s",
        "lane",
        "reused",
        "state",
        "tenant",
    )

    def __init__(self, owner: Owner, outbox: Outbox, *, head_bytes_max: int, informational_max: int) -> None:
        self._owner = owner
        self._outbox = outbox
        self._head_bytes_max = head_bytes_max
        self._informational_max = informational_max
        self._reader: ResponseReader | None = None
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._request: bytes | None = None  # held until the first byte of the reply, for a stale connection
        self._paused = False
        self.lane: Lane | None = None
        self.reused = False
        self.dialling: asyncio.Task[None] | None = None
        self.idle_since_s = 0.0
        self.state: State = _NEW
        self.tenant = ""

    # The request.

    @property
    def usable(self) -> bool:
        """Whether a request may be started: connected, none in work, and alive as far as we know."""
        transport = self._transport
        return transport is not None and self.state in (_IDLE, _READY) and not transport.is_closing()

    def start(self, data: bytes, sink: Sink) -> None:
        """Send a whole request, `usable` having said yes."""
        self.state = _HEAD
        self._sink = sink
        self._request = data
        assert self._transport is not None
        self._outbox.write(self._transport, data)

    def pause(self) -> None:
        """Stop reading: the client is slower than the provider."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Cancel the request: the socket is closed now and the sink is told nothing more. Harmless when it is over."""
        if self.state in (_HEAD, _BODY, _DIALLING):
            self._close()

    def refuse(self, fault: UpstreamFault) -> None:
        """Close now, whatever the state, without a goodbye; a request in work ends with this fault."""
        self._fail(fault)
        if self._transport is not None:
            self._transport.abort()  # retired before, and still waiting for the other side's goodbye

    def retire(self) -> None:
        """Close an idle connection, with a goodbye where that is the custom (TLS)."""
        self._close(polite=True)

    # The reply.

    def data_received(self, data: bytes) -> None:
        try:
            reader = self._reader
            assert reader is not None
            if reader.between:
                lane = self.lane
                if lane is not None and lane(data):
                    return
            state = self.state
            if state is not _HEAD and state is not _BODY:
                self._close()  # bytes that nobody waits for must not become the answer to the next request
                return
            sink = self._sink
            assert sink is not None
            reader.feed(data)
            if state is _HEAD:
                self._request = None
                if reader.status:
                    self.state = _BODY
                    sink.on_head(reader.status, reader.headers)
                    if self.state is not _BODY:
                        return
                elif reader.trouble is None:
                    return
            if reader.body:
                sink.on_body(reader.body)
                if self.state is not _BODY:
                    return
            if reader.ended:
                self._finish(sink, reader.reusable)
            elif reader.trouble is not None:
                self._fail(UpstreamFault("upstream_garbage", reader.trouble, status=reader.status))
        except Exception as error:
            if self._sink is None:  # nobody is there whose reply it was: the loop tells of it
                raise
            self._fail(own_fault(error))

    def _finish(self, sink: Sink, reusable: bool) -> None:
        transport, reader = self._transport, self._reader
        assert transport is not None
        assert reader is not None
        # A reply that came before the request was all sent leaves the rest of the request in our buffer.
        if reusable and not transport.get_write_buffer_size():
            self._sink = None
            self.lane = None
            if self._paused:
                self.resume()
            reader.reset()
            self._owner.keep(self)
        else:
            self._close()
        try:
            sink.on_end()
        except Exception as error:
            sink.on_fault(own_fault(error))

    def _fail(self, fault: UpstreamFault) -> None:
        sink = self._sink
        self._close()
        if sink is not None:
            sink.on_fault(fault)

    def _close(self, polite: bool = False) -> None:
        state = self.state
        if state == _CLOSED:
            return
        self.state = _CLOSED
        self._sink = None
        self._request = None
        self.lane = None
        if self.dialling is not None:
            # After its first step, within which it would not know of its end.
            self.dialling.get_loop().call_soon(self.dialling.cancel)
        if self._transport is not None:
            if polite:
                self._transport.close()
            else:
                self._transport.abort()
        self._owner.forget(self, state)

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._reader = ResponseReader(head_bytes_max=self._head_bytes_max, informational_max=self._informational_max)
        self._paused = False
        self.reused = False
        self.dialling = None
        if self.state == _CLOSED:  # while the socket was on its way
            self._transport.abort()
        elif self._request is not None and self._sink is not None:
            self.start(self._request, self._sink)
        else:
            self.state = _READY

    def eof_received(self) -> None:
        reader = self._reader
        if self._is_stale():
            assert self._transport is not None
            self._transport.abort()  # connection_lost() follows and has it dialled again
        elif self.state == _BODY and reader is not None and reader.feed_eof():
            assert self._sink is not None
            self._finish(self._sink, reusable=False)
        else:
            self._fail(self._cut())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_stale():
            self._transport = None
            self.state = _DIALLING
            self._owner.redial(self)
            return
        if exc is not None and not isinstance(exc, OSError):
            self._fail(own_fault(exc))
        else:
            self._fail(self._cut())
        self._transport = None
        self._reader = None
        self._owner.gone(self)

    def _is_stale(self) -> bool:
        """Whether a loss now says nothing about the provider: it had closed an idle connection before it knew of the
        request, as far as we can tell."""
        return self.reused and self._request is not None and self.state == _HEAD

    def _cut(self) -> UpstreamFault:
        status = self._reader.status if self._reader is not None else 0
        return UpstreamFault("upstream_cut", _CUT_WITHIN if status else _CUT_BEFORE, status=status)
