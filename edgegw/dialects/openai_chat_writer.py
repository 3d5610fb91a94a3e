"""From the neutral form to OpenAI Chat Completions: a whole answer, or a stream of chunks.

The pieces of a chunk that do not change in a stream are made once, so that a token costs one join of three pieces.
Reasoning has no place in OpenAI's own dialect; it goes out as DeepSeek's `reasoning_content`, which clients show, and
as OpenRouter's `reasoning_details`, which holds all that is needed to hand it back.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgegw.dialects.chat import Answer, BlockKind, Citation, Finish, SealedThinking
from edgegw.dialects.openai_chat_stream import DONE_EVENT
from edgegw.exchange import Usage

COMMENT = b": ping\n\n"  # which every reader of event streams passes over
_THINKING_TEXT = b'"reasoning_details":[{"index":%d,"type":"reasoning.text",'
_THINKING_SEALED = b'"reasoning_details":[{"index":%d,"type":"reasoning.encrypted",'

_encode = msgspec.json.encode


def write_answer(answer: Answer, created_s: int) -> bytes:
    """The body of a plain reply. `created_s`: Unix seconds."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    if answer.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": bytes(call.arguments).decode("utf-8", "replace")},
            }
            for call in answer.tool_calls
        ]
    if answer.citations:
        message["annotations"] = [_annotation(citation) for citation in answer.citations]
    if answer.thinking:
        shown = [block.text for block in answer.thinking if not isinstance(block, SealedThinking)]
        message["reasoning_content"] = "".join(shown)
        message["reasoning_details"] = [
            {"type": "reasoning.encrypted", "data": block.data, "index": index}
            if isinstance(block, SealedThinking)
            else {"type": "reasoning.text", "text": block.text, "signature": block.signature, "index": index}
            for index, block in enumerate(answer.thinking)
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    return _encode(
        {
            "id": _id(answer.id),
            "object": "chat.completion",
            "created": created_s,
            "model": answer.model,
            "choices": [choice],
            "usage": _usage(answer.usage),
        }
    )


class ChunkWriter:
    """The StreamWriter of OpenAI's dialect. `created_s`, id and model are the same in every chunk."""

    __slots__ = (
        "_arguments",
        "_citations",
        "_created_s",
        "_head",
        "_include_usage",
        "_tail",
        "_text",
        "_thinking",
        "_thoughts",
        "_tool_calls",
        "_usage_head",
    )

    def __init__(self, created_s: int, include_usage: bool) -> None:
        self._created_s = created_s
        self._include_usage = include_usage
        self._tool_calls = 0
        self._thoughts = 0
        self._citations = 0
        self._tail = (
            b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null}' if include_usage else b"}") + b"\n\n"
        )
        self._begin("", "")
        self._thinking = _THINKING_TEXT % 0

    def _begin(self, id: str, model: str) -> None:
        fixed = {"id": _id(id), "object": "chat.completion.chunk", "created": self._created_s, "model": model}
        self._usage_head = b"data: " + _encode(fixed)[:-1] + b',"choices":['
        self._head = self._usage_head + b'{"index":0,"delta":'
        self._text = self._head + b'{"content":'
        self._arguments = self._text

    def start(self, id: str, model: str) -> bytes:
        self._begin(id, model)
        return self._chunk(b'{"role":"assistant","content":"","refusal":null}')

    def open(self, kind: BlockKind, id: str = "", name: str = "") -> bytes:
        if kind == "tool_call":
            index = self._tool_calls
            self._tool_calls += 1
            self._arguments = b'%b{"tool_calls":[{"index":%d,"function":{"arguments":' % (self._head, index)
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": id, "type": "function", "function": function}
            return self._chunk(_encode({"tool_calls": [call]}))
        if kind != "text":
            self._thinking = (_THINKING_SEALED if kind == "sealed_thinking" else _THINKING_TEXT) % self._thoughts
            self._thoughts += 1
        return b""

    def text(self, token: msgspec.Raw) -> bytes:
        return b"%b%b}%b" % (self._text, token, self._tail)

    def arguments(self, token: msgspec.Raw) -> bytes:
        return b"%b%b}}]}%b" % (self._arguments, token, self._tail)

    def thinking(self, token: msgspec.Raw) -> bytes:
        delta = b'{"reasoning_content":%b,%b"text":%b}]}' % (token, self._thinking, token)
        return self._chunk(delta)

    def seal(self, token: msgspec.Raw) -> bytes:
        name = b'"data":' if b"encrypted" in self._thinking else b'"signature":'
        return self._chunk(b"{%b%b%b}]}" % (self._thinking, name, token))

    def citation(self, citation: Citation) -> bytes:
        annotation = {"index": self._citations, **_annotation(citation)}
        self._citations += 1
        return self._chunk(_encode({"annotations": [annotation]}))

    def close(self) -> bytes:
        return b""

    def wait(self) -> bytes:
        return COMMENT

    def finish(self, finish: Finish, refusal: str | None) -> bytes:
        said = b"" if refusal is None else self._chunk(_encode({"refusal": refusal}))
        tail = self._tail.replace(b'"finish_reason":null', b'"finish_reason":"%b"' % finish.encode())
        return said + self._head + b"{}" + tail

    def last(self, usage: Usage | None) -> bytes:
        if not self._include_usage or usage is None:
            return DONE_EVENT
        return self._usage_head + b'],"usage":' + _encode(_usage(usage)) + b"}\n\n" + DONE_EVENT

    def _chunk(self, delta: bytes) -> bytes:
        return self._head + delta + self._tail


def _id(id: str) -> str:
    return f"chatcmpl-{id}"


def _annotation(citation: Citation) -> dict[str, Any]:
    page = {"url": citation.url, "title": citation.title, "start_index": citation.start, "end_index": citation.end}
    return {"type": "url_citation", "url_citation": page}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
