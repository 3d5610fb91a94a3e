"""The control process's side of the journal: new records of all lives, in order, each once; then the files' end.

A `LifeReader` (life_reader.py) follows one directory, a `Reader` all of them. Positions are given by the caller and are
durable somewhere else (store.py). Nothing is deleted before the caller says that it is shipped; what cannot be deleted
then (a disk that has become read-only) is left lying and not read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from edgegw.ledger.life import JOURNAL_DIR, LIFE_NAME
from edgegw.ledger.life_reader import Damage, LifeReader
from edgegw.ledger.record import Record, decoder
from edgegw.ledger.store import Position

__all__ = ["Damage", "LifeReader", "Reader"]

# How often it is tried again to delete what could not be deleted: about once a minute.
CLEAR_EVERY_LOOKS = 300


class Reader:
    """All lives below a state directory, from given positions on (a life that is not among them from its start).

    `behind`: the last `read` has left records unread.
    """

    def __init__(self, state_dir: Path, positions: Mapping[str, Position], damage: Damage) -> None:
        self._root = state_dir / JOURNAL_DIR
        self._start = dict(positions)
        self._decode = decoder()
        self._damage = damage
        self._forgotten: set[str] = set()
        self.lives: dict[str, LifeReader] = {}
        self._left_lying: dict[str, LifeReader] = {}
        self._looks = 0
        self.behind = False
        self.discover()

    def discover(self) -> None:
        """Take in lives that have begun since the last look."""
        self._looks += 1
        if self._looks % CLEAR_EVERY_LOOKS == 0:
            self._left_lying = {name: life for name, life in self._left_lying.items() if not life.remove()}
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:
            return
        except OSError:
            self._damage.failed += 1
            return
        for name in names:
            known = name in self.lives or name in self._left_lying or name in self._forgotten
            if not known and LIFE_NAME.fullmatch(name):
                position = replace(self._start.get(name, Position()))
                self.lives[name] = LifeReader(self._root / name, position, self._decode, self._damage)

    def read(self, limit: int) -> Iterator[tuple[LifeReader, list[Record]]]:
        """New records by life, about `limit` in all; every life has its share, so that none waits for another."""
        self.discover()
        self.behind = False
        share = max(1, limit // max(1, len(self.lives)))
        for life in self.lives.values():
            records = life.read(share)
            if records:
                self.behind |= len(records) >= share
                yield life, records

    def positions(self) -> dict[str, Position]:
        """Copies of all positions as they are now."""
        return {name: replace(life.position) for name, life in self.lives.items()}

    def remove(self, name: str) -> None:
        """Forget a drained life and delete its directory."""
        life = self.lives.pop(name)
        if not life.remove():
            self._left_lying[name] = life

    def forget(self, name: str) -> None:
        """Read no more of a life, which another has deleted, or could not."""
        life = self.lives.pop(name, None)
        if life is not None:
            life.close()
        if (self._root / name).exists():
            self._forgotten.add(name)

    def close(self) -> None:
        for life in self.lives.values():
            life.close()
