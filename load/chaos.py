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
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop

from edgegw.telemetry.names import LEDGER_ERRORS
from load.clients import HOST, BrokenError, Client, Seen, post
from load.processes import (
    REPOSITORY,
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
from load.served import Line, Reply, Row, compare
from load.tables import table

Kind = Literal["sqlite", "postgres"]

ROUNDS = 200  # moments of kill -9, of all kinds together
WORKERS = 2
CLIENTS = 16
REFUSED_PAUSE_S = 0.1
PAUSE_S = 0.06  # of a client between two requests, at most
MOMENT_S = (0.05, 0.5)  # from one fault to the next, by the dice
# A child that dies young is started again ever later; a gateway that is stopped and started in between forgets that.
KILLS_IN_A_ROW = 5
SETTLE_S = 60.0  # for what waits in the journal, when everything works again
STATE_MIB = 8  # of the disk that fills up
SEGMENT = "64KiB"  # so that there are many
_T = TypeVar("_T")

RULES = """
- {match: {model: "flaky*", path: "/v1/chat/*"}, probability: 0.2, status: 500}
- {match: {model: "flaky*", path: "/v1/chat/*"}, probability: 0.1, fault: reset-0}
- {match: {model: "flaky*"}, probability: 0.1, fault: cut-4}
- {match: {model: "flaky*"}, probability: 0.1, status: 429, retry_after: 20ms}
"""
SIMULATED = ("--latency", "8ms", "--pace", "4ms", "--tokens", "16")


# -- the clients --


@dataclass(frozen=True, slots=True)
class Wish:
    """A kind of request. `leaves`: the client hangs up somewhere in the middle."""

    weight: int
    model: str
    stream: bool
    leaves: bool = False
    fields: tuple[tuple[str, Any], ...] = ()


WISHES = (
    Wish(30, "steady", stream=False),
    Wish(20, "steady", stream=True, fields=(("stream_options", {"include_usage": True}),)),
    Wish(12, "steady-too", stream=True),
    Wish(8, "steady", stream=True, leaves=True),
    Wish(3, "steady", stream=False, leaves=True),
    Wish(12, "flaky", stream=False),
    Wish(12, "flaky-too", stream=True),
    Wish(2, "sim-400", stream=False),
    Wish(1, "", stream=False),  # refused before anybody is asked
)


def request_of(wish: Wish, number: int) -> bytes:
    body = {
        "model": wish.model,
        "messages": [{"role": "user", "content": f"How are you, number {number}?"}],
        "metadata": {"tenant": f"tenant-{number % 3}"},
        **({"stream": True} if wish.stream else {}),
        **dict(wish.fields),
    }
    return post(None, json.dumps(body).encode())


@dataclass(slots=True)
class Crowd:
    """All clients together, and what they have seen."""

    port: int
    dice: random.Random
    going: asyncio.Event = field(default_factory=asyncio.Event)
    busy: int = 0
    asked: int = 0
    answered: int = 0
    replies: list[Reply] = field(default_factory=list)

    async def client(self) -> None:
        with contextlib.closing(Client(self.port)) as client:
            while True:
                await self.going.wait()
                self.busy += 1
                try:
                    await self._one(client)
                except BrokenError as error:
                    self.asked -= isinstance(error.__cause__, ConnectionRefusedError)  # a restart: nobody was there
                    await asyncio.sleep(REFUSED_PAUSE_S)
                finally:
                    self.busy -= 1
                await asyncio.sleep(PAUSE_S * self.dice.random())

    async def _one(self, client: Client) -> None:
        (wish,) = self.dice.choices(WISHES, [wish.weight for wish in WISHES])
        self.asked += 1
        request = request_of(wish, self.asked)
        if wish.leaves:
            await self._leave(request)
            return
        seen = await client.ask(request)
        self.answered += 1
        if "x-request-id" in seen.headers:
            self.replies.append(reply_of(seen, wish))

    async def _leave(self, request: bytes) -> None:
        """Hangs up before the head, behind it, or amidst the events."""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, self.port)
            writer.write(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.08 * self.dice.random()):
                    while await reader.read(4096):
                        pass
            writer.transport.abort()

    async def rest(self) -> None:
        self.going.clear()
        while self.busy:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def reply_of(seen: Seen, wish: Wish) -> Reply:
    whole, usage = True, None
    if seen.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line[6:] for line in seen.body.split(b"\n") if line.startswith(b"data: ")]
        whole = bool(events) and events[-1].strip() == b"[DONE]"
        for event in events[-3:]:
            if b'"usage":{' in event.replace(b" ", b""):
                usage = json.loads(event)["usage"]
    elif seen.status == 200:
        usage = seen.json.get("usage")
    tokens = None if not usage else (usage["prompt_tokens"], usage["completion_tokens"])
    return Reply(seen.headers["x-request-id"], seen.status, whole, tokens)


