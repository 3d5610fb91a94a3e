"""Do several gateways with one Redis admit what the limit says, no more and hardly less? `python -m load.fleet`

Real gateways, a real Redis, one simulated provider, and clients that always want more than their tenant may have.
What a request uses is known beforehand: asked of the simulator itself, found again in the usage of every reply, and in
the simulator's own sum. From the replies' times follow

- the overshoot: what was admitted by some moment beyond a full bucket and its refill until then, at the worst moment;
- the settle error, which is all that it may be: what requests in flight at that moment used beyond what was reserved;
- the share of the limit that was used.

Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import uvloop

from edgegw.telemetry.names import REDIS_ABSENCES
from edgegw.tokens import TokenEstimator
from load.clients import BrokenError, Client, Seen, chat
from load.processes import Gateway, Plane, ask, credential, plane
from load.tables import table

REPLICAS = 4
WINDOWS = 10.0
MINUTE_S = 60.0
SHARE_MIN = 0.98
RETRY_WITHIN_S = 0.5  # a refused client comes again after so long at most, whatever it was told: there is always demand
TOLD_WITHIN_S = 0.2  # how long after its end a debt may be unknown to other replicas: a check, a channel, a call
GUESSES = 20_000  # requests after which the worst estimate of a tenant's mix is known


@dataclass(frozen=True, slots=True)
class Kind:
    """A request of known use."""

    text: str
    answer_max: int


@dataclass(frozen=True, slots=True)
class Demand:
    """A tenant: its limits, its clients, and what they ask for, each kind as likely as another."""

    tenant: str
    limits: dict[str, int]
    model: str
    kinds: tuple[Kind, ...]
    clients: int

    @property
    def measure(self) -> str:
        return next(iter(self.limits))


ENDLESS = 10**9  # tokens per minute of a tenant that is limited otherwise
DEMANDS = (
    Demand("small", {"tokens_per_minute": 60}, "sim-tokens-1", (Kind("a", 1),), 10),
    Demand(
        *("middle", {"tokens_per_minute": 50_000}, "sim-tokens-200"),
        tuple(Kind("b" * 600, answer_max) for answer_max in range(10, 201, 10)),
        18,
    ),
    Demand("large", {"tokens_per_minute": 10_000_000}, "sim-tokens-24", (Kind("c" * 80_000, 24),), 16),
    Demand("paced", {"requests_per_minute": 30, "tokens_per_minute": ENDLESS}, "sim-tokens-2", (Kind("d", 2),), 8),
    Demand(
        *("narrow", {"concurrent_requests": 5, "tokens_per_minute": ENDLESS}, "sim-tokens-3-latency-200ms"),
        (Kind("e", 3),),
        12,
    ),
)


@dataclass(slots=True)
class Admitted:
    sent_s: float
    ended_s: float
    used: int


@dataclass(slots=True)
class Record:
    """What the clients of a tenant saw."""

    admitted: list[Admitted] = field(default_factory=list)
    tokens: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    apart: int = 0  # replies under limits that were not exact
    own_s: float = 0.0  # the longest share of the gateway itself in an answer
    refused_s: float = 0.0  # the longest refusal took so long


@dataclass(slots=True)
class Row:
    """One line of the table; amounts are tokens or requests, as the limit counts."""

    tenant: str
    measure: str
    limit: int
    requests: int
    refused: int
    failed: int
    used: int
    allowed: int
    share: float
    overshoot: int
    settle_error: int
    worst_minute: int
    at_once: int
    own_ms: float
    refused_ms: float
    apart: int
    missed: list[str]


@dataclass(slots=True)
class Report:
    seed: int
    replicas: int
    seconds: float
    rows: list[Row]
    redis_calls_per_s: float
    absences: int  # how often a gateway found that Redis did not answer within 45 ms
    missed: list[str]


# -- what was admitted, and what might have been --


def worst_moment(admitted: Sequence[Admitted], limit: int, since_s: float) -> tuple[float, float]:
    """The most that was admitted beyond a bucket that was full at `since_s` and refills since then (below zero: within
    it), and when."""
    most, at_s, used = -float(limit), since_s, 0
    for one in sorted(admitted, key=lambda one: one.ended_s):
        used += one.used
        beyond = used - limit - limit * (one.ended_s - since_s) / MINUTE_S
        if beyond > most:
            most, at_s = beyond, one.ended_s
    return most, at_s


def worst_minute(admitted: Sequence[Admitted]) -> int:
    """The most that came back within a minute."""
    by_end = sorted(admitted, key=lambda one: one.ended_s)
    most = used = first = 0
    for one in by_end:
        used += one.used
        while by_end[first].ended_s <= one.ended_s - MINUTE_S:
            used -= by_end[first].used
            first += 1
        most = max(most, used)
    return most


def settle_error(demand: Demand, uses: Sequence[int], record: Record, at_s: float, dice: random.Random) -> int:
    """What requests in flight at a moment, or ended so lately that not all replicas know, may have used beyond what was
    reserved: by the gateway's own estimator, fed with the tenant's mix for as long as it takes to see its worst
    guesses."""
    estimator = TokenEstimator()
    bodies = [
        chat("", demand.model, kind.text, max_tokens=kind.answer_max).partition(b"\r\n\r\n")[2] for kind in demand.kinds
    ]
    worst = 0
    for _ in range(GUESSES if len(demand.kinds) > 1 else 500):
        number = dice.randrange(len(uses))
        kind, used, body = demand.kinds[number], uses[number], bodies[number]
        worst = max(worst, used - estimator.estimate("t", demand.model, body, kind.answer_max))
        estimator.learn("t", demand.model, body, used - kind.answer_max, kind.answer_max)
    return worst * sum(one.sent_s <= at_s <= one.ended_s + TOLD_WITHIN_S for one in record.admitted)


# -- the clients --


async def uses_of(demand: Demand, simulator_port: int) -> list[int]:
    """What each kind of request uses, by the simulator's own word."""
    client = Client(simulator_port)
    uses = []
    for kind in demand.kinds:
        seen = await client.ask(chat("any", demand.model, kind.text, max_tokens=kind.answer_max))
        usage = seen.json["usage"]
        assert usage["completion_tokens"] == kind.answer_max, "the answer is as long as it may be"
        uses.append(usage["total_tokens"])
    client.close()
    return uses


