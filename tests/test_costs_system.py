"""What requests cost, end to end: streamed and plain alike, through retries and fallbacks, and when nobody counted."""

from __future__ import annotations

import http.client
import json
import os
import signal
from typing import Any

import pytest
from rig import Gateway, Row, Simulator, StartGateway, ask, chat, eventually, providers

pytestmark = pytest.mark.system

# USD per million tokens: micro-dollars a token.
PRICES = {
    "*/sim-*": {"input": 2, "output": 8, "cached_input": 0.5, "cache_write": 2.5, "reasoning": 16},
    "*/cheap": {"input": 0.3, "output": 0.7},
    "*/free-*": {"free": True},
}
ONCE = {"attempts": 1, "attempts_max": 3}


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway) -> Gateway:
    return module_gateways(
        {
            "providers": {
                **providers(simulator),
                "dead": {"kind": "openai-compatible", "base_url": "http://127.0.0.1:1"},
            },
            "models": {
                "twice": {"targets": ["sim/sim-500-times-1"], "retry": {"attempts": 2, "base": "1ms"}},
                "cut-then-good": {"targets": ["sim/sim-cut-0", "claude/sim-tokens-7"], "retry": ONCE},
                "dead-then-good": {"targets": ["dead/sim-x", "sim/sim-tokens-7"], "retry": ONCE},
            },
            "prices": PRICES,
            "limits": {"tokens_per_minute": 100_000_000},
        }
    )


def told(gateway: Gateway, request_id: str) -> tuple[Row, list[Row]]:
    return gateway.row(request_id), gateway.attempts(request_id)


def cost(row: Row) -> Any:
    """By hand, from the row's own tokens."""
    plain = row["input_tokens"] - row["cached_tokens"] - row["cache_write_tokens"]
    said = row["output_tokens"] - row["reasoning_tokens"]
    return (
        plain * 2
        + row["cached_tokens"] * 0.5
        + row["cache_write_tokens"] * 2.5
        + said * 8
        + row["reasoning_tokens"] * 16
    )


TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


@pytest.mark.parametrize("provider", ["sim", "claude"])
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("tokens-20", (0, 0, 0)),
        ("tokens-20-cached-5-written-4-reasoning-6", (5, 4, 6)),
        ("tokens-30-drip-9-cached-3", (3, 0, 0)),
        ("tokens-30-reasoning-30", (0, 0, 30)),
    ],
)
def test_streamed_and_plain_cost_the_same(
    running: Gateway, provider: str, words: str, parts: tuple[int, int, int]
) -> None:
    rows = []
    for stream, options in ((False, None), (True, None), (True, {"include_usage": True})):
        answer = chat(running.url, f"{provider}/sim-{words}", stream=stream, stream_options=options)
        assert answer.status == 200
        row, (attempt,) = told(running, answer.headers["x-request-id"])
        assert [row[name] for name in TOKENS] == [attempt[name] for name in TOKENS]
        assert (row["estimated"], row["price_version"], attempt["price_version"]) == (0, "settings", "settings")
        assert row["cost_usd_micro"] == attempt["cost_usd_micro"] == round(cost(row))
        rows.append(row)
    assert tuple(rows[0][name] for name in TOKENS[2:]) == parts
    assert [[row[name] for name in (*TOKENS, "cost_usd_micro")] for row in rows[1:]] == [
        [rows[0][name] for name in (*TOKENS, "cost_usd_micro")]
    ] * 2


