"""Keys in a PostgreSQL that is cut off, stopped, frozen or wrong: a KeyStoreError, and everything anew afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from postgres_rig import Database, Postgres, PostgresHouse
from test_key_store import new_key

from edgegw.keys import postgres as keys_postgres
from edgegw.keys.place import key_store, named_place
from edgegw.keys.store import Changes, KeyStore, KeyStoreError

pytestmark = pytest.mark.system

PASSWORD = "hush-hush"


def keys_at(dsn: str) -> KeyStore:
    return key_store(named_place(dsn), lambda: 1)


async def after_a_failure(store: KeyStore) -> Changes:
    """What the second look brings, or the first, when it was known by then that the connection is gone."""
    with contextlib.suppress(KeyStoreError):
        return await store.changes(1)
    return await store.changes(1)


@pytest.fixture
async def store(postgres: Database) -> AsyncIterator[KeyStore]:
    store = keys_at(postgres.dsn)
    yield store
    await store.close()


async def test_several_that_make_the_tables_at_once(postgres: Database) -> None:
    stores = [keys_at(postgres.dsn) for _ in range(6)]
    assert await asyncio.gather(*(store.changes(0) for store in stores)) == [Changes((), 0, True)] * 6
    for store in stores:
        await store.close()


async def test_a_connection_that_is_cut_is_made_anew_and_everything_is_read(
    store: KeyStore, postgres: Database
) -> None:
    key = new_key()
    await store.write([key])
    assert await store.changes(1) == Changes((key,), 1, True)
    assert await store.changes(1) == Changes((), 1, False)
    await asyncio.to_thread(postgres.cut)
    assert await after_a_failure(store) == Changes((key,), 1, True)


async def test_a_writer_that_has_not_committed_keeps_no_reader_waiting(store: KeyStore, postgres: Database) -> None:
    await store.write([new_key()])
    await store.changes(0)
    lock = f"SELECT pg_advisory_xact_lock({keys_postgres.LOCK_KEYS})"
    holding = asyncio.create_task(
        asyncio.to_thread(postgres.do, f"BEGIN; {lock}; DELETE FROM api_keys; SELECT pg_sleep(1.5); ROLLBACK")
    )
    seen_s = time.monotonic() + 0.5
    while time.monotonic() < seen_s:
        assert await store.changes(1) == Changes((), 1, False)
        await asyncio.sleep(0.05)
    assert not holding.done()
    second, begun_s = new_key(), time.monotonic()
    await store.write([second])
    assert time.monotonic() - begun_s > 0.5, "who writes waits its turn"
    await holding
    assert (await store.changes(1)).keys == (second,)


async def test_a_default_isolation_that_sees_old_numbers_changes_nothing(store: KeyStore, postgres: Database) -> None:
    await store.changes(0)
    await asyncio.to_thread(
        postgres.do, f"ALTER DATABASE {postgres.name} SET default_transaction_isolation = 'repeatable read'"
    )
    others = [keys_at(postgres.dsn) for _ in range(5)]
    keys = [new_key() for _ in others]
    await asyncio.gather(*(other.write([key]) for other, key in zip(others, keys, strict=True)))
    changes = await store.changes(0)
    assert changes.version == 5
    assert {key.id for key in changes.keys} == {key.id for key in keys}
    for other in others:
        await other.close()


async def test_a_row_that_nobody_can_read(store: KeyStore, postgres: Database) -> None:
    await store.write([new_key()])
    await asyncio.to_thread(postgres.do, "UPDATE api_keys SET acts_for = 'beta'")
    with pytest.raises(KeyStoreError):
        await store.changes(0)


async def test_a_newer_schema_is_left_alone(store: KeyStore, postgres: Database) -> None:
    await store.write([new_key()])
    await asyncio.to_thread(postgres.do, "INSERT INTO schema_migrations VALUES (9999, 'later', 1)")
    await asyncio.to_thread(postgres.cut)
    with pytest.raises(KeyStoreError, match="newer edgegw"):
        await after_a_failure(store)


@pytest.fixture
def server(postgreses: PostgresHouse) -> Postgres:
    return postgreses.server()


async def test_a_database_that_stops_and_one_that_freezes(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_postgres, "LOOK_TIMEOUT_S", 0.3)
    store = keys_at(f"{server.dsn()}?connect_timeout=1")
    key = new_key()
    await store.write([key])
    await store.changes(0)
    with server.frozen():
        begun_s = time.monotonic()
        with pytest.raises(KeyStoreError, match="no answer in time"):
            await store.changes(1)
        with pytest.raises(KeyStoreError):
            await store.changes(1)  # a connection that the kernel takes, and nobody answers
        assert time.monotonic() - begun_s < 3
    assert await store.changes(1) == Changes((key,), 1, True)
    await asyncio.to_thread(server.stop)
    for _ in range(3):
        with pytest.raises(KeyStoreError):
            await store.changes(1)
    await asyncio.to_thread(server.start)
    assert await store.changes(1) == Changes((key,), 1, True)
    await store.close()


async def test_what_is_said_holds_no_password(server: Postgres) -> None:
    await asyncio.to_thread(server.stop)
    dsn = server.dsn().replace("postgres@", f"postgres:{PASSWORD}@")
    assert PASSWORD in dsn
    store = keys_at(dsn)
    with pytest.raises(KeyStoreError) as caught:
        await store.changes(0)
    assert PASSWORD not in str(caught.value)
    await store.close()
