"""From the upstream's bytes to the client's: the legs of an attempt, the gate, and the only code that runs per chunk.

A `Leg` receives the reply of one attempt (it is the Sink of an upstream connection) while the request's errand sleeps
until its end. `PlainLeg` collects a whole reply; `StreamLeg` holds a stream back until its first content (the gate),
commits, and from then on writes what arrives straight to the client's transport, without a task or an object per
chunk. What must not be on the wire before the books are closed (the terminator and what came with it) is left in
`last` for the gateway.

A leg ends in exactly one way: `fault` is None and the reply is whole, or `fault` says what went wrong (before or after
the commit: `reply.started`), or `gone` is True because the client left. It does not decide what follows.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from edgegw.dialects.base import StreamReader
from edgegw.errand import Wakeup
from edgegw.errors import UpstreamFault
from edgegw.exchange import Usage
from edgegw.http.reply import Reply
from edgegw.http.watch import NEVER, Watch

# The gate opens without content after this much (DESIGN 5): more than any provider sends before its first token.
GATE_EVENTS_MAX = 64
GATE_BYTES_MAX = 256 * 1024
GATE_WAIT_S = 15.0
# What is read of a provider's error, and of a whole reply that is not streamed.
ERROR_BODY_BYTES_MAX = 64 * 1024
PLAIN_BODY_BYTES_MAX = 64 * 1024 * 1024
# After the dialect's terminator the upstream may take this long to end its HTTP message, or loses its connection.
TAIL_WAIT_S = 2.0
# Raw events that bypassed the reader and are looked at when the stream ends: finish and usage are in the last two.
RECENT_EVENTS = 8


_REQUEST_ID_FIELDS = (b"x-request-id", b"request-id")
REQUEST_ID_BYTES_MAX = 128


class Stage(IntEnum):
    WAITING = 0  # for the head
    ERROR = 1  # collecting a body that is an error, or not what was asked for
    BODY = 2  # collecting a whole reply, or gated
    COMMITTED = 3  # the client has bytes
    OVER = 4


WAITING, ERROR, BODY, COMMITTED, OVER = Stage


@dataclass(frozen=True, slots=True)
class LegWaits:
    """Seconds: to the reply's head, between two reads of its body."""

    first_byte_s: float
    idle_s: float


class Heard(Protocol):
    """What a provider said about its own reply."""

    @property
    def usage(self) -> Usage | None: ...

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def model(self) -> str | None: ...


class Upstream(Protocol):
    """What a leg needs of an upstream connection (http/upstream_connection.py)."""

    lane: Callable[[bytes], bool] | None
    reused: bool

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...


