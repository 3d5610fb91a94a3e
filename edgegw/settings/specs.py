"""What a settings document is made of: fields in sections, mappings by name, lists, scalars.

The words in which `fields.py` and `tenant_fields.py` are written, and by which loader, schema and printer walk. Shapes
without content: nothing here knows a single setting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from edgegw.settings.values import Kind


class Field(Struct, frozen=True):
    """One key of a section. `attribute` is its name in the struct, where its default stands. A `required` one comes
    with a `hint` for those who left it out. `restart`: a reload does not take a change of it."""

    key: str
    attribute: str
    spec: Spec
    doc: str
    required: bool = False
    hint: str | None = None
    restart: bool = False


class Section(Struct, frozen=True):
    """A mapping with known keys, read into `shape` by `build`."""

    shape: type[Any]
    fields: tuple[Field, ...]
    build: Callable[..., Any]

    @property
    def has_required(self) -> bool:
        return any(field.required for field in self.fields)


class Shorthand(Struct, frozen=True):
    """A section that may be written as its one scalar `field` alone: `ci: x` for `ci: {digest: x}`."""

    field: Field
    section: Section


class Named(Struct, frozen=True):
    """A mapping whose keys the operator chooses, read into a dict. `tells_name`: the item is built with `name=key`.
    `called`: what stands for such a key in a path."""

    name: Kind
    item: Spec
    tells_name: bool = False
    called: str = "NAME"


class Several(Struct, frozen=True):
    """A list of at least `least`, read into a tuple. `like` shows one to those who wrote something else."""

    item: Kind
    like: str
    least: int = 1


Spec = Kind | Section | Shorthand | Named | Several


def inner(spec: Spec) -> Spec:
    """What stands below the names and without abbreviations: the section of a mapping of sections."""
    match spec:
        case Named():
            return inner(spec.item)
        case Shorthand():
            return spec.section
        case _:
            return spec
