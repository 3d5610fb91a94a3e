"""OpenAI Chat Completions from client to a provider of the same dialect: reading, editing, relaying, errors."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.dialects import openai_chat
from edgegw.dialects.openai_chat_reply import read_plain, read_usage
from edgegw.dialects.openai_chat_stream import OpenAIChatStream
from edgegw.errors import GatewayError, UpstreamFault
from edgegw.exchange import Usage
from edgegw.http.sse import EVENT_BYTES_MAX

MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def body(*fields: str) -> bytes:
    return ("{" + ",".join((*fields, MESSAGES)) + "}").encode()


# -- reading --


def test_reads_what_the_gateway_acts_on() -> None:
    ask = openai_chat.read(
        body(
            '"model":"m"', '"stream":true', '"stream_options":{"include_usage":true}', '"n":2', '"max_tokens":5',
            '"max_completion_tokens":7', '"metadata":{"tenant":"Ärzte 1","use_case":"u","x":1}',
        )
    )  # fmt: skip
    assert (ask.model, ask.stream, ask.include_usage, ask.choices) == ("m", True, True, 2)
    assert (ask.tenant, ask.use_case, ask.max_output_tokens) == ("Ärzte 1", "u", 7)


def test_missing_and_null_fields_are_defaults() -> None:
    ask = openai_chat.read(body('"stream":null', '"n":null', '"metadata":null', '"stream_options":null'))
    assert (ask.model, ask.stream, ask.include_usage, ask.choices) == (None, False, False, 1)
    assert (ask.tenant, ask.use_case, ask.max_output_tokens) == (None, None, None)


REFUSED = [
    (body('"model":null'), "invalid_type", "model"),
    (body('"model":5'), "invalid_type", "model"),
    (body('"model":""'), "invalid_type", "model"),
    (body('"model":"a\\r\\nb"'), "invalid_value", "model"),
    (body('"model":"' + "m" * 257 + '"'), "invalid_value", "model"),
    (b"{}", "missing_parameter", "messages"),
    (b'{"messages":null}', "invalid_type", "messages"),
    (b'{"messages":"hi"}', "invalid_type", "messages"),
    (b'{"messages":[]}', "invalid_value", "messages"),
    (b'{"messages":["hi"]}', "invalid_type", "messages[0]"),
    (b'{"messages":[{"role":"user"},{"content":""}]}', "missing_parameter", "messages[1].role"),
    (b'{"messages":[{"role":1}]}', "invalid_type", "messages[0].role"),
    (b'{"messages":[%b5,{}]}' % (b'{"role":"user"},' * 2000), "invalid_type", "messages[2000]"),
    (body('"stream":"yes"'), "invalid_type", "stream"),
    (body('"stream":1'), "invalid_type", "stream"),
    (body('"stream_options":[]'), "invalid_type", "stream_options"),
    (body('"stream_options":{"include_usage":"x"}'), "invalid_type", "stream_options.include_usage"),
    (body('"n":0'), "invalid_value", "n"),
    (body('"n":129'), "invalid_value", "n"),
    (body('"n":1.5'), "invalid_type", "n"),
    (body('"max_tokens":-1'), "invalid_value", "max_tokens"),
    (body('"max_tokens":true'), "invalid_type", "max_tokens"),
    (body('"max_completion_tokens":99999999999999999999999'), "invalid_value", "max_completion_tokens"),
    (body('"metadata":[1]'), "invalid_type", "metadata"),
    (body('"metadata":"x"'), "invalid_type", "metadata"),
    (body('"metadata":{"tenant":5}'), "invalid_type", "metadata.tenant"),
    (body('"metadata":{"tenant":""}'), "invalid_value", "metadata.tenant"),
    (body('"metadata":{"tenant":"a\\u0000b"}'), "invalid_value", "metadata.tenant"),
    (body('"metadata":{"use_case":"' + "u" * 129 + '"}'), "invalid_value", "metadata.use_case"),
    (body('"model":"a"', '"model":"b"'), "invalid_value", "model"),
    (body('"model":"a"', '"mod\\u0065l":"b"'), "invalid_value", "model"),
    (body('"metadata":{"tenant":"a","tenant":"b"}'), "invalid_value", "metadata.tenant"),
    (b'{ "messages" : [{"role":"user"}] , "messages":[{"role":"user"}]}', "invalid_value", "messages"),
    (b"[]", "invalid_type", None),
    (b'"x"', "invalid_type", None),
    (b"", "invalid_json", None),
    (b"{", "invalid_json", None),
    (body('"x":NaN'), "invalid_json", None),
    (body('"x":Infinity'), "invalid_json", None),
    (body('"x":"\\ud800"'), "invalid_json", None),
    (body('"x":') + b"}", "invalid_json", None),
    (b'{"x":"\xff"}', "invalid_json", None),
    (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
    (b"[" * 100_000, "invalid_type", None),
]


@pytest.mark.parametrize(("data", "kind", "param"), REFUSED)
def test_refuses_and_names_the_field(data: bytes, kind: str, param: str | None) -> None:
    with pytest.raises(GatewayError) as caught:
        openai_chat.read(data)
    assert (caught.value.kind, caught.value.param, caught.value.status) == (kind, param, 400)
    assert json.loads(openai_chat.error_body(caught.value))["error"]["param"] == param


def test_malformed_json_is_named_with_its_place() -> None:
    with pytest.raises(GatewayError, match=r"line 2, column 7 \(byte 8\)"):
        openai_chat.read(b'{\n "x": oops}')
    with pytest.raises(GatewayError, match="no body"):
        openai_chat.read(b" \n")
    with pytest.raises(GatewayError, match="byte order mark"):
        openai_chat.read(b"\xef\xbb\xbf{}")
    with pytest.raises(GatewayError, match=r"UTF-8 at line 1, column 7 \(byte 6\)"):
        openai_chat.read(b'{"x":"\xff"}')
    for half in (b"\\ud83d", b"\\ud83d\\n", b"\\ude00", b"\\ud83d\\ud83d"):
        with pytest.raises(GatewayError, match=r"half of a surrogate pair, at line 1, column 21 \(byte 20\)"):
            openai_chat.read(b'{"x":"\\\\\\ud83d\\ude00' + half + b'"}')


def test_a_field_that_stands_twice_and_is_not_ours_passes() -> None:
    data = body('"temperature":1', '"temperature":1')
    assert openai_chat.edit(openai_chat.read(data), "", False)  # no GatewayError


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (body(*(f'"k{number}": 1' for number in range(1100))), None),
        (body(*['"k":1'] * 1100), None),
        (body('"metadata":{' + ",".join(['"k":1'] * 1100) + "}"), "metadata"),
        (body('"x":[' + ",".join("1" * 20_000) + "]", '"x":2'), "x"),
    ],
)
def test_what_must_be_walked_over_is_bounded(data: bytes, param: str | None) -> None:
    """Such a body is nobody's; a large one of its kind would hold up a worker."""
    with pytest.raises(GatewayError) as caught:
        openai_chat.read(data)
    assert (caught.value.kind, caught.value.param) == ("invalid_value", param)


