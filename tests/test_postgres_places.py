"""The ways to a PostgreSQL: TLS, a password, a unix socket, several hosts, a pooler that shares sessions."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import trustme
from ledger_traces import WALL_NS, a_batch, at
from postgres_rig import HOST, OWNER, Database, Postgres, PostgresHouse, pooler
from rig import free_port

from edgegw.clock import ManualClock
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.postgres.upkeep import PostgresUpkeep
from edgegw.ledger.schema import migrations
from edgegw.ledger.store import StoreError
from edgegw.settings import parse_postgres

pytestmark = pytest.mark.system

KNOWN = migrations("postgres")


def a_store(url: str, journal: str = "aa") -> PostgresStore:
    return PostgresStore(parse_postgres(url), KNOWN, ManualClock(wall_ns=WALL_NS), journal)


async def writes(url: str) -> None:
    """Whether a store may be had there; StoreError when not."""
    store = a_store(url)
    try:
        await store.write(a_batch(range(2)), at(1, 1))
    finally:
        await store.close()


@pytest.fixture(scope="module")
def secured(module_postgreses: PostgresHouse) -> tuple[Postgres, Path]:
    """A server that takes TLS for the name `localhost`, and a password from all but its owner on the socket; and the
    authority to trust."""
    server = module_postgreses.server()
    server.stop()
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    ca = server.directory / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    for name, blobs in (
        ("server.crt", certificate.cert_chain_pems),
        ("server.key", [certificate.private_key_pem]),
    ):
        path = server.data / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        path.chmod(0o600)
        if server.data.owner() == OWNER:
            shutil.chown(path, OWNER, OWNER)
    server.options = ("ssl=on",)
    server.start()
    server.do("CREATE ROLE writer LOGIN SUPERUSER PASSWORD 's3cret'")
    (server.data / "pg_hba.conf").write_text(
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhostssl all writer all scram-sha-256\n"
    )
    server.do("SELECT pg_reload_conf()")
    return server, ca


async def test_with_tls_and_a_password(secured: tuple[Postgres, Path], tmp_path: Path) -> None:
    server, ca = secured
    place = f"localhost:{server.port}/{server.database().name}"
    for options in (f"sslmode=verify-full&sslrootcert={ca}", f"sslmode=verify-ca&sslrootcert={ca}", "sslmode=require"):
        await writes(f"postgresql://writer:s3cret@{place}?{options}")
    await writes(f"postgresql://writer:s3cret@{place}")  # prefers it
    another = tmp_path / "another.pem"
    trustme.CA().cert_pem.write_to_path(str(another))
    refused = [
        (f"postgresql://writer:s3cret@{place}?sslmode=verify-full&sslrootcert={another}", "certificate"),
        (f"postgresql://writer:s3cret@{place}?sslmode=verify-full&sslrootcert={tmp_path}/none.pem", "none.pem|No such"),
        (f"postgresql://writer:s3cret@{place}?sslmode=disable", "pg_hba.conf"),
        (f"postgresql://writer:wr0ng@{place}", "password authentication failed"),
        (f"postgresql://writer:s3cret@{HOST}:{server.port}/none", 'database "none" does not exist'),
    ]
    for url, words in refused:
        with pytest.raises(StoreError, match=words) as caught:
            await writes(url)
        assert "s3cret" not in str(caught.value)
        assert "wr0ng" not in str(caught.value)


async def test_over_a_unix_socket(postgres: Database) -> None:
    server = postgres.server
    await writes(f"postgresql://{OWNER}@/{postgres.name}?host={server.directory}&port={server.port}")
    assert postgres.value("SELECT count(*) FROM requests") == 2


async def test_of_several_hosts_the_one_that_takes_writes(postgres: Database, postgreses: PostgresHouse) -> None:
    away = free_port()
    standby = postgreses.server("default_transaction_read_only=on")  # what a standby is to those who want to write
    standby.do(f"SET default_transaction_read_only = off; CREATE DATABASE {postgres.name} TEMPLATE template0")
    several = f"{HOST}:{away},{HOST}:{standby.port},{HOST}:{postgres.server.port}"
    await writes(f"postgresql://{OWNER}@{several}/{postgres.name}")
    assert postgres.value("SELECT count(*) FROM requests") == 2


async def test_a_pooler_may_give_every_transaction_another_session(postgres: Database) -> None:
    with pooler(postgres, sessions=3) as url:
        stores = [a_store(url, f"journal-{number}") for number in range(5)]

        async def work(number: int, store: PostgresStore) -> None:
            for step in range(10):
                first = 1000 * number + 20 * step
                await store.write(a_batch(range(max(1000 * number, first - 5), first + 20)), at(1, step))
                assert (await store.read_checkpoint()).positions == at(1, step).positions

        await asyncio.gather(*(work(number, store) for number, store in enumerate(stores)))
        await PostgresUpkeep(parse_postgres(url), KNOWN, ManualClock(wall_ns=WALL_NS), 86_400).keep(WALL_NS)
        for store in stores:
            await store.close()
    assert postgres.value("SELECT count(*) FROM requests") == 1000
    assert postgres.value("SELECT sum(requests) FROM usage_hours") == 1000
