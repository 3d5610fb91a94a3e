"""The reading side of a client connection, sans-IO: bytes in, whole requests out, every size bounded.

The shell (http/client_connection.py) feeds what arrives and takes what is `ready`, in order: `Request`s, of which the
last may carry an error that ends the connection (`Request.error` with `keep_alive` False). Nothing is handed out before
its body is complete, because most framing errors show only there. After such an end the reader ignores all further
bytes: what follows a message that could not be delimited is never parsed as a request.

A head is llhttp's (httptools) to judge, and ours to read: what it finds valid can be split at line ends, which is a
third of the cost of its callbacks. A head that is the last one over again but for its length is not even judged
(known_head.py). What delimits the body is decided here, so that `Upgrade`, at which llhttp would
stop, is simply ignored (RFC 9110 7.8), and no byte is ever in two hands.

The shell owes: send `100 Continue` when `wants_continue` is True and nothing of the body has come; call `eof()` when
the client closes its side; enforce the waits (`mid_head`, `mid_body` say which one runs).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from edgegw.errors import GatewayError
from edgegw.http.chunked import ChunkedBody
from edgegw.http.known_head import KnownHead
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
_HTTP_1_1 = b" HTTP/1.1"
_VERSIONS = (_HTTP_1_1, b" HTTP/1.0")
_VERSION_LENGTH = 9
_METHOD_AND_VERSION_MAX = 64
_CR, _LF, _ZERO = b"\r\n0"
_NOBODY = object()  # a parser that only judges calls nobody


class Part(IntEnum):
    """What of a message comes next."""

    HEAD = 0
    LENGTH = 1  # a body delimited by Content-Length
    CHUNKED = 2
    NOTHING = 3  # the connection is over


_HEAD, _LENGTH, _CHUNKED, _NOTHING = Part


class RequestReader:
    """One per client connection. `gate` is asked about each new head, decides by nothing but the head, and may raise
    GatewayError (unknown path, wrong method): then the request is refused without waiting for its body."""

    __slots__ = (
        "_chunks",
        "_gate",
        "_head",
        "_host",
        "_judge",
        "_known",
        "_left",
        "_limits",
        "_part",
        "_path",
        "_pieces",
        "_query",
        "_request",
        "_target",
        "head_timed",
        "ready",
        "wants_continue",
    )

    def __init__(self, limits: RequestLimits, gate: Callable[[Request], None]) -> None:
        self._limits = limits
        self._gate = gate
        self._request: Request | None = None
        self._part = _HEAD
        self._head = b""  # what has come of a head that is not whole
        self._judge: HttpRequestParser | None = None  # of that part
        self._known: KnownHead | None = None
        self._target: bytes | None = None  # of the last request, as it stood in its head
        self._host: bytes | None = None
        self._path = self._query = b""
        self._left = 0  # of a body with a length
        self._pieces: list[bytes] | None = None
        self._chunks: ChunkedBody | None = None
        self.ready: list[Request] = []  # a list: an idle deque costs 600 bytes
        self.wants_continue = False
        self.head_timed = False  # the shell's mark: the wait for this head is running

    # -- what the shell asks --

    @property
    def at_rest(self) -> bool:
        """Between two requests."""
        return self._part is _HEAD and not self._head

    @property
    def mid_head(self) -> bool:
        return self._part is _HEAD and bool(self._head)

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
        """Takes what belongs to the head; returns what follows it."""
        known = self._known
        if known is not None and not self._head:
            found = known.read(data, self._limits.body_bytes_max)
            if found is not None:
                request, length, rest = found
                self._request = request
                self._gate(request)  # who was let in a moment ago may not be any more
                if len(rest) == length:  # nearly always: the whole of it, in one read
                    request.body = rest
                    self.ready.append(request)
                    return b""
                self._left = length
                self._part = _LENGTH
                return rest
        head = self._head + data if self._head else data
        if head[0] == _CR:
            if head == b"\r":
                self._head = head
                return b""
            if head[1] == _LF:  # RFC 9112 2.2: an empty line before a request is ignored
                self._head = b""
                return head[2:]
        end = head.find(_END_OF_HEAD)
        if end < 0:
            self._hold_head(head, data)
            return b""
        end += len(_END_OF_HEAD)
        if end == len(head):
            self._read_head(head)
            return b""
        self._read_head(head[:end])
        return head[end:]

    def _hold_head(self, head: bytes, data: bytes) -> None:
        """Keeps what has come of a head, unless it can be told already that it will be refused."""
        limits = self._limits
        line_end = head.find(b"\r\n")
        self._request = self._request or Request()
        if (line_end if line_end >= 0 else len(head)) > limits.target_bytes_max + _METHOD_AND_VERSION_MAX:
            raise GatewayError("target_too_long", "The request target is too long.")
        if len(head) > limits.head_bytes_max:
            raise GatewayError("head_too_large", "The request head is too large.")
        if not self._head:
            self._judge = HttpRequestParser(_NOBODY)
        if self._judge is not None:
            _validate(self._judge, data)
        if line_end >= 0:
            _check_version(head, line_end)
        self._head = head

    def _read_head(self, head: bytes) -> None:
        """The head is whole: what it says decides what follows. Raises GatewayError."""
        limits = self._limits
        request = self._request = Request()
        line_end = head.find(b"\r\n")
        if line_end > limits.target_bytes_max + _METHOD_AND_VERSION_MAX:
            raise GatewayError("target_too_long", "The request target is too long.")
        if len(head) > limits.head_bytes_max:
            raise GatewayError("head_too_large", "The request head is too large.")
        _validate(HttpRequestParser(_NOBODY), head)
        if head[line_end - _VERSION_LENGTH : line_end] != _HTTP_1_1:
            _check_version(head, line_end)
        # llhttp has seen to it that lines end in CRLF only, and names and values hold nothing else.
        http_1_0 = request.http_1_0 = head[line_end - 1] == _ZERO
        method, _, target = head[: line_end - _VERSION_LENGTH].partition(b" ")
        request.method = method
        headers = request.headers
        _read_fields(head[line_end + 2 : -4], headers, limits.headers_max)
        if method not in METHODS:
            raise GatewayError("not_implemented", "This method is not implemented.")
        if target != self._target or headers.get(b"host") != self._host or http_1_0:
            # Checked anew where it differs from the request before, on a connection hardly ever.
            host = check_host(headers, http_1_0)
            self._path, self._query = target_of(target, method, host)
            self._target, self._host = target, host
        request.path, request.query = self._path, self._query
        length = body_length(headers, http_1_0, limits.body_bytes_max)
        # `Upgrade` is ignored, but whoever sent it may go on in another protocol.
        if b"connection" in headers or http_1_0 or b"upgrade" in headers:
            request.keep_alive = not wants_close(headers, http_1_0) and b"upgrade" not in headers
        wants_continue = b"expect" in headers and check_expect(headers, http_1_0)
        try:
            self._gate(request)
        except GatewayError as error:
            if length:  # not worth reading: refuse at once and close
                raise
            request.error = error
        self._head = b""
        if not length:
            self._complete(b"")
            return
        self.wants_continue = wants_continue
        if length < 0:
            self._part = _CHUNKED
            self._chunks = ChunkedBody(limits.body_bytes_max)
        else:
            self._part = _LENGTH
            self._left = length
            self._known = KnownHead.of(head, request)

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
        self._pieces = None
        self._chunks = None
        self._judge = None
        self._head = b""
        self.head_timed = False
        self.wants_continue = False


def _validate(judge: HttpRequestParser, data: bytes) -> None:
    """llhttp looks for what is not HTTP/1.1: in parts of a head as they come, as well as in a whole one."""
    try:
        judge.feed_data(data)
    except HttpParserUpgrade:
        pass
    except HttpParserError:
        raise GatewayError("bad_http", "The request is not well-formed HTTP/1.1.") from None


def _check_version(head: bytes, line_end: int) -> None:
    """llhttp takes a line without a version for HTTP/0.9, and any protocol's version for one of HTTP."""
    if head[line_end - _VERSION_LENGTH : line_end] in _VERSIONS:
        return
    if b" HTTP/" in head[:line_end]:
        raise GatewayError("http_version", "Only HTTP/1.1 and HTTP/1.0 are supported.")
    raise GatewayError("bad_http", "The request line is malformed.")


def _read_fields(lines: bytes, headers: dict[bytes, bytes], headers_max: int) -> None:
    """The fields of a valid head. A repeated one is joined by a comma, where that is possible (RFC 9110 5.3)."""
    if not lines:
        return
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        if name in headers:
            if name in SINGLETONS:
                raise GatewayError("bad_http", f"The {name.decode()} header is repeated.")
            value = headers[name] + b", " + value
        elif len(headers) >= headers_max:
            raise GatewayError("head_too_large", "The request has too many headers.")
        headers[name] = value
