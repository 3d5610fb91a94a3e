"""The books in SQLite: all of a batch or nothing, once, and again after whatever was wrong is right."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from ledger_traces import (
    a_batch,
    at,
    books,
    open_in_every_way,
    open_journal,
    play,
    ship_all,
    sqlite_store,
    states,
)

from edgegw.clock import ManualClock
from edgegw.ledger import schema, sqlite
from edgegw.ledger.record import ATTEMPT_COLUMNS, REQUEST_COLUMNS, attempt_row, request_row
from edgegw.ledger.schema import Migration, migrations, statements
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.store import Batch, Checkpoint, Position, RejectedError, SchemaTooNewError, StoreError

KNOWN = len(migrations("sqlite"))


def table_columns(path: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


async def test_the_fields_of_the_records_are_the_columns(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "books.db")
    await store.read_checkpoint()
    await store.close()
    assert table_columns(tmp_path / "books.db", "requests") == list(REQUEST_COLUMNS)
    assert table_columns(tmp_path / "books.db", "provider_attempts") == list(ATTEMPT_COLUMNS)


async def test_a_batch_and_its_checkpoint_are_written_together_and_once(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    batch = a_batch(range(10))
    await store.write(batch, at(1, 100))
    first = books(path)
    batch.requests[0].status = 500  # told again, differently: what is stored stays
    await store.write(batch, at(1, 100))
    assert books(path) == first
    assert len(first[0]) == len(first[1]) == 10
    assert (await store.read_checkpoint()).positions == at(1, 100).positions
    await store.close()


@pytest.mark.parametrize("count", [1, 99, 100, 250])
async def test_every_value_of_a_row_is_stored_as_it_is(tmp_path: Path, count: int) -> None:
    """Also those that all rows of a batch have alike, have not, or but for one have alike."""
    batch = a_batch(range(count))
    for number, (end, attempt) in enumerate(zip(batch.requests, batch.attempts, strict=True)):
        end.stream, end.estimated, end.cost_usd_micro = True, number % 2 == 0, 2**63 - 1
        end.input_tokens = None if number == count // 2 else 7
        end.tenant = attempt.tenant = "o'brien"
        end.session_id = None if number else "\0'); --"
        attempt.reused, attempt.output_tokens, attempt.finish_reason = False, 0 if number else None, None
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await store.write(batch, Checkpoint())
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        for table, columns, rows in (
            ("requests", REQUEST_COLUMNS, [request_row(end) for end in batch.requests]),
            ("provider_attempts", ATTEMPT_COLUMNS, [attempt_row(attempt) for attempt in batch.attempts]),
        ):
            query = f"SELECT {', '.join(columns)} FROM {table} ORDER BY rowid"
            assert connection.execute(query).fetchall() == rows


async def test_the_target_of_an_attempt_is_provider_and_model(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "books.db")
    await store.write(a_batch(range(1)), Checkpoint())
    await store.close()
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        assert connection.execute("SELECT target FROM provider_attempts").fetchall() == [("openai/gpt-5-mini",)]


async def test_a_checkpoint_comes_back_as_it_was_told(tmp_path: Path) -> None:
    told = open_in_every_way()
    store = sqlite_store(tmp_path / "books.db")
    await store.write(Batch(), told)
    await store.close()
    store = sqlite_store(tmp_path / "books.db")
    read = await store.read_checkpoint()
    for expected in told.opened.values():
        expected.stored = True
    assert read == told
    left = {"0-1-1": Position(9, 9, 9, 9)}
    await store.write(Batch(), Checkpoint(left, {}, ["first", "third"], ["0-2-2", "0-3-3"]))
    assert await store.read_checkpoint() == Checkpoint(left, {"second": told.opened["second"]})
    await store.close()


async def test_a_busy_database_is_a_store_error_until_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await store.write(a_batch(range(5)), at(1, 10))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(StoreError, match="locked"):
                await store.write(a_batch(range(5, 10)), at(1, 20))
        other.execute("ROLLBACK")
    await store.write(a_batch(range(5, 10)), at(1, 20))
    assert len(states(path)) == 10
    await store.close()


async def test_a_full_disk_stores_nothing_of_the_batch_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    store = sqlite_store(path, pages_max=20)
    await store.write(a_batch(range(5)), at(1, 10))
    for _ in range(2):
        assert (await store.read_checkpoint()).positions == at(1, 10).positions
        with pytest.raises(StoreError, match="full"):
            await store.write(a_batch(range(5, 2000)), at(1, 20))
        assert len(states(path)) == 5
    store.pages_max = 100_000
    await store.write(a_batch(range(5, 2000)), at(1, 20))
    assert len(states(path)) == 2000
    assert (await store.read_checkpoint()).positions == at(1, 20).positions
    await store.close()


async def test_a_read_only_database_is_a_store_error_until_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await store.write(a_batch(range(5)), at(1, 10))
    await store.close()
    connect = sqlite3.connect

    def read_only(database: Path, **options: object) -> sqlite3.Connection:
        return connect(f"{database.as_uri()}?mode=ro", uri=True, **options)  # type: ignore[call-overload, no-any-return]

    store = sqlite_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", read_only)
        with pytest.raises(StoreError, match="readonly"):
            await store.write(a_batch(range(5, 10)), at(1, 20))
    await store.write(a_batch(range(5, 10)), at(1, 20))
    assert len(states(path)) == 10
    await store.close()


async def test_a_path_that_cannot_be_opened_is_a_store_error_until_it_can(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "books.db"
    path.mkdir(parents=True)
    store = sqlite_store(path)
    with pytest.raises(StoreError):
        await store.read_checkpoint()
    path.rmdir()
    assert await store.read_checkpoint() == Checkpoint()
    await store.close()


async def test_what_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "books.db").write_bytes(b"these are no books " * 100)
    store = sqlite_store(tmp_path / "books.db")
    with pytest.raises(StoreError, match="not a database"):
        await store.read_checkpoint()
    await store.close()


async def test_a_file_that_is_moved_away_is_not_written_to_any_more(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await store.write(a_batch(range(5)), at(1, 10))
    for end in ("", "-wal", "-shm"):
        path.with_name(f"books.db{end}").rename(tmp_path / f"old.db{end}")
    await store.write(a_batch(range(5, 8)), at(1, 20))
    assert len(states(path)) == 3
    assert len(states(tmp_path / "old.db")) == 5
    await store.close()


async def test_a_number_that_no_column_holds_does_not_kill_the_store(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "books.db")
    with pytest.raises(RejectedError):
        await store.write(Batch(), Checkpoint(positions={"0-1-1": Position(1, 2**63, 0, 0)}))
    await store.write(a_batch(range(1)), at(1, 1))
    await store.close()


async def test_a_provider_may_report_any_number_of_tokens(tmp_path: Path) -> None:
    """Their sum stays a whole number that a column holds, within a batch and over several."""
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    for start in (0, 2):
        batch = a_batch(range(start, start + 2))
        for row in batch.attempts:
            row.input_tokens = 2**63 - 1
        await store.write(batch, at(1, start))
    await store.write(a_batch(range(4, 5)), at(1, 9))
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT sum(requests), max(input_tokens) FROM usage_hours").fetchall() == [
            (5, 2**63 - 1)
        ]


async def test_the_shipper_gets_over_a_disk_that_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgegw.ledger.shipper.BACKOFF_MIN_S", 0.002)
    path = tmp_path / "books.db"
    journal = open_journal(tmp_path)
    for number in range(600):
        play(journal, number)
    journal.close()
    store = sqlite_store(path, pages_max=30)

    class Relief:
        """Makes room when the store has failed three times."""

        failures = 0

        async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
            try:
                await store.write(batch, checkpoint)
            except StoreError:
                self.failures += 1
                if self.failures == 3:
                    store.pages_max = 100_000
                raise

        async def read_checkpoint(self) -> Checkpoint:
            return await store.read_checkpoint()

        async def close(self) -> None:
            await store.close()

    shipper = await ship_all(tmp_path, Relief())
    await store.close()
    assert shipper.tally.errors == 3
    assert shipper.tally.failing is None
    assert len(states(path)) == 600


async def test_the_file_is_private_and_holds_no_log_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await store.write(a_batch(range(1)), at(1, 1))
    assert path.stat().st_mode & 0o777 == 0o600
    await store.close()
    assert os.listdir(tmp_path) == ["books.db"]


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    newer = Migration(KNOWN + 1, "9999_more.sql", "ALTER TABLE requests ADD COLUMN brand_new INTEGER;")
    store = SqliteStore(path, (*migrations("sqlite"), newer), ManualClock(), "j")
    await store.write(a_batch(range(1)), at(1, 1))
    await store.close()
    before = path.read_bytes()
    store = sqlite_store(path)
    with pytest.raises(SchemaTooNewError, match=f"schema version {KNOWN + 1}, this program knows up to {KNOWN}"):
        await store.write(a_batch(range(1, 2)), at(1, 2))
    await store.close()
    assert path.read_bytes() == before


async def test_a_database_is_brought_up_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await store.write(a_batch(range(3)), at(1, 1))
    await store.close()
    newer = Migration(KNOWN + 1, "9999_more.sql", "ALTER TABLE requests ADD COLUMN brand_new INTEGER;\n")
    store = SqliteStore(path, (*migrations("sqlite"), newer), ManualClock(), "j")
    await store.write(a_batch(range(3, 5)), at(1, 2))
    await store.close()
    assert len(states(path)) == 5
    assert table_columns(path, "requests")[-1] == "brand_new"


async def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    broken = Migration(
        KNOWN + 1, "9999_broken.sql", "CREATE TABLE half (id INTEGER);\nCREATE TABLE requests (id INTEGER);\n"
    )
    store = SqliteStore(path, (*migrations("sqlite"), broken), ManualClock(), "j")
    with pytest.raises(StoreError, match="already exists"):
        await store.read_checkpoint()
    await store.close()
    store = sqlite_store(path)
    assert await store.read_checkpoint() == Checkpoint()
    await store.close()
    assert table_columns(path, "half") == []


def test_a_script_is_split_where_sqlite_says_so() -> None:
    script = """-- a; comment
CREATE TABLE a (b TEXT DEFAULT ';');

CREATE TRIGGER t AFTER INSERT ON a BEGIN
  DELETE FROM a;
  SELECT 1;
END;
"""
    assert [statement.count("CREATE") for statement in statements(script)] == [1, 1]


def test_files_are_numbered_without_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_folder", lambda dialect: tmp_path)
    for name in ("0003_c.sql", "0001_a.sql", "readme.txt"):
        (tmp_path / name).write_text("SELECT 1;\n")
    with pytest.raises(FileNotFoundError, match="without a gap"):
        migrations("sqlite")
    (tmp_path / "0002_b.sql").write_text("SELECT 2;\n")
    assert [migration.name for migration in migrations("sqlite")] == ["0001_a.sql", "0002_b.sql", "0003_c.sql"]
