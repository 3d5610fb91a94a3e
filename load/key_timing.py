"""Does the time of a refusal tell what is wrong with a key? `python -m load.key_timing`

A gateway over HTTP, one connection, keys that are unknown, expired and revoked in turns, shuffled in each round:
whatever the machine does meanwhile, it does to all three. The medians must lie within 5 %.

Exit code 1 when they do not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import uvloop

from load.clients import Client, post
from load.processes import Gateway, ask, digest, eventually, port_of, settings, start_gateway, start_simulator
from load.tables import table

ROUNDS = 6_000
WARM_UP = 300
APART_MAX = 0.05
KINDS = ("unknown", "expired", "revoked")
VALID = "valid"  # by these is seen that the worker has heard of all
BODY = b'{"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]}'
KEYS_EACH = 50  # of a kind: no single key's place in the table decides


def credential(kind: str, number: int) -> str:
    return f"egw_{kind[:7]}-{number:034d}"  # all of one length


@dataclass(slots=True)
class Timings:
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    @property
    def medians(self) -> dict[str, float]:
        return {kind: median(seconds) for kind, seconds in self.seconds.items()}

    @property
    def apart(self) -> float:
        medians = self.medians.values()
        return max(medians) / min(medians) - 1


async def measure(port: int, rounds: int, seed: int) -> Timings:
    dice = random.Random(seed)
    timings = Timings()
    client = Client(port, again=True)
    for number in range(WARM_UP + rounds):
        for kind in dice.sample(KINDS, len(KINDS)):
            seen = await client.ask(post(credential(kind, dice.randrange(KEYS_EACH)), BODY))
            assert seen.status == 401, seen
            if number >= WARM_UP:
                timings.seconds[kind].append(seen.took_s)
    client.close()
    return timings


def _has_keys(gateway: Gateway) -> bool:
    database = sqlite3.connect(gateway.state_dir / "edgegw.db")
    with contextlib.closing(database), contextlib.suppress(sqlite3.OperationalError):
        database.execute("SELECT 1 FROM api_keys")
        return True
    return False


def put_keys(gateway: Gateway) -> None:
    """Into the database, as if they had been made and ended long ago."""
    columns = "id, changed, digest, tenant, name, prefix, created_ns, expires_ns, revoked_ns, acts_for, limits"
    sql = f"INSERT INTO api_keys ({columns}) VALUES (?, ?, ?, 'acme', '', '', 1, ?, ?, '[]', '{{}}')"
    with sqlite3.connect(gateway.state_dir / "edgegw.db") as database:
        ends = {"expired": (2, None), "revoked": (None, 2), VALID: (None, None)}
        wanted = [(kind, number) for number in range(KEYS_EACH) for kind in ends]
        for changed, (kind, number) in enumerate(wanted, 1):
            digested = bytes.fromhex(digest(credential(kind, number)).removeprefix("sha256:"))
            database.execute(sql, (f"key_{kind}_{number}", changed, digested, *ends[kind]))
    database.close()
    last = {"authorization": f"Bearer {credential(VALID, KEYS_EACH - 1)}"}
    status = lambda: ask(gateway.url, "GET", "/v1/models", headers=last).status  # noqa: E731
    eventually("the worker knows the keys", status, lambda seen: seen == 200, 10)


def run(rounds: int, seed: int) -> Timings:
    with tempfile.TemporaryDirectory(prefix="edgegw-load-") as name:
        directory = Path(name)
        simulator = start_simulator(directory)
        gateway = None
        try:
            gateway = start_gateway(directory, settings(simulator, {"acme": {}}))
            eventually("the database has a table of keys", lambda: _has_keys(gateway), bool, 10)
            put_keys(gateway)
            return uvloop.run(measure(port_of(gateway), rounds, seed))
        finally:
            for process in (gateway, simulator):
                if process is not None:
                    process.running.end()


def shown(timings: Timings) -> str:
    lines = []
    for kind, seconds in timings.seconds.items():
        low, middle, high = quantiles(seconds, n=4)
        lines.append([kind, f"{len(seconds):,}", *(f"{value * 1e6:.1f}" for value in (low, middle, high))])
    return f"{table(['key', 'requests', 'lower quartile us', 'median us', 'upper quartile us'], lines)}\n\n" + (
        f"medians apart by {timings.apart:.1%}, at most {APART_MAX:.0%} may be"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load.key_timing", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    timings = run(given.rounds, given.seed)
    print(shown(timings))
    return 1 if timings.apart > APART_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
