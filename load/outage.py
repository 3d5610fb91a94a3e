"""Does anybody notice that PostgreSQL is away for ten minutes? `python -m load.outage`

A real gateway (one worker) and a simulated provider at a steady 200 requests a second, half of them streamed. After a
minute PostgreSQL freezes (SIGSTOP: it takes connections and answers nothing), in another run it is shut down; after
ten minutes it is back. No request may fail or take longer, the control process must not grow, and the rows must be
there soon, all of them.

Requests are sent by the clock, whether earlier ones are answered or not. Their times are those that a client sees, the
provider's own pace included (20 ms; it is the same before and during).

Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import uvloop

from edgegw.ledger.room import bytes_on_disk
from load.books import Books, in_thread, verify
from load.clients import BrokenError, Client, chat
from load.measure import percentile, resident_mib
from load.processes import (
    CLIENT_KEY,
    Gateway,
    Postgres,
    PostgresHouse,
    Simulator,
    ask,
    port_of,
    start_gateway,
    start_simulator,
)
from load.tables import table

How = Literal["frozen", "stopped"]

RATE = 200.0  # requests a second
BEFORE_S = 60.0
MINUTES = 10.0
WAIT_MS_MAX = 2.0  # that p99 may be higher while PostgreSQL is away
RSS_MIB_MAX = 64.0
CAUGHT_UP_S_MAX = 60.0
GIVE_UP_S = 300.0
LOOK_S = 0.1
WINDOW_S = 5.0
LAG_S_MAX = 1.0
SIMULATED = ("--latency", "20ms", "--tokens", "8", "--pace", "0s")
SETTLED_S = 5.0  # of the first seconds nothing is counted: processes have just been started


@dataclass(frozen=True, slots=True)
class Seen:
    at_s: float
    took_s: float
    stream: bool


@dataclass(slots=True)
class Traffic:
    """Requests by the clock. `failed`: in words."""

    port: int
    sent: int = 0
    seen: list[Seen] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _free: list[Client] = field(default_factory=list)
    _going: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, rate: float) -> None:
        """Until it is cancelled; then what is under way is waited for."""
        requests = [chat(CLIENT_KEY, "steady", "How are you?", stream=stream) for stream in (False, True)]
        due_s = time.monotonic()
        try:
            while True:
                due_s += 1 / rate
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                stream = bool(self.sent % 2)
                self.sent += 1
                task = asyncio.create_task(self._one(requests[stream], stream))
                self._going.add(task)
                task.add_done_callback(self._going.discard)
        finally:
            await asyncio.gather(*self._going)
            for client in self._free:
                client.close()

    async def _one(self, request: bytes, stream: bool) -> None:
        client = self._free.pop() if self._free else Client(self.port, again=True)
        try:
            seen = await client.ask(request)
        except BrokenError as error:
            self.failed.append(str(error))
            return
        self._free.append(client)
        self.seen.append(Seen(seen.sent_s, seen.took_s, stream))
        if seen.status != 200 or (stream and not seen.body.rstrip().endswith(b"data: [DONE]")):
            self.failed.append(f"{seen.status}: {seen.body!r:.200}")

    def times_ms(self, from_s: float, to_s: float, stream: bool) -> list[float]:
        return [one.took_s * 1e3 for one in self.seen if from_s <= one.at_s < to_s and one.stream == stream]


@dataclass(slots=True)
class Report:
    how: How
    away_s: float
    requests: int = 0
    failed: int = 0
    rows: int = 0
    before_ms: dict[str, float] = field(default_factory=dict)  # "plain p50" and so on
    during_ms: dict[str, float] = field(default_factory=dict)
    rss_before_mib: float = 0.0
    rss_peak_mib: float = 0.0
    backlog_mib: float = 0.0
    caught_up_s: float = 0.0
    missed: list[str] = field(default_factory=list)

    def judge(self, verified: str) -> None:
        waits = [self.during_ms[name] - self.before_ms[name] for name in self.before_ms if name.endswith("p99")]
        grown = self.rss_peak_mib - self.rss_before_mib
        bars = [
            (not self.failed, f"{self.failed} requests failed"),
            (max(waits) <= WAIT_MS_MAX, f"p99 is {max(waits):.1f} ms higher while it is away"),
            (grown <= RSS_MIB_MAX, f"the control process grew by {grown:.0f} MiB"),
            (self.caught_up_s <= CAUGHT_UP_S_MAX, f"all was there after {self.caught_up_s:.0f} s only"),
            (self.rows == self.requests, f"{self.rows} rows of {self.requests} requests"),
            (not verified, f"edgegw ledger verify: {verified}"),
        ]
        self.missed += [text for good, text in bars if not good]


def figures(traffic: Traffic, from_s: float, to_s: float) -> dict[str, float]:
    """The median of what every few seconds had: a machine that others use as well has its moments."""
    windows = max(1, int((to_s - from_s) / WINDOW_S))
    edges = [from_s + (to_s - from_s) * number / windows for number in range(windows + 1)]
    return {
        f"{name} p{share}": percentile(
            [percentile(traffic.times_ms(*edge, stream), share / 100) for edge in pairwise(edges)], 0.5
        )
        for stream, name in ((False, "plain"), (True, "stream"))
        for share in (50, 99)
    }


async def watch_memory(gateway: Gateway, peaks_mib: list[float]) -> None:
    """Of the control process; the last of `peaks_mib` is kept up to date."""
    while True:
        peaks_mib[-1] = max(peaks_mib[-1], resident_mib(gateway.control_pid()))
        await asyncio.sleep(LOOK_S)


async def caught_up(gateway: Gateway) -> float:
    """Seconds until nothing waits in the journal for longer than a moment."""
    began_s = time.monotonic()
    while time.monotonic() < began_s + GIVE_UP_S:
        ledger = (await in_thread(lambda: ask(gateway.admin_url, "GET", "/readyz"))).json["ledger"]
        if ledger["state"] == "ok" and ledger["lag_seconds"] < LAG_S_MAX:
            break
        await asyncio.sleep(LOOK_S)
    return time.monotonic() - began_s


def settings(simulator: Simulator, url: str) -> dict[str, object]:
    provider = {"kind": "openai-compatible", "base_url": f"{simulator.url}/v1", "api_key": "sk-provider-key"}
    return {
        "version": 1,
        "server": {"workers": 1},
        "limits": {"tokens_per_minute": 1_000_000_000},
        "providers": {"sim": provider},
        "models": {"*": {"targets": ["sim/*"]}},
        "storage": {"database_url": url},
    }


async def away(server: Postgres, how: How, seconds: float) -> None:
    if how == "frozen":
        with server.frozen():
            await asyncio.sleep(seconds)
        return
    await in_thread(server.stop)
    await asyncio.sleep(seconds)
    await in_thread(server.start)


async def live_through(how: How, away_s: float, before_s: float, rate: float) -> Report:
    report = Report(how, away_s)
    with tempfile.TemporaryDirectory(prefix="edgegw-load-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        simulator = start_simulator(directory, *SIMULATED)
        stack.callback(simulator.running.end)
        house = PostgresHouse()
        stack.callback(house.end)
        server = house.server(durable=True)
        database = server.database()
        gateway = start_gateway(directory, settings(simulator, database.dsn))
        stack.callback(gateway.running.end)
        traffic = Traffic(port_of(gateway))
        sending = asyncio.create_task(traffic.run(rate))
        peaks_mib = [0.0]
        watching = asyncio.create_task(watch_memory(gateway, peaks_mib))
        began_s = time.monotonic()
        await asyncio.sleep(before_s)
        peaks_mib.append(0.0)
        away_s = time.monotonic()
        await away(server, how, report.away_s)
        back_s = time.monotonic()
        report.backlog_mib = bytes_on_disk(gateway.state_dir / "journal") / (1 << 20)
        report.caught_up_s = await caught_up(gateway)
        for task in (sending, watching):
            task.cancel()
        await asyncio.gather(sending, watching, return_exceptions=True)
        await in_thread(lambda: gateway.stop(30))
        report.requests, report.failed = traffic.sent, len(traffic.failed)
        report.rows = int(database.value("SELECT count(*) FROM requests WHERE state = 'complete'"))
        report.before_ms = figures(traffic, began_s + min(SETTLED_S, before_s / 2), away_s)
        report.during_ms = figures(traffic, away_s, back_s)
        report.rss_before_mib, report.rss_peak_mib = peaks_mib
        report.judge(verify(gateway))
        report.missed += Books(gateway.state_dir, database).sums_differ() + traffic.failed[:3]
    return report


COLUMNS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("PostgreSQL is", lambda one: one.how),
    ("for s", lambda one: f"{one.away_s:.0f}"),
    ("requests", lambda one: f"{one.requests:,}"),
    ("failed", lambda one: str(one.failed)),
    ("rows", lambda one: f"{one.rows:,}"),
    *(
        (f"{name}, ms", lambda one, name=name: f"{one.before_ms[name]:.1f} / {one.during_ms[name]:.1f}")
        for name in ("plain p50", "plain p99", "stream p50", "stream p99")
    ),
    ("control process, MiB", lambda one: f"{one.rss_before_mib:.0f} / {one.rss_peak_mib:.0f}"),
    ("journal, MiB", lambda one: f"{one.backlog_mib:.0f}"),
    ("caught up after, s", lambda one: f"{one.caught_up_s:.1f}"),
)


def shown(reports: Sequence[Report]) -> str:
    missed = [f"\nMISSED {one.how}: {what}" for one in reports for what in one.missed]
    lines = [[cell(one) for _, cell in COLUMNS] for one in reports]
    return table([heading for heading, _ in COLUMNS], lines) + "".join(missed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load.outage", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that PostgreSQL is away (10)")
    parser.add_argument("--before", type=float, default=BEFORE_S, metavar="SECONDS", help="of load before (60)")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second (200)")
    parser.add_argument("--how", choices=("frozen", "stopped"), help="one of them only")
    parser.add_argument("--json", metavar="FILE", help="all figures")
    given = parser.parse_args()
    ways: list[How] = [given.how] if given.how else ["frozen", "stopped"]
    reports = [uvloop.run(live_through(how, given.minutes * 60, given.before, given.rate)) for how in ways]
    print(f"before / while it is away\n\n{shown(reports)}")
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(one) for one in reports], indent=1))
    return 1 if any(one.missed for one in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
