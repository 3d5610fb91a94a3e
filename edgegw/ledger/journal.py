"""The journal of one worker: records appended to mapped, preallocated files, without a system call and without a wait.

What is in a mapped page survives the death of the process (kill -9 as well); that of the machine only as far as
`storage.journal.sync` says (syncing.py, durable.py). Where the files are, and how a reader knows that their writer is
gone, is told in life.py.

The next segment is always made ahead. When it cannot be made (disk full, `bytes_max` reached, the disk read-only) or
the files are no longer where a reader looks for them, the journal is in `trouble`: no exchange begins in it, and what
is left of the current segment, at least half of it, is kept for the records of exchanges that have begun. What becomes
of the others is `when_full`: refused by the gateway (`full`), or served without a record and counted (`dropped`).
`prepare` finds out that it is over. `bytes_max` bounds all journals below state_dir together; each worker may be one
segment beyond it.

Knows nothing of the control process, which reads and deletes segments (reader.py).
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self
from zlib import crc32

from edgegw.exchange import Attempt, Exchange
from edgegw.ledger import segment
from edgegw.ledger.encoding import encode_attempt, encode_begin, encode_end, encode_try, encode_vitals, only_attempt
from edgegw.ledger.life import Life, Segment, make_segment, open_life, sync
from edgegw.ledger.room import NOT_OPEN, JournalFull, Trouble, trouble_of
from edgegw.ledger.segment import FRAME_BYTES, HEADER_BYTES, SEGMENT_BYTES_MIN
from edgegw.settings import WhenFull
from edgegw.trace import about

# What a segment holds is about 10,000 exchanges; making one takes about 0.1 ms.
SEGMENT_BYTES_DEFAULT = 8 << 20
BYTES_MAX_DEFAULT = 1 << 30
# Written pages are given back in strides, so that a worker's memory does not grow by a whole segment.
RELEASE_BYTES = 256 << 10

logger = logging.getLogger("edgegw.ledger")

NOWHERE = -1  # no record ends at or before this
_ROUND, _ALIGNED = FRAME_BYTES + segment.ALIGN_BYTES - 1, -segment.ALIGN_BYTES


class Journal:
    """Append-only, for one thread of one process.

    `full` is to be asked before an exchange is admitted. Only `begin` raises (JournalFull); the other records of an
    exchange that has begun are written into the reserve, and counted in `lost` where that is used up or gone as well.
    What has no row for want of room is counted apart: `dropped`, exchanges that went to a provider all the same
    (`when_full` is drop), and `dropped_refusals`, those that were refused. `unsynced` counts what the disk was to have
    first and did not take (durable.py).
    """

    __slots__ = (
        "_at",
        "_bytes_max",
        "_current",
        "_drops",
        "_end",
        "_life",
        "_limit",
        "_lives",
        "_map",
        "_named",
        "_pid",
        "_released",
        "_salt",
        "_sealed",
        "_segment_bytes",
        "_seq",
        "_slot",
        "_spare",
        "_state_dir",
        "_wall_ns",
        "_words",
        "dropped",
        "dropped_refusals",
        "full",
        "lost",
        "sync_trouble",
        "trouble",
        "unsynced",
    )

    def __init__(self, state_dir: Path, slot: int, wall_ns: int, pid: int, segment_bytes: int, bytes_max: int) -> None:
        self._state_dir = state_dir
        self._slot = slot
        self._pid = pid
        self._wall_ns = wall_ns
        self._segment_bytes = segment_bytes
        self._bytes_max = bytes_max
        self._drops = False
        self._sealed: list[int] | None = None  # descriptors of segments to be synced; None: nobody syncs here
        self._named: Path | None = None  # the segment whose name is on the disk
        self._lives = 0
        self._life: Life | None = None
        self._current: Segment | None = None
        self._spare: Segment | None = None
        # Of the current segment, at hand for _append; nothing is there before there is a life.
        self._map: mmap.mmap
        self._words: memoryview
        self._salt = 0
        self._seq = 0
        self._at = 0  # where the next record goes
        self._limit = NOWHERE  # a record that would end behind this needs a second look
        self._end = NOWHERE  # of the current segment; NOWHERE while there is none that a reader would find
        self._released = 0  # up to here pages were given back
        self.trouble: Trouble | None = None
        self.sync_trouble: Trouble | None = None
        self.full = False
        self.dropped = self.dropped_refusals = self.lost = self.unsynced = 0

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
        when_full: WhenFull = "refuse",
        syncs: bool = False,
    ) -> Self:
        """A new life in the journal. Call it in the worker, after the fork: the lock belongs to the process. A worker
        that starts while there is no room, or no disk, says so (`trouble`) and goes on trying (`prepare`). `syncs`:
        `syncing` will be called."""
        if segment_bytes < SEGMENT_BYTES_MIN:
            raise ValueError(f"segment_bytes is {segment_bytes}; a segment has at least {SEGMENT_BYTES_MIN}")
        segment_bytes = -(-segment_bytes // mmap.PAGESIZE) * mmap.PAGESIZE  # rounded up
        journal = cls(state_dir, slot, wall_ns, pid, segment_bytes, bytes_max)
        journal._drops = when_full == "drop"
        journal._sealed = [] if syncs else None
        journal.prepare()
        return journal

    # Records, in the order of an exchange's life.

    def begin(self, exchange: Exchange, attempt: Attempt) -> None:
        """Before the first byte goes upstream. Raises JournalFull, unless such exchanges are dropped; then nothing may
        go upstream."""
        try:
            if self.trouble is not None:
                raise JournalFull(self.trouble)
            self._append(encode_begin(exchange, attempt, self._seq + 1), exchange)
            exchange.begun = True
        except JournalFull:
            if not self._drops:
                raise
            self.dropped += 1

    def try_(self, exchange: Exchange, attempt: Attempt) -> None:
        """Before the first byte of a second or later attempt goes upstream."""
        if exchange.begun:
            try:
                self._append(encode_try(exchange, attempt, self._seq + 1), exchange)
            except JournalFull:
                self.lost += 1

    def attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """When an attempt is over, however it ended, and its exchange goes on."""
        attempt.written = True
        if exchange.begun:
            try:
                self._append(encode_attempt(exchange, attempt, self._seq + 1), exchange)
            except JournalFull:
                self.lost += 1

    def end(self, exchange: Exchange) -> None:
        """Once per exchange, before the last bytes of its reply are handed to the transport. Attempts that were not
        written yet are written with it."""
        if not exchange.begun:
            self._end_without_begin(exchange)
            return
        only = only_attempt(exchange)
        if only is None:
            for attempt in exchange.attempts:
                if not attempt.written:
                    self.attempt(exchange, attempt)
        try:
            self._append(encode_end(exchange, self._seq + 1, only), exchange)
        except JournalFull:
            self.lost += 1

    def vitals(self, gauges: dict[str, float], wall_ns: int) -> None:
        """A worker's gauges, once a second; the journal adds how many records it has. Left out while in trouble."""
        if self.trouble is None:
            with suppress(JournalFull):
                self._append(encode_vitals(self._slot, wall_ns, gauges | {"journal_records": self._seq}, self._seq + 1))

    def _end_without_begin(self, exchange: Exchange) -> None:
        """A refusal, or the end of what was dropped when it began."""
        if exchange.attempts:
            return
        try:
            if self.trouble is not None:
                raise JournalFull(self.trouble)
            self._append(encode_end(exchange, self._seq + 1, None), exchange)
        except JournalFull:
            self.dropped_refusals += 1

    # Room.

    def prepare(self) -> None:
        """What is slow, ahead of need: call it outside of any request, a few times a second.

        Makes the next segment, finds out whether the journal is (still) in trouble, and gives written pages back.
        """
        try:
            if self._current is None or not self._current.there():
                self._begin_life()
            self._make_spare()
        except OSError as error:
            self._in_trouble(trouble_of(error))
        except JournalFull as full:
            self._in_trouble(full.trouble)
        written = self._at & -mmap.PAGESIZE
        if written - self._released >= RELEASE_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED, self._released, written - self._released)
            self._released = written

    def syncing(self) -> Callable[[], None]:
        """What brings all that is written by now to the disk; to be called in a thread, and to be told of in
        `sync_trouble`. It raises OSError."""
        fds, self._sealed = self._sealed or [], []
        directories: list[Path] = []
        current = self._current
        if current is not None:
            fds.append(os.dup(current.fd))
            if self._named != current.path or self.sync_trouble is not None:
                self._named = current.path
                directories = list(current.path.parents)[:3]  # the life's, the journal's, the gateway's
        return partial(sync, fds, directories)

    def close(self) -> None:
        """The clean end of this life: what is open now stays open for the control process to close as interrupted."""
        if self._current is not None:
            self._words[segment.WORD_END] = self._at
            self._words[segment.WORD_CLOSED] = 1
        self._leave_life()

    def _append(self, payload: bytes, exchange: Exchange | None = None) -> None:
        size = len(payload)
        after = (self._at + size + _ROUND) & _ALIGNED
        if after > self._limit:
            self._make_room(after, exchange)
            after = (self._at + size + _ROUND) & _ALIGNED
        at = self._at
        self._map[at + 8 : at + 8 + size] = payload
        words = self._words
        at >>= 2
        words[at + 1] = crc32(payload, self._salt)
        words[at] = size  # last: from here on a reader may see the record
        self._at = after
        self._seq += 1

    def _make_room(self, after: int, exchange: Exchange | None) -> None:
        """At the low-water mark, or at the end of the segment. Raises JournalFull when there is no way on. `exchange`:
        whose record it is."""
        life, current = self._life, self._current
        if life is None or current is None or self._end == NOWHERE:
            raise JournalFull(self.trouble or NOT_OPEN)
        try:
            self._make_spare(exchange)
        except JournalFull as full:
            self._in_trouble(full.trouble, exchange)
        if after <= self._end:
            self._limit = self._end
            return
        # Where the reserve is used up, what has begun may go beyond bytes_max as long as the disk allows.
        fresh = self._spare or make_segment(life, current.index + 1, self._segment_bytes)
        self._spare = None
        self._words[segment.WORD_END] = self._at
        if self._sealed is not None:
            self._sealed.append(os.dup(current.fd))
        current.close()
        self._use(fresh)

    def _use(self, fresh: Segment) -> None:
        self._current = fresh
        self._map = fresh.map
        self._words = fresh.words
        self._at = HEADER_BYTES
        self._released = 0
        self._end = fresh.bytes
        # Until the next segment is ready, half of this one is a reserve: passing the mark makes us look again.
        self._limit = fresh.bytes // 2

    def _make_spare(self, exchange: Exchange | None = None) -> None:
        """The next segment, unless there is one: then all is well. Raises JournalFull."""
        life, current = self._life, self._current
        if life is None or current is None:
            raise JournalFull(self.trouble or NOT_OPEN)
        if self._spare is None:
            self._spare = make_segment(life, current.index + 1, self._segment_bytes, self._bytes_max)
        if self.trouble is not None:
            counts = f"{self.dropped} exchanges and {self.dropped_refusals} refusals have no row"
            text = "the journal takes records again; %s, %d records are lost"
            logger.warning(text, counts, self.lost, extra=about(exchange))
        self.trouble = None
        self.full = False
        self._limit = self._end = current.bytes

    def _in_trouble(self, trouble: Trouble, exchange: Exchange | None = None) -> None:
        if trouble != self.trouble:
            becomes = "dropped" if self._drops else "refused"
            full = "the journal takes no new exchange, they are %s: %s"
            logger.warning(full, becomes, trouble.reason, extra=about(exchange))
        self.trouble = trouble
        self.full = not self._drops

    def _begin_life(self) -> None:
        """The first one, or one more when the files of the last are gone from where a reader looks for them: what is
        written into those is written nowhere. Raises OSError and JournalFull."""
        self._limit = self._end = NOWHERE
        self._lives += 1
        life = open_life(self._state_dir, self._slot, self._pid, self._wall_ns + self._lives - 1)
        try:
            try:
                first = make_segment(life, 1, self._segment_bytes, self._bytes_max)
            except JournalFull:
                # A worker that starts while the books wait on disk must not add to them, only say 503 in good order.
                first = make_segment(life, 1, SEGMENT_BYTES_MIN)
        except JournalFull:
            life.discard()
            raise
        if self._life is not None:
            logger.error("the journal's files are gone: what of them was not shipped is lost; it begins anew")
        self._leave_life()
        self._life = life
        self._salt = life.salt
        self._seq = 0
        self._use(first)

    def _leave_life(self) -> None:
        if self._current is not None:
            self._current.close()
        if self._spare is not None:
            self._spare.discard()
        if self._life is not None:
            self._life.close()
        self._life = self._current = self._spare = None
