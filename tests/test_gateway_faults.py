"""The gateway when things go wrong: providers that fail in every way, bad input, clients that leave, processes killed.

The simulated provider's own counters and the rows are the two witnesses; a test believes a claim when both agree.
Every case has a model name of its own, so that no breaker of one case is opened by another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from rig import CLIENT_KEY, Gateway, Row, Simulator, StartGateway, ask, chat, eventually, providers

pytestmark = pytest.mark.system

GONE_S = 0.1  # the promise: a client that leaves ends the upstream's work within this
WAIT_S = 15.0
TOKENS_HEARD = 5  # before the client leaves
ONCE = {"attempts": 1}
# Endings of model names that patterns of the settings pick out; to the simulator they mean "nearly always".
ALONE = {"sim": "times-9001", "claude": "times-9002"}


def body_of(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "How are you?"}], **fields}


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway) -> Gateway:
    """Impatient: a provider is silent for half a second at most. `sim-…` falls back to `sim/good`; with one of the
    endings ALONE it has only itself, at the OpenAI or the Anthropic provider."""
    return module_gateways(
        {
            "providers": {**providers(simulator, first_byte="500ms", idle="500ms"), "dead": DEAD},
            "models": {
                "sim-*": {"targets": ["sim/*", "sim/good"], "retry": ONCE},
                **{f"sim-*-{end}": {"targets": [f"{name}/*"], "retry": ONCE} for name, end in ALONE.items()},
                "locked-out": {"targets": ["locked/gpt-5", "sim/good"], "retry": ONCE},
                "down": {"targets": ["dead/gpt-5", "claude/good"], "retry": ONCE},
            },
            "limits": {"tokens_per_minute": 10_000_000},
            "server": {"body_max": "64KiB"},
        }
    )


# A port that nobody may listen on: connecting is refused at once.
DEAD = {"kind": "openai-compatible", "base_url": "http://127.0.0.1:1/v1", "api_key": "k"}


def sdk(gateway: Gateway, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=CLIENT_KEY, max_retries=retries, timeout=20)


# ---- before the first content: another target answers


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("word", "error_kind"),
    [
        ("500", "upstream_error"),
        ("502", "upstream_error"),
        ("503", "upstream_overloaded"),
        ("529", "upstream_overloaded"),
        ("429-after-3", "upstream_rate_limited"),
        ("quota", "upstream_quota"),
        ("401", "upstream_auth"),
        ("hang", "upstream_timeout"),
        ("cut-0", "upstream_cut"),
        ("reset", "upstream_cut"),
        ("html", "upstream_error"),
        ("html-503", "upstream_overloaded"),
        ("noise", "upstream_garbage"),
        ("redirect", "upstream_garbage"),
        ("error-event", "upstream_error"),
        ("garbage", "upstream_garbage"),
        ("empty", ("upstream_cut", "upstream_garbage")),
        ("stall-0", ("upstream_stalled", "upstream_timeout")),
        ("truncate-0", ("upstream_cut", "upstream_garbage")),
    ],
)
def test_a_failure_before_content_is_answered_by_the_next_target(
    running: Gateway, simulator: Simulator, word: str, error_kind: str | tuple[str, ...], stream: bool
) -> None:
    model = f"sim-{word}-latency-{int(stream)}ms"
    answer = chat(running.url, model, stream=stream)
    assert answer.status == 200
    assert (answer.headers["x-edgegw-provider"], answer.headers["x-edgegw-model"]) == ("sim", "good")
    assert answer.headers["x-edgegw-attempts"] == "2"
    if stream:
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b'"error"' not in answer.body
    else:
        assert answer.json["choices"][0]["message"]["content"].startswith("You asked: ")
    # A pooled connection that closes without a byte may have been stale: the same attempt is sent once more.
    assert 1 <= simulator.count(model) <= 1 + (word in ("cut-0", "reset"))
    row = running.row(answer.headers["x-request-id"])
    assert (row["state"], row["status"], row["attempts"], row["model"]) == ("complete", 200, 2, "good")
    first, second = running.attempts(row["id"])
    assert (first["kind"], first["target"]) == ("primary", f"sim/{model}")
    assert first["error_kind"] in ((error_kind,) if isinstance(error_kind, str) else error_kind)
    assert (second["kind"], second["target"], second["error_kind"]) == ("fallback", "sim/good", None)
    assert second["retry_reason"] == first["error_kind"]


def test_a_refused_key_and_a_dead_provider_are_answered_by_the_next_target(running: Gateway) -> None:
    for model, error_kind in (("locked-out", "upstream_auth"), ("down", "upstream_connect")):
        answer = chat(running.url, model)
        assert answer.status == 200
        first, second = running.attempts(answer.headers["x-request-id"])
        assert (first["error_kind"], second["error_kind"]) == (error_kind, None)


def test_the_same_target_is_tried_again(simulator: Simulator, running: Gateway) -> None:
    """Without a route of its own a target has the default policy: two tries."""
    answer = chat(running.url, "sim/sim-fail-1")
    assert answer.status == 200
    assert simulator.count("sim-fail-1") == 2
    first, second = running.attempts(answer.headers["x-request-id"])
    assert [(one["kind"], one["status"]) for one in (first, second)] == [("primary", 500), ("retry", 200)]


# ---- when nothing helps: one true status, and no SDK that tries it all again


def test_exhausted_attempts_stop_the_sdk_from_retrying(running: Gateway, simulator: Simulator) -> None:
    model = f"sim-500-tokens-1-{ALONE['sim']}"
    with sdk(running, retries=2) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**body_of(model))
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert simulator.count(model) == 1
    row = running.row(caught.value.response.headers["x-request-id"])
    assert (row["state"], row["attempts"], row["status"]) == ("failed", 1, caught.value.status_code)


@pytest.mark.parametrize("provider", list(ALONE))
def test_a_429_of_the_last_target_reaches_the_client_with_its_wait(running: Gateway, provider: str) -> None:
    with sdk(running) as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**body_of(f"sim-429-after-3-{ALONE[provider]}"))
    assert caught.value.response.headers["retry-after"] == "3"
    assert running.row(caught.value.response.headers["x-request-id"])["error_kind"] == "upstream_rate_limited"


@pytest.mark.parametrize(
    ("word", "status"), [("hang", 504), ("reset", 502), ("garbage", 502), ("500", 502), ("529", 503), ("401", 502)]
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("provider", list(ALONE))
def test_a_failure_before_content_is_a_true_status(
    running: Gateway, provider: str, word: str, status: int, stream: bool
) -> None:
    answer = chat(running.url, f"sim-{word}-tokens-{5 + stream}-{ALONE[provider]}", stream=stream)
    assert answer.status == status
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-should-retry"] == "false"
    assert set(answer.error) >= {"message", "type", "param", "code"}


# ---- after the first content: exactly one error, never a second answer


@pytest.mark.parametrize("provider", ["sim", "claude"])
@pytest.mark.parametrize(
    ("word", "states"),
    [
        ("cut-5", {"reset", "truncated"}),
        ("reset-5", {"reset", "truncated"}),
        ("truncate-5", {"truncated"}),
        ("error-event-5", {"error_event"}),
        ("garbage-5", {"error_event"}),
        ("stall-5", {"idle_timeout"}),
    ],
)
def test_a_failure_after_content_is_one_error_event(
    running: Gateway, simulator: Simulator, provider: str, word: str, states: set[str]
) -> None:
    # Slow enough that a busy machine does not read content and fault at once: that would fail before the commit.
    model = f"sim-{word}-slow-40ms" + (f"-{ALONE['claude']}" if provider == "claude" else "")
    good_before = simulator.count("good")
    heard: list[str] = []
    with sdk(running) as client:
        raw = client.chat.completions.with_raw_response.create(**body_of(model, stream=True))
        with raw.parse() as stream, pytest.raises(openai.APIError) as caught:
            listen(stream, heard)
    assert caught.type is openai.APIError  # an error in the stream, not a broken connection
    assert "".join(heard) == "You asked: How are you?"
    row = running.row(raw.headers["x-request-id"])
    assert row["state"] in states
    assert (row["status"], row["attempts"]) == (200, 1)
    # The provider never said what it charges: the events that the client was sent, give or take those without text.
    assert 5 <= row["output_tokens"] <= 8
    assert row["estimated"] == 1
    assert simulator.count("good") == good_before
    assert simulator.count(model) == 1


def listen(stream: openai.Stream[ChatCompletionChunk], heard: list[str]) -> None:
    for chunk in stream:
        heard += [choice.delta.content for choice in chunk.choices if choice.delta.content]


def test_a_broken_stream_has_no_terminator_and_closes(running: Gateway) -> None:
    answer = chat(running.url, "sim-cut-3-latency-2ms", stream=True)
    events = [event for event in answer.body.split(b"\n\n") if event]
    assert b"[DONE]" not in answer.body
    assert [b'"error"' in event for event in events] == [False] * (len(events) - 1) + [True]


# ---- clients that leave


@pytest.mark.parametrize("provider", ["sim", "claude"])
@pytest.mark.parametrize("word", ["tokens-1000-slow-10ms", "tokens-1000-slow-100ms", "hang"])
def test_a_client_that_leaves_ends_the_upstream(
    running: Gateway, simulator: Simulator, provider: str, word: str
) -> None:
    model = f"sim-{word}-latency-{len(provider)}ms"
    name = f"{provider}/{model}"
    left_before = simulator.stats()["disconnects"]["count"]
    with connected(running) as sock:
        sock.sendall(http_request(json.dumps(body_of(name, stream=True)).encode()))
        if word == "hang":
            eventually("the request arrives", lambda: simulator.count(model), bool, WAIT_S)
        else:
            heard = b""
            while heard.count(b'"content":') < 1 + TOKENS_HEARD:  # the first is empty: it opens the message
                heard += (more := sock.recv(65536))
                assert more, heard
        left_s = time.monotonic()
    stats = eventually(
        "the upstream is left", simulator.stats, lambda stats: stats["disconnects"]["count"] > left_before, WAIT_S
    )
    (left,) = [left for left in stats["disconnects"]["last"] if left["model"] == model]
    assert left["at_monotonic_s"] - left_s <= GONE_S
    (row,) = running.rows("requests", where=f"WHERE model_asked = '{name}'")
    assert row["state"] == "client_gone"
    if word != "hang":
        # The provider never said what it charges, so it is what the client was sent, and marked as an estimate.
        assert row["output_tokens"] >= TOKENS_HEARD
        assert row["input_tokens"] >= 1
        assert row["estimated"] == 1


# ---- bad input: a 4xx in the envelope, a row, and no provider


def connected(gateway: Gateway) -> socket.socket:
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=WAIT_S)


def http_request(body: bytes, path: str = "/v1/chat/completions", **more: str) -> bytes:
    fields = {"host": "x", "content_type": "application/json", "content_length": str(len(body)), **more}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'"text"', None),
        (b'{"model": "sim/good", "messages": [', None),
        (b'{"model": "sim/good"} trailing', None),
        (b'{"model": "sim/good", "messages": "\xff"}', None),
        (b"[" * 100_00, None),
        ({"model": "sim/good"}, "messages"),
        ({"model": "sim/good", "messages": None}, "messages"),
        ({"model": "sim/good", "messages": []}, "messages"),
        ({"model": "sim/good", "messages": "hello"}, "messages"),
        ({"model": "sim/good", "messages": ["hello"]}, "messages"),
        (body_of("sim/good") | {"model": 5}, "model"),
        (body_of("sim/good") | {"model": ["sim/good"]}, "model"),
        (body_of("sim/good") | {"model": ""}, "model"),
        (body_of("sim/good", stream="yes"), "stream"),
        (body_of("sim/good", metadata=[]), "metadata"),
        (body_of("sim/good", metadata="acme"), "metadata"),
        (body_of("sim/good", metadata={"tenant": 5}), "metadata.tenant"),
        (body_of("sim/good", metadata={"tenant": ""}), "metadata.tenant"),
        (body_of("sim/good", metadata={"tenant": "x" * 1000}), "metadata.tenant"),
        (body_of("sim/good", metadata={"use_case": {}}), "metadata.use_case"),
        (body_of("sim/good", max_tokens="many"), "max_tokens"),
        (body_of("no\x00such\r\nmodel"), "model"),
        (body_of("x" * 10_000), "model"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_bad_input(running: Gateway, simulator: Simulator, body: Any, param: str | None) -> None:
    before = simulator.stats()["requests"]
    answer = ask(running.url, "POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    assert 400 <= answer.status < 500
    assert answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"
    if param is not None:
        assert answer.error["param"] is not None
        assert answer.error["param"].split("[")[0] == param
    row = running.row(answer.headers["x-request-id"])
    assert (row["state"], row["status"], row["attempts"]) == ("refused", answer.status, 0)
    assert simulator.stats()["requests"] == before


@pytest.mark.parametrize("body", [b'{"model": "sim/good",\n "messages": [,]}', b'{"model": "sim/good",\n "mess'])
def test_malformed_json_names_the_place(running: Gateway, body: bytes) -> None:
    answer = ask(running.url, "POST", "/v1/chat/completions", body)
    assert answer.status == 400
    assert re.search(r"line 2.*column \d+", answer.error["message"])


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("POST", "/v1/chat/completionsx", 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/chat/completions", 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("GET", "/simulator/stats", 404, None),
        ("GET", "/metrics", 404, None),  # the admin port's, not the clients'
    ],
)
def test_unknown_paths_and_methods(running: Gateway, method: str, path: str, status: int, allow: str | None) -> None:
    answer = ask(running.url, method, path)
    assert answer.status == status
    assert answer.error["type"] == "invalid_request_error"
    if allow is not None:
        assert allow in answer.headers["allow"].split(", ")
    row = running.row(answer.headers["x-request-id"])
    assert (row["state"], row["status"]) == ("refused", status)


@pytest.mark.parametrize(("path", "method"), [("*", "POST"), ("/v1/models", "GET"), ("/v1/chat/completions", "POST")])
def test_options_tells_the_methods(running: Gateway, path: str, method: str) -> None:
    answer = ask(running.url, "OPTIONS", path)
    assert (answer.status, answer.body) == (200, b"")
    assert {method, "OPTIONS"} <= set(answer.headers["allow"].split(", "))


def test_a_body_too_large_is_refused_before_it_is_read(running: Gateway, simulator: Simulator) -> None:
    """The body is never sent: the answer comes from the head alone."""
    before = simulator.stats()["requests"]
    with connected(running) as sock:
        sock.sendall(http_request(b"", content_length=str(1 << 30)))
        got = sock.recv(65536)
        while chunk := sock.recv(65536):
            got += chunk
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "request_too_large"
    assert simulator.stats()["requests"] == before
    running.rows("requests", where="WHERE status = 413")


def test_a_body_too_large_in_chunks_is_refused_as_it_grows(running: Gateway) -> None:
    with connected(running) as sock:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        sock.sendall(head + b"10000\r\n" + b" " * 65536 + b"\r\n" + b"10\r\n" + b" " * 16 + b"\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_models_answers_get_and_head(running: Gateway) -> None:
    listed = ask(running.url, "GET", "/v1/models")
    assert (listed.status, listed.json["object"]) == (200, "list")
    assert {"locked-out", "down", "sim/good"} <= {model["id"] for model in listed.json["data"]}
    head = ask(running.url, "HEAD", "/v1/models")
    assert (head.status, head.body) == (200, b"")


# ---- limits


def test_a_used_up_limit_is_a_429_that_says_when(simulator: Simulator, gateway: StartGateway) -> None:
    limit = 600
    small = gateway({"providers": providers(simulator), "limits": {"tokens_per_minute": limit}})
    model = "sim-tokens-200"
    served_before = simulator.count(model)
    answers = [chat(small.url, f"sim/{model}", max_tokens=200) for _ in range(6)]
    statuses = [answer.status for answer in answers]
    served = statuses.count(200)
    assert statuses == [200] * served + [429] * (6 - served)
    assert 1 <= served <= 3
    assert simulator.count(model) - served_before == served
    refused = answers[-1]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert str(limit) in refused.error["message"]
    assert refused.error["code"] == "rate_limit_exceeded"
    assert refused.headers["x-ratelimit-limit-tokens"] == str(limit)
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) < 210
    row = small.row(refused.headers["x-request-id"])
    assert (row["state"], row["status"], row["attempts"]) == ("refused", 429, 0)
    used = sum(row["input_tokens"] + row["output_tokens"] for row in small.rows("requests", where="WHERE status = 200"))
    assert used <= limit
    # Another tenant has a limit of its own.
    assert chat(small.url, f"sim/{model}", max_tokens=200, metadata={"tenant": "other"}).status == 200


def test_a_request_that_can_never_fit_is_told_so(simulator: Simulator, gateway: StartGateway) -> None:
    small = gateway({"providers": providers(simulator), "limits": {"tokens_per_minute": 600}})
    answer = chat(small.url, "sim/never", max_tokens=5_000)
    assert answer.status == 413
    assert "retry-after" not in answer.headers
    assert simulator.count("never") == 0


# ---- processes that die


@dataclass(slots=True)
class Load:
    """Clients that ask without pause and remember what they saw."""

    gateway: Gateway
    model: str
    seen: list[str] = field(default_factory=list)  # ids of all replies of which a byte came
    whole: list[str] = field(default_factory=list)
    broken: int = 0
    statuses: set[int] = field(default_factory=set)
    stopping: bool = False

    async def run(self, clients: int) -> None:
        await asyncio.gather(*(self._client(number) for number in range(clients)))

    async def _client(self, number: int) -> None:
        parts = urlsplit(self.gateway.url)
        data = http_request(json.dumps(body_of(self.model, stream=bool(number % 2))).encode())
        while not self.stopping:
            writer = None
            try:
                async with asyncio.timeout(WAIT_S):
                    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                    while not self.stopping:
                        writer.write(data)
                        await self._reply(reader)
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1
            finally:
                if writer is not None:
                    writer.transport.abort()

    async def _reply(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        request_id = fields["x-request-id"]
        self.seen.append(request_id)
        if "content-length" in fields:
            await reader.readexactly(int(fields["content-length"]))
        else:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        self.statuses.add(int(head.split(" ")[1]))
        self.whole.append(request_id)


async def until(what: str, good: Callable[[], bool]) -> None:
    """Bounded wait that lets the load go on. What is waited for happens in other processes."""
    end_s = time.monotonic() + WAIT_S
    while not good():
        assert time.monotonic() < end_s, what
        await asyncio.sleep(0.01)


async def answers(load: Load, count: int) -> None:
    expected = len(load.whole) + count
    await until("the load goes on", lambda: len(load.whole) >= expected)


async def kill_a_worker(gateway: Gateway, workers: int) -> None:
    """Returns when as many run as before."""
    victim = gateway.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)

    def replaced() -> bool:
        pids = gateway.worker_pids()
        return victim not in pids and len(pids) == workers

    await until("a new worker", replaced)


async def kill_the_control_process(gateway: Gateway) -> None:
    """Returns when there is another."""
    victim = gateway.control_pid()
    os.kill(victim, signal.SIGKILL)
    await until("a new control process", lambda: gateway.control_pid() not in (victim, 0))


def nothing_is_lost(gateway: Gateway, simulator: Simulator, load: Load) -> list[Row]:
    """Every reply has its row, once; every request the provider saw has its attempt."""
    expected = set(load.seen)
    provider_saw = simulator.count(load.model.partition("/")[2])
    gateway.rows("provider_attempts", lambda rows: len(rows) >= provider_saw)
    rows = gateway.rows("requests", lambda rows: expected <= {row["id"] for row in rows})
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids))
    states = {row["id"]: row["state"] for row in rows}
    assert {states[request_id] for request_id in load.whole} == {"complete"}
    attempts = gateway.rows("provider_attempts", lambda attempts: {a["request_id"] for a in attempts} == set(ids))
    assert len({(attempt["request_id"], attempt["number"]) for attempt in attempts}) == len(attempts)
    assert provider_saw <= len(attempts)
    return rows


async def test_kill_9_of_a_worker_loses_no_row(simulator: Simulator, gateway: StartGateway) -> None:
    settings = {"providers": providers(simulator), "server": {"workers": 2}, "limits": {"tokens_per_minute": 10**9}}
    running = await asyncio.to_thread(gateway, settings)
    load = Load(running, "sim/sim-slow-2ms-tokens-10")
    task = asyncio.create_task(load.run(12))
    for _ in range(2):
        await answers(load, 100)
        await kill_a_worker(running, 2)
    await answers(load, 100)
    load.stopping = True
    await asyncio.wait_for(task, WAIT_S)
    assert load.statuses == {200}
    rows = await asyncio.to_thread(nothing_is_lost, running, simulator, load)
    # A connection that broke had at most one request open, and only those may be interrupted.
    interrupted = [row for row in rows if row["state"] == "interrupted"]
    assert len(interrupted) <= load.broken
    assert {row["state"] for row in rows} <= {"complete", "interrupted"}


async def test_kill_9_of_the_control_process_loses_no_row(simulator: Simulator, gateway: StartGateway) -> None:
    settings = {"providers": providers(simulator), "limits": {"tokens_per_minute": 10**9}}
    running = await asyncio.to_thread(gateway, settings)
    load = Load(running, "sim/sim-slow-2ms-tokens-9")
    task = asyncio.create_task(load.run(12))
    for _ in range(3):
        await answers(load, 100)
        await kill_the_control_process(running)
    await answers(load, 100)
    load.stopping = True
    await asyncio.wait_for(task, WAIT_S)
    assert (load.broken, load.statuses) == (0, {200})  # no request noticed
    rows = await asyncio.to_thread(nothing_is_lost, running, simulator, load)
    assert {row["state"] for row in rows} == {"complete"}


def test_sigterm_drains_an_open_stream(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway({"providers": providers(simulator), "server": {"drain_timeout": "10s"}})
    with sdk(running) as client:
        model = "sim/sim-tokens-40-slow-25ms"
        raw = client.chat.completions.with_raw_response.create(**body_of(model, stream=True))
        with raw.parse() as stream:
            first = next(stream)
            running.running.terminate()
            rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "stop"
    assert len([chunk for chunk in [first, *rest] if chunk.choices and chunk.choices[0].delta.content]) == 40
    assert running.running.wait() == 0, running.running.said
    row = running.row(raw.headers["x-request-id"])
    assert (row["state"], row["output_tokens"]) == ("complete", 40)
    with contextlib.closing(socket.socket()) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", urlsplit(running.url).port or 0))


def test_whoever_is_let_in_while_it_stops_is_answered(simulator: Simulator, gateway: StartGateway) -> None:
    """To close a listening socket resets who waits in its queue. Here hundreds knock within the moment it is closed."""
    running = gateway({"providers": providers(simulator), "server": {"workers": 2}})

    def keep_asking() -> int:
        answered = 0
        while True:
            try:
                assert ask(running.url, "GET", "/v1/models").status == 200
            except ConnectionRefusedError:
                return answered
            answered += 1

    with ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(keep_asking) for _ in range(8)]
        time.sleep(0.3)
        running.running.terminate()
        answered = [each.result(WAIT_S) for each in asking]
    assert min(answered) > 0
    assert running.running.wait() == 0, running.running.said


def test_a_stop_ships_everything_and_leaves_no_process(simulator: Simulator, gateway: StartGateway) -> None:
    running = gateway({"providers": providers(simulator)})
    ids = [chat(running.url, "sim/good", max_tokens=5).headers["x-request-id"] for _ in range(20)]
    processes = running.processes()
    code, said = running.stop()
    assert code == 0, said
    assert {row["id"] for row in running.rows("requests")} == set(ids)  # at once: nothing ships any more
    for pid in (processes["supervisor"], processes["control"], *processes["workers"].values()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
