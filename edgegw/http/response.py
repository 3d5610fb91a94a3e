"""One reply from upstream, as bytes come in: is it HTTP, where does it end, may anything follow.

llhttp is strict about bytes (line ends, names, lengths) and lenient about meaning, and it has no limit of any kind.
What it lets by and a proxy must not is judged here: other protocols with a status line, status codes that do not
exist, transfer codings that would reach the client undecoded, heads and announcements (1xx) without end, a second
reply behind the first, and a body that ends wherever the connection happens to break.

A head is llhttp's to judge, and ours to read: of the thirty fields that providers send we act on a few, and one search
for their names costs a quarter of a call for each field.

Sans-IO: knows no socket, no pool and no clock. How to read it: `ResponseReader.feed()` is the whole way of one read.
The parser's callbacks only take notes; decisions are made after it returned, so that nothing but `_SurplusError` is
ever raised through C.
"""

from __future__ import annotations

import re

import httptools

Headers = dict[bytes, bytes]
"""Names (of FIELDS_READ) in lower case; values without surrounding blanks, obs-text bytes as they came; those of a
repeated field joined by commas."""

# The fields that somebody acts on: framing, coding, the provider's name for the request, when it may be asked again.
# No other field is looked at.
FIELDS_READ = (
    b"connection",
    b"content-encoding",
    b"content-length",
    b"request-id",
    b"retry-after",
    b"retry-after-ms",
    b"transfer-encoding",
    b"x-request-id",
    b"x-should-retry",
)
_FIELDS = re.compile(rb"\r\n(%b):([^\r]*)" % b"|".join(FIELDS_READ), re.IGNORECASE)

_MINORS = {b"HTTP/1.1 ": 1, b"HTTP/1.0 ": 0}
_VERSION_BYTES = len(b"HTTP/1.1 ")
_END_OF_LINE = b"\r\n"
_END_OF_HEAD = b"\r\n\r\n"

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
    coding = headers.get(b"transfer-encoding")
    if coding is None:
        return False
    return True if coding.lower() == b"chunked" and minor == 1 else None


def ends_at_close(headers: Headers) -> bool:
    """Whether the end of the connection is the end of the body (RFC 9112 6.3 item 8, and 8): nothing else delimits it.
    Whether all of it has come, who reads it tells from what is in it."""
    return b"content-length" not in headers and b"transfer-encoding" not in headers


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
        "_head",
        "_head_bytes_max",
        "_in_chunk",
        "_informational",
        "_informational_max",
        "_keep_alive",
        "_open_ended",
        "_parser",
        "_pieces",
        "_shown",
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
        self._keep_alive = False
        self._chunked = False
        self._in_chunk = False
        self._open_ended = False
        self.between = False
        self.trouble: str | None = None
        self.reset()

    def reset(self) -> None:
        """Ready for the next reply of the same connection, the last one having left it `reusable` (or none at all)."""
        self.status = 0
        self.headers: Headers = {}
        self.body = b""
        self.ended = False
        self.reusable = False
        self._head = b""  # what has come of the head, announcements included, while it is not whole
        self._informational = 0
        self._shown = False
        self._void_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take one read (not empty). Never raises for what the upstream sent."""
        if self._shown:
            broken = self._parse(data)
        else:
            head = data
            if self._head:
                head = self._head + data
                if len(self._head) < _VERSION_BYTES:
                    data = head  # the parser has seen nothing yet
            if len(head) < _VERSION_BYTES or head[:_VERSION_BYTES] not in _MINORS:
                self._wait_for_version(head)
                return
            broken = self._parse(data)
            if not self.status:
                self._head = head
                self.trouble = self._what_is_wrong_so_far(head, broken)
                return
            trouble = self._read_head(head)
            if trouble is not None:
                self.trouble = trouble
                self.status = 0
                self.ended = False
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

    def _wait_for_version(self, head: bytes) -> None:
        """Nothing goes to the parser before enough has come to know that it is HTTP/1.x."""
        if any(version.startswith(head) for version in _MINORS):
            self._head = head
        else:
            self.trouble = _NOT_HTTP

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

    def _what_is_wrong_so_far(self, head: bytes, broken: bool) -> str | None:
        """The head is not whole yet."""
        if self._informational > self._informational_max:
            return _ENDLESS_ANNOUNCEMENTS
        if len(head) > self._head_bytes_max:
            return _HEAD_TOO_LARGE
        return _NOT_HTTP if broken else None

    def _read_head(self, head: bytes) -> str | None:
        """The head is whole: its fields, and what they say of the body. Returns what is wrong, if anything is."""
        if self._informational > self._informational_max:
            return _ENDLESS_ANNOUNCEMENTS
        if not _STATUS_MIN <= self.status <= _STATUS_MAX:
            return _NO_SUCH_STATUS
        start = self._behind_announcements(head) if self._informational else 0
        end = head.find(_END_OF_HEAD, start)
        if end - start > self._head_bytes_max:
            return _HEAD_TOO_LARGE
        minor = _MINORS.get(head[start : start + _VERSION_BYTES])
        if minor is None or end < 0:
            return _NOT_HTTP
        # llhttp has seen to it that CRLF is at the end of a line and nowhere else, and that all of them are fields.
        headers: Headers = {}
        for name, value in _FIELDS.findall(head, start, end):
            name = name.lower()
            value = value.strip()
            headers[name] = headers[name] + b", " + value if name in headers else value
        chunked = b"transfer-encoding" in headers and is_chunked(headers, minor)
        if chunked is None:
            return _FOREIGN_CODING
        self._chunked = chunked
        self.headers = headers
        if not (minor and self._keep_alive):
            self._keep_alive = False
            self._open_ended = ends_at_close(headers)
        return None

    def _behind_announcements(self, head: bytes) -> int:
        start = 0
        for _ in range(self._informational):
            start = head.find(_END_OF_HEAD, start) + len(_END_OF_HEAD)
            while head.startswith(_END_OF_LINE, start):  # which the parser passes over
                start += len(_END_OF_LINE)
        return start

    def _count_void(self, size: int) -> None:
        """Bound what is neither body nor end: chunk extensions and trailers."""
        self._void_bytes += size
        if self._void_bytes > self._head_bytes_max:
            self.trouble = _TOO_MUCH_VOID

    # What the parser calls. Notes only.

    def on_message_begin(self) -> None:
        if self.ended:
            raise _SurplusError

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= _STATUS_MIN or status < 100 or status == _SWITCHING_PROTOCOLS:
            self.status = status
            self._keep_alive = self._parser.should_keep_alive()
        else:
            self._informational += 1

    def on_message_complete(self) -> None:
        self.ended = self.status != 0

    def on_chunk_header(self) -> None:
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        self._in_chunk = False


class _SurplusError(Exception):
    """Stops the parser at bytes that follow a complete reply."""
