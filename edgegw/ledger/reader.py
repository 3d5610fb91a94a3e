"""The control process's side of the journal: new records of all lives, in order, each once; then the files' end.

A `LifeReader` follows one directory (one life of a worker), a `Reader` all of them. Reading goes along while a worker
writes. The end of what is there is the end of the log only when the life is over: cleanly closed, or its lock is free
(the kernel drops it with the process). Then, and in segments that are sealed, damage is read past, if a whole record
follows; before, it is waited for, since a torn record of a live worker is one that is just being written.

Positions are given by the caller and are durable somewhere else (store.py). Nothing is deleted before the caller says
that it is shipped; what cannot be deleted then (a disk that has become read-only) is left lying and not read again.

A disk that fails is asked again. When it goes on failing in a segment that nobody writes any more, what it does not
give is taken for zeros: damage like any other.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from edgegw.ledger.life import JOURNAL_DIR, LIFE_FILE, LIFE_NAME
from edgegw.ledger.record import (
    RECORD_BYTES_MAX,
    BadRecordError,
    End,
    Record,
    attempt_within,
    decoder,
    happened_ns,
)
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
# How often it is tried again to delete what could not be deleted: about once a minute.
CLEAR_EVERY_LOOKS = 300
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


class LifeReader:
    """`over`: nothing will be written any more. `drained`: over, and everything was read."""

    __slots__ = (
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
            if header is None:
                stop = Stop.BAD if any(head) else Stop.EMPTY  # a file whose maker died before its first byte is no harm
            else:
                stop = self._read_chunk(header, limit, records)
            if stop is Stop.SHORT or stop is Stop.LIMIT:
                continue
            if not self._past_end(header, stop):
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

    def _read_chunk(self, header: Header, limit: int, records: list[Record]) -> Stop:
        if header.format > FORMAT:
            self.foreign = True
            self._damage.foreign += 1
            return Stop.LIMIT
        if header.closed:
            self.over = True
        position = self.position
        position.offset = max(position.offset, HEADER_BYTES)
        data = self._bytes(CHUNK_BYTES, position.offset)
        payloads: list[bytes] = []
        used, stop = cut(data, 0, header.salt, limit - len(records), payloads)
        position.offset += used
        if used:
            self._bad_looks = 0
            self._take(payloads, records)
        elif stop is Stop.SHORT:  # the file ends here: behind its last record, or inside of what is none
            return Stop.EMPTY if len(data) < FRAME_BYTES else Stop.BAD
        return stop

    def _take(self, payloads: list[bytes], records: list[Record]) -> None:
        """Decode, and look at the sequence: what is missing is counted, what comes again is left out."""
        decode = self._decode
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
            if record.__class__ is End and record.only is not None:
                records.append(attempt_within(record, record.only))
            records.append(record)
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

    def _past_end(self, header: Header | None, stop: Stop) -> bool:
        """No record is here. True: go on reading; False: nothing more for now."""
        sealed_at = header.end if header is not None else 0
        if sealed_at == 0 and not self.over:
            if self._find_over():
                return True  # once more: it may have written between our look and its death
            self._bad_looks += stop is Stop.BAD
            return self._bad_looks > BAD_LOOKS_MAX and header is not None and self._skip_damage(header, stop)
        if header is None:
            self._count_torn(stop is Stop.BAD)
        elif self._skip_damage(header, stop):
            return True
        return self._next_segment()

    def _skip_damage(self, header: Header, stop: Stop) -> bool:
        """Go to the next whole record of this segment; False when there is none (or no damage)."""
        at = self.position.offset
        end = header.end or header.size
        if at >= end:
            return False
        found = -1
        window_at = at
        while True:
            window = self._bytes(min(CHUNK_BYTES, end - window_at), window_at)
            found = find(window, 0, header.salt)
            if found >= 0 or window_at + len(window) >= end or len(window) < CHUNK_BYTES:
                break
            window_at += CHUNK_BYTES - RECORD_BYTES_MAX - FRAME_BYTES  # windows overlap by the longest record
        if found >= 0:
            self.position.offset = window_at + found
            self._count_torn(True)
        elif header.end or self.over:
            self.position.offset = end
            self._count_torn(stop is Stop.BAD or header.end != 0)
        return found >= 0

    def _count_torn(self, torn: bool) -> None:
        self._damage.torn += torn
        self.position.torn += torn

    def _next_segment(self) -> bool:
        behind = [index for index in self._indices() if index > self.position.segment]
        if not behind:
            if self.over:
                self.drained = True
            return False
        self._close_segment()
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
            if self.over or self._find_over():
                return self._next_segment() and self._opened()
            return False
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
