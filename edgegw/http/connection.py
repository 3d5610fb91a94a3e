"""The reading side of a client connection, sans-IO: bytes in, whole requests out, every size bounded.

The shell (http/client_connection.py) feeds what arrives and takes what is `ready`, in order: `Request`s, of which the
last may carry an error that ends the connection (`Request.error` with `keep_alive` False). Nothing is handed out before
its body is complete, because most framing errors show only there. After such an end the reader ignores all further
bytes: what follows a message that could not be delimited is never parsed as a request.

Heads are llhttp's (httptools), one parser a message; where a head ends and what delimits the body is decided here, so
that `Upgrade`, at which llhttp would stop, is simply ignored (RFC 9110 7.8), and no byte is ever in two hands.

The shell owes: send `100 Continue` when `wants_continue` is True and nothing of the body has come; call `eof()` when
the client closes its side; enforce the waits (`mid_head`, `mid_body` say which one runs).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from edgegw.errors import GatewayError
from edgegw.http.chunked import ChunkedBody
from edgegw.http.request import (
    METHODS,
    SINGLETONS,
    Request,
    RequestLimits,
    body_length,
    check_expect,
    check_host,
    target_of,
    wants_close,
)

_END_OF_HEAD = b"\r\n\r\n"
_VERSIONS = (b" HTTP/1.1", b" HTTP/1.0")
_VERSION_LENGTH = 9
_METHOD_AND_VERSION_MAX = 64


class Part(IntEnum):
    """What of a message comes next."""

    HEAD = 0
    LENGTH = 1  # a body delimited by Content-Length
    CHUNKED = 2
    NOTHING = 3  # the connection is over


_HEAD, _LENGTH, _CHUNKED, _NOTHING = Part


class RequestReader:
    """One per client connection. `gate` is asked once per head and may raise GatewayError (unknown path, wrong
    method): then the request is refused without waiting for its body."""

    __slots__ = (
        "_chunks",
        "_complete_head",
        "_gate",
        "_head_bytes",
        "_left",
        "_limits",
        "_line",
        "_parser",
        "_part",
        "_pieces",
        "_raw_target",
        "_request",
        "_tail",
        "head_timed",
        "ready",
        "wants_continue",
    )

    def __init__(self, limits: RequestLimits, gate: Callable[[Request], None]) -> None:
        self._limits = limits
        self._gate = gate
        self._parser: HttpRequestParser | None = None  # only within a head: idle connections stay small
        self._request: Request | None = None
        self._part = _HEAD
        self._head_bytes = 0
        self._tail = b""  # the end of what was fed of a head, in case its end is cut
        self._line = b""  # the request line, until its version has been seen
        self._raw_target = b""
        self._complete_head = False
        self._left = 0  # of a body with a length
        self._pieces: list[bytes] | None = None
        self._chunks: ChunkedBody | None = None
        self.ready: list[Request] = []  # a list: an idle deque costs 600 bytes
        self.wants_continue = False
        self.head_timed = False  # the shell's mark: the wait for this head is running

    # -- what the shell asks --

    @property
    def mid_head(self) -> bool:
        return self._part is _HEAD and self._head_bytes > 0

    @property
    def mid_body(self) -> bool:
        return self._part is _LENGTH or self._part is _CHUNKED

    @property
    def body_size(self) -> int:
        """Bytes of the body so far."""
        if self._chunks is not None:
            return self._chunks.size
        return sum(map(len, self._pieces)) if self._pieces else 0

    @property
    def dead(self) -> bool:
        """No further request will come from this connection."""
        return self._part is _NOTHING

    # -- what the shell does --

    def feed(self, data: bytes) -> None:
        """Takes bytes as they came. Never raises for what a client sent; look at `ready`."""
        try:
            while data:
                part = self._part
                if part is _HEAD:
                    data = self._take_head(data)
                elif part is _LENGTH:
                    data = self._take_length(data)
                elif part is _CHUNKED:
                    data = self._take_chunks(data)
                else:
                    return
        except GatewayError as error:
            self._end_with(error)

    def eof(self) -> None:
        """The client will send no more. A message cut in the middle is refused, never acted upon (RFC 9112 8)."""
        if self.mid_head or self.mid_body:
            self._end_with(GatewayError("bad_http", "The connection was closed in the middle of the request."))
        self._part = _NOTHING

    def time_out(self) -> None:
        """The client took too long over its head or body."""
        self._end_with(GatewayError("request_timeout", "The request was not sent completely in time."))

    # -- the head --

    def _take_head(self, data: bytes) -> bytes:
        """Feeds what belongs to the head; returns what follows it."""
        if self._request is None:
            rest = self._skip_empty_line(data)
            if rest is not None:
                return rest
            data, self._tail, self._head_bytes = self._tail + data, b"", 0
            self._request = Request()
            self._parser = HttpRequestParser(self)
        tail = self._tail
        end = (tail + data if tail else data).find(_END_OF_HEAD)
        cut = end + len(_END_OF_HEAD) - len(tail) if end >= 0 else len(data)
        piece = data if cut == len(data) else data[:cut]
        self._head_bytes += len(piece)
        self._watch_line(piece)
        if self._head_bytes > self._limits.head_bytes_max:
            raise GatewayError("head_too_large", "The request head is too large.")
        self._parse(piece)
        if end < 0:
            self._tail = (tail + piece)[1 - len(_END_OF_HEAD) :]
            return b""
        if not self._complete_head:
            raise GatewayError("bad_http", "The request head is malformed.")
        self._end_head()
        return b"" if piece is data else data[cut:]

    def _skip_empty_line(self, data: bytes) -> bytes | None:
        """RFC 9112 2.2: an empty line before a request is ignored. None: a request begins."""
        line = self._tail + data[: 2 - len(self._tail)]
        if line == b"\r\n":
            rest, self._tail, self._head_bytes = data[2 - len(self._tail) :], b"", 0
            return rest
        if line == b"\r":
            self._tail, self._head_bytes = line, 1
            return b""
        return None

    def _parse(self, piece: bytes) -> None:
        parser = self._parser
        assert parser is not None
        try:
            parser.feed_data(piece)
        except HttpParserUpgrade:
            pass
        except HttpParserCallbackError as wrapped:
            cause = wrapped.__context__
            if isinstance(cause, GatewayError):
                raise cause from None
            raise
        except HttpParserError:
            raise GatewayError("bad_http", "The request is not well-formed HTTP/1.1.") from None

    def _watch_line(self, piece: bytes) -> None:
        """llhttp takes a line without a version for HTTP/0.9 and waits: look at the version as soon as the line is
        whole."""
        if self._head_bytes != len(piece) and not self._line:
            return
        line = self._line + piece
        end = line.find(b"\r\n")
        if (end if end >= 0 else len(line)) > self._limits.target_bytes_max + _METHOD_AND_VERSION_MAX:
            raise GatewayError("target_too_long", "The request target is too long.")
        if end < 0:
            self._line = line
            return
        self._line = b""
        if line[end - _VERSION_LENGTH : end] not in _VERSIONS:
            if b" HTTP/" in line[:end]:
                raise GatewayError("http_version", "Only HTTP/1.1 and HTTP/1.0 are supported.")
            raise GatewayError("bad_http", "The request line is malformed.")

    def _end_head(self) -> None:
        """The head is whole: what it says decides what follows. Raises GatewayError."""
        request, parser = self._request, self._parser
        assert request is not None
        assert parser is not None
        headers = request.headers
        request.method = parser.get_method()
        http_1_0 = request.http_1_0 = parser.get_http_version() == "1.0"
        if request.method not in METHODS:
            raise GatewayError("not_implemented", "This method is not implemented.")
        host = check_host(headers, http_1_0)
        request.path, request.query = target_of(self._raw_target, request.method, host)
        length = body_length(headers, http_1_0, self._limits.body_bytes_max)
        # `Upgrade` is ignored, but whoever sent it may go on in another protocol.
        request.keep_alive = not wants_close(headers, http_1_0) and b"upgrade" not in headers
        wants_continue = check_expect(headers, http_1_0)
        try:
            self._gate(request)
        except GatewayError as error:
            if length:  # not worth reading: refuse at once and close
                raise
            request.error = error
        self._parser = None
        self._raw_target = self._tail = b""
        self._complete_head = False
        if not length:
            self._complete(b"")
            return
        self.wants_continue = wants_continue
        if length < 0:
            self._part = _CHUNKED
            self._chunks = ChunkedBody(self._limits.body_bytes_max)
        else:
            self._part = _LENGTH
            self._left = length

    # -- httptools callbacks, in the order of a head --

    def on_url(self, piece: bytes) -> None:
        self._raw_target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        assert request is not None
        headers = request.headers
        key = name.lower()
        value = value.strip(b" \t")
        if key in headers:
            if key in SINGLETONS:
                raise GatewayError("bad_http", f"The {key.decode()} header is repeated.")
            value = headers[key] + b", " + value
        elif len(headers) >= self._limits.headers_max:
            raise GatewayError("head_too_large", "The request has too many headers.")
        headers[key] = value

    def on_headers_complete(self) -> None:
        self._complete_head = True

    # -- the body --

    def _take_length(self, data: bytes) -> bytes:
        left = self._left
        if self._pieces is None and len(data) == left:  # nearly always: the whole of it, in one read
            self._complete(data)
            return b""
        piece = data[:left]
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(piece)
        self._left = left - len(piece)
        if not self._left:
            self._complete(b"".join(self._pieces))
        return data[left:]

    def _take_chunks(self, data: bytes) -> bytes:
        chunks = self._chunks
        assert chunks is not None
        rest = chunks.feed(data)
        if chunks.done:
            self._complete(chunks.body)
        return rest

    # -- ends --

    def _complete(self, body: bytes) -> None:
        request = self._request
        assert request is not None
        request.body = body
        self._forget()
        # Nothing that follows `Connection: close` is a request (RFC 9112 9.6).
        self._part = _HEAD if request.keep_alive else _NOTHING
        self.ready.append(request)

    def _end_with(self, error: GatewayError) -> None:
        """The connection ends with this error, after the answers to what came before it."""
        request = self._request or Request()
        request.error = error
        request.keep_alive = False
        self._forget()
        self._part = _NOTHING
        self.ready.append(request)

    def _forget(self) -> None:
        self._request = None
        self._parser = None
        self._pieces = None
        self._chunks = None
        self._head_bytes = 0
        self._tail = b""
        self._line = b""
        self._raw_target = b""
        self.head_timed = False
        self.wants_continue = False
