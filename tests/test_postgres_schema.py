"""The schema of a PostgreSQL: brought up by many at once or by a command, refused when newer, used by modest roles."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from asyncpg.types import ServerVersion
from click.testing import CliRunner, Result
from ledger_traces import WALL_NS, a_batch, at, sqlite_store
from postgres_rig import Database
from settings_cases import BASE

from edgegw.app.books import build_books
from edgegw.app.parts import SystemClock
from edgegw.cli import main
from edgegw.clock import ManualClock
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.schema import Migration, migrations
from edgegw.ledger.store import Checkpoint, SchemaTooNewError, StoreError
from edgegw.settings import load_text, parse_postgres

KNOWN = migrations("postgres")
NEXT = len(KNOWN) + 1
NEWER = Migration(NEXT, "9999_more.sql", "ALTER TABLE requests ADD COLUMN brand_new bigint;")


def a_store(dsn: str, known: tuple[Migration, ...] = KNOWN, journal: str = "aa") -> PostgresStore:
    return PostgresStore(parse_postgres(dsn), known, ManualClock(wall_ns=WALL_NS), journal)


async def test_eight_stores_start_at_once_on_an_empty_database(postgres: Database) -> None:
    stores = [a_store(postgres.dsn, journal=f"journal-{number}") for number in range(8)]
    await asyncio.gather(
        *(store.write(a_batch(range(10 * n, 10 * n + 10)), at(1, n)) for n, store in enumerate(stores))
    )
    for store in stores:
        await store.close()
    assert postgres.value("SELECT count(*) FROM requests") == 80
    assert postgres.value("SELECT sum(requests) FROM usage_hours") == 80
    assert postgres.value("SELECT count(*) FROM schema_migrations") == len(KNOWN)


async def test_a_newer_schema_is_refused_and_left_alone(postgres: Database) -> None:
    newer = a_store(postgres.dsn, (*KNOWN, NEWER))
    await newer.write(a_batch(range(1)), at(1, 1))
    await newer.close()
    store = a_store(postgres.dsn)
    for _ in range(2):
        with pytest.raises(SchemaTooNewError, match=f"schema version {NEXT}, this program knows up to {NEXT - 1}"):
            await store.write(a_batch(range(1, 2)), at(1, 2))
    await store.close()
    assert postgres.value("SELECT count(*) FROM requests") == 1


async def test_a_database_is_brought_up_and_keeps_its_rows(postgres: Database) -> None:
    for known in (KNOWN, (*KNOWN, NEWER)):
        store = a_store(postgres.dsn, known)
        await store.write(a_batch(range(3 * len(known), 3 * len(known) + 3)), at(1, 1))
        await store.close()
    assert postgres.value("SELECT count(*) FROM requests WHERE brand_new IS NULL") == 6


async def test_a_migration_that_fails_leaves_nothing_behind(postgres: Database) -> None:
    broken = Migration(NEXT, "9999_broken.sql", "CREATE TABLE half (id bigint); CREATE TABLE requests (id bigint);")
    store = a_store(postgres.dsn, (*KNOWN, broken))
    with pytest.raises(StoreError, match="already exists"):
        await store.read_checkpoint()
    await store.close()
    store = a_store(postgres.dsn)
    assert await store.read_checkpoint() == Checkpoint()
    await store.close()
    assert postgres.value("SELECT to_regclass('half')::text") is None


async def test_a_server_that_is_too_old_is_told_so(postgres: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncpg.Connection, "get_server_version", lambda _: ServerVersion(13, 22, 0, "final", 0))
    store = a_store(postgres.dsn)
    with pytest.raises(StoreError, match="version 13; 14 or newer is needed"):
        await store.read_checkpoint()
    await store.close()


@pytest.fixture
def writer(postgres: Database) -> str:
    """The URL of a role that may write what there is, and make nothing."""
    postgres.do(
        f"CREATE ROLE {postgres.name}_writer LOGIN; REVOKE CREATE ON SCHEMA public FROM public; "
        f"ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {postgres.name}_writer"
    )
    return postgres.server.dsn(postgres.name, f"{postgres.name}_writer")


async def test_a_role_that_may_not_make_tables_says_what_to_do_and_writes_when_they_are_there(
    postgres: Database, writer: str
) -> None:
    store = a_store(writer)
    with pytest.raises(StoreError, match=r"needs \d+.*run `edgegw migrate up` with one that may"):
        await store.read_checkpoint()
    owner = a_store(postgres.dsn)
    await owner.write(a_batch(range(1)), at(1, 1))
    await owner.close()
    await store.write(a_batch(range(1, 3)), at(1, 2))  # into partitions that are there
    with pytest.raises(StoreError, match=r"(must be owner|permission denied).*edgegw migrate up"):
        await store.write(a_batch(range(3 * 86_400_000, 3 * 86_400_000 + 1)), at(1, 3))
    await store.close()
    assert postgres.value("SELECT count(*) FROM requests") == 3


def migrate(*arguments: str, url: str, place: Path) -> Result:
    settings = place / "edgegw.yaml"
    provider = "providers: {local: {kind: openai-compatible, base_url: 'http://127.0.0.1:1'}}"
    settings.write_text(f"version: 1\n{provider}\nstorage: {{database_url: '{url}'}}\n")
    return CliRunner().invoke(main, ["migrate", *arguments, "--config", str(settings)])


def test_the_command_looks_and_brings_up(postgres: Database, tmp_path: Path) -> None:
    url = postgres.dsn.replace("postgres@", "postgres:s3cret@")
    looked = migrate("check", url=url, place=tmp_path)
    assert looked.exit_code == 1
    assert "has no tables of ours; missing: 0001_ledger.sql" in looked.output
    done = migrate("up", url=url, place=tmp_path)
    assert done.exit_code == 0, done.output
    assert "applied 0001_ledger.sql" in done.output
    assert done.output.count("made the partitions of ") == 8
    assert migrate("up", url=url, place=tmp_path).output == "nothing to do\n"
    looked = migrate("check", url=url, place=tmp_path)
    assert looked.exit_code == 0
    assert f"has schema version {len(KNOWN)}, as this program needs" in looked.output
    postgres.do(f"INSERT INTO schema_migrations VALUES ({NEXT}, 'x', 0)")
    looked = migrate("check", url=url, place=tmp_path)
    assert looked.exit_code == 1
    assert f"has schema version {NEXT}, this program knows up to {NEXT - 1}" in looked.output
    refused = migrate("up", url=url, place=tmp_path)
    assert refused.exit_code == 1
    assert "newer edgegw" in refused.output
    assert "s3cret" not in "".join(shown.output for shown in (looked, done, refused))


def test_the_command_says_when_nobody_answers(tmp_path: Path) -> None:
    for command in ("check", "up"):
        failed = migrate(command, url="postgresql://u:s3cret@127.0.0.1:1/d", place=tmp_path)
        assert failed.exit_code == 1
        assert "PostgreSQL 127.0.0.1:1/d" in failed.output
        assert "s3cret" not in failed.output


@pytest.fixture
def without_asyncpg(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("edgegw.ledger.postgres", "asyncpg"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)


@pytest.mark.usefixtures("without_asyncpg")
def test_without_the_client_it_is_said_what_to_install(tmp_path: Path) -> None:
    url = "postgresql://u:s3cret@h/d"
    failed = migrate("check", url=url, place=tmp_path)
    assert failed.exit_code == 1
    assert "storage.database_url needs asyncpg: pip install 'edgegw[postgres]'" in failed.output
    with pytest.raises(SystemExit, match="needs asyncpg: pip install 'edgegw"):
        build_books(load_text(f"{BASE}storage: {{database_url: '{url}'}}", {}), SystemClock(), "0123456789abcdef")


def test_a_gateway_without_a_postgresql_does_not_load_its_client() -> None:
    loaded = "import edgegw.app, edgegw.cli, edgegw.migrate, sys; print('asyncpg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "False\n"


async def test_the_command_goes_for_sqlite_as_well(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    url = f"sqlite:///{path}"
    known = migrations("sqlite")
    assert "no tables of ours; missing: 0001_ledger.sql" in migrate("check", url=url, place=tmp_path).output
    assert not path.exists()
    done = migrate("up", url=url, place=tmp_path)
    assert done.output.splitlines() == [f"applied {migration.name}" for migration in known]
    assert migrate("check", url=url, place=tmp_path).exit_code == 0
    assert migrate("up", url=url, place=tmp_path).output == "nothing to do\n"
    store = sqlite_store(path)
    await store.write(a_batch(range(1)), at(1, 1))
    await store.close()
    path.write_bytes(b"these are no books " * 100)
    assert "not a database" in migrate("check", url=url, place=tmp_path).output
