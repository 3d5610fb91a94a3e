"""The journal: what is written is there, whatever happens next; and what happens when there is no room."""

from __future__ import annotations

import errno
import os
import shutil
from itertools import count
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
from edgegw.ledger import life as life_module
from edgegw.ledger.journal import Journal
from edgegw.ledger.reader import Damage, Reader
from edgegw.ledger.record import AttemptRecord, Begin, End, Try, Vitals
from edgegw.ledger.room import AT_THE_BOUND, DISK_FULL, JournalFull, Trouble, bytes_on_disk
from edgegw.ledger.segment import SEGMENT_BYTES_MIN, segment_name
from edgegw.settings import WhenFull

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
    assert vitals.gauges == {"in_flight": 1, "journal_records": 5}


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


def trouble(journal: Journal) -> Trouble | None:
    return journal.trouble


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
    assert (journal.dropped, journal.dropped_refusals) == (0, 1)
    assert journal.trouble == AT_THE_BOUND
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


def test_trouble_that_a_request_runs_into_is_told_with_its_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(tmp_path, bytes_max=2 * SEGMENT_BYTES)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for number in count(1):
        exchange = make_exchange(number)
        exchange.trace = parent
        journal.begin(exchange, make_attempt(exchange))
        if journal.trouble is not None:
            break
    (line,) = (record for record in caplog.records if "takes no new exchange" in record.message)
    assert vars(line)["request_id"] == exchange.id
    assert vars(line)["trace_id"] == parent[3:35]
    die(journal)


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
    allocate = life_module.allocate

    def no_space(fd: int, size: int) -> None:
        os.ftruncate(fd, 4096)  # as far as it got
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = open_journal(tmp_path)
    begun = make_exchange(1)
    journal.begin(begun, make_attempt(begun))
    monkeypatch.setattr(life_module, "allocate", no_space)
    fill(journal)
    assert trouble(journal) == DISK_FULL
    assert segments(tmp_path) == ["00000001.seg", "00000002.seg"]
    for _ in range(1000):
        journal.attempt(begun, begun.attempts[0])
    journal.try_(begun, begun.attempts[0])
    journal.end(begun)
    assert journal.lost > 0  # the one case: no disk, and the reserve used up
    lost = journal.lost
    monkeypatch.setattr(life_module, "allocate", allocate)
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


def start_anywhere(state_dir: Path, when_full: WhenFull = "refuse") -> Journal:
    """A worker's journal, whatever there is."""
    return Journal.open(
        state_dir, 0, wall_ns=WALL_NS, pid=7, segment_bytes=SEGMENT_BYTES_MIN, bytes_max=1 << 30, when_full=when_full
    )


def test_a_worker_without_a_state_directory_says_so_and_begins_when_there_is_one(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    journal = start_anywhere(state_dir)
    assert trouble(journal) == Trouble("failing", "the state directory is gone")
    assert is_full(journal)
    exchange = make_exchange(1)
    with pytest.raises(JournalFull, match="is gone"):
        journal.begin(exchange, make_attempt(exchange))
    journal.end(make_exchange(2))
    journal.vitals({}, WALL_NS)
    assert (journal.dropped_refusals, journal.lost) == (1, 0)
    journal.prepare()
    assert is_full(journal)
    state_dir.mkdir()
    journal.prepare()
    assert trouble(journal) is None
    play(journal, 3)
    journal.close()
    records, damage = read_all(state_dir)
    assert [record.seq for record in records] == [1, 2, 3]
    assert damage == Damage()


def test_a_state_directory_that_is_none_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = start_anywhere(tmp_path / "file")
    assert trouble(journal) == Trouble("failing", "the state directory is gone")
    journal.close()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, DISK_FULL),
        (errno.EDQUOT, DISK_FULL),
        (errno.EROFS, Trouble("failing", "the disk is read-only")),
        (errno.EACCES, Trouble("failing", "the state directory may not be written to")),
        (errno.EIO, Trouble("failing", "the disk fails")),
        (errno.EMFILE, Trouble("failing", "the state directory cannot be used: Too many open files")),
    ],
)
@pytest.mark.parametrize("when", ["from the start", "later"])
def test_whatever_the_disk_says_the_policy_goes_on_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: Trouble, when: str
) -> None:
    opened = os.open

    def failing(path: Path, flags: int, *arguments: int, **named: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *arguments, **named)

    journal = open_journal(tmp_path) if when == "later" else None
    monkeypatch.setattr(os, "open", failing)
    if journal is None:
        journal = start_anywhere(tmp_path)
        for _ in range(3):
            journal.prepare()
        assert list((tmp_path / "journal").iterdir()) == []  # tries leave nothing behind
    else:
        fill(journal)
    assert trouble(journal) == said
    assert str(tmp_path) not in said.reason
    monkeypatch.setattr(os, "open", opened)
    journal.prepare()
    assert trouble(journal) is None
    play(journal, 1)
    journal.close()
    assert read_all(tmp_path)[1] == Damage()


