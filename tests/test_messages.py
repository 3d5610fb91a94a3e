"""Prompts and answers in the shape of the conventions: both kinds of provider, plain and streamed, cut and strange."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from span_records import an_attempt, an_end, request_id, told_of, wording

from edgegw.content.mended import mended
from edgegw.content.record import Content
from edgegw.http.reply import LAST_CHUNK, chunk
from edgegw.telemetry.fitting import fitted
from edgegw.telemetry.messages import attributes_of

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
SYSTEM, TOOLS = "gen_ai.system_instructions", "gen_ai.tool.definitions"
CUT = "edgegw.content.cut"
PNG = "data:image/png;base64," + "iVBORw0KGgo" * 40

# What each kind of part must have (gen-ai-input-messages.json of 0.1.0).
REQUIRED = {
    "text": {"content"},
    "reasoning": {"content"},
    "tool_call": {"name"},
    "tool_call_response": {"response"},
    "blob": {"modality", "content"},
    "uri": {"modality", "uri"},
    "file": {"modality", "file_id"},
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASKED = {
    "model": "smart",
    "messages": [
        {"role": "system", "content": "You are terse."},
        {"role": "developer", "content": [{"type": "text", "text": "No jokes."}]},
        {"role": "user", "name": "ann", "content": "Weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rainy, 14 °C"},
        {"role": "assistant", "content": "Rain."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And there?"}, {"type": "image_url", "image_url": {"url": PNG}}],
        },
    ],
    "tools": [WEATHER, {"type": "custom", "custom": {"name": "grep"}}],
}
ANSWERED = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Sunny."}, "finish_reason": "stop"}],
}


def content(asked: Any, reply: bytes | Any, *, stream: bool = False, **fields: Any) -> Content:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    answer = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    found = Content("id", "acme", 0, "openai_chat", stream, body, False, answer, False)
    return msgspec.structs.replace(found, **fields)


def said(of: Content, *, apart: bool = False, finish: str | None = None, bytes_max: int = 65_536) -> dict[str, Any]:
    """The attributes, their JSON read, and every part of them looked at."""
    found = attributes_of(of, apart=apart, finish_reason=finish, bytes_max=bytes_max)
    assert len(dict(found)) == len(found)
    read: dict[str, Any] = {}
    for name, value in found:
        read[name] = json.loads(value) if isinstance(value, str) else list(value)
        if isinstance(value, str):
            assert len(value.encode()) <= bytes_max
    for name in (INPUT, OUTPUT):
        for message in read.get(name, []):
            assert isinstance(message["role"], str)
            assert ("finish_reason" in message) == (name == OUTPUT)
            for part in message["parts"]:
                assert REQUIRED.get(part["type"], set()) <= part.keys()
    return read


def events(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks)


def delta(finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


# -- what was asked --

CALL = {"type": "tool_call", "id": "call_1", "name": "get_weather", "arguments": {"city": "Paris"}}
TURNS = [
    {"role": "user", "parts": [{"type": "text", "content": "Weather in Paris?"}], "name": "ann"},
    {"role": "assistant", "parts": [CALL]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "rainy, 14 °C"}]},
    {"role": "assistant", "parts": [{"type": "text", "content": "Rain."}]},
    {
        "role": "user",
        "parts": [
            {"type": "text", "content": "And there?"},
            {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "", "left_out": 440},
        ],
    },
]
ORDERS = [
    {"role": "system", "parts": [{"type": "text", "content": "You are terse."}]},
    {"role": "developer", "parts": [{"type": "text", "content": "No jokes."}]},
]


def test_a_conversation_with_a_provider_that_takes_instructions_among_the_messages() -> None:
    found = said(content(ASKED, ANSWERED))
    assert found == {
        INPUT: [*ORDERS, *TURNS],
        OUTPUT: [{"role": "assistant", "parts": [{"type": "text", "content": "Sunny."}], "finish_reason": "stop"}],
        TOOLS: [{"type": "function", **WEATHER["function"]}, {"type": "custom", "name": "grep"}],  # type: ignore[dict-item]
    }


def test_a_conversation_with_one_that_takes_them_apart() -> None:
    """Anthropic: the leading ones are its `system`. One further down stays where it was said."""
    late = {**ASKED, "messages": [*ASKED["messages"], {"role": "system", "content": "Be quick."}]}
    found = said(content(late, ANSWERED), apart=True)
    assert found[SYSTEM] == [{"type": "text", "content": "You are terse."}, {"type": "text", "content": "No jokes."}]
    assert found[INPUT] == [*TURNS, {"role": "system", "parts": [{"type": "text", "content": "Be quick."}]}]


def test_the_provider_of_the_attempt_decides_and_only_the_last_attempt_has_content() -> None:
    id_ = request_id(1)
    for provider, apart in (("openai", False), ("anthropic", True)):
        first = an_attempt(id_, 1, provider="anthropic", error_kind="upstream_error", status=500)
        (told,) = told_of(first, an_attempt(id_, 2, provider=provider), an_end(id_, attempts=2))
        told.content = content(ASKED, ANSWERED)
        server, failed, last = (dict(span.own) for span in wording().spans_of(told))
        assert (SYSTEM in last, OUTPUT in last) == (apart, True)
        assert not {name for span in (server, failed) for name in span} & {INPUT, OUTPUT, SYSTEM, TOOLS, CUT}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "text", "text": "a"}, {"type": "text", "content": "a"}),
        ({"type": "refusal", "refusal": "no"}, {"type": "text", "content": "no"}),
        (
            {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
            {"type": "uri", "modality": "image", "uri": "https://x.example/a.png"},
        ),
        (
            {"type": "input_audio", "input_audio": {"format": "wav", "data": "UklGRg=="}},
            {"type": "blob", "modality": "audio", "mime_type": "audio/wav", "content": "", "left_out": 8},
        ),
        ({"type": "file", "file": {"file_id": "f1"}}, {"type": "file", "modality": "document", "file_id": "f1"}),
        (
            {"type": "file", "file": {"filename": "a", "file_data": "data:application/pdf;base64,JVBERi0="}},
            {"type": "blob", "modality": "document", "mime_type": "application/pdf", "content": "", "left_out": 8},
        ),
        ({"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "reasoning", "content": "hm"}),
        ({"type": "hologram", "data": "secret bytes"}, {"type": "hologram"}),
    ],
)
def test_parts(part: dict[str, Any], told: dict[str, Any]) -> None:
    found = said(content({"messages": [{"role": "user", "content": [part]}]}, ANSWERED))
    assert found[INPUT] == [{"role": "user", "parts": [told]}]


def test_what_clients_of_old_say() -> None:
    asked = {
        "messages": [
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{cut"}},
            {
                "role": "function",
                "name": "f",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ],
        "functions": [{"name": "f", "parameters": {"type": "object"}}],
    }
    found = said(content(asked, ANSWERED))
    assert found[INPUT] == [
        {"role": "assistant", "parts": [{"type": "tool_call", "id": None, "name": "f", "arguments": "{cut"}]},
        {"role": "function", "parts": [{"type": "tool_call_response", "id": None, "response": "ab"}], "name": "f"},
    ]
    assert found[TOOLS] == [{"type": "function", "name": "f", "parameters": {"type": "object"}}]


# -- what was answered --

STREAM = events(
    delta(role="assistant", content=""),
    delta(reasoning_content="Let me "),
    delta(reasoning_content="see."),
    delta(content="I "),
    delta(content="look."),
    delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
    delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
    delta(finish="tool_calls"),
)
DONE = b"data: [DONE]\n\n"
PARTS = [
    {"type": "reasoning", "content": "Let me see."},
    {"type": "text", "content": "I look."},
    {"type": "tool_call", "id": "c1", "name": "f", "arguments": {"a": 1}},
]


def test_a_stream_is_told_as_the_answer_that_it_amounts_to() -> None:
    for stream, chunked in ((STREAM + DONE, False), (chunk(STREAM) + chunk(DONE) + LAST_CHUNK, True)):
        found = said(content(ASKED, stream, stream=True, chunked=chunked))
        assert found[OUTPUT] == [{"role": "assistant", "parts": PARTS, "finish_reason": "tool_call"}]
        assert CUT not in found


def test_every_choice_is_a_message() -> None:
    stream = events(delta(index=1, content="b"), delta(index=0, content="a"), delta("stop", 0), delta("length", 1))
    found = said(content(ASKED, stream + DONE, stream=True))
    assert [(each["parts"][0]["content"], each["finish_reason"]) for each in found[OUTPUT]] == [
        ("a", "stop"),
        ("b", "length"),
    ]


def test_a_plain_answer_with_everything() -> None:
    message = {
        "role": "assistant",
        "content": "Yes",
        "refusal": "but no",
        "reasoning_details": [{"type": "reasoning.text", "text": "hm"}, {"type": "reasoning.encrypted", "data": "x"}],
        "audio": {"id": "a", "data": "UklGRg==", "transcript": "Yes"},
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "grep", "input": "a b"}}],
    }
    found = said(content(ASKED, {"choices": [{"message": message, "finish_reason": "stop"}]}))
    assert found[OUTPUT][0]["parts"] == [
        {"type": "reasoning", "content": "hm"},
        {"type": "text", "content": "Yes"},
        {"type": "text", "content": "but no"},
        {"type": "blob", "modality": "audio", "content": "", "left_out": 8},
        {"type": "tool_call", "id": "c", "name": "grep", "arguments": "a b"},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_failed_has_no_answer(stream: bool) -> None:
    found = said(content(ASKED, {"error": {"message": "no"}}, stream=stream))
    assert (INPUT in found, OUTPUT in found) == (True, False)


def test_a_stream_that_broke_off_is_told_as_far_as_it_came() -> None:
    broken = events(delta(content="Hel")) + b'data: {"error":{"message":"cut"}}\n\n'
    found = said(content(ASKED, broken, stream=True))
    assert found[OUTPUT] == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Hel"}], "finish_reason": "error"}
    ]


def test_the_provider_says_how_an_answer_ended_that_was_cut() -> None:
    found = said(content(ASKED, STREAM[:200], stream=True, reply_cut=True), finish="tool_calls")
    assert found[OUTPUT][0]["finish_reason"] == "tool_call"
    assert found[CUT] == [OUTPUT]
    whole = json.dumps(ANSWERED).encode()
    found = said(content(ASKED, whole[: whole.index(b"nny")], reply_cut=True), finish="length")
    assert found[OUTPUT] == [
        {"role": "assistant", "parts": [{"type": "text", "content": "Su"}], "finish_reason": "length"}
    ]


# -- what is cut, and what is strange --


def test_a_prompt_that_was_cut_is_told_as_far_as_it_came() -> None:
    body = json.dumps(ASKED).encode()
    found = said(content(body[: body.index(b"n Paris")], ANSWERED, request_cut=True))
    assert found[INPUT] == [
        *ORDERS,
        {"role": "user", "parts": [{"type": "text", "content": "Weather i"}], "name": "ann"},
    ]
    assert found[CUT] == [INPUT, TOOLS]


@given(st.integers(0, len(json.dumps(ASKED))))
def test_wherever_a_prompt_was_cut_it_is_read(at: int) -> None:
    found = said(content(json.dumps(ASKED).encode()[:at], ANSWERED, request_cut=True))
    assert found[CUT] == [INPUT, TOOLS]
    texts = [part.get("content", "") for each in found.get(INPUT, []) for part in each["parts"]]
    assert all(text in json.dumps(ASKED, ensure_ascii=False) for text in texts)


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), DOCUMENTS), st.booleans(), st.data())
def test_json_that_was_cut_anywhere_is_json_again(document: Any, ascii_only: bool, data: st.DataObject) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only).encode()
    at = data.draw(st.integers(1, len(body)))
    read = json.loads(mended(body[:at]))
    assert isinstance(read, dict)
    assert list(read) == list(document)[: len(read)]
    if at == len(body):
        assert read == document
    for key in list(read)[:-1]:
        assert read[key] == document[key]


@pytest.mark.parametrize(
    "body", [b"", b"[1", b"}", b'"a', b"nul", b"\xff", b'{"messages": 3', b'{"messages":[1,{"role"']
)
def test_what_is_no_request_says_nothing(body: bytes) -> None:
    assert INPUT not in said(content(body, ANSWERED, request_cut=True)) or body.endswith(b'"role"')
    attributes_of(content(body, body), apart=True, finish_reason=None, bytes_max=1000)


@given(DOCUMENTS, DOCUMENTS, st.booleans(), st.integers(0, 300))
def test_nothing_strange_raises(asked: Any, answered: Any, stream: bool, bytes_max: int) -> None:
    request = {"messages": [{"role": "user", "content": asked, "tool_calls": asked}, asked], "tools": asked}
    chunks = events({"choices": answered}, delta(tool_calls=answered, content=answered))
    reply = chunks if stream else {"choices": [{"message": answered}, answered]}
    said(content(request, reply, stream=stream), bytes_max=bytes_max)


def test_half_a_character_is_told_as_json_has_it() -> None:
    body = b'{"messages":[{"role":"user","content":"a\\ud83d"}]}'
    assert said(content(body, ANSWERED))[INPUT][0]["parts"] == [{"type": "text", "content": "a\ud83d"}]


def test_of_a_dialect_that_nobody_reads_nothing_is_told() -> None:
    assert said(content(ASKED, ANSWERED, dialect="of tomorrow")) == {}


# -- bounds --


def test_long_texts_are_shortened_and_it_is_said() -> None:
    asked = {
        "messages": [{"role": "user", "content": "x" * 5000}, {"role": "user", "content": "short"}],
        "tools": [WEATHER],
    }
    found = said(content(asked, ANSWERED), bytes_max=1000)
    long, short = (message["parts"][0]["content"] for message in found[INPUT])
    assert long == "x" * 500 + "… (4500 characters left out)"
    assert short == "short"
    assert found[CUT] == [INPUT]
    assert found[TOOLS] == [{"type": "function", **WEATHER["function"]}]  # type: ignore[dict-item]


def test_of_many_messages_the_last_ones_stay_and_of_many_tools_the_first() -> None:
    asked = {
        "messages": [{"role": "user", "content": f"turn {number}"} for number in range(100)],
        "tools": [{"type": "function", "function": {"name": f"tool {number}"}} for number in range(100)],
    }
    found = said(content(asked, ANSWERED), bytes_max=1000)
    turns = [message["parts"][0]["content"] for message in found[INPUT]]
    assert turns == [f"turn {number}" for number in range(100 - len(turns), 100)]
    assert len(turns) > 10
    assert [tool["name"] for tool in found[TOOLS]] == [f"tool {number}" for number in range(len(found[TOOLS]))]
    assert found[CUT] == [INPUT, TOOLS]


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.text(max_size=300) | st.lists(st.text(max_size=100))), max_size=20
    ),
    st.integers(0, 2000),
    st.booleans(),
)
def test_a_bound_is_kept_and_what_fits_is_whole(items: list[dict[str, Any]], bytes_max: int, newest: bool) -> None:
    text, whole = fitted(items, bytes_max, newest=newest)
    assert len(text.encode()) <= bytes_max
    found = json.loads(text) if text else []
    assert len(found) <= len(items)
    assert whole == (found == items)


@pytest.mark.parametrize("make", [lambda: "\ud800" * 3000, lambda: "é" * 3000, lambda: "\x00" * 3000])
def test_a_bound_counts_bytes(make: Callable[[], str]) -> None:
    text, whole = fitted([{"a": make()}], 2000, newest=False)
    assert (len(text.encode()) <= 2000, whole, json.loads(text)[0]["a"][:3]) == (True, False, make()[:3])