async def want(demand: Demand, uses: list[int], port: int, record: Record, until_s: float, dice: random.Random) -> None:
    """One client: asks, and comes again, until the time is over."""
    client = Client(port)
    requests = [
        chat(credential(demand.tenant), demand.model, kind.text, max_tokens=kind.answer_max) for kind in demand.kinds
    ]
    while time.monotonic() < until_s:
        number = dice.randrange(len(requests))
        try:
            seen = await client.ask(requests[number])
        except BrokenError as error:
            record.failed.append(str(error))
            await asyncio.sleep(RETRY_WITHIN_S)
            continue
        record.apart += "x-edgegw-limits" in seen.headers
        if seen.status == 200:
            note(seen, demand, uses[number], record)
        elif seen.status == 429:
            record.refused += 1
            record.refused_s = max(record.refused_s, seen.took_s)
            wait_s = min(RETRY_WITHIN_S, int(seen.headers["retry-after-ms"]) / 1e3)
            await asyncio.sleep(wait_s * dice.uniform(0.8, 1.2))
        else:
            record.failed.append(f"{seen.status}: {seen.body!r:.300}")
            await asyncio.sleep(RETRY_WITHIN_S)
    client.close()


def note(seen: Seen, demand: Demand, expected: int, record: Record) -> None:
    if seen.json["usage"]["total_tokens"] != expected:
        record.failed.append(f"another usage than {expected}: {seen.body!r:.300}")
        return
    record.tokens += expected
    record.own_s = max(record.own_s, seen.own_s)
    used = expected if demand.measure == "tokens_per_minute" else 1
    record.admitted.append(Admitted(seen.sent_s, seen.ended_s, used))


async def load(house: Plane, demands: Sequence[Demand], seconds: float, seed: int) -> Report:
    simulator_port = house.simulator.port
    uses = {demand.tenant: await uses_of(demand, simulator_port) for demand in demands}
    await asyncio.to_thread(house.simulator.reset)
    records = {demand.tenant: Record() for demand in demands}
    calls, began_s = house.redis.evalsha_calls(), time.monotonic()
    until_s = began_s + seconds
    number = 0
    clients = []
    for demand in demands:
        for _ in range(demand.clients):
            port = house.ports[number % len(house.ports)]
            dice = random.Random(f"{seed}/{number}")
            clients.append(want(demand, uses[demand.tenant], port, records[demand.tenant], until_s, dice))
            number += 1
    await asyncio.gather(*clients)
    elapsed_s = time.monotonic() - began_s
    calls = house.redis.evalsha_calls() - calls
    stats = await asyncio.to_thread(house.simulator.stats)
    absences = await asyncio.to_thread(absences_of, house.gateways)
    rows = [
        row(demand, uses[demand.tenant], records[demand.tenant], began_s, until_s, stats["most_open_by_model"], seed)
        for demand in demands
    ]
    missed = [f"{one.tenant}: {what}" for one in rows for what in one.missed]
    told = sum(record.tokens for record in records.values())
    counted = stats["tokens"]["prompt"] + stats["tokens"]["completion"]
    if told != counted:
        missed.append(f"the simulator counted {counted} tokens, the replies said {told}")
    for record in records.values():
        missed += record.failed[:3]
    return Report(seed, len(house.gateways), elapsed_s, rows, calls / elapsed_s, absences, missed)


