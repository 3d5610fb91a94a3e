"""Spans: what the records of a request become, and which requests are told at all."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.semconv import attributes
from opentelemetry.semconv._incubating import attributes as incubating
from opentelemetry.semconv.schemas import Schemas
from span_records import GOLDEN, WALL_NS, an_attempt, an_end, plain_told, request_id, requests, told_of, wording

from edgegw.clock import uuid7
from edgegw.ledger.record import AttemptRecord, Begin, End, Try, Vitals
from edgegw.telemetry import semconv
from edgegw.telemetry import spans as module
from edgegw.telemetry import wording as words_module
from edgegw.telemetry.spans import Spans
from edgegw.telemetry.wording import CLIENT, SERVER, Place, Span
from edgegw.trace import Sampler, attempt_span_id, own_trace_id, span_id

ID = request_id(1)
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEPT, NOT_KEPT = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
NONE = Sampler(0.0)


def spans_of(*records: AttemptRecord | End) -> list[Span]:
    (told,) = told_of(*records)
    return wording().spans_of(told)


def said(span: Span) -> dict[str, Any]:
    return {**dict(span.common.attributes), **dict(span.own)}


def test_a_request_and_its_attempt() -> None:
    server, client = spans_of(an_attempt(ID), an_end(ID))
    assert (server.common.name, server.common.kind) == ("POST /v1/chat/completions", SERVER)
    assert (client.common.name, client.common.kind) == ("chat gpt-5-mini", CLIENT)
    assert server.trace_id == client.trace_id == own_trace_id(ID)
    assert (server.span_id, server.parent_id, server.remote) == (span_id(ID), None, False)
    assert (client.span_id, client.parent_id, client.remote) == (attempt_span_id(span_id(ID), 1), server.span_id, False)
    assert (server.started_ns, server.ended_ns) == (WALL_NS, WALL_NS + 801_000_000)
    assert (client.started_ns, client.ended_ns) == (WALL_NS + 100_000, WALL_NS + 800_100_000)
    assert server.common.error is client.common.error is None
    assert said(server) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "http.request.body.size": 2_310,
        "session.id": "session-7",
        "user.id": "user-9",
        "edgegw.tenant": "acme",
        "edgegw.use_case": "support_summary",
        "edgegw.route": "use_case:support_summary",
        "edgegw.key_id": "key_1",
        "edgegw.model_asked": "smart",
        "edgegw.state": "complete",
        "edgegw.stream": True,
        "edgegw.attempts": 1,
        "edgegw.request_id": ID,
        "edgegw.overhead": 0.0009,
        "edgegw.bytes_out": 1_404,
        "edgegw.cost_usd": 0.001212,
        "edgegw.time_to_first_token": 0.4205,
    }
    assert said(client) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-5-mini-2025-08-07",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.42,
        "gen_ai.usage.input_tokens": 812,
        "gen_ai.usage.output_tokens": 230,
        "gen_ai.usage.cache_read.input_tokens": 512,
        "gen_ai.usage.reasoning.output_tokens": 64,
        "server.address": "api.openai.com",
        "server.port": 443,
        "http.response.status_code": 200,
        "edgegw.provider": "openai",
        "edgegw.attempt.number": 1,
        "edgegw.attempt.kind": "primary",
        "edgegw.attempt.connection_reused": True,
        "edgegw.upstream_request_id": "req_0a1b2c3d4e5f",
        "edgegw.cost_usd": 0.001212,
    }


def test_a_retry_and_a_fallback_are_children_with_their_reasons() -> None:
    failed = {"status": 503, "error_kind": "upstream_overloaded", "input_tokens": None, "finish_reason": None}
    server, first, second, third = spans_of(
        an_attempt(ID, 1, **failed),
        an_attempt(ID, 2, kind="retry", retry_reason="upstream_overloaded", **{**failed, "status": 0}),
        an_attempt(ID, 3, kind="fallback", provider="anthropic", retry_reason="upstream_connect"),
        an_end(ID, attempts=3),
    )
    assert [span.common.error for span in (server, first, second, third)] == [None, *["upstream_overloaded"] * 2, None]
    assert {span.parent_id for span in (first, second, third)} == {server.span_id}
    assert len({span.span_id for span in (server, first, second, third)}) == 4
    assert said(first)["error.type"] == "upstream_overloaded"
    assert said(first)["http.response.status_code"] == 503
    assert "http.response.status_code" not in said(second)  # there was no reply
    assert said(second)["edgegw.attempt.retry_reason"] == "upstream_overloaded"
    assert (said(third)["edgegw.attempt.kind"], said(third)["gen_ai.provider.name"]) == ("fallback", "anthropic")


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ({"state": "complete", "status": 200}, None),
        ({"state": "refused", "status": 429, "error_kind": "rate_limited"}, None),
        ({"state": "refused", "status": 503, "error_kind": "overloaded"}, "overloaded"),
        ({"state": "failed", "status": 502, "error_kind": "upstream_connect"}, "upstream_connect"),
        ({"state": "failed", "status": 400, "error_kind": "upstream_refused"}, None),
        ({"state": "truncated", "status": 200, "error_kind": "upstream_cut"}, "upstream_cut"),
        ({"state": "interrupted", "status": 0, "error_kind": "interrupted"}, "interrupted"),
        ({"state": "drained", "status": 200, "error_kind": "draining"}, "draining"),
        ({"state": "client_gone", "status": 499, "error_kind": "client_gone"}, None),
    ],
)
def test_what_counts_as_an_error_is_what_the_gateway_failed_to_do(end: dict[str, Any], error: str | None) -> None:
    (server,) = spans_of(an_end(ID, attempts=0, **end))
    assert server.common.error == error
    assert said(server).get("error.type") == end.get("error_kind")


def test_an_attempt_that_nobody_waited_for_has_not_failed() -> None:
    _, client = spans_of(an_attempt(ID, error_kind="client_gone"), an_end(ID))
    assert (client.common.error, said(client)["error.type"]) == (None, "client_gone")


def test_a_request_for_nothing_has_no_path() -> None:
    (server,) = spans_of(an_end(ID, attempts=0, state="refused", status=404, error_kind="not_found"))
    assert server.common.name == "HTTP"
    assert said(server)["http.request.method"] == "_OTHER"
    assert "url.path" not in said(server)


def test_a_client_that_has_a_trace_gets_our_spans_in_it() -> None:
    server, client = spans_of(an_attempt(ID), an_end(ID, trace=f"{KEPT};congo=1"))
    assert server.trace_id == client.trace_id == TRACE
    assert (server.parent_id, server.remote) == (bytes.fromhex(PARENT), True)
    assert (client.parent_id, client.remote) == (server.span_id, False)
    assert server.state == client.state == "congo=1"


def test_what_spans_have_in_common_is_one_object_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "COMMON_MAX", 8)
    words = wording()
    one, other = words.spans_of(plain_told(1)), words.spans_of(plain_told(2))
    assert [span.common for span in one] == [span.common for span in other]
    for number in range(50):
        (told,) = told_of(an_end(ID, tenant=f"tenant-{number}"))
        words.spans_of(told)
    assert len(words._commons) <= 8


@given(requests())
def test_no_two_spans_are_the_same_and_all_of_a_request_are_one_tree(records: list[AttemptRecord | End]) -> None:
    (told,) = told_of(*records, sampler=Sampler(parent_based=False))
    server, *clients = wording().spans_of(told)
    assert len(clients) == len(records) - 1
    assert len({span.span_id for span in (server, *clients)}) == len(records)
    assert {client.parent_id for client in clients} <= {server.span_id}
    assert all(span.started_ns <= span.ended_ns for span in (server, *clients))


def test_names_that_are_not_ours_are_those_of_the_conventions() -> None:
    known = {
        value
        for package in (attributes, incubating)
        for module_info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for value in vars(importlib.import_module(module_info.name)).values()
        if isinstance(value, str)
    }
    used = {value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
    assert {name for name in used if not name.startswith("edgegw")} - known == {semconv.SCHEMA_URL}
    assert semconv.SCHEMA_URL in {schema.value for schema in Schemas}


# -- which are told --


def test_other_records_tell_nothing() -> None:
    told: list[object] = []
    spans = Spans(Sampler(), 1, [told.append])
    spans.observe([Begin(2, 1, ID, 1, "t", None, None, "d", None, False, 1, 1, "primary", "p", "m", 1)])
    spans.observe([Try(2, 2, ID, 2, "retry", "p", "m", 1, None)])
    spans.observe([Vitals(2, 3, 0, 1, {})])
    assert told == []
    assert spans._open == {}


EXCEPTIONS: list[dict[str, Any]] = [
    {"state": "failed", "status": 502},
    {"state": "failed", "status": 429},
    {"state": "reset"},
    {"state": "interrupted", "status": 0},
    {"state": "refused", "status": 503},
    {"attempts": 2},
    {"duration_us": 10_000_000},
]


@pytest.mark.parametrize("end", EXCEPTIONS)
def test_errors_retries_and_slow_requests_are_told_whatever_the_dice_say(end: dict[str, Any]) -> None:
    assert len(told_of(an_end(ID, **end), sampler=NONE)) == 1
    assert len(told_of(an_end(ID, trace=NOT_KEPT, **end), sampler=NONE)) == 1
    assert told_of(an_end(ID, **end), sampler=Sampler(0.0, exceptions=False)) == []


@pytest.mark.parametrize(
    "end",
    [
        {},
        {"duration_us": 9_999_999},
        {"state": "refused", "status": 429},
        {"state": "refused", "status": 401},
        {"state": "client_gone", "status": 499},
    ],
)
def test_what_is_no_exception_is_left_to_the_dice(end: dict[str, Any]) -> None:
    assert told_of(an_end(ID, **end), sampler=NONE) == []
    assert told_of(an_end(ID, trace=NOT_KEPT, **end)) == []
    assert len(told_of(an_end(ID, trace=KEPT, **end), sampler=NONE)) == 1
    assert len(told_of(an_end(ID, trace=NOT_KEPT, **end), sampler=Sampler(1.0, parent_based=False))) == 1


@given(st.floats(0, 1), st.integers(0, 2**74 - 1), st.sampled_from([None, KEPT, NOT_KEPT]), st.booleans())
def test_what_is_told_is_what_the_provider_was_told(ratio: float, dice: int, trace: str | None, based: bool) -> None:
    """The worker decides about the flag it sends upstream, the control process about the spans: alike."""
    sampler, id_ = Sampler(ratio, based), uuid7(WALL_NS, dice)
    sampled = sampler.keeps(own_trace_id(id_) if trace is None else TRACE, None if trace is None else trace == KEPT)
    assert bool(told_of(an_end(id_, trace=trace), sampler=sampler)) == sampled


def test_a_share_of_requests_is_the_ratio() -> None:
    ends = [an_end(uuid7(WALL_NS + number, number * GOLDEN % 2**74)) for number in range(5_000)]
    assert len(told_of(*ends, sampler=Sampler(0.1))) == pytest.approx(500, rel=0.15)


# -- bounds --


def test_requests_that_never_end_are_forgotten_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_MAX", 10)
    told: list[Any] = []
    spans = Spans(Sampler(), 1, [told.append])
    for number in range(30):
        spans.observe([an_attempt(request_id(number))])
    assert len(spans._open) == 10
    assert spans.forgotten == 20
    spans.observe([an_end(request_id(29))])
    spans.observe([an_end(request_id(0))])
    assert [len(each.attempts) for each in told] == [1, 0]


def test_the_sampled_and_the_others_leave_nothing_behind() -> None:
    spans = Spans(NONE, 10**9, [])
    for number in range(10):
        spans.observe([an_attempt(request_id(number))])
        spans.observe([an_end(request_id(number))])
    assert spans._open == {}


@pytest.mark.parametrize(
    ("name", "kind", "url", "place"),
    [
        ("openai", "openai", "https://api.openai.com/v1", Place("openai", "api.openai.com", 443)),
        ("eu", "anthropic", "https://eu.example:8443", Place("anthropic", "eu.example", 8443, apart=True)),
        ("groq", "openai-compatible", "https://api.groq.com/openai/v1", Place("groq", "api.groq.com", 443)),
        ("mistral", "openai-compatible", "https://api.mistral.ai/v1", Place("mistral_ai", "api.mistral.ai", 443)),
        ("local", "openai-compatible", "http://[::1]/v1", Place("local", "::1", 80)),
    ],
)
def test_providers_have_the_names_of_the_conventions(name: str, kind: str, url: str, place: Place) -> None:
    assert Place.of(name, kind, url) == place


def test_a_provider_that_the_settings_do_not_know_any_more_goes_by_its_name() -> None:
    _, client = spans_of(an_attempt(ID, provider="gone"), an_end(ID))
    assert said(client)["gen_ai.provider.name"] == "gone"
    assert "server.address" not in said(client)


def test_records_are_not_changed() -> None:
    attempt, end = an_attempt(ID), an_end(ID)
    before = msgspec.msgpack.encode((attempt, end))
    spans_of(attempt, end)
    assert msgspec.msgpack.encode((attempt, end)) == before
