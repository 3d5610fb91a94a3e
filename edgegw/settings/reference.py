"""The settings as a page for people: each key with its type, its default and what it is for, and the variables.

`edgegw reference` prints it, from the tables of `fields.py` and `environment.py`; docs/settings-reference.md is what it
printed last, and a test holds it to that. What takes more than a sentence stands in docs/settings.md, by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from edgegw.settings.environment import PROVIDERS, VARIABLES, Variable
from edgegw.settings.fields import PRESETS, PROVIDER, ROOT
from edgegw.settings.schema import default
from edgegw.settings.specs import Field, Named, Section, Several, Shorthand, Spec, inner
from edgegw.settings.tree import join
from edgegw.settings.values import Kind

_TOP = "The file"
_OPENING = """\
# Reference of the settings

Every setting and every variable that sets one, as `edgegw reference` prints them: made from the tables that the gateway
reads its settings by. Change the tables, then call `make reference`. How a settings file looks, how durations, sizes
and expressions are written, and all that takes more than a sentence is in [settings.md](settings.md).

A running gateway takes a change with a reload (SIGHUP), but for settings that say they need a restart.
"""
_NO_SETTING = """\
No setting is what `EDGEGW_CONFIG` says (which file), `LOG_LEVEL` and `LOG_FORMAT` ([logs](operating.md#logs)),
OpenTelemetry's own variables ([traces](traces.md#variables), [metrics](metrics.md#by-otlp)), and `HTTP_PROXY`,
`HTTPS_PROXY` and `NO_PROXY`, which count for providers without a `proxy`.
"""
_URL = re.compile(r"\S+:///?[^\s,]+|127\.\S+")
_NOT_IN_AN_ANCHOR = re.compile(r"[^a-z0-9 _-]")
_BESIDE_A_FILE = {
    "ignored": "where the file refers to it",
    "fills": "where the file is silent",
    "overrides": "whatever the file says",
}


class Chapter(Struct):
    """A section and where it may stand: `places` are its paths, `docs` what the fields that hold it say of it."""

    section: Section
    places: list[str]
    docs: list[str]

    @property
    def title(self) -> str:
        return ", ".join(self.places) or _TOP

    @property
    def anchor(self) -> str:
        return _NOT_IN_AN_ANCHOR.sub("", self.title.lower()).replace(" ", "-")


def reference() -> str:
    """The page, in Markdown."""
    chapters = _chapters()
    parts = [_OPENING, *(_chapter(each, chapters) for each in chapters), *_variables()]
    return "\n".join(parts)


def _chapters() -> list[Chapter]:
    """Each section once, in the order in which a reader of the tables comes to it."""
    found: dict[int, Chapter] = {}

    def walk(section: Section, path: str, doc: str) -> None:
        chapter = found.setdefault(id(section), Chapter(section, [], []))
        if path:
            chapter.places.append(path)
        chapter.docs.append(doc)
        for field in section.fields:
            below = inner(field.spec)
            if isinstance(below, Section):
                named = f" {field.spec.called} is {field.spec.name.expected}." if isinstance(field.spec, Named) else ""
                walk(below, _place(path, field), field.doc + named)

    walk(ROOT, "", "")
    return list(found.values())


def _place(path: str, field: Field) -> str:
    """Where what is below a field stands."""
    here = join(path, field.key)
    return join(here, field.spec.called) if isinstance(field.spec, Named) else here


def _chapter(chapter: Chapter, chapters: list[Chapter]) -> str:
    section, said = chapter.section, chapter.docs
    lines = [f"## {chapter.title}", ""]
    if len(set(said)) > 1:
        lines += [*(f"- `{place}`: {doc}" for place, doc in zip(chapter.places, said, strict=True)), ""]
    elif said[0]:
        lines += [said[0], ""]
    place = chapter.places[0] if chapter.places else ""
    rows = ([f"`{field.key}`", *_cells(section, field, place, chapters)] for field in section.fields)
    lines += _table("key | type | default | what it is", rows)
    if section is PROVIDER:
        lines += ["", *_kinds()]
    return "\n".join((*lines, ""))


def _cells(section: Section, field: Field, place: str, chapters: list[Chapter]) -> list[str]:
    path = join(place, field.key)
    said = [field.doc]
    names = [variable.name for variable in VARIABLES if ".".join(variable.path) == path]
    if names:
        said.append(f"{'Variables' if len(names) > 1 else 'Variable'}: {_listed(names)}.")
    if field.restart:
        said.append("Needs a restart.")
    kind = _type(field.spec, _place(place, field), chapters)
    return [kind, "required" if field.required else _code(_default(section, field)), " ".join(said)]


def _type(spec: Spec, place: str, chapters: list[Chapter]) -> str:
    match spec:
        case Kind():
            return _URL.sub(r"`\g<0>`", spec.type)
        case Several():
            return f"list like `{spec.like}`"
        case Section():
            anchor = next(chapter.anchor for chapter in chapters if chapter.section is spec)
            return f"[{place}](#{anchor})"
        case Shorthand():
            return f"{_type(spec.section, place, chapters)}, or its `{spec.field.key}` alone"
        case Named(item=Kind() as item):
            return f"mapping, {spec.name.type} to {item.type}"
        case Named():
            return f"mapping of {_type(spec.item, place, chapters)}"


def _default(section: Section, field: Field) -> str:
    value = default(section, field)
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kinds() -> Iterator[str]:
    """What comes with a kind of provider, and what has to be said."""
    rows = (
        [
            f"`{kind}`",
            "required" if preset.base_url is None else f"`{preset.base_url}`",
            "required" if preset.needs_key else "",
        ]
        for kind, preset in PRESETS.items()
    )
    return _table("kind | base_url | api_key", rows)


# The environment


def _variables() -> Iterator[str]:
    yield "## Variables\n"
    yield "An empty one counts as unset. Without a file all of them count; with one, as the third column says.\n"
    rows = (
        [
            f"`{variable.name}`",
            f"{f'the {variable.part} of ' if variable.part else ''}`{'.'.join(variable.path)}`",
            _BESIDE_A_FILE[variable.beside_a_file],
            _code(default_of(variable)),
            field_of(variable).doc,
        ]
        for variable in VARIABLES
    )
    yield from _table("variable | sets | with a file it counts | default | what it is", rows)
    yield "\nWithout a file, a key brings in its provider:\n"
    known = (
        [
            f"`{each.key}`",
            f"`providers.{each.name}`",
            f"`{each.base_url}`",
            _listed(each.patterns),
            f"`{each.name}/{each.model}`",
        ]
        for each in PROVIDERS
    )
    yield from _table(
        "variable | brings in | which is where this says | for models | and, in this order, as default", known
    )
    yield f"\n{_NO_SETTING}"


def field_of(variable: Variable) -> Field:
    """The setting that a variable is for."""
    return _field_at(ROOT, variable.path)[1]


def default_of(variable: Variable) -> str:
    """What counts without it, as a text; empty where nothing does."""
    section, field = _field_at(ROOT, variable.path)
    text = _default(section, field)
    if variable.part is None:
        return text
    host, _, port = text.rpartition(":")
    return host if variable.part == "host" else port


def _field_at(section: Section, path: tuple[str, ...]) -> tuple[Section, Field]:
    field = next(field for field in section.fields if field.key == path[0])
    below = inner(field.spec)
    return _field_at(below, path[1:]) if path[1:] and isinstance(below, Section) else (section, field)


# Markdown


def _table(heads: str, rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {heads} |"
    yield "|" + "---|" * (heads.count("|") + 1)
    for row in rows:
        yield f"| {' | '.join(row)} |".replace("|  |", "| |")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
