"""Is a row lost, doubled or wrong, whatever dies and whenever? `python -m load.chaos`

Two workers of a real gateway, its books in SQLite or in a real PostgreSQL, and clients that never pause: half of what
they ask for is streamed, some of that they leave in the middle of, some tries fail and are repeated or fall back. One
fault after the other is brought about at seeded moments. After each the clients rest, the gateway ships what there is
and stops; then every line of the simulator's log and every reply that a client has seen is looked up in the rows
(served.py).

Exit code 1 when anything is lost, duplicated or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from edgegw.telemetry.names import LEDGER_ERRORS
from load.books import Books, in_thread, lines_of, verify
from load.crowd import RULES, SIMULATED, Crowd
from load.faults import CASES, FULL, Case, Kind, Stage, until
from load.processes import (
    Database,
    Gateway,
    PostgresHouse,
    Simulator,
    ask,
    can_mount,
    port_of,
    start_gateway,
    start_simulator,
)
from load.served import compare
from load.tables import table

ROUNDS = 200  # moments of kill -9, of all kinds together
WORKERS = 2
CLIENTS = 16
STATE_MIB = 8  # of the disk that fills up
SEGMENT = "64KiB"  # so that there are many


# -- one case --


@dataclass(slots=True)
class Report:
    database: Kind
    fault: str
    runs: int
    seconds: float = 0.0
    requests: int = 0  # that clients have sent
    answered: int = 0
    refused: int = 0  # for want of room
    rows: int = 0
    tries: int = 0
    repeated: int = 0  # writes, since the control process has lived
    states: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    tokens: int = 0  # of rows that have the provider's usage
    skipped: str = ""
    what: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return bool(self.lost or self.duplicated or self.wrong)


@contextlib.contextmanager
def disk(directory: Path, mib: int) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False)


def settings(simulator: Simulator, url: str | None) -> dict[str, Any]:
    timeouts = {"connect": "5s", "first_byte": "30s", "idle": "30s"}
    common = {"api_key": "sk-provider-key", "timeouts": timeouts}
    return {
        "version": 1,
        "server": {"workers": WORKERS},
        "limits": {"tokens_per_minute": 1_000_000_000},
        "providers": {
            "sim": {"kind": "openai-compatible", "base_url": f"{simulator.url}/v1", **common},
            "claude": {"kind": "anthropic", "base_url": simulator.url, **common},
        },
        "models": {
            "flaky*": {"targets": ["sim/*", "claude/*"], "retry": {"attempts": 2}},
            "*": {"targets": ["sim/*"]},
        },
        "storage": {"journal": {"segment": SEGMENT}, **({"database_url": url} if url is not None else {})},
    }


@contextlib.asynccontextmanager
async def stage_of(case: Case, kind: Kind, seed: int, pause_s: float) -> AsyncIterator[tuple[Stage, Path]]:
    """A simulator with a log, a database and a gateway; all of them fresh."""
    with tempfile.TemporaryDirectory(prefix="edgegw-load-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        (directory / "rules.yaml").write_text(RULES)
        log = directory / "served.jsonl"
        given = (*SIMULATED, "--rules", str(directory / "rules.yaml"), "--log", str(log))
        simulator = await in_thread(lambda: start_simulator(directory, *given))
        stack.callback(simulator.running.end)
        database: Database | None = None
        if kind == "postgres":
            house = PostgresHouse()
            stack.callback(house.end)
            room = "200m" if case.small == "postgres" else None
            server = await in_thread(lambda: house.server("max_wal_size=64MB", durable=True, room=room))
            database = await in_thread(server.database)
        if case.small == "state":
            stack.enter_context(disk(directory / "state", STATE_MIB))
        wanted = settings(simulator, None if database is None else database.dsn)
        gateway = await in_thread(lambda: start_gateway(directory, wanted))
        stack.callback(lambda: gateway.running.end())
        dice = random.Random(f"{seed}/{case.name}/{kind}")
        crowd = Crowd(port_of(gateway), random.Random(dice.random()))
        yield Stage(gateway, simulator, crowd, Books(gateway.state_dir / "edgegw.db", database), dice, pause_s), log


async def play(case: Case, kind: Kind, rounds: int, seed: int, pause_s: float) -> Report:
    report = Report(kind, case.name, case.runs(rounds))
    if case.small and not can_mount():
        report.skipped = "needs root: a small disk is mounted"
        return report
    began_s = time.monotonic()
    async with stage_of(case, kind, seed, pause_s) as (stage, log):
        clients = [asyncio.create_task(stage.crowd.client()) for _ in range(CLIENTS)]
        stage.crowd.going.set()
        try:
            for _ in range(report.runs):
                await case.fault(stage)
            await stage.moment()
            await stage.crowd.rest()
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        await settled(stage)
        report.repeated = await in_thread(lambda: repeated(stage.gateway))
        code, said = await in_thread(lambda: stage.gateway.stop(30))
        await judge(report, stage, log)
        if code:
            report.wrong += 1
            report.what.append(f"the gateway ended with {code}: {said[-1000:]}")
    report.seconds = time.monotonic() - began_s
    return report


async def settled(stage: Stage) -> None:
    """Nothing is under way at the provider, and nothing waits in the journal."""
    await until("the simulator rests", lambda: stage.simulator.stats()["open_requests"] == 0)

    def shipped() -> bool:
        ledger = ask(stage.gateway.admin_url, "GET", "/readyz").json["ledger"]
        return bool(ledger["state"] == "ok" and ledger["lag_seconds"] == 0)

    await until("all is shipped", lambda: stage.gateway.running.alive and reachable(shipped))


def repeated(gateway: Gateway) -> int:
    """Writes that the control process had to do again, since it began."""
    name = LEDGER_ERRORS.name.encode()
    lines = ask(gateway.admin_url, "GET", "/metrics").body.splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name))


def reachable(look: Callable[[], bool]) -> bool:
    with contextlib.suppress(OSError):
        return look()
    return False


async def judge(report: Report, stage: Stage, log: Path) -> None:
    lines = lines_of(log)
    requests, attempts = await in_thread(stage.books.all)
    findings, sums = compare(lines, stage.crowd.replies, requests, attempts, full=report.fault == FULL)
    report.refused = sum(reply.status == 503 for reply in stage.crowd.replies)
    for what in stage.books.sums_differ():
        findings.add("wrong", f"usage_hours: {what}")
    left = [str(path.name) for path in (stage.gateway.state_dir / "journal").glob("*/*")]
    if left:
        findings.add("lost", f"left in the journal: {left}")
    if (stage.gateway.state_dir / "rejected").exists():
        findings.add("lost", "rows were set aside")
    verified = await in_thread(lambda: verify(stage.gateway))
    if verified:
        findings.add("wrong", f"edgegw ledger verify: {verified[-500:]}")
    report.requests, report.answered = stage.crowd.asked, stage.crowd.answered
    report.rows, report.tries = len(requests), len(attempts)
    for row in requests:
        report.states[row["state"]] = report.states.get(row["state"], 0) + 1
    report.tokens = sum(sums.booked)
    report.lost, report.duplicated, report.wrong = findings.lost, findings.duplicated, findings.wrong
    report.what += findings.what


# -- the program --

COLUMNS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("fault", lambda one: one.fault),
    ("runs", lambda one: str(one.runs) if not one.skipped else "skipped"),
    ("requests", lambda one: f"{one.requests:,}"),
    ("503", lambda one: str(one.refused)),
    ("rows", lambda one: f"{one.rows:,}"),
    ("tries", lambda one: f"{one.tries:,}"),
    ("interrupted", lambda one: str(one.states.get("interrupted", 0))),
    ("writes repeated", lambda one: str(one.repeated)),
    ("tokens", lambda one: f"{one.tokens:,}"),
    ("lost", lambda one: str(one.lost)),
    ("duplicated", lambda one: str(one.duplicated)),
    ("wrong", lambda one: str(one.wrong)),
    ("s", lambda one: f"{one.seconds:.0f}"),
)


def shown(reports: Sequence[Report]) -> str:
    lines = [[cell(one) for _, cell in COLUMNS] for one in reports]
    notes = [f"\n{one.fault}: skipped, {one.skipped}" for one in reports if one.skipped]
    bad = [f"\n{one.fault}: {what}" for one in reports for what in one.what]
    return table([heading for heading, _ in COLUMNS], lines) + "".join(notes + bad)


def chosen(kind: Kind, only: str) -> list[Case]:
    return [case for case in CASES if case.only in (None, kind) and only in case.name]


async def run(kind: Kind, cases: Sequence[Case], rounds: int, seed: int, pause_s: float) -> list[Report]:
    reports = []
    for case in cases:
        reports.append(await play(case, kind, rounds, seed, pause_s))
        print(f"{shown(reports[-1:])}\n", file=sys.stderr, flush=True)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="moments of kill -9; other faults follow it (200)")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="postgres")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name contains it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--away", type=float, default=120.0, metavar="SECONDS", help="how long PostgreSQL is away (120)"
    )
    parser.add_argument("--json", metavar="FILE", help="all figures")
    given = parser.parse_args()
    cases = chosen(given.database, given.only)
    reports = uvloop.run(run(given.database, cases, given.rounds, given.seed, given.away))
    print(f"{given.database}, seed {given.seed}, {given.rounds} rounds\n\n{shown(reports)}")
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(one) for one in reports], indent=1))
    return 1 if any(one.bad for one in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
