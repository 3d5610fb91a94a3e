"""The reader: everything that was written, once, in order; and past whatever was done to the files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_traces import WALL_NS, die, life_dir, make_attempt, make_exchange, open_journal, play, read_all

from edgegw.ledger.encoding import encode_attempt
from edgegw.ledger.journal import Journal
from edgegw.ledger.life import LIFE_FILE
from edgegw.ledger.life_reader import BAD_LOOKS_MAX, CHUNK_BYTES, FAILED_LOOKS_MAX, PAGE_BYTES
from edgegw.ledger.reader import CLEAR_EVERY_LOOKS, Damage, LifeReader, Reader
from edgegw.ledger.record import AttemptRecord, Begin, End, Record, decoder
from edgegw.ledger.segment import (
    FORMAT,
    FRAME_BYTES,
    HEADER_BYTES,
    WORD_END,
    WORD_FORMAT,
    Stop,
    cut,
    find,
    read_header,
    segment_index,
    segment_name,
)
from edgegw.ledger.store import Position


def seqs(records: list[Record]) -> list[int]:
    return [record.seq for record in records]


def over(life: LifeReader) -> bool:
    return life.over


def segment_file(state_dir: Path, index: int = 1) -> Path:
    return life_dir(state_dir) / segment_name(index)


def frames(path: Path) -> list[tuple[int, int]]:
    """Where each record of a segment starts and ends (the padding not counted)."""
    data = path.read_bytes()
    header = read_header(data)
    assert header is not None
    found: list[tuple[int, int]] = []
    at = HEADER_BYTES
    while True:
        payloads: list[bytes] = []
        after, _ = cut(data, at, header.salt, 1, payloads)
        if not payloads:
            return found
        found.append((at, at + FRAME_BYTES + len(payloads[0])))
        at = after


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def dead_life(state_dir: Path, exchanges: int = 4) -> None:
    journal = open_journal(state_dir)
    for number in range(exchanges):
        play(journal, number)
    die(journal)


@pytest.mark.parametrize("damage_as", ["cut off", "bytes turned", "left as it was"])
def test_a_tail_torn_at_any_byte_costs_that_record_and_no_other(tmp_path: Path, damage_as: str) -> None:
    dead_life(tmp_path / "whole")
    start, stop = frames(segment_file(tmp_path / "whole"))[-1]
    whole = segment_file(tmp_path / "whole").read_bytes()
    torn = tmp_path / "torn"
    shutil.copytree(tmp_path / "whole", torn)
    path = segment_file(torn)
    for at in range(start, stop):
        path.write_bytes(whole)
        if damage_as == "cut off":
            overwrite(path, at, bytes(stop - at))
        elif damage_as == "bytes turned":
            overwrite(path, at, bytes([whole[at] ^ 0x41]))
        records, damage = read_all(torn)
        if damage_as == "left as it was" or path.read_bytes() == whole:
            assert seqs(records) == list(range(1, 13))
        else:
            assert seqs(records) == list(range(1, 12))
            assert damage.torn == (0 if at == start and damage_as == "cut off" else 1)


@pytest.mark.parametrize("lost", [0, 1, 5, 10])
def test_a_broken_record_in_the_middle_is_counted_and_read_past(tmp_path: Path, lost: int) -> None:
    dead_life(tmp_path)
    path = segment_file(tmp_path)
    start, stop = frames(path)[lost]
    for at in (start, start + 1, start + 5, start + FRAME_BYTES, stop - 1):
        whole = path.read_bytes()
        overwrite(path, at, bytes([whole[at] ^ 0x80]))
        records, damage = read_all(tmp_path)
        assert seqs(records) == [seq for seq in range(1, 13) if seq != lost + 1]
        assert (damage.torn, damage.gaps) == (1, 1)
        path.write_bytes(whole)


def test_pages_that_never_reached_the_disk_are_a_gap_of_known_size(tmp_path: Path) -> None:
    dead_life(tmp_path)
    path = segment_file(tmp_path)
    spans = frames(path)
    overwrite(path, spans[3][0], bytes(spans[8][0] - spans[3][0]))
    records, damage = read_all(tmp_path)
    assert seqs(records) == [1, 2, 3, 9, 10, 11, 12]
    assert damage.gaps == 5


@pytest.mark.parametrize("index", [1, 2, 4])
@pytest.mark.parametrize("filler", [b"\xff", b"\0"])
def test_a_segment_without_its_header_is_read_and_counted(tmp_path: Path, index: int, filler: bytes) -> None:
    dead_life(tmp_path, 300)
    overwrite(segment_file(tmp_path, index), 0, filler * HEADER_BYTES)
    records, damage = read_all(tmp_path)
    assert seqs(records) == list(range(1, 901))
    assert damage == Damage(torn=1)


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_behind_a_long_hole_the_first_record_is_found_wherever_it_lies(tmp_path: Path, filler: bytes) -> None:
    """It is looked for in windows; here it lies across the end of one."""
    journal = open_journal(tmp_path, segment_bytes=1 << 20)
    for number in range(1000):
        play(journal, number)
    die(journal)
    path = segment_file(tmp_path)
    spans = frames(path)
    (first,) = (at for at, (start, stop) in enumerate(spans) if start < spans[5][0] + CHUNK_BYTES < stop)
    overwrite(path, spans[5][0], filler * (spans[first][0] - spans[5][0]))
    records, damage = read_all(tmp_path)
    assert seqs(records) == [*range(1, 6), *range(first + 1, 3001)]
    assert (damage.torn, damage.gaps) == (1, first - 5)


def test_without_any_word_of_where_checksums_start_a_segment_costs_itself(tmp_path: Path) -> None:
    """As journals of earlier versions are, whose life.json did not say it."""
    dead_life(tmp_path, 300)
    (life_dir(tmp_path) / LIFE_FILE).write_text('{"format": 2}')
    lost = len(frames(segment_file(tmp_path, 2)))
    overwrite(segment_file(tmp_path, 2), 0, b"\xff" * HEADER_BYTES)
    records, damage = read_all(tmp_path)
    assert len(records) == 900 - lost
    assert (damage.torn, damage.gaps) == (1, lost)


@pytest.mark.parametrize("word", range(8))
def test_whatever_a_header_says_the_records_are_read(tmp_path: Path, word: int) -> None:
    journal = open_journal(tmp_path)
    for number in range(300):
        play(journal, number)
    for index in (1, 2):
        overwrite(segment_file(tmp_path, index), 4 * word, b"\xa5\x5a\x01\x02")
    overwrite(segment_file(tmp_path, 3), 4 * word, bytes(4))
    reader = Reader(tmp_path, {}, Damage())
    read: list[int] = []
    for _ in range(3 * BAD_LOOKS_MAX + 6):  # a seal that is lost is seen when the worker is seen to have gone on
        read += seqs([record for _, records in reader.read(1000) for record in records])
    assert read == list(range(1, 901))
    (life,) = reader.lives.values()
    assert not over(life)
    play(journal, 999)
    assert [seqs(records) for _, records in reader.read(1000)] == [[901, 902, 903]]
    reader.close()
    journal.close()


def test_a_segment_of_a_live_worker_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(300):
        play(journal, number)
    lost = len(frames(segment_file(tmp_path, 2)))
    segment_file(tmp_path, 2).unlink()
    records, damage = read_all(tmp_path)
    assert len(records) == 900 - lost
    assert damage == Damage(gaps=lost)
    journal.close()


def test_a_segment_that_is_gone_costs_only_itself(tmp_path: Path) -> None:
    dead_life(tmp_path, 300)
    lost = len(frames(segment_file(tmp_path, 3)))
    segment_file(tmp_path, 3).unlink()
    records, damage = read_all(tmp_path)
    assert len(records) == 900 - lost
    assert damage == Damage(gaps=lost)


def test_a_spare_whose_maker_died_at_once_is_no_damage(tmp_path: Path) -> None:
    dead_life(tmp_path)
    for content in (b"", bytes(4096)):
        segment_file(tmp_path, 2).write_bytes(content)
        records, damage = read_all(tmp_path)
        assert len(records) == 12
        assert damage == Damage()


def test_what_a_client_writes_into_a_name_cannot_pass_for_a_record(tmp_path: Path) -> None:
    """A whole frame with a right checksum (of the plain kind) inside of a name, brought to light by damage."""
    from zlib import crc32

    payload = b"\x9a\x02\x01" + bytes(32)
    while True:
        crc = crc32(payload).to_bytes(4, "little")
        if max(crc) < 0x80:  # so that it is UTF-8, as a name must be
            break
        payload = payload[:3] + (int.from_bytes(payload[3:], "big") + 1).to_bytes(32, "big")
    forged = (len(payload).to_bytes(4, "little") + crc + b"\x02\x02\x01" + payload[3:]).decode("latin-1")
    journal = open_journal(tmp_path)
    for number in range(3):
        play(journal, number, tenant=forged * 4)
    die(journal)
    path = segment_file(tmp_path)
    overwrite(path, frames(path)[3][0], b"\x07")
    records, damage = read_all(tmp_path)
    assert seqs(records) == [1, 2, 3, 5, 6, 7, 8, 9]
    assert (damage.torn, damage.unreadable, damage.gaps) == (1, 0, 1)


def test_reading_goes_along_with_a_live_writer(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    reader = Reader(tmp_path, {}, Damage())
    read: list[int] = []
    for number in range(300):
        play(journal, number)
        for life, records in reader.read(1000):
            read += seqs(records)
            assert not over(life)
    assert read == list(range(1, 901))
    (life,) = reader.lives.values()
    assert not list(reader.read(1000))
    journal.close()
    assert not list(reader.read(1000))
    assert over(life)
    assert life.drained
    reader.close()


def test_a_torn_record_of_a_live_worker_is_waited_for(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(2):
        play(journal, number)
    path = segment_file(tmp_path)
    start, stop = frames(path)[-1]
    whole = path.read_bytes()
    overwrite(path, start + 12, bytes(stop - start - 12))
    damage = Damage()
    reader = Reader(tmp_path, {}, damage)
    assert [seqs(records) for _, records in reader.read(1000)] == [[1, 2, 3, 4, 5]]
    for _ in range(BAD_LOOKS_MAX * 3):
        assert not list(reader.read(1000))
    overwrite(path, start + 12, whole[start + 12 : stop])
    assert [seqs(records) for _, records in reader.read(1000)] == [[6]]
    assert damage == Damage()
    reader.close()
    journal.close()


def test_damage_in_a_live_segment_is_read_past_in_the_end(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(4):
        play(journal, number)
    path = segment_file(tmp_path)
    overwrite(path, frames(path)[3][0] + 20, b"????")
    damage = Damage()
    reader = Reader(tmp_path, {}, damage)
    read = [seq for _ in range(BAD_LOOKS_MAX + 3) for _, records in reader.read(1000) for seq in seqs(records)]
    assert read == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert (damage.torn, damage.gaps) == (1, 1)
    play(journal, 9)
    assert [seqs(records) for _, records in reader.read(1000)] == [[13, 14, 15]]
    reader.close()
    journal.close()


def test_each_damage_in_a_live_segment_has_its_own_patience(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(4):
        play(journal, number)
    path = segment_file(tmp_path)
    spans = frames(path)
    for broken in (3, 7):
        overwrite(path, spans[broken][0] + 20, b"????")
    reader = Reader(tmp_path, {}, Damage())
    looks = 0
    read = 0
    while read < 10:
        looks += 1
        read += sum(len(records) for _, records in reader.read(1000))
        assert looks < 100
    assert looks > 2 * BAD_LOOKS_MAX
    reader.close()
    journal.close()


def test_a_record_that_comes_again_is_left_out(tmp_path: Path) -> None:
    dead_life(tmp_path)
    path = segment_file(tmp_path)
    spans = frames(path)
    data = path.read_bytes()
    end = -(-spans[-1][1] // 8) * 8
    overwrite(path, end, data[spans[2][0] : spans[2][1]])
    assert len(frames(path)) == 13
    records, damage = read_all(tmp_path)
    assert seqs(records) == list(range(1, 13))
    assert damage == Damage()


def test_damage_in_a_sealed_segment_of_a_live_worker_is_read_past_at_once(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(150):
        play(journal, number)
    path = segment_file(tmp_path)
    assert read_header(path.read_bytes()[:HEADER_BYTES])
    checksum_at = frames(path)[7][0] + 4
    overwrite(path, checksum_at, bytes([path.read_bytes()[checksum_at] ^ 0x41]))
    records, damage = read_all(tmp_path)
    assert seqs(records) == [seq for seq in range(1, 451) if seq != 8]
    assert (damage.torn, damage.gaps) == (1, 1)
    journal.close()


def test_a_life_is_over_when_its_process_is_gone_whatever_became_of_the_pid(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    play(journal, 1)
    reader = Reader(tmp_path, {}, Damage())
    list(reader.read(1000))
    (life,) = reader.lives.values()
    assert not over(life)
    die(journal)
    list(reader.read(1000))
    assert life.drained
    reader.close()


def test_a_life_that_is_just_being_opened_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "journal" / f".opening-0-1-{WALL_NS}").mkdir(parents=True)
    (tmp_path / "journal" / "lost+found").mkdir()
    assert not Reader(tmp_path, {}, Damage()).lives


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    dead_life(tmp_path)
    about = life_dir(tmp_path) / LIFE_FILE
    about.write_text(about.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    damage = Damage()
    reader = Reader(tmp_path, {}, damage)
    for _ in range(3):
        assert not list(reader.read(1000))
    (life,) = reader.lives.values()
    assert life.foreign
    assert not life.drained
    assert damage == Damage(foreign=1)
    reader.close()


def test_an_older_format_is_read(tmp_path: Path) -> None:
    dead_life(tmp_path)
    overwrite(segment_file(tmp_path), 4 * WORD_FORMAT, (1).to_bytes(4, "little"))
    records, damage = read_all(tmp_path)
    assert (len(records), damage) == (12, Damage())


def test_an_attempt_within_an_end_is_a_record_before_it(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    exchange = play(journal, 1, within_end=True)
    play(journal, 2, failures=1, within_end=True)  # not its only one: a record by itself
    journal.close()
    assert len(frames(segment_file(tmp_path))) == 2 + 5
    records, damage = read_all(tmp_path)
    assert damage == Damage()
    assert seqs(records) == [1, 2, 2, 3, 4, 5, 6, 7]
    attempt, end = records[1:3]
    assert isinstance(attempt, AttemptRecord)
    assert isinstance(end, End)
    assert attempt == decoder()(encode_attempt(exchange, exchange.attempts[0], 2))


def test_release_deletes_what_lies_before_a_position_and_nothing_else(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(300):
        play(journal, number)
    reader = Reader(tmp_path, {}, Damage())
    while list(reader.read(1000)):
        pass
    (life,) = reader.lives.values()
    here = replace(life.position)
    assert here.segment > 3
    life.release(replace(here, segment=3))
    indices = sorted(filter(None, map(segment_index, (path.name for path in life_dir(tmp_path).iterdir()))))
    assert indices == list(range(3, here.segment + 2))  # the current one and the spare stay
    life.release(here)
    play(journal, 999)
    assert [len(records) for _, records in reader.read(1000)] == [3]
    reader.close()
    journal.close()


def test_no_life_waits_for_another(tmp_path: Path) -> None:
    busy, idle = open_journal(tmp_path, 1), open_journal(tmp_path, 2)
    for number in range(200):
        play(busy, number)
    play(idle, 999)
    reader = Reader(tmp_path, {}, Damage())
    assert sorted(len(records) for _, records in reader.read(100)) == [3, 50]
    assert reader.behind
    reader.close()
    busy.close()
    idle.close()


@given(stops=st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_reading_from_any_position_gives_exactly_the_rest(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    state_dir = tmp_path_factory.mktemp("life")
    dead_life(state_dir, 130)
    name = life_dir(state_dir).name
    position = Position()
    read: list[int] = []
    for limit in stops:
        reader = Reader(state_dir, {name: position}, Damage())
        read += [seq for _, records in reader.read(limit) for seq in seqs(records)]
        position = replace(reader.lives[name].position)
        reader.close()
    assert read == list(range(1, len(read) + 1))
    rest, damage = read_all(state_dir, {name: position})
    assert read + seqs(rest) == list(range(1, 391))
    assert damage == Damage()


def test_a_disk_that_fails_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_life(tmp_path)
    damage = Damage()
    reader = Reader(tmp_path, {}, damage)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fails_at({0, 1}))
        for _ in range(FAILED_LOOKS_MAX - 1):
            assert not list(reader.read(1000))
    assert seqs([record for _, records in reader.read(1000) for record in records]) == list(range(1, 13))
    assert damage == Damage(failed=FAILED_LOOKS_MAX - 1)
    reader.close()


def test_a_page_that_the_disk_does_not_give_costs_the_records_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_life(tmp_path, 40)
    on_it = [
        number
        for number, (start, stop) in enumerate(frames(segment_file(tmp_path)), 1)
        if stop > PAGE_BYTES and start < 2 * PAGE_BYTES
    ]
    damage = Damage()
    reader = Reader(tmp_path, {}, damage)
    monkeypatch.setattr(os, "pread", fails_at({1}))
    read: list[int] = []
    for _ in range(FAILED_LOOKS_MAX + 3):
        read += seqs([record for _, records in reader.read(1000) for record in records])
    assert read == [seq for seq in range(1, 121) if seq not in on_it]
    assert (damage.gaps, damage.torn) == (len(on_it), 1)
    (life,) = reader.lives.values()
    assert life.drained
    reader.close()


def fails_at(pages: set[int]) -> Callable[[int, int, int], bytes]:
    """A pread for which these pages of every segment are lost."""
    pread = os.pread

    def failing(fd: int, size: int, at: int) -> bytes:
        if any(page in pages for page in range(at // PAGE_BYTES, (at + size - 1) // PAGE_BYTES + 1)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, at)

    return failing


def test_what_cannot_be_deleted_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead_life(tmp_path, 300)
    reader = Reader(tmp_path, {}, Damage())
    while list(reader.read(1000)):
        pass
    (life,) = reader.lives.values()

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", read_only)
        patch.setattr(os, "rmdir", read_only)
        life.release(life.position)
        reader.remove(life.name)
        for _ in range(CLEAR_EVERY_LOOKS + 1):
            assert not list(reader.read(1000))
    assert not reader.lives
    assert life_dir(tmp_path).exists()
    for _ in range(CLEAR_EVERY_LOOKS):
        reader.discover()
    assert not list((tmp_path / "journal").iterdir())
    reader.close()


def test_a_time_is_known_when_a_life_ends(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    exchange = make_exchange(1)
    journal.begin(exchange, make_attempt(exchange))
    journal.vitals({}, WALL_NS + 5_000_000_000)
    die(journal)
    reader = Reader(tmp_path, {}, Damage())
    list(reader.read(10))
    (life,) = reader.lives.values()
    assert life.position.wall_ns == WALL_NS + 5_000_000_000
    reader.close()


def test_find_sees_a_record_wherever_it_starts() -> None:
    from struct import pack
    from zlib import crc32

    payload = b"a record"
    frame = pack("=II", len(payload), crc32(payload, 7)) + payload
    for gap in (*range(8, 64, 8), 4088, 4096, 4104, 65_536):
        assert find(bytes(gap) + frame, 0, 7) == gap
        assert find(b"\xff" * gap + frame, 0, 7) == gap
        assert find(b"\xff" * gap + frame, 0, 8) == -1


def test_cut_stops_where_it_must() -> None:
    journal_bytes = b"\0" * 8
    assert cut(journal_bytes, 0, 0, 10, []) == (0, Stop.EMPTY)
    assert cut(b"\x05\0\0\0", 0, 0, 10, []) == (0, Stop.SHORT)
    assert cut(b"\xff" * 16, 0, 0, 10, []) == (0, Stop.BAD)
    assert cut(b"\x20\0\0\0" + b"\0" * 12, 0, 0, 10, []) == (0, Stop.SHORT)


def test_an_end_that_lies_behind_the_file_is_survived(tmp_path: Path) -> None:
    dead_life(tmp_path)
    overwrite(segment_file(tmp_path), 4 * WORD_END, (2**31).to_bytes(4, "little"))
    records, damage = read_all(tmp_path)
    assert len(records) == 12
    assert damage.torn == 1


def test_begin_is_on_disk_as_soon_as_it_returns(tmp_path: Path) -> None:
    journal: Journal = open_journal(tmp_path)
    for number in range(5):
        exchange = make_exchange(number)
        journal.begin(exchange, make_attempt(exchange))
        last = read_all(tmp_path)[0][-1]
        assert isinstance(last, Begin)
        assert last.id == exchange.id
    die(journal)
