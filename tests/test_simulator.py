"""The simulator against what it promises: same seed, same bytes; strictness; faults where they were asked for.

Pure parts by tables and laws, the server over real sockets.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from edgegw.simulator import rules_file
from edgegw.simulator.arguments import fitting
from edgegw.simulator.chat_wire import ChatWire
from edgegw.simulator.house import House
from edgegw.simulator.messages_wire import MessagesWire
from edgegw.simulator.rules import WORDS, Asked, Behaviour, Fault, Rules, RulesError, changes, seconds
from edgegw.simulator.scene import Ending, Scene
from edgegw.simulator.script import RefusalError, dice
from edgegw.simulator.server import Simulator, start
from edgegw.simulator.stats import Served

WAIT_S = 10.0
JSON = {"content-type": "application/json"}
CHAT_HEADERS = {**JSON, "authorization": "Bearer sk-test"}
MESSAGES_HEADERS = {**JSON, "x-api-key": "sk-test", "anthropic-version": "2023-06-01"}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 9}, "note": {"type": "string"}},
    "required": ["city", "days"],
}


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "How are you?"}], **fields}


def messages_body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "How are you?"}], **fields}


def house(**base: Any) -> House:
    return House(7, Rules(), Behaviour(**base))


def play(house: House, body: dict[str, Any], path: bytes = b"/v1/chat/completions") -> Scene:
    headers = CHAT_HEADERS if path == b"/v1/chat/completions" else MESSAGES_HEADERS
    return house.answer(b"POST", path, headers, json.dumps(body).encode())


def body_of(scene: Scene) -> Any:
    return json.loads(b"".join(scene.frames).partition(b"\r\n\r\n")[2])


def chunks_of(scene: Scene) -> list[Any]:
    """The events of an OpenAI stream; the terminator as the string."""
    lines = b"".join(scene.frames).split(b"\r\n")
    data = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in data]


# ---- words and rules

ASKED = Asked("gpt-5", "/v1/chat/completions", True, {"x-tenant": "acme"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("429-after-3", {"fault": Fault.STATUS, "status": 429, "retry_after_s": 3.0}),
        ("500", {"fault": Fault.STATUS, "status": 500}),
        ("cut-0", {"fault": Fault.CUT, "after": 0, "status": 200}),
        ("cut", {"fault": Fault.CUT, "after": 5, "status": 200}),
        ("fail-2", {"fault": Fault.STATUS, "status": 500, "times": 2}),
        ("error-event-4", {"fault": Fault.ERROR_EVENT, "after": 4, "status": 200}),
        ("error-event", {"fault": Fault.ERROR_EVENT, "after": 0, "status": 200}),
        ("slow-50ms", {"pace_s": 0.05}),
        ("tokens-200-slow-20ms", {"tokens": 200, "pace_s": 0.02}),
        ("tokens-429", {"tokens": 429}),
        ("nousage-429", {"usage": False, "fault": Fault.STATUS, "status": 429}),
        ("html-503", {"fault": Fault.HTML, "status": 503}),
        ("latency-1.5s-drip-3", {"latency_s": 1.5, "drip_bytes": 3}),
    ],
)
def test_words_say_what_they_mean(words: str, expected: dict[str, Any]) -> None:
    assert changes(words) == expected


@pytest.mark.parametrize("words", ["", "nosuch", "cut-5-6", "429-", "300", "cut--5", "slow-99999s", "tokens-1000000"])
def test_unknown_words_are_named(words: str) -> None:
    with pytest.raises(RulesError):
        changes(words)


def test_every_word_stands_alone_and_in_the_help() -> None:
    help_page = b"".join(house().answer(b"GET", b"/simulator/help", {}, b"").frames).decode()
    for word, entry in WORDS.items():
        assert changes(word)
        assert f"  {word}" in help_page
        assert entry.means in help_page


@pytest.mark.parametrize(("text", "expected"), [("50ms", 0.05), ("2s", 2), ("1m", 60), (0.5, 0.5), (3, 3)])
def test_durations(text: object, expected: float) -> None:
    assert seconds(text) == expected


@given(st.text(st.characters(categories=["L", "N"], include_characters="-"), max_size=30))
def test_any_name_is_a_behaviour_or_a_mistake(words: str) -> None:
    try:
        behaviour = Behaviour(**changes(words))
    except RulesError:
        return
    asked = replace(ASKED, model=f"sim-{words}")
    chosen = Rules().choose(asked, Behaviour(), lambda throw: 0.0, lambda key: 0)
    assert chosen == (behaviour if behaviour.times != 0 else behaviour.harmless)


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({}, True),
        ({"model": "gpt-*"}, True),
        ({"model": "claude-*"}, False),
        ({"path": "*/messages"}, False),
        ({"stream": True}, True),
        ({"stream": False}, False),
        ({"header": {"X-Tenant": "ac*"}}, True),
        ({"header": {"x-other": "?*"}}, False),
        ({"model": "gpt-5", "stream": True, "header": {"x-tenant": "globex"}}, False),
    ],
)
def test_a_rule_takes_what_matches_in_everything(match: dict[str, Any], fits: bool) -> None:
    rules = Rules.build([{"match": match, "status": 503}])
    chosen = rules.choose(ASKED, Behaviour(), lambda throw: 0.0, Counter[str]().__getitem__)
    assert (chosen.status == 503) is fits


def test_the_first_rule_that_matches_and_throws_well_wins_until_its_times_are_used_up() -> None:
    rules = Rules.build(
        [
            {"match": {"model": "other"}, "status": 400},
            {"probability": 0.5, "fault": "cut-2", "latency": "100ms"},
            {"times": 1, "status": 429, "retry_after": 2},
            {"pace": "10ms", "tokens": 3},
        ]
    )
    throws = {1: 0.7}
    counts: Counter[str] = Counter()

    def count(key: str) -> int:
        counts[key] += 1
        return counts[key] - 1

    def chosen() -> Behaviour:
        return rules.choose(ASKED, Behaviour(tokens=9), lambda throw: throws.get(throw, 0.0), count)

    assert chosen() == Behaviour(tokens=9, fault=Fault.STATUS, status=429, retry_after_s=2.0)
    assert chosen() == Behaviour(tokens=3, pace_s=0.01)
    throws[1] = 0.4
    assert chosen() == Behaviour(tokens=9, fault=Fault.CUT, after=2, latency_s=0.1)


def test_the_name_is_laid_over_the_rule() -> None:
    rules = Rules.build([{"latency": "1s", "status": 500}])
    chosen = rules.choose(replace(ASKED, model="sim-cut-1"), Behaviour(), lambda throw: 0.0, lambda key: 0)
    assert (chosen.latency_s, chosen.fault, chosen.after) == (1.0, Fault.CUT, 1)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({}, "a list"),
        ([1], "rule 1"),
        ([{}, {"colour": 1}], "rule 2: no such key: 'colour'"),
        ([{"match": {"colour": 1}}], "no such key: 'colour'"),
        ([{"probability": 2}], "rule 1, probability"),
        ([{"status": 200}], "rule 1, status"),
        ([{"fault": "nosuch"}], "rule 1, fault"),
        ([{"latency": True}], "rule 1, latency"),
        ([{"match": {"header": "x"}}], "rule 1, match.header"),
        ([{"match": []}], None),
    ],
)
def test_mistakes_in_rules_are_named(entries: Any, named: str | None) -> None:
    if named is None:
        assert Rules.build(entries)  # an empty match is no mistake
        return
    with pytest.raises(RulesError, match=named.replace("(", r"\(")):
        Rules.build(entries)


def test_a_rules_file_is_yaml(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("- match: {model: 'gpt-*'}\n  probability: 0.5\n  fault: 429-after-3\n")
    rules = rules_file.load(str(file))
    chosen = rules.choose(ASKED, Behaviour(), lambda throw: 0.49, lambda key: 0)
    assert (chosen.status, chosen.retry_after_s) == (429, 3.0)
    file.write_text("- {")
    with pytest.raises(RulesError, match=r"rules\.yaml"):
        rules_file.load(str(file))
    with pytest.raises(RulesError, match="nothere"):
        rules_file.load(str(tmp_path / "nothere"))


def test_dice_are_even_and_follow_the_seed() -> None:
    throws = [dice(1, number, throw) for number in range(100) for throw in range(10)]
    assert throws == [dice(1, number, throw) for number in range(100) for throw in range(10)]
    assert throws != [dice(2, number, throw) for number in range(100) for throw in range(10)]
    tenths = Counter(int(throw * 10) for throw in throws)
    assert min(tenths.values()) > 60
    assert set(tenths) == set(range(10))


# ---- answers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages"])
def test_the_same_seed_and_request_give_the_same_bytes(stream: bool, path: bytes) -> None:
    body = messages_body(stream=stream) if path == b"/v1/messages" else chat_body(stream=stream)
    assert play(house(), body, path).frames == play(house(), body, path).frames
    other = House(8, Rules(), Behaviour())
    assert play(house(), body, path).frames != play(other, body, path).frames


@given(
    text=st.text(max_size=80),
    tokens=st.integers(0, 60),
    bound=st.none() | st.integers(1, 60),
    repeat=st.booleans(),
    stop=st.none() | st.sampled_from(["the", "a", " ", "."]),
)
def test_plain_and_streamed_say_the_same(
    text: str, tokens: int, bound: int | None, repeat: bool, stop: str | None
) -> None:
    asked = chat_body(messages=[{"role": "user", "content": ("Repeat: " if repeat else "") + text}], stop=stop)
    if bound is not None:
        asked["max_tokens"] = bound
    plain = body_of(play(house(tokens=tokens), asked))
    scene = play(house(tokens=tokens), {**asked, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage, done = chunks_of(scene)
    assert done == "[DONE]"
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    choice = plain["choices"][0]
    assert said == choice["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert usage["usage"] == plain["usage"]
    assert sum(scene.counts) == usage["usage"]["completion_tokens"] == len(chunks) - 2
    if repeat and bound is None and stop is None:
        assert said == text
    if not repeat and stop is None:
        length = min(tokens, bound or tokens)
        assert usage["usage"]["completion_tokens"] == length
        assert choice["finish_reason"] == ("length" if bound is not None and bound < tokens else "stop")


def test_usage_is_told_to_who_asks_for_it() -> None:
    without = chunks_of(play(house(), chat_body(stream=True)))
    assert all("usage" not in chunk for chunk in without[:-1])
    asked = chat_body(stream=True, stream_options={"include_usage": True})
    told = chunks_of(play(house(), asked))
    assert [chunk["usage"] for chunk in told[:-2]] == [None] * (len(told) - 2)
    assert told[-2]["choices"] == []
    silent = chunks_of(play(house(), {**asked, "model": "sim-nousage"}))
    assert all("usage" not in chunk for chunk in silent[:-1])
    assert "usage" not in body_of(play(house(), chat_body(model="sim-nousage")))


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer"},
            {"type": "number", "maximum": 1},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["a", 1]},
            {"$ref": "#/$defs/place"},
            {"type": ["string", "null"]},
        ]
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)}),
        st.dictionaries(st.sampled_from("xyz"), inner, min_size=1).map(
            lambda fields: {"type": "object", "properties": fields, "required": sorted(fields)}
        ),
    ),
    max_leaves=8,
)


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """A small validator, of the schemas above only."""
    if "$ref" in schema:
        return isinstance(value, str)
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(_fits(value, inner) for inner in schema["anyOf"])
    kind = schema["type"] if isinstance(schema["type"], str) else schema["type"][0]
    if kind == "array":
        return isinstance(value, list) and all(_fits(item, schema["items"]) for item in value)
    if kind == "object":
        return isinstance(value, dict) and all(
            _fits(value[key], schema["properties"][key]) for key in schema["required"]
        )
    types: dict[str, Any] = {"string": str, "integer": int, "number": int | float, "boolean": bool, "null": type(None)}
    return (
        isinstance(value, types[kind]) and value <= schema.get("maximum", value)
        if kind == "number"
        else isinstance(value, types[kind])
    )


@given(st.dictionaries(st.sampled_from("abc"), SCHEMAS, min_size=1))
def test_arguments_fit_their_schema(fields: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": fields,
        "required": sorted(fields),
        "$defs": {"place": {"type": "string"}},
    }
    value = fitting(schema)
    assert sorted(value) == sorted(fields)
    assert all(_fits(value[key], fields[key]) for key in fields)


def test_a_schema_that_holds_itself_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
    assert fitting({"$defs": {"node": node}, **node})
    assert fitting(None) == {}


# ---- strictness

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "tool_call_id": "c1", "content": "x"}]}, "messages[0].role"),
        ({"messages": [CALLED, {"role": "user", "content": "x"}]}, "messages[1]"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nosuch"}}}, "tool_choice"),
        ({"metadata": {"depth": {"a": 1}}}, "metadata[...]"),
    ],
)
def test_chat_refuses_what_openai_refuses(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusalError) as caught:
        ChatWire().read(json.dumps(chat_body(**fields)).encode())
    assert (caught.value.status, caught.value.param) == (400, param)


USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}]}
WEATHER_TOOLS = [{"name": "weather", "input_schema": {"type": "object"}}]
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "21"}]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "non-empty"),
        ({"messages": [RESULT]}, "unexpected `tool_use_id`"),
        ({"messages": [USE, {"role": "user", "content": "x"}], "tools": WEATHER_TOOLS}, "without `tool_result`"),
        ({"messages": [{"role": "user", "content": "x"}, USE, RESULT]}, "must define tools"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"metadata": {"tenant": "acme"}}, "tenant"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [{"name": "w", "input_schema": {"properties": {}}}]}, "input_schema.type"),
        ({"system": [{"type": "text", "text": ""}]}, "non-empty"),
    ],
)
def test_messages_refuses_what_anthropic_refuses(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusalError, match=said) as caught:
        MessagesWire().read(json.dumps(messages_body(**fields)).encode())
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"type": "base64", "media_type": "image/bmp", "data": "AAAA"}, "media_type"),
        ({"type": "base64", "media_type": "image/png", "data": "%%%"}, "base64"),
        ({"type": "file", "file_id": "f"}, "needs"),
    ],
)
def test_messages_looks_at_pictures(source: dict[str, Any], said: str) -> None:
    turns = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    with pytest.raises(RefusalError, match=said):
        MessagesWire().read(json.dumps(messages_body(messages=turns)).encode())


@pytest.mark.parametrize("missing", ["model", "messages", "max_tokens"])
def test_messages_names_what_is_missing(missing: str) -> None:
    body = messages_body()
    del body[missing]
    with pytest.raises(RefusalError, match=missing) as caught:
        MessagesWire().read(json.dumps(body).encode())
    assert caught.value.code == "missing_required_parameter"


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode()))
def test_no_body_is_too_strange_to_refuse(body: bytes) -> None:
    for path, headers in ((b"/v1/chat/completions", CHAT_HEADERS), (b"/v1/messages", MESSAGES_HEADERS)):
        scene = house().answer(b"POST", path, headers, body)
        assert scene.status == 400
        assert body_of(scene)["error"]["message"]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (b"/v1/chat/completions", JSON, 401),
        (b"/v1/chat/completions", {**CHAT_HEADERS, "authorization": "Bearer bad-key"}, 401),
        (b"/v1/chat/completions", {**CHAT_HEADERS, "authorization": "Basic abc"}, 401),
        (b"/v1/chat/completions", {**CHAT_HEADERS, "content-type": "text/plain"}, 415),
        (b"/v1/messages", JSON, 401),
        (b"/v1/messages", {**JSON, "x-api-key": "k"}, 400),
        (b"/v1/messages", {**MESSAGES_HEADERS, "x-api-key": "bad"}, 401),
        (b"/v1/messages", {**JSON, "authorization": "Bearer k", "anthropic-version": "2023-06-01"}, 200),
        (b"/v1/nothing", CHAT_HEADERS, 404),
    ],
)
def test_doors(path: bytes, headers: dict[str, str], status: int) -> None:
    body = json.dumps(messages_body()).encode()
    assert house().answer(b"POST", path, headers, body).status == status
    assert house().answer(b"DELETE", b"/v1/models", headers, b"").status == 405


# ---- faults, as scenes


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages"])
@pytest.mark.parametrize(
    ("word", "ending", "tokens", "terminated"),
    [
        ("cut-5", Ending.CLOSE, 5, False),
        ("cut-0", Ending.CLOSE, 0, False),
        ("reset-2", Ending.RESET, 2, False),
        ("stall-3", Ending.SILENCE, 3, False),
        ("truncate-4", Ending.COMPLETE, 4, True),
        ("error-event-0", Ending.COMPLETE, 0, True),
        ("garbage-6", Ending.COMPLETE, 24, True),
        ("cut-100", Ending.CLOSE, 24, False),
    ],
)
def test_streams_break_after_so_many_tokens(
    path: bytes, word: str, ending: Ending, tokens: int, terminated: bool
) -> None:
    body = messages_body if path == b"/v1/messages" else chat_body
    scene = play(house(), body(model=f"sim-{word}", stream=True), path)
    sent = b"".join(scene.frames)
    assert (scene.ending, sum(scene.counts), scene.whole) == (ending, tokens, False)
    assert sent.endswith(b"\r\n0\r\n\r\n") is terminated
    finished = b"[DONE]" in sent or b"message_stop" in sent
    assert finished is word.startswith("garbage")


def test_a_reset_at_once_sends_no_byte() -> None:
    scene = play(house(), chat_body(model="sim-reset", stream=True))
    assert (scene.frames, scene.ending) == ([], Ending.RESET)


@pytest.mark.parametrize("stream", [False, True])
def test_a_drip_is_the_same_bytes_in_small_pieces(stream: bool) -> None:
    whole = play(house(), chat_body(model="m", stream=stream))
    dripped = play(house(), chat_body(model="sim-drip-3", stream=stream))
    assert max(map(len, dripped.frames)) == 3
    assert sum(dripped.counts) == sum(whole.counts)
    assert len(b"".join(dripped.frames)) > len(dripped.frames)


def test_times_is_counted_by_model_until_the_reset() -> None:
    provider = house()
    model = chat_body(model="sim-429-times-2")
    assert [play(provider, model).status for _ in range(4)] == [429, 429, 200, 200]
    assert play(provider, chat_body(model="sim-fail-1")).status == 500
    provider.answer(b"POST", b"/simulator/reset", {}, b"")
    assert play(provider, model).status == 429


# ---- over sockets


@dataclass(slots=True)
class Client:
    """A raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(
        self, body: dict[str, Any], path: str = "/v1/chat/completions", method: str = "POST", id_: str = ""
    ) -> None:
        data = json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-type: application/json\r\n"
        head += f"x-client-request-id: {id_}\r\n"
        self.writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)

    async def head(self) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_S)

    async def reply(self) -> tuple[int, Any]:
        """Status and decoded body of a reply with a length."""
        head = await self.head()
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await asyncio.wait_for(self.reader.readexactly(length), WAIT_S)
        return int(head.split(b" ")[1]), json.loads(body)

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), WAIT_S)


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Simulator]:
    running = await start(seed=7)
    yield running
    await running.close()


