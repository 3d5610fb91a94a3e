"""How the limits of tenants stand, for metrics: what they may use, what is left, and what workers hold of it.

Of tenants that are shown under their names (telemetry/seats.py), and of their own limits: those of their keys and of
single models are not told. Read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from edgegw.limits.authority import Authority
from edgegw.limits.meter import MEASURES, Meter

TOLD = tuple((measure, (measure.name,)) for measure in MEASURES)


class LimitFigures:
    """`unspent`: what workers hold, by meter; `tenants`: who is to be told of."""

    def __init__(
        self,
        authority: Authority,
        unspent: Callable[[], Mapping[str, int]],
        tenants: Callable[[], Collection[str]],
    ) -> None:
        self._authority = authority
        self._unspent = unspent
        self._tenants = tenants

    def limits(self) -> dict[tuple[str, ...], float]:
        return {labels: limit for labels, limit, _ in self._standings()}

    def left(self) -> dict[tuple[str, ...], float]:
        return {labels: left for labels, _, left in self._standings()}

    def leased(self) -> dict[tuple[str, ...], float]:
        unspent = self._unspent()
        return {labels: unspent[meter] for labels, meter in self._meters() if meter in unspent}

    def _standings(self) -> list[tuple[tuple[str, ...], int, int]]:
        asked = [(labels, self._authority.standing(meter)) for labels, meter in self._meters()]
        return [(labels, *standing) for labels, standing in asked if standing is not None]

    def _meters(self) -> list[tuple[tuple[str, ...], str]]:
        return [((tenant, *name), Meter(each, tenant).id) for tenant in self._tenants() for each, name in TOLD]
