"""The life of one request, on one screen: `Gateway.handle`.

Everything it does is done by somebody else: the dialect reads, phases admit, the router routes, the limiter reserves,
the attempts ask the providers. Here is the order, and the promise that whatever happens the grant is settled and the
`end` record is written before the last bytes of the reply leave.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from edgegw.attempts import Attempts, Try
from edgegw.clock import Clock, uuid7
from edgegw.dialects import openai_chat
from edgegw.dialects.base import Ask
from edgegw.endpoints import MODELS
from edgegw.errors import GatewayError
from edgegw.exchange import Exchange, State
from edgegw.http.reply import JSON, Reply
from edgegw.http.request import Request
from edgegw.limits.limiter import Limiter
from edgegw.phases import admit
from edgegw.reply_fields import ReplyFields
from edgegw.routing import Router
from edgegw.tokens import TokenEstimator

logger = logging.getLogger("edgegw.gateway")

# How a fault after the commit is called in the books; what is not listed is a broken connection.
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


@dataclass(slots=True)
class Ending:
    """What the client still has to be sent when the books are closed."""

    deliver: Callable[[Reply], None]
    status: int
    state: State
    error_kind: str | None = None


class Gateway:
    """One per worker. `handle` never raises."""

    def __init__(
        self,
        router: Router,
        limiter: Limiter,
        estimator: TokenEstimator,
        attempts: Attempts,
        books: Books,
        clock: Clock,
        dice_80: Callable[[], int],
        *,
        total_timeout_s: float,
        in_flight_max: int,
    ) -> None:
        self._router = router
        self._limiter = limiter
        self._estimator = estimator
        self._attempts = attempts
        self._books = books
        self._clock = clock
        self._dice_80 = dice_80
        self._total_timeout_s = total_timeout_s
        self._in_flight_max = in_flight_max
        self._fields = ReplyFields()
        self.in_flight = 0
        self.draining = False

    def serve(self, request: Request, reply: Reply) -> Coroutine[Any, Any, None]:
        """The handler of the server: a request that its head already condemned is handled (and recorded) as well."""
        if request.path == MODELS and request.error is None:
            return self._list_models(request, reply)
        return self.handle(request, reply)

    async def handle(self, request: Request, reply: Reply) -> None:
        exchange = self._open(request)
        try:
            self._check(request)
            ask = self._read(request, exchange)
            exchange.tenant = admit(ask)
            exchange.route = self._router.resolve(ask.use_case, ask.model)
            tokens = self._estimate(exchange, ask)
            exchange.grant = self._limiter.reserve_now(exchange.tenant, tokens) or await self._limiter.reserve(
                exchange.tenant, tokens
            )
            ending = await self._ask(exchange, ask, reply)
        except GatewayError as error:
            ending = self._refuse(exchange, error)
        except asyncio.CancelledError:
            ending = self._leave(exchange, reply)
        except Exception:
            logger.exception("internal error in exchange %s", exchange.id)
            ending = self._refuse(exchange, GatewayError("internal", "The gateway failed on this request."), reply)
        self._close(exchange, ending, reply)
        ending.deliver(reply)

    # -- the steps --

    def _open(self, request: Request) -> Exchange:
        clock = self._clock
        wall_ns = clock.wall_ns()
        self.in_flight += 1
        return Exchange(uuid7(wall_ns, self._dice_80()), wall_ns, clock.now(), bytes_in=len(request.body))

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
        exchange.tenant = ask.tenant or exchange.tenant
        return ask

    def _estimate(self, exchange: Exchange, ask: Ask) -> int:
        route = exchange.route
        assert route is not None
        return self._estimator.estimate(
            exchange.tenant, route.targets[0].model, ask.body, ask.max_output_tokens, ask.choices
        )

    async def _ask(self, exchange: Exchange, ask: Ask, reply: Reply) -> Ending:
        """The attempts, and what their last one means for the client."""
        deadline_s = exchange.started_s + self._total_timeout_s

        def fields(current: Try) -> bytes:
            exchange.committed_s = self._clock.now() - exchange.started_s
            return self._answer_fields(exchange, current)

        current = await self._attempts.run(exchange, ask, reply, deadline_s, fields)
        if reply.gone:
            return self._leave(exchange, reply)
        fault, answer = current.fault, current.answer
        if fault is not None:
            error = GatewayError(fault.kind, fault.message, code=fault.code)
            return self._break_off(error)
        if answer is not None:
            head = self._answer_fields(exchange, current)
            body = answer.body
            exchange.bytes_out = len(head) + len(body)
            return Ending(lambda reply: reply.send(200, head, body), 200, "complete")
        last = current.last
        return Ending(lambda reply: reply.end(last), 200, "complete")

    def _refuse(self, exchange: Exchange, error: GatewayError, reply: Reply | None = None) -> Ending:
        if reply is not None and reply.started:
            return self._break_off(error)
        body = error.body or openai_chat.error_body(error)
        head = self._fields.refusal(exchange, error, self._limiter.headers(exchange.tenant) if exchange.route else b"")
        state: State = "failed" if exchange.attempts else "refused"
        exchange.bytes_out = len(body)
        return Ending(lambda reply: reply.send(error.status, head, body), error.status, state, error.kind)

    def _break_off(self, error: GatewayError) -> Ending:
        """After the commit: exactly one error event, then the connection closes."""
        event = openai_chat.error_event(error)
        state = STATES_AFTER_COMMIT.get(error.kind, "reset")
        return Ending(lambda reply: reply.fail(event), 200, state, error.kind)

    def _leave(self, exchange: Exchange, reply: Reply) -> Ending:
        """The client left, or the worker stops and this exchange did not end in time."""
        if reply.gone:
            kind: State = "client_slow" if reply.slow else "client_gone"
            return Ending(_nothing, 200 if reply.started else 499, kind, kind)
        error = GatewayError("draining", "The gateway is being stopped.")
        if reply.started:
            return Ending(lambda reply: reply.fail(openai_chat.error_event(error)), 200, "drained", error.kind)
        body = openai_chat.error_body(error)
        head = self._fields.refusal(exchange, error, b"")
        return Ending(lambda reply: reply.send(error.status, head, body), error.status, "drained", error.kind)

    # -- the end --

    def _close(self, exchange: Exchange, ending: Ending, reply: Reply) -> None:
        """Settles the grant and writes the end record: synchronous, once, whatever came before."""
        self.in_flight -= 1
        exchange.status = ending.status
        exchange.state = ending.state
        exchange.error_kind = ending.error_kind
        exchange.bytes_out += reply.bytes_out
        exchange.duration_s = self._clock.now() - exchange.started_s
        grant = exchange.grant
        if grant is not None:
            self._limiter.settle(grant, exchange.usage.total if exchange.usage is not None else 0)
        self._books.end(exchange)

    def _answer_fields(self, exchange: Exchange, current: Try) -> bytes:
        """At the commit of a stream its attempt is still going on; at that of a plain answer it is over."""
        attempt, now_s = current.attempt, self._clock.now()
        upstream_s = exchange.upstream_s
        if not attempt.duration_s:
            upstream_s += now_s - attempt.started_s
        own_s = now_s - exchange.started_s - upstream_s
        limit_fields = self._limiter.headers(exchange.tenant)
        return self._fields.answer(
            exchange, attempt.target, limit_fields, own_s * 1e3, upstream_s * 1e3, current.upstream_request_id
        )

    async def _list_models(self, request: Request, reply: Reply) -> None:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "edgegw"} for name in self._router.models()]
        reply.send(200, JSON, orjson.dumps({"object": "list", "data": models}))


_SOON = ((b"retry-after", b"1"),)


def _nothing(reply: Reply) -> None:
    """The client is gone: there is nobody to tell."""
