"""Traces of real processes: what a collector receives for everything that can happen to a request."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from collector import CLIENT, SERVER, Answer, Collector, Seen, closed_port
from rig import Answer as Reply
from rig import Gateway, Row, Simulator, StartGateway, ask, chat, eventually, providers

pytestmark = pytest.mark.system

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
# A span of an attempt may seem to end this much after that of its request: a worker reads one clock after the other,
# and a busy machine may let it wait in between.
APART_NS = 100_000_000
ONCE = {"attempts": 1}
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


def settings(simulator: Simulator) -> dict[str, Any]:
    known = providers(simulator, first_byte="10s", idle="10s")
    known["sim"]["trace"] = True
    return {
        "providers": known,
        "models": {
            "plain": {"targets": ["sim/gpt-5-mini"]},
            "retried": {"targets": ["sim/sim-fail-1"], "retry": {"attempts": 2, "base": "10ms"}},
            "fallen": {"targets": ["sim/sim-503-times-99", "claude/claude-haiku-4-5"], "retry": ONCE},
            "broken": {"targets": ["sim/sim-cut-5"], "retry": ONCE},
            "failing": {"targets": ["sim/sim-500-times-99"], "retry": ONCE},
            "hanging": {"targets": ["sim/sim-hang"], "retry": ONCE},
            "slow": {"targets": ["sim/sim-slow-50ms-tokens-500"], "retry": ONCE},
        },
    }


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway, collector: Collector) -> Gateway:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "gateway", **SOON}
    return module_gateways(settings(simulator), env)


def traced(gateway: Gateway, model: str, **fields: Any) -> Reply:
    """A chat of a client that has a trace."""
    body = {"model": model, "messages": [{"role": "user", "content": "How are you?"}], **fields}
    headers = {"traceparent": TRACEPARENT, "tracestate": "congo=t61rcWkgMzE"}
    return ask(gateway.url, "POST", "/v1/chat/completions", body, headers)


def same_story(gateway: Gateway, id_: str, seen: list[Seen]) -> None:
    """Spans and rows are of the same records: one tree, the same times, the same words."""
    row, attempts = gateway.row(id_), gateway.attempts(id_)
    server, *clients = seen
    assert server.kind == SERVER
    assert server.name == "POST /v1/chat/completions"
    assert server.resource["service.name"] == "gateway"
    _same_times(server, row)
    assert server.attributes["edgegw.state"] == row["state"]
    assert server.attributes.get("http.response.status_code", 0) == row["status"]
    assert server.attributes.get("error.type") == row["error_kind"]
    assert server.attributes["edgegw.attempts"] == row["attempts"] == len(attempts) == len(clients)
    assert server.attributes["edgegw.tenant"] == row["tenant"]
    for client, attempt in zip(clients, attempts, strict=True):
        assert (client.kind, client.trace, client.parent) == (CLIENT, server.trace, server.id)
        assert client.name == f"chat {attempt['model']}"
        _same_times(client, attempt)
        assert server.started_ns <= client.started_ns
        assert client.ended_ns <= server.ended_ns + APART_NS
        attributes = client.attributes
        assert attributes["gen_ai.request.model"] == attempt["model"]
        assert attributes["edgegw.provider"] == attempt["provider"]
        assert attributes["edgegw.attempt.number"] == attempt["number"]
        assert attributes["edgegw.attempt.kind"] == attempt["kind"]
        assert attributes.get("edgegw.attempt.retry_reason") == attempt["retry_reason"]
        assert attributes.get("gen_ai.usage.input_tokens") == attempt["input_tokens"]
        assert attributes.get("gen_ai.usage.output_tokens") == attempt["output_tokens"]
        assert attributes.get("gen_ai.response.model") == attempt["upstream_model"]
        assert attributes.get("error.type") == attempt["error_kind"]
        assert attributes.get("edgegw.upstream_request_id") == attempt["upstream_request_id"]


def _same_times(span: Seen, row: Row) -> None:
    assert span.started_ns == row["started_ns"]
    assert span.ended_ns == row["started_ns"] + row["duration_us"] * 1000


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_request_and_its_attempt(running: Gateway, collector: Collector, stream: bool) -> None:
    id_ = chat(running.url, "plain", stream=stream).headers["x-request-id"]
    server, client = collector.of(id_, 2)
    same_story(running, id_, [server, client])
    assert (server.trace, server.parent) == (id_.replace("-", ""), "")
    assert (server.error, client.error) == (None, None)
    assert client.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert ("gen_ai.response.time_to_first_chunk" in client.attributes) == stream
    assert client.attributes.get("gen_ai.request.stream", False) == server.attributes["edgegw.stream"] == stream


def test_a_request_that_is_retried(running: Gateway, collector: Collector) -> None:
    id_ = chat(running.url, "retried").headers["x-request-id"]
    server, first, second = collector.of(id_, 3)
    same_story(running, id_, [server, first, second])
    assert (server.error, first.error, second.error) == (None, "upstream_error", None)
    assert first.attributes["http.response.status_code"] == 500
    assert (second.attributes["edgegw.attempt.kind"], second.attributes["edgegw.attempt.retry_reason"]) == (
        "retry",
        "upstream_error",
    )


def test_a_request_that_falls_back(running: Gateway, collector: Collector) -> None:
    id_ = chat(running.url, "fallen", stream=True).headers["x-request-id"]
    server, first, second = collector.of(id_, 3)
    same_story(running, id_, [server, first, second])
    assert (server.error, first.error, second.error) == (None, "upstream_overloaded", None)
    assert second.attributes["gen_ai.provider.name"] == "anthropic"


@pytest.mark.parametrize(
    ("model", "stream", "error"),
    [("failing", False, "upstream_error"), ("broken", True, "upstream_cut"), ("broken", False, "upstream_cut")],
)
def test_a_request_that_fails(running: Gateway, collector: Collector, model: str, stream: bool, error: str) -> None:
    id_ = chat(running.url, model, stream=stream).headers["x-request-id"]
    server, client = collector.of(id_, 2)
    same_story(running, id_, [server, client])
    assert (server.error, client.error) == (error, error)


def test_requests_that_are_refused(running: Gateway, collector: Collector) -> None:
    id_ = chat(running.url, "no-such-model").headers["x-request-id"]
    (server,) = collector.of(id_, 1)
    same_story(running, id_, [server])
    assert (server.error, server.attributes["error.type"]) == (None, "model_not_found")
    id_ = ask(running.url, "POST", "/v1/nothing", {}, {"traceparent": TRACEPARENT}).headers["x-request-id"]
    (server,) = collector.of(id_, 1)
    assert (server.name, server.trace, server.parent) == ("HTTP", TRACE, PARENT)


def test_a_client_that_leaves(running: Gateway, collector: Collector) -> None:
    host, _, port = running.url.removeprefix("http://").partition(":")
    body = b'{"model": "slow", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = sock.recv(65536)
    found = re.search(rb"(?i)x-request-id: (\S+)", head)
    assert found
    id_ = found[1].decode()
    server, client = collector.of(id_, 2)
    same_story(running, id_, [server, client])
    assert server.attributes["edgegw.state"] == client.attributes["error.type"] == "client_gone"
    assert (server.error, client.error) == (None, None)


def test_a_trace_goes_through(running: Gateway, collector: Collector, simulator: Simulator) -> None:
    """From the client over us to the provider, attempt by attempt; a provider that is not to know does not."""
    simulator.reset()
    id_ = traced(running, "fallen").headers["x-request-id"]
    server, first, second = collector.of(id_, 3)
    assert (server.trace, server.parent, server.state) == (TRACE, PARENT, "congo=t61rcWkgMzE")
    assert server.flags & 0x300 == 0x300  # the parent is remote
    assert first.flags & 0x300 == 0x100
    (heard,) = simulator.seen("sim-503-times-99")
    assert heard["headers"]["traceparent"] == f"00-{TRACE}-{first.id}-01"
    assert heard["headers"]["tracestate"] == "congo=t61rcWkgMzE"
    (silent,) = simulator.seen("claude-haiku-4-5")
    assert "traceparent" not in silent["headers"]
    assert second.parent == first.parent == server.id
    id_ = chat(running.url, "plain").headers["x-request-id"]
    server, client = collector.of(id_, 2)
    assert simulator.seen("gpt-5-mini")[-1]["headers"]["traceparent"] == f"00-{server.trace}-{client.id}-01"
    assert "tracestate" not in simulator.seen("gpt-5-mini")[-1]["headers"]


def test_a_bad_trace_is_passed_over(running: Gateway, collector: Collector) -> None:
    body = {"model": "plain", "messages": [{"role": "user", "content": "Hi"}]}
    for bad in (TRACEPARENT.upper(), f"ff{TRACEPARENT[2:]}", f"00-{'0' * 32}-{PARENT}-01", "nonsense", ""):
        reply = ask(running.url, "POST", "/v1/chat/completions", body, {"traceparent": bad, "tracestate": "a=1"})
        assert reply.status == 200
        server, _ = collector.of(reply.headers["x-request-id"], 2)
        assert (server.parent, server.state) == ("", "")


@contextlib.contextmanager
def open_stream(gateway: Gateway, model: str) -> Iterator[str]:
    """A stream that has begun; its request's id."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    body = b'{"model": "%b", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}' % model.encode()
    with socket.create_connection((host, int(port))) as sock:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntraceparent: %b\r\ncontent-length: %d\r\n\r\n"
        sock.sendall(head % (TRACEPARENT.encode(), len(body)) + body)
        found = re.search(rb"(?i)x-request-id: (\S+)", sock.recv(65536))
        assert found
        yield found[1].decode()


