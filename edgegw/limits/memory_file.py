"""What the memory authority knows, kept in a file: what was used of a day, a month or a minute outlives every restart.

Written once a second where something changed, and when the control process leaves: a new file that takes the place of
the old one, so a reader finds one or the other. What was written as it left is exact. After a kill the workers tell
what they know beyond the file (`recall`), and what others had in hand when they last heard is lost. A file that cannot
be read or written is logged and forgotten: the limits then begin anew, and workers tell what they remember.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from edgegw.limits.authority import MemoryAuthority, Remembered

SAVE_EVERY_S = 1.0  # what a kill -9 of the control process forgets at most; the workers remember more
FILE_NAME = "limits.state"

logger = logging.getLogger("edgegw.limits")


class Memory(Struct, array_like=True):
    """`complete`: written as the control process left, so that no worker remembers better."""

    complete: bool
    stocks: list[Remembered]


class MemoryFile:
    """`unspent` says what the workers hold at this moment: that is theirs, and they will say what they spent of it."""

    def __init__(self, state_dir: Path, authority: MemoryAuthority, unspent: Callable[[], Mapping[str, int]]) -> None:
        self._path = state_dir / FILE_NAME
        self._authority = authority
        self._unspent = unspent
        self._saved = False  # there is something in the file
        self._failing = False

    def load(self) -> None:
        """Into the authority, before anybody asks it."""
        try:
            memory = msgspec.msgpack.decode(self._path.read_bytes(), type=Memory)
            self._authority.restore(memory.stocks, complete=memory.complete)
            self._saved = bool(memory.stocks)
            self.save()  # it is complete no longer
        except FileNotFoundError:
            return
        except (OSError, ValueError, OverflowError) as error:  # msgspec's are ValueErrors, and so is an unknown meter
            logger.warning("what was used of the limits before is not known: %s", error)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            self.save()

    def save(self, *, leaving: bool = False) -> None:
        """`leaving`: nothing more is decided after this."""
        kept = self._authority.remember(self._unspent())
        if not kept and not self._saved and not leaving:
            return
        data = msgspec.msgpack.encode(Memory(leaving, kept))
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(data)
            os.replace(new, self._path)
        except OSError as error:
            if not self._failing:
                logger.warning("what is used of the limits cannot be kept: %s", error)
            self._failing = True
            return
        self._failing = False
        self._saved = bool(kept)
