"""As test_ledger_sweep.py, with a real PostgreSQL: the shipper is cancelled and killed at its awaits.

There are hundreds, most of them within a statement that is under way; of each kind so many are taken, by the dice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from ledger_traces import JOURNAL_ID, WALL_NS
from postgres_rig import Database
from test_ledger_sweep import Books, Crash, abandon, cancel, ground, lived, place, prepared, tidied

from edgegw.clock import ManualClock
from edgegw.ledger.life import JOURNAL_DIR
from edgegw.ledger.postgres.store import PostgresStore
from edgegw.ledger.rejected import rows_set_aside
from edgegw.ledger.schema import migrations
from edgegw.settings import parse_postgres

pytestmark = pytest.mark.system

AWAITS = 8
SEED = 4
TABLES = ("requests", "provider_attempts", "usage_hours", "checkpoints", "open_exchanges")

__all__ = ["place", "prepared", "tidied"]  # fixtures


async def ship(state_dir: Path, database: Database, at: int = -1, then: Callable[[], None] = abandon) -> int:
    """A control process's life; how many waits it had. Raises Crash and CancelledError."""
    clock = ManualClock(wall_ns=WALL_NS)
    store = PostgresStore(parse_postgres(database.dsn), migrations("postgres"), clock, JOURNAL_ID)

    async def died() -> None:
        store._postgres._give_up()

    return await lived(state_dir, store, died, at, then)


def books(state_dir: Path, database: Database) -> Books:
    query = " UNION ALL ".join(f"SELECT '{name}' AS name, row_to_json({name}) AS row FROM {name}" for name in TABLES)
    rows = database.rows(query)
    found: Books = {
        name: sorted(str({**one["row"], "stored_at": None}) for one in rows if one["name"] == name) for name in TABLES
    }
    found["rejected"] = sorted(map(str, rows_set_aside(state_dir)))
    found["journal"] = sorted(str(path.relative_to(state_dir)) for path in (state_dir / JOURNAL_DIR).rglob("*"))
    return found


@pytest.mark.parametrize("then", [cancel, abandon])
async def test_at_awaits_by_the_dice(prepared: Path, postgres: Database, then: Callable[[], None]) -> None:
    with ground(prepared) as state_dir:
        waits = await ship(state_dir, postgres)
        expected = books(state_dir, postgres)
    assert waits > 100
    interrupted = 0
    for at in sorted(random.Random(SEED).sample(range(waits), min(AWAITS, waits))):
        postgres.do(f"TRUNCATE {', '.join(TABLES)}")
        with ground(prepared) as state_dir:
            try:
                await ship(state_dir, postgres, at, then)  # it may be over earlier: not every life waits as often
            except (Crash, asyncio.CancelledError):
                interrupted += 1
            await ship(state_dir, postgres)
            found = books(state_dir, postgres)
            for name, rows in expected.items():
                assert found[name] == rows, name
    assert interrupted > AWAITS / 2
