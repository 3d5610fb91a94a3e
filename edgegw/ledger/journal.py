"""The journal of one worker: records appended to mapped, preallocated files, without a system call and without a wait.

    state_dir/journal/<slot>-<pid>-<nanoseconds>/       one directory per life of a worker
        life.json                                       who writes here; locked (flock) for as long as the worker lives
        00000001.seg, 00000002.seg, …                   see segment.py

What is in a mapped page survives the death of the process (kill -9 as well), not that of the machine. The lock is how
a reader knows that a life is over: the kernel drops it with the process, whatever its pid is reused for.

The next segment is always made ahead. When it cannot be made (disk full, `bytes_max` reached) the journal is `full`:
nothing new may begin, and what is left of the current segment, at least half of it, is kept for the records of
exchanges that have begun. `bytes_max` bounds all journals below state_dir together; each worker may be one segment
beyond it.

Knows nothing of the control process, which reads and deletes segments (reader.py).
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zlib import crc32

from edgegw.exchange import Attempt, Exchange
from edgegw.ledger import segment
from edgegw.ledger.encoding import encode_attempt, encode_begin, encode_end, encode_try, encode_vitals, only_attempt
from edgegw.ledger.segment import (
    FRAME_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES_MIN,
    segment_index,
    segment_name,
)

JOURNAL_DIR = "journal"
LIFE_FILE = "life.json"
# A life is set up under this prefix and then renamed, so that a reader never sees one that is not locked yet.
OPENING_PREFIX = ".opening-"

# What a segment holds is about 10,000 exchanges; making one takes about 0.1 ms.
SEGMENT_BYTES_DEFAULT = 8 << 20
BYTES_MAX_DEFAULT = 1 << 30
# Written pages are given back in strides, so that a worker's memory does not grow by a whole segment.
RELEASE_BYTES = 256 << 10

_ROUND = FRAME_BYTES + segment.ALIGN_BYTES - 1
_ALIGNED = -segment.ALIGN_BYTES
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JournalError(Exception):
    """The journal cannot be opened: the state directory is missing, read-only or full."""


class JournalFull(Exception):  # noqa: N818 (a condition of the machine, and the name the gateway speaks of)
    """No room for another exchange: the disk is full, or unshipped segments have reached `bytes_max`."""


@dataclass(slots=True)
class _Segment:
    index: int
    bytes: int
    fd: int
    map: mmap.mmap
    words: memoryview  # the same bytes as 32 bit words

    def close(self) -> None:
        self.words.release()
        self.map.close()
        os.close(self.fd)


class Journal:
    """Append-only, for one thread of one process.

    `full` is to be asked before an exchange is admitted. Only `begin` raises (JournalFull); the other records of an
    exchange that has begun are written into the reserve, and counted in `lost` in the one case that is left: a full
    disk and a used up reserve. `dropped` counts the ends of refused exchanges that were left out while full.
    """

    __slots__ = (
        "_at",
        "_bytes_max",
        "_current",
        "_directory",
        "_end",
        "_limit",
        "_lock_fd",
        "_map",
        "_released",
        "_salt",
        "_segment_bytes",
        "_seq",
        "_slot",
        "_spare",
        "_words",
        "dropped",
        "full",
        "lost",
    )

    def __init__(self, directory: Path, slot: int, lock_fd: int, segment_bytes: int, bytes_max: int) -> None:
        self._directory = directory
        self._slot = slot
        self._lock_fd = lock_fd
        self._segment_bytes = segment_bytes
        self._bytes_max = bytes_max
        self._salt = int.from_bytes(os.urandom(4), "little")
        self._seq = 0
        self._spare: _Segment | None = None
        self._current: _Segment
        self._map: mmap.mmap
        self._words: memoryview
        self._at: int  # where the next record goes
        self._limit: int  # a record that would end behind this needs a second look
        self._end: int  # of the current segment
        self._released: int  # up to here pages were given back
        self.full = False
        self.dropped = 0
        self.lost = 0
        try:
            self._use(self._make_within_bound(1))
        except JournalFull:
            # A worker that starts while the books wait on disk must not add to them, only say 503 in good order.
            self._use(self._make(1, SEGMENT_BYTES_MIN))
        self.prepare()

    @classmethod
    def open(
        cls,
        state_dir: Path,
        slot: int,
        *,
        wall_ns: int,
        pid: int,
        segment_bytes: int = SEGMENT_BYTES_DEFAULT,
        bytes_max: int = BYTES_MAX_DEFAULT,
    ) -> Self:
        """A new life in the journal. Call it in the worker, after the fork: the lock belongs to the process."""
        if segment_bytes < SEGMENT_BYTES_MIN:
            raise ValueError(f"segment_bytes is {segment_bytes}; a segment has at least {SEGMENT_BYTES_MIN}")
        segment_bytes = -(-segment_bytes // mmap.PAGESIZE) * mmap.PAGESIZE  # rounded up
        name = f"{slot}-{pid}-{wall_ns}"
        root = state_dir / JOURNAL_DIR
        lock_fd = -1
        try:
            opening = root / f"{OPENING_PREFIX}{name}"
            opening.mkdir(parents=True, mode=0o700)
            lock_fd = os.open(opening / LIFE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = {"format": segment.FORMAT, "slot": slot, "pid": pid, "opened_ns": wall_ns}
            os.write(lock_fd, json.dumps(about).encode() + b"\n")
            directory = root / name
            opening.rename(directory)
            return cls(directory, slot, lock_fd, segment_bytes, bytes_max)
        except (OSError, JournalFull) as error:
            if lock_fd >= 0:
                os.close(lock_fd)
            raise JournalError(f"cannot open the journal in {root}: {error}") from error

    # Records, in the order of an exchange's life.

    def begin(self, exchange: Exchange, attempt: Attempt) -> None:
        """Before the first byte goes upstream. Raises JournalFull; then nothing may go upstream."""
        if self.full:
            raise JournalFull
        self._append(encode_begin(exchange, attempt, self._seq + 1))
        exchange.begun = True

    def try_(self, exchange: Exchange, attempt: Attempt) -> None:
        """Before the first byte of a second or later attempt goes upstream."""
        try:
            self._append(encode_try(exchange, attempt, self._seq + 1))
        except JournalFull:
            self.lost += 1

    def attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """When an attempt is over, however it ended, and its exchange goes on."""
        attempt.written = True
        try:
            self._append(encode_attempt(exchange, attempt, self._seq + 1))
        except JournalFull:
            self.lost += 1

    def end(self, exchange: Exchange) -> None:
        """Once per exchange, before the last bytes of its reply are handed to the transport. Attempts that were not
        written yet are written with it."""
        if self.full and not exchange.begun:
            self.dropped += 1
            return
        only = only_attempt(exchange)
        if only is None:
            for attempt in exchange.attempts:
                if not attempt.written:
                    self.attempt(exchange, attempt)
        try:
            self._append(encode_end(exchange, self._seq + 1, only))
        except JournalFull:
            self.lost += 1

    def vitals(self, gauges: dict[str, float], wall_ns: int) -> None:
        """A worker's gauges, once a second; the journal adds its own. Left out while full."""
        if self.full:
            return
        own = {"journal_records": self._seq, "journal_dropped": self.dropped, "journal_lost": self.lost}
        try:
            self._append(encode_vitals(self._slot, wall_ns, gauges | own, self._seq + 1))
        except JournalFull:
            self.dropped += 1

    # Room.

    def prepare(self) -> None:
        """What is slow, ahead of need: call it outside of any request, a few times a second.

        Makes the next segment, finds out whether the journal is (still) full, and gives written pages back.
        """
        if self._spare is None:
            try:
                self._spare = self._make_within_bound(self._current.index + 1)
            except JournalFull:
                self.full = True
            else:
                self.full = False
                self._limit = self._end
        written = self._at & -mmap.PAGESIZE
        if written - self._released >= RELEASE_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED, self._released, written - self._released)
            self._released = written

    def close(self) -> None:
        """The clean end of this life: what is open now stays open for the control process to close as interrupted."""
        self._words[segment.WORD_END] = self._at
        self._words[segment.WORD_CLOSED] = 1
        self._current.close()
        if self._spare is not None:
            self._spare.close()
            (self._directory / segment_name(self._spare.index)).unlink(missing_ok=True)
            self._spare = None
        os.close(self._lock_fd)

    def _append(self, payload: bytes) -> None:
        size = len(payload)
        after = (self._at + size + _ROUND) & _ALIGNED
        if after > self._limit:
            self._make_room(after)
            after = (self._at + size + _ROUND) & _ALIGNED
        at = self._at
        self._map[at + 8 : at + 8 + size] = payload
        words = self._words
        at >>= 2
        words[at + 1] = crc32(payload, self._salt)
        words[at] = size  # last: from here on a reader may see the record
        self._at = after
        self._seq += 1

    def _make_room(self, after: int) -> None:
        """At the low-water mark, or at the end of the segment. Raises JournalFull when there is no way on."""
        if self._spare is None:
            self.prepare()
        if after <= self._end:
            self._limit = self._end
            return
        spare = self._spare
        if spare is None:  # the reserve is used up; what has begun may go beyond bytes_max as long as the disk allows
            spare = self._make(self._current.index + 1, self._segment_bytes)
        self._spare = None
        self._words[segment.WORD_END] = self._at
        self._current.close()
        self._use(spare)

    def _use(self, fresh: _Segment) -> None:
        self._current = fresh
        self._map = fresh.map
        self._words = fresh.words
        self._at = HEADER_BYTES
        self._released = 0
        self._end = fresh.bytes
        # Until the next segment is ready, half of this one is a reserve: passing the mark makes us look again.
        self._limit = fresh.bytes // 2

    def _make_within_bound(self, index: int) -> _Segment:
        if bytes_on_disk(self._directory.parent) + self._segment_bytes > self._bytes_max:
            raise JournalFull
        return self._make(index, self._segment_bytes)

    def _make(self, index: int, size: int) -> _Segment:
        path = self._directory / segment_name(index)
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _allocate(fd, size)
            mapped = mmap.mmap(fd, size)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                path.unlink(missing_ok=True)
            raise JournalFull(str(error)) from error
        words = memoryview(mapped).cast("I")
        words[segment.WORD_FORMAT] = segment.FORMAT
        words[segment.WORD_INDEX] = index
        words[segment.WORD_SALT] = self._salt
        words[segment.WORD_BYTES] = size
        words[segment.WORD_MAGIC] = segment.MAGIC
        return _Segment(index, size, fd, mapped, words)


def bytes_on_disk(root: Path) -> int:
    """What all segments of all lives below the journal directory occupy."""
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


def _allocate(fd: int, size: int) -> None:
    """Real blocks for the whole file: writing to a mapped hole of a full disk would kill the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
    block = bytes(64 << 10)
    for at in range(0, size, len(block)):
        left = min(len(block), size - at)
        if os.pwrite(fd, block[:left], at) != left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
