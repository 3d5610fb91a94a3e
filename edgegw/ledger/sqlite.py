"""The books in SQLite: one file, one writer, one thread.

One batch is one transaction, in the thread of the file (sqlite_file.py, which also says what a file promises). The only
module that knows how the tables are written; books.py reads them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import msgspec

from edgegw.clock import Clock
from edgegw.ledger.record import (
    ATTEMPT_COLUMNS,
    INTEGER_MAX,
    REQUEST_COLUMNS,
    AttemptRecord,
    End,
    attempt_columns,
    request_columns,
)
from edgegw.ledger.schema import Migration
from edgegw.ledger.sqlite_file import SqliteFile
from edgegw.ledger.store import Batch, Checkpoint, OpenState, Position, RejectedError, StoreError
from edgegw.ledger.usage import SUMS, UsageKey, usage_of

# How long SQLite itself waits for another process's lock before the shipper backs off.
BUSY_TIMEOUT_S = 1.0
# Ids in one question; SQLite takes 999 values at least.
IDS_PER_QUESTION = 500
# From so many rows on a statement of its own is worth its making.
ALIKE_ROWS_MIN = 100
# The columns that are true or false.
FLAGS = frozenset(("stream", "estimated", "reused"))

FAILURES = (
    ((sqlite3.DataError, OverflowError, UnicodeEncodeError), RejectedError),
    ((sqlite3.Error, OSError, msgspec.DecodeError), StoreError),
)

_FORGET_LIFE = (
    "DELETE FROM checkpoints WHERE journal IN (?, '') AND life = ? AND gaps = 0 AND torn = 0 AND unreadable = 0"
)


class SqliteStore:
    """A Store (store.py) in one SQLite file, which is made, with its tables, when it is first used.

    `durable`: when a batch is written, it is on the disk and not only in the kernel, at one fsync each: segments are
    deleted upon that, and who has them synced wants the rows synced as well. `pages_max` bounds the size of the file
    (0: unbounded); what does not fit is a StoreError. It is looked at when a connection is made, so after an error.
    """

    def __init__(
        self,
        path: Path,
        known: tuple[Migration, ...],
        clock: Clock,
        journal: str,
        *,
        durable: bool = False,
        pages_max: int = 0,
    ) -> None:
        self.file = SqliteFile(
            path,
            known,
            clock.wall_ns,
            name="ledger-sqlite",
            busy_s=BUSY_TIMEOUT_S,
            failures=FAILURES,
            opened=self._opened,
        )
        self._journal = journal
        self._durable = durable
        self.pages_max = pages_max
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(OpenState).decode
        self._add_usage = _adding("usage_hours", (*UsageKey._fields, "journal"), SUMS)

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See Store.write."""
        await self.file.run(lambda connection: self._write(connection, batch, checkpoint))

    async def read_checkpoint(self) -> Checkpoint:
        """See Store.read_checkpoint."""
        return await self.file.run(self._read_checkpoint)

    async def close(self) -> None:
        """See SqliteFile.close."""
        await self.file.close()

    # From here on: the thread.

    def _opened(self, connection: sqlite3.Connection) -> None:
        if self._durable:
            connection.execute("PRAGMA synchronous = FULL")
        if self.pages_max:
            connection.execute(f"PRAGMA max_page_count = {int(self.pages_max)}")

    def _write(self, connection: sqlite3.Connection, batch: Batch, checkpoint: Checkpoint) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if batch.rows and not self._insert(connection, batch.requests, batch.attempts):
            # Some are there already, from before a crash: only what is new is added to the sums.
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            self._insert(connection, *self._new(connection, batch))
        self._write_checkpoint(connection, checkpoint)
        connection.execute("COMMIT")

    def _insert(self, connection: sqlite3.Connection, requests: list[End], attempts: list[AttemptRecord]) -> bool:
        """The rows and what they add to the sums; False, and no sums, when some of them were there."""
        before = connection.total_changes
        if requests:
            _insert_columns(connection, "requests", REQUEST_COLUMNS, request_columns(requests), "id")
        if attempts:
            columns = attempt_columns(attempts)
            _insert_columns(connection, "provider_attempts", ATTEMPT_COLUMNS, columns, "request_id, number")
        if connection.total_changes - before != len(requests) + len(attempts):
            return False
        usage = usage_of(requests, attempts)
        lines = [(*key, self._journal, *(min(n, INTEGER_MAX) for n in sums)) for key, sums in usage.items()]
        connection.executemany(self._add_usage, lines)
        return True

    def _new(self, connection: sqlite3.Connection, batch: Batch) -> tuple[list[End], list[AttemptRecord]]:
        """What of a batch is not there yet, each once."""
        requests = {row.id: row for row in batch.requests}
        for (id_,) in self._known_of(connection, "SELECT id FROM requests WHERE id IN", list(requests)):
            requests.pop(id_, None)
        attempts = {(row.request_id, row.number): row for row in batch.attempts}
        asked = list({row.request_id for row in batch.attempts})
        question = "SELECT request_id, number FROM provider_attempts WHERE request_id IN"
        for known in self._known_of(connection, question, asked):
            attempts.pop(known, None)
        return list(requests.values()), list(attempts.values())

    def _known_of(self, connection: sqlite3.Connection, question: str, ids: list[str]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(ids), IDS_PER_QUESTION):
            some = ids[start : start + IDS_PER_QUESTION]
            yield from connection.execute(f"{question} ({', '.join('?' * len(some))})", some).fetchall()

    def _write_checkpoint(self, connection: sqlite3.Connection, checkpoint: Checkpoint) -> None:
        journal = self._journal
        connection.executemany(
            "INSERT OR REPLACE INTO checkpoints (journal, life, segment, offset, seq, wall_ns, gaps, torn, unreadable) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(journal, life, *astuple(at)) for life, at in checkpoint.positions.items()],
        )
        if checkpoint.opened:
            connection.executemany(
                "INSERT OR REPLACE INTO open_exchanges (id, life, state, journal) VALUES (?, ?, ?, ?)",
                [(id_, of.life, self._encode(OpenState.of(of)), journal) for id_, of in checkpoint.opened.items()],
            )
        if checkpoint.closed:
            connection.executemany("DELETE FROM open_exchanges WHERE id = ?", [(id_,) for id_ in checkpoint.closed])
        ended = [(journal, life) for life in checkpoint.ended]
        if ended:
            connection.executemany(_FORGET_LIFE, ended)
            connection.executemany("UPDATE checkpoints SET ended = 1 WHERE journal IN (?, '') AND life = ?", ended)

    def _read_checkpoint(self, connection: sqlite3.Connection) -> Checkpoint:
        checkpoint = Checkpoint()
        # '' is from before a database told journals apart: then there was this one only.
        mine = "WHERE journal IN (?, '')"
        names = ", ".join(field.name for field in fields(Position))
        query = f"SELECT life, {names} FROM checkpoints {mine} AND NOT ended"
        for life, *position in connection.execute(query, (self._journal,)):
            checkpoint.positions[life] = Position(*position)
        for id_, life, state in connection.execute(
            f"SELECT id, life, state FROM open_exchanges {mine}", (self._journal,)
        ):
            checkpoint.opened[id_] = self._decode(state).opened(life)
        return checkpoint


