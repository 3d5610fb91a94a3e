"""A strict decoder of chunked request bodies (RFC 9112 7.1), every size bounded.

Ours rather than the parser's, because a callback parser shows neither how large a chunk says it is, nor how much of
what came is extensions and trailers. Extensions are ignored, trailers are checked and dropped: nothing in them is
believed (RFC 9110 6.5.1).
"""

from __future__ import annotations

import re
from enum import IntEnum

from edgegw.errors import GatewayError

# chunk-size [ chunk-ext ]: no white space before an extension; its text as in a quoted string or token, no controls.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
# A chunk without extensions, as nearly all are.
_PLAIN_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,7})\r\n")
_END_OF_LINE = b"\r\n"
LINE_BYTES_MAX = 4096
OVERHEAD_BYTES_MAX = 16 * 1024  # of extensions in a whole message (Go, CVE-2023-39326)
TRAILER_BYTES_MAX = 8 * 1024
# Lines and pieces of data taken in one go: ten milliseconds, where a read of the tiniest chunks would take a hundred.
STEPS_MAX = 4096


class _Next(IntEnum):
    SIZE = 0
    DATA = 1
    END_OF_DATA = 2
    TRAILER = 3


_SIZE, _DATA, _END_OF_DATA, _TRAILER = _Next


class ChunkedBody:
    """Feed it until `done`. `size` is what has come of the body so far."""

    __slots__ = ("_body", "_bytes_max", "_left", "_line", "_next", "_overhead", "_trailer_bytes", "done", "size")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._next = _SIZE
        self._left = 0
        self._line = b""
        self._overhead = 0
        self._trailer_bytes = 0
        self._body = bytearray()  # a list of a million small chunks would be forty times as large
        self.size = 0
        self.done = False

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    def feed(self, data: bytes, at: int = 0) -> int:
        """Takes bytes from `at` on; returns where the body ends in them, or where it would rather go on later. Raises
        GatewayError: bad_http (400) for broken framing, body_too_large (413) as soon as a chunk says that it will be.
        """
        for _ in range(STEPS_MAX):
            if at == len(data) or self.done:
                break
            if self._next is _DATA:
                piece = data[at : at + self._left]
                self._body += piece
                self.size += len(piece)
                self._left -= len(piece)
                at += len(piece)
                if not self._left:
                    self._next = _END_OF_DATA
                continue
            if self._next is _SIZE and not self._line:
                end = self._take_whole_chunk(data, at)
                if end:
                    at = end
                    continue
            end = data.find(b"\n", at)
            line = self._line + data[at : end + 1 if end >= 0 else len(data)]
            if len(line) > LINE_BYTES_MAX:
                raise _broken("too long a line")
            if end < 0:
                if b"\r" in line[:-1]:
                    raise _broken("a bare CR")
                self._line = line
                return len(data)
            self._line = b""
            at = end + 1
            if line[-2:] != _END_OF_LINE:
                raise _broken("a bare LF")
            self._take_line(line[:-2])
        return at

    def _take_whole_chunk(self, data: bytes, at: int) -> int:
        """Takes a chunk that is all there and has nothing to look at; returns where it ends. 0 when it is another."""
        match = _PLAIN_SIZE_LINE.match(data, at)
        if match is None:
            return 0
        size, start = int(match[1], 16), match.end()
        end = start + size
        if not size or self.size + size > self._bytes_max or not data.startswith(_END_OF_LINE, end):
            return 0
        self._body += data[start:end]
        self.size += size
        return end + len(_END_OF_LINE)

    def _take_line(self, line: bytes) -> None:
        if self._next is _SIZE:
            self._take_size(line)
        elif self._next is _END_OF_DATA:
            if line:
                raise _broken("data beyond the size of its chunk")
            self._next = _SIZE
        elif not line:
            self.done = True
        else:
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > TRAILER_BYTES_MAX:
                raise _broken("too large a trailer")
            if not _TRAILER_LINE.fullmatch(line):
                raise _broken("a malformed trailer")

    def _take_size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise _broken("a malformed chunk size")
        digits = match[1]
        self._overhead += len(line) - len(digits)
        if self._overhead > OVERHEAD_BYTES_MAX:
            raise _broken("too much in chunk extensions")
        size = int(digits, 16)
        if self.size + size > self._bytes_max:
            raise too_large(self._bytes_max)
        self._left = size
        self._next = _DATA if size else _TRAILER


def too_large(bytes_max: int) -> GatewayError:
    return GatewayError("body_too_large", f"The request body is larger than the limit of {bytes_max} bytes.")


def _broken(what: str) -> GatewayError:
    return GatewayError("bad_http", f"The chunked body of the request has {what}.")
