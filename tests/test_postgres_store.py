"""The books in PostgreSQL: all of a batch or nothing, once, and again after whatever was wrong is right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ledger_traces import JOURNAL_ID, WALL_NS, a_batch, at, make_attempt, make_exchange
from postgres_rig import Database

from edgegw.clock import ManualClock
from edgegw.ledger.encoding import encode_attempt, encode_begin, encode_try
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.record import ATTEMPT_COLUMNS, REQUEST_COLUMNS, AttemptRecord, Begin, Try, decoder
from edgegw.ledger.schema import migrations
from edgegw.ledger.store import Batch, Checkpoint, OpenExchange, Position
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
    decode = decoder()
    exchange = make_exchange(1)
    attempt = make_attempt(exchange)
    begin, finished = decode(encode_begin(exchange, attempt, 1)), decode(encode_attempt(exchange, attempt, 2))
    retry = decode(encode_try(exchange, make_attempt(exchange, "retry", reason="upstream_cut"), 3))
    assert isinstance(begin, Begin)
    assert isinstance(retry, Try)
    assert isinstance(finished, AttemptRecord)
    opened = {
        "first": OpenExchange("0-1-1", begin, begin),
        "second": OpenExchange("0-1-1", begin, retry, finished, None, "prices of 2026"),
        "third": OpenExchange("0-2-2", begin, None, finished),
    }
    positions = {"0-1-1": Position(3, 4, 5, 6), "0-2-2": Position(1, 64, 0, 0), "0-3-3": Position(1, 2, 3, 4, 5, 6, 7)}
    await store_of(postgres).write(Batch(), Checkpoint(positions, opened))
    store = store_of(postgres)
    for expected in opened.values():
        expected.stored = True
    assert await store.read_checkpoint() == Checkpoint(positions, opened)
    assert await store_of(postgres, "another").read_checkpoint() == Checkpoint()
    await store.write(Batch(), Checkpoint({"0-1-1": Position(9, 9, 9, 9)}, {}, ["first", "third"], ["0-2-2", "0-3-3"]))
    assert await store.read_checkpoint() == Checkpoint({"0-1-1": Position(9, 9, 9, 9)}, {"second": opened["second"]})
    evidence = "SELECT life, gaps, torn, unreadable FROM checkpoints WHERE ended"
    assert postgres.rows(evidence) == [{"life": "0-3-3", "gaps": 5, "torn": 6, "unreadable": 7}]
