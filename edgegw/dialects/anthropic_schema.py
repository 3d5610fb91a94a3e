"""JSON schemas as Anthropic's structured outputs and strict tools take them (platform documentation, "Structured
outputs").

Keywords outside the supported part are refused by the API. What they say is moved into the description, where the
model still reads it; the client's own validation stays as strict as it was. Every object must be closed, which a map
(an object whose names are not known) cannot be: it would always be empty (`has_maps`). And all schemas of a request
together must not be too much for the API to compile (`fit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edgegw.dialects.complaints import wrong_value

_KEPT = frozenset(
    {
        "$ref",
        "$defs",
        "definitions",
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "properties",
        "required",
        "title",
        "type",
    }
)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})
_OF_SCHEMAS = ("$defs", "definitions", "properties")
_LISTS_OF_SCHEMAS = ("allOf", "anyOf")
_LISTS_WITH_SCHEMAS = (*_LISTS_OF_SCHEMAS, "oneOf")
# What the API takes in one request: schemas that hold, parameters not required, parameters of more than one type.
STRICT_MAX = 20
OPTIONAL_MAX = 24
UNIONS_MAX = 16
_ITEMS_SUPPORTED_MIN = (0, 1)


def supported(schema: msgspec.Raw, path: str) -> dict[str, Any]:
    """The schema, a JSON object, within the supported part. Raises GatewayError invalid_value, with its `path` in the
    client's request, when it is too deep."""
    found: dict[str, Any] = msgspec.json.decode(schema, type=dict[str, Any])
    try:
        return _object(found)
    except RecursionError:
        raise wrong_value(path, "is nested too deeply") from None


def has_maps(schema: msgspec.Raw) -> bool:
    """Whether an object in it is there for names that it does not list."""
    try:
        return any(map(_is_map, _objects([msgspec.json.decode(schema)])))
    except RecursionError:
        return False  # too deep for anything; `supported` says so


def fit(schemas: list[msgspec.Raw]) -> bool:
    """Whether the API takes so many and such schemas in one request."""
    optional = unions = 0
    try:
        for schema in _objects([msgspec.json.decode(each) for each in schemas]):
            names, required = schema.get("properties"), schema.get("required")
            if isinstance(names, dict):
                optional += len(names.keys() - set(map(str, required if isinstance(required, list) else ())))
            unions += isinstance(schema.get("type"), list) or "anyOf" in schema or "oneOf" in schema
    except RecursionError:
        return True  # as above
    return len(schemas) <= STRICT_MAX and optional <= OPTIONAL_MAX and unions <= UNIONS_MAX


def _is_map(schema: dict[str, Any]) -> bool:
    others = schema.get("additionalProperties")
    if not _is_object(schema):
        return False
    closed = others is False or (others is None and bool(schema.get("properties")))
    return "patternProperties" in schema or not closed


def _is_object(schema: dict[str, Any]) -> bool:
    """Whether objects are among what it describes."""
    kind = schema.get("type")
    return kind == "object" or "properties" in schema or (isinstance(kind, list) and "object" in kind)


def _objects(schemas: list[object]) -> Iterator[dict[str, Any]]:
    """The schemas, and those in them."""
    for schema in schemas:
        if not isinstance(schema, dict):
            continue
        yield schema
        for name, value in schema.items():
            if name in _OF_SCHEMAS and isinstance(value, dict):
                yield from _objects(list(value.values()))
            elif name in _LISTS_WITH_SCHEMAS and isinstance(value, list):
                yield from _objects(value)
            elif name == "items":
                yield from _objects([value])


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    if "oneOf" in schema and "anyOf" not in schema:
        schema = {**schema, "anyOf": schema["oneOf"]}
        del schema["oneOf"]
    kept = {name: _value(name, value) for name, value in schema.items() if _keeps(name, value)}
    moved = {name: value for name, value in schema.items() if name not in kept and not name.startswith("$")}
    if _is_object(schema):
        kept["additionalProperties"] = False
        moved.pop("additionalProperties", None)
    if moved:
        said = "{" + ", ".join(f"{name}: {_json(value)}" for name, value in moved.items()) + "}"
        kept["description"] = f"{kept['description']}\n\n{said}" if kept.get("description") else said
    return kept


def _keeps(name: str, value: object) -> bool:
    if name == "format":
        return value in _FORMATS
    if name == "minItems":
        return value in _ITEMS_SUPPORTED_MIN
    return name in _KEPT


def _value(name: str, value: Any) -> Any:
    if name in _OF_SCHEMAS and isinstance(value, dict):
        return {key: _object(inner) if isinstance(inner, dict) else inner for key, inner in value.items()}
    if name in _LISTS_OF_SCHEMAS and isinstance(value, list):
        return [_object(inner) if isinstance(inner, dict) else inner for inner in value]
    if name == "items" and isinstance(value, dict):
        return _object(value)
    return value


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
