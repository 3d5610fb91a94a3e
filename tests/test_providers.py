"""Providers: what they send, what their refusals mean, what they must never show."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.dialects import openai_chat
from edgegw.errors import KINDS, Source, UpstreamFault, final_error
from edgegw.providers.base import STAY_AWAY_S, Origin, Provider
from edgegw.providers.models import shipped
from edgegw.providers.registry import build
from edgegw.providers.retry_after import RETRY_AFTER_MAX_S, retry_after_s

KEY = "canary-key%s/0123456789"
NOW_S = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


class Key:
    def reveal(self) -> str:
        return KEY


@dataclass
class Settings:
    kind: str = "openai"
    base_url: str = "https://api.openai.com/v1"
    api_key: Key | None = field(default_factory=Key)
    headers: dict[str, str] = field(default_factory=dict)
    name: str = "p"


def provider(kind: str = "openai", base_url: str = "https://api.example.com/v1") -> Provider:
    return build(Settings(kind=kind, base_url=base_url))


ASK = openai_chat.read(b'{"model":"m","messages":[{"role":"user","content":"hi"}]}')
STREAMED = openai_chat.read(b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}')


def head_and_body(data: bytes) -> tuple[list[str], bytes]:
    head, body = data.split(b"\r\n\r\n", 1)
    return head.decode("latin-1").split("\r\n"), body


# -- requests --


def test_a_request_is_whole_and_ready_to_send() -> None:
    lines, body = head_and_body(build(Settings(headers={"OpenAI-Project": "proj%1"})).call(ASK, "up", "id-1").data)
    assert lines == [
        "POST /v1/chat/completions HTTP/1.1",
        "host: api.openai.com",
        f"authorization: Bearer {KEY}",
        "content-type: application/json",
        "accept-encoding: identity",
        "user-agent: edgegw/0.1.0",
        "openai-project: proj%1",
        "accept: application/json",
        "x-client-request-id: id-1",
        f"content-length: {len(body)}",
    ]
    assert json.loads(body)["model"] == "up"


def test_an_anthropic_request() -> None:
    lines, body = head_and_body(provider("anthropic").call(STREAMED, "claude-sonnet-4-5", "id-1").data)
    assert {f"x-api-key: {KEY}", "anthropic-version: 2023-06-01", "accept: text/event-stream"} < set(lines)
    assert not any(line.startswith("authorization") for line in lines)
    assert json.loads(body)["stream"] is True


@pytest.mark.parametrize(
    ("kind", "base_url", "origin", "line", "host"),
    [
        ("openai", "https://a.b/v1", Origin("https", "a.b", 443), "POST /v1/chat/completions", "a.b"),
        ("openai", "https://a.b:8443/x/v1/", Origin("https", "a.b", 8443), "POST /x/v1/chat/completions", "a.b:8443"),
        ("openai-compatible", "http://[::1]:11434/v1", Origin("http", "::1", 11434), "POST /v1/chat/completions",
         "[::1]:11434"),
        ("openai-compatible", "http://host", Origin("http", "host", 80), "POST /chat/completions", "host"),
        ("anthropic", "https://a.b", Origin("https", "a.b", 443), "POST /v1/messages", "a.b"),
        ("anthropic", "https://a.b/v1/", Origin("https", "a.b", 443), "POST /v1/messages", "a.b"),
        ("anthropic", "https://a.b/proxy", Origin("https", "a.b", 443), "POST /proxy/v1/messages", "a.b"),
    ],
)  # fmt: skip
def test_addresses(kind: str, base_url: str, origin: Origin, line: str, host: str) -> None:
    made = provider(kind, base_url)
    lines, _ = head_and_body(made.call(ASK, "m", "id").data)
    assert made.origin == origin
    assert lines[:2] == [f"{line} HTTP/1.1", f"host: {host}"]


def test_a_compatible_provider_may_have_no_key() -> None:
    made = build(Settings(kind="openai-compatible", base_url="http://x/v1", api_key=None))
    assert b"authorization" not in made.call(ASK, "m", "id").data


@pytest.mark.parametrize("base_url", ["ftp://x", "https://", "https://u:p@x/v1", "https://x/?q=1", "x"])
def test_a_base_url_that_cannot_be_dialled_is_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        provider("openai", base_url)


def test_a_header_value_cannot_break_out_and_is_not_quoted_in_the_complaint() -> None:
    with pytest.raises(ValueError, match="x-extra") as caught:
        build(Settings(headers={"x-extra": "secret\r\nhost: evil"}))
    assert "secret" not in str(caught.value)


@given(st.text(min_size=1, max_size=50))
def test_no_model_name_reaches_the_head(model: str) -> None:
    for kind in ("openai", "anthropic"):
        made = provider(kind)
        head, body = made.call(ASK, model, "id").data.split(b"\r\n\r\n", 1)
        plain, _ = made.call(ASK, "x", "id").data.split(b"\r\n\r\n", 1)
        assert head.rpartition(b"content-length")[0] == plain.rpartition(b"content-length")[0]
        assert head.endswith(b"content-length: %d" % len(body))
        assert json.loads(body)["model"] == model


def test_dropped_fields_are_named() -> None:
    ask = openai_chat.read(b'{"seed":5,"messages":[{"role":"user","content":"hi"}]}')
    assert provider("anthropic").call(ask, "claude-x", "id").dropped == ("seed",)
    assert provider().call(ask, "m", "id").dropped == ()


# -- replies --


def test_streams_are_read_in_the_providers_dialect() -> None:
    openai = provider().stream(STREAMED, "m", created_s=1)
    compatible = provider("openai-compatible").stream(STREAMED, "m", created_s=1)
    anthropic = provider("anthropic").stream(STREAMED, "m", created_s=1)
    assert (openai.transparent, compatible.transparent, anthropic.transparent) == (True, True, False)
    assert (openai.withholding, anthropic.withholding) == (True, False)


@pytest.mark.parametrize(
    ("kind", "null", "passes"),
    [("openai", b',"usage":null', False), ("openai", b"", True), ("openai-compatible", b"", False)],
)
def test_usage_that_nobody_asked_for(kind: str, null: bytes, passes: bool) -> None:
    """We ask OpenAI for it, which it shows by null usages; compatible servers do not show it."""
    text = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]' + null + b"}\n\n"
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    reader = provider(kind).stream(STREAMED, "m", created_s=1)
    assert reader.feed(text + usage) == text + (usage if passes else b"")
    assert reader.usage is not None


def test_a_plain_anthropic_answer_becomes_an_openai_one() -> None:
    body = b'{"type":"message","id":"1","model":"c","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn"}'
    reply = provider("anthropic").plain(ASK, "claude-x", body, created_s=7)
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "hi"
    assert (reply.finish_reason, reply.model) == ("stop", "c")


# -- faults --


def openai_error(**words: object) -> bytes:
    return json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": None, **words}}).encode()


def anthropic_error(kind: str, message: str = "no", **more: object) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message, **more}}).encode()


OPENAI_FAULTS = [
    (400, openai_error(param="x", code="invalid_value"), "upstream_refused"),
    (400, openai_error(code="insufficient_quota"), "upstream_quota"),
    (401, openai_error(code="invalid_api_key"), "upstream_auth"),
    (402, openai_error(), "upstream_auth"),
    (403, openai_error(), "upstream_auth"),
    (404, openai_error(code="model_not_found"), "upstream_refused"),
    (405, b"", "upstream_refused"),
    (408, b"", "upstream_timeout"),
    (409, openai_error(), "upstream_refused"),
    (413, b"<html>", "upstream_refused"),
    (422, openai_error(), "upstream_refused"),
    (429, openai_error(type="tokens", code="rate_limit_exceeded"), "upstream_rate_limited"),
    (429, openai_error(type="insufficient_quota", code="insufficient_quota"), "upstream_quota"),
    (429, b"slow down", "upstream_rate_limited"),
    (500, openai_error(type="server_error"), "upstream_error"),
    (500, openai_error(type="overloaded_error"), "upstream_overloaded"),
    (502, b"<html>", "upstream_error"),
    (503, openai_error(code="slow_down"), "upstream_overloaded"),
    (504, b"", "upstream_timeout"),
    (529, b"", "upstream_overloaded"),
    (599, b"", "upstream_error"),
    (204, b"", "upstream_garbage"),
    (302, b"", "upstream_garbage"),
    (199, b"", "upstream_garbage"),
    (999, b"", "upstream_garbage"),
]
ANTHROPIC_FAULTS = [
    (400, anthropic_error("invalid_request_error"), "upstream_refused"),
    (400, anthropic_error("invalid_request_error", "Your credit balance is too low to access"), "upstream_quota"),
    (400, anthropic_error("invalid_request_error", "You have reached your specified API usage limits. You will …"),
     "upstream_quota"),
    (401, anthropic_error("authentication_error"), "upstream_auth"),
    (402, anthropic_error("billing_error"), "upstream_auth"),
    (403, anthropic_error("permission_error"), "upstream_auth"),
    (404, anthropic_error("not_found_error"), "upstream_refused"),
    (413, anthropic_error("request_too_large"), "upstream_refused"),
    (429, anthropic_error("rate_limit_error"), "upstream_rate_limited"),
    (429, anthropic_error("rate_limit_error", details=None), "upstream_rate_limited"),
    (429, anthropic_error("rate_limit_error", details={"error_code": "ramp_limit_exceeded"}), "upstream_rate_limited"),
    (429, anthropic_error("rate_limit_error", details={"error_code": "contract_spend_limit_reached"}),
     "upstream_quota"),
    (500, anthropic_error("api_error"), "upstream_error"),
    (504, anthropic_error("timeout_error"), "upstream_timeout"),
    (529, anthropic_error("overloaded_error"), "upstream_overloaded"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind_of_provider", "status", "body", "kind"),
    [("openai", *row) for row in OPENAI_FAULTS] + [("anthropic", *row) for row in ANTHROPIC_FAULTS],
)
def test_what_a_refusal_means(kind_of_provider: str, status: int, body: bytes, kind: str) -> None:
    fault = provider(kind_of_provider).fault(status, {}, body, NOW_S)
    assert (fault.kind, fault.status) == (kind, status)
    assert KINDS[fault.kind].source is Source.UPSTREAM


def test_a_well_formed_error_is_verbatim_and_keeps_its_words() -> None:
    body = openai_error(param="messages[0]", code="invalid_value", extra={"kept": True})
    fault = provider().fault(400, {}, body, NOW_S)
    assert (fault.body, fault.verbatim) == (body, True)
    assert (fault.message, fault.wire_type, fault.code, fault.param) == ("no", "t", "invalid_value", "messages[0]")


@pytest.mark.parametrize(
    "body", [b"", b"<html>http://internal:9/</html>", b"[1]", b'{"error":"text"}', b'{"error":{}}', b'{"message":"x"}',
             b'{"error":{"detail":"x"}}', b'{"error":{"message":{}}}',
             b"{" * 100_000, b"\xff\xfe"]
)  # fmt: skip
def test_other_error_bodies_are_not_shown_as_they_are(body: bytes) -> None:
    fault = provider().fault(400, {}, body, NOW_S)
    assert not fault.verbatim
    assert "<" not in fault.message
    assert fault.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail":"Not here."}', "Not here."),
        (b'{"detail":[{"loc":["body","n"],"msg":"too many"}]}', '[{"loc":["body","n"],"msg":"too many"}]'),
        (b'{"object":"error","message":{"detail":"why"},"code":422}', '{"detail":"why"}'),
        (b'[{"error":{"code":400,"message":"No such field.","status":"INVALID_ARGUMENT"}}]', "No such field."),
        (b'{"error":{"code":400,"message":"No."}}', "No."),
    ],
)
def test_a_refusal_in_other_shapes_is_told_all_the_same(body: bytes, message: str) -> None:
    error = final_error(provider("openai-compatible").fault(422, {}, body, NOW_S))
    assert (error.message, error.status, error.code) == (message, 422, None)


def test_anthropics_words_become_openais() -> None:
    made = provider("anthropic")
    table = [
        (
            400,
            "invalid_request_error",
            "prompt is too long: 9 tokens > 8",
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (
            400,
            "invalid_request_error",
            "input length and `max_tokens` exceed context limit: 9 + 9 > 8, decrease input length or `max_tokens`",
            "invalid_request_error",
            "context_length_exceeded",
        ),
        (404, "not_found_error", "model: claude-x", "invalid_request_error", "model_not_found"),
        (413, "request_too_large", "too large", "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "slow", "rate_limit_error", "rate_limit_exceeded"),
    ]
    for status, wire_type, message, expected_type, code in table:
        fault = made.fault(status, {}, anthropic_error(wire_type, message), NOW_S)
        assert (fault.message, fault.wire_type, fault.code, fault.verbatim) == (message, expected_type, code, False)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (None, "This model's maximum context length is 8 tokens. However …", "context_length_exceeded"),
        (400, "the request exceeds the available context size, try to increase it", "context_length_exceeded"),
        (400, "something else", "400"),
        ("invalid_value", "of the maximum context length", "invalid_value"),
    ],
)
def test_a_prompt_too_long_for_a_compatible_provider_is_known_by_its_prose(
    code: object, message: str, expected: str
) -> None:
    body = openai_error(message=message, code=code)
    fault = provider("openai-compatible").fault(400, {}, body, NOW_S)
    assert (fault.kind, fault.code, fault.body) == ("upstream_refused", expected, body)


def test_keys_never_come_back() -> None:
    """Neither ours nor what looks like one, in whatever a provider echoes."""
    other = "sk-proj-abcdef123456"
    body = openai_error(message=f"bad keys {KEY} and {other}.", param=KEY, code=other)
    escaped = body.replace(b"/", b"\\/")
    assert KEY.encode() not in provider().masked(body) + provider().masked(escaped).replace(b"\\/", b"/")
    for kind in ("openai", "openai-compatible", "anthropic"):
        for status in (400, 401, 429, 500):
            fault = provider(kind).fault(status, {}, body, NOW_S)
            shown = f"{fault.message} {fault.wire_type} {fault.code} {fault.param} {fault.body!r}"
            assert KEY not in shown
            assert other not in shown
    event = b"data: " + body + b"\n\n"
    for kind in ("openai", "anthropic"):
        reader = provider(kind).stream(STREAMED, "m", created_s=1)
        assert reader.feed(event) == b""
        assert reader.fault is not None
        assert KEY not in reader.fault.message
        assert "bad keys *** and ***." in reader.fault.message
        with pytest.raises(UpstreamFault) as caught:
            provider(kind).plain(ASK, "m", body, created_s=1)
        assert KEY not in caught.value.message


def test_our_own_refused_key_is_not_the_clients_business() -> None:
    told = openai_error(message="Incorrect API key provided", code="invalid_api_key", param="key")
    anthropic = anthropic_error("authentication_error", "invalid x-api-key")
    in_a_stream = provider().stream(STREAMED, "m", created_s=1)
    in_a_stream.feed(b"data: " + told + b"\n\n")
    faults = (provider().fault(401, {}, told, NOW_S), provider("anthropic").fault(401, {}, anthropic, NOW_S))
    for fault in (*faults, in_a_stream.fault):
        assert fault is not None
        error = final_error(fault)
        assert error.message == "The provider refused the gateway's own credentials."
        assert (error.status, error.code, error.param, error.body) == (502, "upstream_auth_error", None, None)


def test_a_long_message_is_shortened() -> None:
    fault = provider().fault(400, {}, openai_error(message="ä" * 5000), NOW_S)
    assert fault.message == "ä" * 1024


# -- when to come back --

DATE = b"Tue, 14 Nov 2023 22:13:50 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"7"}, 7.0),
        ({b"retry-after": b"7, 8"}, None),
        ({b"retry-after": b" 1.5 "}, 1.5),
        ({b"retry-after": b"7", b"retry-after-ms": b"250"}, 0.25),
        ({b"retry-after-ms": b"soon", b"retry-after": b"7"}, 7.0),
        ({b"retry-after": DATE}, 30.0),
        ({b"retry-after": b"Tue, 14 Nov 2023 22:13:00 GMT"}, 0.0),
        ({b"retry-after": b"Fri, 31 Feb 2023 22:13:00 GMT"}, None),
        ({b"retry-after": b"Tue, 14 Foo 2023 22:13:00 GMT"}, None),
        ({b"retry-after": b"-5"}, None),
        ({b"retry-after": b"nan"}, None),
        ({b"retry-after": b"999999999999"}, RETRY_AFTER_MAX_S),
    ],
)
def test_retry_after(headers: dict[bytes, bytes], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW_S) == seconds


@pytest.mark.parametrize("status", [400, 408, 409, 429, 500, 503, 529])
def test_retry_after_is_read_only_where_it_is_meant(status: int) -> None:
    fault = provider().fault(status, {b"retry-after": b"7"}, b"", NOW_S)
    assert fault.retry_after_s == (None if status in (400, 500) else 7.0)


def test_x_should_retry() -> None:
    made = provider()
    assert made.fault(409, {b"x-should-retry": b"true"}, b"", NOW_S).kind == "upstream_error"
    assert made.fault(409, {b"x-should-retry": b"false"}, b"", NOW_S).retry_after_s is None
    assert made.fault(500, {b"x-should-retry": b"false"}, b"", NOW_S).retry_after_s == STAY_AWAY_S


# -- what models take --


@pytest.mark.parametrize(
    ("model", "tokens", "sampling", "thinking", "mid_system"),
    [
        ("claude-3-haiku-20240307", 4096, True, (), False),
        ("claude-3-5-sonnet-20241022", 8192, True, (), False),
        ("claude-sonnet-4-20250514", 64000, True, ("budget", "disabled"), False),
        ("claude-opus-4-1-20250805", 32000, True, ("budget", "disabled"), False),
        ("claude-sonnet-4-5", 64000, True, ("budget", "disabled"), False),
        ("claude-opus-4-6", 128000, True, ("adaptive", "budget", "disabled"), False),
        ("claude-opus-4-7", 128000, False, ("adaptive", "disabled"), False),
        ("claude-opus-4-8", 128000, False, ("adaptive", "disabled"), True),
        ("claude-opus-5", 128000, False, ("adaptive", "disabled"), True),
        ("claude-opus-5-5", 128000, False, ("adaptive",), True),
        ("claude-next-9", 64000, False, ("adaptive",), True),
        ("my-own-model", 8192, True, (), False),
    ],
)
def test_the_table_of_models(
    model: str, tokens: int, sampling: bool, thinking: tuple[str, ...], mid_system: bool
) -> None:
    found = shipped().capabilities(model)
    assert (found.max_output_tokens, found.sampling, found.mid_system) == (tokens, sampling, mid_system)
    assert found.thinking == thinking
    assert bool(found.efforts) == ("adaptive" in thinking)
    assert found.forced_calls == (model != "claude-opus-5-5")
