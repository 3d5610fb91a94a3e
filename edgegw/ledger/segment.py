"""A segment of the journal as bytes: its header, the frame around a record, and how to find records in it.

    header   64 bytes: eight words of 32 bits, little-endian on every machine we run on (mapped, so in native order)
    record   [size: u32][crc32: u32][payload: size bytes], starting at a multiple of 8

The writer stores the size last, in one 32 bit store: whoever reads along sees a whole record or a zero. The checksum
starts from the journal's `salt`, a random number, so that nothing a client puts into a name can pass for a record when
a reader has to look past damage.

Pure: bytes in, payloads and offsets out. The journal writes this form, the reader reads it.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from edgegw.ledger.record import RECORD_BYTES_MAX

# 2: records of version 2. A program that knows format 1 only leaves such journals alone and does not half read them.
FORMAT = 2
MAGIC = 0x4A574745  # "EGWJ"
HEADER_BYTES = 64
FRAME_BYTES = 8
ALIGN_BYTES = 8
# Room for the header and the longest record, twice.
SEGMENT_BYTES_MIN = 2 * (HEADER_BYTES + FRAME_BYTES + RECORD_BYTES_MAX)
SEGMENT_SUFFIX = ".seg"

# The words of the header. END is 0 while records are still appended, then the offset behind the last one.
WORD_MAGIC, WORD_FORMAT, WORD_INDEX, WORD_SALT, WORD_BYTES, WORD_END, WORD_CLOSED = range(7)

_HEADER = Struct("=8I")
_FRAME = Struct("=II")
_ROUND, _ALIGNED = ALIGN_BYTES - 1, -ALIGN_BYTES


class Header(NamedTuple):
    """`end`: 0 while the worker appends to this segment. `closed`: the worker said that nothing follows, ever."""

    format: int
    number: int
    salt: int
    size: int
    end: int
    closed: bool


class Stop(IntEnum):
    """Why no more payloads were cut."""

    EMPTY = 0  # a zero where the next size would be: the end, for now or for good
    SHORT = 1  # the data ends inside a record: read on from there
    BAD = 2  # bytes that are no record
    LIMIT = 3  # as many as were asked for


def segment_name(index: int) -> str:
    return f"{index:08d}{SEGMENT_SUFFIX}"


def segment_index(name: str) -> int:
    """The index in a file name, 0 when it is not the name of a segment."""
    stem = name.removesuffix(SEGMENT_SUFFIX)
    return int(stem) if stem != name and stem.isascii() and stem.isdigit() else 0


def header(index: int, salt: int, size: int) -> bytes:
    """Of a segment that is about to be written."""
    return _HEADER.pack(MAGIC, FORMAT, index, salt, size, 0, 0, 0)


def read_header(data: bytes) -> Header | None:
    """The header, None when there is none (not yet, or it is damaged)."""
    if len(data) < HEADER_BYTES:
        return None
    magic, format_, number, salt, size, end, closed, _ = _HEADER.unpack_from(data)
    if magic != MAGIC:
        return None
    return Header(format_, number, salt, size, end, bool(closed))


def cut(data: bytes, at: int, salt: int, limit: int, payloads: list[bytes]) -> tuple[int, Stop]:
    """Append up to `limit` payloads found from `at` on; the offset behind the last one, and why it ended there.

    `data` starts at a multiple of 8 of its segment.
    """
    unpack = _FRAME.unpack_from
    take = payloads.append
    end = len(data)
    last = end - FRAME_BYTES
    for _ in range(limit):
        if at > last:
            return at, Stop.SHORT
        size, crc = unpack(data, at)
        if size == 0:
            return at, Stop.EMPTY
        if size > RECORD_BYTES_MAX:
            return at, Stop.BAD
        start = at + FRAME_BYTES
        stop = start + size
        if stop > end:
            return at, Stop.SHORT
        payload = data[start:stop]
        if crc32(payload, salt) != crc:
            return at, Stop.BAD
        take(payload)
        at = (stop + _ROUND) & _ALIGNED
    return at, Stop.SHORT if at > last else Stop.LIMIT


def find(data: bytes, at: int, salt: int) -> int:
    """The offset of the first whole record behind `at`, -1 when there is none. For reading past damage only: slow."""
    unpack = _FRAME.unpack_from
    size_of_data = len(data)
    at += ALIGN_BYTES
    while at + FRAME_BYTES < size_of_data:
        size, crc = unpack(data, at)
        if size == 0:
            at = _after_zeros(data, at + ALIGN_BYTES)
            continue
        start = at + FRAME_BYTES
        if size <= RECORD_BYTES_MAX and start + size <= size_of_data and crc32(data[start : start + size], salt) == crc:
            return at
        at += ALIGN_BYTES
    return -1


def _after_zeros(data: bytes, at: int) -> int:
    """The aligned offset of the first byte that is not zero, the end of the data when there is none."""
    step = 4096
    while at < len(data):
        rest = data[at : at + step].lstrip(b"\0")
        if rest:
            return (min(at + step, len(data)) - len(rest)) & -ALIGN_BYTES
        at += step
    return at
