"""The reading side of a client connection, sans-IO: bytes in, whole requests out, every size bounded.

The shell (http/server.py) feeds what arrives and takes what is `ready`, in order: `Request`s, of which the last may
carry an error that ends the connection (`Request.error` with `keep_alive` False). Nothing is handed out before the
body is complete, because most framing errors show only there. After such an end the reader ignores all further bytes:
what follows a message that could not be delimited is never parsed as a request.

The shell owes: send `100 Continue` when `wants_continue` turns True and nothing of the body has come; call `eof()` when
the client closes its side; enforce the waits (`mid_head`, `mid_body` say which one runs).
"""

from __future__ import annotations

from collections.abc import Callable

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from edgegw.errors import GatewayError
from edgegw.http.request import (
    METHODS,
    SINGLETONS,
    Request,
    RequestLimits,
    body_length,
    check_expect,
    check_host,
    target_of,
    too_large,
    wants_close,
)

_VERSIONS = (b" HTTP/1.1", b" HTTP/1.0")
_VERSION_LENGTH = 9


class RequestReader:
    """One per client connection. `gate` is asked once per head and may raise GatewayError (unknown path, wrong
    method): then the request is refused without waiting for its body."""

    __slots__ = (
        "_body",
        "_body_left",
        "_current",
        "_dead",
        "_gate",
        "_head_bytes",
        "_in_body",
        "_limits",
        "_line",
        "_parser",
        "_raw_left",
        "_raw_target",
        "_wire_bytes",
        "body_size",
        "head_timed",
        "ready",
        "wants_continue",
    )

    def __init__(self, limits: RequestLimits, gate: Callable[[Request], None]) -> None:
        self._limits = limits
        self._gate = gate
        self._parser: HttpRequestParser | None = None  # made with the first byte: idle connections stay small
        self._current: Request | None = None
        self._raw_target = b""
        self._body: list[bytes] | bytes = b""
        self.body_size = 0
        self._body_left = 0  # of Content-Length, -1: chunked
        self._head_bytes = 0  # raw bytes fed since the message began, while its head is not complete
        self._wire_bytes = 0  # raw bytes fed since the head was complete, of a chunked body
        self._raw_left = 0  # body bytes to be taken without the parser (after Upgrade)
        self._in_body = False
        self._line = b""  # the request line so far, until its version has been seen
        self._dead = False
        self.ready: list[Request] = []  # a list: an idle deque costs 600 bytes
        self.wants_continue = False
        self.head_timed = False  # the shell's mark: the wait for this head is running

    # -- what the shell asks --

    @property
    def mid_head(self) -> bool:
        return (self._current is not None or self._head_bytes > 0) and not self._in_body

    @property
    def mid_body(self) -> bool:
        return self._in_body

    @property
    def dead(self) -> bool:
        """No further request will come from this connection."""
        return self._dead

    # -- what the shell does --

    def feed(self, data: bytes) -> None:
        """Takes bytes as they came. Never raises for what a client sent; look at `ready`."""
        if self._dead:
            return
        if self._raw_left:
            data = self._take_raw(data)
            if not data:
                return
        try:
            if not self._in_body:
                self._count_head(data)
            self._parse(data)
            if self._in_body and self._body_left < 0:
                self._count_chunked(data)
        except GatewayError as error:
            self._end_with(error)
        except HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except HttpParserCallbackError as wrapped:
            cause = wrapped.__context__
            if not isinstance(cause, GatewayError):
                raise
            self._end_with(cause)
        except HttpParserError:
            self._end_with(GatewayError("bad_http", "The request is not well-formed HTTP/1.1."))

    def eof(self) -> None:
        """The client will send no more. A message cut in the middle is refused, never acted upon (RFC 9112 8)."""
        if not self._dead and (self._current is not None or self._head_bytes):
            self._end_with(GatewayError("bad_http", "The connection was closed in the middle of the request."))
        self._dead = True

    def time_out(self) -> None:
        """The client took too long over its head or body."""
        self._end_with(GatewayError("request_timeout", "The request was not sent completely in time."))

    # -- bounds that llhttp does not know --

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = HttpRequestParser(self)
        parser.feed_data(data)

    def _count_head(self, data: bytes) -> None:
        if (self._current is None and not self._head_bytes) or self._line:
            self._watch_line(data)
        size = self._head_bytes + len(data)
        self._head_bytes = size
        if size > self._limits.head_bytes_max:
            self._measure_head(data, size)

    def _watch_line(self, data: bytes) -> None:
        """llhttp takes a line without a version for HTTP/0.9 and waits: look at the version as soon as the line is
        whole."""
        line = self._line + data if self._line else data
        end = line.find(b"\r\n", 2)  # llhttp skips empty lines before a request; they are not its end
        if end < 0:
            if len(line) > self._limits.target_bytes_max + 64:
                raise GatewayError("target_too_long", "The request line is too long.")
            self._line = line
            return
        self._line = b""
        if line[end - _VERSION_LENGTH : end] not in _VERSIONS and line[:2] != b"\r\n":
            if b" HTTP/" in line[:end]:
                raise GatewayError("http_version", "Only HTTP/1.1 and HTTP/1.0 are supported.")
            raise GatewayError("bad_http", "The request line is malformed.")
        if end > self._limits.target_bytes_max + 64:
            raise GatewayError("target_too_long", "The request target is too long.")

    def _measure_head(self, data: bytes, size: int) -> None:
        """Called when a head *may* be too large: a body in the same read does not count."""
        end = data.find(b"\r\n\r\n")
        if end < 0 or size - len(data) + end > self._limits.head_bytes_max:
            raise GatewayError("head_too_large", "The request head is too large.")

    def _count_chunked(self, data: bytes) -> None:
        """Chunk framing and extensions are invisible to callbacks: what was on the wire beyond the body, and beyond
        the smallest framing a chunk needs, is bounded."""
        self._wire_bytes += len(data)
        if self._wire_bytes - self.body_size > self._overhead_max():
            raise GatewayError("bad_http", "The chunked framing of the request is wastefully large.")

    def _overhead_max(self) -> int:
        # A body of one-byte chunks needs five bytes of framing each; that much is honest.
        limits = self._limits
        return limits.chunk_overhead_bytes_max + limits.trailer_bytes_max + limits.head_bytes_max + 6 * self.body_size

    # -- httptools callbacks --

    def on_message_begin(self) -> None:
        if self._dead:
            raise GatewayError("bad_http", "Data after the end of the connection.")
        self._current = Request()
        self._raw_target = b""
        self._body = b""
        self.body_size = 0
        self._in_body = False

    def on_url(self, piece: bytes) -> None:
        target = self._raw_target + piece if self._raw_target else piece
        if len(target) > self._limits.target_bytes_max:
            raise GatewayError("target_too_long", "The request target is too long.")
        self._raw_target = target

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer: counted by _count_chunked, never believed (RFC 9110 6.5.1)
        request = self._current
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
        request, parser = self._current, self._parser
        assert request is not None
        assert parser is not None
        headers = request.headers
        method = request.method = parser.get_method()
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise GatewayError("http_version", "Only HTTP/1.1 and HTTP/1.0 are supported.")
            request.http_1_0 = True
        http_1_0 = request.http_1_0
        self._head_bytes = 0
        self._in_body = True
        self._wire_bytes = 0
        host = check_host(headers, http_1_0)
        if method not in METHODS:
            raise GatewayError("not_implemented", "This method is not implemented.")
        request.path, request.query = target_of(self._raw_target, method, host)
        length = self._body_left = body_length(headers, http_1_0, self._limits.body_bytes_max)
        self.wants_continue = check_expect(headers, http_1_0) and length != 0
        request.keep_alive = not wants_close(headers, http_1_0)
        try:
            self._gate(request)
        except GatewayError as error:
            if length:  # not worth reading: refuse at once and close
                raise
            request.error = error

    def on_body(self, piece: bytes) -> None:
        size = self.body_size + len(piece)
        self.body_size = size
        if size > self._limits.body_bytes_max:
            raise too_large(self._limits.body_bytes_max)
        body = self._body
        if not body:
            self._body = piece
        elif isinstance(body, bytes):
            self._body = [body, piece]
        else:
            body.append(piece)

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser is not None and parser.should_upgrade() and self._body_left:
            return  # llhttp ends the message at the head; _after_upgrade takes the body
        self._complete()

    # -- ends --

    def _complete(self) -> None:
        request = self._current
        assert request is not None
        body = self._body
        request.body = body if isinstance(body, bytes) else b"".join(body)
        self._current = None
        self._body = b""
        self._in_body = False
        self._head_bytes = 0
        self.head_timed = False
        self.wants_continue = False
        if not request.keep_alive:
            self._dead = True
        self.ready.append(request)

    def _after_upgrade(self, rest: bytes) -> None:
        """`Upgrade` is ignored (RFC 9110 7.8), yet llhttp stops at it: the body is taken by its length, anything else
        that followed would be parsed without the parser's state and is not parsed at all."""
        request = self._current
        if request is None:  # no body: the request is complete; only the connection cannot go on
            self._dead = True
            if self.ready:
                self.ready[-1].keep_alive = False
            return
        request.keep_alive = False
        if self._body_left < 0:
            self._end_with(GatewayError("bad_http", "Upgrade cannot be combined with a chunked body."))
            return
        self._raw_left = self._body_left
        self._take_raw(rest)

    def _take_raw(self, data: bytes) -> bytes:
        piece = data[: self._raw_left]
        self._raw_left -= len(piece)
        if piece:
            self.on_body(piece)
        if not self._raw_left:
            self._complete()
        return b""

    def _end_with(self, error: GatewayError) -> None:
        """The connection ends with this error, after the answers to what came before it."""
        if self._dead:
            return
        request = self._current or Request(method=b"GET")
        request.error = error
        request.keep_alive = False
        request.body = b""
        self._current = None
        self._body = b""
        self._raw_left = 0
        self._in_body = False
        self._head_bytes = 0
        self._dead = True
        self.wants_continue = False
        self.ready.append(request)
