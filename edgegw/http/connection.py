"""The reading side of a client connection, sans-IO: bytes in, whole requests out, every size bounded.

The shell (http/client_connection.py) feeds what arrives and takes what is `ready`, in order: `Request`s, of which the
last may carry an error that ends the connection (`Request.error` with `keep_alive` False). Nothing is handed out before
its body is complete, because most framing errors show only there. After such an end the reader ignores all further
bytes: what follows a message that could not be delimited is never parsed as a request.

A head is llhttp's (httptools) to judge, and ours to read: what it finds valid can be split at line ends, which is a
third of the cost of its callbacks. A head that is the last one over again but for its length is not even judged
(known_head.py). What delimits the body is decided here, so that `Upgrade`, at which llhttp would
stop, is simply ignored (RFC 9110 7.8), and no byte is ever in two hands.

At most READY_MAX requests are read ahead, and so many chunks of a body at once: what came behind them is `held`. So the
thousand small ones which a client can send in one read are not everybody's wait, and large ones do not pile up.

The shell owes: send `100 Continue` when `wants_continue` is True and nothing of the body has come; call `eof()` when
the client closes its side; call `go_on()` when it has taken all that is ready and something is held; enforce the waits
(`mid_head`, `mid_body` say which one runs).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from edgegw.errors import GatewayError
from edgegw.http.chunked import ChunkedBody
from edgegw.http.head import END_OF_LINE, VERSION_BYTES, check_line, check_size, read_fields, what_is_wrong
from edgegw.http.judge import BegunHead, is_valid
from edgegw.http.known_head import KnownHead
from edgegw.http.request import (
    METHODS,
    Request,
    RequestLimits,
    body_length,
    check_expect,
    check_host,
    target_of,
    wants_close,
)

# Requests read ahead of the one in work, and how large a body may be behind which no other is read.
READY_MAX = 16
READY_BODY_BYTES_MAX = 64 * 1024
# Whose requests have a body, so that without a word on its length what follows may be meant as one.
_WITH_BODY = (b"POST", b"PUT", b"PATCH")
_END_OF_HEAD = b"\r\n\r\n"
_CR, _LF, _ZERO = b"\r\n0"


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
        "_begun",
        "_chunks",
        "_eof",
        "_gate",
        "_host",
        "_known",
        "_left",
        "_length",
        "_limits",
        "_part",
        "_path",
        "_pieces",
        "_query",
        "_request",
        "_skipped_line",
        "_target",
        "head_timed",
        "held",
        "ready",
        "wants_continue",
    )

    def __init__(self, limits: RequestLimits, gate: Callable[[Request], None]) -> None:
        self._limits = limits
        self._gate = gate
        self._request: Request | None = None
        self._part = _HEAD
        self._begun: BegunHead | None = None
        self._known: KnownHead | None = None
        self._target: bytes | None = None  # of the last request, as it stood in its head
        self._host: bytes | None = None
        self._path = self._query = b""
        self._skipped_line = False  # the empty line before this request
        self._left = self._length = 0  # of a body with a length
        self._pieces: list[bytes] | None = None
        self._chunks: ChunkedBody | None = None
        self.ready: list[Request] = []  # a list: an idle deque costs 600 bytes
        self.held = b""  # what came behind all that is ready
        self._eof = False  # behind that
        self.wants_continue = False
        self.head_timed = False  # the shell's mark: the wait for this head is running

    # -- what the shell asks --

    @property
    def at_rest(self) -> bool:
        """Between two requests."""
        return self._part is _HEAD and self._begun is None and not self.held

    @property
    def mid_head(self) -> bool:
        return self._part is _HEAD and self._begun is not None

    @property
    def mid_body(self) -> bool:
        return self._part is _LENGTH or self._part is _CHUNKED

    @property
    def body_size(self) -> int:
        """Bytes of the body so far."""
        if self._chunks is not None:
            return self._chunks.size
        return self._length - self._left if self._pieces else 0

    @property
    def dead(self) -> bool:
        """No further request will come from this connection."""
        return self._part is _NOTHING

    # -- what the shell does --

    def feed(self, data: bytes) -> None:
        """Takes bytes as they came. Never raises for what a client sent; look at `ready`."""
        if self.held:
            self.held += data
            return
        at, size = 0, len(data)
        try:
            while at < size:
                ready = self.ready
                if ready and (len(ready) >= READY_MAX or len(ready[-1].body) > READY_BODY_BYTES_MAX):
                    self.held = data[at:]
                    return
                part = self._part
                if part is _HEAD:
                    at = self._take_head(data, at)
                elif part is _LENGTH:
                    at = self._take_length(data, at)
                elif part is _CHUNKED:
                    at = self._take_chunks(data, at)
                    if self._part is _CHUNKED and at < size:
                        self.held = data[at:]
                        return
                else:
                    return
        except GatewayError as error:
            self._end_with(error)

    def go_on(self) -> None:
        """All that was ready has been taken: reads on in what is held."""
        held, self.held = self.held, b""
        self.feed(held)
        if self._eof and not self.held:
            self.eof()

    def stop(self) -> None:
        """Nothing more will be taken."""
        self.ready.clear()
        self.held = b""
        self._part = _NOTHING

    def eof(self) -> None:
        """The client will send no more. A message cut in the middle is refused, never acted upon (RFC 9112 8)."""
        if self.held:
            self._eof = True
            return
        if self.mid_head or self.mid_body:
            self._end_with(GatewayError("bad_http", "The connection was closed in the middle of the request."))
        self._part = _NOTHING

    def time_out(self) -> None:
        """The client took too long over its head or body."""
        self._end_with(GatewayError("request_timeout", "The request was not sent completely in time."))

    # -- the head --

    def _take_head(self, data: bytes, at: int) -> int:
        """Takes what belongs to the head from `at` on; returns where that ends."""
        known, begun = self._known, self._begun
        if known is not None and begun is None:
            found = known.read(data, at, self._limits.body_bytes_max)
            if found is not None:
                request, length, at = found
                self._request = request
                self._skipped_line = False
                self._gate(request)  # who was let in a moment ago may not be any more
                if len(data) - at == length:  # nearly always: the whole of it, in one read
                    self._request = None
                    request.body = data[at:]
                    self.ready.append(request)
                    return len(data)
                self._left = self._length = length
                self._part = _LENGTH
                return at
        held = 0
        if begun is not None:
            held = len(begun.text)
            data = begun.text + data  # its end was the end of a read: `at` is 0
        if data[at] == _CR and data[at : at + 2] != b"\r":
            self._skip_line(data, at)
            return at + 2 - held
        end = data.find(_END_OF_HEAD, at)
        if end < 0:
            if begun is None:
                begun = self._begun = BegunHead(self._limits)
            begun.add(data[at + held :])
            return len(data) - held
        end += len(_END_OF_HEAD)
        self._read_head(data[at:end])
        return end - held

    def _skip_line(self, data: bytes, at: int) -> None:
        """An empty line before a request is ignored (RFC 9112 2.2): one."""
        if self._skipped_line or data[at + 1] != _LF:
            raise GatewayError("bad_http", "The request line is malformed.")
        self._begun = None
        self._skipped_line = True

    def _read_head(self, head: bytes) -> None:
        """The head is whole: what it says decides what follows. Raises GatewayError."""
        limits = self._limits
        request = self._request = Request()
        line_end = head.find(END_OF_LINE)
        method, _, target = head[: line_end - VERSION_BYTES].partition(b" ")
        request.method = method
        check_size(head, line_end, limits)
        if not is_valid(head) or method not in METHODS:
            raise what_is_wrong(head)
        check_line(head, line_end)
        # llhttp has seen to it that lines end in CRLF only, and names and values hold nothing else.
        http_1_0 = request.http_1_0 = head[line_end - 1] == _ZERO
        headers = request.headers
        read_fields(head[line_end + 2 : -4], headers, limits.headers_max)
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
        if not length and method in _WITH_BODY and b"content-length" not in headers:
            request.keep_alive = False
        try:
            self._gate(request)
        except GatewayError as error:
            if length:  # not worth reading: refuse at once and close
                raise
            request.error = error
        self._begun = None
        if not length:
            self._complete(b"")
            return
        self.wants_continue = wants_continue
        if length < 0:
            self._part = _CHUNKED
            self._chunks = ChunkedBody(limits.body_bytes_max)
        else:
            self._part = _LENGTH
            self._left = self._length = length
            self._known = KnownHead.of(head, request)

    # -- the body --

    def _take_length(self, data: bytes, at: int) -> int:
        left = self._left
        piece = data[at : at + left]
        if self._pieces is None and len(piece) == left:  # nearly always: the whole of it, in one read
            self._complete(piece)
            return at + left
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(piece)
        self._left = left - len(piece)
        if not self._left:
            self._complete(b"".join(self._pieces))
        return at + len(piece)

    def _take_chunks(self, data: bytes, at: int) -> int:
        chunks = self._chunks
        assert chunks is not None
        at = chunks.feed(data, at)
        if chunks.done:
            self._complete(chunks.body)
        return at

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
        request = self._request or Request(method=b"" if self._begun is None else self._begun.method)
        request.error = error
        request.keep_alive = False
        self._forget()
        self._part = _NOTHING
        self.ready.append(request)

    def _forget(self) -> None:
        self._request = None
        self._pieces = None
        self._chunks = None
        self._begun = None
        self.head_timed = False
        self.wants_continue = False
        self._skipped_line = False
