"""The loop over targets: open, gate, commit, relay, fail, next.

One `run` per exchange. Each turn asks one target once (a leg, see relay.py) and closes the attempt's books; what
follows from a failure is decided by retry.py and breaker.py, which know no I/O. Once the client has bytes nothing is
tried again, whatever happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from edgegw import retry
from edgegw.breaker import NOBODY, Breaker, BreakerPolicy, Pass, choose, ready_from
from edgegw.clock import Clock
from edgegw.dialects.base import Ask, Call, PlainReply
from edgegw.errors import GatewayError, UpstreamFault
from edgegw.exchange import Attempt, AttemptKind, Exchange, Target, Usage
from edgegw.http.reply import Reply
from edgegw.http.upstream import Pool
from edgegw.http.watch import Watch
from edgegw.providers.base import Provider
from edgegw.relay import Leg, LegWaits, PlainLeg, StreamLeg
from edgegw.tokens import TokenEstimator

# Breakers are kept per target; patterns let clients name targets, so there is a bound.
BREAKERS_MAX = 4096
_REQUEST_ID_FIELDS = (b"x-request-id", b"request-id")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider as a worker sees it: what to say to it, the connections to it, and its retry budget."""

    provider: Provider
    pool: Pool
    budget: retry.RetryBudget
    waits: LegWaits


class AttemptBooks(Protocol):
    """Where attempts are written (ledger/journal.py)."""

    def begin(self, exchange: Exchange, attempt: Attempt) -> None: ...

    def try_(self, exchange: Exchange, attempt: Attempt) -> None: ...

    def attempt(self, exchange: Exchange, attempt: Attempt) -> None: ...


@dataclass(slots=True)
class Try:
    """One attempt while it is under way, and what came of it."""

    attempt: Attempt
    upstream: Upstream
    leave: Pass
    leg: Leg | None = None
    fault: UpstreamFault | None = None
    answer: PlainReply | None = None  # of a request that is not streamed

    @property
    def upstream_request_id(self) -> bytes | None:
        if self.leg is not None:
            for name, value in self.leg.headers:
                if name in _REQUEST_ID_FIELDS:
                    return value[:128]
        return None

    @property
    def last(self) -> bytes:
        """The last bytes of a stream, to be sent when the books are closed."""
        return self.leg.last if isinstance(self.leg, StreamLeg) else b""


