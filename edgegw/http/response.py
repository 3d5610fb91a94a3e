"""One reply from upstream, as bytes come in: is it HTTP, where does it end, may anything follow.

llhttp is strict about bytes (line ends, names, lengths) and lenient about meaning, and it has no limit of any kind.
What it lets by and a proxy must not is judged here: other protocols with a status line, status codes that do not
exist, transfer codings that would reach the client undecoded, heads and announcements (1xx) without end, a second
reply behind the first, and a body that ends wherever the connection happens to break.

Sans-IO: knows no socket, no pool and no clock. How to read it: `ResponseReader.feed()` is the whole way of one read.
The parser's callbacks only take notes; decisions are made after it returned, so that nothing but `_SurplusError` is
ever raised through C.
"""

from __future__ import annotations

import re

import httptools

Headers = list[tuple[bytes, bytes]]
"""Names in lower case; values without surrounding blanks, obs-text bytes as they came."""

_MINORS = {b"HTTP/1.1 ": 1, b"HTTP/1.0 ": 0}
_VERSION_BYTES = len(b"HTTP/1.1 ")

_STATUS_MIN, _STATUS_MAX = 200, 599
_SWITCHING_PROTOCOLS = 101  # never asked for, so no announcement but a mistake

_STATUS_LINE = rb"HTTP/1\.[01] (?P<status>[1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
_FIELD_LINE = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n"
_TUNNEL_HEAD = re.compile(rb"%b(?:%b)*\r\n" % (_STATUS_LINE, _FIELD_LINE))

_NOT_HTTP = "The provider's answer is not valid HTTP."
_NO_SUCH_STATUS = "The provider's answer has a status code that does not exist."
_FOREIGN_CODING = "The provider's answer has a transfer encoding that nobody asked for."
_HEAD_TOO_LARGE = "The provider's answer has too large a head."
_ENDLESS_ANNOUNCEMENTS = "The provider announces its answer again and again."
_TOO_MUCH_VOID = "The provider's answer has too much between its chunks."


def is_chunked(headers: Headers, minor: int) -> bool | None:
    """Whether the body is chunked; None when it is in a form that we must not pass on. Only `chunked` alone, once and
    in HTTP/1.1 will do: of `gzip, chunked` llhttp takes the chunks off, and the client would get what is left."""
    coding = None
    for name, value in headers:
        if name == b"transfer-encoding":
            if coding is not None:
                return None
            coding = value.strip().lower()
    if coding is None:
        return False
    return True if coding == b"chunked" and minor == 1 else None


def ends_at_close(headers: Headers, minor: int) -> bool:
    """Whether the end of the connection is an honest end of the body (RFC 9112 6.3 item 8): nothing else delimits it,
    and the upstream said that it would close, by HTTP/1.0 or by `connection: close`."""
    closes = minor == 0
    for name, value in headers:
        if name in (b"content-length", b"transfer-encoding"):
            return False
        if name == b"connection":
            closes = closes or b"close" in [token.strip() for token in value.lower().split(b",")]
    return closes


def tunnel_status(head: bytes) -> int:
    """The status in a proxy's answer to CONNECT, `head` ending with the empty line; 0 when a byte of it is not as it
    ought to be: what comes after it is taken for the provider itself."""
    match = _TUNNEL_HEAD.fullmatch(head)
    return int(match["status"]) if match else 0


