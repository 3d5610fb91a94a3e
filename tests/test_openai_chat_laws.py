"""Laws of the OpenAI dialect: whatever a request looks like and however a stream is cut.

What must come out is worked out by plain code below (json, str.split), not by the code under test.
"""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from laws import tried

from edgegw.dialects import openai_chat
from edgegw.dialects.document import read_object
from edgegw.dialects.openai_chat_stream import OpenAIChatStream
from edgegw.errors import GatewayError
from edgegw.exchange import Usage

# -- requests --

ACTED_ON = {"model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "metadata"}
LABELS = {"tenant", "use_case"}

GAPS = st.sampled_from(["", "", "", " ", "  ", "\n", "\t \r\n"])
NAMES = st.sampled_from(
    [*sorted(ACTED_ON), *sorted(LABELS), "temperature", "x", "", " ", "          ", "tools x", "ä", '"', "\\"]
)
SPELLINGS = st.sampled_from([lambda name: json.dumps(name), lambda name: json.dumps(name, ensure_ascii=False),
                             lambda name: '"' + "".join(f"\\u{ord(char):04x}" for char in name) + '"'])  # fmt: skip


@st.composite
def objects(draw: st.DrawFn, names: Any, values: Any, size: int) -> str:
    """A JSON object as somebody may write it: names more than once, escapes, white space anywhere."""
    written = []
    for _ in range(draw(st.integers(0, size))):
        name = draw(names)
        parts = (draw(GAPS), draw(SPELLINGS)(name), draw(GAPS), ":", draw(GAPS), draw(values(name)), draw(GAPS))
        written.append("".join(parts))
    return "{" + ",".join(written) + draw(GAPS) + "}" if written else "{" + draw(GAPS) + "}"


ODD = st.sampled_from(["null", "5", "0", "-1", "1.5", "true", '""', '"x"', '" x"', '"a b"', '"ä\\n"', "[]", "{}",
                       "[{}]", '"' + "l" * 129 + '"', '"' + "m" * 257 + '"', "3000000000"])  # fmt: skip
LABEL_VALUES = st.sampled_from(['"t"', '"t"', '"ünder"', '"a \\u0062"', '"a\\"b"'])
USUAL: dict[str, Any] = {
    "model": st.sampled_from(['"gpt-5"', '"a b"', '"\\u0067pt"']),
    "messages": st.sampled_from(['[{"role":"user","content":"hi"}]', '[ {"role" : "tool"}, {"role":"x","y":[1]}]']),
    "stream": st.sampled_from(["true", "false", "null"]),
    "stream_options": st.sampled_from(['{"include_usage":true}', '{"include_usage": true}', "{}", "null",
                                       '{"include_usage":true,"include_usage":false}', '{"include_ usage":true}']),
    "n": st.sampled_from(["1", "3"]),
    "max_tokens": st.sampled_from(["0", "77"]),
    "max_completion_tokens": st.sampled_from(["1", "null"]),
    "metadata": objects(NAMES, lambda name: LABEL_VALUES | ODD if name in LABELS else st.just("1"), 3),
    "tenant": st.just('"t"'),
    "use_case": st.just('"u"'),
}  # fmt: skip


def field_values(name: str) -> Any:
    usual = USUAL.get(name, st.just("1"))
    return st.one_of(usual, usual, usual, usual, ODD)


def twice(pairs: list[tuple[str, Any]]) -> set[str]:
    names = [name for name, _ in pairs]
    return {name for name in names if names.count(name) > 1}


def with_messages(text: str) -> str:
    """Most random objects would be refused for want of messages alone."""
    return text if "messages" in text else '{"messages":[{"role":"user"}]' + ("," if ":" in text else "") + text[1:]


def outcome(read: Any) -> Any:
    try:
        ask = read()
    except GatewayError as error:
        return (error.kind, error.param, error.message)
    ask.only_labels = False  # what the quick one has seen in passing, and the careful one does not look for
    return ask


@tried(4)
@given(objects(NAMES, field_values, 6).map(with_messages))
@example('{"messages":[{"role":"user"}],"metadata":{"tenant":"t"}}')
@example('{"messages":[{"role":"user"}],"model":"a","            ":1,"model":"b"}')  # as much space as the second takes
@example('{"messages": [{"role": "user"}], "model":"a","m":1,"model":"b"}')
@example('{"messages":[{"role":"user"}],"metadata":{"tenant":"a","tenant":"b"}}')
@example('{"messages":[{"role":"user"}],"metadata":{"tenant":"a\\n"}}')
@example('{"messages":[{"role":"user"}],"metadata":{"use_case":"a ","tenant":"b"}}')
@example('{"messages":[{"role":"user"}],"metadata":{"tenant":"a" ,"use_case":"b", "tenant":"c"}}')
def test_the_quick_look_agrees_with_the_careful_one(text: str) -> None:
    """And a field that we act on is never read when it stands twice, however it is written."""
    body = text.encode()
    pairs: list[tuple[str, Any]] = json.loads(text, object_pairs_hook=list)
    got = outcome(lambda: openai_chat.read(body))
    if twice(pairs) & ACTED_ON:
        assert isinstance(got, tuple)
        assert "stands twice" in got[2]
        return
    fields = read_object(body, ())
    assert got == outcome(lambda: openai_chat._read_field_by_field(body, fields))
    if not isinstance(got, tuple):
        metadata = dict(pairs).get("metadata")
        assert not (metadata and twice(metadata) & LABELS)
        assert [got.tenant, got.use_case] == [dict(metadata or ()).get(name) for name in ("tenant", "use_case")]
        assert got.model == dict(pairs).get("model")


@given(objects(NAMES, field_values, 5).map(with_messages), st.sampled_from(["gpt-5", "up"]), st.booleans())
def test_an_edited_body_says_the_same_but_for_what_is_ours(text: str, model: str, include_usage: bool) -> None:
    ask = outcome(lambda: openai_chat.read(text.encode()))
    if isinstance(ask, tuple):
        return
    before = json.loads(text)
    after = json.loads(openai_chat.edit(ask, model, include_usage))
    metadata = before.get("metadata") or {}
    kept = {name: value for name, value in metadata.items() if name not in LABELS}
    if kept != metadata:
        before = {**before, "metadata": kept}
        if not kept:
            del before["metadata"]
    if include_usage and ask.stream and not ask.include_usage:
        before["stream_options"] = {**(before.get("stream_options") or {}), "include_usage": True}
    assert after == {**before, "model": model}


@pytest.mark.parametrize("spaces", [(",", ":"), (", ", ": ")])
def test_a_large_body_with_a_field_twice_is_refused(spaces: tuple[str, str]) -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "x y\n" * 5000}], "model": "a"}, separators=spaces)
    body = (text[:-1] + ', "model":"b"}').encode()
    with pytest.raises(GatewayError, match="'model' stands twice"):
        openai_chat.read(body)
    assert openai_chat.read(text.encode()).model == "a"