@pytest.mark.parametrize("provider", ["sim", "claude"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_does_not_count_is_counted_by_us(running: Gateway, provider: str, stream: bool) -> None:
    text = "How are you? " * 50
    counted = chat(running.url, f"{provider}/sim-tokens-40", text, stream=stream)
    silent = chat(running.url, f"{provider}/sim-tokens-40-nousage", text, stream=stream)
    (one, _), (row, (attempt,)) = (told(running, each.headers["x-request-id"]) for each in (counted, silent))
    assert (row["state"], row["estimated"], attempt["estimated"]) == ("complete", 1, 1)
    assert row["input_tokens"] == pytest.approx(one["input_tokens"], rel=0.2)
    assert row["output_tokens"] == (40 if stream else pytest.approx(40, rel=0.5))
    assert row["cost_usd_micro"] == round(cost(row)) > 0


def test_an_attempt_that_failed_costs_nothing_and_its_retry_what_it_used(running: Gateway) -> None:
    answer = chat(running.url, "twice")
    row, (first, second) = told(running, answer.headers["x-request-id"])
    assert (first["input_tokens"], first["cost_usd_micro"], first["price_version"]) == (None, 0, None)
    assert row["cost_usd_micro"] == second["cost_usd_micro"] == round(cost(second)) > 0
    assert row["price_version"] == "settings"


def test_a_fallback_after_a_connection_that_failed(running: Gateway) -> None:
    row, (first, second) = told(running, chat(running.url, "dead-then-good").headers["x-request-id"])
    assert (first["input_tokens"], first["cost_usd_micro"]) == (None, 0)
    assert row["cost_usd_micro"] == second["cost_usd_micro"] == round(cost(second))


def test_a_fallback_after_an_answer_that_broke_off_costs_both(running: Gateway) -> None:
    answer = chat(running.url, "cut-then-good", stream=True)
    assert answer.status == 200
    row, (first, second) = told(running, answer.headers["x-request-id"])
    assert (first["error_kind"], first["output_tokens"], first["estimated"]) == ("upstream_cut", 0, 1)
    assert first["cost_usd_micro"] == first["input_tokens"] * 2 > 0
    assert row["input_tokens"] == first["input_tokens"] + second["input_tokens"]
    assert row["cost_usd_micro"] == first["cost_usd_micro"] + second["cost_usd_micro"]
    assert (second["estimated"], row["estimated"]) == (0, 1)


@pytest.mark.parametrize("provider", ["sim", "claude"])
def test_a_stream_that_breaks_off_costs_what_came(running: Gateway, provider: str) -> None:
    answer = chat(running.url, f"{provider}/sim-truncate-9", stream=True)
    row, (attempt,) = told(running, answer.headers["x-request-id"])
    assert (row["state"], row["output_tokens"], row["estimated"]) == ("truncated", 9, 1)
    assert row["cost_usd_micro"] == attempt["cost_usd_micro"] == round(cost(row))


@pytest.mark.parametrize("provider", ["sim", "claude"])
def test_a_client_that_leaves_pays_for_what_it_got(running: Gateway, provider: str) -> None:
    model = f"{provider}/sim-tokens-500-slow-10ms"
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=20)
    body = {"model": model, "messages": [{"role": "user", "content": "How are you?"}], "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    request_id = reply.headers["x-request-id"]
    heard = b""
    while heard.count(b'"content":') < 6:
        heard += reply.read1(65536)
    connection.close()
    reply.close()
    row, (attempt,) = told(running, request_id)
    assert (row["state"], row["estimated"]) == ("client_gone", 1)
    assert 5 <= row["output_tokens"] < 100
    assert row["cost_usd_micro"] == attempt["cost_usd_micro"] == round(cost(row))


def test_a_cost_is_rounded_once(running: Gateway) -> None:
    row, _ = told(running, chat(running.url, "sim/cheap", max_tokens=7).headers["x-request-id"])
    assert row["cost_usd_micro"] == round((row["input_tokens"] * 3 + 7 * 7) / 10)


def test_what_is_free_costs_nothing_and_what_has_no_price_is_not_free(running: Gateway) -> None:
    free, _ = told(running, chat(running.url, "sim/free-model").headers["x-request-id"])
    assert (free["cost_usd_micro"], free["price_version"]) == (0, "settings")
    unknown, (attempt,) = told(running, chat(running.url, "sim/nobody-knows").headers["x-request-id"])
    assert (unknown["cost_usd_micro"], unknown["price_version"], attempt["cost_usd_micro"]) == (None, None, None)
    metrics = eventually(
        "the metric", lambda: ask(running.admin_url, "GET", "/metrics").body.decode(), lambda text: "nobody" in text, 10
    )
    labels = '{provider="sim",model="nobody-knows"}'
    assert f"edgegw_unpriced_attempts_total{labels} 1\n" in metrics
    assert f"edgegw_cost_usd_total{labels} 0\n" in metrics
    assert 'edgegw_unpriced_attempts_total{provider="sim",model="free-model"}' not in metrics


def test_prices_that_are_changed_count_from_the_reload_on(simulator: Simulator, gateway: StartGateway) -> None:
    def settings(dear: int) -> dict[str, Any]:
        return {"providers": providers(simulator), "prices": {"sim/*": {"input": 0, "output": dear}}}

    own = gateway(settings(1))
    before = chat(own.url, "sim/sim-tokens-5")
    assert own.row(before.headers["x-request-id"])["cost_usd_micro"] == 5
    file, control = own.state_dir.parent / "edgegw.yaml", own.control_pid()
    file.write_text(json.dumps({**own.settings, **settings(3)}))
    os.kill(own.pid, signal.SIGHUP)
    eventually("another control process", own.control_pid, lambda pid: pid not in (0, control), 15)
    after = chat(own.url, "sim/sim-tokens-5")
    assert own.row(after.headers["x-request-id"])["cost_usd_micro"] == 15
    assert own.row(before.headers["x-request-id"])["cost_usd_micro"] == 5


def test_refused_requests_cost_nothing(running: Gateway) -> None:
    refused = chat(running.url, "no-such-model")
    assert refused.status == 404
    assert running.row(refused.headers["x-request-id"])["cost_usd_micro"] == 0
    answer = chat(running.url, "sim/sim-400")
    row, (attempt,) = told(running, answer.headers["x-request-id"])
    assert (row["cost_usd_micro"], attempt["cost_usd_micro"], attempt["input_tokens"]) == (0, 0, None)


def test_the_sums_of_hours_are_those_of_the_rows(running: Gateway) -> None:
    def sums() -> tuple[Any, Any]:
        hours = running._select("usage_hours", "")
        attempts = running._select("provider_attempts", "")
        names = (*TOKENS, "cost_usd_micro")
        return (
            {name: sum(hour[name] for hour in hours) for name in names},
            {name: sum(attempt[name] or 0 for attempt in attempts) for name in names},
        )

    of_hours, of_rows = eventually("equal sums", sums, lambda both: bool(both[1]["cost_usd_micro"]), 10)
    assert of_hours == of_rows
    hours = running._select("usage_hours", "WHERE unpriced > 0")
    assert {(hour["model"], hour["unpriced"]) for hour in hours} == {("nobody-knows", 1)}
