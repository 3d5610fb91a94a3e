"""llhttp (httptools) as the judge of request heads, of whole ones and of what has come of one.

It is asked for nothing but whether a head is valid: who reads it is connection.py, and what is wrong with one that is
not, head.py finds out. A head is judged as it comes, so that garbage is answered without waiting for the end of it.
"""

from __future__ import annotations

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from edgegw.http.head import END_OF_LINE, check_line, check_size, may_become_a_line, what_is_wrong
from edgegw.http.request import RequestLimits

_NOBODY = object()  # a parser that only judges calls nobody
_HEAD = b"HEAD "
# llhttp takes blanks behind this one value, but no tab (RFC 9110 5.6.3: either is nothing).
_TAB_BEHIND_CHUNKED = re.compile(rb"(\r\ntransfer-encoding:[ \t]*chunked)[ \t]+(?=\r\n|\r?\Z)", re.IGNORECASE)


def is_valid(head: bytes) -> bool:
    """Whether llhttp finds nothing wrong with a whole head."""
    return _passes(HttpRequestParser(_NOBODY), head) or _judged_anew(head) is not None


class BegunHead:
    """What has come of a head. Raises GatewayError as soon as it is known to be refused."""

    __slots__ = ("_judge", "_limits", "text")

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._judge: HttpRequestParser | None = HttpRequestParser(_NOBODY)
        self.text = b""

    @property
    def method(self) -> bytes:
        """As far as it matters to who refuses the request: to HEAD no reply has a body."""
        return b"HEAD" if self.text.startswith(_HEAD) else b""

    def add(self, data: bytes) -> None:
        """More of it, but not the end."""
        text = self.text = self.text + data
        line_end = text.find(END_OF_LINE)
        check_size(text, line_end, self._limits)
        judge = self._judge
        if judge is not None and not _passes(judge, data):
            judge = self._judge = _judged_anew(text)
        if judge is None:
            if line_end >= 0 or not may_become_a_line(text):
                raise what_is_wrong(text)
            # Else the reason shows at the end of the line.
        elif line_end >= 0:
            check_line(text, line_end)


def _judged_anew(text: bytes) -> HttpRequestParser | None:
    """For a head that was refused over a tab which means nothing: a parser that has taken it without."""
    found = _TAB_BEHIND_CHUNKED.search(text)
    judge = HttpRequestParser(_NOBODY)
    return judge if found and _passes(judge, _TAB_BEHIND_CHUNKED.sub(rb"\1", text)) else None


def _passes(judge: HttpRequestParser, data: bytes) -> bool:
    try:
        judge.feed_data(data)
    except HttpParserUpgrade:
        pass
    except HttpParserError:
        return False
    return True
