"""From an OpenAI Chat Completions request to the neutral form, for providers of another dialect.

Fields fall into three kinds (research: wire formats, 2.1): those with a neutral form; those that would change what the
client gets if they were left out, which are refused by name; and hints, which are left out and named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from edgegw.dialects.base import Ask
from edgegw.dialects.chat import JSONAnswer, Request, Tool, ToolChoice
from edgegw.dialects.complaints import unsupported, wrong_type, wrong_value
from edgegw.dialects.openai_chat_messages import cache_mark, read_turns, unsaid

_Value = TypeVar("_Value")


class _JSONSchema(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw()


class _JSONWish(msgspec.Struct):
    type: str | None = None
    json_schema: _JSONSchema | None = None


_JSON_WISH = msgspec.json.Decoder(_JSONWish | None)
_ANYTHING = msgspec.json.Decoder()
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])

# Values that ask for nothing: leaving them out loses nothing, so nobody is told. (A seed of 0 is a seed.)
_IDLE: tuple[Any, ...] = (None, False, 0, "", [], {})
_NEVER_IDLE = frozenset({"seed"})

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

# Fields that have a neutral form, or are the gateway's own business.
CARRIED = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_p",
        "user",
    }
)
# Our own labels, and what is read as the user.
_METADATA_READ = frozenset({"tenant", "use_case", "user_id"})
# Fields whose loss a client would notice in the answer, and when they ask for something.
SEMANTIC: dict[str, Callable[[Any], bool]] = {
    "audio": lambda value: value not in _IDLE,
    "function_call": lambda value: value not in _IDLE,
    "functions": lambda value: value not in _IDLE,
    "logprobs": lambda value: value not in _IDLE,
    "modalities": lambda value: value not in _IDLE and value != ["text"],
    "moderation": lambda value: value not in _IDLE,
    "n": lambda value: value not in (None, 1),
    "prediction": lambda value: value not in _IDLE,
    "top_logprobs": lambda value: value not in _IDLE,
    "web_search_options": lambda value: value is not None,
}


def to_neutral(ask: Ask) -> Request:
    """Raises GatewayError: unsupported_parameter for what cannot be carried, invalid_* for what cannot be read."""
    fields = ask.fields
    messages = _decode(_ANYTHING, fields["messages"], "messages")
    request = Request(
        turns=read_turns(messages),
        stream=ask.stream,
        max_output_tokens=ask.max_output_tokens,
    )
    request.temperature = _number(fields, "temperature")
    request.top_p = _number(fields, "top_p")
    request.stop = _stop(_plain(fields, "stop"))
    request.tools = _tools(fields)
    request.tool_choice = _tool_choice(_plain(fields, "tool_choice"), request)
    request.parallel_tool_calls = _plain(fields, "parallel_tool_calls") is not False
    request.json_answer = _json_answer(fields)
    request.effort = _effort(_plain(fields, "reasoning_effort"))
    request.user = _user(fields)
    request.service_tier = _text_or_none(_plain(fields, "service_tier"))
    request.hints = [*_hints(fields), *unsaid(messages)]
    if not ask.only_labels and set(_plain(fields, "metadata") or ()) - _METADATA_READ:
        request.hints.append("metadata")
    return request


def schema_wanted(ask: Ask) -> msgspec.Raw | None:
    """What `to_neutral(ask)` has as `json_answer.schema`, without reading the rest."""
    value = ask.fields.get("response_format")
    try:
        wish: _JSONWish | None = None if value is None else _JSON_WISH.decode(value)
    except msgspec.ValidationError:
        return None
    if wish is None or wish.type != "json_schema" or wish.json_schema is None:
        return None
    return wish.json_schema.schema or None


def _hints(fields: dict[str, msgspec.Raw]) -> list[str]:
    """The fields to leave out; refuses those that must not be."""
    hints = []
    for name in fields:
        if name in CARRIED:
            continue
        value = _plain(fields, name)
        asks = SEMANTIC.get(name)
        if asks is None:
            if value is not None and (value not in _IDLE or name in _NEVER_IDLE):
                hints.append(name)
        elif asks(value):
            raise unsupported(name)
    return hints


def _plain(fields: dict[str, msgspec.Raw], name: str) -> Any:
    """A field's value, None when it is missing."""
    value = fields.get(name)
    return None if value is None else _decode(_ANYTHING, value, name)


