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
from edgegw.ledger.encoding import encode_attempt, encode_begin, encode_end, encode_try
from edgegw.ledger.journal import Journal
from edgegw.ledger.reader import Damage, Reader
from edgegw.ledger.record import AttemptRecord, Begin, End, Record, Try, decoder
from edgegw.ledger.schema import migrations
from edgegw.ledger.segment import SEGMENT_BYTES_MIN
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.store import Batch, Checkpoint, OpenExchange, Position, Store
from edgegw.ledger.telling import Observer
from edgegw.settings import WhenFull

WALL_NS = 1_750_000_000_000_000_000
JOURNAL_ID = "00000000000000aa"
WAIT_S = 20.0
TARGET = Target("openai", "gpt-5-mini")
OTHER = Target("anthropic", "claude-haiku-4-5")
UNPAYABLE = Target("openai", "unpayable")  # see `priced`
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


def begin(
    journal: Journal, number: int, *, failures: int = 0, tenant: str = "acme", target: Target = TARGET
) -> Exchange:
    """An exchange that is under way: `failures` attempts that failed, and one that is open."""
    exchange = make_exchange(number, tenant=tenant)
    journal.begin(exchange, make_attempt(exchange, target=target))
    for _ in range(failures):
        fail_over(journal, exchange)
    return exchange


def fail_over(journal: Journal, exchange: Exchange) -> None:
    """The attempt that is open fails, and one at another target begins."""
    attempt = exchange.attempts[-1]
    finish(attempt, error="upstream_error")
    journal.attempt(exchange, attempt)
    journal.try_(exchange, make_attempt(exchange, "fallback", OTHER, "upstream_error"))


def play(
    journal: Journal,
    number: int,
    *,
    failures: int = 0,
    tenant: str = "acme",
    target: Target = TARGET,
    within_end: bool = False,
) -> Exchange:
    """A whole exchange: `failures` attempts that fail, then one that does not, which is written `within_end` or by
    itself (as journals of version 1 have it)."""
    exchange = begin(journal, number, failures=failures, tenant=tenant, target=target)
    attempt = exchange.attempts[-1]
    finish(attempt)
    if not within_end:
        journal.attempt(exchange, attempt)
    conclude(exchange)
    journal.end(exchange)
    return exchange


def refuse(journal: Journal, number: int, *, tenant: str = "acme") -> Exchange:
    """An exchange that no provider heard of."""
    exchange = make_exchange(number, tenant=tenant)
    conclude(exchange)
    journal.end(exchange)
    return exchange


def priced(record: AttemptRecord) -> None:
    """One model costs more than a column holds."""
    record.cost_usd_micro = 2**80 if record.model == UNPAYABLE.model else 7
    record.price_version = "test"


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


def open_in_every_way() -> Checkpoint:
    """As a store was told it: lives that were read so far, and exchanges open before, in and after an attempt."""
    decode = decoder()
    exchange = make_exchange(1)
    attempt = make_attempt(exchange)
    begun, finished = decode(encode_begin(exchange, attempt, 1)), decode(encode_attempt(exchange, attempt, 2))
    retry = decode(encode_try(exchange, make_attempt(exchange, "retry", reason="upstream_cut"), 3))
    assert isinstance(begun, Begin)
    assert isinstance(retry, Try)
    assert isinstance(finished, AttemptRecord)
    opened = {
        "first": OpenExchange("0-1-1", begun, begun),
        "second": OpenExchange("0-1-1", begun, retry, finished, None, "prices of 2026"),
        "third": OpenExchange("0-2-2", begun, None, finished),
    }
    positions = {"0-1-1": Position(3, 4, 5, 6), "0-2-2": Position(1, 64, 0, 0), "0-3-3": Position(1, 2, 3, 4, 5, 6, 7)}
    return Checkpoint(positions, opened)


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
