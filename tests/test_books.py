"""Asking the books: while they are written, after the writer is gone, by every filter, and in sums by the hour."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_traces import (
    JOURNAL_ID,
    WALL_NS,
    a_batch,
    conclude,
    finish,
    make_attempt,
    make_exchange,
    open_journal,
    play,
    refuse,
    ship_all,
    sqlite_store,
)
from postgres_rig import Database
from postgres_rig import Postgres as Server

from edgegw.app.control import build_control
from edgegw.clock import ManualClock, uuid7
from edgegw.ledger import questions
from edgegw.ledger.books import Books, NoLedgerError, SqliteBooks
from edgegw.ledger.postgres.books import PostgresBooks
from edgegw.ledger.postgres.connection import Postgres
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.postgres.upkeep import compact
from edgegw.ledger.questions import BadQuestionError, Filter, Row, Table, first_id_at, newest
from edgegw.ledger.schema import migrations
from edgegw.ledger.store import Checkpoint, Store
from edgegw.ledger.usage import SUMS, hour_of
from edgegw.settings import load_text, parse_postgres

KNOWN = migrations("sqlite")
HOUR = WALL_NS // 3_600_000_000_000


def books_at(path: Path) -> SqliteBooks:
    return SqliteBooks(path, KNOWN)


def write(state_dir: Path) -> None:
    """30 requests of two tenants: every third has failed once before, every tenth was refused."""
    journal = open_journal(state_dir)
    for number in range(30):
        if number % 10 == 9:
            refuse(journal, number, tenant="other")
        else:
            play(journal, number, failures=number % 3 == 0, tenant=f"tenant-{number % 2}")
    journal.close()


@pytest.fixture
async def db(tmp_path: Path) -> Path:
    write(tmp_path)
    store = sqlite_store(tmp_path / "books.db")
    await ship_all(tmp_path, store)
    await store.close()
    return tmp_path / "books.db"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Books]]:
    """The same rows in either database, which nobody changes; opens their books."""
    place = tmp_path_factory.mktemp("books")
    write(place)

    async def fill(store: Store) -> None:
        await ship_all(place, store)
        await store.close()

    if request.param == "sqlite":
        asyncio.run(fill(sqlite_store(place / "books.db")))
        yield lambda: books_at(place / "books.db")
        return
    server: Server = request.getfixturevalue("shared_postgres")
    database = server.database()
    asyncio.run(fill(postgres_store(database)))
    yield lambda: postgres_books(database)
    database.drop()


@pytest.fixture
async def books(filled: Callable[[], Books]) -> AsyncIterator[Books]:
    found = filled()
    yield found
    await found.close()


def postgres_store(database: Database, journal: str = JOURNAL_ID) -> PostgresStore:
    clock = ManualClock(wall_ns=WALL_NS)
    return PostgresStore(parse_postgres(database.dsn), migrations("postgres"), clock, journal)


def postgres_books(database: Database) -> PostgresBooks:
    return PostgresBooks(parse_postgres(database.dsn), migrations("postgres"))


async def ask(books: Books, table: Table, chosen: Filter | None = None, limit: int = 50) -> list[Row]:
    return await books.rows(newest(table, chosen or Filter(), limit))


def ids(numbers: Iterator[int] | range) -> list[str]:
    return [make_exchange(number).id for number in numbers]


async def test_requests_come_newest_first(books: Books) -> None:
    assert [row["id"] for row in await ask(books, "requests")] == ids(range(29, -1, -1))
    assert [row["id"] for row in await ask(books, "requests", limit=4)] == ids(range(29, 25, -1))


async def test_rows_have_every_column_with_its_type(books: Books) -> None:
    row = (await ask(books, "requests", Filter(request_id=make_exchange(1).id)))[0]
    assert tuple(row) == questions.COLUMNS["requests"]
    assert (row["stream"], row["estimated"], row["input_tokens"]) == (False, False, 10)
    attempt = (await ask(books, "provider_attempts", Filter(request_id=make_exchange(1).id)))[0]
    assert tuple(attempt) == questions.COLUMNS["provider_attempts"]
    assert (attempt["reused"], attempt["tenant"], attempt["target"]) == (False, "tenant-1", "openai/gpt-5-mini")


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
        (Filter(until_ns=WALL_NS + 20 * 10**6), 20),
        (Filter(since_ns=WALL_NS + 20 * 10**6, until_ns=WALL_NS + 21 * 10**6), 1),
        (Filter(since_ns=WALL_NS + 20 * 10**6, tenant="tenant-1"), 4),
        (Filter(request_id=make_exchange(7).id), 1),
        (Filter(key_id="k"), 0),
        (Filter(session_id="s"), 0),
        (Filter(user_id="u"), 0),
    ],
)
async def test_requests_are_chosen_by_what_is_asked(books: Books, chosen: Filter, count: int) -> None:
    assert len(await ask(books, "requests", chosen)) == count


async def test_attempts_of_a_request_come_in_their_order(books: Books) -> None:
    rows = await ask(books, "provider_attempts", Filter(request_id=make_exchange(3).id))
    assert [(row["number"], row["kind"], row["target"]) for row in rows] == [
        (1, "primary", "openai/gpt-5-mini"),
        (2, "fallback", "anthropic/claude-haiku-4-5"),
    ]
    assert len(await ask(books, "provider_attempts", Filter(kind="fallback"), 1000)) == 9
    assert len(await ask(books, "provider_attempts", Filter(tenant="tenant-0"), 1000)) == 20
    assert len(await ask(books, "provider_attempts", Filter(since_ns=WALL_NS + 27 * 10**6), 1000)) == 3


def test_a_filter_that_a_table_has_no_column_for_is_an_error() -> None:
    with pytest.raises(BadQuestionError, match="provider_attempts have no state"):
        newest("provider_attempts", Filter(state="complete"), 1)


@pytest.mark.parametrize("table", ["requests", "provider_attempts"])
@pytest.mark.parametrize("chosen", [Filter(), Filter(since_ns=WALL_NS), Filter(request_id="x")])
def test_the_newest_rows_are_found_without_sorting_or_scanning(db: Path, table: Table, chosen: Filter) -> None:
    text = " ".join(plan(db, questions.newest(table, chosen, 50)))
    assert "USING INDEX" in text
    assert "TEMP B-TREE FOR ORDER BY" not in text


def test_the_rows_of_a_tenant_are_found_by_their_index(db: Path) -> None:
    assert plan(db, newest("requests", Filter(tenant="acme", since_ns=1), 50)) == [
        "SEARCH requests USING INDEX requests_by_tenant (tenant=? AND id>?)"
    ]


def test_usage_reads_the_hours_that_are_asked_for(db: Path) -> None:
    (first, *_) = plan(db, questions.usage(("tenant",), Filter(), HOUR, HOUR + 1))
    assert first == "SEARCH usage_hours USING PRIMARY KEY (hour>? AND hour<?)"


def plan(db: Path, question: questions.Question) -> list[str]:
    with closing(sqlite3.connect(db)) as connection:
        return [
            step[-1] for step in connection.execute(f"EXPLAIN QUERY PLAN {question.text}", question.values).fetchall()
        ]


@given(st.integers(0, 2**48 * 10**6 - 1), st.integers(0, 2**74 - 1))
def test_since_takes_in_every_id_of_its_moment_and_none_before(wall_ns: int, dice: int) -> None:
    assert uuid7(wall_ns, dice) >= first_id_at(wall_ns)
    if wall_ns >= 10**6:
        assert uuid7(wall_ns - 10**6, dice) < first_id_at(wall_ns)


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**70))
def test_whole_hours_hold_the_span_that_is_asked_for(since_ns: int, length_ns: int) -> None:
    first, behind = questions.whole_hours(since_ns, since_ns + length_ns)
    assert 0 <= first <= behind
    for moment_ns in (since_ns, since_ns + length_ns - 1):
        if length_ns and 0 <= moment_ns < 2**48 * 10**6:
            assert first <= hour_of(uuid7(moment_ns, 0)) < behind


# -- usage --


async def sums(books: Books, by: str, chosen: Filter | None = None) -> dict[tuple[object, ...], tuple[object, ...]]:
    names = questions.by_names(by)
    rows = await books.rows(questions.usage(names, chosen or Filter(), HOUR, HOUR + 1))
    assert all(tuple(row) == (*names, *SUMS) for row in rows)
    shown = ("requests", "failed", "attempts", "input_tokens", "cost_usd_micro", "unpriced", "estimated")
    return {tuple(row[name] for name in names): tuple(row[name] for name in shown) for row in rows}


async def test_usage_is_summed_by_what_is_asked(books: Books) -> None:
    assert await sums(books, "tenant") == {
        ("tenant-0",): (15, 0, 20, 150, 0, 15, 0),
        ("tenant-1",): (12, 0, 16, 120, 0, 12, 0),
        ("other",): (3, 3, 0, 0, 0, 0, 0),
    }
    assert await sums(books, "day") == {(HOUR // 24,): (30, 3, 36, 270, 0, 27, 0)}
    assert await sums(books, "hour,provider,model") == {
        (HOUR, "openai", "gpt-5-mini"): (18, 0, 27, 180, 0, 18, 0),
        (HOUR, "anthropic", "claude-haiku-4-5"): (9, 0, 9, 90, 0, 9, 0),
        (HOUR, "", ""): (3, 3, 0, 0, 0, 0, 0),
    }
    assert await sums(books, "tenant,use_case,key", Filter(provider="anthropic")) == {
        ("tenant-0", "support_summary", ""): (5, 0, 5, 50, 0, 5, 0),
        ("tenant-1", "support_summary", ""): (4, 0, 4, 40, 0, 4, 0),
    }
    assert await books.rows(questions.usage(("tenant",), Filter(), HOUR + 1, HOUR + 1000)) == []
    assert await books.rows(questions.usage(("tenant",), Filter(), 0, HOUR)) == []


async def test_usage_has_times_in_their_order_and_then_what_is_most(books: Books) -> None:
    rows = await books.rows(questions.usage(("day", "tenant"), Filter(), 0, HOUR + 1))
    assert [row["tenant"] for row in rows] == ["tenant-0", "tenant-1", "other"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tenant,colour", "not among tenant, use_case, key, provider, model, day, hour: colour"),
        (" , ", "one or more of tenant, use_case, key, provider, model, day, hour"),
        ("hour;DROP TABLE requests", "not among"),
    ],
)
def test_usage_by_what_nobody_knows(text: str, complaint: str) -> None:
    with pytest.raises(BadQuestionError, match=complaint):
        questions.by_names(text)
    assert questions.by_names(" tenant, day,tenant") == ("tenant", "day")


# -- while it is written --


async def test_the_books_are_read_while_they_are_written(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    store = sqlite_store(tmp_path / "books.db")
    books = books_at(tmp_path / "books.db")
    for number in range(5):
        play(journal, number)
        await ship_all(tmp_path, store)
        assert len(await ask(books, "requests")) == number + 1
    await store.close()
    journal.close()
    assert len(await ask(books, "requests")) == 5
    await books.close()


async def test_within_a_snapshot_nothing_moves(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    store = sqlite_store(tmp_path / "books.db")
    books = books_at(tmp_path / "books.db")
    play(journal, 1)
    await ship_all(tmp_path, store)
    async with books.snapshot():
        assert len(await ask(books, "requests")) == 1
        play(journal, 2)
        await ship_all(tmp_path, store)
        assert len(await ask(books, "requests")) == 1
    assert len(await ask(books, "requests")) == 2
    await books.close()
    await store.close()
    journal.close()


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
    books = books_at(left / "books.db")
    assert len(await ask(books, "requests")) == 1
    await books.close()


def content(path: Path) -> bytes:
    return path.read_bytes()


async def test_reading_writes_nothing(db: Path) -> None:
    before = content(db)
    books = books_at(db)
    await ask(books, "requests")
    await books.rows(questions.usage(("tenant",), Filter(), 0, 1))
    await books.close()
    assert content(db) == before


async def test_no_database_is_said_clearly(tmp_path: Path) -> None:
    async def complaint(name: str) -> str:
        with pytest.raises(NoLedgerError) as raised:
            await ask(books_at(tmp_path / name), "requests")
        return str(raised.value)

    assert "nothing.db: no gateway has run" in await complaint("nothing.db")
    assert not os.listdir(tmp_path)
    (tmp_path / "else.db").write_bytes(b"something else entirely " * 50)
    assert "not a database" in await complaint("else.db")
    (tmp_path / "empty.db").write_bytes(b"")
    assert "no tables of ours" in await complaint("empty.db")
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.execute("CREATE TABLE schema_migrations (version INTEGER)")
        old.execute("INSERT INTO schema_migrations VALUES (1)")
        old.commit()
    assert f"its schema is version 1, this program reads {len(KNOWN)}" in await complaint("old.db")


# -- rows as they come --


async def followed(books: Books, table: Table, chosen: Filter, last: int) -> list[Row]:
    """What a follower sees before it has to wait."""
    seen: list[Row] = []
    async with aclosing(books.follow(table, chosen, last)) as portions:
        async for rows in portions:
            if not rows:
                return seen
            seen += rows
    raise AssertionError("it ended")


async def test_follow_gives_every_row_once_in_the_order_of_their_ends(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    long = make_exchange(0)  # began first, ends last
    journal.begin(long, make_attempt(long))
    for number in (1, 2):
        play(journal, number)
    await ship_all(tmp_path, store)
    books = books_at(path)
    portions = books.follow("requests", Filter(), 1)
    assert [row["id"] for row in await anext(portions)] == ids(iter((2,)))
    play(journal, 3)
    finish(long.attempts[0])
    journal.attempt(long, long.attempts[0])
    conclude(long)
    journal.end(long)
    await ship_all(tmp_path, store)
    assert [row["id"] for row in await anext(portions)] == ids(iter((3, 0)))
    assert await anext(portions) == []
    await books.close()
    await store.close()
    journal.close()


async def test_follow_starts_with_as_many_as_asked_and_keeps_its_filter(books: Books) -> None:
    async def count(table: Table, chosen: Filter, last: int) -> int:
        return len(await followed(books, table, chosen, last))

    assert await count("requests", Filter(), 0) == 0
    assert await count("requests", Filter(), 7) == 7
    assert await count("requests", Filter(), 1000) == 30
    assert await count("requests", Filter(tenant="other"), 2) == 2
    assert await count("requests", Filter(tenant="nobody"), 2) == 0
    assert await count("provider_attempts", Filter(kind="fallback"), 3) == 3


# -- PostgreSQL --


@pytest.fixture
async def at_end() -> AsyncIterator[AsyncExitStack]:
    """What is to be closed, however the test ends."""
    async with AsyncExitStack() as stack:
        yield stack


async def test_followers_see_what_gateways_commit_in_any_order(postgres: Database, at_end: AsyncExitStack) -> None:
    """A row comes to light after one that was stored later; nothing is shown twice, nothing is left out."""
    store = postgres_store(postgres)
    at_end.push_async_callback(store.close)
    await store.write(a_batch(range(1)), Checkpoint())
    books = postgres_books(postgres)
    at_end.push_async_callback(books.close)
    (first,) = await ask(books, "requests")
    portions = books.follow("requests", Filter(), 1)
    assert [row["id"] for row in await anext(portions)] == [first["id"]]
    assert await anext(portions) == []
    columns = [row["attname"] for row in postgres.rows(ATTRIBUTES)]
    rest = ", ".join(name for name in columns if name not in ("id", "stored_at"))

    def copy(last: str, ago_s: int) -> str:
        id_ = str(first["id"])[:-1] + last
        postgres.do(
            f"INSERT INTO requests (id, stored_at, {rest}) "
            f"SELECT '{id_}', now() - interval '{ago_s} s', {rest} FROM requests WHERE id = '{first['id']}'"
        )
        return id_

    late = copy("d", 0)
    assert [row["id"] for row in await anext(portions)] == [late]
    assert await anext(portions) == []
    earlier = [copy("b", 3), copy("c", 2)]
    assert [row["id"] for row in await anext(portions)] == earlier
    assert await anext(portions) == []
    copy("a", 3600)  # nobody looks so far back
    assert await anext(portions) == []
    await portions.aclose()


ATTRIBUTES = (
    "SELECT attname FROM pg_attribute "
    "WHERE attrelid = 'requests'::regclass AND attnum > 0 AND attgenerated = '' AND NOT attisdropped"
)


async def test_attempts_are_followed_too(postgres: Database, at_end: AsyncExitStack) -> None:
    store = postgres_store(postgres)
    at_end.push_async_callback(store.close)
    await store.read_checkpoint()
    books = postgres_books(postgres)
    at_end.push_async_callback(books.close)
    portions = books.follow("provider_attempts", Filter(), 5)
    assert await anext(portions) == []
    batch = a_batch(range(3))
    await store.write(batch, Checkpoint())
    assert {row["request_id"] for row in await anext(portions)} == {row.request_id for row in batch.attempts}
    await portions.aclose()


async def test_a_postgresql_that_cannot_be_read_is_said_clearly(postgres: Database, at_end: AsyncExitStack) -> None:
    books = postgres_books(postgres)
    at_end.push_async_callback(books.close)
    with pytest.raises(NoLedgerError, match=r"postgresql://\*\*\*@127.*there are no tables of ours in it"):
        await ask(books, "requests")
    store = postgres_store(postgres)
    at_end.push_async_callback(store.close)
    await store.read_checkpoint()
    assert await ask(books, "requests") == []
    async with books.snapshot():
        postgres.cut()
        with pytest.raises(NoLedgerError):
            await ask(books, "requests")
        with pytest.raises(NoLedgerError, match="the connection broke"):
            await ask(books, "requests")
    postgres.do("DELETE FROM schema_migrations; INSERT INTO schema_migrations VALUES (0, '', 0)")
    await books.close()
    with pytest.raises(NoLedgerError):
        await ask(books, "requests")
    await store.close()
    postgres.drop()
    with pytest.raises(NoLedgerError, match="does not exist"):
        await ask(books, "requests")
    await books.close()


async def test_a_sum_is_no_more_than_a_column_holds(postgres: Database, at_end: AsyncExitStack) -> None:
    store = postgres_store(postgres)
    at_end.push_async_callback(store.close)
    await store.write(a_batch(range(2)), Checkpoint())
    postgres.do(f"UPDATE usage_hours SET input_tokens = {2**63 - 1}")
    postgres.do(
        "INSERT INTO usage_hours SELECT hour, 'b', "
        + ", ".join(("use_case", "key_id", "provider", "model", "journal", *SUMS))
        + " FROM usage_hours"
    )
    books = postgres_books(postgres)
    at_end.push_async_callback(books.close)
    (row,) = await books.rows(questions.usage(("provider",), Filter(), 0, HOUR + 1))
    assert row["input_tokens"] == 2**63 - 1
    assert postgres.value("SELECT count(*) FROM usage_hours") > 1


async def test_days_that_are_merged_and_hours_that_are_not_come_to_the_same(
    postgres: Database, at_end: AsyncExitStack, tmp_path: Path
) -> None:
    """Whatever is merged already, and wherever the span begins and ends: as many as the hours say."""
    journal = open_journal(tmp_path)
    for hours in range(0, 100, 3):
        play(journal, hours * 3_600_000, tenant=f"tenant-{hours % 2}")
    journal.close()
    store = postgres_store(postgres)
    at_end.push_async_callback(store.close)
    await ship_all(tmp_path, store)
    session = Postgres(parse_postgres(postgres.dsn))
    at_end.push_async_callback(session.close)
    books = postgres_books(postgres)
    at_end.push_async_callback(books.close)
    first = HOUR // 24 * 24
    for merged in (HOUR, HOUR + 30, HOUR + 60, HOUR + 1000):
        await session.run(partial(compact, before_hour=merged))
        assert postgres.value("SELECT count(*) FROM usage_hours WHERE journal = ''") == (
            len([hours for hours in range(0, 100, 3) if HOUR + hours < merged])
        )
        for since, until in ((0, HOUR + 1000), (HOUR, HOUR + 100), (first, first + 24), (first + 24, first + 75)):
            for by in (("tenant",), ("day", "model"), ("provider", "day")):
                fast, slow = (questions.usage(by, Filter(), since, until, how) for how in ("postgres", "sqlite"))
                assert await books.rows(fast) == await books.rows(slow)
    (row,) = await books.rows(questions.usage(("day",), Filter(tenant="tenant-0"), first + 24, first + 48, "postgres"))
    assert (row["day"], row["requests"]) == (first // 24 + 1, 4)


async def test_a_state_directory_that_has_no_name_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "journal.id").mkdir()
    text = f"""
version: 1
server: {{state_dir: {tmp_path}}}
providers: {{a: {{kind: openai, api_key: k}}}}
default: {{targets: [a/b]}}
"""
    with (
        socket.socket(socket.AF_UNIX) as channel,
        pytest.raises(SystemExit, match="the state directory cannot be used: Is a directory"),
    ):
        build_control(load_text(text, {}), channel, asyncio.get_running_loop())
