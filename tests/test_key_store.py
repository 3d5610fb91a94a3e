"""Keys in a database: changes are numbered, ends only come nearer, and what is wrong with it is a KeyStoreError.

The first part is what both databases promise, the second SQLite's alone. PostgreSQL's is test_postgres_keys.py.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgegw.keys.making import make_key
from edgegw.keys.place import key_store, named_place
from edgegw.keys.sqlite import SqliteKeys
from edgegw.keys.store import Changes, KeyStore, KeyStoreError
from edgegw.keys.table import Key
from edgegw.ledger.schema import migrations
from edgegw.settings import OwnLimits

Open = Callable[[], KeyStore]


def new_key(tenant: str = "acme", **fields: object) -> Key:
    key, _ = make_key(tenant, "ci", 1_000, None, ("beta", "*"), OwnLimits(requests_per_minute=7, tokens_per_day=9))
    return replace(key, **fields)


def sqlite_keys(path: Path, busy_s: float = 5.0) -> SqliteKeys:
    return SqliteKeys(path, migrations("sqlite"), lambda: 1, busy_s)


async def write_and_close(path: Path, *keys: Key) -> None:
    store = sqlite_keys(path)
    await store.write(keys)
    await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books.db"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.system)])
def opens(request: pytest.FixtureRequest, path: Path) -> Open:
    """Opens a store in the database of the test, as often as it is called."""
    place = str(path) if request.param == "sqlite" else request.getfixturevalue("postgres").dsn
    return lambda: key_store(named_place(place), lambda: 1, 5.0)


@pytest.fixture
async def store(opens: Open) -> AsyncIterator[KeyStore]:
    store = opens()
    yield store
    await store.close()


@pytest.fixture
async def elsewhere(opens: Open) -> AsyncIterator[KeyStore]:
    """Another process's."""
    store = opens()
    yield store
    await store.close()


async def test_a_key_comes_back_as_it_went_in(store: KeyStore, elsewhere: KeyStore) -> None:
    keys = (new_key(), new_key("é", name="", acts_for=(), limits=OwnLimits(), expires_ns=5, revoked_ns=6))
    await elsewhere.write(keys)
    assert await store.changes(0) == Changes(keys, 2, True)
    assert await store.changes(2) == Changes((), 2, False)


async def test_a_reader_sees_what_another_process_changed(store: KeyStore, elsewhere: KeyStore) -> None:
    assert await store.changes(0) == Changes((), 0, True)
    one, two = new_key(), new_key()
    await elsewhere.write([one])
    await elsewhere.write([two])
    assert await store.changes(0) == Changes((one, two), 2, False)
    await elsewhere.write([replace(one, revoked_ns=77)])
    changes = await store.changes(2)
    assert (changes.version, changes.whole) == (3, False)
    assert [(key.id, key.revoked_ns) for key in changes.keys] == [(one.id, 77)]


ENDS = st.none() | st.integers(1, 100)


def test_an_end_that_is_set_only_comes_nearer(opens: Open) -> None:
    with asyncio.Runner() as runner:
        store = opens()

        @given(st.lists(st.tuples(ENDS, ENDS), min_size=1, max_size=8))
        def law(ends: list[tuple[int | None, int | None]]) -> None:
            fresh = new_key()
            before = runner.run(store.changes(0)).version
            for expires_ns, revoked_ns in ends:
                runner.run(store.write([replace(fresh, expires_ns=expires_ns, revoked_ns=revoked_ns)]))
            (key,) = runner.run(store.changes(before)).keys
            assert key.expires_ns == min((end for end, _ in ends if end is not None), default=None)
            assert key.revoked_ns == min((end for _, end in ends if end is not None), default=None)

        law()
        runner.run(store.close())


async def test_nothing_of_a_key_but_its_limits_and_its_ends_can_be_changed(store: KeyStore) -> None:
    key, limits = new_key(), OwnLimits(tokens_per_day=7)
    await store.write([key])
    await store.write([replace(key, tenant="other", digest=bytes(32), acts_for=("*",), limits=limits)])
    assert (await store.changes(0)).keys == (replace(key, limits=limits),)


async def test_all_or_none_are_written(store: KeyStore) -> None:
    key = new_key()
    await store.write([key])
    with pytest.raises(KeyStoreError, match="digest"):
        await store.write([new_key(), new_key(digest=key.digest)])
    assert (await store.changes(0)).keys == (key,)


