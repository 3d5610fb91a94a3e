"""The seam between keys and a database: what is read when it has changed, and what is written by the command line.

A `KeyStore` numbers every change, so that a reader can ask for what came after the last one it knows. Keys are never
deleted, and an end once set is only ever moved nearer: no write, however late, brings a revoked key back to life.

Pure values; knows no database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from edgegw.keys.table import Key


class KeyStoreError(Exception):
    """The store cannot do it now (locked, full, away, damaged), or not with this version of the program."""


class Changes(Struct, frozen=True):
    """Keys in the order of their changes. `version`: the number of the last one. `whole`: these are all the keys that
    there are; what is not among them is gone."""

    keys: tuple[Key, ...]
    version: int
    whole: bool


class KeyStore(Protocol):
    """All raise KeyStoreError."""

    async def changes(self, since: int) -> Changes:
        """What changed after change number `since`; everything for 0, and whenever the store is another than before."""

    async def write(self, keys: Sequence[Key]) -> None:
        """New keys, and new limits and ends (`expires_ns`, `revoked_ns`) of known ones, all or none; each is a
        change."""

    async def close(self) -> None: ...
