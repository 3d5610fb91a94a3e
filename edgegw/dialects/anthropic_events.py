"""The events of a streamed Anthropic message as typed structs: one decode each, pieces of text left as JSON strings.

Types and fields that are not here are passed over: Anthropic adds some every month.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgegw.dialects.anthropic_messages import PARTS, error_fault
from edgegw.dialects.lenient import strict_json
from edgegw.dialects.openai_chat_reply import Mask, garbage

_EMPTY = msgspec.Raw()


class Delta(msgspec.Struct):
    type: str = ""
    text: msgspec.Raw = _EMPTY
    partial_json: msgspec.Raw = _EMPTY
    thinking: msgspec.Raw = _EMPTY
    signature: msgspec.Raw = _EMPTY
    citation: dict[str, Any] | None = None
    stop_reason: str | None = None
    stop_details: msgspec.Raw = _EMPTY


class Block(msgspec.Struct):
    type: str = ""
    id: str | None = None
    name: str | None = None
    text: msgspec.Raw = _EMPTY
    thinking: msgspec.Raw = _EMPTY
    signature: msgspec.Raw = _EMPTY
    data: msgspec.Raw = _EMPTY
    input: msgspec.Raw = _EMPTY


class Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: msgspec.Raw = _EMPTY


class Event(msgspec.Struct):
    type: str = ""
    delta: Delta | None = None
    content_block: Block | None = None
    message: Message | None = None
    usage: msgspec.Raw = _EMPTY
    error: msgspec.Raw = _EMPTY


EVENT = msgspec.json.Decoder(Event)
_ANYTHING = msgspec.json.Decoder()

# What of an answer a client must not miss without a word: events, blocks and deltas.
_TELLING = frozenset(
    (
        *("message_start", "message_delta"),
        *PARTS,
        *("text_delta", "input_json_delta", "thinking_delta", "signature_delta"),
    )
)


def read_again(data: bytes, mask: Mask) -> Event:
    """An event that EVENT did not take: as lenient parsers read it, or an empty one where it may be passed over.

    Raises UpstreamFault: what the error in it says; upstream_garbage for what is no JSON object, and for an event that
    holds a part of the answer and cannot be read.
    """
    document = strict_json(data) or b"null"
    try:
        return EVENT.decode(document)
    except msgspec.ValidationError:
        found = _ANYTHING.decode(document)
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise garbage("The provider sent an event that is not JSON.")
    if found.get("error"):
        raise error_fault(mask(msgspec.json.encode(found["error"])))
    part = found.get("delta") or found.get("content_block")
    kinds = (found.get("type"), part.get("type") if isinstance(part, dict) else None)
    if any(kind in _TELLING for kind in kinds if isinstance(kind, str)):
        raise garbage("The provider sent an event that cannot be read.")
    return Event()
