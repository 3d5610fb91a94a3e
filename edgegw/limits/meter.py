"""What is counted, of whom: the meters, and the five measures that a limit can have.

A *meter* is one thing counted for somebody: the tokens per minute of tenant `acme`, the requests at once of one of its
keys. It is known by an id, a text that travels in messages and names the same meter to every process and replica:
code, tenant, and for a key or a model of the tenant one more word, joined by a character that no name can hold.

Pure. What a limit allows is rules.py; how it is counted is bucket.py (one shape each).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

SEPARATOR = "\x1f"  # the unit separator of ASCII: names must be printable, so no name contains it
NO_LIMIT = 10**15  # what a meter whose limit was lifted allows: more than anybody uses, and exact in a double
MINUTE_S = 60.0

Unit = Literal["tokens", "requests"]


class Shape(IntEnum):
    """How a meter comes by what may be taken from it."""

    REFILLS = 0  # continuously, its limit within a minute
    WINDOW = 1  # all of it at the beginning of each day or month (UTC)
    SLOTS = 2  # not at all: what is taken is given back when the request is over


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table. `name` is the setting, `spoken` what a client reads in an error."""

    code: str
    name: str
    shape: Shape
    unit: Unit
    spoken: str


# In the order in which they are told when several are equally exceeded: the one that lasts longest last.
MEASURES = (
    Measure("tpm", "tokens_per_minute", Shape.REFILLS, "tokens", "tokens per min (TPM)"),
    Measure("rpm", "requests_per_minute", Shape.REFILLS, "requests", "requests per min (RPM)"),
    Measure("par", "concurrent_requests", Shape.SLOTS, "requests", "concurrent requests"),
    Measure("day", "tokens_per_day", Shape.WINDOW, "tokens", "tokens per day (TPD)"),
    Measure("month", "tokens_per_month", Shape.WINDOW, "tokens", "tokens per month"),
)
BY_CODE = {measure.code: measure for measure in MEASURES}
BY_NAME = {measure.name: measure for measure in MEASURES}

Scope = Literal["", "key", "model"]


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter taken apart. `scope` says what of the tenant is counted: all, one key, or one model; `name` which."""

    measure: Measure
    tenant: str
    scope: Scope = ""
    name: str = ""

    @property
    def id(self) -> str:
        parts = (self.measure.code, self.tenant, self.scope, self.name)
        return SEPARATOR.join(parts if self.scope else parts[:2])

    @property
    def whose(self) -> str:
        """For an error message."""
        if self.scope == "key":
            return f"key {self.name} of tenant {self.tenant}"
        if self.scope == "model":
            return f"tenant {self.tenant} and model {self.name}"
        return f"tenant {self.tenant}"


def read_meter(id_: str) -> Meter:
    """The meter of an id. Raises ValueError for a text that is none."""
    parts = id_.split(SEPARATOR)
    measure = BY_CODE.get(parts[0])
    if measure is not None:
        match parts[1:]:
            case [tenant]:
                return Meter(measure, tenant)
            case [tenant, ("key" | "model") as scope, name]:
                return Meter(measure, tenant, scope, name)
    raise ValueError(f"not a meter: {id_!r}")
