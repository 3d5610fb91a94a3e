"""Recorded traffic of real providers, replayed at the readers in several cuts; skipped where the recordings are not.

What a client must see is read from the recording by plain code below, not by the code under test.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgegw.dialects import openai_chat
from edgegw.dialects.base import Ask
from edgegw.errors import GatewayError
from edgegw.providers.base import Provider
from edgegw.providers.registry import build

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT.parent / "shared" / "cases"
INDEX = CASES / "wire" / "index.json"

pytestmark = pytest.mark.skipif(not INDEX.exists(), reason="the recorded traffic is not beside this checkout")

# Recordings that no stream of one answer can be compared with.
NOT_COMPARABLE = {
    "vercel-ai/anthropic-tool-search-deferred-regex.stream": "several answers, one after the other",
}
STOPS = {"max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls",
         "refusal": "content_filter"}  # fmt: skip


class Settings:
    name = "p"
    api_key = None
    base_url = "http://provider/v1"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.headers: dict[str, str] = {}


def recorded(endpoint: str) -> Iterator[dict[str, Any]]:
    for case in json.loads(INDEX.read_bytes()) if INDEX.exists() else ():
        wanted = case["endpoint"] == endpoint and not {"fallback", "compaction"} & set(case["categories"])
        if wanted and case["id"] not in NOT_COMPARABLE:
            yield case


def body_of(case: dict[str, Any]) -> bytes:
    folder: Path = INDEX.parent / case["id"]
    names = ("response.sse", "response.json", "response.txt")
    return next((folder / name).read_bytes() for name in names if (folder / name).exists())


def cuts(raw: bytes, seed: str) -> Iterator[list[bytes]]:
    yield [raw]
    if len(raw) < 20_000:
        yield [raw[at : at + 1] for at in range(len(raw))]
    dice, parts, at = random.Random(seed), [], 0
    while at < len(raw):
        size = dice.choice((1, 2, 3, 7, 40, 200, 1500, 9000))
        parts.append(raw[at : at + size])
        at += size
    yield parts


def data_lines(raw: bytes) -> list[str]:
    return [line[6:].strip() for line in raw.decode().splitlines() if line.startswith("data: ")]


CHAT = list(recorded("chat/completions"))
MESSAGES = list(recorded("messages"))


@pytest.mark.parametrize("case", CHAT, ids=[case["id"] for case in CHAT])
def test_same_dialect(case: dict[str, Any]) -> None:
    provider = build(Settings("openai" if case["provider"] == "openai" else "openai-compatible"))
    raw = body_of(case)
    request = INDEX.parent / case["id"] / "request.json"
    ask = openai_chat.read(request.read_bytes() if request.exists() else b'{"messages":[{"role":"user"}]}')
    sent = provider.call(ask, "other", "id").data.partition(b"\r\n\r\n")[2]
    own = {"model", "stream_options", "metadata"}
    assert {name: value for name, value in json.loads(sent).items() if name not in own} == {
        name: value for name, value in json.loads(ask.body).items() if name not in own
    }
    if case["status"] >= 400:
        fault = provider.fault(case["status"], {}, raw, 0.0)
        assert (fault.verbatim, fault.body, fault.status) == (True, raw, case["status"])
    elif not case["stream"]:
        reply = provider.plain(ask, "other", raw, created_s=0)
        assert reply.body == raw
        assert reply.finish_reason == json.loads(raw)["choices"][0]["finish_reason"]
    else:
        check_same_stream(provider, ask, raw, case)


def check_same_stream(provider: Provider, ask: Ask, raw: bytes, case: dict[str, Any]) -> None:
    wanted = [json.loads(line) for line in data_lines(raw) if line != "[DONE]"]
    usages = [found["usage"] for found in wanted if found.get("usage")]
    announced = case["provider"] != "openai" or any("usage" in found and not found["usage"] for found in wanted)
    if announced and not ask.include_usage:
        wanted = [found for found in wanted if found.get("choices") or not found.get("usage")]
    for parts in cuts(raw, case["id"]):
        reader = provider.stream(ask, "other", created_s=0)
        out = b"".join(reader.feed(part) for part in parts) + reader.end()
        got = [json.loads(line) for line in data_lines(out)]
        if case["provider"] == "mistral":  # the one whose events are mended
            assert [list(found) for found in got] == [list(found) for found in wanted]
        else:
            assert got == wanted
        assert (reader.done, reader.fault, reader.opened) == (True, None, True)
        assert reader.finish_reason
        if usages:
            assert reader.usage is not None
            assert reader.usage.input == usages[-1]["prompt_tokens"]


@pytest.mark.parametrize("case", MESSAGES, ids=[case["id"] for case in MESSAGES])
def test_anthropic_for_an_openai_client(case: dict[str, Any]) -> None:
    provider = build(Settings("anthropic"))
    raw = body_of(case)
    if case["status"] >= 400:
        assert provider.fault(case["status"], {}, raw, 0.0).message == json.loads(raw)["error"]["message"]
        return
    stream = '"stream":true,"stream_options":{"include_usage":true},' if case["stream"] else ""
    ask = openai_chat.read(("{" + stream + '"messages":[{"role":"user","content":"hi"}]}').encode())
    message = accumulated(data_lines(raw)) if case["stream"] else json.loads(raw)
    for parts in cuts(raw, case["id"]) if case["stream"] else ([raw],):
        check(seen_streamed(provider, ask, parts) if case["stream"] else seen(provider, ask, raw), message)


def seen(provider: Provider, ask: Ask, raw: bytes) -> dict[str, Any]:
    reply = json.loads(provider.plain(ask, "claude-x", raw, created_s=1).body)
    choice = reply["choices"][0]
    return {**choice["message"], "finish": choice["finish_reason"], "usage": reply["usage"]}


def seen_streamed(provider: Provider, ask: Ask, parts: list[bytes]) -> dict[str, Any]:
    reader = provider.stream(ask, "claude-x", created_s=1)
    out = b"".join(reader.feed(part) for part in parts) + reader.end()
    assert (reader.done, reader.fault) == (True, None)
    *chunks, usage, done = data_lines(out + reader.last)
    assert done == "[DONE]"
    found: dict[str, Any] = {"content": "", "tool_calls": [], "usage": json.loads(usage)["usage"]}
    for chunk in map(json.loads, chunks):
        choice = chunk["choices"][0]
        found["content"] += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls") or ():
            if "id" in call:
                assert call["index"] == len(found["tool_calls"])
                found["tool_calls"].append(call)
            else:
                found["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        found["finish"] = choice["finish_reason"]
    return found


def accumulated(lines: list[str]) -> dict[str, Any]:
    """The message that a stream amounts to."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for event in map(json.loads, lines):
        kind = event["type"]
        if kind == "message_start" and not message:
            message = event["message"]
        elif kind == "content_block_start":
            blocks[event["index"]] = {**event["content_block"], "json": ""}
        elif kind == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            block["text"] = block.get("text", "") + delta.get("text", "")
            block["json"] += delta.get("partial_json", "")
        elif kind == "message_delta":
            message.update(event["delta"])
            message["usage"].update({name: value for name, value in event["usage"].items() if value is not None})
    for block in blocks.values():
        if block["json"]:
            block["input"] = block["json"]
    message["content"] = list(blocks.values())
    return message


