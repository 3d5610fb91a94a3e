"""JSON schemas as Anthropic's structured outputs take them (platform documentation, "Structured outputs").

Keywords outside the supported part are refused by the API. What they say is moved into the description, where the
model still reads it; the client's own validation stays as strict as it was.
"""

from __future__ import annotations

from typing import Any

import msgspec

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
_ITEMS_SUPPORTED_MIN = (0, 1)


def supported(schema: msgspec.Raw) -> dict[str, Any]:
    """The schema within the supported part. `schema` is a JSON object."""
    found: dict[str, Any] = msgspec.json.decode(schema, type=dict[str, Any])
    return _object(found)


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    if "oneOf" in schema and "anyOf" not in schema:
        schema = {**schema, "anyOf": schema["oneOf"]}
        del schema["oneOf"]
    kept = {name: _value(name, value) for name, value in schema.items() if _keeps(name, value)}
    moved = {name: value for name, value in schema.items() if name not in kept and not name.startswith("$")}
    if schema.get("type") == "object" or "properties" in schema:
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
