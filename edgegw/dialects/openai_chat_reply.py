"""OpenAI Chat Completions as providers answer it, not streamed: usage, finish reason, and errors in all their shapes.

Typed decodes that skip what we do not act on. Everything a compatible provider may get wrong here is read leniently:
a body passes to the client as it came, whatever we understood of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from edgegw.dialects.base import PlainReply
from edgegw.dialects.lenient import strict_json, tokens
from edgegw.errors import UpstreamFault
from edgegw.exchange import TOKENS_MAX, Usage

# What a client is shown of a provider's message.
MESSAGE_BYTES_MAX = 2048

_BOM = b"\xef\xbb\xbf"
_NOTHING = frozenset({b"", b"null", b"false", b'""', b"{}", b"[]"})


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Tokens | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: _Tokens | None = None  # DeepSeek
    cached_tokens: _Tokens | None = None  # Moonshot


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Named(msgspec.Struct, gc=False):
    object: str = ""


class _Reply(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_ABSENT = msgspec.Raw()
_REPLY = msgspec.json.Decoder(_Reply)
_USAGE = msgspec.json.Decoder(_Usage)
_NAMED = msgspec.json.Decoder(_Named)
_ANYTHING = msgspec.json.Decoder()

# What a provider's `type` or `code` means, over and above the status it came with.
_KIND_OF_WORD = {
    "insufficient_quota": "upstream_quota",
    "billing_error": "upstream_quota",
    "billing_hard_limit_reached": "upstream_quota",
    "rate_limit_exceeded": "upstream_rate_limited",
    "rate_limit_error": "upstream_rate_limited",
    "rate_limited": "upstream_rate_limited",
    "overloaded": "upstream_overloaded",
    "overloaded_error": "upstream_overloaded",
    "slow_down": "upstream_overloaded",
    "engine_overloaded_error": "upstream_overloaded",
    "service_unavailable": "upstream_overloaded",
    "invalid_api_key": "upstream_auth",
    "authentication_error": "upstream_auth",
    "permission_error": "upstream_auth",
    "timeout": "upstream_timeout",
    "timeout_error": "upstream_timeout",
}
# What an error inside a reply of status 200 means, by the HTTP status that it names as its code (OpenRouter, vLLM).
_KIND_OF_STATUS = {
    400: "upstream_refused",
    401: "upstream_auth",
    402: "upstream_auth",
    403: "upstream_auth",
    404: "upstream_refused",
    408: "upstream_timeout",
    413: "upstream_refused",
    422: "upstream_refused",
    429: "upstream_rate_limited",
    503: "upstream_overloaded",
    504: "upstream_timeout",
    529: "upstream_overloaded",
}


# Takes the provider's key, and what looks like one, out of bytes that a client may see.
Mask = Callable[[bytes], bytes]


def unmasked(text: bytes) -> bytes:
    return text


def read_plain(body: bytes, mask: Mask = unmasked) -> PlainReply:
    """Reads a reply for a client of the same dialect, who gets the body as it came (less a BOM).

    Raises UpstreamFault: upstream_garbage when it is no completion, or what the error in it says.
    """
    body = body.removeprefix(_BOM)
    try:
        reply = _REPLY.decode(body)
    except msgspec.ValidationError:
        return _read_loosely(body, body, mask)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_loosely(body, strict_json(body) or b"", mask)
    if reply.error != _ABSENT and is_something(reply.error):
        raise fault_of(mask(bytes(reply.error)))
    if not reply.choices:
        if is_error(body):
            raise fault_of(mask(body))
        raise garbage("The provider's answer holds no choices.")
    usage = None if reply.usage is None else _counted(reply.usage)
    return PlainReply(body, usage, reply.choices[0].finish_reason, reply.model)


def _read_loosely(body: bytes, document: bytes, mask: Mask) -> PlainReply:
    """A body that is JSON (`document` is, if the body is not quite) but not of the types we know: passes when it looks
    like a completion at all."""
    try:
        reply = _ANYTHING.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise garbage("The provider's answer is not JSON.") from None
    if not isinstance(reply, dict):
        raise garbage("The provider's answer is not a JSON object.")
    if reply.get("error"):
        raise fault_of(mask(msgspec.json.encode(reply["error"])))
    choices = reply.get("choices")
    if not choices or not isinstance(choices, list):
        raise garbage("The provider's answer holds no choices.")
    finish_reason = choices[0].get("finish_reason") if isinstance(choices[0], dict) else None
    usage = read_usage(msgspec.Raw(msgspec.json.encode(reply.get("usage"))))
    return PlainReply(body, usage, _text_or_none(finish_reason), _text_or_none(reply.get("model")))


def is_error(document: bytes) -> bool:
    """Whether a reply, or an event of one, is an error as a whole (vLLM: `{"object":"error","message":…}`), instead of
    holding one."""
    if b'"error"' not in document:
        return False
    try:
        return _NAMED.decode(document).object == "error"
    except (msgspec.DecodeError, RecursionError):
        return False


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def is_something(value: msgspec.Raw) -> bool:
    """Whether a raw value is there and not empty: not null, false, "", {} or []."""
    return bytes(value) not in _NOTHING


def read_usage(value: msgspec.Raw) -> Usage | None:
    """Usage as the provider counts it; None when there is none, or none that can be read."""
    if not is_something(value):
        return None
    try:
        found = _USAGE.decode(value)
    except msgspec.ValidationError:
        found = _salvaged(_ANYTHING.decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return _counted(found)


def _salvaged(told: object) -> _Usage:
    """What can be used of a usage with odd values: one of them must not cost the others."""
    counts = told if isinstance(told, dict) else {}
    inputs, outputs = counts.get("prompt_tokens_details"), counts.get("completion_tokens_details")
    inputs, outputs = inputs if isinstance(inputs, dict) else {}, outputs if isinstance(outputs, dict) else {}
    return _Usage(
        prompt_tokens=tokens(counts.get("prompt_tokens")),
        completion_tokens=tokens(counts.get("completion_tokens")),
        total_tokens=tokens(counts.get("total_tokens")),
        prompt_tokens_details=_InputDetails(
            tokens(inputs.get("cached_tokens")), tokens(inputs.get("cache_write_tokens"))
        ),
        completion_tokens_details=_OutputDetails(tokens(outputs.get("reasoning_tokens"))),
        prompt_cache_hit_tokens=tokens(counts.get("prompt_cache_hit_tokens")),
        cached_tokens=tokens(counts.get("cached_tokens")),
    )


def _counted(found: _Usage) -> Usage | None:
    """None when neither side was counted; nothing at all is no count, since there was a prompt. `estimated` when one
    side is missing, which then is 0."""
    if not found.prompt_tokens and not found.completion_tokens:
        return None
    inputs, outputs = found.prompt_tokens_details, found.completion_tokens_details
    cached = (inputs.cached_tokens if inputs else None) or found.prompt_cache_hit_tokens or found.cached_tokens or 0
    cache_write = (inputs.cache_write_tokens if inputs else None) or 0
    reasoning = (outputs.reasoning_tokens if outputs else None) or 0
    prompt, completion, total = found.prompt_tokens or 0, found.completion_tokens, found.total_tokens
    if total:
        if not prompt:
            prompt = max(0, total - (completion or 0))
        elif completion is None:
            completion = max(0, total - prompt)
        elif total > prompt + completion:
            # Reasoning that is counted beside the completion (xAI names it, Gemini does not), everybody else's inside.
            beside = total - prompt - completion
            completion, reasoning = completion + beside, reasoning or beside
    partial = not prompt or completion is None
    return Usage(prompt, completion or 0, cached, cache_write, reasoning, partial)


def garbage(message: str) -> UpstreamFault:
    return UpstreamFault("upstream_garbage", message, status=200)


def fault_of(error: bytes) -> UpstreamFault:
    """What an `error` value (its JSON) inside a reply of status 200 means. It may be an object, a text, or anything."""
    words = error_words(_ANYTHING.decode(error))
    said = words.get("code") or words.get("status") or ""
    status = int(said) if said.isdecimal() and len(said) == 3 else 200
    kind = kind_of_words(words.get("code"), words.get("type")) or _KIND_OF_STATUS.get(status, "upstream_error")
    return UpstreamFault(
        kind,
        words.get("message") or "The provider reported an error inside its answer.",
        status=status,
        wire_type=words.get("type"),
        code=words.get("code"),
        param=words.get("param"),
    )


def kind_of_words(*words: str | None) -> str | None:
    """The kind of fault that the first telling one of the provider's words names."""
    return next((_KIND_OF_WORD[word] for word in words if word in _KIND_OF_WORD), None)


def error_words(error: Any) -> dict[str, str]:
    """`message`, `type`, `code`, `param` and `status` of a provider's error value, those that are there, as text."""
    if isinstance(error, str):
        return {"message": shortened(error)}
    if not isinstance(error, dict):
        return {}
    found = {}
    for name in ("message", "type", "code", "param", "status"):
        value = error.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            found[name] = shortened(str(value))
    told = error.get("message") or error.get("detail")
    if "message" not in found and isinstance(told, str | list | dict) and told:  # FastAPI's, and Mistral's
        found["message"] = shortened(told if isinstance(told, str) else msgspec.json.encode(told).decode())
    return found


def shortened(text: str) -> str:
    """At most MESSAGE_BYTES_MAX bytes of `text`, cut between characters."""
    return text.encode("utf-8", "replace")[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore")