def test_a_long_text_that_stands_twice_hides_no_field() -> None:
    text = r"a,\"model\":\"b\"," * 20_000
    ask = openai_chat.read(body('"model":"a"', f'"x":"{text}"', '"x":1'))
    assert ask.model == "a"


def test_a_large_body_costs_little() -> None:
    data = body('"model":"m"', '"x":"' + "text with \\n escapes " * 50_000 + '"')
    spaced = data.replace(b'"x":', b'"x" : ')
    for candidate in (data, spaced):
        begun = time.process_time()
        for _ in range(10):
            openai_chat.edit(openai_chat.read(candidate), "other", True)
        assert (time.process_time() - begun) / 10 < 0.03  # 1 ms here; the bound only catches another order of magnitude


# -- editing --


def edited(data: bytes, model: str = "up", include_usage: bool = True) -> bytes:
    return openai_chat.edit(openai_chat.read(data), model, include_usage)


def test_what_does_not_change_is_not_copied() -> None:
    data = body('"model":"up"', '"metadata":{"mine":"1"}')
    assert edited(data) is data
    streamed = body('"model":"up"', '"stream":true', '"stream_options":{"include_usage":true}')
    assert edited(streamed) is streamed


def test_sets_the_model_and_keeps_other_fields_verbatim_and_in_order() -> None:
    data = b'{"z" : [ 1.0 , 1e400 ], "model":"m", "\\u00e4 \\"":{"b" :1}, ' + MESSAGES.encode() + b"}"
    expected = b'{"z":[ 1.0 , 1e400 ],"model":"up","\xc3\xa4 \\"":{"b" :1},' + MESSAGES.encode() + b"}"
    assert edited(data) == expected


