"""The reader under attack: whatever is done to the files, every record that was not touched is read, once and in order;
what is missing is counted, in both places; and reading comes to an end.

An attack is a list of wounds: bytes turned, zeroed or overwritten, pages that never reached the disk, files cut, taken
away or copied over others. The model is the bytes: a record is whole when all of its bytes are as they were written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import tried
from ledger_traces import die, open_journal, play

from edgegw.ledger.journal import Journal
from edgegw.ledger.life_reader import BAD_LOOKS_MAX
from edgegw.ledger.reader import Damage, LifeReader, Reader
from edgegw.ledger.record import Record
from edgegw.ledger.segment import FRAME_BYTES, HEADER_BYTES, cut, read_header, segment_name
from edgegw.ledger.store import Position

PAGE = 4096
EXCHANGES = 200
LOOKS = 40 * BAD_LOOKS_MAX  # more than enough for every segment's own patience


@dataclass(frozen=True)
class Span:
    """A record's bytes in its segment, and its number."""

    start: int
    stop: int
    seq: int


@dataclass(frozen=True)
class Whole:
    """A life as it was written."""

    files: dict[int, bytes]
    spans: dict[int, list[Span]]


@cache
def whole_life(place: Path) -> Whole:
    """A life of some 600 records in a few segments, left by a worker that was killed."""
    journal = open_journal(place)
    for number in range(EXCHANGES):
        play(journal, number, failures=number % 2, tenant="t" * (number % 97))
    die(journal)
    files: dict[int, bytes] = {}
    spans: dict[int, list[Span]] = {}
    seq = 0
    for index, path in enumerate(sorted(place.glob("journal/*/*.seg")), 1):
        data = files[index] = path.read_bytes()
        header = read_header(data)
        assert header is not None
        spans[index] = []
        at = HEADER_BYTES
        while True:
            payloads: list[bytes] = []
            after, _ = cut(data, at, header.salt, 1, payloads)
            if not payloads:
                break
            seq += 1
            spans[index].append(Span(at, at + FRAME_BYTES + len(payloads[0]), seq))
            at = after
    return Whole(files, spans)


Wound = Callable[[dict[int, bytes]], None]


@st.composite
def wounds(draw: st.DrawFn, files: dict[int, bytes]) -> Wound:
    """Something that is done to one file; of what is drawn only the shape is known before."""
    index = draw(st.sampled_from(sorted(files)))
    size = len(files[index])
    kind = draw(st.sampled_from(["turn", "zero", "garbage", "pages", "header", "cut", "take", "copy", "end"]))
    at = draw(st.integers(0, size - 1))
    length = draw(st.integers(1, 300))
    garbage = draw(st.binary(min_size=1, max_size=80))
    page = at // PAGE * PAGE
    pages = draw(st.integers(1, 3)) * PAGE
    other = draw(st.sampled_from(sorted(files)))

    def wound(broken: dict[int, bytes]) -> None:
        data = broken.get(index)
        if data is None:
            return
        match kind:
            case "turn":
                broken[index] = data[:at] + bytes(byte ^ 0x55 for byte in data[at : at + 1]) + data[at + 1 :]
            case "zero":
                broken[index] = data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
            case "garbage":
                broken[index] = (data[:at] + garbage + data[at + len(garbage) :])[: len(data)]
            case "pages":
                broken[index] = data[:page] + bytes(len(data[page : page + pages])) + data[page + pages :]
            case "header":
                broken[index] = (garbage[:HEADER_BYTES] + data[len(garbage[:HEADER_BYTES]) :])[: len(data)]
            case "cut":
                broken[index] = data[:at]
            case "take":
                del broken[index]
            case "copy":
                if other in broken:  # behind all others, as a copy that somebody forgot
                    broken[max(broken) + 1] = broken[other]
            case "end":
                broken[index] = data[:20] + garbage[:4].ljust(4, b"\1") + data[24:]

    return wound


def untouched(whole: Whole, broken: dict[int, bytes]) -> list[int]:
    return [
        span.seq
        for index, spans in whole.spans.items()
        for span in spans
        if broken.get(index, b"")[span.start : span.stop] == whole.files[index][span.start : span.stop]
    ]


def anywhere(whole: Whole, broken: dict[int, bytes]) -> set[int]:
    """What is whole in any file: a copy may stand in for what was lost at the end."""
    return {
        span.seq
        for index, spans in whole.spans.items()
        for span in spans
        for data in broken.values()
        if data[span.start : span.stop] == whole.files[index][span.start : span.stop]
    }