class ResponseReader:
    """Reads the replies of one connection, one after the other: `feed()` each read and look at the attributes.

    `status` and `headers`: the final head once it is whole (0 until then); 1xx never show. `body`: what the last read
    brought of the body, without framing. `ended`: the reply is complete; then `reusable` says whether the connection
    may carry another (it is kept alive and nothing followed), after `reset()`. `trouble`: what is wrong with the reply,
    in words fit for a client; what the read brought before the trouble is still in `body`, and a head that is refused
    does not show. `between`: the parser stands exactly between two chunks, so whole chunks may bypass it.

    Requests were never HEAD, CONNECT or upgrades: llhttp cannot be told that their replies are framed differently.
    """

    __slots__ = (
        "_chunked",
        "_head_bytes",
        "_head_bytes_max",
        "_in_chunk",
        "_informational",
        "_informational_max",
        "_keep_alive",
        "_minor",
        "_open_ended",
        "_parser",
        "_pieces",
        "_shown",
        "_start",
        "_void_bytes",
        "between",
        "body",
        "ended",
        "headers",
        "on_body",
        "reusable",
        "status",
        "trouble",
    )

    def __init__(self, *, head_bytes_max: int, informational_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._informational_max = informational_max
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # the parser calls C from C: no frame of ours per chunk
        self._parser = httptools.HttpResponseParser(self)
        self.reset()

    def reset(self) -> None:
        """Ready for the next reply of the same connection."""
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.ended = False
        self.reusable = False
        self.between = False
        self.trouble: str | None = None
        self._start = b""
        self._minor = 1
        self._head_bytes = 0
        self._informational = 0
        self._shown = False
        self._keep_alive = False
        self._chunked = False
        self._open_ended = False
        self._in_chunk = False
        self._void_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take one read (not empty). Never raises for what the upstream sent."""
        if not self._shown:
            data = self._checked_start(data)
            if not data:
                return
        broken = self._parse(data)
        if not self._shown:
            self._check_head(broken)
            if not self.status:
                return
            self._shown = True
        pieces = self._pieces
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
        else:
            body = b""
        self.body = body
        if self.ended:
            # A length-delimited body ends where the read ends; behind chunks the parser has seen what follows.
            nothing_follows = not broken and (self._chunked or data.endswith(body or b"\n"))
            self.reusable = nothing_follows and self._keep_alive
            self.between = False
        elif broken:
            self.trouble = _NOT_HTTP
        elif self._chunked:
            # The parser calls at the end of a size line; the first digit of one is only seen in the bytes.
            self.between = not self._in_chunk and data[-1] == 10
            if body:
                self._void_bytes = 0
            else:
                self._count_void(len(data))

    def feed_eof(self) -> bool:
        """The upstream will send no more: True when that completes the reply."""
        self.ended = self.ended or self._open_ended
        return self.ended

    def _checked_start(self, data: bytes) -> bytes:
        """What is fit for the parser while in the head: all, once enough has come to know that it is HTTP/1.x."""
        if self._head_bytes:
            self._head_bytes += len(data)
            return data
        data = self._start + data
        start = data[:_VERSION_BYTES]
        minor = _MINORS.get(start)
        if minor is not None:
            self._minor = minor
            self._head_bytes = len(data)
            return data
        if any(version.startswith(start) for version in _MINORS):
            self._start = data
        else:
            self.trouble = _NOT_HTTP
        return b""

    def _parse(self, data: bytes) -> bool:
        """Run the parser over one read; True when it found what cannot be HTTP, or bytes behind the end."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _SurplusError):
                raise cause or error from None  # a mistake of ours is not the upstream's
            return True
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return True
        return False

    def _check_head(self, broken: bool) -> None:
        """After a read in the head: set `trouble` and take back the status when it must not be shown."""
        if self._head_bytes > self._head_bytes_max and (
            not self.status or _field_bytes(self.headers) > self._head_bytes_max
        ):
            trouble = _HEAD_TOO_LARGE
        elif self._informational > self._informational_max:
            trouble = _ENDLESS_ANNOUNCEMENTS
        elif not self.status:
            self.trouble = _NOT_HTTP if broken else None
            return
        elif not _STATUS_MIN <= self.status <= _STATUS_MAX:
            trouble = _NO_SUCH_STATUS
        else:
            chunked = is_chunked(self.headers, self._minor)
            if chunked is not None:
                self._chunked = chunked
                if self._minor == 0 or not self._keep_alive:
                    self._keep_alive = False
                    self._open_ended = ends_at_close(self.headers, self._minor)
                return
            trouble = _FOREIGN_CODING
        self.trouble = trouble
        self.status = 0
        self.ended = False

    def _count_void(self, size: int) -> None:
        """Bound what is neither body nor end: chunk extensions and trailers."""
        self._void_bytes += size
        if self._void_bytes > self._head_bytes_max:
            self.trouble = _TOO_MUCH_VOID

    # What the parser calls. Notes only.

    def on_message_begin(self) -> None:
        if self.ended:
            raise _SurplusError
        if self._informational:
            self.headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else it is a trailer
            self.headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < _STATUS_MIN and status != _SWITCHING_PROTOCOLS:
            self._informational += 1
        else:
            self.status = status
            self._keep_alive = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.ended = self.status != 0

    def on_chunk_header(self) -> None:
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        self._in_chunk = False


class _SurplusError(Exception):
    """Stops the parser at bytes that follow a complete reply."""


def _field_bytes(headers: Headers) -> int:
    return sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)