@pytest_asyncio.fixture
async def client(simulator: Simulator) -> AsyncIterator[Client]:
    connected = Client(*await asyncio.open_connection("127.0.0.1", simulator.port))
    yield connected
    connected.writer.transport.abort()


async def until(condition: Any) -> None:
    """Bounded wait for something the other side of a socket does."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (the simulator has no event for its tests)
            await asyncio.sleep(0.001)


async def test_requests_on_one_connection_are_answered_in_order(client: Client) -> None:
    for number in range(5):
        client.send(chat_body(messages=[{"role": "user", "content": f"Repeat: {number}"}], model="sim-slow-1ms"))
    replies = [await client.reply() for _ in range(5)]
    assert [body["choices"][0]["message"]["content"] for _, body in replies] == list("01234")


async def test_stats_tell_what_was_served(simulator: Simulator, client: Client) -> None:
    client.send(chat_body(model="gpt-5", max_tokens=4))
    client.send(chat_body(model="sim-500"))
    client.send({})
    client.send({}, "/simulator/stats", "GET")
    replies = [await client.reply() for _ in range(4)]
    assert [status for status, _ in replies] == [200, 500, 400, 200]
    stats = replies[-1][1]
    assert stats["requests"] == 3
    assert stats["by_model"] == {"gpt-5": 1, "sim-500": 1, "(other)": 1}
    assert stats["by_status"] == {"200": 1, "500": 1, "400": 1}
    assert (stats["completed"], stats["cut"], stats["refused"]) == (1, 0, 1)
    assert stats["tokens"] == {"prompt": replies[0][1]["usage"]["prompt_tokens"], "completion": 4}
    client.send({}, "/simulator/reset")
    assert (await client.reply())[0] == 200
    assert simulator.stats.requests == 0
    assert simulator.stats.connections == 1


async def test_the_log_has_a_line_for_each_request_however_it_ended() -> None:
    lines: list[Served] = []
    simulator = await start(seed=7, log=lines.append)
    client = Client(*await asyncio.open_connection("127.0.0.1", simulator.port))
    client.send(chat_body(max_tokens=5), id_="from-us")
    head = await client.head()
    client.send(chat_body(model="sim-500"))
    client.send({"model": "m"})
    client.send({}, "/simulator/stats", "GET")
    client.send(chat_body(model="sim-cut-3", stream=True))
    await client.rest()
    await until(lambda: len(lines) == 4)
    client.writer.transport.abort()
    await simulator.close()
    assert f"x-request-id: {lines[0].id}\r\n".encode() in head
    assert [(line.client_request_id, line.prompt_tokens) for line in lines] == [
        ("from-us", 11),
        ("", 0),
        ("", 0),
        ("", 11),
    ]
    assert [(line.model, line.stream, line.status, line.completion_tokens, line.whole) for line in lines] == [
        ("m", False, 200, 5, True),
        ("sim-500", False, 500, 0, False),
        ("", False, 400, 0, False),
        ("sim-cut-3", True, 200, 3, False),
    ]


async def test_a_client_that_leaves_is_seen_while_the_stream_runs(simulator: Simulator, client: Client) -> None:
    client.send(chat_body(model="sim-tokens-1000-slow-5ms", stream=True))
    await client.head()
    assert simulator.stats.open_streams == 1
    client.writer.transport.abort()
    await until(lambda: simulator.stats.disconnects)
    (left,) = simulator.stats.disconnects
    assert left["model"] == "sim-tokens-1000-slow-5ms"
    assert 1 <= left["tokens_sent"] < 1000
    assert left["after_last_write_ms"] >= 0
    assert (simulator.stats.open_streams, simulator.stats.open_requests, simulator.stats.completed) == (0, 0, 0)
    assert simulator.stats.completion_tokens == left["tokens_sent"]


async def test_a_client_that_leaves_is_seen_while_nothing_comes(simulator: Simulator, client: Client) -> None:
    client.send(chat_body(model="sim-hang"))
    await until(lambda: simulator.stats.open_requests)
    client.writer.transport.abort()
    await until(lambda: simulator.stats.disconnects)
    assert simulator.stats.disconnects[0]["after_last_write_ms"] is None


async def test_cut_and_reset_end_the_connection(simulator: Simulator, client: Client) -> None:
    client.send(chat_body(model="sim-cut-2", stream=True))
    got = await client.rest()
    assert got.count(b'"delta":{"content"') == 2
    assert not got.endswith(b"0\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    second = Client(reader, writer)
    second.send(chat_body(model="sim-reset-2", stream=True))
    with pytest.raises(ConnectionResetError):
        await second.rest()
    writer.transport.abort()
    assert simulator.stats.cut == 2


async def test_the_pace_holds(client: Client) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    client.send(chat_body(model="sim-tokens-40-slow-2.5ms-close", stream=True))
    got = await client.rest()
    assert got.count(b'"delta":{"content"') == 40
    assert loop.time() - began_s >= 39 * 0.0025 - 0.005  # the timer's own resolution


async def test_bad_http_is_refused(client: Client) -> None:
    client.writer.write(b"NONSENSE\r\n\r\n")
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.system
async def test_the_openai_sdk_takes_it_for_real(simulator: Simulator) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{simulator.url}/v1", api_key="k", max_retries=0) as sdk:
        async with sdk.chat.completions.stream(
            model="m",
            messages=[{"role": "user", "content": "Call the tool, please"}],
            tools=TOOLS,  # type: ignore[arg-type]
        ) as stream:
            async for _ in stream:
                pass
            message = (await stream.get_final_completion()).choices[0]
        assert message.finish_reason == "tool_calls"
        assert message.message.tool_calls is not None
        assert json.loads(message.message.tool_calls[0].function.arguments) == {"city": "some city", "days": 9}
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(model="sim-429-after-2.5", messages=[{"role": "user", "content": "x"}])
        assert caught.value.response.headers["retry-after"] == "3"
        assert caught.value.response.headers["retry-after-ms"] == "2500"


@pytest.mark.system
async def test_the_anthropic_sdk_takes_it_for_real(simulator: Simulator) -> None:
    import anthropic

    async with anthropic.AsyncAnthropic(base_url=simulator.url, api_key="k", max_retries=0) as sdk:
        plain = await sdk.messages.create(**messages_body())
        async with sdk.messages.stream(**messages_body()) as stream:
            streamed = await stream.get_final_message()
        assert [block.type for block in streamed.content] == [block.type for block in plain.content] == ["text"]
        assert getattr(streamed.content[0], "text", 1) == getattr(plain.content[0], "text", 2)
        assert (streamed.usage.input_tokens, streamed.usage.output_tokens) == (plain.usage.input_tokens, 24)
        tool = {"name": "weather", "input_schema": WEATHER}
        forced = {"tools": [tool], "tool_choice": {"type": "tool", "name": "weather"}}
        async with sdk.messages.stream(**messages_body(**forced)) as stream:
            called = await stream.get_final_message()
        assert called.stop_reason == "tool_use"
        assert called.content[0].type == "tool_use"
        assert called.content[0].input == {"city": "some city", "days": 9}
        with pytest.raises(anthropic.InternalServerError) as caught:
            await sdk.messages.create(**messages_body(model="sim-529"))
        assert caught.value.status_code == 529
