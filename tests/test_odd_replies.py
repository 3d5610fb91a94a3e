"""Replies that are nearly right: JSON that only lenient parsers take, counts that are no counts, errors in disguise.

What a client could have read must reach it; what nobody can read must not end in silence; and no provider's slip may
get into the books as a number.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_anthropic_stream import FIRST, START, STOP, TEXT, closed, delta, deltas, ended, event, opened, reader

from edgegw.dialects.anthropic_messages import read_message
from edgegw.dialects.lenient import strict_json, tokens
from edgegw.dialects.openai_chat_reply import read_plain
from edgegw.dialects.openai_chat_stream import DONE_EVENT, OpenAIChatStream
from edgegw.errors import UpstreamFault
from edgegw.exchange import TOKENS_MAX, Usage

HUGE = 2**70


def chunk(delta: bytes, finish: bytes = b"null", more: bytes = b"") -> bytes:
    return b'data: {"choices":[{"index":0,"delta":%b,"finish_reason":%b}]%b}\n\n' % (delta, finish, more)


END = chunk(b"{}", b'"stop"')


def whole(reply: OpenAIChatStream, *events: bytes) -> bytes:
    return b"".join(map(reply.feed, events)) + reply.end()


# -- JSON --


@pytest.mark.parametrize(
    ("data", "document"),
    [
        (b'{"a":"x\\ud83d"}', {"a": "x\ufffd"}),
        (b'{"a":"\\ude00\\ud83d\\ude00"}', {"a": "\ufffd\U0001f600"}),
        (b'{"a":"\\\\ud83d"}', {"a": "\\ud83d"}),
        (b'{"a":NaN,"b":-Infinity,"c":[1.5,1e3,12345678901234567890123]}',
         {"a": None, "b": None, "c": [1.5, 1000.0, 12345678901234567890123]}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b"<html>", None),
        (b'{"a":1', None),
        (b"[" * 100_000, None),
    ],
)  # fmt: skip
def test_a_document_of_lenient_writers_is_made_strict(data: bytes, document: Any) -> None:
    found = strict_json(data)
    assert (None if found is None else json.loads(found)) == document


# A text cut in the middle of an emoji; a server in Python that writes a probability of nothing.
ODD_CHUNKS = [
    chunk(b'{"content":"\\ud83d"}'),
    chunk(b'{"content":"a"}', more=b',"logprobs":{"logprob":-Infinity}'),
    chunk(b'{"tool_calls":[{"index":0,"function":{"arguments":"\\ud83d"}}]}'),
]


@pytest.mark.parametrize("odd", ODD_CHUNKS)
@pytest.mark.parametrize("mending", [False, True])
def test_an_event_that_clients_can_read_passes_as_it_came(odd: bytes, mending: bool) -> None:
    stream = OpenAIChatStream(mending=mending)
    assert whole(stream, odd, odd, END, DONE_EVENT) == odd + odd + END
    assert (stream.done, stream.fault, stream.opened, stream.finish_reason) == (True, None, True, "stop")


def test_an_odd_event_that_went_past_is_read_as_well() -> None:
    stream = OpenAIChatStream()
    stream.feed(chunk(b'{"content":"a"}'))
    last = chunk(b'{"content":"\\ud83d"}', b'"stop"', b',"usage":{"prompt_tokens":3,"completion_tokens":4}')
    stream.recall([last, b"data: {broken}\n\n"])
    assert stream.end() == b""
    assert (stream.done, stream.finish_reason, stream.usage) == (True, "stop", Usage(3, 4))


def test_a_plain_reply_that_clients_can_read_passes_as_it_came() -> None:
    body = b'{"choices":[{"message":{"content":"\\ud83d"},"finish_reason":"length","logprobs":NaN}],"usage":%b}'
    body %= b'{"prompt_tokens":3,"completion_tokens":4}'
    reply = read_plain(body)
    assert (reply.body, reply.finish_reason, reply.usage) == (body, "length", Usage(3, 4))


def test_half_an_emoji_from_anthropic_is_a_replacement_character() -> None:
    half = delta(0, "text_delta", text="XY").replace(b"XY", b"\\ud83d")
    stream = reader()
    assert deltas(stream.feed(START + TEXT[0] + half + ended("end_turn") + STOP)) == [FIRST, {"content": "\ufffd"}, {}]
    message = b'{"type":"message","content":[{"type":"text","text":"\\ud83d"}],"stop_reason":"end_turn"}'
    assert read_message(message, None).text == "\ufffd"


def test_tool_calls_in_pieces_without_an_index_are_put_together() -> None:
    def call(fields: bytes) -> bytes:
        return chunk(b'{"tool_calls":[{%b}]}' % fields)

    stream = OpenAIChatStream(mending=True)
    out = whole(
        stream,
        call(b'"id":"a","function":{"name":"f","arguments":"{"}'),
        call(b'"function":{"arguments":"}"}'),
        call(b'"id":"b","function":{"name":"g"}'),
        call(b'"id":"b","function":{"arguments":"{}"}'),
        call(b'"id":"","function":{"name":"h","arguments":"{}"}'),
    )
    found = [json.loads(line[6:])["choices"][0]["delta"]["tool_calls"][0] for line in out.split(b"\n\n") if line]
    assert [entry["index"] for entry in found] == [0, 0, 1, 1, 2]
    assert [entry.get("type") for entry in found] == ["function", None, "function", None, "function"]


# -- counts --


@pytest.mark.parametrize(
    ("told", "count"),
    [(5, 5), (5.0, 5), (0, 0), (TOKENS_MAX, TOKENS_MAX), (-1, None), (TOKENS_MAX + 1, None), (HUGE, None),
     (float("inf"), None), (float("nan"), None), ("5", None), (True, None), (None, None), ([], None)],
)  # fmt: skip
def test_a_count_of_tokens(told: object, count: int | None) -> None:
    assert tokens(told) == count


ODD_USAGES = [
    ({"prompt_tokens": -5, "completion_tokens": -3}, None),
    ({"prompt_tokens": HUGE, "completion_tokens": 3}, Usage(0, 3, estimated=True)),
    ({"prompt_tokens": 5, "completion_tokens": HUGE}, Usage(5, 0, estimated=True)),
    ({"prompt_tokens": 5.0, "completion_tokens": 3.0}, Usage(5, 3)),
    ({"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": [], "completion_tokens_details": 7},
     Usage(5, 3)),
    ({"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2.0},
      "completion_tokens_details": {"reasoning_tokens": -1}}, Usage(5, 3, cached=2)),
    ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": HUGE}, Usage(5, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("told", "usage"), ODD_USAGES)
def test_an_odd_count_is_none_and_costs_no_other(told: dict[str, Any], usage: Usage | None) -> None:
    reply = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": told}
    assert read_plain(json.dumps(reply).encode()).usage == usage
    stream = OpenAIChatStream()
    whole(stream, chunk(b'{"content":"a"}'), END, b"data: %b\n\n" % json.dumps({"choices": [], "usage": told}).encode())
    assert stream.usage == usage


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"output_tokens": 7.0}, Usage(5, 7)),
        ({"output_tokens": 7, "output_tokens_details": []}, Usage(5, 7)),
        ({"output_tokens": 7, "cache_read_input_tokens": "2"}, Usage(5, 7)),
        ({"output_tokens": HUGE}, Usage(5, 1, estimated=True)),
        ({"output_tokens": -7, "input_tokens": -1}, Usage(5, 1, estimated=True)),
        ([], Usage(5, 1, estimated=True)),
    ],
)
def test_odd_counts_of_anthropic_cost_neither_the_others_nor_the_stop_reason(told: Any, usage: Usage) -> None:
    stream = reader()
    change = event("message_delta", delta={"stop_reason": "max_tokens", "stop_details": "odd"}, usage=told)
    stream.feed(START + b"".join(TEXT) + change + STOP)
    assert (stream.done, stream.finish_reason, stream.usage) == (True, "length", usage)


# -- values that are null, events that cannot be read, errors in disguise --


def test_null_is_no_piece_of_an_answer() -> None:
    events = [
        opened(0, type="thinking", thinking=None, signature=None),
        delta(0, "thinking_delta", thinking=None),
        closed(0),
        opened(1, type="text", text=None),
        delta(1, "text_delta", text=None),
        closed(1),
        opened(2, type="tool_use", id="t", name="f", input=None),
        delta(2, "input_json_delta", partial_json=None),
        closed(2),
    ]
    function = {"name": "f", "arguments": ""}
    assert deltas(reader().feed(START + b"".join(events))) == [
        FIRST,
        {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": function}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (opened(0, type="tool_use", id=5, name="f"), "upstream_garbage"),
        (delta(0, "text_delta", text="x", citation="odd"), "upstream_garbage"),
        (event("message_delta", delta={"stop_reason": 5}), "upstream_garbage"),
        (opened(0, type=[]), None),
        (opened(0, type="brand_new", id=5), None),
        (delta(0, "brand_new_delta", citation="odd"), None),
        (event("brand_new", message="odd"), None),
    ],
)
def test_a_part_of_an_answer_that_cannot_be_read_is_not_passed_over(data: bytes, kind: str | None) -> None:
    stream = reader()
    stream.feed(START + data)
    assert (stream.fault.kind if stream.fault else None) == kind


def message_with(block: Any) -> bytes:
    content = [{"type": "text", "text": "hi"}, block]
    return json.dumps({"type": "message", "content": content, "stop_reason": "end_turn"}).encode()


@pytest.mark.parametrize(
    "block",
    [{"type": "brand_new", "id": 5, "text": {}, "citations": {"enabled": True}}, {"type": [], "text": 5}, 5],
)
def test_a_block_of_a_new_kind_is_passed_over(block: Any) -> None:
    assert read_message(message_with(block), None).text == "hi"


@pytest.mark.parametrize(
    "block", [{"type": "text", "text": {}}, {"type": "tool_use", "id": 5, "name": "f", "input": {}}]
)
def test_a_block_of_a_known_kind_that_cannot_be_read_is_not(block: Any) -> None:
    with pytest.raises(UpstreamFault) as caught:
        read_message(message_with(block), None)
    assert caught.value.kind == "upstream_garbage"


VLLM_ERROR = b'{"object":"error","message":"boom","type":"BadRequestError","param":null,"code":400}'


def test_an_error_that_is_the_whole_event_is_no_answer() -> None:
    stream, said = OpenAIChatStream(), chunk(b'{"content":"a"}')
    assert whole(stream, said, b"data: %b\n\n" % VLLM_ERROR + DONE_EVENT) == said
    with pytest.raises(UpstreamFault) as caught:
        read_plain(VLLM_ERROR)
    for fault in (stream.fault, caught.value):
        assert fault is not None
        assert (fault.kind, fault.message, fault.status) == ("upstream_refused", "boom", 400)
