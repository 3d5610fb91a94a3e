"""From an OpenAI Chat Completions request to the neutral form, for providers of another dialect.

Fields fall into three kinds (research: wire formats, 2.1): those with a neutral form; those that would change what the
client gets if they were left out, which are refused by name; and hints, which are left out and named.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from edgegw.dialects.base import Ask
from edgegw.dialects.chat import (
    Block,
    Document,
    Image,
    JSONAnswer,
    Request,
    SealedThinking,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from edgegw.errors import GatewayError

_Value = TypeVar("_Value")

_ANYTHING = msgspec.json.Decoder()
_RAW_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])

_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^;,]*)*;base64,", re.IGNORECASE)
# Values that ask for nothing: leaving them out loses nothing, so nobody is told.
_IDLE = (None, False, 0, "", [], {})

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

# Fields that have a neutral form, or are the gateway's own business.
_READ = frozenset(
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
# Fields whose loss a client would notice in the answer, and when they ask for something.
_SEMANTIC: dict[str, Callable[[Any], bool]] = {
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
    request = Request(turns=_turns(fields["messages"]), stream=ask.stream, max_output_tokens=ask.max_output_tokens)
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
    request.hints = _hints(fields)
    return request


def _hints(fields: dict[str, msgspec.Raw]) -> list[str]:
    """The fields to leave out; refuses those that must not be."""
    hints = []
    for name in fields:
        if name in _READ:
            continue
        value = _plain(fields, name)
        asks = _SEMANTIC.get(name)
        if asks is None:
            if value not in _IDLE:
                hints.append(name)
        elif asks(value):
            raise _unsupported(name)
    return hints


def _unsupported(name: str, reason: str = "") -> GatewayError:
    message = f"'{name}' cannot be carried to the provider of this model{reason}."
    return GatewayError("unsupported_parameter", message, param=name)


def _wrong_type(name: str, wanted: str) -> GatewayError:
    return GatewayError("invalid_type", f"'{name}' must be {wanted}.", param=name)


def _plain(fields: dict[str, msgspec.Raw], name: str) -> Any:
    """A field's value, None when it is missing."""
    value = fields.get(name)
    return None if value is None else _decode(_ANYTHING, value, name)


def _decode(decoder: msgspec.json.Decoder[_Value], value: msgspec.Raw, name: str) -> _Value:
    try:
        return decoder.decode(value)
    except msgspec.DecodeError:
        raise GatewayError("invalid_value", f"'{name}' cannot be read.", param=name) from None


