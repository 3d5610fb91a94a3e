"""What `edgegw ledger verify` has found: bounded, by kind, for people and for programs.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from edgegw.ledger.tables import printable

Kind = Literal[
    "row missing",
    "row changed",
    "row doubled",
    "row of another time",
    "attempts",
    "attempt without request",
    "tokens",
    "cost",
    "sums",
    "checkpoint",
    "rows ahead",
    "open exchange",
    "journal torn",
    "journal gap",
    "journal unreadable",
    "damaged life",
    "set aside",
]
# Of one kind; more are only counted. Whatever is wrong with a million rows shows in the first.
SHOWN_PER_KIND = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """`where`: a life, a request, an hour."""

    kind: Kind
    where: str
    what: str


@dataclass(slots=True)
class Report:
    """`notes`: what one may want to know and is no fault. `compared`: how much was looked at, by what it was."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)

    @property
    def in_order(self) -> bool:
        return not self.counts

    def found(self, kind: Kind, where: str, what: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN_PER_KIND:
            self.findings.append(Finding(kind, where, what))

    def lines(self) -> Iterator[str]:
        """For people."""
        compared = self.compared
        yield (
            f"journal: {compared['lives']} lives on disk; {compared['shipped']} of their records are shipped and were "
            f"compared with the rows, {compared['waiting']} are not shipped yet"
        )
        yield (
            f"rows: {compared['requests']} requests and {compared['attempts']} attempts in {compared['hours']} hours "
            "were compared with each other and with their sums"
        )
        for note in self.notes:
            yield printable(f"note: {note}")
        for finding in self.findings:
            yield printable(f"{finding.kind}: {finding.where}: {finding.what}")
        for kind, count in self.counts.items():
            if count > SHOWN_PER_KIND:
                yield f"{kind}: {count - SHOWN_PER_KIND} more"
        total = self.counts.total()
        yield "The books are in order." if not total else f"{total} finding{'s' if total > 1 else ''}."

    def document(self) -> dict[str, object]:
        """For programs."""
        return {
            "in_order": self.in_order,
            "compared": dict(self.compared),
            "counts": dict(self.counts),
            "findings": [
                {"kind": finding.kind, "where": finding.where, "what": finding.what} for finding in self.findings
            ],
            "notes": self.notes,
        }
