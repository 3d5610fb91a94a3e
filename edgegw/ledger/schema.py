"""The schema of a database as numbered files, and the runner that brings a database up to them.

`sql/<dialect>/NNNN_name.sql`, applied in the order of their numbers, each in one transaction together with its line in
`schema_migrations`. A file that was applied is never edited. A database that knows a number we do not have belongs to a
newer version of this program and is refused.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from edgegw.ledger.store import SchemaTooNewError

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    INTEGER NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    applied_ns INTEGER NOT NULL
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    script: str


def migrations(dialect: str) -> tuple[Migration, ...]:
    """The numbered files for a dialect ("sqlite"), in order. Raises FileNotFoundError when there are none."""
    found = sorted(
        (
            Migration(int(entry.name.split("_", 1)[0]), entry.name, entry.read_text("utf-8"))
            for entry in _folder(dialect).iterdir()
            if entry.name.endswith(".sql")
        ),
        key=lambda migration: migration.version,
    )
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise FileNotFoundError(f"the files of sql/{dialect} are not numbered 1, 2, 3, … without a gap")
    return tuple(found)


def open_database(path: Path, known: tuple[Migration, ...], wall_ns: int, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection to a SQLite file that is up to date, made first where there is none; in autocommit mode.

    Raises SchemaTooNewError, and OSError and sqlite3.Error as they come.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        migrate(connection, known, wall_ns)
    except BaseException:
        connection.close()
        raise
    return connection


def file_identity(path: Path) -> tuple[int, int] | None:
    """By which a file that was moved away or replaced is told from the one that is open. None: there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def migrate(connection: sqlite3.Connection, known: tuple[Migration, ...], wall_ns: int) -> None:
    """Bring a database up to the last of the files; all of it or nothing. The connection is in autocommit mode.

    Raises SchemaTooNewError, and sqlite3.Error as it comes.
    """
    if version(connection) == known[-1].version:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(_VERSIONS)
        (have,) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
        check(have, known)
        for migration in known[have:]:
            for statement in statements(migration.script):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?)", (migration.version, migration.name, wall_ns)
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def version(connection: sqlite3.Connection) -> int:
    """The number of the last migration that a database has seen, 0 for none."""
    table = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_migrations'").fetchone()
    if table is None:
        return 0
    (have,) = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    return int(have)


def check(have: int, known: tuple[Migration, ...]) -> None:
    """Raise SchemaTooNewError when the database is ahead of us."""
    if have > known[-1].version:
        raise SchemaTooNewError(
            f"the database has schema version {have}, this program knows up to {known[-1].version}: "
            "it was written by a newer edgegw"
        )


def statements(script: str) -> list[str]:
    """The single statements of a script; SQLite itself says where one ends, so triggers stay whole."""
    found: list[str] = []
    lines: list[str] = []
    for line in script.splitlines():
        lines.append(line)
        text = "\n".join(lines)
        if sqlite3.complete_statement(text):
            found.append(text)
            lines = []
    return found


def _folder(dialect: str) -> Traversable:
    """Inside the package; in a checkout edgegw/sql is a link to the folder beside it."""
    return resources.files("edgegw") / "sql" / dialect