def _number(fields: dict[str, msgspec.Raw], name: str) -> float | None:
    value = _plain(fields, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number")
    return float(value)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _stop(value: object) -> list[str]:
    if value is None:
        return []
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _wrong_type("stop", "a string or an array of strings")
    return words


def _effort(value: object) -> str | None:
    if value is None or value in _EFFORTS:
        return value if isinstance(value, str) else None
    wanted = ", ".join(_EFFORTS)
    raise GatewayError("invalid_value", f"'reasoning_effort' must be one of {wanted}.", param="reasoning_effort")


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
        raise GatewayError(
            "invalid_value", "'response_format.type' must be text, json_object or json_schema.", param="response_format"
        )
    inner = value.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise _wrong_type("response_format.json_schema.schema", "an object")
    return JSONAnswer(msgspec.Raw(msgspec.json.encode(schema)))


# -- tools --


def _tools(fields: dict[str, msgspec.Raw]) -> list[Tool]:
    value = fields.get("tools")
    if value is None or value == msgspec.Raw(b"null"):
        return []
    try:
        entries = _RAW_LIST.decode(value)
    except msgspec.ValidationError:
        raise _wrong_type("tools", "an array") from None
    return [_tool(entry, f"tools[{index}]") for index, entry in enumerate(entries)]


def _tool(entry: msgspec.Raw, path: str) -> Tool:
    tool = _decode(_ANYTHING, entry, path)
    if not isinstance(tool, dict):
        raise _wrong_type(path, "an object")
    if tool.get("type") != "function":
        raise _unsupported(f"{path}.type", ": only function tools can")
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise _wrong_type(f"{path}.function.name", "a string that is not empty")
    raw_function = _RAW_OBJECT.decode(_RAW_OBJECT.decode(entry)["function"])
    schema = function.get("parameters")
    if schema is not None and not isinstance(schema, dict):
        raise _wrong_type(f"{path}.function.parameters", "an object")
    return Tool(
        name=name,
        description=_text_or_none(function.get("description")),
        schema=raw_function["parameters"] if schema else None,
        strict=function.get("strict") is True,
        cache=_cache(tool) or _cache(function),
    )


def _tool_choice(value: Any, request: Request) -> ToolChoice | None:
    """Also narrows the request's tools where the choice allows only some."""
    modes = {"auto": ToolChoice("auto"), "none": ToolChoice("none"), "required": ToolChoice("any")}
    if value is None:
        return None
    if isinstance(value, str) and value in modes:
        return modes[value]
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function" and isinstance(value.get("function"), dict):
        return ToolChoice("named", _known_tool(value["function"].get("name"), request))
    allowed = value.get("allowed_tools", value) if kind == "allowed_tools" else None
    if isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
        functions = [entry.get("function") for entry in allowed["tools"] if isinstance(entry, dict)]
        names = {_known_tool(function.get("name"), request) for function in functions if isinstance(function, dict)}
        request.tools = [tool for tool in request.tools if tool.name in names]
        return modes["required" if allowed.get("mode") == "required" else "auto"]
    raise GatewayError("invalid_value", "'tool_choice' is none that is known.", param="tool_choice")


def _known_tool(name: object, request: Request) -> str:
    if not isinstance(name, str) or all(tool.name != name for tool in request.tools):
        raise GatewayError("invalid_value", "'tool_choice' names a tool that is not in 'tools'.", param="tool_choice")
    return name


# -- messages --


def _turns(messages: msgspec.Raw) -> list[Turn]:
    turns = []
    for index, message in enumerate(_decode(_ANYTHING, messages, "messages")):
        path = f"messages[{index}]"
        read = _ROLES.get(message["role"])
        if read is None:
            raise GatewayError("invalid_value", f"'{path}.role' is none that can be carried.", param=f"{path}.role")
        turns.append(read(message, path))
    return turns


def _system(message: dict[str, Any], path: str) -> Turn:
    return Turn("system", list(_texts(message.get("content"), f"{path}.content")), path)


def _user_turn(message: dict[str, Any], path: str) -> Turn:
    return Turn("user", _parts(message.get("content"), f"{path}.content"), path)


def _assistant(message: dict[str, Any], path: str) -> Turn:
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise _unsupported(f"{path}.{name}")
    blocks: list[Block] = _thoughts(message)
    content = message.get("content")
    if content is not None:
        blocks += _texts(content, f"{path}.content")
    if isinstance(message.get("refusal"), str):
        blocks.append(Text(message["refusal"]))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise _wrong_type(f"{path}.tool_calls", "an array")
    blocks += [_tool_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return Turn("assistant", blocks, path)


def _tool_turn(message: dict[str, Any], path: str) -> Turn:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or not call_id:
        raise _wrong_type(f"{path}.tool_call_id", "a string that is not empty")
    content = _texts(message.get("content"), f"{path}.content")
    marks = [text.cache for text in content if text.cache]
    return Turn("user", [ToolResult(call_id, content, _cache(message) or (marks[-1] if marks else None))], path)


_ROLES: dict[str, Callable[[dict[str, Any], str], Turn]] = {
    "system": _system,
    "developer": _system,
    "user": _user_turn,
    "assistant": _assistant,
    "tool": _tool_turn,
}


def _tool_call(call: Any, path: str) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise _unsupported(path, ": only function calls can")
    id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    for value, field in ((id, "id"), (name, "function.name")):
        if not isinstance(value, str) or not value:
            raise _wrong_type(f"{path}.{field}", "a string that is not empty")
    text = (arguments if isinstance(arguments, str) else "").strip() or "{}"
    try:
        _RAW_OBJECT.decode(text)
    except (msgspec.DecodeError, RecursionError):
        where = f"{path}.function.arguments"
        raise GatewayError("invalid_value", f"'{where}' must be a JSON object, as text.", param=where) from None
    return ToolCall(id, name, msgspec.Raw(text.encode()), _cache(call))


def _thoughts(message: dict[str, Any]) -> list[Block]:
    """Reasoning that came with an earlier answer and is handed back: as we sent it, or in Anthropic's own blocks."""
    entries = message.get("reasoning_details") or message.get("thinking_blocks") or []
    found: list[Block] = []
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        text, signature, data = entry.get("text", entry.get("thinking")), entry.get("signature"), entry.get("data")
        if isinstance(data, str) and data:
            found.append(SealedThinking(data))
        elif isinstance(signature, str) and signature:
            found.append(Thinking(text if isinstance(text, str) else "", signature))
    return found


def _texts(content: Any, path: str) -> list[Text]:
    """Content of which only text is allowed (a refusal is text too)."""
    if isinstance(content, str):
        return [Text(content)]
    if not isinstance(content, list):
        raise _wrong_type(path, "a string or an array of parts")
    found = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise _unsupported(f"{path}[{index}]", ": only text parts can stand here")
        found.append(Text(text, _cache(part)))
    return found


def _parts(content: Any, path: str) -> list[Block]:
    if isinstance(content, str):
        return [Text(content)]
    if not isinstance(content, list):
        raise _wrong_type(path, "a string or an array of parts")
    found: list[Block] = []
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        read = _PARTS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise _unsupported(where, f": parts of type {kind!r:.40}" if kind else "")
        found.append(read(part, where))
    return found


def _text_part(part: dict[str, Any], path: str) -> Block:
    if not isinstance(part.get("text"), str):
        raise _wrong_type(f"{path}.text", "a string")
    return Text(part["text"], _cache(part))


def _image_part(part: dict[str, Any], path: str) -> Block:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise _wrong_type(f"{path}.image_url.url", "a string")
    if url.startswith(("http://", "https://")):
        return Image(url=url, cache=_cache(part))
    media_type, data = _data_url(url, f"{path}.image_url.url")
    return Image(media_type.replace("image/jpg", "image/jpeg"), data, cache=_cache(part))


def _file_part(part: dict[str, Any], path: str) -> Block:
    file = part.get("file")
    if not isinstance(file, dict):
        raise _wrong_type(f"{path}.file", "an object")
    if file.get("file_id") is not None:
        raise _unsupported(f"{path}.file.file_id", ": its files are others")
    data_url, title = file.get("file_data"), _text_or_none(file.get("filename"))
    if not isinstance(data_url, str):
        raise _wrong_type(f"{path}.file.file_data", "a string")
    media_type, data = _data_url(data_url, f"{path}.file.file_data")
    if media_type == "application/pdf":
        return Document(media_type, data, title=title, cache=_cache(part))
    if not media_type.startswith("text/"):
        raise _unsupported(f"{path}.file.file_data", f": files of type {media_type!r:.40}")
    try:
        text = base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        name = f"{path}.file.file_data"
        raise GatewayError("invalid_value", f"'{name}' is not base64 of UTF-8 text.", param=name) from None
    return Document(media_type, text=text, title=title, cache=_cache(part))


_PARTS: dict[str, Callable[[dict[str, Any], str], Block]] = {
    "text": _text_part,
    "image_url": _image_part,
    "file": _file_part,
}


def _data_url(url: str, path: str) -> tuple[str, str]:
    match = _DATA_URL.match(url)
    if match is None:
        raise GatewayError("invalid_value", f"'{path}' must be a data: URL with base64, or http(s).", param=path)
    return match[1].lower(), url[match.end() :]


def _cache(part: dict[str, Any]) -> str | None:
    """How long a part asks to be cached: OpenAI's own breakpoint, or Anthropic's as many clients send it."""
    mark = part.get("cache_control") or part.get("prompt_cache_breakpoint")
    if not isinstance(mark, dict):
        return None
    return "1h" if mark.get("ttl") in ("1h", "12h", "24h") else "5m"
