"""OpenAI Chat Completions as clients speak it: read a request, edit it for the way on, write errors.

A request is read at its top level only (platform documentation, "Create chat completion"): the fields we act on are
checked, the rest stays bytes and passes verbatim, whatever fields there are this month. Every complaint is a
GatewayError that names the field. Knows nothing of providers and of what they answer.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from edgegw.dialects.base import Ask
from edgegw.dialects.document import field, read_inner_object, read_object
from edgegw.errors import GatewayError

NAME = "openai_chat"

# A tenant or a use case is a key in limits, rows and headers: short, and visible in all of them.
LABEL_CHARS_MAX = 128
MODEL_CHARS_MAX = 256
# OpenAI's own bound for n.
CHOICES_MAX = 128
# Token counts are 32-bit in the books; no model comes near.
TOKENS_MAX = 2**31 - 1

# What we act on: said twice, it could be read otherwise by the provider than by us.
_ACTED_ON = frozenset(
    {"model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "metadata"}
)
_LABELS = frozenset({"tenant", "use_case"})
_NULL = msgspec.Raw(b"null")

_Value = TypeVar("_Value")


class _Message(msgspec.Struct):
    role: str


_MESSAGES = msgspec.json.Decoder(list[_Message])
_STRING = msgspec.json.Decoder(str)
_INTEGER = msgspec.json.Decoder(int)
_BOOLEAN = msgspec.json.Decoder(bool)


def read(body: bytes) -> Ask:
    """Reads a request. Raises GatewayError: invalid_json, invalid_type, invalid_value, missing_parameter."""
    fields = read_object(body, _ACTED_ON)
    get = fields.get
    _check_messages(get("messages"))
    stream = _optional(_BOOLEAN, get("stream"), "stream", "a boolean")
    choices = _count(get("n"), "n", 1, CHOICES_MAX)
    max_tokens = _count(get("max_tokens"), "max_tokens", 0, TOKENS_MAX)
    max_completion_tokens = _count(get("max_completion_tokens"), "max_completion_tokens", 0, TOKENS_MAX)
    tenant, use_case = _labels(get("metadata"))
    return Ask(
        dialect=NAME,
        model=_model(get("model")),
        stream=stream or False,
        include_usage=_include_usage(get("stream_options")),
        tenant=tenant,
        use_case=use_case,
        max_output_tokens=max_tokens if max_completion_tokens is None else max_completion_tokens,
        choices=choices or 1,
        fields=fields,
        body=body,
    )


def edit(ask: Ask, model: str, include_usage: bool) -> bytes:
    """The body for a provider of the same dialect: with its `model`, without our labels, asking for usage (if streamed
    and `include_usage`).

    Other fields stay verbatim and in their order. When nothing changes, the body object itself comes back.
    """
    fields = ask.fields
    changes: dict[str, bytes | None] = {}
    if model != ask.model:
        changes["model"] = msgspec.json.encode(model)
    if "metadata" in fields:
        _take_labels_out(fields["metadata"], changes)
    if include_usage and ask.stream and not ask.include_usage:
        changes["stream_options"] = _asking_for_usage(fields.get("stream_options"))
    if not changes:
        return ask.body
    pieces: list[bytes | msgspec.Raw] = []
    for name, value in fields.items():
        written = changes.pop(name, value)
        if written is not None:
            pieces += (field(name), written)
    for name, added in changes.items():
        if added is not None:
            pieces += (field(name), added)
    pieces[0] = b"{" + bytes(pieces[0])[1:]
    pieces.append(b"}")
    return b"".join(pieces)


def error_body(error: GatewayError) -> bytes:
    """The JSON body of an error reply: the provider's own when it speaks this dialect, else OpenAI's envelope."""
    return _envelope(error) if error.body is None else error.body


def error_event(error: GatewayError) -> bytes:
    """The one event that ends a stream which cannot be completed. No [DONE] follows it."""
    return b"data: " + _envelope(error) + b"\n\n"


def _envelope(error: GatewayError) -> bytes:
    said = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": said})


def _optional(
    decoder: msgspec.json.Decoder[_Value], value: msgspec.Raw | None, name: str, wanted: str
) -> _Value | None:
    if value is None or value == _NULL:
        return None
    try:
        return decoder.decode(value)
    except msgspec.ValidationError:
        raise GatewayError("invalid_type", f"'{name}' must be {wanted}.", param=name) from None


def _count(value: msgspec.Raw | None, name: str, least: int, most: int) -> int | None:
    number = _optional(_INTEGER, value, name, "an integer")
    if number is not None and not least <= number <= most:
        raise GatewayError("invalid_value", f"'{name}' must be between {least} and {most}.", param=name)
    return number


def _model(value: msgspec.Raw | None) -> str | None:
    """The model asked for; None when the field is missing. A null is a client's mistake, not a wish for the default."""
    if value is None:
        return None
    model = _optional(_STRING, value, "model", "a string")
    if not model:
        raise GatewayError("invalid_type", "'model' must be a string that is not empty.", param="model")
    if len(model) > MODEL_CHARS_MAX or not model.isprintable():
        raise GatewayError(
            "invalid_value", f"'model' must be at most {MODEL_CHARS_MAX} visible characters.", param="model"
        )
    return model


