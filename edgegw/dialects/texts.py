"""How much an answer says, in bytes, in whatever chat dialect it is written: for answers whose provider did not count.

An answer's words are the texts under a few names, wherever they stand; ids, roles and types are none. Slow, and called
only when a provider has not said what was used.
"""

from __future__ import annotations

import msgspec

from edgegw.http.sse import Splitter, data_of

# OpenAI Chat and Responses, Anthropic Messages, and the fields of compatible providers.
_SAID = frozenset(
    (
        *("content", "text", "refusal", "arguments", "partial_json", "delta", "thinking", "transcript"),
        *("reasoning", "reasoning_content", "input"),
    )
)
_ANYTHING = msgspec.json.Decoder()
# To decode more would hold up a worker for milliseconds; it would be an answer of about 250,000 tokens.
BODY_BYTES_MAX = 1024 * 1024
# A longer sample tells no more, and takes time.
SAMPLE_BYTES_MAX = 64 * 1024


def text_bytes(document: object, said: bool = False) -> int:
    """Bytes of all that is said in a decoded JSON document."""
    if isinstance(document, str):
        return len(document.encode("utf-8", "replace")) if said else 0
    if isinstance(document, dict):
        return sum(text_bytes(value, name in _SAID) for name, value in document.items())
    if isinstance(document, list):
        return sum(text_bytes(value, said) for value in document)
    return 0


def text_bytes_of_body(body: bytes) -> int:
    """Of a whole answer; of what is no JSON, or too large to be taken apart for an estimate, all of it."""
    if len(body) > BODY_BYTES_MAX:
        return len(body)
    try:
        return text_bytes(_ANYTHING.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return len(body)


def text_bytes_of_events(stream: bytes) -> list[tuple[int, int]]:
    """Of each event of a piece of a stream that begins with an event: its bytes, and those of text in it."""
    found = []
    for raw in Splitter().feed(stream[:SAMPLE_BYTES_MAX]):
        try:
            found.append((len(raw), text_bytes(_ANYTHING.decode(data_of(raw) or b""))))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return found
