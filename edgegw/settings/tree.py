"""A document as a tree that knows where everything stands: what `document.py` and `environment.py` make, and the
loader reads. Plain values; knows neither YAML nor settings."""

from __future__ import annotations

import re

from msgspec import Struct

from edgegw.settings.mistakes import Mistake

NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_\-]+")


class Place(Struct, frozen=True):
    """Where a node stands; counts from 1. With a `variable` it came from there, and not from a file."""

    file: str
    line: int = 0
    column: int = 0
    variable: str | None = None

    def mistake(self, path: str, message: str, hint: str | None = None) -> Mistake:
        return Mistake(self.file, self.line, self.column, self.variable or path, message, hint)


class Scalar(Struct, frozen=True):
    """`text` is what it says, `${…}` filled in; `written` is what stands in the file, empty when there is none.
    `plain`: without quotes, so it may be a number, or nothing at all."""

    place: Place
    text: str
    written: str = ""
    plain: bool = True

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in NULLS


class Entry(Struct, frozen=True):
    """A key where it stands, and what it leads to."""

    place: Place
    key: str
    value: Node


class MappingNode(Struct, frozen=True):
    """Entries in the order of the file, no key twice."""

    place: Place
    entries: tuple[Entry, ...]

    def get(self, key: str) -> Node | None:
        return next((entry.value for entry in self.entries if entry.key == key), None)

    def replaced(self, key: str, value: Node) -> MappingNode:
        """This mapping with `value` under `key`, in the old one's place if there was one."""
        entry = Entry(value.place, key, value)
        if self.get(key) is None:
            return MappingNode(self.place, (*self.entries, entry))
        return MappingNode(self.place, tuple(entry if old.key == key else old for old in self.entries))


class SequenceNode(Struct, frozen=True):
    place: Place
    items: tuple[Node, ...]


class Broken(Struct, frozen=True):
    """Something stands here, but it is a mistake that was written down already."""

    place: Place


Node = Scalar | MappingNode | SequenceNode | Broken


def join(path: str, key: str | int) -> str:
    """The path of a child: `providers.openai`, `targets[0]`, `models["claude-*"]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _PLAIN_KEY.fullmatch(key):
        return f'{path}["{key}"]'
    return f"{path}.{key}" if path else key