def lay_out(state_dir: Path, whole_dir: Path, broken: dict[int, bytes]) -> Path:
    (life,) = (whole_dir / "journal").iterdir()
    directory = state_dir / "journal" / life.name
    directory.mkdir(parents=True)
    shutil.copy(life / "life.json", directory)
    for index, data in broken.items():
        (directory / segment_name(index)).write_bytes(data)
    return directory


def read_out(reader: Reader, limit: int) -> list[Record]:
    """All that comes within a bounded number of looks."""
    return [record for _ in range(LOOKS) for _, records in reader.read(limit) for record in records]


def the_life(reader: Reader) -> LifeReader:
    (life,) = reader.lives.values()
    return life


@pytest.fixture(scope="module")
def whole_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@given(data=st.data())
@tried(1.5)
def test_what_was_not_touched_is_read_once_and_what_is_missing_is_counted(
    tmp_path_factory: pytest.TempPathFactory, whole_dir: Path, data: st.DataObject
) -> None:
    whole = whole_life(whole_dir)
    broken = dict(whole.files)
    for wound in data.draw(st.lists(wounds(whole.files), min_size=1, max_size=5)):
        wound(broken)
    state_dir = tmp_path_factory.mktemp("broken")
    lay_out(state_dir, whole_dir, broken)
    damage = Damage()
    reader = Reader(state_dir, {}, damage)
    read = [record.seq for record in read_out(reader, data.draw(st.sampled_from([7, 100, 10_000])))]
    life = the_life(reader)
    position = life.position
    expected = untouched(whole, broken)
    assert read == sorted(set(read))
    assert set(expected) <= set(read) <= anywhere(whole, broken)
    assert life.drained
    assert (position.gaps, position.torn, position.unreadable) == (damage.gaps, damage.torn, damage.unreadable)
    assert damage.gaps == (read[-1] - len(read) if read else 0)
    assert position.damaged or len(read) == (read[-1] if read else 0)
    if broken == whole.files:
        assert damage == Damage()
    reader.close()
    shutil.rmtree(state_dir)


@given(data=st.data())
@tried(0.6)
def test_a_reader_that_is_stopped_anywhere_goes_on_past_damage_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory, whole_dir: Path, data: st.DataObject
) -> None:
    whole = whole_life(whole_dir)
    broken = dict(whole.files)
    for wound in data.draw(st.lists(wounds(whole.files), min_size=1, max_size=3)):
        wound(broken)
    state_dir = tmp_path_factory.mktemp("broken")
    name = lay_out(state_dir, whole_dir, broken).name
    position = Position()
    read: list[int] = []
    for limit in data.draw(st.lists(st.integers(1, 120), max_size=12)):
        reader = Reader(state_dir, {name: position}, Damage())
        read += [record.seq for _, records in reader.read(limit) for record in records]
        position = replace(the_life(reader).position)
        reader.close()
    reader = Reader(state_dir, {name: position}, Damage())
    read += [record.seq for record in read_out(reader, 10_000)]
    assert read == sorted(set(read))
    assert set(untouched(whole, broken)) <= set(read) <= anywhere(whole, broken)
    assert the_life(reader).drained
    assert the_life(reader).position.gaps == (read[-1] - len(read) if read else 0)
    reader.close()
    shutil.rmtree(state_dir)


def write_some(journal: Journal, number: int) -> None:
    for at in range(number * 20, number * 20 + 20):
        play(journal, at)


@given(data=st.data())
@tried(0.4)
def test_damage_while_the_worker_lives_and_goes_on_writing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Records are damaged between two looks of the reader. In the end all that was not touched was read, once."""
    state_dir = tmp_path_factory.mktemp("live")
    journal = open_journal(state_dir)
    reader = Reader(state_dir, {}, Damage())
    read: list[int] = []
    for number in range(data.draw(st.integers(2, 8))):
        write_some(journal, number)
        if data.draw(st.booleans()):
            path = data.draw(st.sampled_from(sorted(state_dir.glob("journal/*/*.seg"))[:-1]))
            wounded = dict(enumerate([path.read_bytes()]))
            at = data.draw(st.integers(0, HEADER_BYTES - 1) | st.integers(HEADER_BYTES, 20_000))
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes(byte ^ 0x21 for byte in wounded[0][at : at + 1]))
        for _ in range(data.draw(st.integers(0, 2 * BAD_LOOKS_MAX))):
            read += [record.seq for _, records in reader.read(1000) for record in records]
    assert not the_life(reader).drained
    die(journal)
    read += [record.seq for record in read_out(reader, 1000)]
    life = the_life(reader)
    assert life.drained
    assert read == sorted(set(read))
    assert life.position.gaps == (read[-1] - len(read) if read else 0)
    reader.close()
    shutil.rmtree(state_dir)
