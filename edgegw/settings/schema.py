"""The settings file as JSON Schema (draft 2020-12), for editors: completion, descriptions, defaults, early mistakes.

Made from the tables of `fields.py`, so it cannot fall behind the loader. It is a little more lenient: an editor cannot
know what `${…}` will be, nor which providers exist.
"""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any

from msgspec import NODEFAULT
from msgspec.structs import fields as struct_fields

from edgegw.settings.fields import PRESETS, PRICE, PROVIDER, ROOT, ROUTE
from edgegw.settings.specs import Field, Named, Section, Several, Shorthand, Spec
from edgegw.settings.tenant_fields import OWN_LIMITS
from edgegw.settings.values import Kind

# Sections that stand in many places, or are long, get a name of their own.
_DEFINITIONS = {"price": PRICE, "provider": PROVIDER, "route": ROUTE, "own_limits": OWN_LIMITS}
_EXPRESSION = {"type": "string", "pattern": r"\$\{[^}]*\}"}
_NOTHING = {"type": "null"}


def schema() -> dict[str, Any]:
    """The schema as a JSON document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "edgegw settings",
        **_section(ROOT),
        "$defs": {name: _section(section) for name, section in _DEFINITIONS.items()},
    }


def default(section: Section, field: Field) -> Any:
    """What a field is when the file does not say, as it would stand in the file: a text where it has a unit. None for
    a section, and for a field without a default or that has to be there."""
    value = _defaults(section.shape).get(field.attribute)
    if value is None or field.required or not isinstance(field.spec, Kind):
        return None
    as_it_is = isinstance(value, bool) or (isinstance(value, int) and field.spec.show is str)
    return value if as_it_is else field.spec.show(value)


def _defaults(shape: type[Any]) -> dict[str, Any]:
    if is_dataclass(shape):
        return {each.name: each.default for each in dataclass_fields(shape)}
    return {each.name: each.default for each in struct_fields(shape) if each.default is not NODEFAULT}


def _section(section: Section) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": "object",
        "properties": {field.key: _property(section, field) for field in section.fields},
        "additionalProperties": False,
    }
    required = [field.key for field in section.fields if field.required]
    if required:
        document["required"] = required
    if section is PROVIDER:
        document["allOf"] = [_needs(kind, key) for kind, key in _needed()]
    return document


def _property(section: Section, field: Field) -> dict[str, Any]:
    document = {"description": field.doc, **_spec(field.spec, optional=not field.required)}
    value = default(section, field)
    return document if value is None else {**document, "default": value}


def _spec(spec: Spec, *, optional: bool) -> dict[str, Any]:
    match spec:
        case Kind():
            return {"anyOf": [spec.schema, _EXPRESSION, *([_NOTHING] if optional else [])]}
        case Section():
            name = next((name for name, section in _DEFINITIONS.items() if section is spec), None)
            document = {"$ref": f"#/$defs/{name}"} if name else _section(spec)
        case Shorthand():
            document = {"anyOf": [_spec(spec.field.spec, optional=False), _section(spec.section)]}
        case Named():
            may_be_empty = isinstance(spec.item, Section) and not spec.item.has_required
            document = {
                "type": "object",
                "propertyNames": spec.name.schema,
                "additionalProperties": _spec(spec.item, optional=may_be_empty),
                **({} if optional else {"minProperties": 1}),
            }
        case Several():
            document = {"type": "array", "minItems": spec.least, "items": _spec(spec.item, optional=False)}
    return {"anyOf": [document, _NOTHING]} if optional else document


def _needed() -> list[tuple[str, str]]:
    """(kind of provider, key that it cannot do without)."""
    keys = [(kind, "api_key") for kind, preset in PRESETS.items() if preset.needs_key]
    urls = [(kind, "base_url") for kind, preset in PRESETS.items() if preset.base_url is None]
    return keys + urls


def _needs(kind: str, key: str) -> dict[str, Any]:
    return {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": {"required": [key]}}