class Leg(Wakeup):
    """What both kinds share, and what the errand awaits: stages, waits, error bodies, content coding. A waiter of the
    Watch."""

    __slots__ = (
        "_clock",
        "_deadline_s",
        "_inflate",
        "_pieces",
        "_size",
        "_stage",
        "_waits",
        "_watch",
        "body",
        "connection",
        "expires_s",
        "fault",
        "first_byte_s",
        "first_token_s",
        "gone",
        "headers",
        "reply",
        "reused",
        "stamp_s",
        "status",
        "upstream_request_id",
    )

    def __init__(
        self,
        reply: Reply,
        watch: Watch,
        clock: Callable[[], float],
        waits: LegWaits,
        deadline_s: float,
    ) -> None:
        self.fired = False
        self._resume = None
        self.reply = reply
        self._watch = watch
        self._clock = clock
        self._waits = waits
        self._deadline_s = deadline_s
        self._stage = WAITING
        self._inflate: zlib._Decompress | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self.connection: Upstream | None = None
        self.status = 0
        self.reused = False
        self.upstream_request_id: bytes | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""  # of an error, or of a whole plain reply
        self.fault: UpstreamFault | None = None
        self.gone = False
        self.first_byte_s: float | None = None
        self.first_token_s: float | None = None
        self.stamp_s = clock()
        self.expires_s = min(self.stamp_s + waits.first_byte_s, deadline_s)

    @property
    def heard(self) -> Heard | None:
        """What the reader of a stream has picked up; None for a plain reply."""
        return None

    @property
    def events(self) -> int:
        """Events of a stream so far: about a token each."""
        return 0

    @property
    def over(self) -> bool:
        """The leg has ended, in whatever way."""
        return self._stage is OVER

    # -- the errand's side --

    def sent(self, connection: Upstream) -> None:
        """The request is on its way on this connection; from here the client's leaving ends it."""
        if self._stage is OVER:
            return
        self.connection = connection
        self.reply.on_gone = self.client_gone
        self.stamp_s = self._clock()
        self.expires_s = min(self.stamp_s + self._waits.first_byte_s, self._deadline_s)
        self._watch.add(self)

    def cancel(self) -> None:
        """Nobody waits for it any more: the upstream connection goes."""
        if self._stage is not OVER:
            self._stop()

    # -- the upstream's side (Sink) --

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.headers = headers
        if self.connection is not None:
            self.reused = self.connection.reused
        now_s = self.first_byte_s = self._clock()
        self.stamp_s = now_s
        for name, value in headers:
            if name in _REQUEST_ID_FIELDS:
                self.upstream_request_id = value[:REQUEST_ID_BYTES_MAX]
            elif name == b"content-encoding" and value.lower() != b"identity":
                self._set_coding(value.lower())
        self._stage = BODY if 200 <= status < 300 and status != 204 else ERROR
        self.expires_s = min(now_s + self._waits.idle_s, self._deadline_s)

    def on_fault(self, fault: UpstreamFault) -> None:
        self.connection = None
        if self._stage is not OVER:
            self._end(fault)

    # -- waits --

    def expire(self, now_s: float) -> None:
        if self._stage is OVER:  # the terminator came, the end of the HTTP message did not
            self._drop_connection()
            return
        if now_s >= self._deadline_s:
            self._break(UpstreamFault("upstream_timeout", "The deadline of the request has passed."))
            return
        if self._stage is WAITING:
            message = f"The provider did not begin to answer within {self._waits.first_byte_s:g} s."
            self._break(UpstreamFault("upstream_timeout", message))
            return
        if self.reply.write_paused:  # it is the client who does not take it
            self.stamp_s = now_s
        quiet_until_s = self.stamp_s + self._waits.idle_s
        if quiet_until_s <= now_s:
            message = f"The provider sent nothing for {self._waits.idle_s:g} s."
            self._break(UpstreamFault("upstream_stalled", message, status=self.status))
        else:
            self.expires_s = min(quiet_until_s, self._deadline_s)

    def client_gone(self) -> None:
        if self._stage is not OVER:
            self.gone = True
            self._stop()
            self._wake()

    # -- pieces --

    def _set_coding(self, coding: bytes) -> None:
        """We ask for identity; some send gzip all the same (research: recorded Anthropic streams)."""
        if coding not in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = None
            self.fault = UpstreamFault("upstream_garbage", "The provider used an unknown content coding.")
            return
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def _decoded(self, data: bytes) -> bytes | None:
        """None after ending the leg: the coding is broken."""
        inflate = self._inflate
        if inflate is None:
            return data
        try:
            return inflate.decompress(data)
        except zlib.error:
            self._break(UpstreamFault("upstream_garbage", "The provider's reply could not be decompressed."))
            return None

    def _collect(self, data: bytes, bytes_max: int) -> None:
        self._size += len(data)
        if self._size > bytes_max:
            if self._stage is ERROR:
                return  # enough to tell what it is
            self._break(UpstreamFault("upstream_garbage", "The provider's reply is too large."))
            return
        self._pieces.append(data)

    def _break(self, fault: UpstreamFault) -> None:
        """Ends the leg from our side: the connection cannot be used again."""
        self._drop_connection()
        self._end(fault)

    def _end(self, fault: UpstreamFault | None) -> None:
        if self._stage is OVER:
            return
        self.fault = fault or self.fault
        self._stop_waiting()
        self._wake()

    def _stop(self) -> None:
        self._stop_waiting()
        self._drop_connection()

    def _stop_waiting(self) -> None:
        self._stage = OVER
        self.expires_s = NEVER
        self._watch.discard(self)
        reply = self.reply
        reply.on_gone = reply.on_pause = reply.on_resume = None

    def _drop_connection(self) -> None:
        connection = self.connection
        if connection is not None:
            self.connection = None
            connection.lane = None
            connection.abort()
        self._watch.discard(self)

    def _wake(self) -> None:
        self.fire()


class PlainLeg(Leg):
    """Collects a whole reply into `body`; nothing is committed by it."""

    __slots__ = ()

    def on_body(self, data: bytes) -> None:
        if self._stage is OVER:
            return
        self.stamp_s = self._watch.now_s
        if self._inflate is not None:
            plain = self._decoded(data)
            if plain is None:
                return
            data = plain
        if self._stage is BODY and not self._pieces and len(data) < PLAIN_BODY_BYTES_MAX:
            self._pieces.append(data)  # nearly always the whole of it
            self._size = len(data)
        else:
            self._collect(data, ERROR_BODY_BYTES_MAX if self._stage is ERROR else PLAIN_BODY_BYTES_MAX)

    def on_end(self) -> None:
        if self._stage is OVER:
            return
        self.connection = None  # it is the pool's again
        pieces = self._pieces
        self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._stop_waiting()
        self.fire()