def test_a_disk_without_room_for_one_segment_leaves_no_life_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(life_module, "allocate", no_space)
    journal = start_anywhere(tmp_path)
    journal.prepare()
    assert trouble(journal) == DISK_FULL
    assert list((tmp_path / "journal").iterdir()) == []


def test_files_that_were_deleted_are_noticed_and_made_anew(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    journal = open_journal(state_dir)
    begun = play(journal, 1)
    shutil.rmtree(state_dir)
    journal.prepare()
    assert trouble(journal) == Trouble("failing", "the state directory is gone")
    journal.end(begun)
    assert journal.lost == 1  # into deleted files nothing is written
    state_dir.mkdir()
    journal.prepare()
    assert trouble(journal) is None
    play(journal, 2)
    journal.close()
    records, damage = read_all(state_dir)
    assert [record.seq for record in records] == [1, 2, 3]
    assert damage == Damage()


def test_a_directory_that_was_away_is_gone_on_with(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "state")
    reader = Reader(tmp_path / "state", {}, Damage())
    play(journal, 1)
    assert sum(len(records) for _, records in reader.read(100)) == 3
    (tmp_path / "state").rename(tmp_path / "away")
    journal.prepare()
    assert is_full(journal)
    assert not list(reader.read(100))
    (tmp_path / "away").rename(tmp_path / "state")
    journal.prepare()
    play(journal, 2)
    journal.close()
    assert [record.seq for _, records in reader.read(100) for record in records] == [4, 5, 6]
    assert [life.drained for life in reader.lives.values()] == [True]
    reader.close()


def test_what_is_dropped_is_dropped_whole_and_counted(tmp_path: Path) -> None:
    journal = open_journal(tmp_path, bytes_max=3 * SEGMENT_BYTES, when_full="drop")
    number = 0
    while trouble(journal) is None:
        number += 1
        play(journal, number)
    assert not is_full(journal)  # nobody is refused
    begun = number * 3
    started = make_exchange(9000)
    for late in range(9001, 9011):
        assert not play(journal, late, failures=1).begun
    journal.begin(started, make_attempt(started))
    journal.end(make_exchange(9100))
    assert (journal.dropped, journal.dropped_refusals, journal.lost) == (11, 1, 0)
    (life_dir(tmp_path) / segment_name(1)).rename(tmp_path / segment_name(1))
    journal.prepare()
    assert trouble(journal) is None
    finish(started.attempts[0])
    conclude(started)
    journal.end(started)  # not half of it, although there is room now
    play(journal, 9200)
    journal.close()
    (tmp_path / segment_name(1)).rename(life_dir(tmp_path) / segment_name(1))
    records, damage = read_all(tmp_path)
    assert len(records) == begun + 3
    assert damage == Damage()
    assert (journal.dropped, journal.dropped_refusals, journal.lost) == (11, 1, 0)


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