def test_adds_the_model_where_the_client_named_none() -> None:
    assert json.loads(edited(body()))["model"] == "up"


@pytest.mark.parametrize(
    ("metadata", "left"),
    [
        ('{"tenant":"t","use_case":"u"}', None),
        ('{"tenant":"t","a":1}', {"a": 1}),
        ('{"a":1}', {"a": 1}),
        ('{"tenant":null}', None),
        ("{}", {}),
    ],
)
def test_our_labels_do_not_reach_the_provider(metadata: str, left: dict[str, Any] | None) -> None:
    assert json.loads(edited(body(f'"metadata":{metadata}'))).get("metadata") == left


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("", {"include_usage": True}),
        ('"stream_options":null,', {"include_usage": True}),
        (
            '"stream_options":{"include_usage":false,"include_obfuscation":false},',
            {"include_usage": True, "include_obfuscation": False},
        ),
    ],
)
def test_asks_for_usage_when_streaming(options: str, sent: dict[str, Any]) -> None:
    data = ("{" + options + '"stream":true,' + MESSAGES + "}").encode()
    assert json.loads(edited(data))["stream_options"] == sent
    assert json.loads(edited(data, include_usage=False)).get("stream_options") != sent


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda key: key not in ("model", "metadata", "stream", "n")), JSON_VALUES),
       st.booleans(), st.booleans())  # fmt: skip
def test_editing_changes_the_model_and_nothing_else(fields: dict[str, Any], compact: bool, ascii_only: bool) -> None:
    fields = {name: value for name, value in fields.items() if not name.startswith(("max_", "stream"))}
    fields["messages"] = [{"role": "user", "content": "hi"}]
    text = json.dumps(fields, separators=(",", ":") if compact else None, ensure_ascii=ascii_only)
    assert json.loads(edited(text.encode())) == {**fields, "model": "up"}


# -- streams --

ROLE = (
    b'data: {"model":"gpt","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],'
    b'"usage":null}\n\n'
)
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}],"usage":null}\n\n'
STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage": {"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def test_a_read_of_one_event_comes_back_as_the_same_object() -> None:
    reader = OpenAIChatStream()
    for data in (ROLE, TEXT, PING, STOP):
        assert reader.feed(data) is data
    assert reader.feed(TEXT + TEXT) == TEXT + TEXT
    assert reader.feed(DONE) == b""
    assert (reader.done, reader.fault, reader.last) == (True, None, DONE)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_passes_bytes_untouched_however_they_are_cut(size: int, ends: bytes) -> None:
    events = (PING + ROLE + TEXT + PING + STOP + USAGE).replace(b"\n", ends)
    raw = b"\xef\xbb\xbf" + events + (DONE + TEXT).replace(b"\n", ends)
    reader = OpenAIChatStream()
    out = b"".join(reader.feed(raw[at : at + size]) for at in range(0, len(raw), size))
    assert out.rstrip(b"\r\n") == events.rstrip(b"\r\n")
    assert (reader.usage, reader.finish_reason, reader.model) == (Usage(3, 2), "stop", "gpt")
    assert reader.done


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_no_cut_shifts_a_byte(sizes: list[int]) -> None:
    raw = ROLE + TEXT * 3 + PING + STOP + USAGE
    reader, out, at, turn = OpenAIChatStream(), b"", 0, 0
    while at < len(raw):
        size = sizes[turn % len(sizes)]
        out += reader.feed(raw[at : at + size])
        assert raw.startswith(out)
        at, turn = at + size, turn + 1
    assert out == raw


