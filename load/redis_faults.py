"""What clients notice when Redis goes away, really: `python -m load.redis_faults`

Real gateways under the load of two tenants: one far inside its limit, one that wants more than it may have. Redis is
killed, stopped, slowed down, made read-only or full, robbed of its scripts, failed over. Before, during and after it:
no request may fail, none may wait over 60 ms for it, the tenant at its limit gets what is documented, and within 2 s of
Redis's return everything is exact again.

Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop

from load.clients import BrokenError, Client, chat
from load.processes import HOST, Gateway, Ground, Redis, Slow, credential, ground, port_of, settings, started
from load.tables import table

REPLICAS = 3
WAIT_MS_MAX = 60.0
BACK_S_MAX = 2.0
PAUSE_S = 0.08  # of a client between two requests: some 150 a second altogether
LIMITS = {"calm": 6_000_000, "greedy": 1_200}
MODEL = "sim-tokens-5"
TEXT = "How are you?"
LOOK_S = 0.04


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of each fault. Before it the tenant at its limit uses up its minute."""

    before_s: float = 3.0
    fault_s: float = 3.0
    after_s: float = 2.5


# -- the faults: entering the block brings one about, leaving it ends it; Redis is back when the block has been left --

Fault = Callable[[Redis], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def killed(redis: Redis) -> AsyncIterator[None]:
    redis.kill()
    yield
    await asyncio.to_thread(redis.start)


@asynccontextmanager
async def stopped(redis: Redis) -> AsyncIterator[None]:
    redis.signal(signal.SIGSTOP)
    yield
    redis.signal(signal.SIGCONT)


@asynccontextmanager
async def read_only(redis: Redis) -> AsyncIterator[None]:
    redis.do("REPLICAOF", HOST, 1)
    yield
    redis.do("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def full(redis: Redis) -> AsyncIterator[None]:
    redis.do("CONFIG", "SET", "maxmemory", 1)
    yield
    redis.do("CONFIG", "SET", "maxmemory", 0)


@asynccontextmanager
async def scripts_flushed(redis: Redis) -> AsyncIterator[None]:
    """Ten times a second."""

    async def flush() -> None:
        while True:
            redis.do("SCRIPT", "FLUSH")
            await asyncio.sleep(0.1)

    flushing = asyncio.create_task(flush())
    yield
    flushing.cancel()


@dataclass(frozen=True, slots=True)
class Case:
    """`forgets`: what was counted is gone when Redis is back. `away`: it is away at all."""

    name: str
    fault: Fault
    forgets: bool = False
    away: bool = True


CASES = (
    Case("killed, then started", killed, forgets=True),
    Case("SIGSTOP, then SIGCONT", stopped),
    Case("READONLY", read_only),
    Case("out of memory", full),
    Case("scripts flushed", scripts_flushed, away=False),
)


# -- what is seen --


@dataclass(slots=True)
class Reply:
    tenant: str
    status: int  # 0: none came
    sent_s: float
    ended_s: float
    wait_s: float  # that the gateway added
    used: int
    mode: str  # of x-edgegw-limits; empty: exact
    what: str = ""


@dataclass(slots=True)
class Watch:
    """All replies, and what /readyz of each gateway said when."""

    replies: list[Reply] = field(default_factory=list)
    states: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)

    def all_say(self, state: str, after_s: float) -> float | None:
        """When all gateways first said so."""
        return next((at_s for at_s, states in self.states if at_s >= after_s and set(states) == {state}), None)


async def want(tenant: str, port: int, watch: Watch, dice: random.Random) -> None:
    request = chat(credential(tenant), MODEL, TEXT, max_tokens=5)
    await asyncio.sleep(PAUSE_S * dice.random())
    with contextlib.closing(Client(port)) as client:
        while True:
            watch.replies.append(await one_reply(tenant, client, request))
            await asyncio.sleep(PAUSE_S * dice.uniform(0.7, 1.3))


async def one_reply(tenant: str, client: Client, request: bytes) -> Reply:
    sent_s = time.monotonic()
    try:
        seen = await client.ask(request)
    except BrokenError as error:
        return Reply(tenant, 0, sent_s, time.monotonic(), 0.0, 0, "", str(error))
    answered = seen.status == 200
    used = seen.json["usage"]["total_tokens"] if answered else 0
    wait_s = seen.own_s if answered else seen.took_s
    mode = seen.headers.get("x-edgegw-limits", "")
    what = "" if seen.status in (200, 429) else f"{seen.body!r:.200}"
    return Reply(tenant, seen.status, seen.sent_s, seen.ended_s, wait_s, used, mode, what)


async def look(gateways: Sequence[Gateway], watch: Watch) -> None:
    request = b"GET /readyz HTTP/1.1\r\nhost: gateway\r\n\r\n"
    with contextlib.ExitStack() as stack:
        ports = [int(gateway.admin_url.rpartition(":")[2]) for gateway in gateways]
        clients = [stack.enter_context(contextlib.closing(Client(port))) for port in ports]
        while True:
            seen = await asyncio.gather(*(client.ask(request) for client in clients))
            watch.states.append((time.monotonic(), tuple(one.json["limits"]["state"] for one in seen)))
            await asyncio.sleep(LOOK_S)


@dataclass(slots=True)
class Row:
    fault: str
    requests: int
    failed: int
    calm_ms: float  # the longest wait before the fault: what the machine adds by itself
    away_ms: float  # the longest while it lasted, its edges included
    overshoot: int
    overshoot_may: int
    away_after_s: float | None
    back_after_s: float | None  # /readyz of all
    last_header_s: float  # after the return
    headers: list[str]
    states: list[str]
    missed: list[str]


async def lived_through(
    case: Case,
    number: int,
    redis: Redis,
    gateways: Sequence[Gateway],
    seed: int,
    promoted: Promoted = None,
    pace: Pace = Pace(),
) -> Row:
    """One fault. `promoted`: what to wait for at its end, when another server takes over."""
    watch = Watch()
    names = [tenant_of("calm", number), tenant_of("greedy", number)]
    tasks = [asyncio.create_task(look(gateways, watch))]
    began_s = time.monotonic()
    for at, gateway in enumerate(gateways):
        for client, name in enumerate(names * 2):
            dice = random.Random(f"{seed}/{number}/{at}/{client}")
            tasks.append(asyncio.create_task(want(name, port_of(gateway), watch, dice)))
    try:
        await asyncio.sleep(pace.before_s)
        fault_s = time.monotonic()
        async with case.fault(redis):
            await asyncio.sleep(pace.fault_s)
        returned_s = time.monotonic()
        if promoted is not None:
            returned_s = await promoted()
        await asyncio.sleep(pace.after_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # connections close
    return judged(case, watch, names[1], len(gateways), began_s, fault_s, returned_s)


def judged(
    case: Case, watch: Watch, greedy: str, replicas: int, began_s: float, fault_s: float, returned_s: float
) -> Row:
    replies = watch.replies
    failed = [reply for reply in replies if reply.status not in (200, 429)]
    before = [reply.wait_s for reply in replies if reply.ended_s < fault_s]
    during = [reply.wait_s for reply in replies if reply.ended_s >= fault_s]
    limit = LIMITS["greedy"]
    used, beyond = 0, 0.0
    for reply in sorted(replies, key=lambda reply: reply.ended_s):
        if reply.tenant == greedy:
            used += reply.used
            beyond = max(beyond, used - limit - limit * (reply.ended_s - began_s) / 60)
    largest = max((reply.used for reply in replies), default=0)
    edges = replicas * largest + limit * (returned_s - fault_s) / 60 if case.away else 0
    may = int(edges) + (limit if case.forgets else 0)
    away_s, back_s = watch.all_say("away", fault_s), watch.all_say("exact", returned_s)
    marked = [reply for reply in replies if reply.mode and reply.ended_s >= fault_s]
    last_header_s = max((reply.ended_s - returned_s for reply in marked), default=0.0)
    bars = [
        (not failed, f"{len(failed)} failed: {[reply.what for reply in failed[:3]]}"),
        (max(during, default=0.0) * 1e3 <= WAIT_MS_MAX, f"a request waited {max(during, default=0.0) * 1e3:.0f} ms"),
        (beyond <= may, f"{beyond:.0f} tokens beyond the limit, {may} may be"),
        (back_s is not None and back_s - returned_s <= BACK_S_MAX, "not exact again within 2 s"),
        (last_header_s <= BACK_S_MAX, f"a reply was marked {last_header_s:.1f} s after the return"),
        (not case.away or (away_s is not None and bool(marked)), "nobody noticed: no state away, or no header"),
        (case.away or not marked, "counted locally, though Redis was there"),
    ]
    return Row(
        *(case.name, len(replies), len(failed), max(before, default=0.0) * 1e3, max(during, default=0.0) * 1e3),
        *(max(0, int(-(-beyond // 1))), may),
        None if away_s is None else away_s - fault_s,
        None if back_s is None else max(0.0, back_s - returned_s),
        max(0.0, last_header_s),
        sorted({reply.mode for reply in marked}),
        sorted({state for at_s, states in watch.states if at_s >= fault_s for state in states}),
        [text for good, text in bars if not good],
    )


# -- where they happen --

Promoted = Callable[[], Any] | None


def tenant_of(kind: str, number: int) -> str:
    """A fault finds tenants with a full minute."""
    return f"{kind}-{number}"


def tenants(cases: int) -> dict[str, dict[str, Any]]:
    return {
        tenant_of(kind, number): {"limits": {"tokens_per_minute": limit}}
        for number in range(cases)
        for kind, limit in LIMITS.items()
    }


def configured(under: Ground, url: str, cases: int, replicas: int) -> list[dict[str, Any]]:
    return [settings(under.simulator, tenants(cases), redis_url=url)] * replicas


async def on_one_server(cases: Sequence[Case], replicas: int, seed: int, pace: Pace = Pace()) -> list[Row]:
    with ground() as under:
        redis = under.redises.redis()
        with started(under.directory, configured(under, redis.url, len(cases), replicas)) as gateways:
            return [
                await lived_through(one, number, redis, gateways, seed, pace=pace) for number, one in enumerate(cases)
            ]


async def through_a_proxy(replicas: int, seed: int) -> list[Row]:
    with ground() as under:
        redis = under.redises.redis()
        async with Slow(redis).running() as slow:

            @asynccontextmanager
            async def slowed(_: Redis) -> AsyncIterator[None]:
                slow.delay_s = 0.2
                yield
                slow.delay_s = 0.0

            with contextlib.ExitStack() as stack:
                each = configured(under, slow.url, 1, replicas)
                gateways = await asyncio.to_thread(stack.enter_context, started(under.directory, each))
                return [await lived_through(Case("200 ms slow", slowed), 0, redis, gateways, seed)]


async def behind_sentinels(replicas: int, seed: int) -> list[Row]:
    with ground() as under:
        house = await asyncio.to_thread(under.redises.sentinels)

        @asynccontextmanager
        async def master_killed(master: Redis) -> AsyncIterator[None]:
            master.kill()
            yield

        promoted_s: list[float] = []

        async def watch_promotion() -> None:
            while house.replica.do("ROLE")[0] != b"master":  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
            promoted_s.append(time.monotonic())

        async def promoted() -> float:
            async with asyncio.timeout(20):
                await watching
            return promoted_s[0]

        with started(under.directory, configured(under, house.url, 1, replicas)) as gateways:
            watching = asyncio.create_task(watch_promotion())
            return [
                await lived_through(
                    Case("failed over by Sentinel", master_killed), 0, house.master, gateways, seed, promoted
                )
            ]


async def everything(replicas: int, seed: int, only: str = "") -> list[Row]:
    rows: list[Row] = []
    if chosen := [one for one in CASES if only in one.name]:
        rows += await on_one_server(chosen, replicas, seed)
    if only in "200 ms slow":
        rows += await through_a_proxy(replicas, seed)
    if only in "failed over by Sentinel":
        rows += await behind_sentinels(replicas, seed)
    return rows


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Redis is", lambda row: row.fault),
    ("requests", lambda row: f"{row.requests:,}"),
    ("failed", lambda row: str(row.failed)),
    ("longest wait before, ms", lambda row: f"{row.calm_ms:.0f}"),
    ("from the fault on, ms", lambda row: f"{row.away_ms:.0f}"),
    ("overshoot", lambda row: str(row.overshoot)),
    ("may be", lambda row: str(row.overshoot_may)),
    ("away after, s", lambda row: _seconds(row.away_after_s)),
    ("exact again after, s", lambda row: _seconds(row.back_after_s)),
    ("last marked reply, s", lambda row: f"{row.last_header_s:.2f}"),
    ("x-edgegw-limits", lambda row: ", ".join(row.headers) or "-"),
    ("/readyz", lambda row: ", ".join(row.states)),
)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def shown(rows: Sequence[Row]) -> str:
    lines = [[cell(row) for _, cell in COLUMNS] for row in rows]
    missed = [f"\nMISSED {row.fault}: {what}" for row in rows for what in row.missed]
    return table([heading for heading, _ in COLUMNS], lines) + "".join(missed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load.redis_faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=REPLICAS, help="gateways (3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name contains it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="all figures")
    given = parser.parse_args()
    rows = uvloop.run(everything(given.replicas, given.seed, given.only))
    print(f"{given.replicas} gateways, seed {given.seed}\n\n{shown(rows)}")
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)
    return 1 if any(row.missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
