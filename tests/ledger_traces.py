"""What the tests of the ledger share: exchanges, workers that die, and the books as plain values."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from edgegw.clock import ManualClock, uuid7
from edgegw.exchange import Attempt, AttemptKind, Exchange, Route, Target, Usage
from edgegw.ledger.assembly import Price, unpriced
from edgegw.ledger.encoding import encode_attempt, encode_end
from edgegw.ledger.journal import Journal
from edgegw.ledger.reader import Damage, Reader
from edgegw.ledger.record import AttemptRecord, End, Record, decoder
from edgegw.ledger.schema import migrations
from edgegw.ledger.segment import SEGMENT_BYTES_MIN
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.store import Batch, Checkpoint, Position, Store
from edgegw.ledger.telling import Observer
from edgegw.settings import WhenFull

WALL_NS = 1_750_000_000_000_000_000
JOURNAL_ID = "00000000000000aa"
WAIT_S = 20.0
TARGET = Target("openai", "gpt-5-mini")
OTHER = Target("anthropic", "claude-haiku-4-5")
ROUTE = Route("use_case:support_summary", (TARGET, OTHER))


def make_exchange(number: int, *, tenant: str = "acme") -> Exchange:
    at_ns = WALL_NS + number * 1_000_000
    return Exchange(
        uuid7(at_ns, number), at_ns, 0.0, tenant=tenant, use_case="support_summary", model_asked="smart", route=ROUTE
    )


def make_attempt(
    exchange: Exchange, kind: AttemptKind = "primary", target: Target = TARGET, reason: str | None = None
) -> Attempt:
    number = len(exchange.attempts) + 1
    attempt = Attempt(number, kind, target, exchange.started_ns + number * 1000, 0.0, retry_reason=reason)
    exchange.attempts.append(attempt)
    return attempt


def finish(attempt: Attempt, *, error: str | None = None) -> None:
    attempt.status = 200 if error is None else 500
    attempt.error_kind = error
    attempt.duration_s = 0.25
    if error is None:
        attempt.usage = Usage(10, 20, 4)
        attempt.first_byte_s = 0.1
        attempt.finish_reason = "stop"


def conclude(exchange: Exchange) -> None:
    last = exchange.attempts[-1] if exchange.attempts else None
    exchange.state = "refused" if last is None else "failed" if last.error_kind else "complete"
    exchange.status = 404 if last is None else 502 if last.error_kind else 200
    exchange.error_kind = "model_not_found" if last is None else last.error_kind
    exchange.usage = None if last is None else last.usage
    exchange.duration_s = 0.3
    exchange.upstream_s = 0.29


def play(
    journal: Journal, number: int, *, failures: int = 0, tenant: str = "acme", within_end: bool = False
) -> Exchange:
    """A whole exchange: `failures` attempts that fail, then one that does not, which is written `within_end` or by
    itself (as journals of version 1 have it)."""
    exchange = make_exchange(number, tenant=tenant)
    attempt = make_attempt(exchange)
    journal.begin(exchange, attempt)
    for _ in range(failures):
        finish(attempt, error="upstream_error")
        journal.attempt(exchange, attempt)
        attempt = make_attempt(exchange, "fallback", OTHER, "upstream_error")
        journal.try_(exchange, attempt)
    finish(attempt)
    if not within_end:
        journal.attempt(exchange, attempt)
    conclude(exchange)
    journal.end(exchange)
    return exchange


def ended(number: int) -> Exchange:
    exchange = make_exchange(number)
    finish(make_attempt(exchange))
    conclude(exchange)
    return exchange


def a_batch(numbers: range) -> Batch:
    decode = decoder()
    batch = Batch()
    for exchange in map(ended, numbers):
        end, attempt = decode(encode_end(exchange, 2)), decode(encode_attempt(exchange, exchange.attempts[0], 1))
        assert isinstance(end, End)
        assert isinstance(attempt, AttemptRecord)
        batch.requests.append(end)
        batch.attempts.append(attempt)
    return batch


def at(segment: int, offset: int) -> Checkpoint:
    return Checkpoint(positions={"0-1-1": Position(segment, offset, offset, WALL_NS)})


def open_journal(
    state_dir: Path,
    life: int = 1,
    *,
    bytes_max: int = 1 << 30,
    segment_bytes: int = 0,
    when_full: WhenFull = "refuse",
) -> Journal:
    """Small segments, so that a few hundred records fill one."""
    state_dir.mkdir(parents=True, exist_ok=True)
    return Journal.open(
        state_dir,
        0,
        wall_ns=WALL_NS + life,
        pid=1000 + life,
        bytes_max=bytes_max,
        segment_bytes=segment_bytes or SEGMENT_BYTES_MIN,
        when_full=when_full,
    )


def die(journal: Journal) -> None:
    """What the kernel does for a process that is killed: the lock goes, the pages stay, nothing is said."""
    for part in (journal._life, journal._current, journal._spare):
        if part is not None:
            part.close()


def life_dir(state_dir: Path) -> Path:
    (found,) = (state_dir / "journal").iterdir()
    return found


def read_all(
    state_dir: Path, positions: dict[str, Position] | None = None, limit: int = 1000
) -> tuple[list[Record], Damage]:
    damage = Damage()
    reader = Reader(state_dir, positions or {}, damage)
    records: list[Record] = []
    while True:
        portion = [record for _, some in reader.read(limit) for record in some]
        if not portion:
            reader.close()
            return records, damage
        records += portion


def sqlite_store(path: Path, *, pages_max: int = 0) -> SqliteStore:
    return SqliteStore(path, migrations("sqlite"), ManualClock(wall_ns=WALL_NS), JOURNAL_ID, pages_max=pages_max)


async def ship_all(
    state_dir: Path,
    store: Store,
    observers: Sequence[Observer] = (),
    *,
    batch_rows_max: int = 1000,
    price: Price = unpriced,
) -> Shipper:
    """Start a shipper, let it ship what is there, stop it. Raises what it raised."""
    shipper = Shipper(
        state_dir,
        store,
        ManualClock(wall_ns=WALL_NS),
        price,
        observers,
        poll_s=0.002,
        batch_rows_max=batch_rows_max,
    )
    running = asyncio.create_task(shipper.run())
    await asyncio.sleep(0)
    try:
        assert await shipper.stop(WAIT_S)
    finally:
        await asyncio.gather(running, return_exceptions=True)
    running.result()
    return shipper


def books(path: Path) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """All rows of both tables, by id."""
    with closing(sqlite3.connect(path)) as connection:
        requests = connection.execute("SELECT * FROM requests ORDER BY id").fetchall()
        attempts = connection.execute("SELECT * FROM provider_attempts ORDER BY request_id, number").fetchall()
    return requests, attempts


def states(path: Path) -> dict[str, str]:
    """The state of every request by its id."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT id, state FROM requests"))