# -- streams --

CHUNK = '{"model":"gpt","choices":[{"index":0,"delta":%s,"finish_reason":%s}]%s}'
NULL_USAGE = ',"usage":null'
RUNNING_USAGE = ',"usage":{"prompt_tokens":3,"completion_tokens":1}'
USAGE_ONLY = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'

DELTAS = st.one_of(
    st.text(max_size=12).map(lambda text: json.dumps({"content": text}, ensure_ascii=False)),
    st.text("ab", min_size=3, max_size=3).map(lambda text: json.dumps({"content": text})),  # events of the same length
    st.sampled_from(["{}", '{"role":"assistant","content":""}', '{"reasoning_content":"hm"}',
                     '{"content":"\\"error\\""}', '{"content":"\\"finish_reason\\":\\"stop\\",\\"usage\\":{}"}',
                     '{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]}']),
)  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Raw events of a whole stream before [DONE]."""
    deltas = draw(st.lists(DELTAS, min_size=1, max_size=10))
    usages = draw(st.sampled_from(["", NULL_USAGE])), draw(st.sampled_from(["", NULL_USAGE, RUNNING_USAGE]))
    change = draw(st.integers(0, len(deltas)))
    chunks = [CHUNK % (delta, "null", usages[at >= change]) for at, delta in enumerate(deltas)]
    chunks.append(CHUNK % ("{}", '"stop"', usages[1]))
    before = draw(st.sampled_from(["", "", ": note\n", "event: x\n"]))
    events = [f"{before}data: {chunk}\n\n".encode() for chunk in chunks]
    if draw(st.booleans()):
        events.append(b"data: " + USAGE_ONLY + b"\n\n")
    for at in draw(st.lists(st.integers(0, len(events)), max_size=2)):
        events.insert(at, b": ping\n\n")
    return events


@st.composite
def cuts(draw: st.DrawFn, events: list[bytes]) -> list[bytes]:
    """The stream in pieces: whole events, lines, at arbitrary bytes, or all of the same length (that of an event)."""
    raw = b"".join(events) + b"data: [DONE]\n\n"
    match draw(st.sampled_from(["events", "lines", "bytes", "period"])):
        case "events":
            return [*events, b"data: [DONE]\n\n"]
        case "lines":
            return raw.splitlines(keepends=True)
        case "bytes":
            places = draw(st.lists(st.integers(0, len(raw)), max_size=12))
        case _:
            period = draw(st.sampled_from(sorted({len(event) for event in events} | {1, 2, 7})))
            places = list(range(draw(st.integers(0, period - 1)), len(raw), period))
    edges = sorted({0, len(raw), *places})
    return [raw[start:end] for start, end in pairwise(edges)]


def due(events: list[bytes], withholding: bool, compatible: bool) -> list[bytes]:
    """What a client must get of these events."""
    signed, found = compatible, []
    for event in events:
        signed |= b'"usage":null' in event
        if not (USAGE_ONLY in event and withholding and signed):
            found.append(event)
    return found


def usage_of(events: list[bytes]) -> Usage | None:
    told = [event for event in events if b'"usage":{"' in event]
    return Usage(3, 2 if USAGE_ONLY in told[-1] else 1) if told else None


def check_end(reader: OpenAIChatStream, events: list[bytes]) -> None:
    assert (reader.done, reader.fault, reader.finish_reason, reader.model) == (True, None, "stop", "gpt")
    assert reader.usage == usage_of(events)


@tried(3)
@given(st.data(), streams(), st.booleans(), st.booleans())
def test_out_comes_what_went_in_less_what_is_withheld(
    data: st.DataObject, events: list[bytes], withholding: bool, compatible: bool
) -> None:
    reader = OpenAIChatStream(withholding=withholding, mending=compatible, announced=not compatible)
    out, fed = b"", 0
    ends = list(accumulate(map(len, events)))
    for piece in data.draw(cuts(events)):
        out += reader.feed(piece)
        fed += len(piece)
        whole = [event for event, end in zip(events, ends, strict=True) if end <= fed]
        assert out == b"".join(due(whole, withholding, compatible))
    check_end(reader, events)


def relayed(reader: OpenAIChatStream, pieces: list[bytes]) -> tuple[bytes, int]:
    """As a relay with a fast lane uses a reader; and how many events took the lane. 8 of them are kept for `recall`."""
    out, recent, passed = b"", [], 0
    for piece in pieces:
        lane = reader.opened and reader.at_rest
        whole = piece.endswith(b"}\n\n") and piece.count(b"\n\n") == 1
        held_up = reader.withholding and b'"usage"' in piece and b'"usage":null' not in piece
        if lane and whole and not held_up and not any(needle in piece for needle in reader.needles):
            recent.append(piece)
            passed += 1
            out += piece
        else:
            reader.recall(recent[-8:])
            recent.clear()
            out += reader.feed(piece)
    reader.recall(recent[-8:])
    return out + reader.end() + reader.last, passed


@tried(3)
@given(st.data(), streams(), st.booleans(), st.booleans())
def test_the_fast_lane_changes_nothing(
    data: st.DataObject, events: list[bytes], withholding: bool, compatible: bool
) -> None:
    reader = OpenAIChatStream(withholding=withholding, mending=compatible, announced=not compatible)
    out, _ = relayed(reader, data.draw(cuts(events)))
    assert out == b"".join(due(events, withholding, compatible)) + b"data: [DONE]\n\n"
    check_end(reader, events)


def test_most_events_may_take_the_fast_lane() -> None:
    text = (CHUNK % ('{"content":"abc"}', "null", NULL_USAGE)).encode()
    events = [b"data: " + text + b"\n\n"] * 20
    for compatible in (False, True):
        reader = OpenAIChatStream(withholding=True, mending=compatible, announced=not compatible)
        end = b"data: " + USAGE_ONLY + b"\n\ndata: [DONE]\n\n"
        out, passed = relayed(reader, [*events, end])
        assert passed == 19  # all but the one that opens the stream
        assert USAGE_ONLY not in out
        assert reader.usage == Usage(3, 2)


@given(st.lists(DELTAS, min_size=1, max_size=5), st.sampled_from(["null", '"stop"']))
def test_an_event_without_needles_is_never_mended(deltas: list[str], finish: str) -> None:
    reader = OpenAIChatStream(mending=True)
    for delta in deltas:
        event = f"data: {CHUNK % (delta, finish, NULL_USAGE)}\n\n".encode()
        passed = reader.feed(event)
        if not any(needle in event for needle in reader.needles):
            assert passed is event
        assert reader.fault is None


def test_tool_calls_without_an_index_are_numbered_beside_the_fast_lane() -> None:
    text = (CHUNK % ('{"content":"abc"}', "null", "")).encode()
    call = (CHUNK % ('{"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}}]}', "null", "")).encode()
    events = [b"data: " + event + b"\n\n" for event in (text, call, text, call)]
    out, passed = relayed(OpenAIChatStream(mending=True), events)
    chunks = [json.loads(line[6:]) for line in out.splitlines() if line.startswith(b"data: {")]
    calls = [chunk["choices"][0]["delta"].get("tool_calls", [{}])[0].get("index") for chunk in chunks]
    assert (calls, passed) == ([None, 0, None, 1], 1)


def test_a_line_held_back_comes_out_before_the_rest_of_its_event() -> None:
    event = (b"data: " + CHUNK.encode() + b"\n\n") % (b'{"content":"x"}', b"null", b"")
    reader = OpenAIChatStream()
    assert reader.feed(event) is event
    assert [reader.feed(piece) for piece in (b": note\n", event, event)] == [b"", b": note\n" + event, event]


@pytest.mark.parametrize(
    ("usage", "told", "withheld"),
    [(NULL_USAGE, None, True), ("", None, False), (RUNNING_USAGE, Usage(3, 1), False)],
)
def test_what_went_past_tells_usage_and_signature(usage: str, told: Usage | None, withheld: bool) -> None:
    content = (b"data: " + CHUNK.encode() + b"\n\n") % (b'{"content":"x"}', b"null", b"%b")
    usage_only = b"data: " + USAGE_ONLY + b"\n\n"
    reader = OpenAIChatStream(withholding=True, announced=True)
    reader.feed(content % b"")
    reader.recall([content % usage.encode()])
    assert reader.usage == told
    assert reader.feed(usage_only) == (b"" if withheld else usage_only)
    assert reader.usage == Usage(3, 2)


def test_what_went_past_may_hold_several_answers() -> None:
    choice = b'{"index":%d,"delta":{},"finish_reason":%b}'
    event = b'data: {"model":"m","choices":[' + choice % (0, b"null") + b"," + choice % (1, b'"stop"') + b"]}\n\n"
    last = b'data: {"model":"m","choices":[' + choice % (0, b'"length"') + b"]}\n\n"
    reader = OpenAIChatStream(choices=2)
    reader.feed(event.replace(b'"stop"', b"null"))
    reader.recall([event, last])
    assert reader.end() == b""
    assert (reader.done, reader.finish_reason) == (True, "length")
