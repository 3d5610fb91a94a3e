"""Who is shown under a name of its own: the one place that bounds the number of series, whatever clients ask for.

A name gets a seat when the settings know it, or when it was seen with success: a client that makes up models or tenants
gets none. There are so many seats and no more; whoever has none is counted as `other`, so sums stay whole. A seat is
never taken back.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

OTHER = "other"
NONE = "none"  # nobody was asked, nothing went wrong

# Each is a line or two per family, but for targets: some 130 lines each.
ROUTES_MAX = 100
TARGETS_MAX = 100
TENANTS_MAX = 200

_Name = TypeVar("_Name", str, tuple[str, str])


class Seats(Generic[_Name]):
    """For names of one sort. `known` are those of the settings; they too have to come to be seated."""

    __slots__ = ("_known", "_seated", "_seats_max")

    def __init__(self, seats_max: int, known: Collection[_Name] = ()) -> None:
        self._seats_max = seats_max
        self._known: frozenset[_Name] = frozenset(known)
        self._seated: set[_Name] = set()

    def offers(self, name: _Name, success: bool) -> bool:
        """Whether the name has a seat now; it takes one if it may."""
        if name in self._seated:
            return True
        if len(self._seated) >= self._seats_max or not (success or name in self._known):
            return False
        self._seated.add(name)
        return True
