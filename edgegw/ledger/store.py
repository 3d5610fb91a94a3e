"""The seam between the shipper and a database: what is written in one go, and what is read back after a crash.

A `Store` writes a batch of rows, what they add to the sums (usage.py) and the checkpoint that covers them in one
transaction. Whatever it is told twice it stores once: `requests.id` and `provider_attempts (request_id, number)` are
its keys. A database may hold the books of several gateways; a store reads and writes the checkpoint of one journal.

Pure values; knows no database and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from edgegw.exchange import Usage
from edgegw.ledger.record import AttemptRecord, Begin, End, Try, happened_ns


class StoreError(Exception):
    """The store cannot do it now (busy, full, away). Nothing of the batch is stored; the same call may be repeated."""


class RejectedError(Exception):
    """The database is there and does not take these rows, whenever it is asked (a value that no column holds). Nothing
    of the batch is stored; a smaller one, without the row that is to blame, may be."""


class SchemaTooNewError(Exception):
    """The database belongs to a newer version of this program. Nothing is read or written."""


@dataclass(slots=True)
class Position:
    """How far a life is read: the next offset in a segment, and the sequence number of the last record before it.
    `wall_ns` is the latest moment that a record told of. `gaps`: sequence numbers never seen; `torn`: places where
    bytes were no record; `unreadable`: whole records that we do not understand."""

    segment: int = 1
    offset: int = 0
    seq: int = 0
    wall_ns: int = 0
    gaps: int = 0
    torn: int = 0
    unreadable: int = 0

    @property
    def damaged(self) -> bool:
        return bool(self.gaps or self.torn or self.unreadable)


class OpenExchange(msgspec.Struct, gc=False):
    """An exchange without its End. `flight` is the attempt under way, `last` the latest one that is finished, `cost_*`
    and `price_version` what the finished ones came to, `before` what those before `last` used."""

    life: str
    begin: Begin
    flight: Begin | Try | None
    last: AttemptRecord | None = None
    cost_usd_micro: int | None = 0
    price_version: str | None = None
    before: Usage | None = None
    stored: bool = False


class OpenState(msgspec.Struct, array_like=True):
    """An open exchange as it stands in `open_exchanges.state` (msgpack): fields are only ever appended."""

    begin: Begin
    flight: Begin | Try | None
    last: AttemptRecord | None
    cost_usd_micro: int | None = 0
    price_version: str | None = None
    before: Usage | None = None

    @classmethod
    def of(cls, exchange: OpenExchange) -> OpenState:
        return cls(
            exchange.begin,
            exchange.flight,
            exchange.last,
            exchange.cost_usd_micro,
            exchange.price_version,
            exchange.before,
        )

    def opened(self, life: str) -> OpenExchange:
        return OpenExchange(
            life, self.begin, self.flight, self.last, self.cost_usd_micro, self.price_version, self.before, stored=True
        )


@dataclass(slots=True)
class Checkpoint:
    """`positions` by life. `opened`: exchanges to remember by id. `closed`: ids, and `ended`: lives, to forget; of a
    life that was damaged the position stays, marked as ended, as evidence for `edgegw ledger verify`.

    Written, it holds changes only; read, it holds everything (and `closed` and `ended` are empty).
    """

    positions: dict[str, Position] = field(default_factory=dict)
    opened: dict[str, OpenExchange] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """Rows, as the records whose fields are their columns. `lives`: from which row of each kind on they are of which
    life."""

    requests: list[End] = field(default_factory=list)
    attempts: list[AttemptRecord] = field(default_factory=list)
    lives: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.requests) + len(self.attempts)

    @property
    def newest_ns(self) -> int:
        """When that happened which the last row tells of; 0 without rows."""
        rows = self.requests or self.attempts
        return happened_ns(rows[-1]) if rows else 0

    def begin(self, life: str) -> None:
        """The rows that are added from now on are of this life."""
        mark = (len(self.requests), len(self.attempts), life)
        if self.lives and self.lives[-1][:2] == mark[:2]:
            self.lives[-1] = mark
        else:
            self.lives.append(mark)

    def life_of(self, number: int) -> str:
        """The life of a row; requests are numbered first, then attempts. Empty when nobody said."""
        of_requests = len(self.requests)
        for requests, attempts, life in reversed(self.lives):
            if requests <= number < of_requests or attempts <= number - of_requests:
                return life
        return ""

    def part(self, start: int, stop: int) -> Batch:
        """Some of the rows, by their numbers."""
        requests = len(self.requests)
        return Batch(self.requests[start:stop], self.attempts[max(0, start - requests) : max(0, stop - requests)])


class Store(Protocol):
    """Both raise StoreError, and SchemaTooNewError, which no repetition will mend; `write` raises RejectedError."""

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """All of it or nothing. Rows that are there already are left as they are."""

    async def read_checkpoint(self) -> Checkpoint: ...

    async def close(self) -> None: ...
