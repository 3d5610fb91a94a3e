"""Lists of JSON made to fit into so many bytes and still be JSON: long texts are shortened, and then whole items go.

What is left out of a text is said behind it. Pure.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

# No text is shortened to less.
TEXT_CHARS_MIN = 64
# What is tried one after the other is a half of all, then an eighth, …
_STEP = 4

_encoder = msgspec.json.Encoder()


def fitted(items: list[dict[str, Any]], bytes_max: int, *, newest: bool) -> tuple[str, bool]:
    """At most `bytes_max` of UTF-8, and whether that is everything. Empty when there is nothing, or nothing fits.
    `newest`: when items have to go, the first of them go first."""
    if not items:
        return "", True
    encoded = _encoded(items)
    if len(encoded) <= bytes_max:
        return encoded.decode(), True
    chars_max = bytes_max // 2
    while chars_max > TEXT_CHARS_MIN:
        encoded = _encoded(_shortened(items, chars_max))
        if len(encoded) <= bytes_max:
            return encoded.decode(), False
        chars_max //= _STEP
    return _some(_shortened(items, TEXT_CHARS_MIN), bytes_max, newest), False


def _some(items: list[dict[str, Any]], bytes_max: int, newest: bool) -> str:
    found: list[bytes] = []
    size = 1
    for item in reversed(items) if newest else items:
        encoded = _encoded(item)
        size += len(encoded) + 1
        if size > bytes_max:
            break
        found.append(encoded)
    if newest:
        found.reverse()
    return (b"[" + b",".join(found) + b"]").decode() if found else ""


def _shortened(value: Any, chars_max: int) -> Any:
    match value:
        case str() if len(value) > chars_max:
            return f"{value[:chars_max]}… ({len(value) - chars_max} characters left out)"
        case list():
            return [_shortened(each, chars_max) for each in value]
        case dict():
            return {key: _shortened(each, chars_max) for key, each in value.items()}
    return value


def _encoded(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:  # half a surrogate pair: JSON can say it, UTF-8 cannot
        return json.dumps(value).encode()
