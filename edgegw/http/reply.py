"""Replies to clients: status lines, framing, and the Reply that a handler writes to.

Pure but for the writes, which go to the connection that a Reply was made for (http/client_connection.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from edgegw.http.date import Date
from edgegw.http.outbox import CopyingOutbox, Outbox
from edgegw.http.request import Request

REASONS = {
    100: b"Continue",
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    529: b"Overloaded",
}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
JSON = b"content-type: application/json\r\n"
EVENT_STREAM = b"content-type: text/event-stream; charset=utf-8\r\n"
# An SSE comment as a chunk: means nothing to a client, but makes a vanished one answer with a reset.
COMMENT_CHUNK = b"3\r\n:\n\n\r\n"


_OK = b"HTTP/1.1 200 OK\r\n"


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK\\r\\n`. A status of a provider that we have no words for goes without a reason phrase."""
    return b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b""))


def connection_field(keep_alive: bool, http_1_0: bool) -> bytes:
    """The Connection field where the version's default is not what happens (RFC 9112 9.3)."""
    if keep_alive:
        return b"connection: keep-alive\r\n" if http_1_0 else b""
    return b"connection: close\r\n"


def chunk(data: bytes) -> bytes:
    """`data`, which must not be empty, as one chunk (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Transport(Protocol):
    def write(self, data: bytes) -> None: ...

    def abort(self) -> None: ...


class ReplyConnection(Protocol):
    """What a Reply needs of its connection."""

    write_paused: bool
    outbox: Outbox
    date: Date

    @property
    def transport(self) -> Transport: ...

    def finished(self, reply: Reply, keep_alive: bool) -> None: ...

    def abandon(self) -> None: ...

    def break_off(self, reply: Reply) -> None: ...


class Reply:
    """The writing side towards the client for one request. Either `send` once, or `start`, `write`…, and `end` or
    `fail`, which closes the connection after an error event.

    `on_gone`, `on_pause`, `on_resume` are set by whoever feeds the stream. After the client has gone every write is a
    no-op and `gone` is True; `slow` tells that we closed because it did not read.
    """

    __slots__ = (
        "_connection",
        "_outbox",
        "_transport",
        "bytes_out",
        "chunked",
        "gone",
        "on_gone",
        "on_pause",
        "on_resume",
        "request",
        "slow",
        "started",
    )

    def __init__(self, connection: ReplyConnection, request: Request) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._outbox: Outbox | CopyingOutbox = connection.outbox
        self.request = request
        self.chunked = not request.http_1_0
        self.started = False
        self.gone = False
        self.slow = False
        self.bytes_out = 0
        self.on_gone: Callable[[], None] | None = None
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    def copy_to(self, sink: Callable[[bytes], None]) -> None:
        """`sink` is told all that the client is sent from now on, head and framing included. To be called once, before
        anything is sent or `wire` is asked."""
        self._outbox = self._connection.outbox.copying(sink)

    def send(self, status: int, fields: bytes, body: bytes) -> None:
        """The whole reply in one write. `fields` are complete header lines, framing excluded."""
        if self.gone:
            return
        self.started = True
        request = self.request
        head = b"%b%b%b%bcontent-length: %d\r\n\r\n" % (
            _OK if status == 200 else status_line(status),
            self._connection.date.line,
            fields,
            b"" if request.keep_alive and not request.http_1_0 else self._connection_field(),
            len(body),
        )
        self._outbox.write(self._transport, head if request.method == b"HEAD" else head + body)
        self.bytes_out = len(head) + len(body)
        self._connection.finished(self, request.keep_alive)

    def start(self, status: int, fields: bytes, first: bytes) -> None:
        """Head and first bytes of a stream, in one write."""
        if self.gone:
            return
        self.started = True
        request = self.request
        line = status_line(status) + self._connection.date.line
        if self.chunked:
            connection = b"" if request.keep_alive else b"connection: close\r\n"
            head = b"%b%b%btransfer-encoding: chunked\r\n\r\n" % (line, fields, connection)
            data = head + chunk(first) if first else head
        else:  # HTTP/1.0 knows no chunks: the end of the connection is the end of the stream
            request.keep_alive = False
            data = b"%b%bconnection: close\r\n\r\n%b" % (line, fields, first)
        self.bytes_out = len(data)
        self._outbox.write(self._transport, data)

    def wire(self) -> tuple[Transport, Callable[[Transport, bytes], None]]:
        """The client's transport, and what to call with it and bytes of a stream that are framed already: for a fast
        lane, which counts `bytes_out` itself."""
        return self._transport, self._outbox.write

    def write(self, data: bytes) -> None:
        """More of a stream; `data` must not be empty."""
        if self.gone:
            return
        if self.chunked:
            data = chunk(data)
        self.bytes_out += len(data)
        self._outbox.write(self._transport, data)

    def end(self, last: bytes) -> None:
        """The stream's own last bytes and the end of the message."""
        if self.gone:
            return
        data = last
        if self.chunked:
            data = chunk(last) + LAST_CHUNK if last else LAST_CHUNK
        self.bytes_out += len(data)
        if data:
            self._outbox.write(self._transport, data)
        self._connection.finished(self, self.request.keep_alive)

    def fail(self, last: bytes) -> None:
        """Ends a started stream with `last` (an error event) and closes the connection."""
        self.request.keep_alive = False
        self.end(last)

    def break_off(self) -> None:
        """Nobody can say how this reply would have gone on: the connection breaks, unless the reply is complete."""
        self._connection.break_off(self)

    def probe(self) -> bool:
        """Sends bytes without meaning; False when there is nothing that may be sent now."""
        if self.started and not self.chunked:
            return False
        self._outbox.write(self._transport, COMMENT_CHUNK if self.started else CONTINUE)
        return True

    @property
    def why_gone(self) -> Literal["client_slow", "client_gone"] | None:
        if not self.gone:
            return None
        return "client_slow" if self.slow else "client_gone"

    @property
    def write_paused(self) -> bool:
        return self._connection.write_paused

    def lost(self) -> None:
        """The connection broke before the reply was complete."""
        self.gone = True
        self._connection.abandon()
        if self.on_gone is not None:
            self.on_gone()

    def too_slow(self) -> None:
        self.slow = True
        self._transport.abort()

    def _connection_field(self) -> bytes:
        return connection_field(self.request.keep_alive, self.request.http_1_0)