def _decode(decoder: msgspec.json.Decoder[_Value], value: msgspec.Raw, name: str) -> _Value:
    try:
        return decoder.decode(value)
    except msgspec.DecodeError:
        raise wrong_value(name, "cannot be read") from None


def _number(fields: dict[str, msgspec.Raw], name: str) -> float | None:
    value = _plain(fields, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(name, "a number")
    return float(value)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _stop(value: object) -> list[str]:
    if value is None:
        return []
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise wrong_type("stop", "a string or an array of strings")
    return words


def _effort(value: object) -> str | None:
    if value is None or value in _EFFORTS:
        return value if isinstance(value, str) else None
    raise wrong_value("reasoning_effort", "must be one of " + ", ".join(_EFFORTS))


def _user(fields: dict[str, msgspec.Raw]) -> str | None:
    metadata = _plain(fields, "metadata") or {}
    for value in (_plain(fields, "safety_identifier"), _plain(fields, "user"), metadata.get("user_id")):
        if isinstance(value, str) and value:
            return value
    return None


def _json_answer(fields: dict[str, msgspec.Raw]) -> JSONAnswer | None:
    value = _plain(fields, "response_format")
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return JSONAnswer()
    if kind != "json_schema":
        raise wrong_value("response_format.type", "must be text, json_object or json_schema")
    inner = value.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise wrong_type("response_format.json_schema.schema", "an object")
    return JSONAnswer(msgspec.Raw(msgspec.json.encode(schema)))


def _tools(fields: dict[str, msgspec.Raw]) -> list[Tool]:
    value = fields.get("tools")
    if value is None or value == msgspec.Raw(b"null"):
        return []
    try:
        entries = _RAW_LIST.decode(value)
    except msgspec.ValidationError:
        raise wrong_type("tools", "an array") from None
    return [_tool(entry, f"tools[{index}]") for index, entry in enumerate(entries)]


def _tool(entry: msgspec.Raw, path: str) -> Tool:
    tool = _decode(_ANYTHING, entry, path)
    if not isinstance(tool, dict):
        raise wrong_type(path, "an object")
    if tool.get("type") != "function":
        raise unsupported(f"{path}.type", ": only function tools can")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise wrong_type(f"{path}.function", "an object")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise wrong_type(f"{path}.function.name", "a string that is not empty")
    raw_function = _RAW_OBJECT.decode(_RAW_OBJECT.decode(entry)["function"])
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise wrong_type(f"{path}.function.parameters", "an object")
    return Tool(
        name=name,
        description=_text_or_none(function.get("description")),
        schema=raw_function["parameters"] if schema else None,
        strict=function.get("strict") is True,
        cache=cache_mark(tool) or cache_mark(function),
    )


def _tool_choice(value: Any, request: Request) -> ToolChoice | None:
    """Also narrows the request's tools where the choice allows only some."""
    modes = {"auto": ToolChoice("auto"), "none": ToolChoice("none"), "required": ToolChoice("any")}
    if value is None:
        return None
    if value == "required" and not request.tools:
        raise wrong_value("tool_choice", "asks for a call, and there are no 'tools'")
    if isinstance(value, str) and value in modes:
        return modes[value]
    kind = value.get("type") if isinstance(value, dict) else None
    known = {tool.name for tool in request.tools}
    if kind == "function" and isinstance(value.get("function"), dict):
        return ToolChoice("named", _one_of(known, value["function"].get("name")))
    allowed = value.get("allowed_tools", value) if kind == "allowed_tools" else None
    if isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
        functions = [entry.get("function") for entry in allowed["tools"] if isinstance(entry, dict)]
        names = {_one_of(known, function.get("name")) for function in functions if isinstance(function, dict)}
        request.tools = [tool for tool in request.tools if tool.name in names]
        return modes["required" if allowed.get("mode") == "required" else "auto"]
    raise wrong_value("tool_choice", "is none that is known")


def _one_of(known: set[str], name: object) -> str:
    if not isinstance(name, str) or name not in known:
        raise wrong_value("tool_choice", "names a tool that is not in 'tools'")
    return name
