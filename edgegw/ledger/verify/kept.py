"""What is on disk of one life, from its first segment to its last record; what is damaged is told, then read past.

A worker may be writing. Its records come whole (segment.py), so bytes that are no record are looked at again before
they are called damage, and the end of what is there is no damage at all. Segments go as they are shipped: one that is
gone when we come to it was.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from edgegw.ledger.life import LIFE_FILE
from edgegw.ledger.record import RECORD_BYTES_MAX, BadRecordError, End, Record, attempt_within, decoder
from edgegw.ledger.segment import (
    ALIGN_BYTES,
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
from edgegw.ledger.verify.findings import Kind

CHUNK_BYTES = 256 << 10
PORTION_RECORDS = 1000
# Bytes that are no record, where a worker may be writing: looked at again after a moment, so many times.
BAD_LOOKS = 5
BAD_LOOK_S = 0.02

Tell = Callable[[Kind, str], None]


class Place(NamedTuple):
    """Of a record: the segment, and the offsets of its first byte and of the one behind it."""

    segment: int
    start: int
    stop: int


class Found(NamedTuple):
    """An attempt that came within an End stands before it, with its `seq`."""

    record: Record
    place: Place


class Kept:
    """`first`, `last`: the sequence numbers of the first and the last record that was read, 0 before. `moved_on`:
    something went while we read, so it was shipped by then."""

    def __init__(self, directory: Path, tell: Tell) -> None:
        self._directory = directory
        self._tell = tell
        self._decode = decoder()
        self.over = _is_over(directory)
        self.first = 0
        self.last = 0
        self.first_segment = 0
        self.moved_on = False

    def read(self) -> Iterator[list[Found]]:
        """Portions of what is there."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            self.moved_on = True
            return
        indices = sorted(index for index in map(segment_index, names) if index)
        self.first_segment = indices[0] if indices else 0
        for index in indices:
            try:
                fd = os.open(self._directory / segment_name(index), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.moved_on = True
                self.first = self.last = 0
                continue
            try:
                yield from self._segment(fd, index)
            finally:
                os.close(fd)

    def _segment(self, fd: int, index: int) -> Iterator[list[Found]]:
        head = os.pread(fd, HEADER_BYTES, 0)
        header = read_header(head)
        if header is None:
            if any(head):  # one whose maker died before its first byte is no harm
                self._tell("journal torn", f"segment {index} has no header")
            return
        if header.format > FORMAT:
            self._tell(
                "journal unreadable", f"segment {index} is of format {header.format}, this program reads {FORMAT}"
            )
            return
        at = HEADER_BYTES
        looks = 0
        while True:
            data = os.pread(fd, CHUNK_BYTES, at)
            payloads: list[bytes] = []
            used, stop = cut(data, 0, header.salt, PORTION_RECORDS, payloads)
            if payloads:
                yield self._take(payloads, index, at)
                at += used
                looks = 0
                continue
            if stop is Stop.SHORT:
                stop = Stop.EMPTY if len(data) < FRAME_BYTES else Stop.BAD
            if header.end and at >= header.end:
                return
            behind = self._behind(fd, header, at)
            if stop is Stop.EMPTY and not header.end and behind < 0:
                return  # the end of what is there
            if looks < BAD_LOOKS and not header.end and not self.over:
                looks += 1
                time.sleep(BAD_LOOK_S)
                header = read_header(os.pread(fd, HEADER_BYTES, 0)) or header
                continue
            self._tell("journal torn", f"segment {index} has bytes at offset {at} that are no record")
            if behind < 0:
                return
            at = behind

    def _take(self, payloads: list[bytes], index: int, at: int) -> list[Found]:
        portion: list[Found] = []
        for payload in payloads:
            stop = (at + FRAME_BYTES + len(payload) + ALIGN_BYTES - 1) & -ALIGN_BYTES
            place = Place(index, at, stop)
            at = stop
            try:
                record = self._decode(payload)
            except BadRecordError as error:
                self._tell("journal unreadable", f"segment {index}, offset {place.start}: {error}")
                continue
            self._count(record.seq, place)
            if isinstance(record, End) and record.only is not None:
                portion.append(Found(attempt_within(record, record.only), place))
            portion.append(Found(record, place))
        return portion

    def _count(self, seq: int, place: Place) -> None:
        where = f"segment {place.segment}, offset {place.start}"
        if self.last == 0:
            self.first = seq
            if place.segment == 1 and seq > 1:
                self._tell("journal gap", f"{where}: begins with record {seq}")
        elif seq > self.last + 1:
            missing = f"record {seq - 1} is" if seq == self.last + 2 else f"records {self.last + 1} to {seq - 1} are"
            self._tell("journal gap", f"{where}: {missing} missing")
        elif seq <= self.last:
            self._tell("journal gap", f"{where}: record {seq} comes after record {self.last}")
        self.last = max(self.last, seq)

    def _behind(self, fd: int, header: Header, at: int) -> int:
        """The offset of the next whole record behind `at`, -1 when there is none."""
        end = header.end or header.size
        while at < end:
            window = os.pread(fd, min(CHUNK_BYTES, end - at), at)
            found = find(window, 0, header.salt)
            if found >= 0:
                return at + found
            if len(window) < CHUNK_BYTES:
                return -1
            at += CHUNK_BYTES - RECORD_BYTES_MAX - FRAME_BYTES  # windows overlap by the longest record
        return -1


def _is_over(directory: Path) -> bool:
    """Whether the worker is gone: the kernel says so, its lock is free."""
    try:
        fd = os.open(directory / LIFE_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
