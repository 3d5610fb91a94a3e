"""Capture: the worker's side of content. Copies what a captured client is sent, and hands it over at the end.

For an exchange that is not captured nothing is done, and for a gateway that captures nobody there is no Capture. What
is captured is the body of the request and what the client was sent, both up to a bound; no headers, no keys. It is kept
(the control process stores it), told (it goes on the span of its request), or both. Knows no database and no collector;
nothing of what it sees is ever logged.
"""

from __future__ import annotations

from edgegw.clock import Clock
from edgegw.content.choice import Choice
from edgegw.content.porter import Load, Porter
from edgegw.content.record import Content
from edgegw.content.wire import ReplyCopy, behind_head
from edgegw.exchange import Exchange
from edgegw.http.reply import Reply
from edgegw.http.request import Request
from edgegw.settings import CaptureMode
from edgegw.trace import JustEnded, Keeping, own_trace_id, parent_of


class Capture:
    """One per worker. `begin` when the tenant of an exchange is known and nothing was sent yet; `end` when all was."""

    def __init__(
        self, choice: Choice, porter: Porter, clock: Clock, bytes_max: int, keeping: Keeping | None = None
    ) -> None:
        """`keeping`: which requests have spans. None: none has content."""
        self._mode = choice.mode
        self._telling = choice.telling
        self._keeping = keeping
        self._porter = porter
        self._wall_ns = clock.wall_ns
        self._bytes_max = bytes_max
        self.gauges = porter.gauges
        self.close = porter.close

    def begin(self, exchange: Exchange, reply: Reply) -> ReplyCopy | None:
        """Begins to copy what the client is sent; None when this exchange is none of our business."""
        keep, tell = self._mode(exchange.tenant, exchange.id), self._telling(exchange.tenant, exchange.id)
        if keep == tell == "off":
            return None
        copy = ReplyCopy(self._bytes_max, keep, tell)
        reply.copy_to(copy.add)
        return copy

    def end(self, exchange: Exchange, request: Request, copy: ReplyCopy) -> None:
        """Hands the content over, unless only that of failures is wanted, or no span. Never raises, never waits."""
        complete = exchange.state == "complete"
        keep = _wanted(copy.keep, complete)
        tell = _wanted(copy.tell, complete) and self._has_span(exchange)
        if not keep and not tell:
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

        self._porter.take(Load(len(prompt) + copy.size, make, keep, tell))

    def _has_span(self, exchange: Exchange) -> bool:
        """Content goes on the span of an attempt, and not all requests are told."""
        if self._keeping is None or not exchange.attempts:
            return False
        parent = parent_of(exchange.trace)
        ended = JustEnded(exchange.status, exchange.state, len(exchange.attempts), int(exchange.duration_s * 1e6))
        if parent is None:
            return self._keeping.keeps(own_trace_id(exchange.id), None, ended)
        return self._keeping.keeps(parent.trace_id, parent.sampled, ended)


def _wanted(mode: CaptureMode, complete: bool) -> bool:
    return mode == "all" or (mode == "errors" and not complete)
