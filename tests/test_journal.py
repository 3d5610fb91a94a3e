"""The journal: what is written is there, whatever happens next; and what happens when there is no room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from ledger_traces import (
    WALL_NS,
    conclude,
    die,
    finish,
    life_dir,
    make_attempt,
    make_exchange,
    open_journal,
    play,
    read_all,
)

from edgegw.ledger import journal as journal_module
from edgegw.ledger.journal import Journal, JournalError, JournalFull, bytes_on_disk
from edgegw.ledger.reader import Damage
from edgegw.ledger.record import AttemptRecord, Begin, End, Try, Vitals
from edgegw.ledger.segment import SEGMENT_BYTES_MIN, segment_name

SEGMENT_BYTES = 36_864  # SEGMENT_BYTES_MIN in whole pages


def segments(state_dir: Path) -> list[str]:
    return sorted(path.name for path in life_dir(state_dir).glob("*.seg"))


def test_the_records_of_an_exchange_come_out_in_their_order(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    exchange = play(journal, 1, failures=1)
    journal.vitals({"in_flight": 1}, WALL_NS)
    journal.close()
    records, damage = read_all(tmp_path)
    assert [type(record) for record in records] == [Begin, AttemptRecord, Try, AttemptRecord, End, Vitals]
    assert [record.seq for record in records] == [1, 2, 3, 4, 5, 6]
    assert damage == Damage()
    assert exchange.begun
    vitals = records[-1]
    assert isinstance(vitals, Vitals)
    assert vitals.gauges == {"in_flight": 1, "journal_records": 5, "journal_dropped": 0, "journal_lost": 0}


def test_every_life_has_its_own_directory_which_says_whose_it_is(tmp_path: Path) -> None:
    first, second = open_journal(tmp_path, 1), open_journal(tmp_path, 2)
    names = sorted(path.name for path in (tmp_path / "journal").iterdir())
    assert names == [f"0-1001-{WALL_NS + 1}", f"0-1002-{WALL_NS + 2}"]
    assert '"pid": 1001' in (tmp_path / "journal" / names[0] / "life.json").read_text()
    first.close()
    second.close()


def test_a_full_segment_gives_way_to_the_one_made_ahead(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(400):
        play(journal, number)
        if number % 10 == 0:
            journal.prepare()
    journal.close()
    assert len(segments(tmp_path)) > 5
    records, damage = read_all(tmp_path)
    assert [record.seq for record in records] == list(range(1, 1201))
    assert damage == Damage()


def test_a_journal_that_nobody_prepares_makes_its_segments_itself(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(400):
        play(journal, number)
    assert not journal.full
    die(journal)
    records, damage = read_all(tmp_path)
    assert len(records) == 1200
    assert damage == Damage()


def test_pages_that_are_given_back_keep_what_was_written(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, segment_bytes=2 << 20)
    for number in range(2000):
        play(journal, number)
        if number % 500 == 0:
            journal.prepare()
    journal.prepare()
    assert journal._released >= journal_module.RELEASE_BYTES
    for number in range(2000, 2100):
        play(journal, number)
    die(journal)
    records, _ = read_all(tmp_path)
    assert [record.seq for record in records] == list(range(1, 6301))


def is_full(journal: Journal) -> bool:
    return journal.full


def fill(journal: Journal) -> int:
    """Exchanges until the journal is full."""
    number = 0
    while not journal.full:
        play(journal, number)
        number += 1
        assert number < 10_000
    return number


def test_at_the_bound_nothing_begins_and_what_has_begun_is_written(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, bytes_max=3 * SEGMENT_BYTES)
    going = []
    for number in range(30):
        exchange = make_exchange(number)
        journal.begin(exchange, make_attempt(exchange))
        going.append(exchange)
    done = fill(journal)
    late = make_exchange(9999)
    with pytest.raises(JournalFull):
        journal.begin(late, make_attempt(late))
    assert not late.begun
    journal.end(make_exchange(9998))  # refused: never begun
    journal.vitals({"in_flight": 30}, WALL_NS)
    assert journal.dropped == 1
    for exchange in going:
        finish(exchange.attempts[0])
        journal.attempt(exchange, exchange.attempts[0])
        conclude(exchange)
        journal.end(exchange)
    assert journal.lost == 0
    assert bytes_on_disk(tmp_path / "journal") == 3 * SEGMENT_BYTES
    journal.close()
    records, damage = read_all(tmp_path)
    assert sum(isinstance(record, End) for record in records) == done + 30
    assert damage == Damage()


def test_a_used_up_reserve_goes_beyond_the_bound_for_what_has_begun(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, bytes_max=2 * SEGMENT_BYTES)
    exchange = make_exchange(1)
    journal.begin(exchange, make_attempt(exchange))
    fill(journal)
    while bytes_on_disk(tmp_path / "journal") == 2 * SEGMENT_BYTES:
        journal.attempt(exchange, exchange.attempts[0])
    assert journal.full
    assert journal.lost == 0
    journal.end(exchange)
    die(journal)
    assert isinstance(read_all(tmp_path)[0][-1], End)


def test_room_on_the_disk_ends_the_fullness(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, bytes_max=3 * SEGMENT_BYTES)
    fill(journal)
    journal.prepare()
    assert is_full(journal)
    (life_dir(tmp_path) / segment_name(1)).unlink()
    journal.prepare()
    assert not is_full(journal)
    play(journal, 1)
    journal.close()


def test_a_disk_that_is_full_is_a_full_journal_until_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = journal_module._allocate

    def no_space(fd: int, size: int) -> None:
        os.ftruncate(fd, 4096)  # as far as it got
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = open_journal(tmp_path)
    begun = make_exchange(1)
    journal.begin(begun, make_attempt(begun))
    monkeypatch.setattr(journal_module, "_allocate", no_space)
    fill(journal)
    assert segments(tmp_path) == ["00000001.seg", "00000002.seg"]
    for _ in range(1000):
        journal.attempt(begun, begun.attempts[0])
    journal.try_(begun, begun.attempts[0])
    journal.end(begun)
    assert journal.lost > 0  # the one case: no disk, and the reserve used up
    lost = journal.lost
    monkeypatch.setattr(journal_module, "_allocate", allocate)
    journal.prepare()
    assert not journal.full
    journal.end(begun)
    assert journal.lost == lost
    die(journal)
    records, damage = read_all(tmp_path)
    assert isinstance(records[-1], End)
    assert damage == Damage()  # what was lost was never given a number


def test_a_worker_that_starts_at_the_bound_is_full_and_takes_little_room(tmp_path: Path) -> None:
    first = open_journal(tmp_path, 1, segment_bytes=1 << 20, bytes_max=3 << 20)
    second = open_journal(tmp_path, 2, segment_bytes=1 << 20, bytes_max=2 << 20)
    assert not first.full
    assert second.full
    assert bytes_on_disk(tmp_path / "journal") == (2 << 20) + SEGMENT_BYTES_MIN
    first.close()
    second.close()


def test_where_blocks_cannot_be_reserved_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    journal = open_journal(tmp_path)
    play(journal, 1)
    assert os.stat(life_dir(tmp_path) / segment_name(1)).st_blocks * 512 >= SEGMENT_BYTES
    journal.close()
    assert len(read_all(tmp_path)[0]) == 3


def test_a_state_directory_that_is_none_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot open the journal"):
        open_journal(tmp_path / "file")


def test_a_disk_without_room_for_one_segment_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module, "_allocate", no_space)
    with pytest.raises(JournalError, match="No space left"):
        open_journal(tmp_path)
    assert segments(tmp_path) == []


def test_a_segment_holds_at_least_the_longest_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="segment_bytes"):
        open_journal(tmp_path, segment_bytes=SEGMENT_BYTES_MIN - 1)


def test_names_as_long_as_they_come_fit(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(40):
        play(journal, number, tenant="\U0001f9fe" * 100_000)
    journal.close()
    records, damage = read_all(tmp_path)
    assert len(records) == 120
    assert damage == Damage()
