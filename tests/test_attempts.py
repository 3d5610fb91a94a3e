"""The loop over targets, with stand-ins for the connections and the books: what is asked, in which order, and that
budgets, breakers and books come out even whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from edgegw.attempts import Attempts, Try
from edgegw.breaker import BreakerPolicy
from edgegw.clock import ManualClock
from edgegw.dialects import openai_chat
from edgegw.dialects.base import Ask
from edgegw.errand import Errand
from edgegw.errors import GatewayError
from edgegw.exchange import Attempt, Exchange, RetryPolicy, Route, Target
from edgegw.http.date import Date
from edgegw.http.outbox import Outbox
from edgegw.http.reply import Reply
from edgegw.http.request import Request
from edgegw.http.watch import Watch
from edgegw.ladder import Ladders, Upstream
from edgegw.ledger.room import DISK_FULL, JournalFull
from edgegw.leg import Leg, LegWaits
from edgegw.providers import registry
from edgegw.retry import RetryBudget
from edgegw.settings import ProviderSettings, Secret
from edgegw.tokens import TokenEstimator

GOOD = (
    b'{"id":"c","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'
)
ASK = openai_chat.read(b'{"model":"m","messages":[{"role":"user","content":"hi"}]}')
TWO = openai_chat.read(b'{"model":"m","n":2,"messages":[{"role":"user","content":"hi"}]}')


class Books:
    """Remembers what was written."""

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.lines: list[tuple[str, int, str | None]] = []

    def begin(self, exchange: Exchange, attempt: Attempt) -> None:
        if self.full:
            raise JournalFull(DISK_FULL)
        self.lines.append(("begin", attempt.number, None))

    def try_(self, exchange: Exchange, attempt: Attempt) -> None:
        self.lines.append(("try", attempt.number, attempt.retry_reason))

    def attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        self.lines.append((attempt.kind, attempt.number, attempt.error_kind))


class Line:
    """An upstream connection that plays its answer, None: never answers."""

    lane = None
    reused = False

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class Pool:
    """Hands out lines; `script` are the statuses of the answers to come, None for silence."""

    def __init__(self, loop: asyncio.AbstractEventLoop, script: list[int | None]) -> None:
        self._loop = loop
        self.script = script
        self.lines: list[Line] = []
        self.tenants: list[str] = []

    def send(self, data: bytes, leg: Leg, tenant: str) -> Line:
        line = Line()
        self.tenants.append(tenant)
        self.lines.append(line)
        status = self.script.pop(0)
        if status is not None:
            self._loop.call_soon(self._play, leg, status)
        return line

    def _play(self, leg: Leg, status: int) -> None:
        sink = cast(Any, leg)
        sink.on_head(status, {b"content-type": b"application/json", b"x-request-id": b"r1"})
        sink.on_body(GOOD if status == 200 else b'{"error":{"message":"no","type":"server_error","code":null}}')
        sink.on_end()


class Client:
    """The client's connection, as far as a Reply knows it."""

    def __init__(self) -> None:
        self.transport = cast(Any, None)
        self.outbox = Outbox()
        self.date = Date(lambda: 0)
        self.write_paused = False

    def finished(self, reply: Reply, keep_alive: bool) -> None: ...

    def abandon(self) -> None: ...

    def break_off(self, reply: Reply) -> None: ...


