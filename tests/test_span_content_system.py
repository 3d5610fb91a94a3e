"""Prompts and answers on spans of real gateways: whose, on which span, and what of them is anywhere else, as the
official protobuf classes read it. And none at all where nobody asked for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import CLIENT, SERVER, Collector, Seen
from killing import kill_under_load
from rig import Answer, Gateway, Simulator, StartGateway, ask, eventually, providers

pytestmark = pytest.mark.system

CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
SYSTEM, TOOLS = "gen_ai.system_instructions", "gen_ai.tool.definitions"
CUT = "edgegw.content.cut"
ALL = {INPUT, OUTPUT, SYSTEM, TOOLS, CUT}
WAIT_S = 20.0
ONCE = {"attempts": 1, "attempts_max": 1}
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def settings(simulator: Simulator, **capture: Any) -> dict[str, Any]:
    return {
        "providers": providers(simulator),
        "models": {
            "fallen": {"targets": ["sim/sim-503-times-99", "claude/claude-haiku-4-5"], "retry": {"attempts": 1}},
            "sim-*": {"targets": ["sim/*"], "retry": ONCE},
        },
        "limits": {"tokens_per_minute": 100_000_000},
        "server": {"workers": 2},
        "tenants": {
            "quiet": {"capture": "off"},
            "faulty": {"capture": "errors"},
            "kept": {"capture": "all"},
        },
        **({"capture": capture} if capture else {}),
    }


def telling(collector: Collector, **env: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, CONTENT: "SPAN_ONLY", **SOON, **env}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway, collector: Collector) -> Gateway:
    return module_gateways(settings(simulator), telling(collector))


def chat(gateway: Gateway, model: str, text: str, tenant: str = "acme", **fields: Any) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "metadata": {"tenant": tenant}, **fields}
    return ask(gateway.url, "POST", "/v1/chat/completions", body)


def content_of(collector: Collector, answer: Answer, attempts: int = 1) -> dict[str, Any]:
    """What the last span of a request says, its JSON read; no other span of it says any such thing."""
    *others, last = collector.of(answer.headers["x-request-id"], 1 + attempts)
    assert last.kind == CLIENT
    assert not any(ALL & each.attributes.keys() for each in others)
    found = {name: value for name, value in last.attributes.items() if name in ALL}
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in found.items()}


def streamed(answer: Answer) -> str:
    """The text of a stream."""
    chunks = [json.loads(line[6:]) for line in answer.body.splitlines() if line.startswith(b"data: {")]
    return "".join(part["delta"].get("content") or "" for chunk in chunks for part in chunk["choices"])


def text_of(message: dict[str, Any]) -> str:
    return "".join(part.get("content", "") for part in message["parts"])


def waiting(gateway: Gateway) -> list[Path]:
    """Files of content that wait for their spans."""
    return [path for path in gateway.written("content-told") if path.suffix == ".msgpack"]


def written(gateway: Gateway) -> bytes:
    """All that the gateway has written anywhere, and what it said."""
    return b"".join(gateway.written().values()) + gateway.running.said.encode()


def stored(gateway: Gateway) -> list[str]:
    """The requests whose content is in the database."""
    with contextlib.closing(sqlite3.connect(f"file:{gateway.state_dir}/edgegw.db?mode=ro", uri=True)) as database:
        return [id_ for (id_,) in database.execute("SELECT request_id FROM request_contents")]


def told(gateway: Gateway) -> dict[str, int]:
    """What became of contents."""
    text = ask(gateway.admin_url, "GET", "/metrics").body.decode()
    prefix = 'edgegw_traces_content_total{outcome="'
    lines = [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]
    return {line.partition('"')[0]: int(float(line.split()[-1])) for line in lines}


# -- what is told --


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("model", ["sim-tokens-12", "claude/claude-haiku-4-5"], ids=["openai", "anthropic"])
def test_a_conversation(running: Gateway, collector: Collector, model: str, stream: bool) -> None:
    messages = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A simulator."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And who is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            ],
        },
    ]
    answer = chat(running, model, "", stream=stream, messages=messages)
    assert answer.status == 200
    found = content_of(collector, answer)
    text = streamed(answer) if stream else answer.json["choices"][0]["message"]["content"]
    image = {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "", "left_out": len(PNG)}
    turns = [
        {"role": "user", "parts": [{"type": "text", "content": "Who are you?"}]},
        {"role": "assistant", "parts": [{"type": "text", "content": "A simulator."}]},
        {"role": "user", "parts": [{"type": "text", "content": "And who is this?"}, image]},
    ]
    orders = [{"type": "text", "content": "You are terse."}]
    said = [{"role": "assistant", "parts": [{"type": "text", "content": text}], "finish_reason": "stop"}]
    if model.startswith("claude"):
        assert found == {SYSTEM: orders, INPUT: turns, OUTPUT: said}
    else:
        assert found == {INPUT: [{"role": "system", "parts": orders}, *turns], OUTPUT: said}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("model", ["sim-tokens-12", "claude/claude-haiku-4-5"], ids=["openai", "anthropic"])
def test_a_call_of_a_tool(running: Gateway, collector: Collector, model: str, stream: bool) -> None:
    found = content_of(collector, chat(running, model, "call the tool", stream=stream, tools=[TOOL]))
    assert found[TOOLS] == [{"type": "function", **TOOL["function"]}]  # type: ignore[dict-item]
    [message] = found[OUTPUT]
    call = next(part for part in message["parts"] if part["type"] == "tool_call")
    assert (message["finish_reason"], call["name"], list(call["arguments"])) == ("tool_call", "get_weather", ["city"])
    assert call["id"]


def test_of_several_attempts_the_last_one_has_it(running: Gateway, collector: Collector) -> None:
    found = content_of(collector, chat(running, "fallen", "how are you"), attempts=2)
    assert text_of(found[INPUT][0]) == "how are you"
    assert found[OUTPUT][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("model", "stream", "answered"), [("sim-500", False, False), ("sim-500", True, False), ("sim-cut-5", True, True)]
)
def test_what_failed_is_told_as_far_as_it_came(
    running: Gateway, collector: Collector, model: str, stream: bool, answered: bool
) -> None:
    found = content_of(collector, chat(running, model, "what goes wrong", "faulty", stream=stream))
    assert text_of(found[INPUT][0]) == "what goes wrong"
    assert (OUTPUT in found) == answered
    if answered:
        assert found[OUTPUT][0]["finish_reason"] == "error"


def test_a_request_that_nobody_was_asked_for_has_its_span_and_no_content(
    running: Gateway, collector: Collector
) -> None:
    answer = chat(running, "no-such-model", "canary-nowhere")
    (server,) = collector.of(answer.headers["x-request-id"], 1)
    assert not ALL & server.attributes.keys()


def test_what_is_too_long_is_cut_and_says_so(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector() as collector:
        limits = {"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4000", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
        running = gateway(settings(simulator, body_max="8KiB"), telling(collector, **limits))
        found = content_of(collector, chat(running, "sim-tokens-12", "y" * 7000))
        assert text_of(found[INPUT][0]) == "y" * 2000 + "… (5000 characters left out)"
        assert found[CUT] == [INPUT]
        messages = [{"role": "user", "content": "first"}, {"role": "user", "content": "z" * 20_000}]
        found = content_of(collector, chat(running, "sim-tokens-2000", "", messages=messages, stream=True))
        assert text_of(found[INPUT][0]) == "first"
        assert text_of(found[INPUT][1]).startswith("z" * 1000)
        assert found[CUT] == [INPUT, OUTPUT, TOOLS]
        assert found[OUTPUT][0]["finish_reason"] == "stop"


# -- whose --


def test_tenants_that_are_off_are_never_told(running: Gateway, collector: Collector) -> None:
    canaries = []
    for tenant, model in (("quiet", "sim-tokens-24"), ("quiet", "sim-500"), ("quiet", "claude/x"), ("faulty", "sim-1")):
        for stream in (False, True):
            canaries.append(f"canary-{tenant}-{model}-{stream}")
            answer = chat(running, model.replace("sim-1", "sim-tokens-9"), canaries[-1], tenant, stream=stream)
            assert content_of(collector, answer) == {}
    everything = repr(collector.spans).encode() + written(running)
    assert [canary for canary in canaries if canary.encode() in everything] == []


def test_what_is_told_is_not_stored_and_leaves_nothing_behind(running: Gateway, collector: Collector) -> None:
    """Of those of whom nothing is kept; who is kept is kept as well."""
    answer, kept = chat(running, "sim-tokens-9", "canary-told-1"), chat(running, "sim-tokens-9", "canary-kept", "kept")
    for each, text in ((answer, "canary-told-1"), (kept, "canary-kept")):
        assert text_of(content_of(collector, each)[INPUT][0]) == text
    eventually("what is kept", lambda: stored(running), lambda ids: kept.headers["x-request-id"] in ids, WAIT_S)
    assert answer.headers["x-request-id"] not in stored(running)
    everything = written(running)
    assert b"canary-told-1" not in everything
    assert b"canary-kept" in everything
    assert waiting(running) == []


@pytest.mark.parametrize("value", [None, "false", "NO_CONTENT", "EVENT_ONLY", "nonsense"])
def test_without_a_clear_word_nothing_is_told_and_nothing_written(
    simulator: Simulator, gateway: StartGateway, value: str | None
) -> None:
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON, **({CONTENT: value} if value else {})}
        running = gateway({**settings(simulator), "tenants": {}}, env)
        for stream in (False, True):
            assert content_of(collector, chat(running, "sim-tokens-9", "canary-unasked", stream=stream)) == {}
        assert b"canary-unasked" not in repr(collector.spans).encode() + written(running)
        assert not (running.state_dir / "content").exists()
        assert not (running.state_dir / "content-told").exists()
        assert ("SPAN_ONLY puts content on spans" in running.running.said) == (value == "EVENT_ONLY")
        assert "go to the collector" not in running.running.said


def test_it_is_said_that_content_is_told(running: Gateway) -> None:
    assert f"prompts and answers go to the collector, but not those of quiet: {CONTENT} says so" in running.running.said


# -- when things break --


@contextlib.contextmanager
def open_stream(gateway: Gateway, text: str) -> Iterator[str]:
    """A stream that has begun; its request's id."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    body = {"model": "sim-slow-50ms-tokens-500", "stream": True, "messages": [{"role": "user", "content": text}]}
    sent = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as sock:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        sock.sendall(head % len(sent) + sent)
        heard = sock.recv(65536).lower()
        yield heard.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()


