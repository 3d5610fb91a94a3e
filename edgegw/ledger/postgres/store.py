"""The books in PostgreSQL, which may be those of many gateways at once.

A batch is one transaction: its rows are copied into tables of the session (no write-ahead log, no index), and from
there inserted where they are not known yet. When all of them were new, as they mostly are, the sums are those of the
batch; otherwise it is done again, and asked which ones were.

If the connection breaks while COMMIT is under way nobody knows what became of it. The same call again is right either
way: rows that are there are left as they are and not added to any sum, and a checkpoint says where a reader stands, not
how far it went.

The only module that knows how the tables are written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any
from uuid import UUID

import msgspec

from edgegw.clock import Clock
from edgegw.ledger.postgres.connection import BEGIN, Postgres, Session
from edgegw.ledger.postgres.days import DAYS_AROUND_MAX, day_of_ns, days_of
from edgegw.ledger.postgres.partitions import days_there, make_days
from edgegw.ledger.postgres.schema import migrate
from edgegw.ledger.record import (
    ATTEMPT_COLUMNS,
    INTEGER_MAX,
    REQUEST_COLUMNS,
    attempt_row,
    request_row,
)
from edgegw.ledger.schema import Migration
from edgegw.ledger.store import Batch, Checkpoint, OpenState, Position, RejectedError
from edgegw.ledger.usage import SUMS, UsageKey, usage_of
from edgegw.settings import PostgresAddress

_USAGE_KEY = (*UsageKey._fields, "journal")
_POSITION = tuple(field.name for field in fields(Position))


class PostgresStore:
    """A Store (store.py) in a PostgreSQL database, whose tables are made when it is first used."""

    def __init__(self, address: PostgresAddress, known: tuple[Migration, ...], clock: Clock, journal: str) -> None:
        self._postgres = Postgres(address, self._opened)
        self._known = known
        self._clock = clock
        self._journal = journal
        self._days: set[int] = set()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(OpenState).decode
        # By the schema's number, because a pooler may hand us a session of another version of this program.
        staged = {table: f"edgegw_{table}_{known[-1].version}" for table in ("requests", "provider_attempts")}
        self._requests, self._attempts = staged["requests"], staged["provider_attempts"]
        self._begin = "; ".join(
            (
                BEGIN,
                _staging(self._requests, "requests", REQUEST_COLUMNS),
                _staging(self._attempts, "provider_attempts", ATTEMPT_COLUMNS),
            )
        )
        self._insert_requests = _insert("requests", REQUEST_COLUMNS, self._requests)
        self._insert_attempts = _insert("provider_attempts", ATTEMPT_COLUMNS, self._attempts)

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        """See Store.write."""
        self._check_days(batch)
        try:
            await self._postgres.run(lambda session: self._write(session, batch, checkpoint))
        except RejectedError:
            clean = _without_nul(batch)
            if clean is None:
                raise
            await self._postgres.run(lambda session: self._write(session, clean, checkpoint))

    async def read_checkpoint(self) -> Checkpoint:
        """See Store.read_checkpoint."""
        return await self._postgres.run(self._read_checkpoint)

    async def close(self) -> None:
        """See Postgres.close."""
        await self._postgres.close()

    async def _opened(self, session: Session) -> None:
        await migrate(session, self._known, self._clock.wall_ns())
        self._days = await days_there(session)

    async def _write(self, session: Session, batch: Batch, checkpoint: Checkpoint) -> None:
        if batch.rows:
            await self._make_days(session, batch)
        await session.execute(self._begin if batch.rows else BEGIN)
        if batch.rows:
            if not await self._insert(session, batch):
                # Some are there already, from before a crash: only what is new is added to the sums.
                await session.execute("ROLLBACK")
                await session.execute(self._begin)
                batch = await self._insert_new(session, batch)
            await self._add_usage(session, batch)
        await self._write_checkpoint(session, checkpoint)
        await session.execute("COMMIT")

    def _check_days(self, batch: Batch) -> None:
        """Before anybody is asked: a gateway whose clock was wrong has many such rows, each refused by itself."""
        today = day_of_ns(self._clock.wall_ns())
        if any(abs(day - today) > DAYS_AROUND_MAX for day in _days_of(batch) - self._days):
            raise RejectedError(f"rows that are more than {DAYS_AROUND_MAX} days from today, by their ids")

    async def _make_days(self, session: Session, batch: Batch) -> None:
        missing = _days_of(batch) - self._days
        if missing:
            await make_days(session, missing)
            self._days |= missing

    async def _stage(self, session: Session, batch: Batch) -> None:
        await _copy(session, self._requests, REQUEST_COLUMNS, map(request_row, batch.requests))
        await _copy(session, self._attempts, ATTEMPT_COLUMNS, map(attempt_row, batch.attempts))

    async def _insert(self, session: Session, batch: Batch) -> bool:
        """The rows; False when some of them were there."""
        await self._stage(session, batch)
        requests = await session.execute(self._insert_requests)
        attempts = await session.execute(self._insert_attempts)
        return _count(requests) == len(batch.requests) and _count(attempts) == len(batch.attempts)

    async def _insert_new(self, session: Session, batch: Batch) -> Batch:
        """The rows that were not there, each once."""
        await self._stage(session, batch)
        ids = await session.fetch(f"{self._insert_requests} RETURNING id")
        numbers = await session.fetch(f"{self._insert_attempts} RETURNING request_id, number")
        # Of rows that are there twice the first was taken.
        requests = {UUID(row.id): row for row in reversed(batch.requests)}
        attempts = {(UUID(row.request_id), row.number): row for row in reversed(batch.attempts)}
        return Batch([requests[id_] for (id_,) in ids], [attempts[id_, number] for id_, number in numbers])

    async def _add_usage(self, session: Session, batch: Batch) -> None:
        """In the order of the keys, so that two who add to the same lines wait for each other and never in a circle."""
        usage = usage_of(batch.requests, batch.attempts)
        if usage:
            lines = sorted((*key, self._journal, *(min(n, INTEGER_MAX) for n in sums)) for key, sums in usage.items())
            await session.execute(_ADD_USAGE, *zip(*lines, strict=True))

    async def _write_checkpoint(self, session: Session, checkpoint: Checkpoint) -> None:
        journal = self._journal
        if checkpoint.positions:
            rows = [(life, *astuple(at)) for life, at in sorted(checkpoint.positions.items())]
            await session.execute(_WRITE_POSITIONS, journal, *zip(*rows, strict=True))
        if checkpoint.opened:
            opened = [(id_, of.life, self._encode(OpenState.of(of))) for id_, of in sorted(checkpoint.opened.items())]
            await session.execute(_WRITE_OPEN, journal, *zip(*opened, strict=True))
        if checkpoint.closed:
            await session.execute("DELETE FROM open_exchanges WHERE id = ANY($1::text[])", checkpoint.closed)
        if checkpoint.ended:
            await session.execute(_FORGET_LIVES, journal, checkpoint.ended)
            await session.execute(_END_LIVES, journal, checkpoint.ended)

    async def _read_checkpoint(self, session: Session) -> Checkpoint:
        checkpoint = Checkpoint()
        names = ", ".join(f'"{name}"' for name in _POSITION)
        query = f"SELECT life, {names} FROM checkpoints WHERE journal = $1 AND NOT ended"
        for life, *position in await session.fetch(query, self._journal):
            checkpoint.positions[life] = Position(*position)
        query = "SELECT id, life, state FROM open_exchanges WHERE journal = $1"
        for id_, life, state in await session.fetch(query, self._journal):
            checkpoint.opened[id_] = self._decode(state).opened(life)
        return checkpoint


def _days_of(batch: Batch) -> set[int]:
    try:
        return days_of([row.id for row in batch.requests] + [row.request_id for row in batch.attempts])
    except ValueError as error:
        raise RejectedError(str(error)) from error


def _staging(name: str, table: str, columns: tuple[str, ...]) -> str:
    return (
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {name} ON COMMIT DELETE ROWS AS "
        f"SELECT {', '.join(columns)} FROM {table} WITH NO DATA"
    )


def _insert(table: str, columns: tuple[str, ...], staged: str) -> str:
    names = ", ".join(columns)
    return f"INSERT INTO {table} ({names}) SELECT {names} FROM {staged} ON CONFLICT DO NOTHING"


async def _copy(session: Session, table: str, columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    await session.copy_records_to_table(table, schema_name="pg_temp", columns=columns, records=rows)


def _count(tag: str) -> int:
    """Of `INSERT 0 17`."""
    return int(tag.rpartition(" ")[2])


def _arrays(columns: tuple[tuple[str, str], ...], first: int) -> str:
    """A table of one array a column, from parameter number `first` on."""
    arrays = ", ".join(f"${first + place}::{kind}[]" for place, (_, kind) in enumerate(columns))
    names = ", ".join(f'"{name}"' for name, _ in columns)
    return f"unnest({arrays}) AS line ({names})"


_USAGE_COLUMNS = (
    *((name, "bigint" if name == "hour" else "text") for name in _USAGE_KEY),
    *((name, "bigint") for name in SUMS),
)
# A provider may report any number; the sum of two that no column holds is the largest that one does.
_ADD_USAGE = f"""
INSERT INTO usage_hours ({", ".join(name for name, _ in _USAGE_COLUMNS)})
SELECT * FROM {_arrays(_USAGE_COLUMNS, 1)}
ON CONFLICT ({", ".join(_USAGE_KEY)}) DO UPDATE SET
{", ".join(f"{n} = least(usage_hours.{n}::numeric + excluded.{n}, {INTEGER_MAX})::bigint" for n in SUMS)}
"""
_POSITION_COLUMNS = (("life", "text"), *((name, "bigint") for name in _POSITION))
_WRITE_POSITIONS = f"""
INSERT INTO checkpoints (journal, {", ".join(f'"{name}"' for name, _ in _POSITION_COLUMNS)})
SELECT $1, * FROM {_arrays(_POSITION_COLUMNS, 2)}
ON CONFLICT (journal, life) DO UPDATE SET {", ".join(f'"{name}" = excluded."{name}"' for name in _POSITION)},
    ended = false
