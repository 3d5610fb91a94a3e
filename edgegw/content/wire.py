"""From the bytes that a client was sent to the body that it read: the head and the framing of HTTP are taken off.

What was sent is copied as it leaves (`ReplyCopy`), because that costs a list's append per write; it is made readable
afterwards, by the control process. Pure.
"""

from __future__ import annotations

from edgegw.http.reply import CONTINUE
from edgegw.http.response import ResponseReader
from edgegw.settings import CaptureMode

# Kept beyond the bound for the head, which is taken off again: ours are far below.
HEAD_ROOM_BYTES = 8 * 1024
_END_OF_HEAD = b"\r\n\r\n"
# The last line of a head of ours when the body is in chunks (http/reply.py).
_IN_CHUNKS = b"\r\ntransfer-encoding: chunked\r\n\r\n"
_HEAD = b"HTTP/1.1 200 OK" + _IN_CHUNKS


class ReplyCopy:
    """Collects what a client is sent, up to a bound; what comes after it is only known to have come. `keep`, `tell`:
    what it is for, `off`, `errors` or `all`."""

    __slots__ = ("_left", "_pieces", "_room", "cut", "keep", "tell")

    def __init__(self, bytes_max: int, keep: CaptureMode = "all", tell: CaptureMode = "off") -> None:
        self._left = self._room = bytes_max + HEAD_ROOM_BYTES
        self._pieces: list[bytes] = []
        self.cut = False
        self.keep = keep
        self.tell = tell

    def add(self, data: bytes) -> None:
        left = self._left - len(data)
        if left >= 0:
            self._left = left
            self._pieces.append(data)
            return
        self.cut = True
        if self._left:
            self._pieces.append(data[: self._left])
            self._left = 0

    @property
    def size(self) -> int:
        """In bytes, at most what will be kept."""
        return self._room - self._left

    @property
    def sent(self) -> bytes:
        return b"".join(self._pieces)


def behind_head(sent: bytes) -> tuple[bytes, bool]:
    """The body of a reply as it was sent, and whether it is in chunks."""
    start = 0
    while sent.startswith(CONTINUE, start):
        start += len(CONTINUE)
    end = sent.find(_END_OF_HEAD, start) + len(_END_OF_HEAD)
    if end < len(_END_OF_HEAD):
        return b"", False
    return sent[end:], sent.endswith(_IN_CHUNKS, start, end)


def unchunked(body: bytes) -> bytes:
    """What the chunks hold, also when the last of them is cut. Raises ValueError for what is no framing. (By the parser
    of replies: it takes an eighth of the time of http/chunked.py, for events of a few words.)"""
    reader = ResponseReader(head_bytes_max=HEAD_ROOM_BYTES, informational_max=0)
    reader.feed(_HEAD + body)
    if reader.trouble is not None:
        raise ValueError(reader.trouble)
    return reader.body
