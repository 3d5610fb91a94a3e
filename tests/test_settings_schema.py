"""The JSON Schema agrees with the loader, and tells of every setting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml
from settings_cases import BASE, EXAMPLE, FULL, MISTAKES, document, unmasked
from tenant_cases import TENANTS

from edgegw.settings import describe, load_text, schema
from edgegw.settings.fields import ROOT
from edgegw.settings.schema import default
from edgegw.settings.specs import Field, Section, inner


def _says(rules: Any, value: Any, root: Any) -> bool:
    """Whether `value` is valid by `rules`: the part of JSON Schema that we write, any other keyword is an error."""
    return all(_KEYWORDS[keyword](rule, value, rules, root) for keyword, rule in rules.items())


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
    "boolean": bool,
}


def _is_type(rule: str | list[str], value: Any) -> bool:
    names = [rule] if isinstance(rule, str) else rule
    if isinstance(value, bool):  # which is an int to Python
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def _conditional(document: Any, value: Any, root: Any) -> bool:
    return not _says(document["if"], value, root) or _says(document["then"], value, root)


def _others(rule: Any, value: Any, document: Any, root: Any) -> bool:
    others = [part for key, part in value.items() if key not in document.get("properties", {})] if _dict(value) else []
    return not others if rule is False else all(_says(rule, part, root) for part in others)


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


_KEYWORDS: dict[str, Any] = {
    "type": lambda rule, value, d, r: _is_type(rule, value),
    "enum": lambda rule, value, d, r: value in rule,
    "const": lambda rule, value, d, r: value == rule,
    "pattern": lambda rule, value, d, r: not isinstance(value, str) or re.search(rule, value) is not None,
    "minimum": lambda rule, value, d, r: not isinstance(value, int | float) or value >= rule,
    "maximum": lambda rule, value, d, r: not isinstance(value, int | float) or value <= rule,
    "minItems": lambda rule, value, d, r: not isinstance(value, list) or len(value) >= rule,
    "minProperties": lambda rule, value, d, r: not _dict(value) or len(value) >= rule,
    "required": lambda rule, value, d, r: not _dict(value) or all(key in value for key in rule),
    "anyOf": lambda rule, value, d, r: any(_says(each, value, r) for each in rule),
    "allOf": lambda rule, value, d, r: all(_says(each, value, r) for each in rule),
    "not": lambda rule, value, d, r: not _says(rule, value, r),
    "if": lambda rule, value, d, r: _conditional(d, value, r),
    "then": lambda rule, value, d, r: "if" in d,
    "$ref": lambda rule, value, d, r: _says(r["$defs"][rule.removeprefix("#/$defs/")], value, r),
    "items": lambda rule, value, d, r: not isinstance(value, list) or all(_says(rule, each, r) for each in value),
    "propertyNames": lambda rule, value, d, r: not _dict(value) or all(_says(rule, each, r) for each in value),
    "additionalProperties": _others,
    "properties": lambda rule, value, d, r: (
        not _dict(value) or all(_says(part, value[key], r) for key, part in rule.items() if key in value)
    ),
    **dict.fromkeys(("$schema", "$defs", "title", "description", "default"), lambda rule, value, d, r: True),
}


class _Texts(yaml.SafeLoader):
    """Without dates: a date is a text, as in JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class has it so
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _as_an_editor_sees_it(text: str) -> Any:
    """Editors know no bare `${…}`, so it is quoted for them."""
    return yaml.load(re.sub(r"(?<=[ \[])(\$\{[^}]*\})", r'"\1"', text), Loader=_Texts)


@pytest.fixture(scope="module")
def rules() -> Any:
    return schema()


@pytest.mark.parametrize(
    "text",
    [EXAMPLE, FULL, BASE, TENANTS, unmasked(describe(load_text(FULL, {}))), unmasked(describe(load_text(TENANTS, {})))],
    ids=["example", "full", "base", "tenants", "full, told", "tenants, told"],
)
def test_the_schema_accepts_what_the_loader_accepts(rules: Any, text: str) -> None:
    assert _says(rules, _as_an_editor_sees_it(text), rules)


# What an editor cannot know: YAML's own rules, variables, files, and what one setting means for another.
_BEYOND_THE_SCHEMA = re.compile(
    r"unset|expression|file|variable|unknown provider|second target|\* in|place in|same port|attempts|base over|journal"
    r"|unknown provider|price without|free and not|price too fine|two settings|older boolean|calendar"
    r"|key empty|key with|syntax|control|private|second doc|depth|anchor|alias|merge|tag|twice|list as key"
    r"|bad host|bad port|port 0|bad IPv6|IPv6 without|octal|too small|too long|duration zero"
)


@pytest.mark.parametrize("case", [m for m in MISTAKES if not _BEYOND_THE_SCHEMA.search(m[0])], ids=lambda case: case[0])
def test_the_schema_refuses_what_the_loader_refuses(
    rules: Any, case: tuple[str, str, dict[str, str], str, str, str]
) -> None:
    assert not _says(rules, _as_an_editor_sees_it(document(case[1])), rules)


def _rows(section: Section = ROOT, path: str = "") -> Iterator[tuple[str, Section, Field]]:
    for field in section.fields:
        here = f"{path}.{field.key}" if path else field.key
        yield here, section, field
        below = inner(field.spec)
        if isinstance(below, Section):
            yield from _rows(below, here)


def test_the_schema_tells_every_setting_with_its_default() -> None:
    text = msgspec.json.encode(schema()).decode()
    for path, section, field in _rows():
        assert msgspec.json.encode(field.doc).decode() in text, path
        value = default(section, field)
        assert value is None or f'"default":{msgspec.json.encode(value).decode()}' in text, path
    assert schema()["properties"]["server"]["anyOf"][0]["properties"]["drain_timeout"]["default"] == "60s"
