"""`edgegw ledger verify`: silent about books that are right, and telling about each way in which they can be wrong."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from ledger_traces import (
    JOURNAL_ID,
    WALL_NS,
    begin,
    conclude,
    die,
    finish,
    life_dir,
    make_attempt,
    make_exchange,
    open_journal,
    play,
    refuse,
    ship_all,
    sqlite_store,
)
from postgres_rig import Database
from test_books import postgres_books, postgres_store

from edgegw.exchange import Exchange
from edgegw.ledger.books import NoLedgerError, SqliteBooks
from edgegw.ledger.identity import IDENTITY_FILE
from edgegw.ledger.journal import Journal
from edgegw.ledger.postgres.connection import Postgres
from edgegw.ledger.postgres.upkeep import compact
from edgegw.ledger.schema import migrations
from edgegw.ledger.segment import FRAME_BYTES, HEADER_BYTES, SEGMENT_BYTES_MIN
from edgegw.ledger.verify.findings import Report
from edgegw.ledger.verify.verify import verify
from edgegw.settings import parse_postgres

HOUR_NS = 3_600_000_000_000


@dataclass
class House:
    """A state directory with a journal that is still written, and books that are behind it."""

    path: Path
    journal: Journal
    open: list[Exchange]
    postgres: Database | None = None

    @property
    def db(self) -> Path:
        return self.path / "edgegw.db"

    @property
    def segment(self) -> Path:
        return sorted(life_dir(self.path).glob("*.seg"))[0]

    async def ship(self) -> None:
        store = sqlite_store(self.db) if self.postgres is None else postgres_store(self.postgres)
        await ship_all(self.path, store)
        await store.close()

    def do(self, *statements: str) -> None:
        if self.postgres is not None:
            self.postgres.do("; ".join(statements))
            return
        with closing(sqlite3.connect(self.db)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def value(self, query: str) -> object:
        with closing(sqlite3.connect(self.db)) as connection:
            return connection.execute(query).fetchone()[0]

    async def verify(self, since_ns: int = 0) -> Report:
        known = migrations("sqlite")
        books = SqliteBooks(self.db, known) if self.postgres is None else postgres_books(self.postgres)
        try:
            return await verify(books, self.path, since_ns, look_s=0.0)
        finally:
            await books.close()


@pytest.fixture
async def house(tmp_path: Path) -> House:
    return await traffic(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
async def either_house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    return await traffic(tmp_path, None if request.param == "sqlite" else request.getfixturevalue("postgres"))


async def traffic(path: Path, postgres: Database | None = None) -> House:
    """Two hours of traffic: plain, refused, failed over, three that are open, and some that is not shipped yet."""
    (path / IDENTITY_FILE).write_text(JOURNAL_ID + "\n")
    journal = open_journal(path, segment_bytes=1 << 20)
    house = House(path, journal, [], postgres)
    for number in range(40):
        at = number * (HOUR_NS // 10**6 // 20)  # make_exchange counts milliseconds
        play(journal, at, failures=number % 3, tenant=f"tenant-{number % 2}", within_end=number % 2 == 0)
        if number % 10 == 0:
            refuse(journal, at + 1)
    house.open += [begin(journal, 1000 + number, failures=int(number > 0)) for number in range(3)]
    journal.vitals({}, WALL_NS)
    await house.ship()
    for number in range(5):
        play(journal, 2000 + number, within_end=True)
    return house


def told(report: Report) -> list[str]:
    return [f"{finding.kind}: {finding.where}: {finding.what}" for finding in report.findings]


# -- books that are right --


async def test_books_that_are_right(either_house: House) -> None:
    house = either_house
    report = await house.verify()
    assert told(report) == []
    assert report.notes == []
    assert report.compared["requests"] == 44
    assert report.compared["attempts"] == 40 + 39 + 2
    assert report.compared["waiting"] == 15  # an attempt that came within an end counts by itself
    assert report.compared["hours"] == 3
    assert list(report.lines())[-1] == "The books are in order."
    await house.ship()
    report = await house.verify()
    assert (told(report), report.compared["waiting"]) == ([], 0)


async def test_books_of_a_worker_that_was_killed(house: House) -> None:
    die(house.journal)
    assert told(await house.verify()) == []
    await house.ship()
    report = await house.verify()
    assert (told(report), report.compared["lives"]) == ([], 0)
    assert house.value("SELECT count(*) FROM requests WHERE state = 'interrupted'") == 3


async def test_a_shipper_that_dies_between_commit_and_deletion(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The life is over and stored, its directory is still there."""
    die(house.journal)
    monkeypatch.setattr("edgegw.ledger.reader.LifeReader.remove", lambda self: self.close() or False)
    await house.ship()
    report = await house.verify()
    assert (told(report), report.compared["lives"]) == ([], 1)
    assert house.value("SELECT count(*) FROM requests WHERE state = 'interrupted'") == 3