async def test_what_no_column_holds_is_not_written(store: KeyStore) -> None:
    for wrong in (new_key("\ud800"), new_key(expires_ns=2**63)):
        with pytest.raises(KeyStoreError):
            await store.write([wrong])
    assert (await store.changes(0)).keys == ()


async def test_numbers_become_visible_in_their_order(opens: Open, store: KeyStore) -> None:
    """Whoever reads on from the last number that it knows sees every change, however many write at once."""
    writers = [opens() for _ in range(8)]
    await asyncio.gather(*(writer.changes(0) for writer in writers))
    known: set[str] = set()
    version = (await store.changes(0)).version

    async def write(writer: KeyStore) -> list[str]:
        keys = [new_key() for _ in range(20)]
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            await writer.write([first, second])
        return [key.id for key in keys]

    writing = asyncio.gather(*map(write, writers))
    while True:
        last = writing.done()
        changes = await store.changes(version)
        assert not changes.whole
        known |= {key.id for key in changes.keys}
        version = changes.version
        if last:
            break
    assert known == {key for keys in await writing for key in keys}
    assert version == 160
    for writer in writers:
        await writer.close()


# -- SQLite's --


@pytest.fixture
async def reader(path: Path) -> AsyncIterator[SqliteKeys]:
    store = sqlite_keys(path, 0.05)
    yield store
    await store.close()


@pytest.fixture
async def writer(path: Path) -> AsyncIterator[SqliteKeys]:
    store = sqlite_keys(path)
    yield store
    await store.close()


async def test_another_file_in_its_place_is_read_as_a_whole(reader: SqliteKeys, path: Path, tmp_path: Path) -> None:
    await write_and_close(path, new_key(), new_key())
    assert (await reader.changes(0)).version == 2
    restored = (new_key(), new_key(), new_key())
    await write_and_close(tmp_path / "restored.db", *restored)
    for ending in ("-wal", "-shm"):
        os.unlink(f"{path}{ending}")
    os.replace(tmp_path / "restored.db", path)
    assert await reader.changes(2) == Changes(restored, 3, True)


async def test_a_locked_database_is_told_and_read_afterwards(reader: SqliteKeys, path: Path) -> None:
    await write_and_close(path, new_key())
    with closing(sqlite3.connect(path, isolation_level=None)) as rude:
        rude.execute("PRAGMA locking_mode = EXCLUSIVE")
        rude.execute("BEGIN EXCLUSIVE")
        with pytest.raises(KeyStoreError, match="locked"):
            await reader.changes(0)
        rude.execute("COMMIT")
    assert (await reader.changes(0)).version == 1


async def test_a_writer_in_the_midst_of_its_work_keeps_no_reader_waiting(
    reader: SqliteKeys, writer: SqliteKeys, path: Path
) -> None:
    await writer.write([new_key()])
    with closing(sqlite3.connect(path, isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        busy.execute("DELETE FROM api_keys")
        assert len((await reader.changes(0)).keys) == 1
        busy.execute("ROLLBACK")


async def test_what_is_no_database(reader: SqliteKeys, path: Path) -> None:
    with open(path, "wb") as file:  # noqa: ASYNC230
        file.write(b"not a database, but long enough to look like one " * 30)
    with pytest.raises(KeyStoreError, match=r"books\.db"):
        await reader.changes(0)
    os.unlink(path)
    assert await reader.changes(0) == Changes((), 0, True)


async def test_a_row_that_nobody_can_read(reader: SqliteKeys, writer: SqliteKeys, path: Path) -> None:
    await writer.write([new_key()])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE api_keys SET acts_for = 'beta'")
    with pytest.raises(KeyStoreError):
        await reader.changes(0)


async def test_a_newer_schema_is_left_alone(reader: SqliteKeys, writer: SqliteKeys, path: Path) -> None:
    await writer.write([new_key()])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (9999, 'later', 1)")
    with pytest.raises(KeyStoreError, match="newer edgegw"):
        await reader.changes(0)


def test_the_credential_is_nowhere_in_the_file(path: Path) -> None:
    key, credential = make_key("acme", "ci", 1, None, (), OwnLimits())
    asyncio.run(write_and_close(path, key))
    content = path.read_bytes()
    assert key.id.encode() in content
    assert credential[12:].encode() not in content
    assert path.stat().st_mode & 0o777 == 0o600
