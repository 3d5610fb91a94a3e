"""The settings in force, as `edgegw check` prints them: a settings file again, complete with defaults, secrets masked.

Printed by the tables that the loader reads by; loading the text gives the same settings, apart from what is masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from edgegw.settings.fields import ROOT
from edgegw.settings.model import Settings
from edgegw.settings.specs import Named, Section, Several, Shorthand, Spec
from edgegw.settings.tree import NULLS
from edgegw.settings.values import Kind

_INDENT = "  "
_SAFE_PLAIN = re.compile(r"[A-Za-z0-9./_][A-Za-z0-9./_\-]*")  # no YAML indicator among them


def describe(settings: Settings) -> str:
    """A YAML text. What is not set is left out."""
    return "\n".join((f"# from {settings.source}", *_section(ROOT, settings, ""), ""))


def _section(section: Section, value: Any, indent: str) -> Iterator[str]:
    for field in section.fields:
        part = getattr(value, field.attribute)
        if part is None or part == {} or (isinstance(field.spec, Section) and not _says(field.spec, part)):
            continue
        yield from _entry(field.key, field.spec, part, indent)


def _says(section: Section, value: Any) -> bool:
    return any(True for _ in _section(section, value, ""))


def _entry(key: str, spec: Spec, value: Any, indent: str) -> Iterator[str]:
    match spec:
        case Kind():
            yield f"{indent}{key}: {_scalar(spec, value)}"
        case Several():
            yield f"{indent}{key}: [{', '.join(_scalar(spec.item, item) for item in value)}]"
        case Section():
            yield f"{indent}{key}:" if _says(spec, value) else f"{indent}{key}: {{}}"
            yield from _section(spec, value, indent + _INDENT)
        case Shorthand():
            yield from _entry(key, spec.section, value, indent)
        case Named():
            yield f"{indent}{key}:"
            for name, item in value.items():
                yield from _entry(_text(name), spec.item, item, indent + _INDENT)


def _scalar(kind: Kind, value: Any) -> str:
    text = kind.show(value)
    return text if isinstance(value, int | float) else _text(text.replace("${", "$${"))


def _text(text: str) -> str:
    """Plain where that is safe; otherwise quoted as in JSON, which YAML reads alike."""
    return text if _SAFE_PLAIN.fullmatch(text) and text not in NULLS else msgspec.json.encode(text).decode()
