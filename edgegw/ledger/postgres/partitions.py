"""Makes the partitions that rows need, and drops those of days that are too old.

A partition is made as a table of its own and then attached, which takes no lock that a writer or a reader waits for.
Several gateways may want the same day at once: a lock lets one at a time look and make.
"""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from edgegw.ledger.postgres.connection import BEGIN, COMMAND_TIMEOUT_S, Session
from edgegw.ledger.postgres.days import TABLES, bounds, day_of_partition, partition_of
from edgegw.ledger.postgres.schema import LOCK_PARTITIONS
from edgegw.ledger.store import StoreError

# A long query of somebody else must not keep a gateway from trying again with a fresh look.
LOCK_TIMEOUT_S = 3
# Waits for transactions that still look at the partition.
DETACH_TIMEOUT_S = 60.0
DOOMED = "edgegw: too old, about to be dropped"

_ATTACHED = """
SELECT c.relname, i.inhdetachpending
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
 WHERE i.inhparent IN (to_regclass('requests'), to_regclass('provider_attempts'))
"""
_DOOMED = f"""
SELECT relname FROM pg_class
 WHERE relkind = 'r' AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('requests'))
   AND obj_description(oid, 'pg_class') = '{DOOMED}' AND NOT relispartition
"""


async def days_there(session: Session) -> set[int]:
    """The days that have their partitions, of both tables."""
    names = {row["relname"] for row in await session.fetch(_ATTACHED) if not row["inhdetachpending"]}
    days = {day for name in names if (day := day_of_partition(name)) is not None}
    return {day for day in days if all(partition_of(table, day) in names for table in TABLES)}


async def make_days(session: Session, days: Iterable[int]) -> None:
    """The partitions of these days, those that are not there. Raises StoreError where the role may not."""
    for day in sorted(days):
        try:
            await _make_day(session, day)
        except asyncpg.InsufficientPrivilegeError as error:
            raise StoreError(
                f"{error}: there is no {partition_of('requests', day)}, and this role may not make it; run `edgegw "
                "migrate up` once a day with one that may"
            ) from error


async def _make_day(session: Session, day: int) -> None:
    await session.execute(f"{BEGIN}; SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
    await session.execute(f"SELECT pg_advisory_xact_lock({LOCK_PARTITIONS})")
    there = {row["relname"] for row in await session.fetch(_ATTACHED)}
    first, end = bounds(day)
    for table in TABLES:
        name = partition_of(table, day)
        if name not in there:
            await session.execute(
                f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL); "
                f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{end}')"
            )
    await session.execute("COMMIT")


async def days_to_drop(session: Session, first_kept: int) -> bool:
    """Whether there are partitions of earlier days, or what was left of such."""
    attached = [day_of_partition(row["relname"]) for row in await session.fetch(_ATTACHED)]
    return any(day is not None and day < first_kept for day in attached) or bool(await session.fetch(_DOOMED))


async def drop_days_before(session: Session, first_kept: int) -> list[str]:
    """Drop the partitions of all earlier days; their names. Goes on where somebody was interrupted. Nobody else may be
    at it: two who detach get into each other's way."""
    for row in await session.fetch(f"{_ATTACHED} ORDER BY NOT i.inhdetachpending, c.relname"):
        name = row["relname"]
        day = day_of_partition(name)
        if day is not None and day < first_kept:
            how = "FINALIZE" if row["inhdetachpending"] else "CONCURRENTLY"
            await session.execute(f"COMMENT ON TABLE {name} IS '{DOOMED}'")
            await session.execute(
                f"ALTER TABLE {name.rpartition('_')[0]} DETACH PARTITION {name} {how}", timeout=DETACH_TIMEOUT_S
            )
    dropped = [str(row["relname"]) for row in await session.fetch(_DOOMED)]
    for name in dropped:
        await session.execute(f"DROP TABLE IF EXISTS {name}", timeout=COMMAND_TIMEOUT_S)
    return dropped
