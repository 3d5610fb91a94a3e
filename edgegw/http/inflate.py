"""Content codings of replies. We ask for identity; some providers send gzip all the same, even of event streams.

Pure. Every read is bounded in what it may come to.
"""

from __future__ import annotations

import zlib

from edgegw.errors import UpstreamFault

CODINGS = (b"gzip", b"x-gzip", b"deflate")
# What one read (256 KiB at most) may come to: text shrinks to a twentieth, more than this is no answer but a bomb.
DECODED_BYTES_MAX = 16 * 1024 * 1024
_WINDOW = zlib.MAX_WBITS | 32  # gzip or zlib, as its first bytes say
_GZIP = b"\x1f\x8b"


class Inflater:
    """One reply's."""

    __slots__ = ("_member",)

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_WINDOW)

    def decode(self, data: bytes) -> bytes:
        """What `data` adds to the reply. Raises UpstreamFault."""
        pieces, left = [], DECODED_BYTES_MAX
        try:
            while left > 0:
                pieces.append(self._member.decompress(data, left))
                left -= len(pieces[-1])
                data = self._member.unused_data
                if not data.startswith(_GZIP):
                    break
                self._member = zlib.decompressobj(_WINDOW)  # another member of the same file (RFC 1952 2.2)
        except zlib.error:
            raise UpstreamFault("upstream_garbage", "The provider's reply could not be decompressed.") from None
        if left <= 0:
            raise UpstreamFault("upstream_garbage", "The provider's reply is too large.")
        return b"".join(pieces)