def _insert_columns(
    connection: sqlite3.Connection, table: str, names: tuple[str, ...], columns: list[tuple[Any, ...]], key: str
) -> None:
    """Rows, given by their columns. To hand over a value costs more than to store it, so some are not: a column that
    holds nothing in any row is left out (it is NULL then), and a number that is the same in many rows stands in the
    statement. Truths are numbers: sqlite3 would look for an adapter, value by value."""
    handed: dict[str, Iterable[Any]] = {}
    fixed: dict[str, str] = {}
    rows = len(columns[0])
    for name, column in zip(names, columns, strict=True):
        first = column[0]
        alike = first == column[-1] and (first is None or rows >= ALIKE_ROWS_MIN) and column.count(first) == rows
        if alike and first is None:
            continue
        if alike and isinstance(first, int) and abs(first) <= INTEGER_MAX:
            fixed[name] = str(int(first))
        else:
            handed[name] = map(int, column) if name in FLAGS else column
    values = ", ".join((*fixed.values(), *"?" * len(handed)))
    statement = f"INSERT INTO {table} ({', '.join((*fixed, *handed))}) VALUES ({values}) ON CONFLICT ({key}) DO NOTHING"
    connection.executemany(statement, zip(*handed.values(), strict=True))


def _adding(table: str, key: tuple[str, ...], sums: tuple[str, ...]) -> str:
    marks = ", ".join("?" * (len(key) + len(sums)))
    # A provider may report any number; the sum of two that no column holds is the largest that one does.
    added = ", ".join(f"{name} = min({name} + excluded.{name}, {INTEGER_MAX})" for name in sums)
    return (
        f"INSERT INTO {table} ({', '.join(key + sums)}) VALUES ({marks}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}"
    )
