"""The life of one request, on one screen: `Gateway.handle`.

Everything it does is done by somebody else: the dialect reads, phases admit, the router routes, the limiter reserves,
the attempts ask the providers. Here is the order, and the promise that whatever happens the grant is settled and the
`end` record is written before the last bytes of the reply leave.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any, Protocol

import msgspec
import orjson

from edgegw import client_ids, phases, trace
from edgegw.access import Access
from edgegw.attempts import Attempts, Disk, Try
from edgegw.clock import Clock, uuid7
from edgegw.content.capture import Capture
from edgegw.content.wire import ReplyCopy
from edgegw.dialects import openai_chat
from edgegw.dialects.base import Ask
from edgegw.endpoints import methods_field
from edgegw.errors import GatewayError, final_error
from edgegw.exchange import Exchange, Route, State
from edgegw.http.reply import JSON, Reply
from edgegw.http.request import Request
from edgegw.keys.table import Key
from edgegw.limits.account import Allowance
from edgegw.limits.limiter import Limiter
from edgegw.reply_fields import answer_fields, refusal_fields
from edgegw.routing import Router
from edgegw.tokens import TokenEstimator

logger = logging.getLogger("edgegw.gateway")

# How a fault after the commit is called in the books. What was not cut by a clean end but by a broken connection is a
# `reset` instead of `truncated`; what is not listed is our own.
STATES_AFTER_COMMIT: dict[str, State] = {
    "upstream_cut": "truncated",
    "upstream_stalled": "idle_timeout",
    "upstream_timeout": "idle_timeout",
    "upstream_garbage": "error_event",
    "upstream_error": "error_event",
    "upstream_overloaded": "error_event",
    "upstream_rate_limited": "error_event",
    "upstream_quota": "error_event",
    "upstream_auth": "error_event",
    "upstream_refused": "error_event",
}


class Books(Protocol):
    """Where the end of an exchange is written (ledger/journal.py). `full` means that nothing more may be begun."""

    @property
    def full(self) -> bool: ...

    def end(self, exchange: Exchange) -> None: ...


class Way(IntEnum):
    """How what is left of a reply gets to the client."""

    SEND = 0  # the whole of it
    END = 1  # the last bytes of a stream
    FAIL = 2  # one error event, then the connection closes
    NOBODY = 3  # the client has gone


_SEND, _END, _FAIL, _NOBODY = Way


class Ending(msgspec.Struct, eq=False, gc=False):
    """What the client still has to be sent when the books are closed, and what they say."""

    way: Way
    status: int
    state: State
    error_kind: str | None = None
    fields: bytes = b""
    body: bytes = b""

    def deliver(self, reply: Reply) -> None:
        if self.way is _SEND:
            reply.send(self.status, self.fields, self.body)
        elif self.way is _END:
            reply.end(self.body)
        elif self.way is _FAIL:
            reply.fail(self.body)


class Gateway:
    """One per worker. `handle` never raises."""

    def __init__(
        self,
        router: Router,
        access: Access,
        limiter: Limiter,
        estimator: TokenEstimator,
        attempts: Attempts,
        books: Books,
        clock: Clock,
        dice_74: Callable[[], int],
        *,
        total_timeout_s: float,
        in_flight_max: int,
        capture: Capture | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._router = router
        self._access = access
        self._limiter = limiter
        self._estimator = estimator
        self._attempts = attempts
        self._books = books
        self._disk = disk
        self._now = clock.now
        self._wall_ns = clock.wall_ns
        self._dice_74 = dice_74
        self._total_timeout_s = total_timeout_s
        self._in_flight_max = in_flight_max
        self._capture = capture
        self.in_flight = 0

    def serve(self, request: Request, reply: Reply) -> Coroutine[Any, Any, None]:
        """The handler of the server: a request that its head already condemned is handled (and recorded) as well."""
        if request.method != b"POST" and request.error is None:
            if request.method == b"OPTIONS":
                return self._tell_methods(request, reply)
            try:
                tenant = self._access.tenant(request, None)
            except GatewayError as error:
                request.error = error
            else:
                return self._list_models(tenant, reply)
        return self.handle(request, reply)

    async def handle(self, request: Request, reply: Reply) -> None:
        exchange = self._open(request)
        copy: ReplyCopy | None = None
        try:
            self._check(request)
            ask = self._read(request, exchange)
            tenant = exchange.tenant = phases.admit(self._access, request, ask)
            if self._capture is not None:
                copy = self._capture.begin(exchange, reply)
            route = exchange.route = phases.route(self._access, self._router, tenant, ask)
            allowance = self._allow(exchange, route)
            tokens = self._estimate(tenant, route, ask)
            limiter, attempts = self._limiter, self._attempts
            exchange.grant = limiter.reserve_now(allowance, tokens) or await limiter.reserve(allowance, tokens)
            deadline_s = exchange.started_s + self._total_timeout_s
            last = await attempts.run(exchange, route, ask, reply, deadline_s, self._commit)
            ending = self._conclude(exchange, last, reply)
        except GatewayError as error:
            ending = self._refuse(exchange, error, reply)
        except asyncio.CancelledError:
            ending = self._leave(exchange, reply)
        except Exception:
            logger.exception("internal error", extra=trace.about(exchange))
            ending = self._refuse(exchange, GatewayError("internal", "The gateway failed on this request."), reply)
        try:
            self._close(exchange, ending, reply)
            if self._disk is not None and exchange.begun:
                await self._disk.before_client()
            ending.deliver(reply)
            if copy is not None and self._capture is not None:
                self._capture.end(exchange, request, copy)
        except Exception:
            logger.exception("internal error at the end of a request", extra=trace.about(exchange))
            reply.break_off()

    # -- before the attempts --

    def _open(self, request: Request) -> Exchange:
        wall_ns = self._wall_ns()
        self.in_flight += 1
        exchange = Exchange(uuid7(wall_ns, self._dice_74()), wall_ns, self._now(), bytes_in=len(request.body))
        key: Key | None = request.key
        if key is None:
            exchange.tenant = self._access.stranger
        else:
            exchange.tenant, exchange.key_id = key.tenant, key.id
        traceparent = request.headers.get(trace.TRACEPARENT)
        if traceparent is not None:
            exchange.trace = trace.received(traceparent, request.headers.get(trace.TRACESTATE))
        return exchange

    def _check(self, request: Request) -> None:
        if request.error is not None:
            raise request.error
        if self._books.full:
            raise GatewayError("overloaded", "The ledger of the gateway is full.", headers=_SOON)
        if self.in_flight > self._in_flight_max:
            raise GatewayError("overloaded", "The gateway has too many requests in flight.", headers=_SOON)

    def _read(self, request: Request, exchange: Exchange) -> Ask:
        ask = openai_chat.read(request.body)
        exchange.stream = ask.stream
        exchange.model_asked = ask.model
        exchange.use_case = ask.use_case
        exchange.session_id, exchange.user_id = client_ids.told(request.headers, ask.fields)
        return ask

    def _allow(self, exchange: Exchange, route: Route) -> Allowance:
        """What the request counts against. Its model is that of the first target: a fallback is charged to it too."""
        allowance = self._limiter.allowance(exchange.tenant, exchange.key_id, route.targets[0].model)
        exchange.allowance = allowance
        return allowance

    def _estimate(self, tenant: str, route: Route, ask: Ask) -> int:
        model = route.targets[0].model
        return self._estimator.estimate(tenant, model, ask.body, ask.max_output_tokens, ask.choices)

    # -- what the attempts came to --

    def _commit(self, exchange: Exchange, current: Try) -> bytes:
        """The header lines of an answer, when its first bytes are about to leave."""
        attempt, now_s = current.attempt, self._now()
        spent_s = exchange.committed_s = now_s - exchange.started_s
        upstream_s = exchange.upstream_s
        if not attempt.duration_s:  # a stream commits while its attempt goes on
            upstream_s += now_s - attempt.started_s
        return answer_fields(
            exchange,
            current.rung.fields,
            self._limit_lines(exchange),
            (spent_s - upstream_s) * 1e3,
            upstream_s * 1e3,
            current.leg.upstream_request_id if current.leg is not None else None,
        )

    def _limit_lines(self, exchange: Exchange) -> bytes:
        return b"" if exchange.allowance is None else exchange.allowance.lines(self._now())

    def _conclude(self, exchange: Exchange, last: Try, reply: Reply) -> Ending:
        if reply.gone:
            return self._leave(exchange, reply)
        fault, answer = last.fault, last.answer
        if fault is not None:
            broken = last.leg is not None and last.leg.broken
            return self._break_off(final_error(fault), broken)
        if answer is None:
            return Ending(_END, 200, "complete", None, b"", last.last)
        return Ending(_SEND, 200, "complete", None, self._commit(exchange, last), answer.body)

    def _refuse(self, exchange: Exchange, error: GatewayError, reply: Reply) -> Ending:
        if reply.gone:
            return self._leave(exchange, reply)
        if reply.started:
            return self._break_off(error)
        fields = refusal_fields(exchange, error, self._limit_lines(exchange))
        state: State = "failed" if exchange.attempts else "refused"
        return Ending(_SEND, error.status, state, error.kind, fields, openai_chat.error_body(error))

    def _break_off(self, error: GatewayError, broken: bool = False) -> Ending:
        """After the commit: exactly one error event, then the connection closes. `broken`: the upstream's did."""
        state = STATES_AFTER_COMMIT.get(error.kind, "error_event")
        if broken and state == "truncated":
            state = "reset"
        return Ending(_FAIL, 200, state, error.kind, b"", openai_chat.error_event(error))

    def _leave(self, exchange: Exchange, reply: Reply) -> Ending:
        """The client left, or the worker stops and this exchange did not end in time."""
        gone = reply.why_gone
        if gone is not None:
            return Ending(_NOBODY, 200 if reply.started else 499, gone, gone)
        error = GatewayError("draining", "The gateway is being stopped.")
        if reply.started:
            return Ending(_FAIL, 200, "drained", error.kind, b"", openai_chat.error_event(error))
        fields = refusal_fields(exchange, error, b"")
        return Ending(_SEND, error.status, "drained", error.kind, fields, openai_chat.error_body(error))

    # -- the end --

    def _close(self, exchange: Exchange, ending: Ending, reply: Reply) -> None:
        """Settles the grant and writes the end record: synchronous, once, whatever came before."""
        self.in_flight -= 1
        exchange.status = ending.status
        exchange.state = ending.state
        exchange.error_kind = ending.error_kind
        exchange.bytes_out = reply.bytes_out + len(ending.fields) + len(ending.body)
        exchange.duration_s = self._now() - exchange.started_s
        grant, usage = exchange.grant, exchange.usage
        if grant is not None:
            grant.settle(usage.total if usage is not None else 0)
        self._books.end(exchange)

    async def _tell_methods(self, request: Request, reply: Reply) -> None:
        reply.send(200, methods_field(request.path), b"")

    async def _list_models(self, tenant: str, reply: Reply) -> None:
        names = self._access.models(self._router, tenant)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "edgegw"} for name in names]
        reply.send(200, JSON, orjson.dumps({"object": "list", "data": models}))


_SOON = ((b"retry-after", b"1"),)
