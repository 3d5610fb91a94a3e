"""A leg: what receives the reply of one attempt (the Sink of an upstream connection) while its errand awaits the end.

`Leg` is what every kind shares, `PlainLeg` collects a whole reply; `StreamLeg`, which relays, is relay.py's.

A leg ends in exactly one way: `fault` is None and the reply is whole, or `fault` says what went wrong (before or after
the commit: `reply.started`), or `gone` is True because the client left. It does not decide what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from edgegw.dialects.texts import text_bytes_of_body
from edgegw.errand import Wakeup
from edgegw.errors import UpstreamFault, own_fault
from edgegw.exchange import Usage
from edgegw.http.inflate import CODINGS, Inflater
from edgegw.http.reply import Reply
from edgegw.http.watch import NEVER, Watch

# What is read of a provider's error, and of a whole reply that is not streamed.
ERROR_BODY_BYTES_MAX = 64 * 1024
PLAIN_BODY_BYTES_MAX = 64 * 1024 * 1024
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
        "broken",
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
        self._inflate: Inflater | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self.connection: Upstream | None = None
        self.status = 0
        self.reused = False
        self.upstream_request_id: bytes | None = None
        self.headers: dict[bytes, bytes] = {}
        self.body = b""  # of an error, or of a whole plain reply
        self.fault: UpstreamFault | None = None
        self.gone = False
        self.broken = False  # the connection broke before the reply was whole
        self.first_byte_s: float | None = None
        self.first_token_s: float | None = None
        self.stamp_s = 0.0
        self.expires_s = NEVER  # until it is sent

    @property
    def heard(self) -> Heard | None:
        """What the reader of a stream has picked up; None for a plain reply."""
        return None

    @property
    def answered(self) -> bool:
        """Content of a streamed answer has come."""
        return False

    def volume(self) -> tuple[int, int]:
        """How much has been said, as far as it can be told: in so many pieces with text (of a stream), and bytes of
        text. Slow: for answers that nobody else has counted."""
        return 0, 0

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
        self._wait_until(self.stamp_s + self._waits.first_byte_s)
        self._watch.add(self)

    def cancel(self) -> None:
        """Nobody waits for it any more: the upstream connection goes."""
        if self._stage is not OVER:
            self._stop()

    # -- the upstream's side (Sink) --

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        if self.connection is not None:
            self.reused = self.connection.reused
        now_s = self.first_byte_s = self._clock()
        self.stamp_s = now_s
        request_id = headers.get(b"x-request-id") or headers.get(b"request-id")  # Anthropic's
        if request_id is not None:
            self.upstream_request_id = request_id[:REQUEST_ID_BYTES_MAX]
        coding = headers.get(b"content-encoding")
        if coding and coding.lower() != b"identity":
            self._set_coding(coding.lower())
        self._stage = BODY if 200 <= status < 300 and status != 204 and self.fault is None else ERROR
        self._wait_until(now_s + self._waits.idle_s)

    def on_fault(self, fault: UpstreamFault) -> None:
        self.connection = None
        if self._stage is not OVER:
            self.broken = True
            self._end(fault)

    # -- waits --

    def expire(self, now_s: float) -> None:
        try:
            self._time_is_up(now_s)
        except Exception as error:
            self._break(own_fault(error))

    def _time_is_up(self, now_s: float) -> None:
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
        if self._stage is ERROR:
            self._take_as_it_is()
            return
        if self.reply.write_paused:  # it is the client who does not take it
            self.stamp_s = now_s
        quiet_until_s = self.stamp_s + self._waits.idle_s
        if quiet_until_s <= now_s:
            message = f"The provider sent nothing for {self._waits.idle_s:g} s."
            self._break(UpstreamFault("upstream_stalled", message, status=self.status))
        else:
            self._wait_until(quiet_until_s)

    def client_gone(self) -> None:
        if self._stage is not OVER:
            self.gone = True
            self._stop()
            self.fire()

    # -- pieces --

    def _wait_until(self, at_s: float) -> None:
        deadline_s = self._deadline_s
        self.expires_s = at_s if at_s < deadline_s else deadline_s

    def _set_coding(self, coding: bytes) -> None:
        if coding in CODINGS:
            self._inflate = Inflater()
        else:
            self._inflate = None
            self.fault = UpstreamFault("upstream_garbage", "The provider used an unknown content coding.")

    def _decoded(self, data: bytes) -> bytes | None:
        """None after ending the leg: the coding is broken."""
        if self._inflate is None:
            return data
        try:
            return self._inflate.decode(data)
        except UpstreamFault as fault:
            self._break(fault)
            return None

    def _collect(self, data: bytes, bytes_max: int) -> None:
        self._size += len(data)
        if self._size > bytes_max:
            if self._stage is ERROR:  # enough to tell what it is
                self._pieces.append(data[: bytes_max - self._size])
                self._take_as_it_is()
                return
            self._break(UpstreamFault("upstream_garbage", "The provider's reply is too large."))
            return
        self._pieces.append(data)

    def _take_as_it_is(self) -> None:
        """What is still to come of an error would not change what it is."""
        self._drop_connection()
        self.body = b"".join(self._pieces)
        self._end(None)

    def _break(self, fault: UpstreamFault) -> None:
        """Ends the leg from our side: the connection cannot be used again."""
        self._drop_connection()
        self._end(fault)

    def _end(self, fault: UpstreamFault | None) -> None:
        if self._stage is OVER:
            return
        self.fault = fault or self.fault
        self._stop_waiting()
        self.fire()

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

    def volume(self) -> tuple[int, int]:
        return 0, text_bytes_of_body(self.body or b"".join(self._pieces))

    def on_end(self) -> None:
        if self._stage is OVER:
            return
        self.connection = None  # it is the pool's again
        pieces = self._pieces
        self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._stop_waiting()
        self.fire()
