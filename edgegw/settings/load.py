"""From a file and the environment to Settings, or to a list of all that is wrong.

Walks the document by the tables of `fields.py`. A field that cannot be read counts as faulty and takes its default, so
that the walk and the checks between settings go on and find the rest; nothing built on the way leaves this module
unless there was no mistake at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from edgegw.settings import document, environment
from edgegw.settings.checks import Known, complaints
from edgegw.settings.fields import ROOT
from edgegw.settings.mistakes import Complaint, Mistake, SettingsError, did_you_mean, one_of
from edgegw.settings.model import Settings
from edgegw.settings.specs import Field, Named, Section, Several, Shorthand, Spec
from edgegw.settings.tree import Broken, Entry, MappingNode, Node, Place, Scalar, SequenceNode, join
from edgegw.settings.values import Kind

DEFAULT_FILE = "edgegw.yaml"
_SHOWN_CHARACTERS_MAX = 60  # of a wrong text, in a mistake that has to stay one line


def load(path: str | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file `path`; with None, of EDGEGW_CONFIG, else of ./edgegw.yaml if it is there, else of the
    environment alone. Raises SettingsError with every mistake in it; NoProviderError when there is no file and no key.
    """
    file = path or environ.get("EDGEGW_CONFIG") or (DEFAULT_FILE if os.path.exists(DEFAULT_FILE) else None)
    if file is None:
        return _settings(environment.document(environ), environment.SOURCE, [])
    root, mistakes = document.read(file, environ)
    return _of_document(root, file, environ, mistakes)


def load_text(text: str, environ: Mapping[str, str], file: str = DEFAULT_FILE) -> Settings:
    """Like `load`, of the text of a settings file; `file` is what mistakes call it."""
    root, mistakes = document.parse(text, file, environ)
    return _of_document(root, file, environ, mistakes)


def _of_document(root: Node, file: str, environ: Mapping[str, str], mistakes: list[Mistake]) -> Settings:
    if isinstance(root, MappingNode):
        root = environment.overridden(root, environ)
    return _settings(root, file, mistakes)


def _settings(root: Node, source: str, mistakes: list[Mistake]) -> Settings:
    if isinstance(root, Broken):
        raise SettingsError(mistakes)
    walk = _Walk(mistakes)
    settings = Settings(**walk.section(ROOT, root, ""), source=source)
    if isinstance(root, MappingNode):
        walk.check(complaints(settings, _known(root)))
    if mistakes:
        raise SettingsError(sorted(mistakes, key=lambda mistake: (mistake.line, mistake.column)))
    if settings.server.workers == 0:
        settings = replace(settings, server=replace(settings.server, workers=_cpus()))
    return settings


def _known(root: MappingNode) -> Known:
    """What the document names, whether or not it could be read."""
    default = root.get("default")
    aliases = [name for name in _keys(root.get("models")) if "*" not in name]
    there = ["default"] if default is not None and not _is_null(default) else []
    return Known(
        providers=tuple(_keys(root.get("providers"))),
        routes=(*_keys(root.get("use_cases")), *aliases, *there),
    )


def _keys(node: Node | None) -> list[str]:
    return [entry.key for entry in node.entries] if isinstance(node, MappingNode) else []


