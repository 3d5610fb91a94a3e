"""Where keys are kept: the store in the database that the settings or a command name.

What a PostgreSQL takes is imported here, and when it is needed: a gateway without one does not load its client.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgegw.keys.sqlite import READER_BUSY_S, SqliteKeys
from edgegw.keys.store import KeyStore
from edgegw.ledger.schema import migrations
from edgegw.settings import PostgresAddress, Settings, parse_postgres
from edgegw.settings.model import SQLITE

# The file of a SQLite, or the address of a PostgreSQL.
Place = Path | PostgresAddress


def place_of(settings: Settings) -> Place:
    """Where the rows are, and so the keys."""
    url = settings.postgres_url
    return Path(settings.sqlite_path) if url is None else parse_postgres(url.reveal())


def named_place(text: str) -> Place:
    """What somebody typed: a path, or a URL. ValueError for an address of PostgreSQL that is none; it shows nothing of
    the text."""
    if text.partition("://")[0].partition("+")[0] in ("postgresql", "postgres"):
        return parse_postgres(text)
    return Path(text.removeprefix(SQLITE))


def key_store(place: Place, wall_ns: Callable[[], int], busy_s: float = READER_BUSY_S) -> KeyStore:
    """`busy_s`: how long SQLite waits for others."""
    if isinstance(place, Path):
        return SqliteKeys(place, migrations("sqlite"), wall_ns, busy_s)
    try:
        from edgegw.keys.postgres import PostgresKeys
    except ModuleNotFoundError as error:
        raise SystemExit(f"storage.database_url needs {error.name}: pip install 'edgegw[postgres]'") from None
    return PostgresKeys(place, migrations("postgres"), wall_ns)