def test_a_client_that_did_not_ask_gets_no_usage_only_event() -> None:
    reader = OpenAIChatStream(withholding=True)
    assert reader.feed(ROLE + TEXT + STOP + USAGE + PING) == ROLE + TEXT + STOP + PING
    assert reader.usage == Usage(3, 2)


def test_usage_that_comes_with_something_else_is_counted_and_passes() -> None:
    head = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    finish = head + b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    groq = head + b'"x_groq":{"usage":{"prompt_tokens":4,"completion_tokens":1}}}\n\n'
    for event, usage in ((finish, Usage(1, 1)), (groq, Usage(4, 1))):
        reader = OpenAIChatStream(withholding=True)
        assert reader.feed(event) is event
        assert reader.usage == usage


CARRYING = [b'{"content":"x"}', b'{"refusal":"no"}', b'{"tool_calls":[{"index":0}]}', b'{"reasoning":"x"}',
            b'{"reasoning_content":"x"}', b'{"audio":{"id":"a"}}', b'{"function_call":{"name":"f"}}']  # fmt: skip
EMPTY = [b"{}", b'{"role":"assistant","content":""}', b'{"role":"assistant","content":null,"refusal":null}']


@pytest.mark.parametrize(("delta", "opened"), [(d, True) for d in CARRYING] + [(d, False) for d in EMPTY])
def test_the_gate_opens_with_content(delta: bytes, opened: bool) -> None:
    reader = OpenAIChatStream()
    reader.feed(b'data: {"choices":[{"index":0,"delta":' + delta + b',"finish_reason":null}]}\n\n')
    assert reader.opened is opened


def test_an_azure_prompt_filter_event_is_neither_content_nor_withheld() -> None:
    event = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
    reader = OpenAIChatStream(withholding=True)
    assert reader.feed(event) is event
    assert not reader.opened


ERRORS = [
    (b'{"error":{"message":"slow","code":"rate_limit_exceeded"}}', "upstream_rate_limited"),
    (b'{"error":{"message":"x","type":"overloaded_error"}}', "upstream_overloaded"),
    (b'{"error":{"message":"x","code":"invalid_api_key"}}', "upstream_auth"),
    (b'{"error":{"message":"x","code":502}}', "upstream_error"),
    (b'{"error":{"message":"x","code":429}}', "upstream_rate_limited"),
    (b'{"error":{"message":"x","code":400}}', "upstream_refused"),
    (b'{"error":"it broke"}', "upstream_error"),
    (
        b'{"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"error"}],"error":{"message":"x"}}',
        "upstream_error",
    ),
    (b'{"choices":7,"error":{"message":"x","code":503}}', "upstream_overloaded"),
]


@pytest.mark.parametrize(("data", "kind"), ERRORS)
def test_an_error_event_is_a_fault_and_does_not_pass(data: bytes, kind: str) -> None:
    reader = OpenAIChatStream()
    assert reader.feed(TEXT + b"data: " + data + b"\n\n" + TEXT + DONE) == TEXT
    assert reader.fault is not None
    assert reader.fault.kind == kind
    assert not reader.done
    assert reader.feed(TEXT) == b""
    assert reader.end() == b""


@pytest.mark.parametrize("empty", [b"null", b'""', b"{}", b"false"])
def test_an_empty_error_is_none(empty: bytes) -> None:
    reader = OpenAIChatStream()
    event = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"error":' + empty + b"}\n\n"
    assert reader.feed(event) is event
    assert reader.fault is None