class Attempts:
    """Runs exchanges against targets. One per worker."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        books: AttemptBooks,
        watch: Watch,
        clock: Clock,
        dice: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        breaker_policy: BreakerPolicy,
        estimator: TokenEstimator,
    ) -> None:
        self._upstreams = upstreams
        self._books = books
        self._watch = watch
        self._clock = clock
        self._dice = dice
        self._loop = loop
        self._breaker_policy = breaker_policy
        self._estimator = estimator
        self._breakers: dict[Target, Breaker] = {}

    async def run(
        self,
        exchange: Exchange,
        ask: Ask,
        reply: Reply,
        deadline_s: float,
        fields: Callable[[Try], bytes],
    ) -> Try:
        """Asks the route's targets until one answers, the client leaves, or nothing is left to try. Returns the last
        Try; raises GatewayError when no answer came and nothing was committed. `fields` makes the header lines of a
        stream's reply when it commits."""
        route = exchange.route
        assert route is not None
        targets = route.targets
        breakers = [self._breaker(target) for target in targets]
        index, leave = choose(breakers, 0, self._clock.now())
        kind: AttemptKind = "primary"
        reason: str | None = None
        tries = 0
        fault: UpstreamFault | None = None
        while True:
            tries += 1
            target = targets[index]
            upstream = self._upstreams[target.provider]
            try:
                call = upstream.provider.call(ask, target.model, exchange.id)
            except GatewayError as unsupported:  # this target's dialect cannot say it; nothing was sent
                breakers[index].released(leave)
                raise unsupported if fault is None else final_error(fault) from unsupported
            exchange.dropped = call.dropped
            attempt = self._begin(exchange, target, kind, reason)
            current = Try(attempt, upstream, leave)
            upstream.budget.opened(kind == "retry")
            try:
                await self._ask(current, call, exchange, ask, reply, deadline_s, fields)
            finally:
                upstream.budget.closed(kind == "retry")
                self._end(current, exchange, ask, breakers[index], reply)
            fault = current.fault
            if fault is None or reply.started or reply.gone:
                return current
            now_s = self._clock.now()
            decision = retry.decide(
                fault,
                route.retry,
                tries_on_target=tries,
                attempts_total=len(exchange.attempts),
                targets_left=ready_from(breakers, index + 1, now_s),
                now_s=now_s,
                deadline_s=deadline_s,
                budget_ok=upstream.budget.allows(),
                dice=self._dice(),
            )
            reason = fault.kind
            if decision.action is retry.Action.RETRY_SAME:
                await asyncio.sleep(decision.delay_s)
                exchange.upstream_s += decision.delay_s
                leave = breakers[index].allows(self._clock.now())
                if leave:
                    kind = "retry"
                    continue
            elif decision.action is retry.Action.GIVE_UP:
                raise final_error(fault)
            index, leave = choose(breakers, index + 1, self._clock.now())
            if index == NOBODY:
                raise final_error(fault)
            kind, tries = "fallback", 0

    # -- one attempt --

    async def _ask(
        self,
        current: Try,
        call: Call,
        exchange: Exchange,
        ask: Ask,
        reply: Reply,
        deadline_s: float,
        fields: Callable[[Try], bytes],
    ) -> None:
        """Sends the request and sees the reply through; the outcome is in `current`."""
        upstream, target = current.upstream, current.attempt.target
        provider, pool, clock = upstream.provider, upstream.pool, self._clock
        future: asyncio.Future[None] = self._loop.create_future()
        leg: PlainLeg | StreamLeg
        created_s = exchange.started_ns // 1_000_000_000
        if ask.stream:
            reader = provider.stream(ask, target.model, created_s=created_s)
            leg = StreamLeg(
                reply, future, self._watch, clock.now, upstream.waits, deadline_s, reader, lambda _: fields(current)
            )
        else:
            leg = PlainLeg(reply, future, self._watch, clock.now, upstream.waits, deadline_s)
        current.leg = leg
        connection = pool.send(call.data, leg)
        if connection is None:
            try:
                connection = await pool.open(call.data, leg)
            except UpstreamFault as fault:
                current.fault = fault
                return
        leg.sent(connection)
        await leg.whole()
        current.attempt.reused = connection.reused
        if leg.gone:
            return
        current.fault = leg.fault
        if leg.fault is None and not reply.started:
            self._judge(current, exchange, ask, leg, created_s)

    def _judge(self, current: Try, exchange: Exchange, ask: Ask, leg: Leg, created_s: int) -> None:
        """A whole reply came and nothing of it was shown yet: is it an answer?"""
        provider = current.upstream.provider
        try:
            if not 200 <= leg.status < 300 or leg.status == 204:
                wall_s = self._clock.wall_ns() / 1e9
                current.fault = provider.fault(leg.status, leg.headers, leg.body, wall_s)
                return
            answer = provider.plain(ask, current.attempt.target.model, leg.body, created_s=created_s)
            if ask.stream:
                current.fault = UpstreamFault(
                    "upstream_garbage", "The provider answered a streamed request without a stream.", leg.status
                )
            else:
                current.answer = answer
        except UpstreamFault as fault:
            fault.status = fault.status or leg.status
            current.fault = fault

    # -- its books --

    def _begin(self, exchange: Exchange, target: Target, kind: AttemptKind, reason: str | None) -> Attempt:
        """Written before the first byte goes upstream."""
        clock, number = self._clock, len(exchange.attempts) + 1
        attempt = Attempt(number, kind, target, clock.wall_ns(), clock.now(), reason)
        exchange.attempts.append(attempt)
        if number == 1:
            self._books.begin(exchange, attempt)
            exchange.begun = True
        else:
            self._books.try_(exchange, attempt)
        return attempt

    def _end(self, current: Try, exchange: Exchange, ask: Ask, breaker: Breaker, reply: Reply) -> None:
        """Stamps the attempt, tells the breaker, writes the record. Never raises, awaits nothing."""
        attempt, leg, fault = current.attempt, current.leg, current.fault
        now_s = self._clock.now()
        attempt.duration_s = now_s - attempt.started_s
        exchange.upstream_s += attempt.duration_s
        if leg is not None:
            attempt.status = leg.status
            if leg.first_byte_s is not None:
                attempt.first_byte_s = leg.first_byte_s - attempt.started_s
            if leg.first_token_s is not None:
                attempt.first_token_s = leg.first_token_s - attempt.started_s
            heard = current.answer or leg.heard
            if heard is not None:
                attempt.usage = heard.usage
                attempt.finish_reason = heard.finish_reason
                attempt.upstream_model = heard.model
            self._count(current, exchange, ask, leg)
            request_id = current.upstream_request_id
            if request_id is not None:
                attempt.upstream_request_id = request_id.decode("latin-1")
        if fault is not None:
            attempt.error_kind = fault.kind
            self._tell(breaker, current, fault, now_s)
        elif leg is None or leg.gone or reply.gone:
            attempt.error_kind = "client_slow" if reply.slow else "client_gone"
            breaker.released(current.leave)
        elif leg.status:
            breaker.succeeded(now_s, current.leave)
        else:
            attempt.error_kind = "internal"
            breaker.released(current.leave)
        self._books.attempt(exchange, attempt)

    def _count(self, current: Try, exchange: Exchange, ask: Ask, leg: Leg) -> None:
        """What the attempt used: the provider's own count, else ours of what was seen of its answer, marked so."""
        attempt, estimator = current.attempt, self._estimator
        usage = attempt.usage
        if usage is not None and attempt.finish_reason is not None:
            estimator.learn(exchange.tenant, attempt.target.model, ask.body, usage.input, usage.output)
        elif 200 <= leg.status < 300 and leg.events:
            # Broken off: a usage that came before the end (Anthropic's message_start) is only that of the prompt.
            seen = usage or Usage(estimator.prompt_tokens(attempt.target.model, ask.body))
            usage = attempt.usage = replace(seen, output=max(seen.output, leg.events), estimated=True)
        if usage is not None:
            total = exchange.usage
            exchange.usage = usage if total is None else total + usage

    def _tell(self, breaker: Breaker, current: Try, fault: UpstreamFault, now_s: float) -> None:
        health = retry.verdict(fault).health
        if health is retry.Health.ILL:
            breaker.failed(now_s, self._dice(), current.leave)
        elif health is retry.Health.ALIVE:
            breaker.succeeded(now_s, current.leave)
        else:
            breaker.released(current.leave)

    def _breaker(self, target: Target) -> Breaker:
        breaker = self._breakers.get(target)
        if breaker is None:
            if len(self._breakers) >= BREAKERS_MAX:
                self._breakers.clear()
            breaker = self._breakers[target] = Breaker(self._breaker_policy)
        return breaker


def final_error(fault: UpstreamFault) -> GatewayError:
    """What the client is told when nothing more is tried. The provider's own words are kept where they are its error
    message in the client's dialect; its status where it is about the request (`upstream_refused`)."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if fault.retry_after_s is not None:
        seconds = max(1, -int(-fault.retry_after_s // 1))
        headers = ((b"retry-after", b"%d" % seconds), (b"retry-after-ms", b"%d" % int(fault.retry_after_s * 1000)))
    refused = fault.kind == "upstream_refused"
    return GatewayError(
        fault.kind,
        fault.message,
        param=fault.param,
        status=fault.status if refused else 0,
        type=fault.wire_type if refused else None,
        code=fault.code,
        headers=headers,
        body=fault.body if fault.verbatim and fault.kind in _SHOWN_VERBATIM else None,
    )


_SHOWN_VERBATIM = frozenset(("upstream_refused", "upstream_rate_limited", "upstream_quota"))
