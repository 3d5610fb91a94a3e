"""What a PostgreSQL of books needs now and then: partitions before their day comes, old ones dropped, sums merged.

Every gateway of a database does it, so each step may find it done, or another at it. It has a connection of its own,
for as long as it takes, and is never in the way of the rows.
"""

from __future__ import annotations

import logging

from edgegw.clock import Clock
from edgegw.ledger.postgres.connection import BEGIN, Postgres, Session
from edgegw.ledger.postgres.days import day_of_ns
from edgegw.ledger.postgres.partitions import days_there, days_to_drop, drop_days_before, make_days
from edgegw.ledger.postgres.schema import LOCK_COMPACT, LOCK_RETENTION, migrate
from edgegw.ledger.record import INTEGER_MAX
from edgegw.ledger.schema import Migration
from edgegw.ledger.usage import SUMS, UsageKey
from edgegw.settings import PostgresAddress

# So that midnight finds them there, and no gateway needs the right to make them at that moment.
DAYS_AHEAD = 2
# Lines of usage_hours that are older are written to by a late gateway only; they are merged into one of no journal.
COMPACT_AFTER_HOURS = 2
_NS_PER_HOUR = 3_600_000_000_000

_KEY = ", ".join(UsageKey._fields)
_BEHIND_HOUR = ", ".join(UsageKey._fields[1:])
_LOCK = f"""
SELECT count(*) FROM (
    SELECT 1 FROM usage_hours WHERE hour < $1 AND journal <> '' ORDER BY {_KEY}, journal FOR UPDATE
) locked
"""
# Into their hour, and into their day: usage_days is what the merged lines come to (sql/postgres/0003).
_MERGE = f"""
WITH taken AS (DELETE FROM usage_hours WHERE hour < $1 AND journal <> '' RETURNING *),
days AS (
    INSERT INTO usage_days (day, {_BEHIND_HOUR}, {", ".join(SUMS)})
    SELECT hour / 24, {_BEHIND_HOUR}, {", ".join(f"least(sum({name}), {INTEGER_MAX})::bigint" for name in SUMS)}
      FROM taken GROUP BY hour / 24, {_BEHIND_HOUR}
    ON CONFLICT (day, {_BEHIND_HOUR}) DO UPDATE SET
    {", ".join(f"{n} = least(usage_days.{n}::numeric + excluded.{n}, {INTEGER_MAX})::bigint" for n in SUMS)}
)
INSERT INTO usage_hours ({_KEY}, journal, {", ".join(SUMS)})
SELECT {_KEY}, '', {", ".join(f"least(sum({name}), {INTEGER_MAX})::bigint" for name in SUMS)}
  FROM taken GROUP BY {_KEY}
ON CONFLICT ({_KEY}, journal) DO UPDATE SET
{", ".join(f"{n} = least(usage_hours.{n}::numeric + excluded.{n}, {INTEGER_MAX})::bigint" for n in SUMS)}
"""

_log = logging.getLogger(__name__)


class PostgresUpkeep:
    """An Upkeep (ledger/upkeep.py). `retention_s` None: rows are kept."""

    def __init__(
        self, address: PostgresAddress, known: tuple[Migration, ...], clock: Clock, retention_s: float | None
    ) -> None:
        self._postgres = Postgres(address, self._opened)
        self._claim = Postgres(address)
        self._known = known
        self._clock = clock
        self._retention_ns = None if retention_s is None else int(retention_s * 1e9)

    async def keep(self, now_ns: int) -> None:
        """See Upkeep.keep."""
        try:
            await self._postgres.run(lambda session: self._keep(session, now_ns))
        finally:
            await self._postgres.close()
            await self._claim.close()

    async def _opened(self, session: Session) -> None:
        await migrate(session, self._known, self._clock.wall_ns())

    async def _keep(self, session: Session, now_ns: int) -> None:
        today = day_of_ns(now_ns)
        await make_days(session, set(range(today, today + DAYS_AHEAD + 1)) - await days_there(session))
        if self._retention_ns is not None:
            await self._retain(session, day_of_ns(now_ns - self._retention_ns))
        await compact(session, now_ns // _NS_PER_HOUR - COMPACT_AFTER_HOURS)

    async def _retain(self, session: Session, first_kept: int) -> None:
        """Whole days: a row may become a day older than `storage.retention`."""
        kept_since_ns = first_kept * 24 * _NS_PER_HOUR
        await session.execute("UPDATE retention SET kept_since_ns = $1 WHERE kept_since_ns < $1", kept_since_ns)
        if await days_to_drop(session, first_kept):
            dropped = await self._claim.run(lambda claim: _drop_alone(claim, session, first_kept))
            _log.info("older than storage.retention, dropped: %s", ", ".join(sorted(dropped)) or "by another gateway")


async def _drop_alone(claim: Session, session: Session, first_kept: int) -> list[str]:
    """What was dropped; nothing when another gateway is at it. A partition is detached outside of any transaction, so
    the claim to do it is held by one over a second connection."""
    await claim.execute(f"{BEGIN}; SET LOCAL idle_in_transaction_session_timeout = 0")
    alone = await claim.fetchval(f"SELECT pg_try_advisory_xact_lock({LOCK_RETENTION})")
    dropped = await drop_days_before(session, first_kept) if alone else []
    await claim.execute("COMMIT")
    return dropped


async def compact(session: Session, before_hour: int) -> int:
    """Merge the lines of earlier hours of all journals into those of journal '', and into their days; how many lines
    that took. 0 as well when another gateway is at it."""
    await session.execute(BEGIN)
    lines = 0
    if await session.fetchval(f"SELECT pg_try_advisory_xact_lock({LOCK_COMPACT})"):
        # In the order in which stores add to them, so that nobody waits in a circle.
        lines = int(await session.fetchval(_LOCK, before_hour))
        if lines:
            await session.execute(_MERGE, before_hour)
    await session.execute("COMMIT")
    return lines
