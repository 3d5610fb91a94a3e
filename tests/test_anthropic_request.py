"""OpenAI Chat requests as Anthropic Messages: turns, tools, thinking, sampling, answers in JSON, what is refused."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from edgegw.dialects import openai_chat
from edgegw.dialects.anthropic_request import JSON_TOOL, Capabilities, Written, write
from edgegw.dialects.openai_chat_request import schema_wanted, to_neutral
from edgegw.errors import GatewayError

OLD = Capabilities(max_output_tokens=64000, thinking=("budget", "disabled"))
NEW = Capabilities(
    max_output_tokens=128000,
    sampling=False,
    thinking=("adaptive", "disabled"),
    efforts=("low", "medium", "high", "xhigh", "max"),
    mid_system=True,
    structured_outputs=True,
)
BARE = Capabilities(max_output_tokens=4096)

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "done"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def written(capabilities: Capabilities = OLD, /, **fields: Any) -> Written:
    ask = openai_chat.read(json.dumps({"messages": [USER], **fields}).encode())
    return write(to_neutral(ask), "claude", capabilities)


def sent(capabilities: Capabilities = OLD, /, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(written(capabilities, **fields).body)
    return body


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": each} for each in texts]


def test_the_smallest_request() -> None:
    assert sent() == {"model": "claude", "max_tokens": 64000, "messages": [{"role": "user", "content": text("hi")}]}
    assert sent(max_tokens=5)["max_tokens"] == 5
    assert sent(max_tokens=5, max_completion_tokens=7, stream=True)["max_tokens"] == 7
    assert sent(stream=True)["stream"] is True


# -- turns --

SYSTEM = {"role": "system", "content": "s"}
TURNS = [
    ([SYSTEM, {"role": "developer", "content": "d"}, USER], text("s", "d"), [("user", text("hi"))]),
    ([USER, {"role": "user", "content": [{"type": "text", "text": "you"}]}], None, [("user", text("hi", "you"))]),
    ([USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": " \n"}, USER], None,
     [("user", text("hi")), ("assistant", text("a")), ("user", text("hi"))]),
    ([USER, {"role": "assistant", "content": ""}, USER], None, [("user", text("hi", "hi"))]),
    ([SYSTEM, {"role": "developer", "content": "d"}], None, [("user", text("s", "d"))]),
    ([USER, {"role": "assistant", "content": None, "refusal": "no"}], None,
     [("user", text("hi")), ("assistant", text("no"))]),
    ([USER, {"role": "assistant", "content": "a \n"}, USER, {"role": "assistant", "content": "so: \n"}], None,
     [("user", text("hi")), ("assistant", text("a \n")), ("user", text("hi")), ("assistant", text("so:"))]),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "system", "turns"), TURNS)
def test_turns(messages: list[Any], system: Any, turns: list[Any]) -> None:
    body = sent(messages=messages)
    assert body.get("system") == system
    assert [(message["role"], message["content"]) for message in body["messages"]] == turns


@pytest.mark.parametrize(
    ("capabilities", "messages", "roles"),
    [
        (NEW, [USER, SYSTEM], ["user", "system"]),
        (
            NEW,
            [USER, SYSTEM, SYSTEM, {"role": "assistant", "content": "a"}, USER],
            ["user", "system", "assistant", "user"],
        ),
        (NEW, [USER, SYSTEM, USER], ["user"]),
        (NEW, [USER, {"role": "assistant", "content": "a"}, SYSTEM, USER], ["user", "assistant", "user"]),
        (OLD, [USER, SYSTEM], ["user"]),
    ],
)
def test_a_later_system_message_stays_where_the_model_takes_it(
    capabilities: Capabilities, messages: list[Any], roles: list[str]
) -> None:
    body = sent(capabilities, messages=messages)
    assert [message["role"] for message in body["messages"]] == roles
    texts = [block["text"] for message in body["messages"] for block in message["content"]]
    assert texts == [message["content"] for message in messages]


def test_tool_calls_and_results() -> None:
    parallel = {**CALLING, "content": "wait", "tool_calls": [CALL, {**CALL, "id": "c 2", "function": {"name": "g"}}]}
    other = {"role": "tool", "tool_call_id": "c 2", "content": [{"type": "text", "text": "x"}]}
    body = sent(messages=[USER, parallel, RESULT, other, USER])
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                *text("wait"),
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c_2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": text("done")},
                {"type": "tool_result", "tool_use_id": "c_2", "content": text("x")},
                *text("hi"),
            ],
        },
    ]


def test_ids_that_become_alike_stay_different() -> None:
    calls = [{**CALL, "id": id} for id in ("a b", "a.b")]
    results = [{**RESULT, "tool_call_id": id} for id in ("a b", "a.b")]
    messages = sent(messages=[USER, {**CALLING, "tool_calls": calls}, *results])["messages"]
    ids = [block["id"] for block in messages[1]["content"]]
    assert len(set(ids)) == 2
    assert ids == [block["tool_use_id"] for block in messages[2]["content"]]


def test_thinking_of_earlier_answers_goes_back_first_and_exactly() -> None:
    details = [
        {"type": "reasoning.text", "text": "hm ", "signature": "sig=", "index": 0},
        {"type": "reasoning.encrypted", "data": "xyz", "index": 1},
        {"type": "reasoning.text", "text": "unsigned"},
        {"type": "reasoning.encrypted", "data": "of others", "format": "openai-responses-v1"},
    ]
    blocks = [
        {"type": "thinking", "thinking": "hm ", "signature": "sig="},
        {"type": "redacted_thinking", "data": "xyz"},
        *text("a"),
    ]
    for history in ({"reasoning_details": details}, {"thinking_blocks": [*blocks[:2], {"type": "thinking"}]}):
        message = {"role": "assistant", "content": "a", **history}
        assert sent(messages=[USER, message, USER])["messages"][1]["content"] == blocks
    unsigned = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}  # Mistral's
    message = {"role": "assistant", "content": [unsigned, *blocks]}
    assert sent(messages=[USER, message, USER])["messages"][1]["content"] == blocks


PNG = {"type": "image_url", "image_url": {"url": "data:image/JPG;base64,AAAA", "detail": "low"}}
WEB = {"type": "image_url", "image_url": {"url": "HTTPS://x/y.png"}}
PDF = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}
NOTE = {"type": "file", "file": {"file_data": "data:text/plain;base64,aGk=", "filename": "a.txt"}}


def test_images_and_files() -> None:
    assert sent(messages=[{"role": "user", "content": [PNG, WEB, PDF, NOTE]}])["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": "HTTPS://x/y.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}, "title": "a.txt"},
    ]


def test_cache_breakpoints_are_kept_and_the_last_four_win() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
    parts = [{"type": "text", "text": str(n), "cache_control": {"type": "ephemeral"}} for n in range(4)]
    body = sent(messages=[{"role": "user", "content": [{**PNG, **mark}, *parts, {**parts[0], **mark}]}])
    marks = [block.get("cache_control") for block in body["messages"][0]["content"]]
    assert marks == [None, None, *[{"type": "ephemeral"}] * 4]
    body = sent(messages=[{"role": "user", "content": [{**PNG, **mark}]}])
    assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


def test_a_message_marked_for_the_cache_is_marked_at_its_end() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = sent(messages=[{**SYSTEM, **mark}, {"role": "user", "content": parts, **mark}, CALLING, {**RESULT, **mark}])
    assert [block.get("cache_control") for block in body["system"]] == [mark["cache_control"]]
    marks = [[block.get("cache_control") for block in message["content"]] for message in body["messages"]]
    assert marks == [[None, mark["cache_control"]], [None], [mark["cache_control"]]]


# -- tools --


def test_tools_keep_their_schemas_verbatim() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/y"}},
        "$defs": {"y": {}},
        "additionalProperties": 1,
    }
    tools = [
        {"type": "function", "function": {"name": "a", "description": "d", "parameters": schema, "strict": True}},
        {"type": "function", "function": {"name": "b", "parameters": {"properties": {}}}},
        {"type": "function", "function": {"name": "c"}},
    ]
    assert sent(NEW, tools=tools)["tools"] == [
        {"name": "a", "input_schema": schema, "description": "d"},
        {"name": "b", "input_schema": {"type": "object", "properties": {}}},
        {"name": "c", "input_schema": {"type": "object", "properties": {}}},
    ]


def test_strict_tools_where_the_model_can_be_held_to_them() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "a", "parameters": schema, "strict": True}}]
    assert sent(NEW, tools=tools)["tools"][0].get("strict") is True
    assert "strict" not in sent(OLD, tools=tools)["tools"][0]


def test_a_strict_tool_is_sent_within_the_supported_part_and_a_map_is_not_held_to_anything() -> None:
    count = {"type": "integer", "minimum": 1}
    inner = {"type": ["object", "null"], "properties": {"x": count}}
    schema = {"type": "object", "properties": {"in": inner}, "additionalProperties": False}
    map_ = {"type": "object", "properties": {"in": {"type": "object", "additionalProperties": count}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters, "strict": True}}
        for name, parameters in (("a", schema), ("b", map_))
    ]
    said = {"type": "integer", "description": "{minimum: 1}"}
    closed = {"type": ["object", "null"], "properties": {"x": said}, "additionalProperties": False}
    result = written(NEW, tools=tools)
    first, second = json.loads(result.body)["tools"]
    assert (first["input_schema"], first["strict"]) == ({**schema, "properties": {"in": closed}}, True)
    assert second == {"name": "b", "input_schema": map_}
    assert result.dropped == ("tools[].function.strict",)


def strict_tools(count: int, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    schema = {"type": "object", "properties": parameters, "required": ["a"], "additionalProperties": False}
    return [
        {"type": "function", "function": {"name": f"f{number}", "parameters": schema, "strict": True}}
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("tools", "strict"),
    [
        (strict_tools(20, {"a": {"type": "string"}}), True),
        (strict_tools(21, {"a": {"type": "string"}}), False),
        (strict_tools(12, {"a": {"type": "string"}, "b": {}, "c": {}}), True),
        (strict_tools(13, {"a": {"type": "string"}, "b": {}, "c": {}}), False),
        (strict_tools(16, {"a": {"type": ["string", "null"]}}), True),
        (strict_tools(17, {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}), False),
    ],
)
def test_more_strict_schemas_than_the_api_takes_are_not_held_to(tools: list[dict[str, Any]], strict: bool) -> None:
    """SDKs mark every tool as strict; the API would refuse the whole request."""
    result = written(NEW, tools=tools)
    assert {tool.get("strict", False) for tool in json.loads(result.body)["tools"]} == {strict}
    assert result.dropped == (() if strict else ("tools[].function.strict",))


def test_an_answer_of_more_than_the_api_takes_has_the_stand_in_tool() -> None:
    schema = {"type": "object", "properties": {f"k{number}": {"type": "string"} for number in range(25)}}
    wish = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert written(NEW, response_format=wish).unwrap == JSON_TOOL
    wish["json_schema"]["schema"]["required"] = ["k0"]  # type: ignore[index]
    assert written(NEW, response_format=wish).unwrap is None
    both = written(NEW, response_format=wish, tools=strict_tools(1, {"a": {}, "b": {}}))
    assert (both.unwrap, both.dropped) == (None, ("tools[].function.strict",))


def test_a_history_with_calls_brings_its_tools_along() -> None:
    """OpenAI takes such a request without tools, Anthropic does not; no tools means no further calls."""
    body = sent(messages=[USER, CALLING, RESULT, CALLING, RESULT])
    assert body["tools"] == [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]
    assert body["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "required"}, {"type": "any", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
    ],
)
def test_tool_choice(fields: dict[str, Any], choice: Any) -> None:
    assert sent(tools=[TOOL], **fields).get("tool_choice") == choice


UNFORCED = msgspec.structs.replace(NEW, forced_calls=False)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_call_cannot_be_forced_on_every_model(choice: Any) -> None:
    with pytest.raises(GatewayError) as caught:
        written(UNFORCED, tools=[TOOL], tool_choice=choice)
    assert (caught.value.kind, caught.value.param) == ("unsupported_parameter", "tool_choice")
    assert sent(UNFORCED, tools=[TOOL], tool_choice="auto")["tool_choice"] == {"type": "auto"}


def test_a_map_is_asked_for_in_words_where_no_call_can_be_forced() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "string"}}
    wish = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    result = written(UNFORCED, response_format=wish)
    body = json.loads(result.body)
    assert (result.unwrap, "tools" in body, "output_config" in body) == (None, False, False)
    assert body["system"][-1]["text"].endswith('must fit this JSON Schema: {"type":"object","additionalProperties":'
                                               '{"type":"string"}}')  # fmt: skip


def test_a_tool_choice_without_tools_is_not_sent() -> None:
    assert "tool_choice" not in sent(tool_choice="auto", parallel_tool_calls=False)


def test_allowed_tools_narrow_the_list() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    body = sent(tools=[TOOL, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert [tool["name"] for tool in body["tools"]] == ["g"]
    assert body["tool_choice"] == {"type": "any"}


# -- thinking and sampling --

EFFORTS = [
    (NEW, "none", {"type": "disabled"}, None),
    (NEW, "minimal", {"type": "adaptive"}, "low"),
    (NEW, "xhigh", {"type": "adaptive"}, "xhigh"),
    (Capabilities(1, thinking=("adaptive",), efforts=("low", "high")), "xhigh", {"type": "adaptive"}, "high"),
    (Capabilities(1, thinking=("adaptive",), efforts=("low", "high")), "none", None, "low"),
    (OLD, "low", {"type": "enabled", "budget_tokens": 1024}, None),
    (OLD, "high", {"type": "enabled", "budget_tokens": 4096}, None),
    (OLD, "none", None, None),
]


@pytest.mark.parametrize(("capabilities", "effort", "thinking", "level"), EFFORTS)
def test_reasoning_effort(capabilities: Capabilities, effort: str, thinking: Any, level: Any) -> None:
    body = sent(capabilities, reasoning_effort=effort)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == level


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({"max_tokens": 4000}, 2000),
        ({"max_tokens": 1500}, 1024),
        ({"max_tokens": 1024}, None),
        ({"tools": [TOOL], "tool_choice": "required"}, None),
        ({"tools": [TOOL], "messages": [USER, CALLING, RESULT]}, None),
    ],
)
def test_a_budget_fits_or_is_left_out_by_name(fields: dict[str, Any], budget: int | None) -> None:
    result = written(OLD, reasoning_effort="high", **fields)
    assert json.loads(result.body).get("thinking", {}).get("budget_tokens") == budget
    assert result.dropped == (() if budget else ("reasoning_effort",))


@pytest.mark.parametrize(
    ("capabilities", "fields", "temperature", "top_p", "dropped"),
    [
        (OLD, {"temperature": 1.7}, 1.0, None, ()),
        (OLD, {"top_p": 0.5}, None, 0.5, ()),
        (OLD, {"temperature": 0, "top_p": 0.5}, 0.0, None, ("top_p",)),
        (OLD, {"temperature": 0.3, "reasoning_effort": "low"}, None, None, ("temperature",)),
        (NEW, {"temperature": 0.3, "top_p": 1}, None, None, ("temperature", "top_p")),
    ],
)
def test_sampling(capabilities: Capabilities, fields: Any, temperature: Any, top_p: Any, dropped: Any) -> None:
    result = written(capabilities, **fields)
    body = json.loads(result.body)
    assert (body.get("temperature"), body.get("top_p"), result.dropped) == (temperature, top_p, dropped)


# -- JSON answers --

SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 1, "description": "years"},
        "who": {"oneOf": [{"type": "string"}]},
    },
    "required": ["age"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}


def test_a_schema_becomes_structured_output_within_the_supported_part() -> None:
    result = written(NEW, response_format=FORMAT, reasoning_effort="low")
    config = json.loads(result.body)["output_config"]
    assert config["effort"] == "low"
    assert config["format"]["schema"] == {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "description": "years\n\n{minimum: 1}"},
            "who": {"anyOf": [{"type": "string"}]},
        },
        "required": ["age"],
        "additionalProperties": False,
    }
    assert result.unwrap is None


@pytest.mark.parametrize(
    ("fields", "choice"),
    [({}, {"type": "tool", "name": JSON_TOOL}), ({"tools": [TOOL]}, {"type": "any"})],
)
def test_a_schema_becomes_a_tool_where_the_model_has_no_structured_output(fields: Any, choice: Any) -> None:
    result = written(BARE, response_format=FORMAT, **fields)
    body = json.loads(result.body)
    assert body["tools"][-1]["name"] == result.unwrap == JSON_TOOL
    assert body["tools"][-1]["input_schema"] == SCHEMA
    assert body["tool_choice"] == choice


@pytest.mark.parametrize(
    ("schema", "is_map"),
    [
        ({"type": "object"}, True),
        ({"type": "object", "additionalProperties": {"type": "string"}}, True),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, True),
        ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^x": {}}}, True),
        ({"$defs": {"m": {"type": ["object", "null"]}}, "$ref": "#/$defs/m"}, True),
        ({"anyOf": [{"type": "array", "items": {"type": "object"}}]}, True),
        ({"type": "object", "properties": {"a": {}}}, False),
        ({"type": "object", "additionalProperties": False}, False),
        ({"type": "object", "properties": {"additionalProperties": {"enum": [{"type": "object"}]}}}, False),
    ],
)
def test_a_map_would_come_back_empty_and_has_the_stand_in_tool(schema: dict[str, Any], is_map: bool) -> None:
    wish = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    result = written(NEW, response_format=wish)
    assert (result.unwrap, "output_config" in json.loads(result.body)) == (JSON_TOOL if is_map else None, not is_map)


def test_a_json_object_is_asked_for_in_words() -> None:
    body = sent(response_format={"type": "json_object"}, messages=[SYSTEM, USER])
    assert body["system"][0]["text"] == "s"
    assert "JSON object" in body["system"][1]["text"]
    assert "system" not in sent(response_format={"type": "text"})


@pytest.mark.parametrize(("value", "wants"), [(FORMAT, True), ({"type": "text"}, False), (None, False), (5, False)])
def test_whether_a_schema_is_wanted_is_told_without_reading_the_rest(value: Any, wants: bool) -> None:
    ask = openai_chat.read(json.dumps({"messages": [USER], "response_format": value}).encode())
    assert (schema_wanted(ask) is not None) is wants


# -- the rest --


def test_stop_user_and_service_tier() -> None:
    body = sent(stop=["a", " \n"], user="u", safety_identifier="s", service_tier="default")
    assert body["stop_sequences"] == ["a"]
    assert body["metadata"] == {"user_id": "s"}
    assert body["service_tier"] == "standard_only"
    assert sent(stop="x")["stop_sequences"] == ["x"]
    assert sent(metadata={"user_id": "m", "tenant": "t"})["metadata"] == {"user_id": "m"}


def test_hints_are_left_out_by_name() -> None:
    result = written(
        seed=1, logit_bias={"1": 2}, presence_penalty=0.5, frequency_penalty=0, store=False, verbosity="low",
        service_tier="flex", user="u" * 300, brand_new_field={"x": 1}, logprobs=False, n=1, modalities=["text"],
    )  # fmt: skip
    assert written(seed=0).dropped == ("seed",)
    assert written(metadata={"tenant": "t", "use_case": "u", "user_id": "m"}).dropped == ()
    assert written(metadata={"tenant": "t", "mine": "x"}).dropped == ("metadata",)
    named = [{"role": "user", "content": [PNG, PNG], "name": "Bob"}, {"role": "user", "content": [WEB], "name": "Al"}]
    assert written(messages=named).dropped == ("messages[].name", "messages[].content[].image_url.detail")
    expected = {"seed", "logit_bias", "presence_penalty", "verbosity", "brand_new_field", "service_tier", "user"}
    assert set(result.dropped) == expected
    assert set(json.loads(result.body)) == {"model", "max_tokens", "messages"}


UNSUPPORTED = [
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
     "messages[0].content[0].file.file_id"),
    ({"messages": [USER, {"role": "assistant", "audio": {"id": "x"}}]}, "messages[1].audio"),
    ({"messages": [USER, CALLING, {**RESULT, "content": [PNG]}]}, "messages[2].content[0]"),
    ({"messages": [USER, {"role": "function", "name": "f", "content": "x"}]}, "messages[1].role"),
]  # fmt: skip
INVALID = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"stop": 5}, "stop"),
    ({"tools": {}}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "zz"}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"reasoning_effort": []}, "reasoning_effort"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]},
     "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
    ({"messages": [{**SYSTEM, "content": " "}]}, "messages"),
    ({"messages": [USER, CALLING, USER]}, "messages"),
    ({"messages": [USER, CALLING]}, "messages"),
    ({"messages": [USER, RESULT]}, "messages"),
    ({"messages": [USER, CALLING, RESULT, {**RESULT, "tool_call_id": "c9"}]}, "messages"),
    ({"messages": [USER, {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{x"}}]}, RESULT]},
     "messages[1].tool_calls[0].function.arguments"),
    ({"messages": [USER, {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[1]"}}]}, RESULT]},
     "messages[1].tool_calls[0].function.arguments"),
    ({"messages": [USER, {**CALLING, "tool_calls": [{**CALL, "id": 5}]}, RESULT]}, "messages[1].tool_calls[0].id"),
    ({"messages": [USER, {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}, RESULT]},
     "messages[1].tool_calls[0].function.arguments"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"messages": [USER] * 100_001}, "messages"),
]  # fmt: skip


MANY = 8000
MANY_CALLS = [{**CALL, "id": f"c{number}"} for number in range(MANY)]
MANY_RESULTS = [{**RESULT, "tool_call_id": f"c{number}"} for number in range(MANY)]
MANY_TOOLS = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(MANY)]
LAST_TOOL = {"mode": "auto", "tools": MANY_TOOLS[-1:] * MANY}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, {**CALLING, "tool_calls": MANY_CALLS}, *MANY_RESULTS]},
        {"messages": [USER, *[SYSTEM] * MANY]},
        {"tools": MANY_TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": LAST_TOOL}},
        {"messages": [{"role": "user", "content": [{**PNG, "image_url": {"url": "data:" + ";" * 1_000_000}}, "x"]}]},
    ],
)
def test_no_request_costs_more_than_its_length(fields: dict[str, Any]) -> None:
    """With the square of it, each of these held up a worker for seconds."""
    started_s = time.process_time()
    with suppress(GatewayError):
        written(NEW, **fields)
    assert time.process_time() - started_s < 2


def test_a_schema_too_deep_is_a_400() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    for fields in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": deep}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep, "strict": True}}]},
    ):
        with pytest.raises(GatewayError, match="nested too deeply"):
            written(NEW, **fields)


@pytest.mark.parametrize(("fields", "param"), [*UNSUPPORTED, *INVALID])
def test_what_cannot_be_carried_or_read_is_a_400_that_names_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(GatewayError) as caught:
        written(OLD, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert (caught.value.kind == "unsupported_parameter") == ((fields, param) in UNSUPPORTED)