@pytest.mark.parametrize("garbage", [b"data: oops\n\n", b'data: {"choices":[\n\n', b"data: [1]\n\n", b"data: 5\n\n"])
def test_data_that_is_no_json_object_is_a_fault(garbage: bytes) -> None:
    reader = OpenAIChatStream()
    assert reader.feed(TEXT + garbage + TEXT) == TEXT
    assert reader.fault is not None
    assert reader.fault.kind == "upstream_garbage"


def test_an_event_of_unknown_types_passes_as_content() -> None:
    event = b'data: {"choices":[{"index":"0","delta":[]}]}\n\n'
    reader = OpenAIChatStream()
    assert reader.feed(event) is event
    assert reader.opened


ENDS = [
    (ROLE + TEXT + STOP, True, None),
    (ROLE + TEXT + STOP + b"data: [DONE]\n", True, None),
    (ROLE + TEXT + STOP + b"data: [DONE]", True, None),
    (ROLE + TEXT + STOP + USAGE[:40], True, None),
    (ROLE + TEXT + STOP[:-2], True, None),
    (ROLE + TEXT, False, "upstream_cut"),
    (ROLE + TEXT + TEXT[:20], False, "upstream_cut"),
    (b"", False, "upstream_garbage"),
    (b"<html>\n\nno\n\n</html>", False, "upstream_garbage"),
    (DONE, False, "upstream_garbage"),
    (b'{"error":{"message":"x","code":"rate_limit_exceeded"}}', False, "upstream_rate_limited"),
    (b'{"object":"chat.completion"}', False, "upstream_garbage"),
]


@pytest.mark.parametrize(("raw", "done", "kind"), ENDS)
def test_a_clean_end_completes_or_is_a_fault(raw: bytes, done: bool, kind: str | None) -> None:
    reader = OpenAIChatStream()
    out = reader.feed(raw) + reader.end()
    assert reader.done is done
    assert (reader.fault.kind if reader.fault else None) == kind
    assert out == b"" or out.endswith(b"\n\n")


def test_every_choice_asked_for_must_finish() -> None:
    other = STOP.replace(b'"index":0', b'"index":1')
    for events, done in ((STOP, False), (STOP + other, True)):
        reader = OpenAIChatStream(choices=2)
        reader.feed(TEXT + events)
        reader.end()
        assert reader.done is done


def test_recall_folds_in_what_went_past() -> None:
    reader = OpenAIChatStream()
    reader.feed(TEXT)
    reader.recall([TEXT, STOP, b": x\n\n", b"junk", USAGE.replace(b"{", b'{"model":"late",', 1)])
    assert (reader.usage, reader.finish_reason, reader.model) == (Usage(3, 2), "stop", "late")
    assert reader.end() == b""
    assert reader.done


def test_an_event_too_long_is_a_fault() -> None:
    reader = OpenAIChatStream()
    picture = b'data: {"choices":[{"index":0,"delta":{"images":["%b"]}}]}\n\n' % (b"A" * (20 << 20))
    assert reader.feed(picture) == picture
    reader.feed(b"data: " + b"x" * EVENT_BYTES_MAX)
    assert reader.fault is not None
    assert reader.fault.kind == "upstream_garbage"


def test_mending_touches_only_the_events_that_need_it() -> None:
    reader = OpenAIChatStream(mending=True)
    assert reader.feed(TEXT) is TEXT
    call = b'{"id":"%b","function":{"name":"f","arguments":"{}"}}'
    whole = b'data: {"choices":[{"index":0,"delta":{"tool_calls":[' + call + b"]}}]}\n\n"
    calls = [json.loads(reader.feed(whole % id)[6:])["choices"][0]["delta"]["tool_calls"][0] for id in (b"a", b"b")]
    assert [(call["index"], call["id"], call["type"]) for call in calls] == [(0, "a", "function"), (1, "b", "function")]
    right = b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"x"}}]}}]}\n\n'
    assert reader.feed(right) is right
    parts = b'[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"4"}]'
    out = reader.feed(b'data: {"choices":[{"index":0,"delta":{"content":' + parts + b"}}]}\n\n")
    assert json.loads(out[6:])["choices"][0]["delta"] == {"content": "4", "reasoning_content": "hm"}


