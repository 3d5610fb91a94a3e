"""Content as people read it: a stream becomes the plain reply that it amounts to. Pure."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec

from edgegw.content.record import Content
from edgegw.http.sse import EventTooLongError, Splitter, data_of

DONE = b"[DONE]"
_decode = msgspec.json.Decoder().decode
# Fields of a delta whose pieces make up one text.
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")


def request_text(content: Content) -> str:
    return _readable(content.request)


def reply_text(content: Content) -> str:
    """What the client was answered. A stream of a dialect that we cannot put together is shown as it was sent."""
    reply = content.reply
    if not content.stream or content.dialect != "openai_chat" or reply[:1] in (b"{", b""):
        return _readable(reply)
    try:
        return _pretty(put_together(reply))
    except (AttributeError, KeyError, TypeError):  # chunks of a shape that nobody knows
        return _readable(reply)


def put_together(stream: bytes) -> dict[str, Any]:
    """A chat completion from the chunks of an OpenAI Chat stream, as far as it goes: what is cut is left out. `error`
    holds the error event, if there was one. Raises AttributeError, KeyError or TypeError for what is not such a stream.
    """
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in _chunks(stream):
        for key in ("id", "model", "usage", "error"):
            if chunk.get(key) is not None:
                whole[key] = chunk[key]
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            choice = choices.setdefault(index, {"index": index, "message": {}, "finish_reason": None})
            _add(choice["message"], part.get("delta") or {})
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
    return {**whole, "choices": [choices[index] for index in sorted(choices)]}


def _chunks(stream: bytes) -> list[dict[str, Any]]:
    try:
        events = Splitter().feed(stream)
    except EventTooLongError:
        return []
    found: list[dict[str, Any]] = []
    for event in events:
        data = data_of(event)
        if data is None or data == DONE:
            continue
        try:
            chunk = _decode(data)
        except msgspec.DecodeError:  # it may hold half a surrogate pair, which is JSON
            with suppress(ValueError):
                found.append(json.loads(data))
        else:
            found.append(chunk)
    return [chunk for chunk in found if isinstance(chunk, dict)]


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key in _TEXTS and isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        elif key == "tool_calls" and isinstance(value, list):
            _add_calls(message.setdefault("tool_calls", []), value)
        elif value is not None:
            message[key] = value


def _add_calls(calls: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    """A call begins with an index, an id and a name; the pieces of its arguments follow under that index."""
    for part in parts:
        call = next((call for call in calls if call["index"] == part.get("index", 0)), None)
        if call is None:
            call = {"index": part.get("index", 0), "function": {"arguments": ""}}
            calls.append(call)
        call.update({key: value for key, value in part.items() if key not in ("index", "function")})
        function = part.get("function") or {}
        call["function"]["arguments"] += function.get("arguments") or ""
        if function.get("name"):
            call["function"]["name"] = function["name"]


def _readable(body: bytes) -> str:
    """JSON with line breaks; anything else, and what is cut, as it is."""
    try:
        return _pretty(json.loads(body))
    except ValueError:
        return body.decode("utf-8", "replace")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
