"""Reading the books: while they are written, after the writer is gone, and as tables that a terminal survives."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_traces import (
    WALL_NS,
    conclude,
    finish,
    make_attempt,
    make_exchange,
    open_journal,
    play,
    ship_all,
    sqlite_store,
)

from edgegw.clock import uuid7
from edgegw.ledger import listing
from edgegw.ledger.listing import Filter, NoLedgerError, Row, Table, duration, first_id_at, moment, printable
from edgegw.ledger.sqlite import SqliteStore


class EnoughError(Exception):
    """The wait of a follower that has seen all there is."""


def enough() -> None:
    raise EnoughError


@pytest.fixture
async def db(tmp_path: Path) -> Path:
    """30 requests of two tenants: every third has failed once before, every tenth was refused."""
    journal = open_journal(tmp_path)
    for number in range(30):
        if number % 10 == 9:
            refused = make_exchange(number, tenant="other")
            conclude(refused)
            journal.end(refused)
        else:
            play(journal, number, failures=number % 3 == 0, tenant=f"tenant-{number % 2}")
    journal.close()
    store = sqlite_store(tmp_path / "books.db")
    await ship_all(tmp_path, store)
    await store.close()
    return tmp_path / "books.db"


def ids(numbers: Iterator[int] | range) -> list[str]:
    return [make_exchange(number).id for number in numbers]


def test_requests_come_newest_first(db: Path) -> None:
    assert [row["id"] for row in listing.requests(db)] == ids(range(29, -1, -1))
    assert [row["id"] for row in listing.requests(db, limit=4)] == ids(range(29, 25, -1))


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (Filter(tenant="other"), 3),
        (Filter(tenant="tenant-0"), 15),
        (Filter(tenant="nobody"), 0),
        (Filter(state="refused", status=404), 3),
        (Filter(error_kind="model_not_found"), 3),
        (Filter(use_case="support_summary", provider="openai"), 18),
        (Filter(model="claude-haiku-4-5"), 9),
        (Filter(since_ns=WALL_NS + 20 * 10**6), 10),
        (Filter(since_ns=WALL_NS + 20 * 10**6, tenant="tenant-1"), 4),
        (Filter(request_id=make_exchange(7).id), 1),
    ],
)
def test_requests_are_chosen_by_what_is_asked(db: Path, chosen: Filter, count: int) -> None:
    assert len(listing.requests(db, chosen)) == count


def test_attempts_of_a_request_come_in_their_order(db: Path) -> None:
    rows = listing.attempts(db, Filter(request_id=make_exchange(3).id))
    assert [(row["number"], row["kind"], row["target"]) for row in rows] == [
        (1, "primary", "openai/gpt-5-mini"),
        (2, "fallback", "anthropic/claude-haiku-4-5"),
    ]
    assert len(listing.attempts(db, Filter(kind="fallback"), limit=1000)) == 9
    assert len(listing.attempts(db, Filter(since_ns=WALL_NS + 27 * 10**6), limit=1000)) == 3


def test_a_filter_that_a_table_has_no_column_for_is_an_error(db: Path) -> None:
    with pytest.raises(ValueError, match="provider_attempts have no tenant"):
        listing.attempts(db, Filter(tenant="acme"))


@pytest.mark.parametrize("table", ["requests", "provider_attempts"])
@pytest.mark.parametrize("chosen", [Filter(), Filter(since_ns=WALL_NS), Filter(request_id="x")])
def test_the_newest_rows_are_found_without_sorting_or_scanning(db: Path, table: Table, chosen: Filter) -> None:
    where, values = listing._where(table, chosen)
    order = listing._ORDER[table]
    with closing(sqlite3.connect(db)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN SELECT * FROM {table} {where} ORDER BY {order} LIMIT 50", values
        ).fetchall()
    text = " ".join(str(step[-1]) for step in plan)
    assert "USING INDEX" in text
    assert "TEMP B-TREE FOR ORDER BY" not in text


def test_the_rows_of_a_tenant_are_found_by_their_index(db: Path) -> None:
    where, values = listing._where("requests", Filter(tenant="acme", since_ns=1))
    with closing(sqlite3.connect(db)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN SELECT * FROM requests {where} ORDER BY id DESC LIMIT 50", values
        ).fetchall()
    assert [step[-1] for step in plan] == ["SEARCH requests USING INDEX requests_by_tenant (tenant=? AND id>?)"]


@given(st.integers(0, 2**48 * 10**6 - 1), st.integers(0, 2**80 - 1))
def test_since_takes_in_every_id_of_its_moment_and_none_before(wall_ns: int, dice: int) -> None:
    assert uuid7(wall_ns, dice) >= first_id_at(wall_ns)
    if wall_ns >= 10**6:
        assert uuid7(wall_ns - 10**6, dice) < first_id_at(wall_ns)


async def test_the_books_are_read_while_they_are_written(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    store: SqliteStore = sqlite_store(tmp_path / "books.db")
    for number in range(5):
        play(journal, number)
        await ship_all(tmp_path, store)
        assert len(listing.requests(tmp_path / "books.db")) == number + 1
    await store.close()
    journal.close()
    assert len(listing.requests(tmp_path / "books.db")) == 5


async def test_the_books_are_read_after_the_writer_was_killed(tmp_path: Path) -> None:
    """Nothing was folded in: the rows are in the write-ahead log, and nobody has the file open."""
    play(open_journal(tmp_path), 1)
    store = sqlite_store(tmp_path / "books.db")
    await ship_all(tmp_path, store)
    left = tmp_path / "left"
    left.mkdir()
    for end in ("", "-wal"):
        (left / f"books.db{end}").write_bytes((tmp_path / f"books.db{end}").read_bytes())
    await store.close()
    assert (left / "books.db-wal").stat().st_size > 0
    assert len(listing.requests(left / "books.db")) == 1


def test_reading_writes_nothing(db: Path) -> None:
    before = db.read_bytes()
    listing.requests(db)
    listing.attempts(db)
    assert db.read_bytes() == before


@pytest.mark.parametrize("read", [listing.requests, listing.attempts])
def test_no_database_is_said_clearly(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(NoLedgerError, match=r"no ledger at .*nothing.db: no gateway has run"):
        read(tmp_path / "nothing.db")
    assert not list(tmp_path.iterdir())
    (tmp_path / "else.db").write_bytes(b"something else entirely " * 50)
    with pytest.raises(NoLedgerError, match="not a database"):
        read(tmp_path / "else.db")
    (tmp_path / "empty.db").write_bytes(b"")
    with pytest.raises(NoLedgerError, match="no such table"):
        read(tmp_path / "empty.db")


async def test_follow_gives_every_row_once_in_the_order_of_their_ends(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    long = make_exchange(0)  # began first, ends last
    journal.begin(long, make_attempt(long))
    for number in (1, 2):
        play(journal, number)
    await ship_all(tmp_path, store)
    rows = listing.follow(path, "requests", enough, last=1)
    assert next(rows)["id"] == make_exchange(2).id
    play(journal, 3)
    finish(long.attempts[0])
    journal.attempt(long, long.attempts[0])
    conclude(long)
    journal.end(long)
    await ship_all(tmp_path, store)
    assert [row["id"] for row in islice(rows, 2)] == ids(iter((3, 0)))
    with pytest.raises(EnoughError):
        next(rows)
    await store.close()
    journal.close()


def test_follow_starts_with_as_many_as_asked_and_keeps_its_filter(db: Path) -> None:
    def followed(table: Table, chosen: Filter, last: int) -> int:
        seen: list[Row] = []
        with pytest.raises(EnoughError):
            seen.extend(listing.follow(db, table, enough, chosen, last=last))
        return len(seen)

    assert followed("requests", Filter(), 0) == 0
    assert followed("requests", Filter(), 7) == 7
    assert followed("requests", Filter(), 1000) == 30
    assert followed("requests", Filter(tenant="other"), 2) == 2
    assert followed("requests", Filter(tenant="nobody"), 2) == 0
    assert followed("provider_attempts", Filter(kind="fallback"), 3) == 3


def test_json_lines_hold_every_column(db: Path) -> None:
    lines = [json.loads(line) for line in listing.json_lines(listing.requests(db, limit=3))]
    assert [line["id"] for line in lines] == ids(range(29, 26, -1))
    assert lines[0]["state"] == "refused"
    assert lines[0]["provider"] is None
    assert lines[1]["input_tokens"] == 10


@pytest.mark.parametrize(
    ("us", "expected"),
    [
        (None, "-"),
        (0, "0us"),
        (999, "999us"),
        (1000, "1.0ms"),
        (9_949, "9.9ms"),
        (9_950, "10ms"),
        (812_400, "812ms"),
        (999_499, "999ms"),
        (999_500, "1.00s"),
        (4_310_000, "4.31s"),
        (59_994_999, "59.99s"),
        (59_995_000, "1m00s"),
        (725_000_000, "12m05s"),
    ],
)
def test_durations_are_said_as_people_say_them(us: int | None, expected: str) -> None:
    assert duration(us) == expected


def test_moments_are_utc_to_the_millisecond() -> None:
    assert moment(1_750_000_000_123_456_789) == "2025-06-15 15:06:40.123"
    assert moment(2**63 - 1) == "2262-04-11 23:47:16.854"
    assert moment(10**30) == moment(-1) == moment(None) == "-"


def test_a_table_lines_up(db: Path) -> None:
    lines = list(listing.table("requests", listing.requests(db)))
    assert len(lines) == 31
    assert lines[0].split()[:4] == ["TIME", "(UTC)", "TENANT", "USE"]
    column = lines[0].index("STATE")
    assert all(line[column - 2 : column] == "  " for line in lines)
    assert {line[column:].split()[0] for line in lines[1:]} == {"complete", "refused"}
    assert lines[2].split()[-3:-1] == ["300ms", "10ms"]


@pytest.mark.parametrize("table", ["requests", "provider_attempts"])
def test_a_table_fits_its_terminal_and_keeps_what_matters(db: Path, table: Table) -> None:
    rows = listing.requests(db) if table == "requests" else listing.attempts(db)
    for width in (80, 100, 132, 200, 400):
        lines = list(listing.table(table, rows, width))
        assert max(map(len, lines)) <= width
        assert "STATUS" in lines[0]
        assert "TOOK" in lines[0]
    assert len(list(listing.table(table, rows, 1))) == len(rows) + 1
    assert len(list(listing.table(table, [], 80))) == 1


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_name_reaches_the_terminal_as_anything_but_text(name: str) -> None:
    assert printable(name).isprintable()
    if name.isprintable():
        assert printable(name) == name


def test_escape_sequences_of_clients_are_shown_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\n\u202ec") == "a\\x1b[2Jb\\n\\u202ec"


def test_a_cell_that_is_too_long_is_cut_visibly() -> None:
    row: Row = dict.fromkeys(
        ("id", "tenant", "use_case", "route", "dialect", "model_asked", "provider", "model", "error_kind"), "x" * 300
    ) | dict.fromkeys(
        ("started_ns", "status", "attempts", "input_tokens", "output_tokens", "estimated", "first_byte_us"), 1
    )
    row |= {"state": "complete", "duration_us": 5, "overhead_us": 1}
    for width in (80, 132):
        _, line = listing.table("requests", [row], width)
        assert len(line) <= width
        assert "…" in line
        assert "~1" in "".join(listing.table("requests", [row]))