def test_the_control_process_killed(simulator: Simulator, gateway: StartGateway) -> None:
    """Frozen, so that contents wait in files; killed. The next one tells of every request, with its content."""
    with Collector() as collector:
        running = gateway(settings(simulator), telling(collector))
        pid = running.control_pid()
        os.kill(pid, signal.SIGSTOP)
        answers = [chat(running, "sim-tokens-9", f"number {number}", stream=bool(number % 2)) for number in range(20)]
        eventually("files wait", lambda: waiting(running), bool, WAIT_S)
        os.kill(pid, signal.SIGKILL)
        for number, answer in enumerate(answers):
            assert text_of(content_of(collector, answer)[INPUT][0]) == f"number {number}"
        assert waiting(running) == []


def test_a_worker_killed(simulator: Simulator, gateway: StartGateway) -> None:
    """What was open has its span, and at once; its content died with the worker."""
    with Collector() as collector:
        running = gateway(settings(simulator), telling(collector))
        with open_stream(running, "canary-open") as id_:
            for pid in running.worker_pids():
                os.kill(pid, signal.SIGKILL)
            spans = collector.of(id_, 2)
        assert [each.attributes.get("error.type") for each in spans] == ["interrupted"] * 2
        assert b"canary-open" not in repr(collector.spans).encode() + written(running)


