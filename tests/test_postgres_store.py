"""The books in PostgreSQL: all of a batch or nothing, once, and again after whatever was wrong is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import asyncpg
import pytest
from ledger_traces import JOURNAL_ID, WALL_NS, a_batch, at, open_in_every_way
from postgres_rig import Database, PostgresHouse, can_mount
from rig import eventually

from edgegw.clock import ManualClock
from edgegw.ledger.postgres import connection
from edgegw.ledger.postgres import store as store_module
from edgegw.ledger.postgres.connection import Postgres
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.postgres.upkeep import compact
from edgegw.ledger.record import ATTEMPT_COLUMNS, REQUEST_COLUMNS
from edgegw.ledger.schema import migrations
from edgegw.ledger.store import Batch, Checkpoint, Position, RejectedError, StoreError
from edgegw.settings import parse_postgres

KNOWN = migrations("postgres")
MakeStore = Callable[..., PostgresStore]


@pytest.fixture
async def store_of() -> AsyncIterator[MakeStore]:
    """Makes stores, and closes them."""
    made: list[PostgresStore] = []

    def make(database: Database, journal: str = JOURNAL_ID, options: str = "") -> PostgresStore:
        address = parse_postgres(database.dsn + options)
        made.append(PostgresStore(address, KNOWN, ManualClock(wall_ns=WALL_NS), journal))
        return made[-1]

    yield make
    for store in made:
        await store.close()


def columns(database: Database, table: str) -> set[str]:
    query = f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0"
    return {row["attname"] for row in database.rows(query)}


def books(database: Database) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows of both tables, by id."""
    return (
        database.rows("SELECT * FROM requests ORDER BY id"),
        database.rows("SELECT * FROM provider_attempts ORDER BY request_id, number"),
    )


def sums(database: Database) -> dict[str, int]:
    """What usage_hours comes to."""
    names = ("requests", "failed", "attempts", "input_tokens", "output_tokens", "cached_tokens")
    (row,) = database.rows(f"SELECT {', '.join(f'coalesce(sum({n}), 0) AS {n}' for n in names)} FROM usage_hours")
    return row


def summed(requests: int) -> dict[str, int]:
    """What usage_hours comes to after so many requests of `a_batch`."""
    return {
        "requests": requests,
        "failed": 0,
        "attempts": requests,
        "input_tokens": 10 * requests,
        "output_tokens": 20 * requests,
        "cached_tokens": 4 * requests,
    }


async def test_the_fields_of_the_records_are_columns(postgres: Database, store_of: MakeStore) -> None:
    await store_of(postgres).read_checkpoint()
    assert columns(postgres, "requests") == {*REQUEST_COLUMNS, "started_at", "stored_at"}
    assert columns(postgres, "provider_attempts") == {*ATTEMPT_COLUMNS, "target", "started_at", "stored_at"}


async def test_a_batch_and_its_checkpoint_are_written_together_and_once(
    postgres: Database, store_of: MakeStore
) -> None:
    store = store_of(postgres)
    batch = a_batch(range(10))
    await store.write(batch, at(1, 100))
    first = books(postgres)
    batch.requests[0].status = 500  # told again, differently: what is stored stays
    await store.write(batch, at(1, 100))
    assert books(postgres) == first
    assert len(first[0]) == len(first[1]) == 10
    assert sums(postgres) == summed(10)
    assert (await store.read_checkpoint()).positions == at(1, 100).positions
    assert first[1][0]["target"] == "openai/gpt-5-mini"
    assert first[0][0]["started_at"].startswith("2025-06-15T")


async def test_only_what_is_new_is_added_to_the_sums(postgres: Database, store_of: MakeStore) -> None:
    store = store_of(postgres)
    await store.write(a_batch(range(5)), at(1, 1))
    batch = a_batch(range(3, 12))
    batch.requests += batch.requests[4:6]  # … and twice within the batch
    batch.attempts += batch.attempts[4:6]
    await store.write(batch, at(1, 2))
    assert sums(postgres) == summed(12)
    assert postgres.value("SELECT count(*) FROM requests") == 12