def _cpus() -> int:
    """Those this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Walk:
    """Reads nodes by their specs. What cannot be read is written down once, and its path counts as faulty: checks that
    would draw on it keep quiet. A faulty value is UNSET."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self._mistakes = mistakes
        self._places: dict[str, Place] = {}
        self._written: dict[str, str] = {}  # path -> what stands in the file, where that may be shown
        self._faulty = {mistake.path for mistake in mistakes}

    def section(self, section: Section, node: Node, path: str) -> dict[str, Any]:
        """Attribute -> value of all fields that could be read."""
        self._places.setdefault(path, node.place)
        fields = {field.key: field for field in section.fields}
        entries = self._entries(node, path)
        values: dict[str, Any] = {}
        for entry in entries or ():
            below = join(path, entry.key)
            field = fields.get(entry.key)
            if field is None:
                self._complain(entry.place, below, "unknown setting", _meant(entry.key, path, fields))
            elif not _is_null(entry.value):
                value = self._value(field.spec, entry.value, below)
                if value is not UNSET:
                    values[field.attribute] = value
        for field in section.fields:
            below = join(path, field.key)
            if field.required and entries is not None and below not in self._places:
                self._complain(self._places.get(path, node.place), below, "missing", field.hint)
        return values

    def check(self, found: Iterable[Complaint]) -> None:
        """Writes down the complaints that are not about anything faulty."""
        for complaint in found:
            paths = (complaint.path, *complaint.also)
            if self._faulty.isdisjoint(paths):
                place = next((self._places[path] for path in paths if path in self._places), None)
                message = complaint.message
                if complaint.shows and self._written.get(complaint.path):
                    message = f"{message}, found {_shown(self._written[complaint.path])}"
                self._complain(place or self._place_above(complaint.path), complaint.path, message, complaint.hint)

    def _value(self, spec: Spec, node: Node, path: str) -> Any:
        self._places.setdefault(path, node.place)
        match spec:
            case Kind():
                return self._scalar(spec, node, path)
            case Several():
                return self._several(spec, node, path)
            case Named():
                return self._named(spec, node, path)
            case Section() | Shorthand():
                return self._built(spec, node, path, {})

    def _built(self, spec: Section | Shorthand, node: Node, path: str, more: dict[str, Any]) -> Any:
        """A section of the fields that stand there and `more`; faulty when one that is required could not be read."""
        section = spec.section if isinstance(spec, Shorthand) else spec
        if isinstance(spec, Shorthand):
            node = _written_out(spec, node)
        values = {**more, **self.section(section, node, path)}
        if any(field.required and field.attribute not in values for field in section.fields):
            return UNSET
        return section.build(**values)

    def _named(self, named: Named, node: Node, path: str) -> Any:
        items: dict[str, Any] = {}
        for entry in self._entries(node, path) or ():
            below = join(path, entry.key)
            try:
                name = named.name.read(entry.key)
            except ValueError as reason:
                self._complain(entry.place, below, str(reason) or f"expected {named.name.expected}")
                name = entry.key
            if name in items:
                self._complain(entry.place, below, "this name stands here for the second time; case does not count")
            if isinstance(named.item, Section | Shorthand) and named.tells_name:
                value = self._built(named.item, entry.value, below, {"name": name})
            else:
                value = self._value(named.item, entry.value, below)
            if value is not UNSET:
                items[name] = value
        return items

    def _several(self, several: Several, node: Node, path: str) -> Any:
        if not isinstance(node, SequenceNode):
            return self._wrong_type(node, path, f"a list, like {several.like}")
        if len(node.items) < several.least:
            return self._complain(self._places[path], path, "an empty list", "name at least one")
        values = [self._value(several.item, item, join(path, at)) for at, item in enumerate(node.items)]
        # A faulty item leaves a hole, so that the others keep their place for the checks.
        return tuple("" if value is UNSET else value for value in values)

    def _scalar(self, kind: Kind, node: Node, path: str) -> Any:
        if not isinstance(node, Scalar) or node.is_null:
            return self._wrong_type(node, path, kind.expected)
        if kind.bare and not node.plain:
            return self._complain(node.place, path, f"expected {kind.expected}, found a string", "remove the quotes")
        if not kind.private:
            self._written[path] = node.written
        try:
            return kind.read(node.text)
        except ValueError as error:
            reason = str(error) or f"expected {kind.expected}"
        if self._written.get(path):
            reason = f"{reason}, found {_shown(node.written)}"
        return self._complain(node.place, path, reason, did_you_mean(node.text, kind.names) or kind.hint(node.text))

    def _entries(self, node: Node, path: str) -> Sequence[Entry] | None:
        """Those of a mapping, none of a null; None for anything else. Notes where each stands."""
        if isinstance(node, MappingNode):
            for entry in node.entries:
                place = entry.value.place if isinstance(entry.value, Scalar) else entry.place
                if not _is_null(entry.value):
                    self._places[join(path, entry.key)] = place
            return node.entries
        if _is_null(node):
            return ()
        self._wrong_type(node, path, "a mapping of settings")
        return None

    def _wrong_type(self, node: Node, path: str, expected: str) -> Any:
        self._faulty.add(path)
        if isinstance(node, Broken):
            return UNSET
        return self._complain(self._places.get(path, node.place), path, f"expected {expected}, found {_kind_of(node)}")

    def _complain(self, place: Place, path: str, message: str, hint: str | None = None) -> Any:
        self._faulty.add(path)
        self._mistakes.append(place.mistake(path, message, hint))
        return UNSET

    def _place_above(self, path: str) -> Place:
        """Of the innermost part of the path that stands in the document. (A cut inside a quoted key finds nothing, and
        the next one is tried.)"""
        while path not in self._places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._places[path]


def _written_out(short: Shorthand, node: Node) -> Node:
    """The section that a lone scalar stands for."""
    if not isinstance(node, Scalar) or node.is_null:
        return node
    return MappingNode(node.place, (Entry(node.place, short.field.key, node),))


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def _kind_of(node: Node) -> str:
    match node:
        case MappingNode():
            return "a mapping"
        case SequenceNode():
            return "a list"
        case Scalar() if node.is_null:
            return "nothing"
        case _:
            return "a single value"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…")


def _meant(key: str, path: str, here: Mapping[str, Field]) -> str:
    """What somebody may have meant by a key that does not exist at `path`: one a level below, one of another section,
    or a like one here."""
    for above, fields in ((path, here.values()), ("", ROOT.fields)):
        for field in fields:
            if isinstance(field.spec, Section) and any(key == each.key for each in field.spec.fields):
                return f"did you mean {join(join(above, field.key), key)}?"
    return did_you_mean(key, here) or f"there are: {one_of(here)}"