class StreamLeg(Leg):
    """Relays a stream. `fields` makes the header lines of the reply at the moment of the commit."""

    __slots__ = (
        "_client",
        "_fields",
        "_gate_until_s",
        "_needles",
        "_passed_events",
        "_reader",
        "_recent",
        "_send",
        "_withholding",
        "last",
    )

    def __init__(
        self,
        reply: Reply,
        watch: Watch,
        clock: Callable[[], float],
        waits: LegWaits,
        deadline_s: float,
        reader: StreamReader,
        fields: Callable[[], bytes],
    ) -> None:
        super().__init__(reply, watch, clock, waits, deadline_s)
        self._reader = reader
        self._fields = fields
        self._needles = reader.needles
        self._withholding = reader.withholding
        self._gate_until_s = NEVER
        self._recent: deque[bytes] | None = None
        self._passed_events = 0
        self._client, self._send = reply.wire()
        self.last = b""

    @property
    def heard(self) -> Heard | None:
        return self._reader

    @property
    def events(self) -> int:
        return self._reader.events + self._passed_events

    # -- per chunk --

    def pass_chunk(self, data: bytes) -> bool:
        """The fast lane of a committed same-dialect stream: a read that is exactly one chunk holding exactly one
        JSON event goes to the client as it is, framing included. True when it went. Anything else, and anything that
        may be an error or a usage to withhold, goes through the reader."""
        size = len(data)
        if data[-5:] != b"}\n\n\r\n" or data.find(b"\n\n") != size - 4:
            return False
        for needle in self._needles:
            if needle in data:
                return False
        if self._withholding and b'"usage"' in data and b'"usage":null' not in data:
            return False
        line = data.find(b"\r\n", 1, 10)
        if line < 0 or not data.startswith(b"%x\r\n" % (size - line - 4)):
            return False
        self._recent.append(data)  # type: ignore[union-attr]
        self._send(self._client, data)
        self.reply.bytes_out += size
        self._passed_events += 1
        self.stamp_s = self._watch.now_s
        return True

    def on_body(self, data: bytes) -> None:
        stage = self._stage
        if stage is OVER:
            return
        self.stamp_s = self._watch.now_s
        if self._inflate is not None:
            plain = self._decoded(data)
            if not plain:
                return
            data = plain
        if stage is ERROR:
            self._collect(data, ERROR_BODY_BYTES_MAX)
            return
        if stage is BODY and not self._size and data[:1] in b"{<[" and data[:1]:
            self._stage = ERROR  # a document instead of events: an error in a 200, a captive portal
            self._collect(data, ERROR_BODY_BYTES_MAX)
            return
        if self._recent:
            self._recall()
        reader = self._reader
        out = reader.feed(data)
        if reader.fault is not None or reader.done:
            self._close(out)
        elif stage is COMMITTED:
            if out:
                self.reply.write(out)
            self._set_lane()
        else:
            self._hold(out, len(data))

    def on_end(self) -> None:
        stage = self._stage
        self.connection = None  # it is the pool's again
        if stage is OVER:
            self._watch.discard(self)
            return
        if stage is ERROR:
            self.body = b"".join(self._pieces)
            self._end(None)
            return
        self._recall()
        self._close(self._reader.end())

    def on_fault(self, fault: UpstreamFault) -> None:
        self.connection = None
        if self._stage is OVER:
            self._watch.discard(self)
            return
        self._recall()
        self._end(fault)

    # -- the gate --

    def _hold(self, out: bytes, size: int) -> None:
        """Before the first content: keep what came, unless the gate opens with it."""
        self._size += size
        if out:
            self._pieces.append(out)
        reader = self._reader
        if reader.opened or self._size > GATE_BYTES_MAX or reader.events >= GATE_EVENTS_MAX:
            self._commit()
        elif self._gate_until_s is NEVER:
            self._gate_until_s = self.stamp_s + GATE_WAIT_S
            self.expires_s = min(self.expires_s, self._gate_until_s)

    def expire(self, now_s: float) -> None:
        if self._stage is BODY and self._gate_until_s <= now_s < self._deadline_s:
            self._gate_until_s = NEVER
            if self._pieces:
                self._commit()
            self.expires_s = self.stamp_s + self._waits.idle_s
            return
        super().expire(now_s)

    def _commit(self) -> None:
        """From here on the client has bytes: no retry, no other status."""
        self.first_token_s = self._clock()
        self._stage = COMMITTED
        reply, connection = self.reply, self.connection
        held = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if connection is not None:
            reply.on_pause = connection.pause
            reply.on_resume = connection.resume
        reply.start(200, self._fields(), held)
        self._set_lane()

    def _set_lane(self) -> None:
        reader, connection = self._reader, self.connection
        if connection is None or not reader.transparent or not self.reply.chunked or self._inflate is not None:
            return
        if self._recent is None:
            self._recent = deque(maxlen=RECENT_EVENTS)
        connection.lane = self.pass_chunk if reader.at_rest else None

    # -- the end --

    def _recall(self) -> None:
        """What bypassed the reader is looked at now: finish, usage and model are in it. Chunk framing is taken off."""
        if self._recent:
            self._reader.recall([raw[raw.find(b"\r\n") + 2 : -2] for raw in self._recent])
            self._recent.clear()

    def _close(self, out: bytes) -> None:
        """The reader has seen the terminator, an error or the end of the body."""
        self._recall()
        reader = self._reader
        fault = reader.fault
        if fault is not None:
            if self._stage is COMMITTED and out:
                self.reply.write(out)
            self._break(fault)
            return
        if self._stage is not COMMITTED:
            if out:
                self._pieces.append(out)
            self._commit()
            out = b""
        self.last = out + reader.last if out else reader.last
        connection = self.connection
        self._stop_waiting()
        if connection is not None:  # it may still have to deliver the end of its HTTP message
            connection.lane = None
            self._watch.add(self)
            self.expires_s = self._watch.now_s + TAIL_WAIT_S
        self._wake()
