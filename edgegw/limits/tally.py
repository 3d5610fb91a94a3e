"""A worker's tally: for each meter how much was spent of what it was leased, in memory that outlives the worker.

A file mapped by the worker, who writes, and by the control process, who reads it when the worker is gone (holdings.py
says what for). A cell is 8 bytes, written by one machine instruction: a reader sees the old number or the new one. The
file is as young as its worker and goes with it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import cast

CELL_BYTES = 8


def path(state_dir: Path, slot: int, pid: int) -> Path:
    """Where the tally of a worker is."""
    return state_dir / f"tally-{slot}-{pid}"


def create(file: Path, cells: int) -> MutableSequence[int]:
    """A new tally of zeros. Sparse: a cell that is never used costs nothing. Raises OSError."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(fd, cells * CELL_BYTES)
        return _cells(mmap.mmap(fd, cells * CELL_BYTES))
    finally:
        os.close(fd)


def read(file: Path) -> Sequence[int] | None:
    """The tally of a worker that is there, to look at now and later; None when there is none."""
    try:
        with file.open("rb") as source:
            return _cells(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):
        return None


def remove(file: Path) -> None:
    """Nobody will open it any more; who has it mapped may go on reading."""
    file.unlink(missing_ok=True)


def sweep(state_dir: Path) -> None:
    """Removes the tallies of workers that died unseen, with the control process or before it."""
    for file in state_dir.glob("tally-*-*"):
        pid = file.name.rpartition("-")[2]
        if pid.isdigit() and not _alive(int(pid)):
            remove(file)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _cells(mapped: mmap.mmap) -> MutableSequence[int]:
    """A memoryview of signed 64-bit numbers is all of a sequence that is used; typeshed does not say so."""
    return cast(MutableSequence[int], memoryview(mapped).cast("q"))
