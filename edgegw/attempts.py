"""The loop over targets: open, gate, commit, relay, fail, next.

One `run` per exchange. Each turn asks one target once (a leg, see leg.py and relay.py); what follows from a failure is
decided by retry.py and breaker.py, which know no I/O. Once the client has bytes nothing is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from edgegw import retry, trace
from edgegw.breaker import NOBODY, Breaker, Pass, State, choose, ready_from
from edgegw.clock import Clock
from edgegw.dialects.base import Ask, PlainReply
from edgegw.errors import GatewayError, UpstreamFault, final_error
from edgegw.exchange import Attempt, AttemptKind, Exchange, Route, Target, Usage
from edgegw.http.reply import Reply
from edgegw.http.watch import Watch
from edgegw.ladder import Ladders, Rung
from edgegw.ledger.room import JournalFull
from edgegw.leg import Leg, PlainLeg
from edgegw.relay import StreamLeg
from edgegw.tokens import TokenEstimator
from edgegw.used import used

logger = logging.getLogger("edgegw.attempts")

_CLOSED = State.CLOSED


class AttemptBooks(Protocol):
    """Where attempts are written (ledger/journal.py)."""

    def begin(self, exchange: Exchange, attempt: Attempt) -> None: ...

    def try_(self, exchange: Exchange, attempt: Attempt) -> None: ...

    def attempt(self, exchange: Exchange, attempt: Attempt) -> None: ...


class Disk(Protocol):
    """Has the records of an exchange, before it goes on (ledger/durable.py)."""

    async def before_upstream(self) -> None: ...

    async def before_client(self) -> None: ...


class Try(Struct, eq=False):
    """One attempt while it is under way, and what came of it."""

    attempt: Attempt
    rung: Rung
    leg: Leg | None = None
    fault: UpstreamFault | None = None
    answer: PlainReply | None = None  # of a request that is not streamed
    unfinished: str | None = "internal"  # why nobody can say how it went; None when somebody can

    @property
    def last(self) -> bytes:
        """The last bytes of a stream, to be sent when the books are closed."""
        return self.leg.last if isinstance(self.leg, StreamLeg) else b""


class Attempts:
    """Runs exchanges against targets. One per worker. `fields` makes the header lines of a stream when it commits."""

    def __init__(
        self,
        ladders: Ladders,
        books: AttemptBooks,
        watch: Watch,
        clock: Clock,
        dice: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        estimator: TokenEstimator,
        disk: Disk | None = None,
    ) -> None:
        self._ladders = ladders
        self._books = books
        self._disk = disk
        self._watch = watch
        self._now = clock.now
        self._wall_ns = clock.wall_ns
        self._dice = dice
        self._loop = loop
        self._estimator = estimator

    async def run(
        self,
        exchange: Exchange,
        route: Route,
        ask: Ask,
        reply: Reply,
        deadline_s: float,
        fields: Callable[[Exchange, Try], bytes],
    ) -> Try:
        """Asks the route's targets until one answers, the client leaves, or nothing is left to try. Returns the last
        Try; raises GatewayError when no answer came and nothing was committed."""
        ladder = self._ladders.of(route)
        index, leave = 0, Pass.NORMAL
        if ladder.breakers[0].state is not _CLOSED:
            index, leave = choose(ladder.breakers, 0, self._now())
        kind: AttemptKind = "primary"
        tries = 0
        fault: UpstreamFault | None = None
        while True:
            tries += 1
            rung, breaker = ladder.rungs[index], ladder.breakers[index]
            upstream, is_retry = rung.upstream, kind == "retry"
            try:
                call = upstream.provider.call(ask, rung.target.model, exchange.id)
            except GatewayError as obstacle:  # the target's dialect cannot say it; the next one's may
                breaker.released(leave)
                index, leave = choose(ladder.breakers, index + 1, self._now())
                if index == NOBODY:
                    raise obstacle if fault is None else final_error(fault) from obstacle
                tries = 0
                continue
            try:
                current = Try(self._begin(exchange, rung.target, kind, fault), rung)
            except GatewayError as obstacle:  # the books are full
                breaker.released(leave)
                raise obstacle if fault is None else final_error(fault) from obstacle
            exchange.dropped = call.dropped
            if not is_retry:
                upstream.budget.opened()
            try:
                if self._disk is not None and exchange.begun:
                    await self._disk.before_upstream()
                leg: PlainLeg | StreamLeg
                if ask.stream:
                    leg = self._stream_leg(current, exchange, ask, reply, deadline_s, fields)
                else:
                    leg = PlainLeg(reply, self._watch, self._now, upstream.waits, deadline_s)
                current.leg, data = leg, call.data
                if upstream.announcer is not None:
                    data = upstream.announcer.announced(data, exchange.id, exchange.trace, current.attempt.number)
                connection = upstream.pool.send(data, leg, exchange.tenant)
                if connection is None:
                    connection = await self._loop.create_task(upstream.pool.open(data, leg, exchange.tenant))
                leg.sent(connection)
                await leg
                self._judge(current, exchange, ask, reply)
            except UpstreamFault as failure:
                current.fault = failure
            except asyncio.CancelledError:
                current.unfinished = "draining"
                if current.leg is not None:
                    current.leg.cancel()
                raise
            finally:
                upstream.budget.closed(is_retry)
                self._end(current, exchange, ask, breaker, leave, reply)
            fault = current.fault
            if fault is None or reply.started or reply.gone:
                return current
            now_s = self._now()
            decision = retry.decide(
                fault,
                route.retry,
                tries_on_target=tries,
                attempts_total=len(exchange.attempts),
                targets_left=ready_from(ladder.breakers, index + 1, now_s),
                now_s=now_s,
                deadline_s=deadline_s,
                budget_ok=upstream.budget.allows(),
                dice=self._dice(),
            )
            if decision.action is retry.Action.GIVE_UP:
                raise final_error(fault)
            self._books.attempt(exchange, current.attempt)  # the last one is written with the end
            if decision.action is retry.Action.RETRY_SAME:
                leave = await self._back_off(decision.delay_s, upstream.budget, exchange, breaker)
                if leave:
                    kind = "retry"
                    continue
            index, leave = choose(ladder.breakers, index + 1, self._now())
            if index == NOBODY:
                raise final_error(fault)
            kind, tries = "fallback", 0

    # -- one attempt --

    def _stream_leg(
        self,
        current: Try,
        exchange: Exchange,
        ask: Ask,
        reply: Reply,
        deadline_s: float,
        fields: Callable[[Exchange, Try], bytes],
    ) -> StreamLeg:
        upstream, model = current.rung.upstream, current.rung.target.model
        reader = upstream.provider.stream(ask, model, created_s=exchange.started_ns // 1_000_000_000)
        return StreamLeg(
            reply, self._watch, self._now, upstream.waits, deadline_s, reader, lambda: fields(exchange, current)
        )

    def _judge(self, current: Try, exchange: Exchange, ask: Ask, reply: Reply) -> None:
        """The leg is over. If a whole reply came and nothing of it was shown yet: is it an answer? Raises
        UpstreamFault."""
        leg = current.leg
        assert leg is not None
        current.unfinished = None
        current.fault = leg.fault
        if leg.gone or leg.fault is not None or reply.started:
            return
        provider = current.rung.upstream.provider
        if not 200 <= leg.status < 300 or leg.status == 204:
            fault = provider.fault(leg.status, leg.headers, leg.body, self._wall_ns() / 1e9)
            fault.verbatim = fault.verbatim and provider.dialect == ask.dialect
            raise fault
        try:
            created_s = exchange.started_ns // 1_000_000_000
            answer = provider.plain(ask, current.rung.target.model, leg.body, created_s=created_s)
        except UpstreamFault as fault:
            fault.status = fault.status or leg.status
            raise
        if ask.stream:
            message = "The provider answered a streamed request without a stream."
            raise UpstreamFault("upstream_garbage", message, status=leg.status)
        current.answer = answer

    async def _back_off(self, delay_s: float, budget: retry.RetryBudget, exchange: Exchange, breaker: Breaker) -> Pass:
        """Waits before the same target is asked again. The retry counts against the budget from now on."""
        budget.opened(retry=True)
        try:
            await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            budget.closed(retry=True)
            raise
        exchange.upstream_s += delay_s
        leave = breaker.allows(self._now())
        if not leave:
            budget.closed(retry=True)
        return leave

    # -- its books --

    def _begin(self, exchange: Exchange, target: Target, kind: AttemptKind, before: UpstreamFault | None) -> Attempt:
        """Written before the first byte goes upstream."""
        attempts = exchange.attempts
        attempt = Attempt(len(attempts) + 1, kind, target, self._wall_ns(), self._now())
        if before is None:
            try:
                self._books.begin(exchange, attempt)
            except JournalFull:
                raise GatewayError("overloaded", "The ledger of the gateway is full.") from None
        else:
            attempt.retry_reason = before.kind
            self._books.try_(exchange, attempt)
        attempts.append(attempt)
        return attempt

    def _end(self, current: Try, exchange: Exchange, ask: Ask, breaker: Breaker, leave: Pass, reply: Reply) -> None:
        """Stamps the attempt and tells the breaker. Never raises, awaits nothing."""
        attempt, leg, fault = current.attempt, current.leg, current.fault
        now_s = self._now()
        started_s = attempt.started_s
        attempt.duration_s = now_s - started_s
        exchange.upstream_s += attempt.duration_s
        if leg is not None and leg.first_byte_s is not None:
            attempt.status = leg.status
            attempt.reused = leg.reused
            attempt.first_byte_s = leg.first_byte_s - started_s
            if leg.first_token_s is not None:
                attempt.first_token_s = leg.first_token_s - started_s
            if leg.upstream_request_id is not None:
                attempt.upstream_request_id = leg.upstream_request_id.decode("latin-1")
            self._count(current, attempt, leg, exchange, ask)
        if fault is not None:
            attempt.error_kind = fault.kind
            if fault.kind == "internal":
                logger.error("internal error in an attempt", exc_info=fault.__cause__, extra=trace.about(exchange))
            self._tell(breaker, leave, fault, now_s)
        elif reply.gone or current.unfinished is not None:
            attempt.error_kind = reply.why_gone or current.unfinished
            breaker.released(leave)
        else:
            breaker.succeeded(now_s, leave)

    def _count(self, current: Try, attempt: Attempt, leg: Leg, exchange: Exchange, ask: Ask) -> None:
        """What the attempt used: the provider's own count, else ours of what was seen of its answer, marked so."""
        heard = current.answer or leg.heard
        said: Usage | None = None
        if heard is not None:
            said = heard.usage
            attempt.finish_reason = heard.finish_reason
            attempt.upstream_model = heard.model
        fault, model, estimator = current.fault, attempt.target.model, self._estimator
        whole = attempt.finish_reason is not None or (current.unfinished is None and fault is None and not leg.gone)
        usage = attempt.usage = used(said, whole, leg, fault, estimator, model, ask.body)
        if usage is not None:
            if not usage.estimated:
                estimator.learn(exchange.tenant, model, ask.body, usage.input, usage.output)
            total = exchange.usage
            exchange.usage = usage if total is None else total + usage

    def _tell(self, breaker: Breaker, leave: Pass, fault: UpstreamFault, now_s: float) -> None:
        health = retry.verdict(fault).health
        if health is retry.Health.ILL:
            breaker.failed(now_s, self._dice(), leave)
        elif health is retry.Health.ALIVE:
            breaker.succeeded(now_s, leave)
        else:
            breaker.released(leave)
