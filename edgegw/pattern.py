"""Names with a `*` that stands for any text, as routes, limits and permissions use them. Pure."""

from __future__ import annotations


class Pattern:
    """`text` without a `*` fits only itself."""

    __slots__ = ("_first", "_last", "_middle", "literals", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.literals = len(text) - text.count("*")
        pieces = text.split("*")
        self._first = pieces[0]
        self._middle = pieces[1:-1]
        self._last = pieces[-1] if len(pieces) > 1 else None

    def fits(self, name: str) -> bool:
        """Leftmost fit of each piece: linear, whatever the name (a regular expression would backtrack)."""
        if self._last is None:
            return name == self.text
        position, end = len(self._first), len(name) - len(self._last)
        if end < position or not (name.startswith(self._first) and name.endswith(self._last)):
            return False
        for piece in self._middle:
            position = name.find(piece, position, end)
            if position < 0:
                return False
            position += len(piece)
        return True
