"""One life of a worker as a reader sees it: its records, in order, each once, past whatever was done to the files.

Reading goes along while a worker writes. The end of what is there is the end of the log only when the life is over: its
lock is free (the kernel drops it with the process). Then, and in segments that are sealed, damage is read past, if a
whole record follows; before, it is waited for, since a torn record of a live worker is one that is just being written.

Nothing that a segment's header says is trusted alone: where checksums start from stands in life.json as well, whether
the writer is gone is asked of the kernel, and a file ends where it ends. So a header that is damaged costs nothing but
a count.

A disk that fails is asked again. When it goes on failing in a segment that nobody writes any more, what it does not
give is taken for zeros: damage like any other.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from edgegw.ledger.life import LIFE_FILE
from edgegw.ledger.record import RECORD_BYTES_MAX, BadRecordError, End, Record, attempt_within, happened_ns
from edgegw.ledger.segment import (
    FORMAT,
    FRAME_BYTES,
    HEADER_BYTES,
    Header,
    Stop,
    cut,
    find,
    read_header,
    segment_index,
    segment_name,
)
from edgegw.ledger.store import Position

# One read: some 300 records. At least two of the longest, so that one that starts in it also ends in it.
CHUNK_BYTES = 64 << 10
# A disk page that cannot be read is passed over, and no more than that.
PAGE_BYTES = 4096
# Looks in a row at which the disk failed: then it is not going to get better. Half a minute for a shipper that polls.
FAILED_LOOKS_MAX = 100
# Bytes that are no record, at the end of a live worker's segment, at this many looks in a row: damage, not a race.
BAD_LOOKS_MAX = 10


@dataclass(slots=True)
class Damage:
    """What was not as it should be. `torn`: places where bytes were no record. `gaps`: sequence numbers never seen.
    `unreadable`: whole records that we do not understand. `foreign`: lives in a format of a newer version, left alone.
    `failed`: looks at which the disk failed, to be repeated.
    """

    torn: int = 0
    gaps: int = 0
    unreadable: int = 0
    foreign: int = 0
    failed: int = 0

    def __add__(self, other: Damage) -> Damage:
        return Damage(*map(sum, zip(astuple(self), astuple(other), strict=True)))


class _About(NamedTuple):
    """What all segments of a life have in common."""

    format: int
    salt: int


class LifeReader:
    """`over`: nothing will be written any more. `drained`: over, and everything was read."""

    __slots__ = (
        "_about",
        "_bad_looks",
        "_damage",
        "_decode",
        "_directory",
        "_failed_looks",
        "_fd",
        "_life_fd",
        "drained",
        "foreign",
        "name",
        "over",
        "position",
    )

    def __init__(self, directory: Path, position: Position, decode: Callable[[bytes], Record], damage: Damage) -> None:
        self.name = directory.name
        self.position = position
        self.over = False
        self.drained = False
        self.foreign = False
        self._directory = directory
        self._decode = decode
        self._damage = damage
        self._about: _About | None = None
        self._bad_looks = 0
        self._failed_looks = 0
        self._fd = -1
        self._life_fd = -1

    def read(self, limit: int) -> list[Record]:
        """About `limit` records that were not read yet, in their order; none when there are none now. An attempt that
        came within an End stands before it, as a record with the same `seq`."""
        records: list[Record] = []
        try:
            self._read(limit, records)
        except OSError:
            self._failed_looks += 1
            self._damage.failed += 1
        else:
            self._failed_looks = 0
        if records:
            self.position.wall_ns = max(self.position.wall_ns, happened_ns(records[-1]))
        return records

    def _read(self, limit: int, records: list[Record]) -> None:
        while len(records) < limit and not self.drained and not self.foreign and self._opened():
            # The header before the data: what is sealed or over by now is whole by now.
            head = self._bytes(HEADER_BYTES, 0)
            header = read_header(head)
            about = self._about or self._read_about(header)
            if about is None:  # a file whose maker died before its first byte is no harm
                stop = Stop.BAD if any(head) else Stop.EMPTY
            elif about.format > FORMAT:
                self.foreign = True
                self._damage.foreign += 1
                return
            else:
                stop = self._read_chunk(about.salt, limit, records)
            if stop is Stop.SHORT or stop is Stop.LIMIT:
                continue
            if not self._past_end(header, stop, any(head)):
                break

    def move(self, position: Position) -> None:
        """Go on from where another reader of this life stands."""
        if position.segment != self.position.segment:
            self._close_segment()
        self.position = replace(position)

    def release(self, durable: Position) -> None:
        """Delete the segments that lie wholly before a position that is stored."""
        for index in self._indices():
            if index < durable.segment:
                with suppress(OSError):  # it is tried again at the next one
                    (self._directory / segment_name(index)).unlink()

    def remove(self) -> bool:
        """Delete the directory of a life that is drained, when all of it is stored. False: it is still there."""
        self.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        return not self._directory.exists()

    def close(self) -> None:
        for fd in (self._fd, self._life_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._life_fd = -1

    def _read_about(self, header: Header | None) -> _About | None:
        """What has to be known to read this life: as life.json has it, else as a header says."""
        try:
            about = json.loads((self._directory / LIFE_FILE).read_bytes())
            self._about = _About(int(about["format"]), int(about["salt"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None if header is None else _About(header.format, header.salt)
        return self._about

    def _read_chunk(self, salt: int, limit: int, records: list[Record]) -> Stop:
        position = self.position
        position.offset = max(position.offset, HEADER_BYTES)
        data = self._bytes(CHUNK_BYTES, position.offset)
        payloads: list[bytes] = []
        used, stop = cut(data, 0, salt, limit - len(records), payloads)
        position.offset += used
        if used:
            self._bad_looks = 0
            self._take(payloads, records)
        elif stop is Stop.SHORT:  # the file ends here: behind its last record, or inside of what is none
            return Stop.EMPTY if len(data) < FRAME_BYTES else Stop.BAD
        return stop

    def _take(self, payloads: list[bytes], records: list[Record]) -> None:
        """Decode, and look at the sequence: what is missing is counted, what comes again is left out."""
        decode, take = self._decode, records.append
        last = self.position.seq
        for payload in payloads:
            try:
                record = decode(payload)
            except BadRecordError:
                self._damage.unreadable += 1
                self.position.unreadable += 1
                continue
            seq = record.seq
            if seq != last + 1:
                if seq <= last:
                    continue
                self._damage.gaps += seq - last - 1
                self.position.gaps += seq - last - 1
            last = seq
            if type(record) is End and record.only is not None:
                take(attempt_within(record, record.only))
            take(record)
        self.position.seq = last

    def _bytes(self, size: int, at: int) -> bytes:
        """What the disk gives of the current segment. Raises OSError while there is hope that it will give all."""
        try:
            return os.pread(self._fd, size, at)
        except OSError:
            if self._failed_looks < FAILED_LOOKS_MAX or not (self.over or self._find_over()):
                raise
        end = min(at + size, os.fstat(self._fd).st_size)
        pieces: list[bytes] = []
        while at < end:
            behind = min(end, (at // PAGE_BYTES + 1) * PAGE_BYTES)
            pieces.append(self._page(behind - at, at))
            at = behind
        return b"".join(pieces)

    def _page(self, size: int, at: int) -> bytes:
        try:
            return os.pread(self._fd, size, at)
        except OSError:
            return bytes(size)

    def _past_end(self, header: Header | None, stop: Stop, begun: bool) -> bool:
        """No record is here. True: go on reading; False: nothing more for now. `begun`: the header is not all zeros."""
        about = self._about or self._read_about(header)
        sealed_at = header.end if header is not None else 0
        if not sealed_at and not self.over:
            if self._find_over():
                return True  # once more: it may have written between our look and its death
            left = about is not None and self._left(about.salt)
            self._bad_looks += left or stop is Stop.BAD
            if self._bad_looks <= BAD_LOOKS_MAX:
                return False
            if not left:
                return about is not None and self._skip_damage(about.salt)
        if about is not None and self.position.offset != sealed_at:
            if self._skip_damage(about.salt):
                return True
            self._count_torn(stop is Stop.BAD or sealed_at != 0)
            self.position.offset = max(self.position.offset, sealed_at)
        if header is None:
            self._count_torn(begun or self.position.offset > HEADER_BYTES)
        return self._next_segment()

    def _left(self, salt: int) -> bool:
        """Whether the worker writes another segment already. It seals one before it goes on, so what we have here is a
        header that lost the seal."""
        for index in self._indices():
            if index > self.position.segment:
                with suppress(FileNotFoundError), open(self._directory / segment_name(index), "rb") as file:
                    payloads: list[bytes] = []
                    cut(file.read(CHUNK_BYTES), HEADER_BYTES, salt, 1, payloads)
                    if payloads:
                        return True
        return False

    def _skip_damage(self, salt: int) -> bool:
        """Go to the next whole record of this segment; False when there is none. The whole file is looked through: a
        header that is damaged may say anything of its end."""
        window_at = self.position.offset
        while True:
            window = self._bytes(CHUNK_BYTES, window_at)
            found = find(window, 0, salt)
            if found >= 0:
                self.position.offset = window_at + found
                self._count_torn(True)
                return True
            if len(window) < CHUNK_BYTES:
                return False
            window_at += CHUNK_BYTES - RECORD_BYTES_MAX - FRAME_BYTES  # windows overlap by the longest record

    def _count_torn(self, torn: bool) -> None:
        self._damage.torn += torn
        self.position.torn += torn

    def _next_segment(self) -> bool:
        behind = [index for index in self._indices() if index > self.position.segment]
        if not behind:  # a worker has its next segment before it seals one: it has ended, or is about to
            self.drained = self.over or self._find_over()
            return False
        self._close_segment()
        self._bad_looks = 0
        self.position.segment = min(behind)
        self.position.offset = HEADER_BYTES
        return True

    def _opened(self) -> bool:
        """The current segment is open; False when it does not exist (yet)."""
        if self._fd >= 0:
            return True
        try:
            self._fd = os.open(self._directory / segment_name(self.position.segment), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # They are made in their order: where a later one is, this one was deleted.
            later = any(index > self.position.segment for index in self._indices())
            return (later or self.over or self._find_over()) and self._next_segment() and self._opened()
        return True

    def _find_over(self) -> bool:
        """Ask the kernel whether somebody still holds this life's lock. Once over, always over."""
        if self._life_fd < 0:
            try:
                self._life_fd = os.open(self._directory / LIFE_FILE, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.over = True
                return True
        try:
            fcntl.flock(self._life_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self._life_fd, fcntl.LOCK_UN)
        self.over = True
        return True

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _indices(self) -> list[int]:
        try:
            return [index for index in map(segment_index, os.listdir(self._directory)) if index]
        except FileNotFoundError:
            return []
