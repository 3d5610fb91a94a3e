"""Where content is kept: the store in the database that the settings or a command name, beside the rows.

What a PostgreSQL takes is imported here, and when it is needed: a gateway without one does not load its client.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgegw.content.sqlite import SqliteContents
from edgegw.content.store import ContentStore
from edgegw.keys.place import Place
from edgegw.ledger.schema import migrations


def content_store(place: Place, wall_ns: Callable[[], int]) -> ContentStore:
    if isinstance(place, Path):
        return SqliteContents(place, migrations("sqlite"), wall_ns)
    try:
        from edgegw.content.postgres import PostgresContents
    except ModuleNotFoundError as error:
        raise SystemExit(f"storage.database_url needs {error.name}: pip install 'edgegw[postgres]'") from None
    return PostgresContents(place, migrations("postgres"), wall_ns)