"""
_WRITE_OPEN = f"""
INSERT INTO open_exchanges (journal, id, life, state)
SELECT $1, * FROM {_arrays((("id", "text"), ("life", "text"), ("state", "bytea")), 2)}
ON CONFLICT (id) DO UPDATE SET journal = excluded.journal, life = excluded.life, state = excluded.state
"""
_FORGET_LIVES = """
DELETE FROM checkpoints
 WHERE journal = $1 AND life = ANY($2::text[]) AND gaps = 0 AND torn = 0 AND unreadable = 0
"""
_END_LIVES = "UPDATE checkpoints SET ended = true WHERE journal = $1 AND life = ANY($2::text[])"


def _without_nul(batch: Batch) -> Batch | None:
    """The batch with a mark in the place of each NUL character, which a text of PostgreSQL cannot hold; None when there
    are none. Whatever a client puts into a name, its request is in the books."""
    requests, attempts = [*map(_marked, batch.requests)], [*map(_marked, batch.attempts)]
    if requests == batch.requests and attempts == batch.attempts:
        return None
    return Batch(requests, attempts)


def _marked(record: Any) -> Any:
    marked = {
        name: value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        for name, value in msgspec.structs.asdict(record).items()
        if isinstance(value, str) and "\0" in value
    }
    return msgspec.structs.replace(record, **marked) if marked else record
