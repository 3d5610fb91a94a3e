"""From the upstream's stream to the client's: the gate, and the only code that runs per chunk.

`StreamLeg` holds a stream back until its first content (the gate), commits, and from then on writes what arrives
straight to the client, without a task or an object per chunk. What must not be on the wire before the books are closed
(the terminator and what came with it) is left in `last` for the gateway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edgegw.dialects.base import StreamReader
from edgegw.dialects.texts import text_bytes_of_events
from edgegw.errors import UpstreamFault
from edgegw.http.reply import Reply
from edgegw.http.watch import NEVER, Watch
from edgegw.leg import BODY, COMMITTED, ERROR, ERROR_BODY_BYTES_MAX, OVER, Heard, Leg, LegWaits

# The gate opens without content after this much (DESIGN 5): more than any provider sends before its first token.
GATE_EVENTS_MAX = 64
GATE_BYTES_MAX = 256 * 1024
GATE_WAIT_S = 15.0
# After the dialect's terminator the upstream may take this long to end its HTTP message, or loses its connection.
TAIL_WAIT_S = 2.0
# Raw events that bypassed the reader and are looked at when the stream ends: finish and usage are in the last two.
RECENT_EVENTS = 8
_FRAMING_BYTES = 6  # of a chunk with an event in it: its size and two line ends


class StreamLeg(Leg):
    """Relays a stream. `fields` makes the header lines of the reply at the moment of the commit."""

    __slots__ = (
        "_client",
        "_fields",
        "_first",
        "_gate_until_s",
        "_needles",
        "_opening_bytes",
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
        self._first = b""  # what the client got when the stream was committed
        self._opening_bytes = 0  # that, and the head before it
        self.last = b""

    @property
    def heard(self) -> Heard | None:
        if self._recent:  # the client left, and what passed by is still unread
            self._reader.recall([_unframed(raw) for raw in self._recent])
        return self._reader

    @property
    def answered(self) -> bool:
        return self._reader.opened

    def volume(self) -> tuple[int, int]:
        """From the first events and the last ones that passed by, which show how much of an event is text, and the
        bytes that went to the client: nothing is counted per event."""
        first = text_bytes_of_events(self._first or b"".join(self._pieces))
        last = [event for raw in self._recent or () for event in text_bytes_of_events(_unframed(raw))]
        mute = [size - text + _FRAMING_BYTES for size, text in last or first if text]
        later = max(0, self._reader.events + self._passed_events - len(first))
        text_bytes = sum(text for _, text in first)
        if later and mute:
            sent = self.reply.bytes_out - self._opening_bytes
            text_bytes += max(0, round(sent - later * sum(mute) / len(mute)))
        silent = sum(not text for _, text in first + last)
        if self._reader.finish_reason is not None and later and all(text for _, text in last):
            silent += 1  # the finish has passed, in an event of its own as with most
        return max(0, len(first) + later - silent), text_bytes

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
        if self._stage is OVER:
            self.connection = None
            self._watch.discard(self)
            return
        self._recall()
        super().on_fault(fault)

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

    def _time_is_up(self, now_s: float) -> None:
        if self._stage is BODY and self._gate_until_s <= now_s < self._deadline_s:
            self._gate_until_s = NEVER
            if self._pieces:
                self._commit()
            self.expires_s = self.stamp_s + self._waits.idle_s
            return
        super()._time_is_up(now_s)

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
            if reply.write_paused:  # by the reply before, on the same connection
                connection.pause()
        reply.start(200, self._fields(), held)
        self._first, self._opening_bytes = held, reply.bytes_out
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
            self._reader.recall([_unframed(raw) for raw in self._recent])
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
        self.fire()


def _unframed(raw: bytes) -> bytes:
    """What is in a chunk."""
    return raw[raw.find(b"\r\n") + 2 : -2]
