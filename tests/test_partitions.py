"""Days as ranges of ids, and their partitions in a PostgreSQL: made ahead, made by many at once, dropped when old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_traces import JOURNAL_ID, WALL_NS, a_batch, at
from postgres_rig import Database

from edgegw.clock import ManualClock, uuid7
from edgegw.ledger.postgres.connection import Postgres, Session
from edgegw.ledger.postgres.days import (
    DAYS_AROUND_MAX,
    TABLES,
    bounds,
    day_of_ns,
    day_of_partition,
    days_of,
    partition_of,
)
from edgegw.ledger.postgres.partitions import DOOMED, days_there, drop_days_before, make_days
from edgegw.ledger.postgres.schema import migrate
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.postgres.upkeep import DAYS_AHEAD, PostgresUpkeep, compact
from edgegw.ledger.schema import migrations
from edgegw.ledger.store import RejectedError, StoreError
from edgegw.settings import parse_postgres

KNOWN = migrations("postgres")
TODAY = day_of_ns(WALL_NS)
DAY_NS = 86_400_000_000_000
HOUR = WALL_NS // 3_600_000_000_000
BITS = st.integers(0, 2**74 - 1)
MOMENT_NS = st.integers(0, 2**62)


@given(MOMENT_NS, BITS)
def test_an_id_is_within_the_bounds_of_its_day(wall_ns: int, bits: int) -> None:
    id_ = uuid7(wall_ns, bits)
    day = day_of_ns(wall_ns)
    assert day in days_of([id_]) <= {day, day + 1}
    first, end = bounds(day)
    assert first <= id_ < end


@given(st.integers(0, 100_000), st.sampled_from(TABLES))
def test_the_name_of_a_partition_says_its_day(day: int, table: str) -> None:
    assert day_of_partition(partition_of(table, day)) == day


@pytest.mark.parametrize(
    "name", ["requests", "requests_2026", "requests_20260230", "other_20260101", "requests_20260101x"]
)
def test_other_tables_are_no_partitions(name: str) -> None:
    assert day_of_partition(name) is None


@pytest.mark.parametrize("id_", ["", "0197", "not an id at all", "0197g000-0000-7000-8000-000000000000"])
def test_what_is_no_id_has_no_day(id_: str) -> None:
    with pytest.raises(ValueError, match="begins no id"):
        days_of([id_])


def test_two_days_meet_without_a_gap() -> None:
    assert bounds(TODAY)[1] == bounds(TODAY + 1)[0]


@asynccontextmanager
async def session_of(database: Database) -> AsyncIterator[Session]:
    session = await asyncpg.connect(database.dsn, statement_cache_size=0)
    try:
        await migrate(session, KNOWN, WALL_NS)
        yield session
    finally:
        await session.close()


def partitions(database: Database) -> list[str]:
    query = (
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent IN ('requests'::regclass, "
        "'provider_attempts'::regclass) ORDER BY 1"
    )
    return [row["name"] for row in database.rows(query)]


def of_days(days: range) -> list[str]:
    return sorted(partition_of(table, day) for table in TABLES for day in days)


def a_store(database: Database, clock: ManualClock, journal: str = JOURNAL_ID) -> PostgresStore:
    return PostgresStore(parse_postgres(database.dsn), KNOWN, clock, journal)


def an_upkeep(database: Database, retention_s: float | None = None) -> PostgresUpkeep:
    return PostgresUpkeep(parse_postgres(database.dsn), KNOWN, ManualClock(wall_ns=WALL_NS), retention_s)


async def test_partitions_are_made_with_the_indexes_of_their_table(postgres: Database) -> None:
    async with session_of(postgres) as session:
        assert await days_there(session) == set()
        await make_days(session, [TODAY, TODAY + 1])
        await make_days(session, [TODAY + 1])  # there already
        assert await days_there(session) == {TODAY, TODAY + 1}
    assert partitions(postgres) == of_days(range(TODAY, TODAY + 2))
    left = (
        "SELECT c.relname FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid WHERE NOT c.relispartition "
        "AND i.indrelid = ANY (SELECT inhrelid FROM pg_inherits)"
    )
    assert postgres.rows(left) == []  # every index is a part of one of the whole table


async def test_many_make_the_same_day_at_once(postgres: Database) -> None:
    async with session_of(postgres):
        pass

    async def one() -> None:
        async with session_of(postgres) as session:
            await make_days(session, range(TODAY, TODAY + 3))

    await asyncio.gather(*(one() for _ in range(6)))
    assert partitions(postgres) == of_days(range(TODAY, TODAY + 3))


async def test_a_batch_over_midnight_finds_its_days(postgres: Database) -> None:
    midnight = (TODAY + 1) * DAY_NS
    number = (midnight - WALL_NS) // 1_000_000  # of the exchange that starts then
    store = a_store(postgres, ManualClock(wall_ns=WALL_NS))
    await store.write(a_batch(range(number - 20, number + 20)), at(1, 1))
    await store.close()
    for day in (TODAY, TODAY + 1):
        for table in TABLES:
            assert postgres.value(f"SELECT count(*) FROM {partition_of(table, day)}") == 20
    first = f"first_request_id(to_timestamp({midnight // 1_000_000_000}))"
    assert postgres.value(f"SELECT count(*) FROM requests WHERE id >= {first}") == 20
    plan = postgres.do(f"EXPLAIN SELECT * FROM requests WHERE id >= {first}")
    assert partition_of("requests", TODAY + 1) in plan
    assert partition_of("requests", TODAY) not in plan  # it is not even looked at


async def test_rows_of_a_clock_that_was_wrong_make_no_partitions(postgres: Database) -> None:
    store = a_store(postgres, ManualClock(wall_ns=WALL_NS))
    await store.read_checkpoint()
    for days in (-DAYS_AROUND_MAX - 1, DAYS_AROUND_MAX + 1):
        far = a_batch(range(days * 86_400_000, days * 86_400_000 + 1))
        with pytest.raises(RejectedError, match="400 days from today"):
            await store.write(far, at(1, 1))
    assert partitions(postgres) == []
    await store.write(a_batch(range(1)), at(1, 1))
    await store.close()


async def test_a_partition_that_somebody_dropped_is_made_again(postgres: Database) -> None:
    store = a_store(postgres, ManualClock(wall_ns=WALL_NS))
    await store.write(a_batch(range(3)), at(1, 1))
    postgres.do(f"DROP TABLE {partition_of('requests', TODAY)}")
    with pytest.raises(StoreError, match="no partition"):
        await store.write(a_batch(range(3, 5)), at(1, 2))
    await store.write(a_batch(range(3, 5)), at(1, 2))
    await store.close()
    assert postgres.value("SELECT count(*) FROM requests") == 2
    assert postgres.value("SELECT count(*) FROM provider_attempts") == 5


async def test_upkeep_makes_days_ahead_and_drops_old_ones(postgres: Database) -> None:
    async with session_of(postgres) as session:
        await make_days(session, range(TODAY - 10, TODAY))
    upkeep = an_upkeep(postgres)
    await upkeep.keep(WALL_NS)
    assert partitions(postgres) == of_days(range(TODAY - 10, TODAY + DAYS_AHEAD + 1))
    upkeep = an_upkeep(postgres, retention_s=3 * 86400)
    await upkeep.keep(WALL_NS)
    assert partitions(postgres) == of_days(range(TODAY - 3, TODAY + DAYS_AHEAD + 1))
    assert postgres.value("SELECT kept_since_ns FROM retention") == (TODAY - 3) * DAY_NS
    assert postgres.value(f"SELECT count(*) FROM pg_class WHERE relname = '{partition_of('requests', TODAY - 4)}'") == 0
    await upkeep.keep(WALL_NS)  # nothing to do


async def test_many_may_drop_the_same_days_at_once(postgres: Database) -> None:
    async with session_of(postgres) as session:
        await make_days(session, range(TODAY - 9, TODAY))
    await asyncio.gather(*(an_upkeep(postgres, retention_s=86400).keep(WALL_NS) for _ in range(4)))
    await an_upkeep(postgres, retention_s=86400).keep(WALL_NS)
    assert partitions(postgres) == of_days(range(TODAY - 1, TODAY + DAYS_AHEAD + 1))


async def test_a_drop_that_was_interrupted_is_finished(postgres: Database) -> None:
    orphan, pending = partition_of("requests", TODAY - 6), partition_of("requests", TODAY - 5)
    async with session_of(postgres) as session:
        await make_days(session, range(TODAY - 7, TODAY))
        await session.execute(f"COMMENT ON TABLE {orphan} IS '{DOOMED}'")
        await session.execute(f"ALTER TABLE requests DETACH PARTITION {orphan}")
        # Another session that looks at the table keeps the detachment from its end.
        async with session_of(postgres) as other:
            await other.execute("BEGIN; SELECT count(*) FROM requests")
            with pytest.raises(TimeoutError):
                await session.execute(f"ALTER TABLE requests DETACH PARTITION {pending} CONCURRENTLY", timeout=0.5)
            assert TODAY - 5 not in await days_there(session)
    async with session_of(postgres) as session:
        await drop_days_before(session, TODAY - 3)
    assert partitions(postgres) == of_days(range(TODAY - 3, TODAY))
    assert postgres.value(f"SELECT count(*) FROM pg_class WHERE relname IN ('{orphan}', '{pending}')") == 0


async def test_a_table_that_was_detached_to_be_kept_is_left_alone(postgres: Database) -> None:
    async with session_of(postgres) as session:
        await make_days(session, range(TODAY - 5, TODAY))
        await session.execute(f"ALTER TABLE requests DETACH PARTITION {partition_of('requests', TODAY - 5)}")
        await drop_days_before(session, TODAY)
    assert postgres.value(f"SELECT count(*) FROM {partition_of('requests', TODAY - 5)}") == 0


async def test_lines_of_past_hours_are_merged_and_the_sums_stay(postgres: Database) -> None:
    clock = ManualClock(wall_ns=WALL_NS)
    for number, journal in enumerate(("aa", "bb", "cc")):
        store = a_store(postgres, clock, journal)
        await store.write(a_batch(range(number * 10, number * 10 + 10)), at(1, 1))
        await store.close()
    query = (
        "SELECT sum(requests) AS requests, sum(input_tokens) AS input, count(*) AS lines, min(journal) AS journal "
        "FROM usage_hours"
    )
    before = postgres.rows(query)[0]
    assert before == {"requests": 30, "input": 300, "lines": 6, "journal": "aa"}
    async with session_of(postgres) as session:
        assert await compact(session, HOUR) == 0  # the hour is not over
        assert await compact(session, HOUR + 1) == 6
    assert postgres.rows(query)[0] == before | {"lines": 2, "journal": ""}
    store = a_store(postgres, clock, "aa")  # one who is late
    await store.write(a_batch(range(100, 105)), at(1, 1))
    await store.close()
    async with session_of(postgres) as session:
        assert await compact(session, HOUR + 1) == 2
    assert postgres.rows(query)[0] == {"requests": 35, "input": 350, "lines": 2, "journal": ""}


async def test_upkeep_leaves_no_connection_behind(postgres: Database) -> None:
    await an_upkeep(postgres).keep(WALL_NS)
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'edgegw'"
    assert postgres.value(ours) == 0


async def test_the_shell_gives_a_connection_up_when_its_work_is_cancelled(postgres: Database) -> None:
    shell = Postgres(parse_postgres(postgres.dsn))
    task = asyncio.create_task(shell.run(lambda session: session.execute("SELECT pg_sleep(60)")))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await shell.run(lambda session: session.fetchval("SELECT 1")) == 1
    await shell.close()