def _include_usage(options: msgspec.Raw | None) -> bool:
    if options is None or options == _NULL:
        return False
    found = read_inner_object(options, "stream_options", ("include_usage",))
    wished = _optional(_BOOLEAN, found.get("include_usage"), "stream_options.include_usage", "a boolean")
    return wished or False


def _asking_for_usage(options: msgspec.Raw | None) -> bytes:
    kept = {} if options is None or options == _NULL else read_inner_object(options, "stream_options", ())
    return msgspec.json.encode({**kept, "include_usage": True})


def _labels(metadata: msgspec.Raw | None) -> tuple[str | None, str | None]:
    """`metadata.tenant` and `metadata.use_case`. All other keys are the client's own."""
    if metadata is None or metadata == _NULL:
        return None, None
    found = read_inner_object(metadata, "metadata", _LABELS)
    return _label(found.get("tenant"), "metadata.tenant"), _label(found.get("use_case"), "metadata.use_case")


def _label(value: msgspec.Raw | None, name: str) -> str | None:
    label = _optional(_STRING, value, name, "a string")
    if label is None:
        return None
    if not 0 < len(label) <= LABEL_CHARS_MAX or not label.isprintable() or label != label.strip():
        raise GatewayError("invalid_value", f"'{name}' must be 1 to {LABEL_CHARS_MAX} visible characters.", param=name)
    return label


def _take_labels_out(metadata: msgspec.Raw, changes: dict[str, bytes | None]) -> None:
    if metadata == _NULL:
        return
    found = read_inner_object(metadata, "metadata", ())
    kept = {name: value for name, value in found.items() if name not in _LABELS}
    if len(kept) != len(found):
        changes["metadata"] = msgspec.json.encode(kept) if kept else None


def _check_messages(messages: msgspec.Raw | None) -> None:
    """A list, not empty, of objects with a role; what else is in them is the provider's to judge."""
    if messages is None:
        raise GatewayError("missing_parameter", "Missing required parameter: 'messages'.", param="messages")
    try:
        found = _MESSAGES.decode(messages)
    except msgspec.ValidationError:
        raise _about_messages(messages) from None
    if not found:
        raise GatewayError("invalid_value", "'messages' must hold at least one message.", param="messages")


def _about_messages(messages: msgspec.Raw) -> GatewayError:
    """Names the first message at fault (the slow way: only a request that is refused comes here)."""
    try:
        entries = msgspec.json.decode(messages, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return GatewayError("invalid_type", "'messages' must be an array.", param="messages")
    for index, entry in enumerate(entries):
        name = f"messages[{index}]"
        try:
            role = read_inner_object(entry, name, ()).get("role")
        except GatewayError as error:
            return error
        name += ".role"
        if role is None:
            return GatewayError("missing_parameter", f"Missing required parameter: '{name}'.", param=name)
        if not bytes(role).startswith(b'"'):
            return GatewayError("invalid_type", f"'{name}' must be a string.", param=name)
    return GatewayError("invalid_value", "'messages' cannot be read.", param="messages")