class Rig:
    def __init__(self, books: Books, first: list[int | None], second: list[int | None], kind: str = "openai") -> None:
        loop = asyncio.get_running_loop()
        self.clock = ManualClock()
        self.dice = 0.0
        self.books = books
        self.pools = {"a": Pool(loop, first), "b": Pool(loop, second)}
        kinds = {"a": "openai", "b": kind}
        self.upstreams = {
            name: Upstream(
                registry.build(
                    ProviderSettings(
                        name=name, kind=cast(Any, kinds[name]), base_url="http://x", api_key=Secret("sk-1")
                    )
                ),
                cast(Any, pool),
                RetryBudget(),
                LegWaits(10.0, 10.0),
            )
            for name, pool in self.pools.items()
        }
        watch = Watch(loop, self.clock.now)
        self.ladders = Ladders(self.upstreams, BreakerPolicy())
        self.attempts = Attempts(self.ladders, books, watch, self.clock, lambda: self.dice, loop, TokenEstimator())
        self.exchange = Exchange("id", 1, self.clock.now())
        self.reply = Reply(Client(), Request(method=b"POST"))
        self.route = Route("r", (Target("a", "m"), Target("b", "m")), RetryPolicy(base_s=0.001))

    def start(self, ask: Ask = ASK) -> asyncio.Future[Try]:
        """As a handler's errand does it; the future is what comes of it."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Try] = loop.create_future()
        deadline_s = self.clock.now() + 60

        async def handle() -> None:
            try:
                run = self.attempts.run(self.exchange, self.route, ask, self.reply, deadline_s, lambda *_: b"")
                outcome.set_result(await run)
            except GatewayError as error:
                outcome.set_exception(error)
            except asyncio.CancelledError:
                outcome.cancel()

        self.errand = Errand(handle(), loop)
        self.errand.step()
        return outcome

    def assert_even(self) -> None:
        """Nothing is left open: no live attempt, no retry, no attempt without its record."""
        assert all((up.budget.live, up.budget.retries) == (0, 0) for up in self.upstreams.values())
        assert self.ladders.breakers_open == 0
        begun = [line[1] for line in self.books.lines if line[0] in ("begin", "try")]
        ended = [line[1] for line in self.books.lines if line[0] not in ("begin", "try")]
        assert begun == [attempt.number for attempt in self.exchange.attempts]
        assert ended in (begun, begun[:-1])  # the last one is written with the end of the exchange


async def test_one_answer_is_one_attempt() -> None:
    rig = Rig(Books(), [200], [])
    last = await rig.start()
    assert last.answer is not None
    assert last.answer.body == GOOD
    assert rig.books.lines == [("begin", 1, None)]
    assert rig.exchange.attempts[0].usage is rig.exchange.usage is not None
    assert rig.exchange.usage.total == 4
    assert rig.exchange.attempts[0].upstream_request_id == "r1"
    rig.assert_even()


async def test_retry_then_fallback_within_the_cap() -> None:
    rig = Rig(Books(), [500, 500], [200])
    rig.exchange.tenant = "acme"
    last = await rig.start()
    assert [pool.tenants for pool in rig.pools.values()] == [["acme", "acme"], ["acme"]]
    assert last.answer is not None
    assert [(a.kind, a.status, a.error_kind) for a in rig.exchange.attempts] == [
        ("primary", 500, "upstream_error"),
        ("retry", 500, "upstream_error"),
        ("fallback", 200, None),
    ]
    assert rig.books.lines == [
        ("begin", 1, None),
        ("primary", 1, "upstream_error"),
        ("try", 2, "upstream_error"),
        ("retry", 2, "upstream_error"),
        ("try", 3, "upstream_error"),
    ]
    rig.assert_even()


async def test_nothing_left_to_try_is_one_true_error() -> None:
    rig = Rig(Books(), [500, 500], [503])
    with pytest.raises(GatewayError) as caught:
        await rig.start()
    assert caught.value.kind == "upstream_overloaded"
    assert caught.value.status == 503
    rig.assert_even()


async def test_full_books_let_nothing_go_upstream() -> None:
    rig = Rig(Books(full=True), [200], [])
    with pytest.raises(GatewayError) as caught:
        await rig.start()
    assert caught.value.kind == "overloaded"
    assert rig.pools["a"].lines == []
    assert rig.exchange.attempts == []
    rig.assert_even()


async def test_a_fallback_that_cannot_carry_the_request_does_not_hide_why_it_was_needed() -> None:
    rig = Rig(Books(), [500, 500], [], kind="anthropic")
    with pytest.raises(GatewayError) as caught:
        await rig.start(TWO)  # n = 2: Anthropic has no such thing
    assert caught.value.kind == "upstream_error"
    rig.assert_even()


async def test_a_target_that_cannot_carry_the_request_is_passed_over() -> None:
    rig = Rig(Books(), [200], [], kind="anthropic")
    rig.route = Route("r", (Target("b", "m"), Target("a", "m")))
    last = await rig.start(TWO)
    assert last.answer is not None
    assert [(a.kind, a.target.provider) for a in rig.exchange.attempts] == [("primary", "a")]
    assert rig.books.lines == [("begin", 1, None)]
    rig.assert_even()


async def test_what_no_target_can_carry_is_the_callers_fault() -> None:
    rig = Rig(Books(), [], [], kind="anthropic")
    rig.route = Route("r", (Target("b", "m"), Target("b", "other")))
    with pytest.raises(GatewayError) as caught:
        await rig.start(TWO)
    assert (caught.value.kind, caught.value.param) == ("unsupported_parameter", "n")
    assert rig.exchange.attempts == []
    rig.assert_even()


async def test_a_cancelled_exchange_takes_its_connection_along_and_closes_its_books() -> None:
    rig = Rig(Books(), [None], [])
    outcome = rig.start()
    assert not outcome.done()
    rig.errand.cancel()
    assert outcome.cancelled()
    assert rig.pools["a"].lines[0].aborted
    assert rig.books.lines == [("begin", 1, None)]
    assert rig.exchange.attempts[0].error_kind == "draining"
    rig.assert_even()


async def test_an_exchange_cancelled_in_its_backoff_gives_its_place_in_the_budget_back() -> None:
    rig = Rig(Books(), [500], [])
    rig.route = Route("r", rig.route.targets[:1], RetryPolicy(base_s=30.0))
    rig.dice = 0.9
    outcome = rig.start()
    await asyncio.sleep(0.01)
    assert rig.upstreams["a"].budget.retries == 1
    assert rig.books.lines[-1] == ("primary", 1, "upstream_error")  # whoever dies while it waits has said so much
    rig.errand.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outcome
    rig.assert_even()
