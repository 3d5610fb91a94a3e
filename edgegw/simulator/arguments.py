"""Arguments for a tool call that fit the tool's JSON Schema: the required properties, of the right type.

Pure. Follows what models are given in practice: type, enum, const, default, required, properties, items, anyOf/oneOf/
allOf and local $ref. Not a validator, not a generator of every schema.
"""

from __future__ import annotations

from typing import Any

_DEPTH_MAX = 12  # recursive schemas ($ref to themselves) end here

_FORMATS = {
    "date": "2026-11-23",
    "date-time": "2026-11-23T09:30:00Z",
    "time": "09:30:00Z",
    "email": "ada@example.com",
    "uri": "https://example.com/",
    "uuid": "018f9a3e-7c21-7d4b-9a66-0c1e5b7f2d34",
}


def fitting(schema: object) -> dict[str, Any]:
    """An object that fits a tool's `parameters` (or `input_schema`); {} when nothing is required."""
    value = _value(schema, schema, "input", 0)
    return value if isinstance(value, dict) else {}


def _value(schema: object, root: object, name: str, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return {} if depth == 0 else name
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    if "$ref" in schema:
        return _value(_local(schema["$ref"], root), root, name, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return _value(schema[key][0], root, name, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema or depth == 0 else "string")
    if isinstance(kind, list):
        kind = kind[0] if kind else "string"
    return _of_kind(str(kind), schema, root, name, depth)


def _of_kind(kind: str, schema: dict[str, Any], root: object, name: str, depth: int) -> Any:
    if kind == "object":
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            properties = {}
        return {str(key): _value(properties.get(key), root, str(key), depth + 1) for key in schema.get("required", ())}
    if kind == "array":
        return [_value(schema.get("items"), root, name, depth + 1) for _ in range(max(1, schema.get("minItems", 1)))]
    if kind in ("integer", "number"):
        return _number(kind, schema)
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    text = _FORMATS.get(schema.get("format", ""), f"some {name}")
    return text[: schema.get("maxLength", len(text))].ljust(schema.get("minLength", 0), ".")


def _number(kind: str, schema: dict[str, Any]) -> int | float:
    low, high = schema.get("minimum"), schema.get("maximum")
    value = 7 if kind == "integer" else 1.5
    if low is not None and value < low:
        value = low
    if high is not None and value > high:
        value = high
    return value


def _local(reference: object, root: object) -> object:
    """The schema that `#/$defs/Place` names, None when there is none."""
    found = root
    for part in str(reference).removeprefix("#").strip("/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found
