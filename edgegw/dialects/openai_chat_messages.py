"""The messages of an OpenAI Chat Completions request as turns of the neutral form."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

import msgspec

from edgegw.dialects.chat import Block, Document, Image, SealedThinking, Text, Thinking, ToolCall, ToolResult, Turn
from edgegw.dialects.complaints import unsupported, wrong_type, wrong_value

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])

# As many as Anthropic takes; each costs a worker about 20 us.
MESSAGES_MAX = 100_000
# OpenRouter names whose seal it is; what was sealed by another provider this one refuses.
_OWN_FORMAT = "anthropic"
_DATA_URL_HEAD = re.compile(r"data:([^;,]*)(?:;[^;,]*)*;base64\Z", re.IGNORECASE)
_DATA_URL_HEAD_CHARS_MAX = 256  # a media type with its parameters


def read_turns(messages: list[dict[str, Any]]) -> list[Turn]:
    """The conversation. `messages` are objects with a role, as openai_chat.read has made sure.

    Raises GatewayError: unsupported_parameter for a part that has no neutral form, invalid_* for what cannot be read.
    """
    if len(messages) > MESSAGES_MAX:
        raise wrong_value("messages", f"must be at most {MESSAGES_MAX}")
    turns = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        role = message["role"]
        read = _ROLES.get(role)
        if read is None and role == "function":
            raise unsupported(f"{path}.role", ": results of functions go into messages of the role tool")
        if read is None:
            raise wrong_value(f"{path}.role", "is none that is known")
        turn = read(message, path)
        mark = cache_mark(message)
        if mark and turn.blocks and not isinstance(turn.blocks[-1], Thinking | SealedThinking):
            turn.blocks[-1].cache = turn.blocks[-1].cache or mark
        turns.append(turn)
    return turns


def unsaid(messages: list[dict[str, Any]]) -> list[str]:
    """What messages say that has no neutral form and changes no meaning: each kind once."""
    found = dict[str, None]()
    for message in messages:
        if message.get("name"):
            found["messages[].name"] = None
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            image = part.get("image_url") if isinstance(part, dict) else None
            if isinstance(image, dict) and image.get("detail") not in (None, "auto"):
                found["messages[].content[].image_url.detail"] = None
    return list(found)


def _system(message: dict[str, Any], path: str) -> Turn:
    return Turn("system", list(_texts(message.get("content"), f"{path}.content")), path)


def _user_turn(message: dict[str, Any], path: str) -> Turn:
    return Turn("user", _parts(message.get("content"), f"{path}.content"), path)


def _assistant(message: dict[str, Any], path: str) -> Turn:
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise unsupported(f"{path}.{name}")
    content = message.get("content")
    thoughts: Any = message.get("reasoning_details") or message.get("thinking_blocks")
    if isinstance(content, list):  # Mistral, and clients with Anthropic's blocks, have them among the parts
        thoughts = thoughts or [part for part in content if _is_thought(part)]
        content = [part for part in content if not _is_thought(part)]
    blocks: list[Block] = _thoughts(thoughts)
    if content is not None:
        blocks += _texts(content, f"{path}.content")
    if isinstance(message.get("refusal"), str):
        blocks.append(Text(message["refusal"]))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise wrong_type(f"{path}.tool_calls", "an array")
    blocks += [_tool_call(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return Turn("assistant", blocks, path)


def _tool_turn(message: dict[str, Any], path: str) -> Turn:
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or not call_id:
        raise wrong_type(f"{path}.tool_call_id", "a string that is not empty")
    content = _texts(message.get("content"), f"{path}.content")
    marks = [text.cache for text in content if text.cache]
    return Turn("user", [ToolResult(call_id, content, marks[-1] if marks else None)], path)


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
        raise unsupported(path, ": only function calls can")
    id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if not isinstance(id, str) or not id:
        raise wrong_type(f"{path}.id", "a string that is not empty")
    if not isinstance(name, str) or not name:
        raise wrong_type(f"{path}.function.name", "a string that is not empty")
    if not isinstance(arguments, str | None):
        raise wrong_type(f"{path}.function.arguments", "a string")
    text = (arguments or "").strip() or "{}"
    try:
        _OBJECT.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise wrong_value(f"{path}.function.arguments", "must be a JSON object, as text") from None
    return ToolCall(id, name, msgspec.Raw(text.encode()), cache_mark(call))


def _is_thought(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("thinking", "redacted_thinking")


def _thoughts(entries: Any) -> list[Block]:
    """Reasoning that came with an earlier answer and is handed back: as we sent it, or in Anthropic's own blocks. What
    nobody has signed is left out: no provider would take it for its own."""
    found: list[Block] = []
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not str(entry.get("format") or _OWN_FORMAT).startswith(_OWN_FORMAT):
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
        raise wrong_type(path, "a string or an array of parts")
    found = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise unsupported(f"{path}[{index}]", ": only text parts can stand here")
        found.append(Text(text, cache_mark(part)))
    return found


def _parts(content: Any, path: str) -> list[Block]:
    if isinstance(content, str):
        return [Text(content)]
    if not isinstance(content, list):
        raise wrong_type(path, "a string or an array of parts")
    found: list[Block] = []
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        read = _PARTS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise unsupported(where, f": parts of type {kind!r:.40}" if kind else "")
        found.append(read(part, where))
    return found


def _text_part(part: dict[str, Any], path: str) -> Block:
    if not isinstance(part.get("text"), str):
        raise wrong_type(f"{path}.text", "a string")
    return Text(part["text"], cache_mark(part))


def _image_part(part: dict[str, Any], path: str) -> Block:
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise wrong_type(f"{path}.image_url.url", "a string")
    if url[:8].lower().startswith(("http://", "https://")):
        return Image(url=url, cache=cache_mark(part))
    media_type, data = _data_url(url, f"{path}.image_url.url")
    return Image(media_type.replace("image/jpg", "image/jpeg"), data, cache=cache_mark(part))


def _file_part(part: dict[str, Any], path: str) -> Block:
    file = part.get("file")
    if not isinstance(file, dict):
        raise wrong_type(f"{path}.file", "an object")
    if file.get("file_id") is not None:
        raise unsupported(f"{path}.file.file_id", ": its files are others")
    data_url, title = file.get("file_data"), file.get("filename")
    if not isinstance(data_url, str):
        raise wrong_type(f"{path}.file.file_data", "a string")
    media_type, data = _data_url(data_url, f"{path}.file.file_data")
    if media_type == "application/pdf":
        return Document(media_type, data, title=title if isinstance(title, str) else None, cache=cache_mark(part))
    if not media_type.startswith("text/"):
        raise unsupported(f"{path}.file.file_data", f": files of type {media_type!r:.40}")
    try:
        text = base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise wrong_value(f"{path}.file.file_data", "is not base64 of UTF-8 text") from None
    return Document(media_type, text=text, title=title if isinstance(title, str) else None, cache=cache_mark(part))


_PARTS: dict[str, Callable[[dict[str, Any], str], Block]] = {
    "text": _text_part,
    "image_url": _image_part,
    "file": _file_part,
}


def _data_url(url: str, path: str) -> tuple[str, str]:
    comma = url.find(",", 0, _DATA_URL_HEAD_CHARS_MAX)
    match = None if comma < 0 else _DATA_URL_HEAD.match(url[:comma])
    if match is None:
        raise wrong_value(path, "must be a data: URL with base64")
    return match[1].lower(), url[comma + 1 :]


def cache_mark(part: dict[str, Any]) -> str | None:
    """How long a part asks to be cached: OpenAI's own breakpoint, or Anthropic's as many clients send it."""
    mark = part.get("cache_control") or part.get("prompt_cache_breakpoint")
    if not isinstance(mark, dict):
        return None
    return "1h" if mark.get("ttl") in ("1h", "12h", "24h") else "5m"
