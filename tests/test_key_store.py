"""Keys in SQLite: changes are numbered, ends only come nearer, and a file that is wrong is a KeyStoreError."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgegw.keys.making import make_key
from edgegw.keys.sqlite import SqliteKeys
from edgegw.keys.store import Changes, KeyStoreError
from edgegw.keys.table import Key
from edgegw.ledger.schema import migrations
from edgegw.settings import OwnLimits


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


async def test_a_key_comes_back_as_it_went_in(reader: SqliteKeys, writer: SqliteKeys) -> None:
    keys = (new_key(), new_key("é", name="", acts_for=(), limits=OwnLimits(), expires_ns=5, revoked_ns=6))
    await writer.write(keys)
    assert await reader.changes(0) == Changes(keys, 2, True)
    assert await reader.changes(2) == Changes((), 2, False)


async def test_a_reader_sees_what_another_process_changed(reader: SqliteKeys, writer: SqliteKeys) -> None:
    assert await reader.changes(0) == Changes((), 0, True)
    one, two = new_key(), new_key()
    await writer.write([one])
    await writer.write([two])
    assert await reader.changes(0) == Changes((one, two), 2, False)
    await writer.write([replace(one, revoked_ns=77)])
    changes = await reader.changes(2)
    assert (changes.version, changes.whole) == (3, False)
    assert [(key.id, key.revoked_ns) for key in changes.keys] == [(one.id, 77)]


ENDS = st.none() | st.integers(1, 100)


def test_an_end_that_is_set_only_comes_nearer(path: Path) -> None:
    with asyncio.Runner() as runner:
        store = sqlite_keys(path)

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


async def test_nothing_of_a_key_but_its_limits_and_its_ends_can_be_changed(writer: SqliteKeys) -> None:
    key, limits = new_key(), OwnLimits(tokens_per_day=7)
    await writer.write([key])
    await writer.write([replace(key, tenant="other", digest=bytes(32), acts_for=("*",), limits=limits)])
    assert (await writer.changes(0)).keys == (replace(key, limits=limits),)


async def test_all_or_none_are_written(writer: SqliteKeys) -> None:
    key = new_key()
    await writer.write([key])
    with pytest.raises(KeyStoreError, match="digest"):
        await writer.write([new_key(), new_key(digest=key.digest)])
    assert (await writer.changes(0)).keys == (key,)


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
