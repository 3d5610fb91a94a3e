"""Who is told of records, and when: metrics and spans hear of each once, completed, also while the store is away.

As long as the store works, the shipper tells what it has read. While it does not, the shipper stands still, and a
second reader goes ahead of it for the observers alone: it stores nothing and deletes nothing. It has an assembler of
its own, since what a record cannot know (whose it is, what it cost) is filled in by one. When the store works again,
what was told ahead is not told again; the second reader goes when the shipper has come to where it is.

Knows journals and records; no store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from pathlib import Path

from edgegw.ledger.assembly import Assembler, Price
from edgegw.ledger.reader import Damage, LifeReader, Reader
from edgegw.ledger.record import Record, about
from edgegw.ledger.store import Checkpoint, OpenExchange, Position

Observer = Callable[[Iterator[Record]], None]
"""Takes records until there are no more; called again with those behind the one at which it failed."""

_log = logging.getLogger(__name__)


class Teller:
    """`errors`: how often an observer failed. It is told of the next record all the same."""

    def __init__(self, state_dir: Path, observers: Sequence[Observer], price: Price) -> None:
        self._state_dir = state_dir
        self._observers = tuple(observers)
        self._price = price
        self._ahead: _Ahead | None = None
        self.errors = 0

    def read(self, life: LifeReader, records: list[Record]) -> None:
        """The shipper has read these, and they are completed."""
        self._tell(records if self._ahead is None else self._ahead.not_told(life, records))

    def ended(self, name: str, added: Sequence[Record]) -> None:
        """The shipper has closed what a life left open."""
        if self._ahead is None or self._ahead.end(name):
            self._tell(added)

    def removed(self, name: str) -> None:
        """The shipper has deleted a life."""
        if self._ahead is not None:
            self._ahead.reader.forget(name)

    def go_ahead(self, reader: Reader, assembler: Assembler, limit: int) -> None:
        """The store is away: tell about `limit` records that are new since the last time."""
        if self._ahead is None:
            self._ahead = _Ahead(self._state_dir, reader.positions(), assembler.open_now(), self._price)
        self._tell(self._ahead.read(limit))

    def go_along(self, reader: Reader, limit: int) -> None:
        """The store works, and the shipper catches up."""
        if self._ahead is None:
            return
        if not reader.behind and self._ahead.is_reached(reader):
            self.close()
        else:
            self._tell(self._ahead.read(limit))

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.reader.close()
            self._ahead = None

    def _tell(self, records: Sequence[Record]) -> None:
        for observer in self._observers:
            left = iter(records)
            while length_hint(left) and not self._told(observer, records, left):
                self.errors += 1

    def _told(self, observer: Observer, records: Sequence[Record], left: Iterator[Record]) -> bool:
        """False: it failed at a record, and there may be more."""
        before = length_hint(left)
        try:
            observer(left)
        except Exception:
            if length_hint(left) == before:  # it did not even take one
                next(left, None)
            if not self.errors:
                failed_at = records[len(records) - length_hint(left) - 1]
                _log.exception("an observer of the ledger fails; the books go on", extra=about(failed_at))
            return False
        return True


class _Ahead:
    """The second reader. Begins where the shipper stands, with what is open there."""

    def __init__(
        self, state_dir: Path, positions: dict[str, Position], opened: dict[str, OpenExchange], price: Price
    ) -> None:
        self.reader = Reader(state_dir, positions, Damage())
        self._assembler = Assembler(Checkpoint(opened=opened), price)
        self._ended: set[str] = set()

    def read(self, limit: int) -> list[Record]:
        """What is new, and what lives that are over have left open."""
        found: list[Record] = []
        for life, records in self.reader.read(limit):
            self._assembler.add(life.name, records)
            found += records
        for life in self.reader.lives.values():
            if life.drained and life.name not in self._ended:
                self._ended.add(life.name)
                found += self._assembler.end_life(life.name, life.position.wall_ns)
        self._assembler.take({})  # nobody stores these
        return found

    def not_told(self, life: LifeReader, records: list[Record]) -> list[Record]:
        """What the shipper has read beyond us; from there we go on."""
        if life.name not in self.reader.lives:
            self.reader.discover()
        ours = self.reader.lives.get(life.name)
        if ours is None:
            return records
        told = ours.position.seq
        if records[-1].seq <= told:
            return []
        fresh = [record for record in records if record.seq > told]
        self._assembler.add(life.name, fresh)
        self._assembler.take({})
        ours.move(life.position)
        return fresh

    def end(self, name: str) -> bool:
        """The shipper has come to a life's end; False when that was told already."""
        if name in self._ended:
            return False
        self._ended.add(name)
        self._assembler.end_life(name, 0)
        self._assembler.take({})
        return True

    def is_reached(self, reader: Reader) -> bool:
        """Whether the shipper is everywhere where we are."""
        theirs = reader.lives
        return all(name in theirs and theirs[name].position.seq >= ours.position.seq for name, ours in self._lives())

    def _lives(self) -> list[tuple[str, LifeReader]]:
        return list(self.reader.lives.items())
