"""What is wrong with the settings, said so that it can be mended without asking: where, what, and what was meant.

A message shows what stands in the file, never what came out of `${…}` and never the text of a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from msgspec import Struct

_LIKENESS_MIN = 0.6  # of difflib's ratio: finds `opneai` for `openai`, leaves `local` alone
_NAMES_SHOWN_MAX = 12


class Mistake(Struct, frozen=True):
    """One thing to mend. `line` and `column` count from 1; both are 0 where there is no file, and then `path` is the
    name of an environment variable. `path` is empty when the document as a whole is at fault."""

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        said = f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"
        return " ".join((f"{said} ({self.hint})" if self.hint else said).splitlines())


class Complaint(Struct, frozen=True):
    """A mistake that does not know its place yet: about `path`, and drawn from the values of `path` and `also`.
    `shows`: what stands at `path` in the file belongs to the message."""

    path: str
    message: str
    hint: str | None = None
    also: tuple[str, ...] = ()
    shows: bool = False


class SettingsError(Exception):
    """The settings cannot be used. `mistakes` holds all of them, in the order of the file; `str` one per line."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = list(mistakes)


class NoProviderError(SettingsError):
    """There is no file, and no key in the environment: nothing to be a gateway to. `str` says what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A question that names the likeliest of `known`, None when nothing is like `word`. Case does not count."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=_LIKENESS_MIN)
    return f"did you mean {by_lower[found[0]]!r}?" if found else None


def one_of(names: Iterable[str]) -> str:
    """The names as a sentence would list them, cut short when there are many."""
    listed = list(names)
    shown = ", ".join(listed[:_NAMES_SHOWN_MAX])
    return f"{shown}, …" if len(listed) > _NAMES_SHOWN_MAX else shown
