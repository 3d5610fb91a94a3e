"""Capture: the worker's side of content. Copies what a captured client is sent, and hands it over at the end.

For an exchange that is not captured nothing is done, and for a gateway that captures nobody there is no Capture. What
is kept is the body of the request and what the client was sent, both up to a bound; no headers, no keys. Knows no
database; nothing of what it sees is ever logged.
"""

from __future__ import annotations

from edgegw.clock import Clock
from edgegw.content.choice import Choice
from edgegw.content.porter import Porter
from edgegw.content.record import Content
from edgegw.content.wire import ReplyCopy, behind_head
from edgegw.exchange import Exchange
from edgegw.http.reply import Reply
from edgegw.http.request import Request


class Capture:
    """One per worker. `begin` when the tenant of an exchange is known and nothing was sent yet; `end` when all was."""

    def __init__(self, choice: Choice, porter: Porter, clock: Clock, bytes_max: int) -> None:
        self._mode = choice.mode
        self._porter = porter
        self._wall_ns = clock.wall_ns
        self._bytes_max = bytes_max
        self.gauges = porter.gauges
        self.close = porter.close

    def begin(self, exchange: Exchange, reply: Reply) -> ReplyCopy | None:
        """Begins to copy what the client is sent; None when this exchange is none of our business."""
        mode = self._mode(exchange.tenant, exchange.id)
        if mode == "off":
            return None
        copy = ReplyCopy(self._bytes_max, mode == "errors")
        reply.copy_to(copy.add)
        return copy

    def end(self, exchange: Exchange, request: Request, copy: ReplyCopy) -> None:
        """Keeps the content, unless only that of failures is wanted. Never raises, never waits."""
        if copy.errors_only and exchange.state == "complete":
            return
        bytes_max, stored_ns = self._bytes_max, self._wall_ns()
        prompt = request.body[:bytes_max]
        cut = len(request.body) > bytes_max

        def make() -> Content:
            reply, chunked = behind_head(copy.sent)
            return Content(
                exchange.id,
                exchange.tenant,
                stored_ns,
                exchange.dialect,
                exchange.stream,
                prompt,
                cut,
                reply[:bytes_max],
                copy.cut or len(reply) > bytes_max,
                chunked,
            )

        self._porter.take(len(prompt) + copy.size, make)
