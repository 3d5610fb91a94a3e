"""Where the load runs play: a simulator, and before it one gateway (sidecar) or two that share Redis and PostgreSQL
(edge), as the settings of such a place would have them; and the books that are read when all is over.

Where a server is not installed the edge makes do with less, and says so in `notes`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from load.books import Books, lines_of
from load.locust_outcome import Outcome
from load.locust_verdicts import Narrow, Verdict, of_books
from load.processes import (
    Database,
    Gateway,
    House,
    PostgresHouse,
    Simulator,
    ask,
    credential,
    digest,
    eventually,
    start_gateway,
    start_simulator,
)
from load.served import Reply, compare

GATEWAYS = 2
TENANTS = 30
NARROW = (Narrow("narrow-a", 40), Narrow("narrow-b", 20))
AMPLE = {"tokens_per_minute": 1_000_000_000}  # who is not narrow is never refused
SHIPPED_WITHIN_S = 60.0
STOPPED_WITHIN_S = 30.0

# What some of the edge's models do. Half a second between a refusal and the next try would tell nothing here.
RULES = """
- {match: {model: "flaky"}, probability: 0.2, status: 500}
- {match: {model: "flaky"}, probability: 0.1, fault: reset-0}
- {match: {model: "cutting"}, probability: 0.3, fault: cut-6}
"""


@dataclass(slots=True)
class Place:
    """`groups`: processes by the name under which they are measured; those of gateways begin with `gateway`."""

    hosts: list[str]
    groups: dict[str, int]
    notes: list[str] = field(default_factory=list)
    simulator: Simulator | None = None
    log: Path | None = None
    keys: Path | None = None
    gateways: list[Gateway] = field(default_factory=list)
    books: list[Books] = field(default_factory=list)
    narrow: Sequence[Narrow] = ()

    def close_books(self, outcomes: Sequence[Outcome]) -> list[Verdict]:
        """When nobody asks any more: all is shipped, the gateways stop, and every reply is looked up in the rows."""
        assert self.log is not None
        for gateway in self.gateways:
            eventually("all is shipped", partial(_shipped, gateway), bool, SHIPPED_WITHIN_S)
        found = []
        for number, gateway in enumerate(self.gateways, start=1):
            code, said = gateway.stop(STOPPED_WITHIN_S)
            if code:
                self.notes.append(f"gateway {number} ended with {code}: {said[-1000:]}")
            found.append(Verdict(f"gateway {number} stops in peace", "exit code 0", str(code), code == 0))
        lines = [line for line in lines_of(self.log) if line.request]  # who asks directly does not say who it is
        read = [books.all() for books in self.books]
        requests = [row for rows, _ in read for row in rows]
        attempts = [row for _, rows in read for row in rows]
        replies = [reply_of(one) for one in outcomes if one.request_id]
        findings, _ = compare(lines, replies, requests, attempts)
        for differ in (what for books in self.books for what in books.sums_differ()):
            findings.add("wrong", f"usage_hours: {differ}")
        self.notes += findings.what
        return of_books(outcomes, requests, findings) + found


def reply_of(one: Outcome) -> Reply:
    tokens = None
    if one.input_tokens is not None and one.output_tokens is not None:
        tokens = one.input_tokens, one.output_tokens
    return Reply(one.request_id, one.status, one.end == "whole", tokens)


def _shipped(gateway: Gateway) -> bool:
    with contextlib.suppress(OSError):
        ledger = ask(gateway.admin_url, "GET", "/readyz").json["ledger"]
        return bool(ledger["state"] == "ok" and ledger["lag_seconds"] == 0)
    return False


@contextlib.contextmanager
def sidecar(simulated: Sequence[str]) -> Iterator[Place]:
    """One worker, SQLite, no keys: what an app has beside it."""
    with _ground(simulated) as (directory, simulator, log, _stack):
        gateway = start_gateway(directory, {**_common(simulator), "limits": AMPLE})
        try:
            yield _place([gateway], simulator, log, [Books(gateway.state_dir / "edgegw.db", None)])
        finally:
            gateway.running.end()


@contextlib.contextmanager
def edge(simulated: Sequence[str]) -> Iterator[Place]:
    """Two gateways with a worker each, keys, one Redis, one PostgreSQL."""
    with _ground(simulated) as (directory, simulator, log, stack):
        notes, storage = [], {}
        database: Database | None = None
        if shutil.which("redis-server"):
            house = House(directory)
            stack.callback(house.end)
            storage["redis_url"] = house.redis().url
        else:
            notes.append("redis-server is not installed: ONE gateway, limits in its memory")
        if has_postgres():
            databases = PostgresHouse()
            stack.callback(databases.end)
            database = databases.server().database()
            storage["database_url"] = database.dsn
        else:
            notes.append("PostgreSQL is not installed: rows in SQLite")
        names = [f"tenant-{number:02}" for number in range(1, TENANTS + 1)]
        limits: dict[str, dict[str, int]] = dict.fromkeys(names, AMPLE)
        limits |= {one.tenant: {**AMPLE, "requests_per_minute": one.requests_per_minute} for one in NARROW}
        wanted = {**_common(simulator), "auth": "keys", "tenants": _tenants(limits), "storage": storage}
        gateways = []
        for number in range(GATEWAYS if "redis_url" in storage else 1):
            own = directory / f"gateway-{number + 1}"
            own.mkdir()
            gateways.append(start_gateway(own, wanted))
            stack.callback(gateways[-1].running.end)
        if database is not None:
            books = [Books(directory, database)]
        else:
            books = [Books(gateway.state_dir / "edgegw.db", None) for gateway in gateways]
        place = _place(gateways, simulator, log, books)
        place.notes, place.narrow, place.keys = notes, NARROW, directory / "keys.json"
        place.keys.write_text(json.dumps({name: credential(name) for name in limits}), "utf-8")
        yield place


def elsewhere(hosts: str, keys: str) -> Place:
    """A deployment that is there already: nothing is started, and nobody can look into its books from here."""
    notes = ["a deployment of its own: its rows, its processes and its limits were not looked at"]
    return Place(hosts.split(","), {}, notes, keys=Path(keys) if keys else None)


def has_postgres() -> bool:
    return bool(shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres")))


@contextlib.contextmanager
def _ground(simulated: Sequence[str]) -> Iterator[tuple[Path, Simulator, Path, contextlib.ExitStack]]:
    with tempfile.TemporaryDirectory(prefix="edgegw-load-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        rules, log = directory / "rules.yaml", directory / "served.jsonl"
        rules.write_text(RULES, "utf-8")
        simulator = start_simulator(directory, *simulated, "--rules", str(rules), "--log", str(log))
        stack.callback(simulator.running.end)
        yield directory, simulator, log, stack


def _common(simulator: Simulator) -> dict[str, Any]:
    provider = {
        "kind": "openai-compatible",
        "base_url": f"{simulator.url}/v1",
        "api_key": "sk-provider-key",
        "timeouts": {"connect": "5s", "first_byte": "30s", "idle": "30s"},
    }
    return {
        "version": 1,
        "server": {"workers": 1},
        "providers": {"sim": provider},
        "models": {
            "flaky": {"targets": ["sim/flaky", "sim/gpt-5-mini"], "retry": {"attempts": 2, "base": "50ms"}},
            "down": {"targets": ["sim/sim-503", "sim/gpt-5-mini"], "retry": {"attempts": 1}},
            "*": {"targets": ["sim/*"]},
        },
        "default": {"targets": ["sim/gpt-5-mini"]},
    }


def _tenants(limits: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {name: {"keys": {"own": digest(credential(name))}, "limits": own} for name, own in limits.items()}


def _place(gateways: list[Gateway], simulator: Simulator, log: Path, books: list[Books]) -> Place:
    groups: dict[str, int] = {}
    for number, gateway in enumerate(gateways, start=1):
        name = "gateway" if len(gateways) == 1 else f"gateway {number}"
        groups |= {f"{name}, worker": gateway.worker_pids()[0], f"{name}, control": gateway.control_pid()}
    groups["simulator"] = simulator.running.pid
    hosts = [gateway.url for gateway in gateways]
    return Place(hosts, groups, simulator=simulator, log=log, gateways=gateways, books=books)
