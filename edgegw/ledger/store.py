"""The seam between the shipper and a database: what is written in one go, and what is read back after a crash.

A `Store` writes a batch of rows and the checkpoint that covers them in one transaction. SQLite is one (sqlite.py).
Whatever it is told twice it stores once: `requests.id` and `provider_attempts (request_id, number)` are its keys.

Pure values; knows no database and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from edgegw.ledger.record import AttemptRecord, Begin, End, Try


class StoreError(Exception):
    """The store cannot do it now (busy, full, away). Nothing of the batch is stored; the same call may be repeated."""


class SchemaTooNewError(Exception):
    """The database belongs to a newer version of this program. Nothing is read or written."""


@dataclass(slots=True)
class Position:
    """How far a life is read: the next offset in a segment, and the sequence number of the last record before it.
    `wall_ns` is the latest moment that a record told of."""

    segment: int = 1
    offset: int = 0
    seq: int = 0
    wall_ns: int = 0


class OpenExchange(msgspec.Struct, gc=False):
    """An exchange without its End. `flight` is the attempt under way, `last` the latest one that is finished."""

    life: str
    begin: Begin
    flight: Begin | Try | None
    last: AttemptRecord | None = None
    stored: bool = False


@dataclass(slots=True)
class Checkpoint:
    """`positions` by life. `opened`: exchanges to remember by id. `closed`: ids, and `ended`: lives, to forget.

    Written, it holds changes only; read, it holds everything (and `closed` and `ended` are empty).
    """

    positions: dict[str, Position] = field(default_factory=dict)
    opened: dict[str, OpenExchange] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """Rows, as the records whose fields are their columns."""

    requests: list[End] = field(default_factory=list)
    attempts: list[AttemptRecord] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.requests) + len(self.attempts)


class Store(Protocol):
    """Both raise StoreError, and SchemaTooNewError, which no repetition will mend."""

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """All of it or nothing. Rows that are there already are left as they are."""

    async def read_checkpoint(self) -> Checkpoint: ...

    async def close(self) -> None: ...
