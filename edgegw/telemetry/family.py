"""A family of metrics: one name with its type, its labels and what it means, as Prometheus and as OTLP have it.

What families there are is said in names.py. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# How a name ends, and the unit that OTLP says instead (UCUM).
_UNITS = {"_seconds": "s", "_bytes": "By"}


@dataclass(frozen=True, slots=True)
class Family:
    """`otel` and `unit`: the name and unit in OTLP, where they are not made of `name`; `attributes`: what labels are
    called there, if not the same."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    otel: str = ""
    unit: str = ""
    attributes: tuple[str, ...] = ()

    @property
    def otel_name(self) -> str:
        """`edgegw.ledger_lag` of `edgegw_ledger_lag_seconds`."""
        name = self.name.removesuffix("_total")
        for suffix in _UNITS:
            name = name.removesuffix(suffix)
        return self.otel or name.replace("_", ".", 1)

    @property
    def otel_unit(self) -> str:
        name = self.name.removesuffix("_total")
        return self.unit or next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
