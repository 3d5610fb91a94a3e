"""A running gateway with defects that its requests ask for by model: whatever line is about one of them has its ids.

The defects are put in by a `sitecustomize` of the gateway's processes: there is no other way to fail where nothing
fails. What a provider does wrong is no line of its own; it stands in the line that tells of the request.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from textwrap import dedent
from typing import Any

import pytest
from rig import REPOSITORY, Answer, Gateway, Simulator, StartGateway, ask, eventually, providers

pytestmark = pytest.mark.system

WAIT_S = 15.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
DEFECTS = """
    from edgegw.leg import PlainLeg
    from edgegw.ledger.journal import Journal
    from edgegw.relay import StreamLeg
    from edgegw.telemetry.metrics import Metrics
    from edgegw.tokens import TokenEstimator

    def failing(where, method, asks):
        as_it_was = getattr(where, method)

        def defect(self, *arguments):
            if asks(self, *arguments):
                raise ZeroDivisionError("a defect")
            return as_it_was(self, *arguments)

        setattr(where, method, defect)

    failing(TokenEstimator, "estimate", lambda self, tenant, model, *rest: model == "defect-before")
    failing(PlainLeg, "on_body", lambda self, data: b"defect-plain" in data)
    failing(StreamLeg, "on_body", lambda self, data: b"defect-gated" in data)
    failing(StreamLeg, "pass_chunk", lambda self, data: b"sim-slow-5ms-tokens-17" in data)
    failing(Journal, "end", lambda self, exchange: exchange.model_asked == "sim/defect-end")
    failing(Metrics, "_request", lambda self, record: getattr(record, "model_asked", "") == "sim/defect-told")
"""


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway, tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    defects = tmp_path_factory.mktemp("defects")
    (defects / "sitecustomize.py").write_text(dedent(DEFECTS))
    settings = {"providers": providers(simulator, idle="500ms"), "limits": {"tokens_per_minute": 10_000_000}}
    return module_gateways(settings, {"PYTHONPATH": f"{defects}:{REPOSITORY}"})


def asked(running: Gateway, model: str, headers: Mapping[str, str], **fields: Any) -> Answer:
    body = {"model": f"sim/{model}", "messages": [{"role": "user", "content": "How are you?"}], **fields}
    return ask(running.url, "POST", "/v1/chat/completions", body, headers)


def lines(running: Gateway) -> list[dict[str, Any]]:
    """All but the first, which says on stderr where the gateway listens, and one that is still being written."""
    return [json.loads(line) for line in running.running.said.splitlines()[1:] if line.endswith("}")]


@pytest.mark.parametrize("headers", [{}, TRACEPARENT], ids=["a trace of its own", "the client's trace"])
@pytest.mark.parametrize(
    ("model", "stream", "logger", "message", "states"),
    [
        ("defect-before", False, "edgegw.gateway", "internal error", ("refused",)),
        ("defect-plain", False, "edgegw.attempts", "internal error in an attempt", ("failed",)),
        ("defect-gated", True, "edgegw.attempts", "internal error in an attempt", ("failed",)),
        ("sim-slow-5ms-tokens-17", True, "edgegw.attempts", "internal error in an attempt", ("error_event",)),
    ],
)
def test_an_internal_error(
    running: Gateway,
    model: str,
    stream: bool,
    logger: str,
    message: str,
    states: tuple[str, ...],
    headers: Mapping[str, str],
) -> None:
    answer = asked(running, model, headers, stream=stream)
    assert answer.status == (200 if states == ("error_event",) else 500)
    assert b'"internal_error"' in answer.body
    row = running.row(answer.headers["x-request-id"])
    assert (row["state"], row["error_kind"]) == (states[0], "internal")

    def told() -> list[dict[str, Any]]:
        return [line for line in lines(running) if line.get("request_id") == row["id"] and line["logger"] == logger]

    (line,) = eventually("the line", told, bool, WAIT_S)
    assert line["message"] == message
    assert line["trace_id"] == (TRACE if headers else row["id"].replace("-", ""))
    assert (line["role"], line["level"]) == ("worker", "ERROR")
    assert "ZeroDivisionError: a defect" in line["exception"]


def test_an_internal_error_at_the_very_end_breaks_the_connection_off(running: Gateway) -> None:
    """Nobody waits for an answer of which the books do not know."""
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        asked(running, "defect-end", TRACEPARENT)

    def told() -> list[dict[str, Any]]:
        return [line for line in lines(running) if line["message"] == "internal error at the end of a request"]

    (line,) = eventually("the line", told, bool, WAIT_S)
    assert line["trace_id"] == TRACE
    assert len(line["request_id"]) == 36
    assert asked(running, "good", {}).status == 200


def test_a_record_that_an_observer_does_not_take(running: Gateway) -> None:
    answer = asked(running, "defect-told", TRACEPARENT)
    assert answer.status == 200

    def told() -> list[dict[str, Any]]:
        return [line for line in lines(running) if line["message"].startswith("an observer of the ledger fails")]

    (line,) = eventually("the line", told, bool, WAIT_S)
    assert (line["role"], line["request_id"], line["trace_id"]) == ("control", answer.headers["x-request-id"], TRACE)


@pytest.mark.parametrize(
    ("model", "state", "outcomes"),
    [
        ("sim-500-tokens-3", "failed", ["upstream_error", "upstream_error"]),  # upstream trouble
        ("sim-cut-5-slow-20ms", "truncated", None),  # a reply that is cut
        ("sim-stall-5-slow-20ms", "idle_timeout", None),
    ],
)
def test_what_a_provider_does_wrong(running: Gateway, model: str, state: str, outcomes: list[str] | None) -> None:
    answer = asked(running, model, TRACEPARENT, stream=True)
    row = running.row(answer.headers["x-request-id"])

    def told() -> list[dict[str, Any]]:
        return [
            line
            for line in lines(running)
            if line.get("request_id") == row["id"] and line["logger"] == "edgegw.request"
        ]

    (line,) = eventually("the request's line", told, bool, WAIT_S)
    assert line["trace_id"] == TRACE
    assert line["state"] == row["state"]
    assert line["state"] in (state, "reset")
    assert [attempt["outcome"] for attempt in line.get("attempts", [])] == (outcomes or [])


def test_nothing_else_was_said_by_a_worker(running: Gateway) -> None:
    """In particular no defect went by the loop, which knows no request."""
    others = {line["message"] for line in lines(running) if line.get("role") == "worker" and "request_id" not in line}
    assert others == set()
