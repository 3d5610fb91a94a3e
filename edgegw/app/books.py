"""Where the control process keeps rows: SQLite or PostgreSQL, and what gateways that are gone have left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgegw.app.parts import SystemClock
from edgegw.ledger.adoption import Adoption
from edgegw.ledger.assembly import Price
from edgegw.ledger.schema import migrations
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.sqlite_retention import SqliteRetention
from edgegw.ledger.telling import Observer
from edgegw.ledger.upkeep import Upkeep
from edgegw.settings import Settings, parse_postgres

if TYPE_CHECKING:
    from edgegw.ledger.postgres.store import PostgresStore


def build_books(
    settings: Settings, clock: SystemClock, journal: str
) -> tuple[SqliteStore | PostgresStore, list[Upkeep]]:
    """Where the rows go, and what is to be done there now and then. `journal`: whose rows they are."""
    retention_s = settings.storage.retention_s
    url = settings.postgres_url
    if url is None:
        durable = settings.storage.journal.sync != "none"
        in_file = SqliteStore(Path(settings.sqlite_path), migrations("sqlite"), clock, journal, durable=durable)
        return in_file, [] if retention_s is None else [SqliteRetention(in_file.file, retention_s)]
    try:
        from edgegw.ledger.postgres.store import PostgresStore
        from edgegw.ledger.postgres.upkeep import PostgresUpkeep
    except ModuleNotFoundError as error:
        raise SystemExit(f"storage.database_url needs {error.name}: pip install 'edgegw[postgres]'") from None

    address, known = parse_postgres(url.reveal()), migrations("postgres")
    store = PostgresStore(address, known, clock, journal)
    return store, [PostgresUpkeep(address, known, clock, retention_s)]


def build_adoption(
    settings: Settings, clock: SystemClock, state_dir: Path, price: Price, observers: Sequence[Observer]
) -> Adoption | None:
    """Who ships what gateways that are gone have left, into the database that is theirs and ours."""
    patterns, url = settings.storage.journal.adopt, settings.postgres_url
    if not patterns or url is None:
        return None
    from edgegw.ledger.postgres.store import PostgresStore  # build_books has seen that it is there

    address, known = parse_postgres(url.reveal()), migrations("postgres")

    def store_for(journal: str) -> PostgresStore:
        return PostgresStore(address, known, clock, journal)

    return Adoption(state_dir, patterns, store_for, clock, price, observers)
