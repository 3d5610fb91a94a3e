"""Names with `*`, as the settings write them for models: each star stands for any text, also for none.

Pure. Matching is linear in the name, whatever a client calls a model (a regular expression would backtrack).
"""

from __future__ import annotations


class Wildcard:
    """A pattern; one without a star is matched by itself alone."""

    __slots__ = ("_first", "_last", "_middle", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._first, *rest = text.split("*")
        self._last = rest.pop() if rest else None
        self._middle = rest

    @property
    def literals(self) -> int:
        """Characters that are spelled out: of two patterns that match, the one with more says more."""
        return len(self.text) - self.text.count("*")

    def matches(self, name: str) -> bool:
        """By the leftmost fit of each piece."""
        if self._last is None:
            return name == self._first
        position, end = len(self._first), len(name) - len(self._last)
        if end < position or not (name.startswith(self._first) and name.endswith(self._last)):
            return False
        for piece in self._middle:
            position = name.find(piece, position, end)
            if position < 0:
                return False
            position += len(piece)
        return True
