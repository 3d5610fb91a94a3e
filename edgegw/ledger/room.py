"""Why a journal cannot be written, in words for an operator; and what it occupies on disk.

Two kinds of trouble: `full` (the disk, or `storage.journal.max`: it ends when records are shipped or space is made) and
`failing` (read-only, gone, forbidden, broken: somebody has to do something). What a reason says goes to /readyz, so it
names no path.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgegw.ledger.segment import segment_index

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REASONS = {
    errno.EROFS: "the disk is read-only",
    errno.ENOENT: "the state directory is gone",
    errno.ENOTDIR: "the state directory is gone",
    errno.EACCES: "the state directory may not be written to",
    errno.EPERM: "the state directory may not be written to",
    errno.EIO: "the disk fails",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a journal."""

    state: Literal["full", "failing"]
    reason: str


AT_THE_BOUND = Trouble("full", "what waits to be shipped has reached storage.journal.max")
DISK_FULL = Trouble("full", "the disk is full")
NOT_OPEN = Trouble("failing", "the journal is not open yet")


class JournalFull(Exception):  # noqa: N818 (a condition of the machine, and the name the gateway speaks of)
    """Nothing more can be written now; `trouble` says why."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.reason)
        self.trouble = trouble


def trouble_of(error: OSError) -> Trouble:
    """What the system's complaint means for a journal."""
    number = error.errno or errno.EIO
    if number in NO_SPACE:
        return DISK_FULL
    return Trouble("failing", _REASONS.get(number, f"the state directory cannot be used: {os.strerror(number)}"))


def bytes_on_disk(root: Path) -> int:
    """What all segments of all lives below the journal directory occupy. OSError when it cannot be looked at."""
    total = 0
    for life in _entries(root):
        if life.is_dir(follow_symlinks=False):
            for entry in _entries(life.path):
                if segment_index(entry.name):
                    try:
                        total += entry.stat().st_size
                    except FileNotFoundError:
                        continue
    return total


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a directory; none when the control process has just deleted it."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
