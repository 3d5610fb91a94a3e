"""The journals on their way to the disk, from the control process: `storage.journal.sync: interval` (and `always`).

Pages that a worker has written into a mapped file belong to the file, so any process may have them written: fdatasync
of the segment, here, in a thread. The data plane does nothing for it, and has no thread for it.

A sealed segment is synced once more after its seal was seen, and never again; a spare that nothing was written into,
once. Names are synced with the directories that hold them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from edgegw.ledger.life import JOURNAL_DIR, LIFE_FILE, LIFE_NAME, datasync, sync_directory
from edgegw.ledger.room import Trouble, trouble_of
from edgegw.ledger.segment import HEADER_BYTES, read_header, segment_index, segment_name

_NO_RECORD = bytes(4)

logger = logging.getLogger("edgegw.ledger")


class Syncer:
    """`run()` is a task of the control process. What was written is on the disk at most one interval later, and the
    time that the sync itself takes. `trouble`: what the disk said last; `syncs` and `errors` count rounds."""

    def __init__(self, state_dir: Path, interval_s: float) -> None:
        self._root = state_dir / JOURNAL_DIR
        self._interval_s = interval_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        self._known: dict[str, set[int]] = {}  # the segments of each life whose names and blocks are on the disk
        self._done: dict[str, int] = {}  # all segments of a life up to this one are there for good
        self.trouble: Trouble | None = None
        self.syncs = 0
        self.errors = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.sync()

    async def sync(self) -> None:
        """One round. Never raises OSError: the next round is the next try."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.sync_now)
        except OSError as error:
            if self.trouble is None:
                logger.error("the journal cannot be brought to the disk: %s", error.strerror)
            self.trouble = trouble_of(error)
            self.errors += 1
        else:
            self.trouble = None
            self.syncs += 1

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    # From here on: the thread.

    def sync_now(self) -> None:
        """Everything that is written by now. Raises OSError; what was reached by then is on the disk."""
        try:
            lives = {name for name in os.listdir(self._root) if LIFE_NAME.fullmatch(name)}
        except FileNotFoundError:
            return
        for name in self._known.keys() - lives:
            del self._known[name]
            self._done.pop(name, None)
        new = lives - self._known.keys()
        for name in new:
            with suppress(FileNotFoundError):
                self._sync_segment(self._root / name / LIFE_FILE, known=False)
        for name in lives:
            with suppress(FileNotFoundError):  # shipped and deleted meanwhile
                self._sync_life(name)
        if new:
            sync_directory(self._root)
            sync_directory(self._root.parent)

    def _sync_life(self, name: str) -> None:
        directory = self._root / name
        known = self._known.get(name, set())
        found = {index for index in map(segment_index, os.listdir(directory)) if index > self._done.get(name, 0)}
        for index in sorted(found):
            with suppress(FileNotFoundError):
                if self._sync_segment(directory / segment_name(index), known=index in known):
                    self._done[name] = index
        if found - known:
            sync_directory(directory)
            self._known[name] = found

    def _sync_segment(self, path: Path, *, known: bool) -> bool:
        """True when it is a sealed segment, and so will not have to be synced again."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(fd, HEADER_BYTES + len(_NO_RECORD), 0)
            if known and head[HEADER_BYTES:] == _NO_RECORD:
                return False
            datasync(fd)
            header = read_header(head)
            return header is not None and header.end != 0
        finally:
            os.close(fd)
