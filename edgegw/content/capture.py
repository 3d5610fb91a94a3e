"""Capture: the worker's side of content. Copies what a captured client is sent, and puts it down at the end.

For an exchange that is not captured nothing is done, and for a gateway that captures nobody there is no Capture. What
is put down is the body of the request and what the client was sent, both up to a bound; no headers, no keys. Knows no
database; nothing of what it sees is ever logged.
"""

from __future__ import annotations

import msgspec

from edgegw.clock import Clock
from edgegw.content.choice import Choice
from edgegw.content.files import Tray
from edgegw.content.record import VERSION, Content
from edgegw.content.wire import ReplyCopy, behind_head
from edgegw.exchange import Exchange
from edgegw.http.reply import Reply
from edgegw.http.request import Request

# Files that are asked after once a second, for the gauge.
LOOKED_AT_MAX = 1000


class Capture:
    """One per worker. `open` when the tenant of an exchange is known and nothing was sent yet; `close` when all was."""

    def __init__(self, choice: Choice, tray: Tray, clock: Clock, bytes_max: int) -> None:
        self._mode = choice.mode
        self._tray = tray
        self._wall_ns = clock.wall_ns
        self._bytes_max = bytes_max
        self._encode = msgspec.msgpack.Encoder().encode

    def open(self, exchange: Exchange, reply: Reply) -> ReplyCopy | None:
        """Begins to copy what the client is sent; None when this exchange is none of our business."""
        mode = self._mode(exchange.tenant, exchange.id)
        if mode == "off":
            return None
        copy = ReplyCopy(self._bytes_max, mode == "errors")
        reply.copy_to(copy.add)
        return copy

    def close(self, exchange: Exchange, request: Request, copy: ReplyCopy) -> None:
        """Keeps the content, unless only that of failures is wanted. Never raises for what the disk does."""
        if copy.errors_only and exchange.state == "complete":
            return
        bytes_max = self._bytes_max
        reply, chunked = behind_head(copy.sent)
        content = Content(
            VERSION,
            exchange.id,
            exchange.tenant,
            self._wall_ns(),
            exchange.dialect,
            exchange.stream,
            request.body[:bytes_max],
            len(request.body) > bytes_max,
            reply[:bytes_max],
            copy.cut or len(reply) > bytes_max,
            chunked,
        )
        self._tray.put(exchange.id, self._encode(content))

    def gauges(self) -> dict[str, float]:
        """For the worker's vitals."""
        tray = self._tray
        tray.look(LOOKED_AT_MAX)
        return {
            "content_kept": tray.kept,
            "content_dropped": tray.dropped,
            "content_waiting_bytes": tray.waiting_bytes,
        }