async def test_a_checkpoint_comes_back_as_it_was_told(postgres: Database, store_of: MakeStore) -> None:
    told = open_in_every_way()
    await store_of(postgres).write(Batch(), told)
    store = store_of(postgres)
    for expected in told.opened.values():
        expected.stored = True
    assert await store.read_checkpoint() == told
    assert await store_of(postgres, "another").read_checkpoint() == Checkpoint()
    left = {"0-1-1": Position(9, 9, 9, 9)}
    await store.write(Batch(), Checkpoint(left, {}, ["first", "third"], ["0-2-2", "0-3-3"]))
    assert await store.read_checkpoint() == Checkpoint(left, {"second": told.opened["second"]})
    evidence = "SELECT life, gaps, torn, unreadable FROM checkpoints WHERE ended"
    assert postgres.rows(evidence) == [{"life": "0-3-3", "gaps": 5, "torn": 6, "unreadable": 7}]


class Breaking:
    """Ends the backend of a session at one of its calls: before the server hears of it, or when it has done it and the
    answer is on its way."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self._database = database
        self._at = -1
        self._done = False
        for name in ("execute", "fetch", "fetchval", "copy_records_to_table"):
            monkeypatch.setattr(asyncpg.Connection, name, self._watched(getattr(asyncpg.Connection, name)))

    def arm(self, call: int, *, done: bool) -> None:
        self.calls, self._at, self._done = [], call, done

    def _watched(self, original: Any) -> Any:
        async def watched(session: Any, what: str, *arguments: Any, **options: Any) -> Any:
            now = len(self.calls) == self._at
            self.calls.append(what)
            if now and not self._done:
                await asyncio.to_thread(self._database.cut)
            result = await original(session, what, *arguments, **options)
            if now and self._done:
                await asyncio.to_thread(self._database.cut)
                raise ConnectionResetError("cut while the answer was on its way")
            return result

        return watched


@pytest.mark.system
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
async def test_wherever_the_connection_breaks_the_same_call_again_is_right(
    postgres: Database, store_of: MakeStore, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    store = store_of(postgres)
    await store.write(a_batch(range(10)), at(1, 0))
    breaking = Breaking(postgres, monkeypatch)
    breaking.arm(-1, done=done)
    await store.write(a_batch(range(5, 20)), at(1, 1))  # a third is there already: the longer way
    calls = list(breaking.calls)
    assert calls.count("COMMIT") == 1
    for call in range(len(calls)):
        numbers = range(20 + 10 * call - 5, 30 + 10 * call)
        breaking.arm(call, done=done)
        with pytest.raises(StoreError):
            await store.write(a_batch(numbers), at(1, call + 2))
        breaking.arm(-1, done=done)
        await store.write(a_batch(numbers), at(1, call + 2))
        assert sums(postgres) == summed(numbers.stop)
        assert postgres.value("SELECT count(*) FROM provider_attempts") == numbers.stop
        assert (await store.read_checkpoint()).positions == at(1, call + 2).positions


@pytest.mark.system
async def test_connections_are_cut_again_and_again_while_two_journals_are_written(
    postgres: Database, store_of: MakeStore
) -> None:
    """And lines of usage are merged beside it, as if every hour were over."""
    batches = [[a_batch(range(start, start + 50)) for start in range(0, 1000, 50)] for _ in range(2)]
    over, written = asyncio.Event(), asyncio.Event()

    async def insist(work: Callable[[], Awaitable[object]]) -> None:
        while True:
            with suppress(StoreError):
                await work()
                return

    async def write(number: int) -> None:
        store = store_of(postgres, f"journal-{number}")
        for place, batch in enumerate(batches[number]):
            for row in batch.requests:
                row.id = row.id[:-1] + "ab"[number]
            for row_ in batch.attempts:
                row_.request_id = row_.request_id[:-1] + "ab"[number]
            await insist(partial(store.write, batch, at(1, place)))
            written.set()

    async def cut() -> None:
        while not over.is_set():
            await written.wait()  # so that they get on, and whoever is at it now does not
            written.clear()
            await asyncio.to_thread(postgres.cut)

    async def merge() -> None:
        shell = Postgres(parse_postgres(postgres.dsn))
        while not over.is_set():
            await insist(lambda: shell.run(lambda session: compact(session, 10**9)))
        await shell.close()

    await store_of(postgres).read_checkpoint()
    beside = [asyncio.create_task(cut()), asyncio.create_task(merge())]
    await asyncio.gather(write(0), write(1))
    over.set()
    await asyncio.gather(*beside)
    assert sums(postgres) == summed(len({row.id for some in batches for batch in some for row in batch.requests}))


@pytest.mark.system
async def test_a_server_that_restarts_is_a_store_error_until_it_is_back(
    postgreses: PostgresHouse, store_of: MakeStore
) -> None:
    server = postgreses.server()
    database = server.database()
    store = store_of(database)
    await store.write(a_batch(range(5)), at(1, 1))
    for how in (server.stop, server.kill):
        how()
        for _ in range(2):
            with pytest.raises(StoreError, match=f"PostgreSQL 127.0.0.1:{server.port}/{database.name}: "):
                await store.write(a_batch(range(10)), at(1, 2))
        server.start()
        await store.write(a_batch(range(10)), at(1, 2))
        assert sums(database) == summed(10)


@pytest.mark.system
async def test_a_frozen_server_is_given_up(
    postgreses: PostgresHouse, store_of: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_S", 0.5)
    server = postgreses.server()
    database = server.database()
    store = store_of(database, options="?connect_timeout=1")
    await store.write(a_batch(range(5)), at(1, 1))
    with server.frozen():
        for _ in range(2):  # an old connection, and one that is never made
            with pytest.raises(StoreError, match="no answer in time"):
                await store.write(a_batch(range(5, 10)), at(1, 2))
    await store.write(a_batch(range(5, 10)), at(1, 2))
    assert sums(database) == summed(10)


async def test_a_database_that_is_read_only_is_a_store_error_until_it_can_be_written(
    postgres: Database, store_of: MakeStore
) -> None:
    store = store_of(postgres)
    await store.write(a_batch(range(5)), at(1, 1))
    postgres.server.do(f"ALTER DATABASE {postgres.name} SET default_transaction_read_only = on")
    postgres.cut()
    for _ in range(2):
        with pytest.raises(StoreError):
            await store.write(a_batch(range(5, 8)), at(1, 2))
    with pytest.raises(StoreError, match="read-only"):
        await store.write(a_batch(range(5, 8)), at(1, 2))
    postgres.server.do(f"ALTER DATABASE {postgres.name} RESET default_transaction_read_only")
    await store.write(a_batch(range(5, 8)), at(1, 2))
    assert sums(postgres) == summed(8)


async def test_a_lock_that_somebody_keeps_is_a_store_error_until_it_is_free(
    postgres: Database, store_of: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BEGIN", connection.BEGIN.replace("lock_timeout = '20s'", "lock_timeout = 100"))
    store = store_of(postgres)
    await store.write(a_batch(range(5)), at(1, 1))
    other = await asyncpg.connect(postgres.dsn)
    await other.execute("BEGIN; LOCK TABLE usage_hours")
    for _ in range(2):
        with pytest.raises(StoreError, match="lock timeout"):
            await store.write(a_batch(range(5, 8)), at(1, 2))
    await other.close()
    await store.write(a_batch(range(5, 8)), at(1, 2))
    assert sums(postgres) == summed(8)


@pytest.mark.system
async def test_a_deadlock_is_a_store_error_and_the_same_call_again_is_right(
    postgres: Database, store_of: MakeStore
) -> None:
    store = store_of(postgres)
    await store.write(a_batch(range(5)), at(1, 1))
    other = await asyncpg.connect(postgres.dsn)
    await other.execute("SET deadlock_timeout = '1min'; BEGIN; UPDATE checkpoints SET segment = segment")
    writing = asyncio.create_task(store.write(a_batch(range(5, 8)), at(1, 2)))
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    await asyncio.to_thread(eventually, "the store waits", lambda: postgres.value(waits), bool, 5)
    circle = asyncio.create_task(other.execute("UPDATE usage_hours SET requests = requests"))
    with pytest.raises(StoreError, match="deadlock detected"):
        await writing
    await circle
    await other.execute("ROLLBACK")
    await other.close()
    await store.write(a_batch(range(5, 8)), at(1, 2))
    assert sums(postgres) == summed(8)


async def test_a_nul_in_a_name_is_marked_and_the_row_is_there(postgres: Database, store_of: MakeStore) -> None:
    store = store_of(postgres)
    batch = a_batch(range(3))
    batch.requests[1].tenant = batch.attempts[1].tenant = "a\0b"
    await store.write(batch, at(1, 1))
    await store.write(batch, at(1, 1))
    assert batch.requests[1].tenant == "a\0b"  # nobody else's record is touched
    assert postgres.value("SELECT tenant FROM requests WHERE tenant <> 'acme'") == "a\N{REPLACEMENT CHARACTER}b"
    assert sums(postgres) == summed(3)


async def test_a_constraint_of_somebody_else_is_waited_for_and_told_without_the_row(
    postgres: Database, store_of: MakeStore
) -> None:
    store = store_of(postgres)
    await store.read_checkpoint()
    postgres.do("ALTER TABLE requests ADD CONSTRAINT of_theirs CHECK (tenant <> 'acme')")
    with pytest.raises(StoreError, match="of_theirs") as caught:
        await store.write(a_batch(range(2)), at(1, 1))
    assert "support_summary" not in str(caught.value)
    postgres.do("ALTER TABLE requests DROP CONSTRAINT of_theirs")
    await store.write(a_batch(range(2)), at(1, 1))
    assert sums(postgres) == summed(2)


BEYOND = 2**63
REJECTED: list[tuple[str, Any]] = [
    ("started_ns", BEYOND),
    ("duration_us", -BEYOND - 1),
    ("id", "no id"),
    ("id", "0197743a-no-id-at-all-but-as-long-as-one"),
]


@pytest.mark.parametrize(("name", "value"), REJECTED)
async def test_a_row_that_no_table_holds_is_rejected_and_the_others_are_not(
    postgres: Database, store_of: MakeStore, name: str, value: Any
) -> None:
    store = store_of(postgres)
    batch = a_batch(range(3))
    setattr(batch.requests[1], name, value)
    with pytest.raises(RejectedError):
        await store.write(batch, at(1, 1))
    assert await store.read_checkpoint() == Checkpoint()
    del batch.requests[1], batch.attempts[1]
    await store.write(batch, at(1, 1))
    assert sums(postgres) == summed(2)


async def test_a_position_that_no_column_holds_is_rejected(postgres: Database, store_of: MakeStore) -> None:
    store = store_of(postgres)
    with pytest.raises(RejectedError):
        await store.write(Batch(), Checkpoint(positions={"0-1-1": Position(1, BEYOND, 0, 0)}))
    await store.write(a_batch(range(1)), at(1, 1))


async def test_a_sum_that_no_column_holds_stops_nothing(postgres: Database, store_of: MakeStore) -> None:
    """A provider may report any number."""
    store = store_of(postgres)
    for number in range(3):
        batch = a_batch(range(2 * number, 2 * number + 2))
        for row in batch.attempts:
            row.input_tokens = BEYOND - 1
        await store.write(batch, at(1, number))
    assert postgres.value("SELECT max(input_tokens)::text FROM usage_hours") == str(BEYOND - 1)
    assert sums(postgres)["attempts"] == 6


@pytest.mark.system
async def test_a_full_disk_stores_nothing_of_a_batch_and_goes_on_when_there_is_room(
    postgreses: PostgresHouse, store_of: MakeStore
) -> None:
    if not can_mount():
        pytest.skip("a small disk takes the right to mount one")
    server = postgreses.server(room="120m")
    database = server.database()
    store = store_of(database)
    await store.write(a_batch(range(1000)), at(1, 1))
    ballast = server.directory / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    failed, written = 0, 1000
    while failed < 3:
        try:
            await store.write(a_batch(range(written, written + 1000)), at(1, written))
            written += 1000
        except StoreError:
            failed += 1
    ballast.unlink()
    if not server.alive:  # for want of room in its own log it may have ended
        server.start()
    await asyncio.to_thread(eventually, "it answers", lambda: server.answers, bool, 20)
    await store.write(a_batch(range(written, written + 1000)), at(1, written))
    assert sums(database) == summed(written + 1000)
    assert database.value("SELECT count(*) FROM requests") == written + 1000
