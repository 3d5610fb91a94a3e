"""Anthropic Messages as the API answers it: usage, stop reasons, whole messages, and what its errors mean.

Unknown blocks and fields are passed over: Anthropic adds some every month (research: wire formats, 1.3).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import msgspec

from edgegw.dialects.chat import Answer, Citation, Finish, SealedThinking, Thinking, ToolCall
from edgegw.dialects.lenient import strict_json, tokens
from edgegw.dialects.openai_chat_reply import Mask, error_words, garbage, kind_of_words, unmasked
from edgegw.errors import UpstreamFault
from edgegw.exchange import TOKENS_MAX, Usage

NAME = "anthropic_messages"

_EMPTY = msgspec.Raw()
_NULL = msgspec.Raw(b"null")
_NO_ARGUMENTS = msgspec.Raw(b"{}")

# Unknown reasons count as "stop": the answer is there, whatever made it end.
_FINISH: dict[str | None, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

# The blocks that an answer is made of, as far as clients of other dialects are told.
PARTS = ("text", "tool_use", "thinking", "redacted_thinking")

# Anthropic's error types in OpenAI's words (type, code), and what an error event of that type would have had as status.
_ERRORS: dict[str, tuple[str, str | None, int]] = {
    "invalid_request_error": ("invalid_request_error", None, 400),
    "authentication_error": ("authentication_error", "invalid_api_key", 401),
    "billing_error": ("insufficient_quota", "insufficient_quota", 402),
    "permission_error": ("permission_error", None, 403),
    "not_found_error": ("invalid_request_error", "not_found", 404),
    "request_too_large": ("invalid_request_error", "request_too_large", 413),
    "rate_limit_error": ("rate_limit_error", "rate_limit_exceeded", 429),
    "timeout_error": ("timeout_error", "upstream_timeout", 504),
    "overloaded_error": ("overloaded_error", "overloaded", 529),
}
# What Anthropic says only in prose: the beginning or a part of the message, and OpenAI's code for it.
_CODES_IN_PROSE = (
    ("prompt is too long", "context_length_exceeded"),
    ("exceed context limit", "context_length_exceeded"),
    ("credit balance is too low", "insufficient_quota"),
    ("reached your specified API usage limits", "insufficient_quota"),
    ("model: ", "model_not_found"),
)
# And what it says in `details.error_code`, where the type says too little: a limit of money is not over in a minute.
_CODES_IN_DETAILS = {
    "contract_spend_limit_reached": "insufficient_quota",
    "enforced_spend_limit_reached": "insufficient_quota",
    "linked_organization_billing_unavailable": "insufficient_quota",
    "linked_organization_spend_limit_reached": "insufficient_quota",
}


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class OutputDetails(msgspec.Struct):
    thinking_tokens: _Tokens | None = None


class UsageCount(msgspec.Struct):
    """Every field may be missing, or null, in any event; what is there replaces what an earlier event said."""

    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None
    output_tokens_details: OutputDetails | None = None


class _StopDetails(msgspec.Struct):
    explanation: str | None = None


class Block(msgspec.Struct):
    type: str = ""
    id: str | None = None
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: msgspec.Raw = _EMPTY
    input: msgspec.Raw = _EMPTY
    citations: list[dict[str, Any]] | None = None


class Message(msgspec.Struct):
    type: str = ""
    id: str | None = None
    model: str | None = None
    content: list[msgspec.Raw] = []
    stop_reason: str | None = None
    stop_details: msgspec.Raw = _EMPTY
    usage: msgspec.Raw = _EMPTY
    error: msgspec.Raw = _EMPTY


_MESSAGE = msgspec.json.Decoder(Message)
_BLOCK = msgspec.json.Decoder(Block)
_USAGE = msgspec.json.Decoder(UsageCount | None)
_STOP_DETAILS = msgspec.json.Decoder(_StopDetails | None)
_ANYTHING = msgspec.json.Decoder()


def read_message(body: bytes, unwrap: str | None, mask: Mask = unmasked) -> Answer:
    """Reads a whole reply. `unwrap` is the tool whose arguments are the answer's text (see anthropic_request.py).

    Raises UpstreamFault: upstream_garbage when it is no message, or what the error in it says.
    """
    message = _decoded(body)
    if message.error != _EMPTY:
        raise error_fault(mask(bytes(message.error)))
    if message.type != "message":
        raise garbage("The provider's answer is not a message.")
    texts: list[str] = []
    calls: list[ToolCall] = []
    thinking: list[Thinking | SealedThinking] = []
    citations: list[Citation] = []
    for block in map(_block, message.content):
        if block.type == "text":
            start = sum(map(len, texts))
            texts.append(block.text or "")
            for entry in block.citations or ():
                citation = read_citation(entry)
                if citation is not None:
                    citation.start, citation.end = start, start + len(texts[-1])
                    citations.append(citation)
        elif block.type == "tool_use":
            arguments = _NO_ARGUMENTS if block.input in (_EMPTY, _NULL) else block.input
            if block.name == unwrap:
                texts.append(bytes(arguments).decode("utf-8", "replace"))
            else:
                calls.append(ToolCall(block.id or "", block.name or "", arguments))
        elif block.type == "thinking":
            thinking.append(Thinking(block.thinking or "", block.signature or ""))
        elif block.type == "redacted_thinking":
            thinking.append(SealedThinking(_ANYTHING.decode(block.data) if block.data != _EMPTY else ""))
    return Answer(
        id=message.id or "",
        model=message.model or "",
        text="".join(texts) if texts or not calls else None,
        tool_calls=calls,
        thinking=thinking,
        citations=citations,
        refusal=explanation_of(message.stop_details) if message.stop_reason == "refusal" else None,
        finish=finish_of(message.stop_reason, bool(calls)),
        usage=usage_of(read_usage(message.usage)),
    )


def _decoded(body: bytes) -> Message:
    try:
        return _MESSAGE.decode(body)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        with suppress(msgspec.DecodeError, RecursionError):
            return _MESSAGE.decode(strict_json(body) or b"")
    raise garbage("The provider's answer is not a message.")


def _block(value: msgspec.Raw) -> Block:
    """One of other types than we know is passed over, whatever is in it."""
    try:
        return _BLOCK.decode(value)
    except msgspec.ValidationError:
        found = _ANYTHING.decode(value)
    if isinstance(found, dict) and found.get("type") in PARTS:
        raise garbage("The provider's answer holds a part that cannot be read.")
    return Block()


def read_usage(value: msgspec.Raw) -> UsageCount:
    """The counts of a `usage`, those that are there and are counts."""
    if value == _EMPTY:
        return UsageCount()
    try:
        return _USAGE.decode(value) or UsageCount()
    except msgspec.ValidationError:
        told = _ANYTHING.decode(value)
    counts = told if isinstance(told, dict) else {}
    details = counts.get("output_tokens_details")
    return UsageCount(
        tokens(counts.get("input_tokens")),
        tokens(counts.get("output_tokens")),
        tokens(counts.get("cache_creation_input_tokens")),
        tokens(counts.get("cache_read_input_tokens")),
        OutputDetails(tokens(details.get("thinking_tokens"))) if isinstance(details, dict) else None,
    )


def explanation_of(stop_details: msgspec.Raw) -> str | None:
    """Why the model refuses, if it says so."""
    try:
        details = None if stop_details == _EMPTY else _STOP_DETAILS.decode(stop_details)
    except msgspec.ValidationError:
        return None
    return None if details is None else details.explanation


def finish_of(stop_reason: str | None, called_tools: bool) -> Finish:
    """The neutral word. A "tool_use" that only filled in our own tool is an ordinary end."""
    finish = _FINISH.get(stop_reason, "stop")
    return "stop" if finish == "tool_calls" and not called_tools else finish


def usage_of(count: UsageCount) -> Usage:
    """In OpenAI's sense: Anthropic's input leaves out what was read from or written to the cache, ours does not.
    `estimated` when one side was not told, which then is 0."""
    read, written = count.cache_read_input_tokens or 0, count.cache_creation_input_tokens or 0
    details = count.output_tokens_details
    return Usage(
        input=(count.input_tokens or 0) + read + written,
        output=count.output_tokens or 0,
        cached=read,
        cache_write=written,
        reasoning=(details.thinking_tokens or 0) if details is not None else 0,
        estimated=count.input_tokens is None or count.output_tokens is None,
    )


def read_citation(entry: dict[str, Any]) -> Citation | None:
    """A citation of a page on the web; those of documents have no address and no place in OpenAI's dialect."""
    url, title = entry.get("url"), entry.get("title")
    return Citation(url, title if isinstance(title, str) else "") if isinstance(url, str) and url else None


