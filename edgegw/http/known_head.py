"""The last head of a connection, remembered: the next one is nearly always the same but for the length of its body.

A client writes the same fields again and again over a connection; to judge and to read them each time is a tenth of the
cost of a request. So of a head that was found valid the bytes before and behind the digits of its Content-Length are
kept. What comes with exactly these bytes, and digits between them, is as valid and says the same. Anything else, in
whatever way it differs, is read from scratch (connection.py).

Pure: bytes in, requests out.
"""

from __future__ import annotations

from typing import Self

from edgegw.http.request import Request

# A longer head is not worth its room in every connection that waits for its next request.
HEAD_BYTES_MAX = 4096
_DIGITS_MAX = 18
_LENGTH_FIELD = b"\r\ncontent-length:"


class KnownHead:
    """A head of HTTP/1.1 with a Content-Length, after which the connection goes on."""

    __slots__ = ("_before", "_behind", "_headers", "_method", "_path", "_query")

    def __init__(self, before: bytes, behind: bytes, request: Request) -> None:
        self._before = before
        self._behind = behind
        self._headers = request.headers
        self._method = request.method
        self._path = request.path
        self._query = request.query

    @classmethod
    def of(cls, head: bytes, request: Request) -> Self | None:
        """`request` was read from `head` and nothing was wrong with it. None when it is not one to remember."""
        digits = request.headers.get(b"content-length")
        if digits is None or len(head) > HEAD_BYTES_MAX or request.http_1_0 or not request.keep_alive:
            return None
        if b"expect" in request.headers:
            return None
        start = head.find(digits, head.lower().index(_LENGTH_FIELD) + len(_LENGTH_FIELD))
        return cls(head[:start], head[start + len(digits) :], request)

    def read(self, data: bytes, at: int, body_bytes_max: int) -> tuple[Request, int, int] | None:
        """The request whose head stands in `data` at `at`, the length of its body (above 0), and where the head ends.
        None when it is another head, or not all of it, or one to be refused."""
        before, behind = self._before, self._behind
        if not data.startswith(before, at):
            return None
        start = at + len(before)
        end = data.find(b"\r", start)
        digits = data[start:end]
        if not (data.startswith(behind, end) and digits.isdigit() and len(digits) <= _DIGITS_MAX):
            return None
        length = int(digits)
        if not 0 < length <= body_bytes_max:
            return None
        headers = self._headers.copy()
        headers[b"content-length"] = digits
        return Request(self._method, self._path, self._query, headers), length, end + len(behind)
