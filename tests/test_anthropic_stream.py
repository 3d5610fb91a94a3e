"""Anthropic answers for OpenAI clients: streams as traces of events, whole messages, usage, errors."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from edgegw.dialects.anthropic_messages import OutputDetails, UsageCount, read_message, usage_of
from edgegw.dialects.anthropic_stream import AnthropicStream
from edgegw.dialects.openai_chat_writer import ChunkWriter, write_answer
from edgegw.errors import UpstreamFault
from edgegw.exchange import Usage
from edgegw.http.sse import EVENT_BYTES_MAX


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b   \n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


START = event(
    "message_start", message={"id": "msg_1", "model": "claude", "usage": {"input_tokens": 5, "output_tokens": 1}}
)
PING = event("ping")
STOP = event("message_stop")


def opened(index: int, **block: Any) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def closed(index: int) -> bytes:
    return event("content_block_stop", index=index)


def ended(reason: str, usage: dict[str, Any] | None = None, **details: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, **details}, usage=usage or {"output_tokens": 7})


def reader(include_usage: bool = False, unwrap: str | None = None) -> AnthropicStream:
    return AnthropicStream(ChunkWriter(1_700_000_000, include_usage), unwrap)


def chunks(out: bytes) -> list[dict[str, Any]]:
    assert out == b"" or out.endswith(b"\n\n")
    return [json.loads(part.removeprefix(b"data: ")) for part in out.split(b"\n\n")[:-1]]


def deltas(out: bytes) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(out)]


TEXT = [
    opened(0, type="text", text=""),
    delta(0, "text_delta", text="Hé\n"),
    delta(0, "text_delta", text=""),
    closed(0),
]
FIRST = {"role": "assistant", "content": "", "refusal": None}
THINKING = [
    opened(0, type="thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="hm"),
    delta(0, "signature_delta", signature="sig="),
    closed(0),
    opened(1, type="redacted_thinking", data="xyz"),
    closed(1),
]
TOOLS = [
    opened(0, type="text", text=""),
    closed(0),
    opened(1, type="tool_use", id="t1", name="f", input={}),
    delta(1, "input_json_delta", partial_json=""),
    delta(1, "input_json_delta", partial_json='{"a'),
    delta(1, "input_json_delta", partial_json='": 1}'),
    closed(1),
    opened(2, type="server_tool_use", id="s1", name="web_search", input={}),
    delta(2, "input_json_delta", partial_json='{"query":1}'),
    closed(2),
    opened(3, type="web_search_tool_result", tool_use_id="s1", content=[]),
    closed(3),
    opened(4, type="tool_use", id="t2", name="g", input={}),
    closed(4),
    opened(5, type="tool_use", id="t3", name="h", input={"whole": True}),
    closed(5),
]


def call(index: int, id: str, name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}


def piece(index: int, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


def detail(index: int, kind: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"index": index, "type": f"reasoning.{kind}", **fields}]


TRACES: list[tuple[str, list[bytes], list[dict[str, Any]], str]] = [
    ("end_turn", TEXT, [{"content": "Hé\n"}], "stop"),
    ("max_tokens", TEXT, [{"content": "Hé\n"}], "length"),
    ("model_context_window_exceeded", TEXT, [{"content": "Hé\n"}], "length"),
    ("pause_turn", TEXT, [{"content": "Hé\n"}], "stop"),
    ("something_new", TEXT, [{"content": "Hé\n"}], "stop"),
    ("stop_sequence", [opened(0, type="text", text="whole"), closed(0)], [{"content": "whole"}], "stop"),
    ("end_turn", [event("new"), opened(0, type="new_block"), delta(0, "new_delta"), closed(0)], [], "stop"),
    (
        "end_turn",
        THINKING,
        [
            {"reasoning_content": "hm", "reasoning_details": detail(0, "text", text="hm")},
            {"reasoning_details": detail(0, "text", signature="sig=")},
            {"reasoning_details": detail(1, "encrypted", data="xyz")},
        ],
        "stop",
    ),
    (
        "tool_use",
        TOOLS,
        [call(0, "t1", "f"), piece(0, '{"a'), piece(0, '": 1}'), call(1, "t2", "g"), piece(1, "{}"),
         call(2, "t3", "h"), piece(2, '{"whole":true}')],
        "tool_calls",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "events", "expected", "finish"), TRACES)
@pytest.mark.parametrize("size", [1, 5, 64, 1 << 20])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_traces(
    reason: str, events: list[bytes], expected: list[dict[str, Any]], finish: str, size: int, ends: bytes
) -> None:
    raw = b"".join([PING, START, START, *events, ended(reason), STOP, TEXT[1]]).replace(b"\n", ends)
    stream = reader()
    out = b"".join(stream.feed(raw[at : at + size]) for at in range(0, len(raw), size))
    found = chunks(out)
    assert [chunk["choices"][0]["delta"] for chunk in found] == [FIRST, *expected, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None] * (len(found) - 1) + [finish]
    heads = {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in found}
    assert heads == {("chatcmpl-msg_1", 1_700_000_000, "claude", "chat.completion.chunk")}
    assert (stream.done, stream.fault, stream.opened, stream.finish_reason) == (True, None, True, finish)
    assert (stream.usage, stream.model, stream.last) == (Usage(5, 7), "claude", b"data: [DONE]\n\n")


def test_the_gate_opens_with_the_first_content() -> None:
    stream = reader()
    for data, is_open in ((START, False), (PING, False), (TEXT[0], False), (TEXT[2], False), (TEXT[1], True)):
        stream.feed(data)
        assert stream.opened is is_open
    assert not stream.transparent
    assert stream.events == 3  # the start, and the deltas: what a client gets an event for


def test_pings_in_a_silence_become_comments() -> None:
    stream = reader()
    assert [stream.feed(data) == b": ping\n\n" for data in (START, PING, PING, PING, TEXT[1], PING, STOP, PING)] == [
        *(False, False, True, True),
        *(False, True, False, False),
    ]
    assert (stream.done, stream.events) == (True, 2)  # the start and the text


def test_usage_goes_out_last_and_only_when_asked_for() -> None:
    later = {"input_tokens": 6, "cache_read_input_tokens": 10, "output_tokens": 9, "cache_creation_input_tokens": None,
             "output_tokens_details": {"thinking_tokens": 4}}  # fmt: skip
    stream = reader(include_usage=True)
    out = stream.feed(START + b"".join(TEXT) + ended("end_turn", later) + STOP)
    assert all(chunk["usage"] is None for chunk in chunks(out))
    usage, done = stream.last.split(b"\n\n")[:2]
    found = json.loads(usage.removeprefix(b"data: "))
    assert (found["choices"], done) == ([], b"data: [DONE]")
    assert found["usage"] == {
        "prompt_tokens": 16,
        "completion_tokens": 9,
        "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    assert "usage" not in chunks(reader().feed(START))[0]


def test_a_refusal_says_why() -> None:
    stream = reader()
    out = stream.feed(START + ended("refusal", stop_details={"type": "refusal", "explanation": "No."}) + STOP)
    assert deltas(out) == [FIRST, {"refusal": "No."}, {}]
    assert chunks(out)[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_citations_of_pages_are_annotations() -> None:
    page = {"type": "web_search_result_location", "url": "https://x", "title": "X"}
    events = [
        delta(0, "citations_delta", citation=page),
        delta(0, "citations_delta", citation={"type": "char_location"}),
    ]
    out = reader().feed(START + b"".join(events))
    url = {"url": "https://x", "title": "X", "start_index": 0, "end_index": 0}
    assert deltas(out)[1:] == [{"annotations": [{"index": 0, "type": "url_citation", "url_citation": url}]}]


def test_the_stand_in_tool_is_unwrapped_to_text() -> None:
    events = [opened(0, type="tool_use", id="t", name="json_output", input={}),
              delta(0, "input_json_delta", partial_json='{"a":1}'), closed(0)]  # fmt: skip
    out = reader(unwrap="json_output").feed(START + b"".join(events) + ended("tool_use") + STOP)
    assert deltas(out) == [FIRST, {"content": '{"a":1}'}, {}]
    assert chunks(out)[-1]["choices"][0]["finish_reason"] == "stop"


def test_blocks_that_nobody_closes_are_whole_all_the_same() -> None:
    events = [event for event in TOOLS if b"content_block_stop" not in event]
    out = reader().feed(b"".join([START, *events, ended("tool_use"), STOP]))
    assert deltas(out)[1:-1] == TRACES[-1][2]


FAULTS = [
    (event("error", error={"type": "overloaded_error", "message": "Overloaded"}), "upstream_overloaded", 529),
    (event("error", error={"type": "rate_limit_error", "message": "x"}), "upstream_rate_limited", 429),
    (event("error", error={"type": "api_error", "message": "x"}), "upstream_error", 200),
    (event("error", error={"type": "invalid_request_error", "message": "x"}), "upstream_refused", 400),
    (event("error", error={"type": "authentication_error", "message": "x"}), "upstream_auth", 401),
    (b'data: {"error": "strange"}\n\n', "upstream_error", 200),
    (b"data: oops\n\n", "upstream_garbage", 200),
    (b"data: []\n\n", "upstream_garbage", 200),
    (b"data: " + b"x" * (EVENT_BYTES_MAX + 1), "upstream_garbage", 200),
]


@pytest.mark.parametrize(("data", "kind", "status"), FAULTS)
def test_faults(data: bytes, kind: str, status: int) -> None:
    stream = reader()
    assert deltas(stream.feed(START + TEXT[1])) == [FIRST, {"content": "Hé\n"}]
    assert stream.feed(data + TEXT[1] + STOP) == b""
    assert stream.fault is not None
    assert (stream.fault.kind, stream.fault.status, stream.done) == (kind, status, False)
    assert stream.feed(STOP) + stream.end() == b""


ENDS = [
    ([START, *TEXT, ended("end_turn")], True, None),
    ([START, *TEXT, ended("end_turn"), STOP[:-1]], True, None),
    ([START, *TEXT, ended("end_turn")[:-2]], True, None),
    ([START, *TEXT], False, "upstream_cut"),
    ([START, *TEXT, ended("end_turn")[:60]], False, "upstream_cut"),
    ([], False, "upstream_garbage"),
    ([STOP], False, "upstream_garbage"),
    ([b"<html>\n\n</html>"], False, "upstream_garbage"),
]


@pytest.mark.parametrize(("events", "done", "kind"), ENDS)
def test_a_clean_end_completes_or_is_a_fault(events: list[bytes], done: bool, kind: str | None) -> None:
    stream = reader()
    out = stream.feed(b"".join(events)) + stream.end()
    assert (stream.done, stream.fault.kind if stream.fault else None) == (done, kind)
    assert (chunks(out)[-1]["choices"][0]["finish_reason"] == "stop" if out else False) is done


def test_bytes_that_are_no_utf8_do_not_reach_the_client() -> None:
    stream = reader()
    stream.feed(START)
    out = stream.feed(delta(0, "text_delta", text="XY").replace(b"XY", b"a\xff"))
    assert deltas(out) == [{"content": "a\ufffd"}]


@pytest.mark.parametrize("kind", ["signature_delta", "input_json_delta", "thinking_delta", "text_delta"])
def test_a_delta_outside_any_block_breaks_nothing(kind: str) -> None:
    field = {"signature_delta": "signature", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
    stream = reader()
    out = stream.feed(delta(0, kind, **{field.get(kind, "text"): "x"}))
    assert stream.fault is None
    chunks(out)


# -- whole messages --

MESSAGE: dict[str, Any] = {
    "type": "message",
    "id": "msg_1",
    "model": "claude",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "sig="},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "text", "text": "Hé "},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "text", "text": "you", "citations": [{"url": "https://x", "title": "X"}, {"type": "char_location"}]},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 1, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 4, "output_tokens": 8},
}


def answered(message: dict[str, Any], unwrap: str | None = None) -> dict[str, Any]:
    body = write_answer(read_message(msgspec.json.encode(message), unwrap), 5)
    found: dict[str, Any] = json.loads(body)
    return found


def test_a_whole_message() -> None:
    found = answered(MESSAGE)
    choice = found.pop("choices")[0]
    usage = found.pop("usage")
    assert found == {"id": "chatcmpl-msg_1", "object": "chat.completion", "created": 5, "model": "claude"}
    page = {"url": "https://x", "title": "X", "start_index": 3, "end_index": 6}
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hé you",
        "refusal": None,
        "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        "annotations": [{"type": "url_citation", "url_citation": page}],
        "reasoning_content": "hm",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "hm", "signature": "sig=", "index": 0},
            {"type": "reasoning.encrypted", "data": "xyz", "index": 1},
        ],
    }
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 8, 15)


def test_content_is_null_only_beside_tool_calls() -> None:
    only_call = answered({**MESSAGE, "content": [{**MESSAGE["content"][-1], "input": None}]})
    assert only_call["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "{}"
    assert only_call["choices"][0]["message"]["content"] is None
    assert answered({**MESSAGE, "content": []})["choices"][0]["message"]["content"] == ""


def test_a_refusal_and_the_stand_in_tool() -> None:
    refused = answered({**MESSAGE, "content": [], "stop_reason": "refusal", "stop_details": {"explanation": "No."}})
    assert refused["choices"][0]["message"]["refusal"] == "No."
    assert refused["choices"][0]["finish_reason"] == "content_filter"
    unwrapped = answered({**MESSAGE, "content": MESSAGE["content"][-1:]}, unwrap="f")
    assert unwrapped["choices"][0]["message"]["content"] == '{"a":1}'
    assert unwrapped["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", "upstream_garbage"),
        (b"{}", "upstream_garbage"),
        (b'{"type":"completion"}', "upstream_garbage"),
        (b'{"type":"message","content":7}', "upstream_garbage"),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', "upstream_overloaded"),
    ],
)
def test_a_reply_that_is_no_message(body: bytes, kind: str) -> None:
    with pytest.raises(UpstreamFault) as caught:
        read_message(body, None)
    assert caught.value.kind == kind


def test_usage_counts_the_cache_as_input() -> None:
    count = UsageCount(1, 8, 4, 2, OutputDetails(3))
    assert usage_of(count) == Usage(input=7, output=8, cached=2, cache_write=4, reasoning=3)
    assert usage_of(UsageCount()) == Usage(estimated=True)
