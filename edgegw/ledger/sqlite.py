"""The books in SQLite: one file, one writer, one thread.

SQLite calls block, so all of them run in a thread of the store's own, in the order in which they were asked for. One
batch is one transaction; with WAL and synchronous=NORMAL it costs no fsync, survives the death of any process, and
loses at most the last transactions when the machine dies (the journal has the same promise).

Whatever goes wrong, the connection is given up and made again at the next call: SQLite's errors say little about what
the connection is still good for. The only module that knows how the tables are written; listing.py reads them.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from edgegw.clock import Clock
from edgegw.ledger.record import AttemptRecord, Begin, End, Try
from edgegw.ledger.schema import Migration, file_identity, open_database
from edgegw.ledger.store import Batch, Checkpoint, OpenExchange, Position, StoreError

# How long SQLite itself waits for another process's lock before the shipper backs off.
BUSY_TIMEOUT_S = 1.0
# The first fields of a record (version, seq) are no columns; the last of an End is the row of another table.
_REQUEST_COLUMNS = slice(2, -1)
_ATTEMPT_COLUMNS = slice(2, None)

_T = TypeVar("_T")
_OpenState = tuple[Begin, Begin | Try | None, AttemptRecord | None]


class SqliteStore:
    """A Store (store.py) in one SQLite file, which is made, with its tables, when it is first used.

    `pages_max` bounds the size of the file (0: unbounded); what does not fit is a StoreError. It is looked at when a
    connection is made, so after an error.
    """

    def __init__(self, path: Path, known: tuple[Migration, ...], clock: Clock, *, pages_max: int = 0) -> None:
        self._path = path
        self._known = known
        self._clock = clock
        self.pages_max = pages_max
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger-sqlite")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        # For what it does not know, None and bool among it, sqlite3 searches its protocols at 0.3 us a value.
        sqlite3.register_adapter(bool, int)
        sqlite3.register_adapter(type(None), _as_it_is)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(_OpenState).decode
        self._insert_request = _insert("requests", End.__struct_fields__[_REQUEST_COLUMNS], "id")
        self._insert_attempt = _insert(
            "provider_attempts", AttemptRecord.__struct_fields__[_ATTEMPT_COLUMNS], "request_id, number"
        )

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See Store.write."""
        await self._in_thread(lambda: self._write(batch, checkpoint))

    async def read_checkpoint(self) -> Checkpoint:
        """See Store.read_checkpoint."""
        return await self._in_thread(self._read_checkpoint)

    async def close(self) -> None:
        """Wait for what is under way, fold the write-ahead log into the file, end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)

    # From here on: the thread.

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (sqlite3.Error, OSError, OverflowError, UnicodeEncodeError, msgspec.DecodeError) as error:
            self._disconnect()
            raise StoreError(f"{self._path.name}: {error}") from error
        except BaseException:
            self._disconnect()
            raise

    def _write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        row = msgspec.structs.astuple
        requests = [row(record)[_REQUEST_COLUMNS] for record in batch.requests]
        attempts = [row(record)[_ATTEMPT_COLUMNS] for record in batch.attempts]
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        if requests:
            connection.executemany(self._insert_request, requests)
        if attempts:
            connection.executemany(self._insert_attempt, attempts)
        self._write_checkpoint(connection, checkpoint)
        connection.execute("COMMIT")

    def _write_checkpoint(self, connection: sqlite3.Connection, checkpoint: Checkpoint) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO checkpoints (life, segment, offset, seq, wall_ns) VALUES (?, ?, ?, ?, ?)",
            [(life, at.segment, at.offset, at.seq, at.wall_ns) for life, at in checkpoint.positions.items()],
        )
        if checkpoint.opened:
            connection.executemany(
                "INSERT OR REPLACE INTO open_exchanges (id, life, state) VALUES (?, ?, ?)",
                [
                    (id_, exchange.life, self._encode((exchange.begin, exchange.flight, exchange.last)))
                    for id_, exchange in checkpoint.opened.items()
                ],
            )
        if checkpoint.closed:
            connection.executemany("DELETE FROM open_exchanges WHERE id = ?", [(id_,) for id_ in checkpoint.closed])
        if checkpoint.ended:
            connection.executemany("DELETE FROM checkpoints WHERE life = ?", [(life,) for life in checkpoint.ended])

    def _read_checkpoint(self) -> Checkpoint:
        connection = self._connected()
        checkpoint = Checkpoint()
        for life, *position in connection.execute("SELECT life, segment, offset, seq, wall_ns FROM checkpoints"):
            checkpoint.positions[life] = Position(*position)
        for id_, life, state in connection.execute("SELECT id, life, state FROM open_exchanges"):
            begin, flight, last = self._decode(state)
            checkpoint.opened[id_] = OpenExchange(life, begin, flight, last, stored=True)
        return checkpoint

    def _connected(self) -> sqlite3.Connection:
        """The connection; a new one after an error, and when the file was moved away or replaced under us."""
        if self._connection is not None and self._file == file_identity(self._path):
            return self._connection
        self._disconnect()
        connection = open_database(self._path, self._known, self._clock.wall_ns(), BUSY_TIMEOUT_S)
        self._connection = connection
        self._file = file_identity(self._path)
        if self.pages_max:
            connection.execute(f"PRAGMA max_page_count = {int(self.pages_max)}")
        return connection

    def _disconnect(self) -> None:
        """Give the connection up; a transaction that was open is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _insert(table: str, columns: tuple[str, ...], key: str) -> str:
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT ({key}) DO NOTHING"


def _as_it_is(none: None) -> None:
    return none