# -- whole replies --


def test_a_plain_reply_passes_as_it_is() -> None:
    usage = b'{"prompt_tokens":3,"completion_tokens":2}'
    reply = b'{"model":"gpt","choices":[{"finish_reason":"stop","message":{}}],"usage":' + usage + b', "new":1}'
    read = read_plain(reply)
    assert read.body is reply
    assert (read.usage, read.finish_reason, read.model) == (Usage(3, 2), "stop", "gpt")
    assert read_plain(b"\xef\xbb\xbf" + reply).body == reply


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"<html>", "upstream_garbage"),
        (b"", "upstream_garbage"),
        (b"[]", "upstream_garbage"),
        (b"{}", "upstream_garbage"),
        (b'{"choices":[]}', "upstream_garbage"),
        (b'{"choices":7}', "upstream_garbage"),
        (b'{"choices":[{}]', "upstream_garbage"),
        (b'{"error":{"message":"x","type":"overloaded_error"}}', "upstream_overloaded"),
        (b'{"choices":5,"error":"x"}', "upstream_error"),
    ],
)
def test_a_plain_reply_that_is_none(reply: bytes, kind: str) -> None:
    with pytest.raises(UpstreamFault) as caught:
        read_plain(reply)
    assert caught.value.kind == kind


def test_a_plain_reply_of_odd_types_passes() -> None:
    reply = b'{"model":1,"choices":[{"finish_reason":7}],"usage":{"prompt_tokens":3}}'
    assert read_plain(reply).usage == Usage(3, 0, estimated=True)


DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


@pytest.mark.parametrize(
    ("wire", "usage"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4, **DETAILS}, Usage(9, 4, 5, 1, 3)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, **DETAILS}, Usage(9, 4, 5, 1, 3)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 16, **DETAILS}, Usage(9, 7, 5, 1, 3)),
        ({"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 8}, Usage(9, 4, 8)),
        ({"prompt_tokens": 9, "completion_tokens": None, "prompt_tokens_details": None}, Usage(9, 0, estimated=True)),
        ({"completion_tokens": 4}, Usage(0, 4, estimated=True)),  # half a count: the rest is for us to estimate
        ({"prompt_tokens": 0, "completion_tokens": 4}, Usage(0, 4, estimated=True)),
        ({"prompt_tokens": 9, "completion_tokens": 0}, Usage(9, 0)),
        ({"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 350}, Usage(8, 342, reasoning=326)),  # Gemini
        ({"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 20}, Usage(8, 16)),
        ({"prompt_tokens": 8, "total_tokens": 20}, Usage(8, 12)),
        ({"completion_tokens": 8, "total_tokens": 20}, Usage(12, 8)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),  # no count at all: there was a prompt
        ({"prompt_tokens": "9"}, None),
        (None, None),
        ({}, None),
    ],
)
def test_usage_in_its_dialects(wire: Any, usage: Usage | None) -> None:
    assert read_usage(msgspec.Raw(msgspec.json.encode(wire))) == usage


# -- errors --


def test_the_envelope() -> None:
    error = GatewayError("invalid_type", 'a "b"', param="model")
    expected = {"message": 'a "b"', "type": "invalid_request_error", "param": "model", "code": "invalid_type"}
    assert json.loads(openai_chat.error_body(error)) == {"error": expected}
    event = openai_chat.error_event(error)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert json.loads(event[6:]) == {"error": expected}


def test_a_providers_own_body_is_sent_as_it_came_but_never_as_an_event() -> None:
    error = GatewayError("upstream_refused", "no", body=b'{"error":\n{}}')
    assert openai_chat.error_body(error) == b'{"error":\n{}}'
    assert openai_chat.error_event(error).count(b"\n") == 2