def check(got: dict[str, Any], message: dict[str, Any]) -> None:
    blocks = message["content"]
    assert (got["content"] or "") == "".join(block["text"] for block in blocks if block["type"] == "text")
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"]) for call in got.get("tool_calls") or ()
    ]
    wanted = [block for block in blocks if block["type"] == "tool_use"]
    assert [call[:2] for call in calls] == [(block["id"], block["name"]) for block in wanted]
    for call, block in zip(calls, wanted, strict=True):
        assert call[2] == block["input"] or json.loads(call[2]) == block["input"]
    assert got["finish"] == STOPS.get(message["stop_reason"], "stop")
    usage = message["usage"]
    cached, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
    assert got["usage"]["prompt_tokens"] == usage["input_tokens"] + cached + written
    assert got["usage"]["completion_tokens"] == usage["output_tokens"]
    assert got["usage"]["prompt_tokens_details"]["cached_tokens"] == cached


def test_recorded_chat_requests_can_be_carried_to_anthropic_or_are_refused_by_name() -> None:
    provider = build(Settings("anthropic"))
    carried = 0
    for case in CHAT:
        request = INDEX.parent / case["id"] / "request.json"
        if not request.exists():
            continue
        ask = openai_chat.read(request.read_bytes())
        refusal: GatewayError | None = None
        try:
            provider.call(ask, "claude-sonnet-4-5", "id")
        except GatewayError as error:
            refusal = error
        if refusal is None:
            carried += 1
        assert refusal is None or refusal.param, case["id"]
    assert carried > len(CHAT) // 2


def test_the_event_stream_vectors() -> None:
    program = CASES / "sse" / "run.py"
    done = subprocess.run(
        [sys.executable, str(program), "edgegw.http.sse:Decoder"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
