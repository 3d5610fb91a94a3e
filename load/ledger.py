"""How fast the books are kept: records per second from a prepared journal into SQLite and into a real PostgreSQL.

    python -m load.ledger [--exchanges 200000] [--store sqlite|postgres]

The shipper runs in a process of its own, as the control process has it (uvloop, prices, metrics), against a database on
the same cores. A plain exchange is two records (begin, and end with its only attempt) and becomes two rows. `CPU` is
what our process takes (user and system, all threads), `loop` the longest time for which nothing else had its turn on
the event loop, `RSS` what the process grew by at most while it shipped.

Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from edgegw.app import build_control
from edgegw.ledger.journal import Journal
from edgegw.settings import load_text
from load.journal import RECORDS_PER_EXCHANGE, exchanges, write
from load.measure import resident_mib
from load.processes import PostgresHouse
from load.tables import table

EXCHANGES = 200_000
RECORDS_PER_S_MIN = {"sqlite": 10_000, "postgres": 20_000}
RSS_MIB_MAX = 64.0
DRAIN_TIMEOUT_S = 900.0
LOOK_S = 0.001


@dataclass(slots=True)
class Report:
    store: str
    records: int
    rows: int
    batches: int
    seconds: float
    cpu_s: float
    loop_ms: float
    rss_before_mib: float
    rss_peak_mib: float

    @property
    def missed(self) -> list[str]:
        per_s, least = self.records / self.seconds, RECORDS_PER_S_MIN[self.store]
        grown = self.rss_peak_mib - self.rss_before_mib
        bars = [
            (per_s >= least, f"{per_s:,.0f} records/s, {least:,} are wanted"),
            (grown <= RSS_MIB_MAX, f"{grown:.0f} MiB more, {RSS_MIB_MAX:.0f} may be"),
            (self.rows == self.records, f"{self.rows:,} rows of {self.records:,} records"),
        ]
        return [text for good, text in bars if not good]


def prepare(state_dir: Path, count: int) -> None:
    """A journal as one worker leaves it."""
    wall_ns = time.time_ns() - count * 100_000
    journal = Journal.open(state_dir, 0, wall_ns=wall_ns, pid=1, bytes_max=64 << 30)
    for start in range(0, count, 20_000):
        write(journal, exchanges(min(20_000, count - start), start, wall_ns))
    journal.close()


# -- the process that ships --


async def longest_turn(longest_s: list[float]) -> None:
    """How long the loop kept others waiting, at most."""
    while True:
        before_s = time.perf_counter()
        await asyncio.sleep(LOOK_S)
        longest_s[0] = max(longest_s[0], time.perf_counter() - before_s - LOOK_S)


async def ship(state_dir: Path, url: str) -> dict[str, float]:
    """What the control process is made of, and of that the shipper alone is run."""
    settings = load_text(
        json.dumps(
            {
                "version": 1,
                "server": {"state_dir": str(state_dir)},
                "storage": {"database_url": url},
                "providers": {"openai": {"kind": "openai", "api_key": "sk-benchmark"}},
            }
        ),
        {},
    )
    with socket.socket(socket.AF_UNIX) as channel:
        control = build_control(settings, channel, asyncio.get_running_loop())
        gc.collect()
        gc.freeze()
        await control.store.read_checkpoint()  # connected, and its tables made
        longest_s = [0.0]
        looking = asyncio.create_task(longest_turn(longest_s))
        before_mib, cpu_s, began_s = resident_mib(os.getpid()), time.process_time(), time.perf_counter()
        running = asyncio.create_task(control.shipper.run())
        await asyncio.sleep(0)
        await control.shipper.stop(DRAIN_TIMEOUT_S)
        await running
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        looking.cancel()
        await control.store.close()
        tally = control.shipper.tally
        return {
            "rows": tally.rows,
            "batches": tally.batches,
            "seconds": seconds,
            "cpu_s": cpu_s,
            "loop_ms": longest_s[0] * 1e3,
            "rss_before_mib": before_mib,
            "rss_peak_mib": resident_mib(os.getpid(), "VmHWM"),
        }


# -- the program --


@contextmanager
def database(store: str, state_dir: Path) -> Iterator[str]:
    """Its address."""
    if store == "sqlite":
        yield f"sqlite:///{state_dir}/edgegw.db"
        return
    house = PostgresHouse()
    try:
        yield house.server(durable=True).database().dsn
    finally:
        house.end()


def run(store: str, count: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="edgegw-load-") as name:
        state_dir = Path(name)
        prepare(state_dir, count)
        with database(store, state_dir) as url:
            command = [sys.executable, "-m", "load.ledger", "--ship", name, url]
            env = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}  # nobody takes spans here
            shipped = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=env)
            return Report(store=store, records=count * RECORDS_PER_EXCHANGE, **json.loads(shipped.stdout))


COLUMNS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("store", lambda one: one.store),
    ("records", lambda one: f"{one.records:,}"),
    ("records/s", lambda one: f"{one.records / one.seconds:,.0f}"),
    ("rows/s", lambda one: f"{one.rows / one.seconds:,.0f}"),
    ("CPU us a record", lambda one: f"{one.cpu_s / one.records * 1e6:.1f}"),
    ("rows a batch", lambda one: f"{one.rows / one.batches:,.0f}"),
    ("loop, at most ms", lambda one: f"{one.loop_ms:.1f}"),
    ("RSS before, MiB", lambda one: f"{one.rss_before_mib:.0f}"),
    ("more, at most MiB", lambda one: f"{one.rss_peak_mib - one.rss_before_mib:.1f}"),
)


def shown(reports: Sequence[Report]) -> str:
    missed = [f"\nMISSED {one.store}: {what}" for one in reports for what in one.missed]
    return table(
        [heading for heading, _ in COLUMNS], [[cell(one) for _, cell in COLUMNS] for one in reports]
    ) + "".join(missed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load.ledger", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--exchanges", type=int, default=EXCHANGES)
    parser.add_argument("--store", choices=tuple(RECORDS_PER_S_MIN), help="one of them only")
    parser.add_argument("--ship", nargs=2, metavar=("STATE_DIR", "URL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ship:
        print(json.dumps(uvloop.run(ship(Path(given.ship[0]), given.ship[1]))))
        return 0
    reports = [run(store, given.exchanges) for store in ([given.store] if given.store else RECORDS_PER_S_MIN)]
    print(shown(reports))
    return 1 if any(one.missed for one in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
