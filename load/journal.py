"""What the books cost: us per record written by a worker, us per request and records per second on the control side.

    python -m load.journal [--exchanges 20000] [--rounds 7]

One process plays both sides, one after the other, in a temporary directory (--dir, to choose the disk). Each figure is
CPU time (user and system, all threads) of the best round; a plain exchange is two records (begin, and end with its only
attempt) and becomes two rows.

Then what `storage.journal.sync` costs, with the disk that is there: the worker's CPU time while another process syncs
its pages over and over (`interval`, far more often than any setting), and for `always` the time of an exchange whose
two records wait for the disk, alone and among 64.
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from edgegw.clock import ManualClock, uuid7
from edgegw.errand import Errand
from edgegw.exchange import Attempt, Exchange, Route, Target, Usage
from edgegw.ledger.assembly import unpriced
from edgegw.ledger.durable import Durable
from edgegw.ledger.journal import Journal
from edgegw.ledger.reader import Damage, Reader
from edgegw.ledger.schema import migrations
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.sqlite import SqliteStore

WALL_NS = 1_750_000_000_000_000_000
RECORDS_PER_EXCHANGE = 2
DRAIN_TIMEOUT_S = 120.0
ALONE, AMONG = 200, 64  # exchanges that wait for the disk one after the other; at once
SYNC_FOR_EVER = """
import sys
from pathlib import Path
from edgegw.ledger.syncing import Syncer
syncer = Syncer(Path(sys.argv[1]), 1.0)
print("syncing", flush=True)
while True:
    syncer.sync_now()
"""


def exchanges(count: int, first: int = 0, wall_ns: int = WALL_NS) -> list[Exchange]:
    """Plain exchanges as a gateway would make them, 0.1 ms apart."""
    target = Target("openai", "gpt-5-mini")
    route = Route("use_case:support_summary", (target,))
    made = []
    for number in range(first, first + count):
        at_ns = wall_ns + number * 100_000
        attempt = Attempt(
            1,
            "primary",
            target,
            at_ns,
            0.0,
            status=200,
            first_byte_s=0.41,
            first_token_s=0.42,
            duration_s=0.8,
            usage=Usage(812, 230, 512),
            upstream_request_id="req_0a1b2c3d4e5f67890a1b2c3d4e5f6789",
            upstream_model="gpt-5-mini-2025-08-07",
            finish_reason="stop",
            reused=True,
        )
        made.append(
            Exchange(
                uuid7(at_ns, number * 0x9E3779B97F4A7C15F39C % 2**80),
                at_ns,
                0.0,
                tenant=f"tenant-{number % 50}",
                use_case="support_summary",
                model_asked="smart",
                route=route,
                attempts=[attempt],
                status=200,
                state="complete",
                usage=attempt.usage,
                bytes_in=2_310,
                bytes_out=1_404,
                committed_s=0.41,
                upstream_s=0.79,
                duration_s=0.8,
            )
        )
    return made


def write(journal: Journal, work: list[Exchange]) -> None:
    for number, exchange in enumerate(work):
        attempt = exchange.attempts[0]
        journal.begin(exchange, attempt)
        journal.end(exchange)
        if not number % 1000:
            journal.prepare()


async def write_durably(journal: Journal, work: list[Exchange], at_once: int) -> float:
    """Every record on the disk before the exchange goes on; seconds for all of them."""
    loop = asyncio.get_running_loop()
    durable = Durable(journal, loop, refuses=True)
    left = iter(work)
    over = loop.create_future()
    running = at_once

    async def client() -> None:
        nonlocal running
        for exchange in left:
            journal.begin(exchange, exchange.attempts[0])
            await durable.before_upstream()
            journal.end(exchange)
            await durable.before_client()
        running -= 1
        if not running:
            over.set_result(None)

    started = time.perf_counter()
    for _ in range(at_once):
        Errand(client(), loop).step()
    await over
    durable.close()
    return time.perf_counter() - started


def synced_round(root: Path, work: list[Exchange]) -> tuple[float, float, float]:
    """us of CPU per exchange while another process syncs; us per exchange that waits for the disk, alone and among
    64."""
    journal = Journal.open(root, 0, wall_ns=WALL_NS, pid=1, syncs=True)
    command = [sys.executable, "-c", SYNC_FOR_EVER, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        beside = timed(lambda: write(journal, work)) / len(work)
        other.kill()
    alone = asyncio.run(write_durably(journal, work[:ALONE], 1)) / ALONE
    among = asyncio.run(write_durably(journal, work[: AMONG * 20], AMONG)) / (AMONG * 20)
    journal.close()
    return beside * 1e6, alone * 1e6, among * 1e6


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


async def ship(state_dir: Path, database: Path) -> Shipper:
    clock = ManualClock(wall_ns=WALL_NS)
    store = SqliteStore(database, migrations("sqlite"), clock, "benchmark")
    shipper = Shipper(state_dir, store, clock, unpriced)
    running = asyncio.create_task(shipper.run())
    await asyncio.sleep(0)
    await shipper.stop(DRAIN_TIMEOUT_S)
    await running
    await store.close()
    return shipper


def one_round(root: Path, work: list[Exchange]) -> tuple[float, float, float]:
    """us per record written, us per exchange read and decoded, us per exchange shipped (reading included)."""
    records = len(work) * RECORDS_PER_EXCHANGE
    journal = Journal.open(root, 0, wall_ns=WALL_NS, pid=1)
    written = timed(lambda: write(journal, work))
    journal.close()
    reader = Reader(root, {}, Damage())

    def read() -> None:
        while any(True for _ in reader.read(1000)):
            pass

    read_s = timed(read)
    reader.close()
    database = root / "edgegw.db"
    shipped = timed(lambda: asyncio.run(ship(root, database)))
    with closing(sqlite3.connect(database)) as connection:
        for table in ("requests", "provider_attempts"):
            (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            if rows != len(work):
                raise click.ClickException(f"{table}: {rows} rows of {len(work)}")
    return written / records * 1e6, read_s / len(work) * 1e6, shipped / len(work) * 1e6


@click.command()
@click.option("--exchanges", "count", default=20_000, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--dir", "where", type=click.Path(path_type=Path, file_okay=False, exists=True), default=None)
def main(count: int, rounds: int, where: Path | None) -> None:
    """Measure the ledger."""
    figures, synced = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=where) as root:
            figures.append(one_round(Path(root), exchanges(count)))
        with tempfile.TemporaryDirectory(dir=where) as root:
            synced.append(synced_round(Path(root), exchanges(count)))
    written, read, shipped = map(min, zip(*figures, strict=True))
    click.echo(f"journal   {written:6.2f} us per record written, {written * RECORDS_PER_EXCHANGE:.2f} us per exchange")
    beside, alone, among = map(min, zip(*synced, strict=True))
    click.echo(f"  synced by another process all the time  {beside:6.2f} us per exchange")
    click.echo(f"  waiting for the disk twice              {alone:6.0f} us per exchange, {among:.0f} us among {AMONG}")
    click.echo(f"reader    {read:6.2f} us per exchange")
    click.echo(
        f"shipper   {shipped:6.2f} us per exchange, reader and SQLite included "
        f"({RECORDS_PER_EXCHANGE / shipped * 1e6:,.0f} records/s, {2 / shipped * 1e6:,.0f} rows/s)"
    )


if __name__ == "__main__":
    main()