async def test_a_life_that_is_deleted_and_not_forgotten_yet_is_a_note(house: House) -> None:
    finish_open(house)
    house.journal.close()
    name = life_dir(house.path).name
    await house.ship()
    house.do(checkpoint_of(name))
    report = await house.verify()
    assert (told(report), report.notes) == (
        [],
        [f"life {name} is wholly shipped and deleted; the next start will forget it"],
    )


def checkpoint_of(life: str) -> str:
    """One that stands where nothing is left, as after a crash on the way from the commit to the deletion."""
    return (
        "INSERT INTO checkpoints (journal, life, segment, offset, seq, wall_ns) "
        f"VALUES ('{JOURNAL_ID}', '{life}', 1, 4096, 230, 9)"
    )


async def test_a_life_that_is_half_deleted_is_a_note(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    finish_open(house)
    die(house.journal)
    monkeypatch.setattr("edgegw.ledger.reader.LifeReader.remove", lambda self: self.close() or False)
    await house.ship()
    (left,) = life_dir(house.path).glob("*.seg")
    left.unlink()
    house.do("DELETE FROM checkpoints", checkpoint_of(life_dir(house.path).name))
    report = await house.verify()
    assert told(report) == []
    assert [note.split(" is ")[1] for note in report.notes] == [
        "wholly shipped and half deleted; the next start will do the rest"
    ]


def finish_open(house: House) -> None:
    for exchange in house.open:
        finish(exchange.attempts[-1])
        house.journal.attempt(exchange, exchange.attempts[-1])
        conclude(exchange)
        house.journal.end(exchange)
    house.open.clear()


async def test_journals_of_many_segments_of_which_the_first_are_gone(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).write_text(JOURNAL_ID + "\n")
    house = House(tmp_path, open_journal(tmp_path, segment_bytes=SEGMENT_BYTES_MIN), [])
    long = make_exchange(0)
    house.journal.begin(long, make_attempt(long))
    house.open.append(long)
    for number in range(1, 400):
        play(house.journal, number, failures=number % 2)
        house.journal.prepare()
        if number % 130 == 0:
            await house.ship()
            assert told(await house.verify()) == []
    assert house.segment.name != "00000001.seg"
    report = await house.verify()
    assert (told(report), report.compared["waiting"] > 0) == ([], True)
    finish_open(house)
    await house.ship()
    assert told(await house.verify()) == []


async def test_rows_that_were_deleted_because_they_were_old(house: House) -> None:
    first = WALL_NS // HOUR_NS * HOUR_NS
    house.do(f"UPDATE retention SET kept_since_ns = {first + HOUR_NS}")
    hour = "substr(id, 1, 8) || substr(id, 10, 4)"
    border = f"'{(first + HOUR_NS) // 10**6:012x}'"
    house.do(f"DELETE FROM requests WHERE {hour} < {border}")
    house.do(f"DELETE FROM provider_attempts WHERE {hour.replace('id', 'request_id')} < {border}")
    report = await house.verify()
    assert (told(report), report.compared["hours"]) == ([], 2)


async def test_rows_from_before_there_were_sums(house: House) -> None:
    """Attempts that do not say whose they are, and sums that do (sql/sqlite/0003)."""
    house.do("UPDATE usage_hours SET journal = ''", "UPDATE provider_attempts SET tenant = '', use_case = NULL")
    assert [finding for finding in told(await house.verify()) if not finding.startswith("row changed")] == []


async def test_a_place_that_was_never_a_gateways(tmp_path: Path) -> None:
    with pytest.raises(NoLedgerError):
        await House(tmp_path, open_journal(tmp_path), []).verify()


# -- books that are wrong: each with the line that tells --

A_REQUEST_S_ID = "(SELECT CAST(id AS TEXT) FROM requests WHERE attempts = 2 ORDER BY id DESC LIMIT 1)"
A_REQUEST = "(SELECT id FROM requests WHERE attempts = 2 ORDER BY id DESC LIMIT 1)"
COPY = "INSERT INTO {table} ({columns}) SELECT substr({key}, 1, 35) || 'f', {rest} FROM {table} WHERE {key} = {which}"


def columns_of(house: House, table: str) -> list[str]:
    with closing(sqlite3.connect(house.db)) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def copy_row(house: House, table: str, key: str, which: str) -> None:
    """A row once more, under another id of the same moment."""
    rest = [name for name in columns_of(house, table) if name != key]
    house.do(
        f"INSERT INTO {table} ({key}, {', '.join(rest)}) SELECT substr({key}, 1, 35) || "
        f"CASE substr({key}, 36) WHEN 'f' THEN 'e' ELSE 'f' END, {', '.join(rest)} FROM {table} WHERE {key} = {which}"
    )


PLANTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a request is deleted": (
        (f"DELETE FROM requests WHERE id = {A_REQUEST}",),
        ("row missing: request", "attempt without request", "sums: the hour from", "1 requests less than the sums"),
    ),
    "a request and its attempts are deleted": (
        (
            f"DELETE FROM provider_attempts WHERE request_id = {A_REQUEST}",
            f"DELETE FROM requests WHERE id = {A_REQUEST}",
        ),
        ("row missing: request", "row missing: attempt 1", "1 requests less than the sums, 1 attempts less"),
    ),
    "an attempt is deleted": (
        (f"DELETE FROM provider_attempts WHERE number = 1 AND request_id = {A_REQUEST}",),
        ("row missing: attempt 1 of request", "had 2 attempts and there are rows of 1", "1 attempts less"),
    ),
    "tokens of a request are changed": (
        (f"UPDATE requests SET input_tokens = 11 WHERE id = {A_REQUEST}",),
        ("row changed: request", "is 11, was written as 10", "tokens: ", "input_tokens 11, its attempts 10"),
    ),
    "tokens of an attempt are changed": (
        (f"UPDATE provider_attempts SET output_tokens = 0 WHERE number = 2 AND request_id = {A_REQUEST}",),
        ("output_tokens is 0, was written as 20", "20 output_tokens less than the sums"),
    ),
    "a cost is changed": (
        (f"UPDATE requests SET cost_usd_micro = 5 WHERE id = {A_REQUEST}",),
        ("cost: ", "costs 5 micro-dollars, its attempts 0 and 1 of them nobody knows what"),
    ),
    "attempts are numbered with a hole": (
        (f"UPDATE provider_attempts SET number = 3 WHERE number = 2 AND request_id = {A_REQUEST}",),
        ("its 2 attempts are numbered from 1 to 3", "row missing: attempt 2"),
    ),
    "a name is changed": (
        (f"UPDATE requests SET tenant = 'other' WHERE id = {A_REQUEST}",),
        ("tenant is 'other', was written as 'tenant-", "1 requests more than the sums", "1 requests less than"),
    ),
    "a line of the sums is changed": (
        ("UPDATE usage_hours SET input_tokens = input_tokens + 1 WHERE tenant = 'tenant-1' AND provider = 'openai'",),
        ("sums: the hour from 2025-06-15 1", "of tenant tenant-1, use_case support_summary, provider openai, ",
         "1 input_tokens less than the sums"),
    ),
    "a line of the sums is deleted": (
        ("DELETE FROM usage_hours WHERE tenant = 'acme'",),
        ("of tenant acme", "2 requests more than the sums"),
    ),
    "a sum of an hour without rows": (
        ("UPDATE usage_hours SET hour = hour - 5 WHERE tenant = 'acme'",),
        ("sums: the hour from 2025-06-15 10:00", "less than the sums"),
    ),
    "an exchange that is open is forgotten": (
        ("DELETE FROM open_exchanges WHERE id = (SELECT max(id) FROM open_exchanges)",),
        ("row missing: request", "attempt without request"),
    ),
    "an exchange that has ended is remembered as open": (
        (f"INSERT INTO open_exchanges SELECT {A_REQUEST_S_ID}, life, state, journal FROM open_exchanges LIMIT 1",),
        ("open exchange: request", "has its row, and is remembered as open", "has its end"),
    ),
    "a checkpoint is deleted": (
        ("DELETE FROM checkpoints",),
        ("rows ahead: request", "has its row, and is record", "shipped up to record 0"),
    ),
    "only the place of a checkpoint is moved": (
        ("UPDATE checkpoints SET \"offset\" = \"offset\" + 8",),
        ("checkpoint: life 0-1001-", "and behind record"),
    ),
    "a checkpoint is beyond the journal": (
        ("UPDATE checkpoints SET seq = seq + 1000",),
        ("checkpoint: life", "the journal ends with record"),
    ),
    "a life that was damaged": (
        ("UPDATE checkpoints SET gaps = 2, torn = 1",),
        ("damaged life: life 00000000000000aa/0-1001-", "2 records never seen, 1 places torn, 0 unreadable"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
async def test_what_is_planted_in_the_database_is_found(either_house: House, name: str) -> None:
    house = either_house
    statements, lines = PLANTED[name]
    house.do(*statements)
    report = await house.verify()
    assert not report.in_order
    text = "\n".join(told(report))
    assert [line for line in lines if line not in text] == [], text
    assert list(report.lines())[-1] == f"{report.counts.total()} finding{'s' if report.counts.total() > 1 else ''}."


async def test_a_row_once_more_under_another_id(house: House) -> None:
    which = str(house.value(f"SELECT {A_REQUEST}"))
    copy_row(house, "requests", "id", f"'{which}'")
    copy_row(house, "provider_attempts", "request_id", f"'{which}'")
    text = "\n".join(told(await house.verify()))
    assert "row doubled" in text
    assert "one request, two ids" in text
    assert "1 requests more than the sums" in text
    assert "attempts more than the sums" in text


async def test_a_row_once_more_where_the_primary_key_was_dropped(house: House) -> None:
    names = ", ".join(columns_of(house, "requests"))
    house.do(
        f"CREATE TABLE without AS SELECT {names} FROM requests",
        "DROP TABLE requests",
        "ALTER TABLE without RENAME TO requests",
        f"INSERT INTO requests SELECT {names} FROM requests WHERE id = {A_REQUEST}",
    )
    assert any("2 requests have this id" in line for line in told(await house.verify()))


async def test_a_row_under_an_id_of_another_time(house: House) -> None:
    house.do(f"UPDATE requests SET id = '0' || substr(id, 2, 6) || '0' || substr(id, 9) WHERE id = {A_REQUEST}")
    assert any(line.startswith("row of another time") for line in told(await house.verify()))
    house.do("UPDATE requests SET id = 'zzz' WHERE id = (SELECT min(id) FROM requests)")
    assert any("zzz: is no id of ours" in line for line in told(await house.verify()))


async def test_one_upstream_request_in_two_rows(house: House) -> None:
    both = "(SELECT request_id FROM provider_attempts WHERE number = 1 ORDER BY request_id DESC LIMIT 2)"
    house.do(
        f"UPDATE provider_attempts SET upstream_request_id = 'req_1', started_ns = 5, provider = 'openai', number = 1 "
        f"WHERE number = 1 AND request_id IN {both}"
    )
    assert any("are one request to openai (req_1)" in line for line in told(await house.verify()))


async def test_a_checkpoint_that_was_moved_back(house: House) -> None:
    finish_open(house)
    before = house.value("SELECT seq FROM checkpoints")
    places = house.value("SELECT segment || ', offset = ' || offset || ', seq = ' || seq FROM checkpoints")
    await house.ship()
    assert told(await house.verify()) == []
    house.do(f"UPDATE checkpoints SET segment = {places}")
    text = "\n".join(told(await house.verify()))
    assert "rows ahead: request" in text
    assert f"of a journal that is shipped up to record {before}" in text


async def test_a_checkpoint_that_was_moved_forward(house: House) -> None:
    """As if what was between had been shipped."""
    (house.path / "copy.db").write_bytes(content(house.db))
    await house.ship()
    places = house.value("SELECT segment || ', offset = ' || offset || ', seq = ' || seq FROM checkpoints")
    house.db.write_bytes(content(house.path / "copy.db"))
    house.do(f"UPDATE checkpoints SET segment = {places}")
    report = await house.verify()
    assert report.counts["row missing"] == 10
    assert "is shipped and has no row" in told(report)[0]


def content(path: Path) -> bytes:
    return path.read_bytes()


def change(path: Path, at: int, by: Callable[[bytearray], None], size: int = 1) -> None:
    data = bytearray(path.read_bytes())
    part = data[at : at + size]
    by(part)
    data[at : at + size] = part
    with path.open("r+b") as file:  # in place: the worker has it mapped
        file.seek(at)
        file.write(data[at : at + size])


def flip(part: bytearray) -> None:
    part[0] ^= 0x10


def record_at(path: Path, number: int) -> tuple[int, int]:
    """Offset and size, frame and all, of the nth record (from 0) of a segment."""
    data = path.read_bytes()
    at = HEADER_BYTES
    while True:
        size = int.from_bytes(data[at : at + 4], "little")
        whole = (FRAME_BYTES + size + 7) & -8
        if number == 0:
            return at, whole
        at, number = at + whole, number - 1


@pytest.mark.parametrize("where", [0, 5, FRAME_BYTES, FRAME_BYTES + 20])
@pytest.mark.parametrize("dead", [False, True])
async def test_a_byte_flipped_in_what_is_shipped_and_kept(house: House, where: int, dead: bool) -> None:
    if dead:
        die(house.journal)
    change(house.segment, record_at(house.segment, 7)[0] + where, flip)
    text = "\n".join(told(await house.verify()))
    assert f"journal torn: life {life_dir(house.path).name}: segment 1 has bytes at offset" in text
    assert "journal gap" in text
    assert "record 8 is missing" in text


@pytest.mark.parametrize("dead", [False, True])
async def test_a_record_torn_out_of_what_is_not_shipped(house: House, dead: bool) -> None:
    if dead:
        die(house.journal)
    shipped = house.value("SELECT seq FROM checkpoints")
    assert isinstance(shipped, int)
    at, size = record_at(house.segment, shipped + 2)

    def wipe(part: bytearray) -> None:
        part[:] = bytes(len(part))

    change(house.segment, at, wipe, size)
    text = "\n".join(told(await house.verify()))
    assert f"segment 1 has bytes at offset {at} that are no record" in text
    assert f"record {shipped + 3} is missing" in text


async def test_a_header_that_is_none_and_a_format_of_tomorrow(house: House) -> None:
    change(house.segment, 0, flip)
    assert any("segment 1 has no header" in line for line in told(await house.verify()))
    change(house.segment, 0, flip)
    change(house.segment, 4, flip)
    text = "\n".join(told(await house.verify()))
    assert "journal unreadable" in text
    assert "segment 1 is of format" in text


async def test_a_directory_that_was_taken_away(house: House) -> None:
    directory = life_dir(house.path)
    directory.rename(house.path / "taken")
    text = "\n".join(told(await house.verify()))
    assert f"open exchange: life {directory.name}: its directory is gone, and 3 exchanges of it are open" in text


async def test_a_segment_that_was_taken_away(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).write_text(JOURNAL_ID + "\n")
    house = House(tmp_path, open_journal(tmp_path, segment_bytes=SEGMENT_BYTES_MIN), [])
    await house.ship()
    for number in range(400):
        play(house.journal, number)
        house.journal.prepare()
    segments = sorted(life_dir(tmp_path).glob("*.seg"))
    store = sqlite_store(house.db)
    await store.read_checkpoint()  # makes the tables
    await store.close()
    segments[1].rename(tmp_path / "second")
    text = "\n".join(told(await house.verify()))
    assert "journal gap" in text
    (tmp_path / "second").rename(segments[1])
    segments[0].unlink()
    assert "stands at record 0, the journal begins with record" in "\n".join(told(await house.verify()))


async def test_of_many_findings_of_a_kind_the_first_are_told(house: House) -> None:
    house.do("UPDATE requests SET bytes_out = bytes_out + 1")
    report = await house.verify()
    assert report.counts["row changed"] == 44
    assert len([finding for finding in report.findings if finding.kind == "row changed"]) == 20
    assert "row changed: 24 more" in list(report.lines())


async def test_since_bounds_what_is_looked_at(house: House) -> None:
    house.do(f"UPDATE usage_hours SET requests = 7 WHERE hour = {WALL_NS // HOUR_NS}")
    assert not (await house.verify()).in_order
    report = await house.verify(since_ns=WALL_NS + HOUR_NS)
    assert (told(report), report.compared["hours"]) == ([], 2)


@pytest.mark.parametrize("seed", range(5))
async def test_any_row_that_is_changed_or_gone_is_found(house: House, seed: int) -> None:
    dice = random.Random(seed)
    table = dice.choice(("requests", "provider_attempts"))
    rowid = house.value(f"SELECT rowid FROM {table} ORDER BY random() LIMIT 1")
    change = dice.choice((f"DELETE FROM {table}", f"UPDATE {table} SET started_ns = started_ns + 1000000"))
    house.do(f"{change} WHERE rowid = {rowid}")
    assert not (await house.verify()).in_order


async def test_a_sum_of_a_day_that_is_changed(tmp_path: Path, postgres: Database) -> None:
    house = await traffic(tmp_path, postgres)
    session = Postgres(parse_postgres(postgres.dsn))
    await session.run(partial(compact, before_hour=WALL_NS // HOUR_NS + 1000))
    await session.close()
    assert told(await house.verify()) == []
    postgres.do("UPDATE usage_days SET requests = requests + 1 WHERE tenant = 'acme' AND provider = ''")
    assert told(await house.verify()) == [
        "sums: the day 2025-06-15 of tenant acme, use_case support_summary: "
        "its hours have 1 requests less than the sums"
    ]
