"""A JSON object read at its top level: field names and raw values, every fault with its place.

The values stay bytes; msgspec checks their syntax on the way over them, at about 5 GB a second. What it leaves open is
settled here: UTF-8, nesting, and fields that stand twice (two readers of one body must not differ in what it says).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice

import msgspec

from edgegw.errors import GatewayError

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = msgspec.json.Decoder(str)

_BYTE_OF_ERROR = re.compile(r" *\(byte (\d+)\)")
_FIELD_NAME = re.compile(rb'[\s{,]*+("(?:[^"\\]++|\\.)*+")\s*+:\s*+')
# Text up to the first surrogate escape that has no other half; no strict parser takes one.
_WHOLE_PAIRS = re.compile(rb"(?:[^\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u(?![dD][89a-fA-F])|\\[^u])*+", re.DOTALL)
_HALF_OF_A_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]|[^\s{}\[\],:"]++')
_AFTER_A_VALUE = b"]}, \t\r\n"
_WHITE_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
# What is walked over is bounded: a client's odd body must not hold up a worker. OpenAI has 40 fields.
FIELDS_MAX = 1024
_SKIPPED_TOKENS_MAX = 16 * 1024
_NAME_CHARS_MAX = 80  # of a client's own word in a complaint
_LOOKED_AT_BYTES_MAX = 1024 * 1024  # for a better word about a body that is refused anyway
# Up to this size, counting all that is not white space (1.5 us per KB) is cheaper than a walk (1 us per field).
_COUNTED_BYTES_MAX = 4 * 1024


def read_object(body: bytes, once: Collection[str]) -> dict[str, msgspec.Raw]:
    """The fields of a request body, in their order. Those of `once` may stand in it one time only.

    Raises GatewayError: invalid_json with line, column and byte; invalid_type; invalid_value for a field said twice.
    """
    if not body.isascii():
        _check_utf8(body)
    try:
        fields = _FIELDS.decode(body)
    except msgspec.ValidationError:
        raise GatewayError("invalid_type", "The request body must be a JSON object.") from None
    except msgspec.DecodeError as error:
        raise _not_json(body, str(error)) from None
    except RecursionError:
        raise GatewayError("invalid_json", "The request body is nested too deeply.") from None
    _check_once(body, fields, once, "")
    return fields


def read_inner_object(value: msgspec.Raw, name: str, once: Collection[str]) -> dict[str, msgspec.Raw]:
    """The fields of an object inside a body that was read; `name` is its path. Raises GatewayError as read_object."""
    try:
        fields = _FIELDS.decode(value)
    except msgspec.ValidationError:
        raise GatewayError("invalid_type", f"'{name}' must be an object.", param=name) from None
    if once:
        _check_once(bytes(value), fields, once, name + ".")
    return fields


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        place = _place(body, error.start)
        raise GatewayError("invalid_json", f"The request body is not valid UTF-8 at {place}.") from None


def _not_json(body: bytes, complaint: str) -> GatewayError:
    """Turns msgspec's words ("JSON is malformed: invalid character (byte 12)") into ours, with a place to look at."""
    if not body.strip(_WHITE_SPACE):
        return GatewayError("invalid_json", "The request has no body, or does not say how long it is.")
    if body.startswith(_BOM):
        return GatewayError("invalid_json", "The request body is not valid JSON: it begins with a byte order mark.")
    match = _BYTE_OF_ERROR.search(complaint)
    whole = _WHOLE_PAIRS.match(body, 0, _LOOKED_AT_BYTES_MAX) if match is None or "surrogate" in complaint else None
    if whole is not None and _HALF_OF_A_PAIR.match(body, whole.end()):
        reason, at = "half of a surrogate pair", whole.end()
    elif match is None:
        reason, at = "it ends too early", len(body)
    else:
        reason, at = _BYTE_OF_ERROR.sub("", complaint).removeprefix("JSON is malformed: "), int(match[1])
    return GatewayError("invalid_json", f"The request body is not valid JSON: {reason}, at {_place(body, at)}.")


def _place(body: bytes, at: int) -> str:
    line = body.count(b"\n", 0, at) + 1
    column = len(body[body.rfind(b"\n", 0, at) + 1 : at].decode("utf-8", "replace")) + 1
    return f"line {line}, column {column} (byte {at})"


def _check_once(document: bytes, fields: dict[str, msgspec.Raw], once: Collection[str], path: str) -> None:
    """Refuses a field of `once` that stands twice, and more fields than anybody has."""
    if len(fields) > FIELDS_MAX:
        raise _too_many(path)
    if not _is_sum_of(fields, document):
        _walk(document, fields, once, path)


def _is_sum_of(fields: dict[str, msgspec.Raw], document: bytes) -> bool:
    """Whether these fields are surely all there is in the object; False may also be a doubt (escapes, large bodies).

    `{"a":1,"b":2}` is never shorter than its names and values, three marks around each name, a comma between two
    fields and two braces. When it is no longer either, nothing stands twice. The same holds for an object written
    with white space once all white space is left out of the count, in the object as in its parts.
    """
    count = len(fields)
    marks = 4 * count + 1
    size = len(document)
    if size == marks + sum(map(len, fields)) + sum(map(len, fields.values())):
        return True
    if size > _COUNTED_BYTES_MAX:
        return False
    return ink(document) == marks + ink(b"".join(("".join(fields).encode(), *fields.values())))


def ink(text: bytes) -> int:
    """Bytes that are not white space (in JSON's sense, also where it stands in strings)."""
    return len(text.translate(None, _WHITE_SPACE))


def _walk(document: bytes, fields: dict[str, msgspec.Raw], once: Collection[str], path: str) -> None:
    """Goes over an object field by field."""
    seen: set[str] = set()
    at = count = 0
    while match := _FIELD_NAME.match(document, at):
        name = _STRING.decode(match[1])
        if name in seen and name in once:
            raise _twice(path + name)
        seen.add(name)
        count += 1
        if count > FIELDS_MAX:
            raise _too_many(path)
        size = _length(document, match.end(), bytes(fields[name]))
        if size is None:
            raise _twice(path + name)
        at = match.end() + size


def _length(document: bytes, at: int, expected: bytes) -> int | None:
    """How long the value at `at` is: that of `expected` when it stands there, else (its field stands twice) what
    reading it gives; None when that is too long to be read."""
    size = len(expected)
    if document.startswith(expected, at) and document[at + size : at + size + 1] in _AFTER_A_VALUE:
        return size
    depth = 0
    for match in islice(_TOKEN.finditer(document, at), _SKIPPED_TOKENS_MAX):
        token = match[0]
        if token in b"{[":
            depth += 1
        elif token in b"}]":
            depth -= 1
        if depth == 0:
            return match.end() - at
    return None


def _twice(field: str) -> GatewayError:
    field = field[:_NAME_CHARS_MAX]
    return GatewayError("invalid_value", f"'{field}' stands twice in the object.", param=field)


def _too_many(path: str) -> GatewayError:
    of = f"'{path.rstrip('.')}'" if path else "The request body"
    return GatewayError("invalid_value", f"{of} has more than {FIELDS_MAX} fields.", param=path.rstrip(".") or None)
