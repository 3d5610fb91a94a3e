"""The table of what models take (models.toml), looked up by name."""

from __future__ import annotations

import pkgutil
from fnmatch import fnmatchcase

import msgspec

from edgegw.dialects.anthropic_request import Capabilities

# Names come from the settings, and through patterns from clients: no more than this many are remembered.
REMEMBERED_MAX = 256


class _Row(Capabilities, frozen=True, kw_only=True):
    pattern: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    model: list[_Row]


class ModelTable:
    """Capabilities by model name; the last row of the table matches every name."""

    __slots__ = ("_known", "_rows")

    def __init__(self, text: bytes) -> None:
        """`text` is TOML. Raises msgspec.ValidationError when it is not as described at its top."""
        self._rows = msgspec.toml.decode(text, type=_File).model
        self._known: dict[str, Capabilities] = {}

    def capabilities(self, model: str) -> Capabilities:
        found = self._known.get(model)
        if found is None:
            found = next(row for row in self._rows if fnmatchcase(model, row.pattern))
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[model] = found
        return found


def shipped() -> ModelTable:
    """The table that comes with the program."""
    text = pkgutil.get_data(__package__ or "", "models.toml")
    if text is None:
        raise FileNotFoundError("models.toml is missing from the installation")
    return ModelTable(text)
