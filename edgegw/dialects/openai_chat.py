"""OpenAI Chat Completions as clients speak it: read a request, edit it for the way on, write errors.

A request is read at its top level only (platform documentation, "Create chat completion"): the fields we act on are
checked, the rest stays bytes and passes verbatim, whatever fields there are this month. Every complaint is a
GatewayError that names the field. Knows nothing of providers and of what they answer.

Nearly every request is read by one typed decode that checks all fields at once. What it does not take is read again
field by field, which knows what to complain about: the two must agree on everything that the first one takes.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec

from edgegw.dialects.base import Ask
from edgegw.dialects.document import ink, read_inner_object, read_object
from edgegw.errors import GatewayError
from edgegw.exchange import TOKENS_MAX

NAME = "openai_chat"

# A tenant or a use case is a key in limits, rows and headers: short, and visible in all of them.
LABEL_CHARS_MAX = 128
MODEL_CHARS_MAX = 256
# OpenAI's own bound for n.
CHOICES_MAX = 128

# What we act on: said twice, it could be read otherwise by the provider than by us.
_ACTED_ON = frozenset(
    {"model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "metadata"}
)
_LABELS = frozenset({"tenant", "use_case"})
_NULL = msgspec.Raw(b"null")
_ASKING_FOR_USAGE = msgspec.Raw(b'{"include_usage":true}')
_ASKED_FOR_USAGE = (_ASKING_FOR_USAGE, msgspec.Raw(b'{"include_usage": true}'))  # as nearly everybody writes it

_INDEX_OF_ERROR = re.compile(r"`\$\[(\d+)\]")

_Value = TypeVar("_Value")


class _Message(msgspec.Struct, gc=False):
    role: str


_Label = Annotated[str, msgspec.Meta(min_length=1, max_length=LABEL_CHARS_MAX)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _Labels(msgspec.Struct, gc=False, omit_defaults=True):
    tenant: _Label | None = None
    use_case: _Label | None = None


class _Wish(msgspec.Struct, gc=False):
    """The fields we act on, as they should be. An empty model stands for none: said in a request it is refused."""

    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=MODEL_CHARS_MAX)] = ""
    stream: bool | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=CHOICES_MAX)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    metadata: _Labels | None = None


_WISH = msgspec.json.Decoder(_Wish)
_MESSAGES = msgspec.json.Decoder(list[_Message])
_STRING = msgspec.json.Decoder(str)
_INTEGER = msgspec.json.Decoder(int)
_BOOLEAN = msgspec.json.Decoder(bool)
_ENCODER = msgspec.json.Encoder()


def read(body: bytes) -> Ask:
    """Reads a request. Raises GatewayError: invalid_json, invalid_type, invalid_value, missing_parameter."""
    fields = read_object(body, _ACTED_ON)
    try:
        wish = _WISH.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _read_field_by_field(body, fields)
    if not wish.model.isprintable():
        return _read_field_by_field(body, fields)
    labels, max_tokens = wish.metadata, wish.max_completion_tokens
    tenant = use_case = None
    only_labels = False
    if labels is not None:
        tenant, use_case = labels.tenant, labels.use_case
        if _is_all(labels, fields["metadata"]):
            only_labels = tenant is not None or use_case is not None
        else:
            tenant, use_case = _labels(fields["metadata"])
    return Ask(
        dialect=NAME,
        model=wish.model or None,
        stream=wish.stream or False,
        include_usage=_include_usage(fields.get("stream_options")),
        tenant=tenant,
        use_case=use_case,
        max_output_tokens=wish.max_tokens if max_tokens is None else max_tokens,
        choices=wish.n or 1,
        fields=fields,
        body=body,
        only_labels=only_labels,
    )


def edit(ask: Ask, model: str, include_usage: bool) -> bytes:
    """The body for a provider of the same dialect: with its `model`, without our labels, asking for usage (if streamed
    and `include_usage`).

    Other fields stay verbatim and in their order. When nothing changes, the body object itself comes back.
    """
    fields = ask.fields
    written: dict[str, object] = {}
    metadata = fields.get("metadata")
    if ask.only_labels:
        written["metadata"] = {}
    elif metadata is not None and metadata != _NULL:
        kept = read_inner_object(metadata, "metadata", ())
        if _drop_labels(kept):
            written["metadata"] = kept
    if model != ask.model:
        written["model"] = model
    if include_usage and ask.stream and not ask.include_usage:
        written["stream_options"] = _asking_for_usage(fields.get("stream_options"))
    if not written:
        return ask.body
    written = {**fields, **written}
    if written.get("metadata") == {}:
        del written["metadata"]
    return _ENCODER.encode(written)


def error_body(error: GatewayError) -> bytes:
    """The JSON body of an error reply: the provider's own when it speaks this dialect, else OpenAI's envelope."""
    return _envelope(error) if error.body is None else error.body


def error_event(error: GatewayError) -> bytes:
    """The one event that ends a stream which cannot be completed. No [DONE] follows it."""
    return b"data: " + _envelope(error) + b"\n\n"


def _envelope(error: GatewayError) -> bytes:
    said = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": said})


def _read_field_by_field(body: bytes, fields: dict[str, msgspec.Raw]) -> Ask:
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
    if options in _ASKED_FOR_USAGE:
        return True
    found = read_inner_object(options, "stream_options", ("include_usage",))
    wished = _optional(_BOOLEAN, found.get("include_usage"), "stream_options.include_usage", "a boolean")
    return wished or False


def _asking_for_usage(options: msgspec.Raw | None) -> object:
    if options is None or options == _NULL:
        return _ASKING_FOR_USAGE
    return {**read_inner_object(options, "stream_options", ()), "include_usage": True}


def _is_all(labels: _Labels, metadata: msgspec.Raw) -> bool:
    """Whether `metadata` surely holds these labels and nothing else, each once (white space aside, it is as short as it
    can be), and they have no character that must be looked at."""
    text = f"{labels.tenant}{labels.use_case}"
    if not text.isprintable() or " " in text:
        return False
    least = len(_ENCODER.encode(labels))
    return len(metadata) == least or ink(bytes(metadata)) == least


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


def _drop_labels(metadata: dict[str, msgspec.Raw]) -> bool:
    """Takes our labels out; False when there were none."""
    count = len(metadata)
    for name in _LABELS:
        metadata.pop(name, None)
    return len(metadata) != count


def _check_messages(messages: msgspec.Raw | None) -> None:
    """A list, not empty, of objects with a role; what else is in them is the provider's to judge."""
    if messages is None:
        raise GatewayError("missing_parameter", "Missing required parameter: 'messages'.", param="messages")
    try:
        found = _MESSAGES.decode(messages)
    except msgspec.ValidationError as error:
        raise _about_messages(messages, str(error)) from None
    if not found:
        raise GatewayError("invalid_value", "'messages' must hold at least one message.", param="messages")


def _about_messages(messages: msgspec.Raw, complaint: str) -> GatewayError:
    """Names the first message at fault. `complaint` is msgspec's, which tells its index."""
    try:
        entries = msgspec.json.decode(messages, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return GatewayError("invalid_type", "'messages' must be an array.", param="messages")
    first = _INDEX_OF_ERROR.search(complaint)
    for index in range(int(first[1]) if first is not None else 0, len(entries)):
        entry, name = entries[index], f"messages[{index}]"
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
