"""Brings a PostgreSQL database up to the files of sql/postgres.

Several gateways may start at once on an empty database: a lock lets one at a time look and apply, each file in a
transaction of its own. A role that may not create tables can write where somebody else has.
"""

from __future__ import annotations

import asyncpg

from edgegw.ledger.postgres.connection import BEGIN, Session
from edgegw.ledger.schema import Migration, check
from edgegw.ledger.store import StoreError

# The wait for another gateway that migrates, and for a file that fills a large table.
MIGRATION_TIMEOUT_S = 3600.0
# Detaches partitions without blocking anybody.
MAJOR_MIN = 14
# Which of the advisory locks of a database is ours: "edgegw", and what it is for.
LOCK_MIGRATE = 0x6564_6765_6777_01
LOCK_PARTITIONS = 0x6564_6765_6777_02
LOCK_COMPACT = 0x6564_6765_6777_03
LOCK_CONTENTS = 0x6564_6765_6777_04
LOCK_RETENTION = 0x6564_6765_6777_05

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    bigint NOT NULL PRIMARY KEY,
    name       text   NOT NULL,
    applied_ns bigint NOT NULL
)
"""
_PATIENT = f"SET LOCAL statement_timeout = '{MIGRATION_TIMEOUT_S:.0f}s'; SET LOCAL lock_timeout = 0"


async def version(session: Session) -> int:
    """The number of the last migration that a database has seen, 0 for none."""
    if await session.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    return int(await session.fetchval("SELECT coalesce(max(version), 0) FROM schema_migrations"))


async def migrate(session: Session, known: tuple[Migration, ...], wall_ns: int) -> list[Migration]:
    """Bring a database up to the last of the files; what was applied. Raises SchemaTooNewError, StoreError where the
    role may not, and asyncpg's errors as they come."""
    applied: list[Migration] = []
    if (major := session.get_server_version().major) < MAJOR_MIN:
        raise StoreError(f"the server is PostgreSQL of version {major}; {MAJOR_MIN} or newer is needed")
    while True:
        have = await version(session)
        check(have, known)
        if have == known[-1].version:
            return applied
        try:
            applied += await _next(session, known, wall_ns)
        except asyncpg.InsufficientPrivilegeError as error:
            raise StoreError(
                f"{error}: the schema has version {have}, this program needs {known[-1].version}, and this role may "
                "not change it; run `edgegw migrate up` with one that may"
            ) from error


async def _next(session: Session, known: tuple[Migration, ...], wall_ns: int) -> list[Migration]:
    """One file in one transaction; none when another gateway was faster."""
    await session.execute(f"{BEGIN}; {_PATIENT}")
    await session.execute(f"SELECT pg_advisory_xact_lock({LOCK_MIGRATE})", timeout=MIGRATION_TIMEOUT_S)
    await session.execute(_VERSIONS)
    applied = [migration for migration in known if migration.version == await version(session) + 1]
    for migration in applied:
        await session.execute(migration.script, timeout=MIGRATION_TIMEOUT_S)
        await session.execute(
            "INSERT INTO schema_migrations VALUES ($1, $2, $3)", migration.version, migration.name, wall_ns
        )
    await session.execute("COMMIT")
    return applied