def words_of(error: object) -> dict[str, str]:
    """Anthropic's error value in OpenAI's words: `message`, `type`, `code`."""
    words = error_words(error)
    own_type, message = words.get("type", ""), words.get("message", "")
    type_, code, _ = _ERRORS.get(own_type, (own_type, None, 0))
    for prose, told in _CODES_IN_PROSE:
        if message.startswith(prose) or (prose in message and told != "model_not_found"):
            code = told
            break
    details = error.get("details") if isinstance(error, dict) else None
    if isinstance(details, dict):
        code = _CODES_IN_DETAILS.get(str(details.get("error_code")), code)
    found = {"message": message, "type": type_, "code": code or ""}
    return {name: value for name, value in found.items() if value}


def error_fault(error: bytes) -> UpstreamFault:
    """What an error event, or an error inside a reply of status 200, means. `error`: the JSON of its `error` value."""
    value = _ANYTHING.decode(error)
    words = words_of(value)
    own_type = error_words(value).get("type", "")
    status = _ERRORS.get(own_type, ("", None, 200))[2]
    refused = status in (400, 404, 413)
    kind = kind_of_words(words.get("code"), words.get("type"))
    return UpstreamFault(
        kind or ("upstream_refused" if refused else "upstream_error"),
        words.get("message") or "The provider reported an error inside its answer.",
        status=status,
        wire_type=words.get("type"),
        code=words.get("code"),
    )