def absences_of(gateways: Sequence[Gateway]) -> int:
    name = REDIS_ABSENCES.name
    lines = [line for one in gateways for line in ask(one.admin_url, "GET", "/metrics").body.decode().splitlines()]
    return sum(int(float(line.split()[1])) for line in lines if line.startswith(f"{name} "))


def row(
    demand: Demand, uses: list[int], record: Record, began_s: float, until_s: float, open_: dict[str, int], seed: int
) -> Row:
    limit = demand.limits[demand.measure]
    used = sum(one.used for one in record.admitted)
    at_once = open_.get(demand.model, 0)
    allowed, beyond, error = limit, 0.0, 0
    if demand.measure != "concurrent_requests":
        since_s = min((one.sent_s for one in record.admitted), default=began_s)
        ended_s = max(until_s, max((one.ended_s for one in record.admitted), default=until_s))
        allowed = int(limit + limit * (ended_s - since_s) / MINUTE_S)
        beyond, at_s = worst_moment(record.admitted, limit, since_s)
        if demand.measure == "tokens_per_minute":
            error = settle_error(demand, uses, record, at_s, random.Random(seed))
    else:
        beyond = at_once - limit
    share = at_once / limit if demand.measure == "concurrent_requests" else used / allowed
    bars: list[tuple[bool, Callable[[], str]]] = [
        (beyond <= max(0, error), lambda: f"{beyond:.1f} beyond the limit, {error} may be"),
        (share >= SHARE_MIN, lambda: f"{share:.1%} of the limit used, not {SHARE_MIN:.0%}"),
        (not record.failed, lambda: f"{len(record.failed)} requests failed"),
    ]
    return Row(
        *(demand.tenant, demand.measure, limit, len(record.admitted), record.refused, len(record.failed), used),
        *(allowed, share, max(0, int(-(-beyond // 1))), error, worst_minute(record.admitted), at_once),
        *(record.own_s * 1e3, record.refused_s * 1e3, record.apart),
        [say() for good, say in bars if not good],
    )


# -- the table --

COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("tenant", lambda row: row.tenant),
    ("limit", lambda row: f"{row.limit:,} {row.measure}"),
    ("admitted", lambda row: f"{row.requests:,}"),
    ("refused", lambda row: f"{row.refused:,}"),
    ("failed", lambda row: str(row.failed)),
    ("used", lambda row: f"{row.used:,}"),
    ("allowed", lambda row: f"{row.allowed:,}"),
    ("share", lambda row: f"{row.share:.2%}"),
    ("overshoot", lambda row: str(row.overshoot)),
    ("settle error", lambda row: str(row.settle_error)),
    ("worst minute", lambda row: f"{row.worst_minute:,}"),
    ("at once", lambda row: str(row.at_once)),
    ("slowest own ms", lambda row: f"{row.own_ms:.1f}"),
    ("slowest refusal ms", lambda row: f"{row.refused_ms:.1f}"),
    ("not exact", lambda row: str(row.apart)),
)


def shown(report: Report) -> str:
    lines = [[cell(row) for _, cell in COLUMNS] for row in report.rows]
    return (
        f"{report.replicas} gateways, {report.seconds:.0f} s, seed {report.seed}; "
        f"Redis: {report.redis_calls_per_s:.1f} calls of the script a second, "
        f"away {report.absences} times\n\n"
        + table([heading for heading, _ in COLUMNS], lines)
        + "".join(f"\nMISSED {what}" for what in report.missed)
    )


def run(windows: float, replicas: int, seed: int, demands: Sequence[Demand] = DEMANDS) -> Report:
    tenants = {demand.tenant: {"limits": demand.limits} for demand in demands}
    with plane(tenants, replicas) as house:
        return uvloop.run(load(house, demands, windows * MINUTE_S, seed))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load.fleet", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=float, default=WINDOWS, help="minutes of load (10)")
    parser.add_argument("--replicas", type=int, default=REPLICAS, help="gateways (4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="all figures")
    given = parser.parse_args()
    report = run(given.windows, given.replicas, given.seed)
    print(shown(report))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(asdict(report), file, indent=1)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