# -- the books --


@dataclass(slots=True)
class Books:
    """Rows of a database, of either kind."""

    file: Path
    database: Database | None

    def rows(self, query: str) -> list[Row]:
        if self.database is not None:
            return self.database.rows(query)
        with contextlib.closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    def since(self, wall_ns: int) -> tuple[list[Row], list[Row]]:
        """Requests that began from that moment on, and their tries."""
        millis = f"{wall_ns // 1_000_000:012x}"
        first = f"{millis[:8]}-{millis[8:]}-7000-0000-000000000000"
        requests = self.rows(
            "SELECT id, state, status, error_kind, attempts, input_tokens, output_tokens FROM requests "
            f"WHERE id >= '{first}'"
        )
        attempts = self.rows(
            "SELECT request_id, number, kind, status, error_kind, input_tokens, output_tokens, estimated, "
            f"upstream_request_id FROM provider_attempts WHERE request_id >= '{first}'"
        )
        return requests, attempts

    def sums_differ(self) -> list[str]:
        """What usage_hours says and the rows do not, in all."""
        names = "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_usd_micro"
        sums = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in names)
        by = "tenant, model"
        counted = self.rows(f"SELECT {by}, count(*) AS attempts, {sums} FROM provider_attempts GROUP BY {by}")
        summed = self.rows(
            f"SELECT {by}, sum(attempts) AS attempts, {sums} FROM usage_hours WHERE attempts > 0 GROUP BY {by}"
        )
        requests = self.rows("SELECT count(*) AS requests FROM requests")
        asked = self.rows("SELECT coalesce(sum(requests), 0) AS requests FROM usage_hours")
        there, said = (sorted(map(str, rows)) for rows in (counted + requests, summed + asked))
        return [f"{one} and {other}" for one, other in zip(there, said, strict=False) if one != other]


def lines_of(log: Path, offset: int) -> tuple[list[Line], int]:
    """Of the simulator's log, from an offset on."""
    with log.open("rb") as file:
        file.seek(offset)
        data = file.read()
    found = [json.loads(line) for line in data.splitlines()]
    names = "id", "client_request_id", "status", "prompt_tokens", "completion_tokens", "whole"
    return [Line(*(one[name] for name in names)) for one in found], offset + len(data)


# -- the stage, and what happens on it --


@dataclass(slots=True)
class Stage:
    """Everything that a fault may lay hands on."""

    gateway: Gateway
    simulator: Simulator
    crowd: Crowd
    books: Books
    dice: random.Random
    pause_s: float  # how long PostgreSQL stays away
    kills: int = 0

    @property
    def database(self) -> Database:
        assert self.books.database is not None
        return self.books.database

    async def moment(self) -> None:
        await asyncio.sleep(self.dice.uniform(*MOMENT_S))

    async def soon_restarted(self) -> None:
        """Now and then, so that what dies young is not started ever later."""
        self.kills += 1
        if self.kills % KILLS_IN_A_ROW == 0:
            await restart(self)


async def in_thread(call: Callable[[], _T]) -> _T:
    return await asyncio.to_thread(call)


async def until(what: str, look: Callable[[], bool], within_s: float = SETTLE_S) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not await in_thread(look):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s:g} s: {what}") from None


def processes(gateway: Gateway) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return gateway.processes()
    return {"control": None, "workers": {}}


def signalled(pid: int | None, number: signal.Signals) -> bool:
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


async def kill_a_worker(stage: Stage) -> None:
    await stage.moment()
    await until("a worker lives", lambda: bool(processes(stage.gateway)["workers"]))
    workers = list(processes(stage.gateway)["workers"].values())
    signalled(stage.dice.choice(workers), signal.SIGKILL)
    await stage.soon_restarted()


async def kill_the_control_process(stage: Stage) -> None:
    await stage.moment()
    await until("the control process lives", lambda: bool(processes(stage.gateway)["control"]))
    signalled(processes(stage.gateway)["control"], signal.SIGKILL)
    await stage.soon_restarted()


async def kill_all(stage: Stage) -> None:
    await stage.moment()
    await in_thread(stage.gateway.kill)
    await in_thread(stage.gateway.start_again)


async def restart(stage: Stage) -> None:
    """SIGTERM, and a new start."""
    await stage.moment()
    code, said = await in_thread(stage.gateway.stop)
    if code:
        raise AssertionError(f"the gateway ended with {code}:\n{said[-2000:]}")
    await in_thread(stage.gateway.start_again)


async def reload(stage: Stage) -> None:
    """SIGHUP: new workers, while the old ones end what they have begun."""
    await stage.moment()
    signalled(stage.gateway.pid, signal.SIGHUP)


