"""The neutral form: a conversation, its answer and its stream, in no provider's words.

Between different dialects a request goes dialect -> `Request` -> dialect, and an answer the other way. It holds what
the chat dialects have in common (OpenAI Chat and Responses, Anthropic Messages): turns made of blocks, tools, limits.
What a dialect has alone is named in `Request.hints` when it may be dropped, and refused by its reader when it may not.

A stream is six calls on a `StreamWriter` (Start, Open, Delta, Close, Finish; Fault is the gateway's own), not objects:
at 20,000 tokens a second the objects would cost more than the writing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

from edgegw.exchange import Usage

# Why an answer ended, in OpenAI's words, which every client of a chat dialect can be told in its own.
Finish = Literal["stop", "length", "tool_calls", "content_filter"]
# What a block of an answer holds: text, a tool call's arguments, reasoning shown, reasoning sealed.
BlockKind = Literal["text", "tool_call", "thinking", "sealed_thinking"]
Role = Literal["system", "user", "assistant"]


@dataclass(slots=True)
class Text:
    """`cache`: everything up to here is to be cached, "5m" or "1h"; None for no wish."""

    text: str
    cache: str | None = None


@dataclass(slots=True)
class Image:
    """Either `url`, or base64 `data` of `media_type`."""

    media_type: str = ""
    data: str = ""
    url: str = ""
    cache: str | None = None


@dataclass(slots=True)
class Document:
    """Base64 `data` of `media_type` (application/pdf), or plain `text`."""

    media_type: str = ""
    data: str = ""
    text: str = ""
    title: str | None = None
    cache: str | None = None


@dataclass(slots=True)
class ToolCall:
    """`arguments` is JSON, an object."""

    id: str
    name: str
    arguments: msgspec.Raw
    cache: str | None = None


@dataclass(slots=True)
class ToolResult:
    call_id: str
    content: list[Text]
    cache: str | None = None


@dataclass(slots=True)
class Thinking:
    """Reasoning of an earlier answer, to be handed back exactly. `signature` is the provider's seal on it."""

    text: str
    signature: str = ""


@dataclass(slots=True)
class SealedThinking:
    data: str


Block = Text | Image | Document | ToolCall | ToolResult | Thinking | SealedThinking


@dataclass(slots=True)
class Turn:
    """`path` is where it stands in the client's request ("messages[3]"), for complaints."""

    role: Role
    blocks: list[Block]
    path: str


@dataclass(slots=True)
class Tool:
    """A function the model may call. `schema` is the JSON schema of its arguments, verbatim; None for no arguments."""

    name: str
    description: str | None
    schema: msgspec.Raw | None
    strict: bool = False
    cache: str | None = None


@dataclass(slots=True)
class ToolChoice:
    """`any`: some tool must be called; `named`: the tool `name`."""

    mode: Literal["auto", "none", "any", "named"]
    name: str = ""


@dataclass(slots=True)
class JSONAnswer:
    """The answer must be JSON: any object, or what `schema` describes."""

    schema: msgspec.Raw | None = None


@dataclass(slots=True)
class Request:
    """A client's request. `hints` are fields of it that have no neutral form and change no meaning."""

    turns: list[Turn]
    stream: bool = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    json_answer: JSONAnswer | None = None
    effort: str | None = None  # none, minimal, low, medium, high, xhigh, max
    user: str | None = None
    service_tier: str | None = None
    hints: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Citation:
    """A page on the web. `start` and `end`: what part of the answer's text rests on it, in characters; 0 if unknown."""

    url: str
    title: str
    start: int = 0
    end: int = 0


@dataclass(slots=True)
class Answer:
    """A whole answer. `refusal` is what the model says about why it refuses, if it does."""

    id: str
    model: str
    text: str | None
    tool_calls: list[ToolCall]
    thinking: list[Thinking | SealedThinking]
    citations: list[Citation]
    refusal: str | None
    finish: Finish
    usage: Usage


class StreamWriter(Protocol):
    """Writes a streamed answer in a client's dialect. Each call gives the bytes for the client, perhaps none.

    The order of calls: start, then blocks one after the other (open, delta and the like, close), then finish.
    Tokens are JSON strings as they stand in the provider's event, quotes included.
    """

    def start(self, id: str, model: str) -> bytes:
        """The answer begins: its id and the model that gives it."""

    def open(self, kind: BlockKind, id: str = "", name: str = "") -> bytes:
        """A block begins; `id` and `name` are those of a tool call."""

    def text(self, token: msgspec.Raw) -> bytes:
        """A piece of text."""

    def arguments(self, token: msgspec.Raw) -> bytes:
        """A piece of the JSON text of the open tool call's arguments."""

    def thinking(self, token: msgspec.Raw) -> bytes:
        """A piece of reasoning."""

    def seal(self, token: msgspec.Raw) -> bytes:
        """The signature of the open thinking block, or the data of a sealed one."""

    def citation(self, citation: Citation) -> bytes:
        """What the text before it rests on."""

    def close(self) -> bytes:
        """The open block is whole."""

    def wait(self) -> bytes:
        """Nothing to tell yet, but the answer goes on: for whoever takes a silent connection for a dead one."""

    def finish(self, finish: Finish, refusal: str | None) -> bytes:
        """The answer is whole."""

    def last(self, usage: Usage | None) -> bytes:
        """What follows the finish and ends the stream: usage where the client asked for it, and the terminator."""