def test_a_request_whose_worker_is_killed(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector() as collector:
        running = gateway(settings(simulator), {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON})
        with open_stream(running, "slow") as id_:
            os.kill(running.worker_pids()[0], signal.SIGKILL)
            server, client = collector.of(id_, 2)
        assert (server.trace, server.parent, client.parent) == (TRACE, PARENT, server.id)
        assert server.error == client.error == server.attributes["edgegw.state"] == "interrupted"


def test_a_request_of_a_gateway_that_is_killed_has_its_span_after_the_restart(
    simulator: Simulator, gateway: StartGateway
) -> None:
    """All its processes at once, in the midst of a stream; another gateway on the same directory tells of it."""
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
        first = gateway(settings(simulator), env)
        with open_stream(first, "slow") as id_:
            os.killpg(first.pid, signal.SIGKILL)
        first.running.wait()
        assert [span for span in collector.spans if span.attributes.get("edgegw.request_id") == id_] == []
        again = {**settings(simulator), "server": {"state_dir": str(first.state_dir)}}
        gateway(again, env)
        server, client = collector.of(id_, 2)
        assert (server.trace, server.parent, client.parent) == (TRACE, PARENT, server.id)
        assert server.error == client.error == "interrupted"


def test_errors_are_kept_when_nothing_else_is(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector() as collector:
        sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
        running = gateway(settings(simulator), {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON, **sampler})
        simulator.reset()
        chat(running.url, "plain")
        failed = chat(running.url, "failing").headers["x-request-id"]
        wanted = traced(running, "plain").headers["x-request-id"]
        running.stop()
        seen = {span.attributes.get("edgegw.request_id") for span in collector.spans if span.kind == SERVER}
        assert seen == {failed, wanted}
        flags = [request["headers"]["traceparent"][-2:] for request in simulator.seen("gpt-5-mini")]
        assert flags == ["00", "01"]


def dropped(gateway: Gateway) -> dict[str, float]:
    text = ask(gateway.admin_url, "GET", "/metrics").body.decode()
    return {
        reason: float(count)
        for reason, count in re.findall(r'edgegw_traces_dropped_total\{reason="(\w+)"\} (\S+)', text)
    }


@pytest.mark.parametrize("collector_is", ["dead", "hanging", "refusing"])
def test_a_collector_that_takes_nothing_costs_only_drops(
    simulator: Simulator, gateway: StartGateway, collector_is: str
) -> None:
    answers = {"dead": [], "hanging": [Answer(hang=True)] * 99, "refusing": [Answer(401)] * 99}[collector_is]
    with Collector(*answers) as collector:
        url = f"http://127.0.0.1:{closed_port()}" if collector_is == "dead" else collector.url
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "200",
            "OTEL_BSP_EXPORT_TIMEOUT": "200",
            "OTEL_BSP_MAX_QUEUE_SIZE": "8",
            **SOON,
        }
        running = gateway(settings(simulator), env)
        for _ in range(40):
            assert chat(running.url, "plain").status == 200
        assert len(running.rows("requests", lambda rows: len(rows) == 40)) == 40
        eventually("drops", lambda: dropped(running), lambda seen: sum(seen.values()) == 80, 15)
        begun_s = time.monotonic()
        code, words = running.stop()
        assert (code, words.count("spans dropped")) == (0, 1)
        assert time.monotonic() - begun_s < 6
        assert "Traceback" not in words


def test_the_last_spans_are_sent_at_the_stop(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector() as collector:
        running = gateway(settings(simulator), {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})  # batches of 5 s
        for _ in range(5):
            chat(running.url, "plain")
        running.stop()
        assert len(collector.spans) == 10


def test_without_a_collector_there_is_a_line_for_each_request(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway(settings(simulator), {"LOG_FORMAT": "text"})
    ids = [chat(running.url, model).headers["x-request-id"] for model in ("plain", "fallen", "no-such-model")]
    _, words = running.stop()
    lines = [line for line in words.splitlines() if any(id_ in line for id_ in ids)]
    assert [line.split()[1] for line in lines] == ids
    assert " default model:plain sim/gpt-5-mini complete 200 11+24 tokens " in lines[0]
    assert "2 attempts: sim/sim-503-times-99 503 upstream_overloaded" in lines[1]
    assert " default - - refused 404 model_not_found " in lines[2]


def test_nobody_has_to_be_told(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway(settings(simulator), {"OTEL_SDK_DISABLED": "true"})
    id_ = chat(running.url, "plain").headers["x-request-id"]
    assert id_ not in running.stop()[1]