async def pause_the_control_process(stage: Stage) -> None:
    await stage.moment()
    pid = processes(stage.gateway)["control"]
    if signalled(pid, signal.SIGSTOP):
        await asyncio.sleep(stage.dice.uniform(0.5, 2.0))
        signalled(pid, signal.SIGCONT)


async def fill_the_state_directory(stage: Stage) -> None:
    """New requests get a 503 then; what has begun is in the books."""
    await stage.moment()
    ballast = stage.gateway.state_dir / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 << 10))

    await in_thread(fill)
    await asyncio.sleep(stage.dice.uniform(4.0, 6.0))
    ballast.unlink()
    await asyncio.sleep(1.0)


async def freeze_postgres(stage: Stage) -> None:
    await stage.moment()
    with stage.database.server.frozen():
        await asyncio.sleep(stage.pause_s)


async def stop_postgres(stage: Stage) -> None:
    await stage.moment()
    server = stage.database.server
    await in_thread(server.stop)
    await asyncio.sleep(stage.pause_s)
    await in_thread(server.start)


async def restart_postgres(stage: Stage) -> None:
    await stage.moment()
    await in_thread(stage.database.server.restart)


async def kill_postgres(stage: Stage) -> None:
    """kill -9 of all its processes, wherever a batch is."""
    await stage.moment()
    server = stage.database.server
    await in_thread(server.kill)
    await in_thread(server.start)


async def cut_connections(stage: Stage) -> None:
    """Again and again, for a second."""
    await stage.moment()
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        await in_thread(stage.database.cut)
        await asyncio.sleep(stage.dice.uniform(0.0, 0.05))


async def fill_postgres(stage: Stage) -> None:
    await stage.moment()
    ballast = stage.database.server.data / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 << 10))

    await in_thread(fill)
    await asyncio.sleep(stage.dice.uniform(1.0, 2.0))
    ballast.unlink()
    server = stage.database.server
    if server.running is None or not server.running.alive:  # it gives up when its log has no room
        await in_thread(server.start)


DEADLOCK = """
BEGIN;
SET LOCAL deadlock_timeout = '10s';
SELECT count(*) FROM (SELECT 1 FROM usage_hours ORDER BY {order} DESC LIMIT 1 FOR UPDATE) AS one;
SELECT pg_sleep(0.3);
SELECT count(*) FROM (SELECT 1 FROM usage_hours ORDER BY {order} FOR UPDATE) AS all_of_them;
COMMIT;
"""


async def force_a_deadlock(stage: Stage) -> None:
    """Somebody else locks lines of the sums the other way round; the shipper is the one that is sent away."""
    await stage.moment()
    order = "hour, tenant, use_case, key_id, provider, model, journal"
    with contextlib.suppress(subprocess.CalledProcessError):
        await in_thread(lambda: stage.database.do(DEADLOCK.format(order=order.replace(", ", " DESC, "))))


Fault = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """`share`: of the rounds. `small`: which disk is small."""

    name: str
    fault: Fault
    share: float
    only: Kind | None = None
    small: Literal["", "state", "postgres"] = ""

    def runs(self, rounds: int) -> int:
        return max(1, round(self.share * rounds))


FULL = "state_dir full"
CASES = (
    Case("kill -9 of a worker", kill_a_worker, 0.5),
    Case("kill -9 of the control process", kill_the_control_process, 0.3),
    Case("kill -9 of all at once", kill_all, 0.2),
    Case("SIGTERM, and a new start", restart, 0.25),
    Case("SIGHUP", reload, 0.1),
    Case("control process paused", pause_the_control_process, 0.05),
    Case(FULL, fill_the_state_directory, 0.025, small="state"),
    Case("PostgreSQL frozen", freeze_postgres, 0.005, only="postgres"),
    Case("PostgreSQL stopped", stop_postgres, 0.005, only="postgres"),
    Case("PostgreSQL restarted", restart_postgres, 0.05, only="postgres"),
    Case("PostgreSQL killed", kill_postgres, 0.05, only="postgres"),
    Case("connections cut", cut_connections, 0.05, only="postgres"),
    Case("deadlock", force_a_deadlock, 0.05, only="postgres"),
    Case("PostgreSQL's disk full", fill_postgres, 0.025, only="postgres", small="postgres"),
)


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
    lines, _ = lines_of(log, 0)
    requests, attempts = await in_thread(partial(stage.books.since, 0))
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


def verify(gateway: Gateway) -> str:
    """What the gateway's own check has to say; nothing when all is right."""
    command = [sys.executable, "-m", "edgegw", "ledger", "verify", "--config", "edgegw.yaml"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    asked = subprocess.run(command, cwd=gateway.state_dir.parent, env=env, capture_output=True, text=True)
    return "" if asked.returncode == 0 else f"exit code {asked.returncode}: {asked.stdout}{asked.stderr}"


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
