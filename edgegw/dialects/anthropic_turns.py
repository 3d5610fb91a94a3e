"""Turns of the neutral form as Anthropic's `system` and `messages`, by the rules that its API enforces.

- Text blocks must not be empty or blank; a turn without blocks is left out.
- Turns of one role follow each other only inside one message; tool results stand first in theirs, and right behind
  the calls that they answer.
- System messages stand at the top; further down only where the model takes them, behind a user turn and before an
  assistant turn or the end. Elsewhere they become text of the user turn beside them, in order.
- Ids of tool calls are limited to letters, digits, "_" and "-".
- An answer that the model is to go on with must not end in white space.
"""

from __future__ import annotations

import re
from typing import Any

from edgegw.dialects.chat import (
    Block,
    Document,
    Image,
    SealedThinking,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Turn,
)
from edgegw.dialects.complaints import wrong_value

_NOT_IN_IDS = re.compile(r"[^a-zA-Z0-9_-]")

JSON = dict[str, Any]


def write_turns(turns: list[Turn], mid_system: bool) -> tuple[list[JSON], list[JSON]]:
    """The blocks of `system`, and `messages`. Raises GatewayError invalid_value when the turns break a rule."""
    leading = 0
    while leading < len(turns) and turns[leading].role == "system":
        leading += 1
    if leading == len(turns):
        leading = 0  # nobody else speaks: OpenAI answers that, Anthropic wants a user
    ids = _Ids()
    system = [block for turn in turns[:leading] for block in _blocks(turn, ids)]
    messages = _merged(turns[leading:], mid_system, ids)
    if not messages:
        raise wrong_value("messages", "must hold a message that is not empty")
    return system, messages


def _merged(turns: list[Turn], mid_system: bool, ids: _Ids) -> list[JSON]:
    messages: list[JSON] = []
    written: list[Turn] = [turn for turn in turns if _says_something(turn)]
    standing: frozenset[int] | None = None if mid_system else frozenset()
    for index, turn in enumerate(written):
        role = turn.role
        if role == "system":
            if standing is None:
                standing = _standing(written)
            role = "system" if index in standing else "user"
        blocks = _blocks(turn, ids)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})
    for message in messages:
        if message["role"] == "user":
            message["content"].sort(key=lambda block: block["type"] != "tool_result")
    _check_pairs(messages)
    if messages and messages[-1]["role"] == "assistant" and messages[-1]["content"][-1]["type"] == "text":
        last = messages[-1]["content"][-1]
        last["text"] = last["text"].rstrip()
    return messages


def _standing(turns: list[Turn]) -> frozenset[int]:
    """Where system turns stand behind a user turn, and before an assistant turn or the end."""
    found: list[int] = []
    before, run = "", list[int]()
    for index, turn in enumerate(turns):
        if turn.role == "system":
            run.append(index)
            continue
        if run and before == "user" and turn.role == "assistant":
            found += run
        before, run = turn.role, []
    return frozenset(found + run if before == "user" else found)


def _says_something(turn: Turn) -> bool:
    return any(not isinstance(block, Text) or block.text.strip() for block in turn.blocks)


def _check_pairs(messages: list[JSON]) -> None:
    """Every tool call is answered in the next message, and nothing else is (the API refuses both; so do we, with the
    id in the complaint, before a provider is asked)."""
    asked: dict[str, None] = {}  # in the order of the calls
    for message in [*messages, {"role": "end", "content": []}]:
        answered = {block["tool_use_id"]: None for block in message["content"] if block["type"] == "tool_result"}
        for id in asked:
            if id not in answered:
                raise wrong_value("messages", f"hold no result of the tool call '{id:.80}' right behind it")
        for id in answered:
            if id not in asked:
                raise wrong_value("messages", f"hold a tool result for '{id:.80}', which no call right before it made")
        asked = {block["id"]: None for block in message["content"] if block["type"] == "tool_use"}


class _Ids:
    """Tool call ids as Anthropic takes them; the same for the same, different for different ones."""

    __slots__ = ("_known", "_taken")

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, id: str) -> str:
        found = self._known.get(id)
        if found is None:
            found = base = _NOT_IN_IDS.sub("_", id)
            while found in self._taken:
                found = f"{base}_{len(self._taken)}"
            self._known[id] = found
            self._taken.add(found)
        return found


def _blocks(turn: Turn, ids: _Ids) -> list[JSON]:
    blocks = []
    for block in turn.blocks:
        if isinstance(block, Text) and not block.text.strip():
            continue
        blocks.append(_block(block, ids))
    return blocks


def _block(block: Block, ids: _Ids) -> JSON:
    if isinstance(block, Text):
        return _marked({"type": "text", "text": block.text}, block.cache)
    if isinstance(block, ToolCall):
        call = {"type": "tool_use", "id": ids.of(block.id), "name": block.name, "input": block.arguments}
        return _marked(call, block.cache)
    if isinstance(block, ToolResult):
        texts = [{"type": "text", "text": text.text} for text in block.content if text.text.strip()]
        result: JSON = {"type": "tool_result", "tool_use_id": ids.of(block.call_id)}
        return _marked({**result, "content": texts} if texts else result, block.cache)
    if isinstance(block, Image):
        source = {"type": "base64", "media_type": block.media_type, "data": block.data}
        return _marked(
            {"type": "image", "source": {"type": "url", "url": block.url} if block.url else source}, block.cache
        )
    if isinstance(block, Document):
        return _marked(_document(block), block.cache)
    if isinstance(block, Thinking):
        return {"type": "thinking", "thinking": block.text, "signature": block.signature}
    assert isinstance(block, SealedThinking)
    return {"type": "redacted_thinking", "data": block.data}


def _document(block: Document) -> JSON:
    source = {"type": "base64", "media_type": block.media_type, "data": block.data}
    if not block.data:
        source = {"type": "text", "media_type": "text/plain", "data": block.text}
    document: JSON = {"type": "document", "source": source}
    return {**document, "title": block.title} if block.title else document


def _marked(block: JSON, cache: str | None) -> JSON:
    return {**block, "cache_control": cache_control(cache)} if cache else block


def cache_control(cache: str) -> JSON:
    """Five minutes is what Anthropic means when nothing is said."""
    return {"type": "ephemeral", "ttl": cache} if cache == "1h" else {"type": "ephemeral"}
