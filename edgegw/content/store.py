"""The seam between content and a database: what is written, found, bounded and deleted.

Whatever a store is told twice it stores once: `request_id` is its key. Pure values; knows no database and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgegw.content.record import Content


@dataclass(frozen=True, slots=True)
class Chosen:
    """Whose content is meant: all that is given must fit, and at least one is. `before_ns`: put down before then."""

    request_id: str | None = None
    tenant: str | None = None
    before_ns: int | None = None

    def fits(self, content: Content) -> bool:
        return (
            self.request_id in (None, content.request_id)
            and self.tenant in (None, content.tenant)
            and (self.before_ns is None or content.stored_ns < self.before_ns)
        )

    def clause(self, mark: str) -> tuple[str, list[str | int]]:
        """A condition in SQL and its values; `mark` stands for a value, `{}` in it for the value's number."""
        columns = {"request_id =": self.request_id, "tenant =": self.tenant, "stored_ns <": self.before_ns}
        given = {column: value for column, value in columns.items() if value is not None}
        clauses = [f"{column} {mark.format(number)}" for number, column in enumerate(given, 1)]
        return " AND ".join(clauses), list(given.values())


class ContentStore(Protocol):
    """All raise ledger.store's StoreError (try again), RejectedError (never taken) and SchemaTooNewError."""

    async def write(self, contents: Sequence[Content]) -> None:
        """All of them or none; what is there already is left as it is."""

    async def trim(self, before_ns: int, bytes_max: int) -> int:
        """Deletes some of what was put down before a time, or, with nothing that old, some of the oldest while all
        together are more than `bytes_max`. How many went; 0 when there is nothing left to do."""

    async def find(self, request_id: str) -> Content | None: ...

    async def delete(self, chosen: Chosen) -> int:
        """Deletes all of it, for good; how many there were."""

    async def rest(self) -> None:
        """Let go of a connection that costs somebody something, until there is something to do again."""

    async def close(self) -> None: ...
