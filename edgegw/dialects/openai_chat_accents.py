"""Habits of providers that speak OpenAI's dialect nearly right, set right in the events that have them, and only there.

Two of them keep SDKs from reading an answer: tool calls without an index (Mistral), and content that is a list of parts
(Mistral again, whose thinking is one of them).
"""

from __future__ import annotations

from typing import Any

import msgspec

# What an event with such a habit has in it. Written otherwise (white space, escapes) it is not mended.
ACCENTED = (b'"tool_calls"', b'"content":[', b'"content": [')

_ANYTHING = msgspec.json.Decoder()


class Accents:
    """Of one stream: it counts the tool calls that nobody else has counted."""

    __slots__ = ("_last_calls",)

    def __init__(self) -> None:
        self._last_calls: dict[int, tuple[int, object]] = {}  # choice -> index and id of its last call without an index

    def mended(self, raw: bytes, data: bytes) -> bytes:
        """The event for the client: `raw` itself when nothing is to be mended. `data`: its JSON, an object with choices
        as OpenAI has them."""
        found = _ANYTHING.decode(data)
        changed = False
        for choice in found.get("choices") or ():
            delta = choice.get("delta") or {}
            changed |= self._number_tool_calls(choice.get("index") or 0, delta)
            changed |= _flatten_content(delta)
        return b"data: " + msgspec.json.encode(found) + b"\n\n" if changed else raw

    def _number_tool_calls(self, choice: int, delta: dict[str, Any]) -> bool:
        """A call without an index gets the next one of its choice, a further piece of the last call that call's."""
        changed = False
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if not isinstance(call, dict) or call.get("index") is not None:
                continue
            index, id = self._last_calls.get(choice, (-1, None))
            if index < 0 or _begins(call, id):
                index, id = index + 1, call.get("id")
                call.setdefault("type", "function")
            call["index"] = index
            self._last_calls[choice] = (index, id)
            changed = True
        return changed


def _begins(call: dict[str, Any], last_id: object) -> bool:
    """Whether it is a call of its own: it has a name, or another id than the last one."""
    id, function = call.get("id"), call.get("function")
    return (isinstance(function, dict) and bool(function.get("name"))) or (bool(id) and id != last_id)


def _flatten_content(delta: dict[str, Any]) -> bool:
    """Turns content that is a list of parts into text, and thinking parts into `reasoning_content`."""
    parts = delta.get("content")
    if not isinstance(parts, list):
        return False
    text = "".join(_texts(part) for part in parts if _kind_of(part) == "text")
    thinking = "".join(_texts(part) for part in parts if _kind_of(part) == "thinking")
    delta["content"] = text or None
    if thinking:
        delta["reasoning_content"] = thinking
    return True


def _kind_of(part: object) -> object:
    return part.get("type") if isinstance(part, dict) else None


def _texts(part: dict[str, Any]) -> str:
    """The text of a part, whose thinking may again be a list of text parts."""
    inner = part.get("text") if part.get("type") == "text" else part.get("thinking")
    if isinstance(inner, list):
        return "".join(_texts(entry) for entry in inner if _kind_of(entry) == "text")
    return inner if isinstance(inner, str) else ""