def test_a_span_whose_content_cannot_be_put_down_comes_without(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector() as collector:
        running = gateway(settings(simulator), telling(collector))
        directory = running.state_dir / "content-told"
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        directory.rmdir()
        directory.write_text("in the way")
        begun_s = time.monotonic()
        answer = chat(running, "sim-tokens-9", "lost")
        assert content_of(collector, answer) == {}
        assert time.monotonic() - begun_s < 5
        assert (told(running)["missing"], told(running)["attached"]) == (1, 0)
        directory.unlink()
        assert INPUT in content_of(collector, chat(running, "sim-tokens-9", "found"))
        assert told(running)["attached"] == 1


def test_processes_killed_under_load_mix_nothing_up(simulator: Simulator, gateway: StartGateway) -> None:
    """Workers and control process, again and again: what stands on a span is what its own request said, nobody who is
    off is told, and what came after the deaths is told whole."""
    with Collector() as collector:
        running = gateway(settings(simulator), telling(collector))
        said: dict[str, str] = {}

        def one(client: int, turn: int) -> None:
            tenant = "quiet" if client == 0 else "acme"
            text = f"{tenant} {client}-{turn}"
            answer = chat(running, "sim-tokens-9", text, tenant, stream=bool(turn % 2))
            said[answer.headers["x-request-id"]] = text

        kill_under_load(running, one, deaths=6)
        answer = chat(running, "sim-tokens-9", "after it")
        assert text_of(content_of(collector, answer)[INPUT][0]) == "after it"
        ids = {span.id: span.attributes["edgegw.request_id"] for span in collector.spans if span.kind == SERVER}
        found = {
            ids[span.parent]: text_of(json.loads(span.attributes[INPUT])[0])
            for span in list(collector.spans)
            if span.parent in ids and INPUT in span.attributes
        }
        del found[answer.headers["x-request-id"]]
        assert len(found) > 50
        assert {id_: text for id_, text in found.items() if text != said.get(id_, text) or "quiet" in text} == {}


def test_what_waits_is_told_at_the_stop(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector() as collector:
        running = gateway(settings(simulator), telling(collector, OTEL_BSP_SCHEDULE_DELAY="5000"))
        for number in range(5):
            chat(running, "sim-tokens-9", f"number {number}")
        running.stop()
        clients: list[Seen] = [span for span in collector.spans if span.kind == CLIENT]
        assert [INPUT in span.attributes for span in clients] == [True] * 5


def test_what_is_left_of_a_gateway_that_does_not_tell_any_more_is_removed(
    simulator: Simulator, gateway: StartGateway
) -> None:
    """The variable is gone with the next start: so are the files."""
    with Collector() as collector:
        first = gateway(settings(simulator), telling(collector))
        os.kill(first.control_pid(), signal.SIGSTOP)
        chat(first, "sim-tokens-9", "canary-left")
        eventually("a file waits", lambda: waiting(first), bool, WAIT_S)
        first.kill()
        second = gateway({**settings(simulator), "server": {"state_dir": str(first.state_dir)}}, {})
        eventually("none waits", lambda: waiting(second), lambda left: not left, WAIT_S)
        assert b"canary-left" not in written(second)
        assert collector.spans == []


def test_reload_takes_a_tenant_out(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector() as collector:
        running = gateway(settings(simulator), telling(collector))
        assert INPUT in content_of(collector, chat(running, "sim-tokens-9", "before", "acme"))
        now = {**running.settings, "tenants": {"acme": {"capture": "off"}}}
        workers, file = running.worker_pids(), Path(running.state_dir.parent / "edgegw.yaml")
        file.write_text(json.dumps(now))
        os.kill(running.pid, signal.SIGHUP)
        gone = lambda: [pid for pid in workers if Path(f"/proc/{pid}").exists()]  # noqa: E731
        eventually("the old workers are gone", gone, lambda left: not left, WAIT_S)
        assert content_of(collector, chat(running, "sim-tokens-9", "canary-after", "acme")) == {}
        assert b"canary-after" not in repr(collector.spans).encode() + written(running)
