"""Anthropic Messages streamed, read for a client of another dialect.

Each event is decoded once into one typed struct; pieces of text stay the JSON strings they are and go into the
client's event as they came. Usage counts are cumulative: what a later event says replaces what an earlier one said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from edgegw.dialects.anthropic_events import EVENT, Block, Delta, Event, read_again
from edgegw.dialects.anthropic_messages import (
    UsageCount,
    error_fault,
    explanation_of,
    finish_of,
    read_citation,
    read_usage,
    usage_of,
)
from edgegw.dialects.chat import BlockKind, StreamWriter
from edgegw.dialects.openai_chat_reply import Mask, unmasked
from edgegw.errors import UpstreamFault
from edgegw.exchange import Usage
from edgegw.http.sse import EventTooLongError, Splitter, data_of

_EMPTY = msgspec.Raw()
_NULL = msgspec.Raw(b"null")
_EMPTY_STRING_BYTES = len(b'""')
_NULL_BYTES = len(b"null")
_NO_ERROR = _NO_INPUT = _NO_USAGE = (_EMPTY, _NULL)


_KINDS: dict[str, BlockKind] = {
    "text": "text",
    "tool_use": "tool_call",
    "thinking": "thinking",
    "redacted_thinking": "sealed_thinking",
}


class AnthropicStream:
    """The StreamReader of a translated stream. `unwrap` is the tool whose arguments are the answer's text."""

    __slots__ = (
        "_block",
        "_called_tools",
        "_count",
        "_finished",
        "_mask",
        "_pinged",
        "_refusal",
        "_splitter",
        "_started",
        "_stop_reason",
        "_unwrap",
        "_writer",
        "_wrote_arguments",
        "done",
        "events",
        "fault",
        "finish_reason",
        "model",
        "needles",
        "opened",
        "transparent",
        "usage",
        "withholding",
    )

    def __init__(self, writer: StreamWriter, unwrap: str | None = None, mask: Mask = unmasked) -> None:
        self.opened = False
        self.done = False
        self.fault: UpstreamFault | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.events = 0
        self.transparent = False
        self.needles: tuple[bytes, ...] = ()
        self.withholding = False
        self._writer = writer
        self._unwrap = unwrap
        self._mask = mask
        self._splitter = Splitter()
        self._count = UsageCount()
        self._block: Block | None = None  # the open block
        self._wrote_arguments = False  # of the open tool call
        self._called_tools = False
        self._started = False
        self._pinged = False
        self._stop_reason: str | None = None
        self._refusal: str | None = None

    @property
    def last(self) -> bytes:
        return self._writer.last(self.usage)

    @property
    def at_rest(self) -> bool:
        return self._splitter.at_rest

    def feed(self, data: bytes) -> bytes:
        if self._over():
            return b""
        try:
            raw_events = self._splitter.feed(data)
        except EventTooLongError as error:
            self.fault = UpstreamFault("upstream_garbage", f"The provider sent {error}.", status=200)
            return b""
        if len(raw_events) == 1:
            return self._translate(raw_events[0])
        pieces = []
        for raw in raw_events:
            pieces.append(self._translate(raw))
            if self._over():
                break
        return b"".join(pieces)

    def end(self) -> bytes:
        """A stop reason makes the reply complete even without message_stop."""
        if self._over():
            return b""
        rest = self._splitter.pending.rstrip()
        out = self._translate(rest + b"\n\n") if rest.endswith(b"}") and data_of(rest) is not None else b""
        if self._over():
            return out
        if self._stop_reason is not None:
            return out + self._finish()
        if self._started:
            self.fault = UpstreamFault(
                "upstream_cut", "The provider's answer ended before it was complete.", status=200
            )
        else:
            self.fault = UpstreamFault("upstream_garbage", "The provider's answer is not an event stream.", status=200)
        return out

    def recall(self, raw_events: Iterable[bytes]) -> None:
        """Nothing bypasses a stream that is translated."""

    def _over(self) -> bool:
        return self.done or self.fault is not None

    def _translate(self, raw: bytes) -> bytes:
        """What the client gets for one raw event."""
        at = raw.find(b"\ndata: ") + 7
        if at < 7 or raw.find(b"\n", at) != len(raw) - 2 or b"\r" in raw:
            data = data_of(raw)
            if data is None:
                return b""
        else:
            data = raw[at:]
        if not data.isascii():
            data = _in_utf8(data)
        try:
            event = EVENT.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            try:
                event = read_again(data, self._mask)
            except UpstreamFault as fault:
                self.fault = fault
                return b""
        kind = event.type
        if kind == "content_block_delta" and event.delta is not None:
            self.events += 1
            return self._delta(event.delta)
        act = _ACTS.get(kind)
        if act is None:
            if event.error not in _NO_ERROR:
                self.fault = error_fault(self._mask(bytes(event.error)))
            return b""
        self.events += kind in _TOLD
        return act(self, event)

    def _delta(self, delta: Delta) -> bytes:
        kind = delta.type
        if kind == "text_delta":
            return self._piece(self._writer.text, delta.text)
        if kind == "input_json_delta":
            return self._arguments(delta.partial_json)
        if kind == "thinking_delta":
            return self._piece(self._writer.thinking, delta.thinking)
        if kind == "signature_delta":
            return self._piece(self._writer.seal, delta.signature)
        if kind == "citations_delta" and delta.citation is not None:
            citation = read_citation(delta.citation)
            return b"" if citation is None else self._writer.citation(citation)
        return b""

    def _piece(self, write: Callable[[msgspec.Raw], bytes], token: msgspec.Raw) -> bytes:
        if _is_empty(token):
            return b""
        self.opened = True
        return write(token)

    def _arguments(self, token: msgspec.Raw) -> bytes:
        block = self._block
        if block is None or block.type != "tool_use" or _is_empty(token):
            return b""  # of a server's own tool, or empty
        self._wrote_arguments = True
        return self._piece(self._writer.text if block.name == self._unwrap else self._writer.arguments, token)

    def _start(self, event: Event) -> bytes:
        """A second message_start stands where the provider itself fell back to another model: passed over."""
        if self._started or event.message is None:
            return b""
        self._started = True
        self._learn(event.message.usage)
        if self.usage is not None:
            self.usage.estimated = True  # of the prompt alone: an answer's count comes at its end
        self.model = event.message.model or None
        return self._writer.start(event.message.id or "", event.message.model or "")

    def _open(self, event: Event) -> bytes:
        """Not every server that speaks this dialect closes a block before it opens the next."""
        out = self._close(event)
        block = self._block = event.content_block
        if block is None or block.type not in _KINDS:
            return out
        self._wrote_arguments = False
        if block.type == "tool_use":
            self.opened = True
            if block.name == self._unwrap:
                return out
            self._called_tools = True
            return out + self._writer.open("tool_call", block.id or "", block.name or "")
        out += self._writer.open(_KINDS[block.type])
        for write, token in (
            (self._writer.text, block.text),
            (self._writer.thinking, block.thinking),
            (self._writer.seal, block.signature),
            (self._writer.seal, block.data),
        ):
            out += self._piece(write, token)
        return out

    def _close(self, event: Event | None) -> bytes:
        """A tool call without a single piece of arguments has those of its opening, or none."""
        block, self._block = self._block, None
        if block is None or block.type not in _KINDS:
            return b""
        out = b""
        if block.type == "tool_use" and not self._wrote_arguments:
            whole = "{}" if block.input in _NO_INPUT else bytes(block.input).decode("utf-8", "replace")
            token = msgspec.Raw(msgspec.json.encode(whole))
            out = (self._writer.text if block.name == self._unwrap else self._writer.arguments)(token)
        return out + self._writer.close()

    def _change(self, event: Event) -> bytes:
        self._learn(event.usage)
        delta = event.delta
        if delta is not None:
            self._stop_reason = delta.stop_reason or self._stop_reason
            if delta.stop_reason == "refusal":
                self._refusal = explanation_of(delta.stop_details)
        if self._stop_reason is not None:
            self.finish_reason = finish_of(self._stop_reason, self._called_tools)
        return b""

    def _stop(self, event: Event) -> bytes:
        return self._finish()

    def _ping(self, event: Event) -> bytes:
        """The first one stands at the beginning of every stream. Later ones fill a silence, which can be minutes of
        thinking that is not shown."""
        first, self._pinged = not self._pinged, True
        return b"" if first else self._writer.wait()

    def _finish(self) -> bytes:
        if not self._started:
            self.fault = UpstreamFault("upstream_garbage", "The provider's answer is empty.", status=200)
            return b""
        self.opened = True
        self.done = True
        finish = finish_of(self._stop_reason, self._called_tools)
        self.finish_reason = finish
        return self._close(None) + self._writer.finish(finish, self._refusal)

    def _learn(self, usage: msgspec.Raw) -> None:
        if usage in _NO_USAGE:
            return
        told = read_usage(usage)
        for name in UsageCount.__struct_fields__:
            value = getattr(told, name)
            if value is not None:
                setattr(self._count, name, value)
        self.usage = usage_of(self._count)
        self.usage.estimated |= told.output_tokens is None


# Besides the deltas, these are an event for the client: who speaks, and that it has finished.
_TOLD = ("message_start", "message_delta")
_ACTS = {
    "message_start": AnthropicStream._start,
    "content_block_start": AnthropicStream._open,
    "content_block_stop": AnthropicStream._close,
    "message_delta": AnthropicStream._change,
    "message_stop": AnthropicStream._stop,
    "ping": AnthropicStream._ping,
}


def _is_empty(token: msgspec.Raw) -> bool:
    """Whether it is an empty string, null, or not there."""
    size = len(token)
    return size <= _EMPTY_STRING_BYTES or (size == _NULL_BYTES and token == _NULL)


def _in_utf8(data: bytes) -> bytes:
    """Pieces go out unread, so bytes that are no UTF-8 must be found here; they become U+FFFD."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data
