"""Workers die by `kill -9` while they hold leases: is anything lost, is anything admitted twice? `python -m load.kills`

Four workers, of two gateways with one Redis or of one gateway with its own memory, under clients that never pause. At a
seeded moment one of them is killed; then the clients rest, and the authority's own number (the key in Redis, the
file of the memory authority) must come to what was used, to the token: nothing is counted for longer than a second that
nobody has, and nothing is missing. At the end the limit is used up, and what was admitted in all is the limit.

Each request reserves exactly what it uses (its body is as long as the first guess of its tokens takes it for), so that
a request that dies with its worker counts as well: what the simulator has seen begin was used.

Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import msgspec
import uvloop

from edgegw.limits.authority import Remembered
from edgegw.limits.memory_file import FILE_NAME, SAVE_EVERY_S
from edgegw.limits.meter import BY_CODE, Meter
from edgegw.limits.redis.keys import meter_key
from edgegw.tokens import BYTES_PER_TOKEN
from load.clients import BrokenError, Client, post
from load.processes import Gateway, Redis, Simulator, credential, ground, port_of, settings, started
from load.tables import table

Kind = Literal["redis", "memory"]

KILLS = 50
WORKERS = 4
CLIENTS = 12
LOST_S_MAX = 1.0
LOOK_S = 0.02
GIVE_UP_S = 5.0
LOAD_S = (0.15, 0.5)  # between two kills, by the dice
TENANT = "acme"
ANSWER_TOKENS = 8
MODEL = f"sim-tokens-{ANSWER_TOKENS}-latency-30ms"
USED = 121  # tokens of each request, as the simulator counts: 113 of the prompt, most of them for the picture
LAST = 400  # requests that are left for the end, when the limit is used up
DAY = Meter(BY_CODE["day"], TENANT)
SLOTS = Meter(BY_CODE["par"], TENANT)


def body() -> bytes:
    content = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    fields = {"model": MODEL, "max_tokens": ANSWER_TOKENS, "messages": [{"role": "user", "content": content}]}
    bare = len(json.dumps({**fields, "user": ""}))
    return json.dumps({**fields, "user": "p" * (int((USED - ANSWER_TOKENS) * BYTES_PER_TOKEN) - bare)}).encode()


REQUEST = post(credential(TENANT), body())


class Books:
    """What the authority says was taken, of tokens and of slots. `late_s`: how old it may be by its own doing."""

    late_s = 0.0

    def __init__(self, redis: Redis | None, gateways: Sequence[Gateway]) -> None:
        self._redis = redis.client() if redis is not None else None
        self._file = gateways[0].state_dir / FILE_NAME
        if redis is None:
            self.late_s = SAVE_EVERY_S

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def taken(self) -> tuple[int, int | None]:
        """Slots: None where they are not to be read."""
        if self._redis is not None:
            return tuple(int(self._redis.do("HGET", meter_key(meter), "used") or 0) for meter in (DAY, SLOTS))  # type: ignore[return-value]
        with contextlib.suppress(FileNotFoundError):
            for kept in msgspec.msgpack.decode(self._file.read_bytes(), type=list[Remembered]):
                if kept.meter == DAY.id:
                    return kept.limit - kept.level, None
        return 0, None


@dataclass(slots=True)
class Run:
    """What the clients do together."""

    going: asyncio.Event = field(default_factory=asyncio.Event)
    busy: int = 0
    answered: int = 0
    broken: int = 0
    refused: int = 0
    other: list[str] = field(default_factory=list)
    apart: int = 0  # replies under limits that were not exact

    async def client(self, port: int) -> None:
        with contextlib.closing(Client(port)) as client:
            while True:
                await self.going.wait()
                await self._one(client)

    async def _one(self, client: Client) -> None:
        self.busy += 1
        try:
            seen = await client.ask(REQUEST)
        except BrokenError:
            self.broken += 1
            await asyncio.sleep(0.01)
            return
        finally:
            self.busy -= 1
        self.answered += seen.status == 200
        self.refused += seen.status == 429
        self.apart += "x-edgegw-limits" in seen.headers
        if seen.status == 429:
            await asyncio.sleep(0.02)
        elif seen.status != 200:
            self.other.append(f"{seen.status}: {seen.body!r:.200}")

    async def rest(self) -> None:
        """No new requests, and none under way."""
        self.going.clear()
        while self.busy:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@dataclass(slots=True)
class Report:
    authority: Kind
    kills: int
    answered: int
    broken: int
    other: int
    apart: int
    admitted: int  # requests that the simulator saw begin
    limit: int  # requests
    lost: int  # requests' worth that was taken and that nobody used, at the end
    longest_s: float  # from a kill to the right number
    median_s: float
    missed: list[str]


async def kill_and_look(
    gateways: Sequence[Gateway], number: int, run: Run, books: Books, simulator: Simulator
) -> float:
    """Seconds from the death of a worker until the authority's number is what was used. Raises AssertionError."""
    gateway = gateways[number % len(gateways)]
    slot = number // len(gateways) % (WORKERS // len(gateways))
    pid = gateway.processes()["workers"][str(slot)]
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    await run.rest()
    while True:
        taken, slots = books.taken()
        looked_s = time.monotonic()
        began = simulator.stats()["requests"]
        # A request may have died between its reservation and its provider: it is one of those whose connection broke.
        beyond = taken - began * USED
        if beyond in range(0, (run.answered + run.broken - began + 1) * USED, USED) and not slots:
            return looked_s - killed_s
        if looked_s - killed_s > GIVE_UP_S:
            raise AssertionError(
                f"kill {number}: {taken} tokens and {slots} slots are taken, {began * USED} tokens were used "
                f"({run.answered} answered, {run.broken} broken)"
            )
        await asyncio.sleep(LOOK_S)


async def respawned(gateways: Sequence[Gateway]) -> None:
    async with asyncio.timeout(20):
        for gateway in gateways:
            while len(gateway.processes()["workers"]) < WORKERS // len(gateways):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)


async def play(
    kind: Kind, gateways: Sequence[Gateway], redis: Redis | None, simulator: Simulator, kills: int, seed: int
) -> Report:
    dice = random.Random(seed)
    run, books = Run(), Books(redis, gateways)
    clients = [asyncio.create_task(run.client(port_of(gateways[at % len(gateways)]))) for at in range(CLIENTS)]
    times: list[float] = []
    missed: list[str] = []
    try:
        for number in range(kills):
            await respawned(gateways)
            run.going.set()
            await asyncio.sleep(dice.uniform(*LOAD_S))
            try:
                times.append(await kill_and_look(gateways, number, run, books, simulator))
            except AssertionError as error:
                missed.append(str(error))
        await respawned(gateways)
        began = simulator.stats()["requests"]
        await use_up(run, simulator, limit_of(kills))
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(0.01)  # connections close
        books.close()
    admitted, limit = simulator.stats()["requests"], limit_of(kills)
    longest_s = max(times, default=0.0)
    bars = [
        (admitted <= limit, f"{admitted - limit} requests were admitted beyond the limit"),
        (admitted >= limit - run.broken, f"{limit - admitted} requests' worth is lost, and {run.broken} broke"),
        (longest_s <= LOST_S_MAX + books.late_s, f"a number was wrong for {longest_s:.2f} s"),
        (admitted > began, "nothing was left for the end"),
        (not run.other, f"other answers: {run.other[:3]}"),
    ]
    missed += [text for good, text in bars if not good]
    return Report(
        *(kind, kills, run.answered, run.broken, len(run.other), run.apart, admitted, limit, limit - admitted),
        *(longest_s, sorted(times)[len(times) // 2] if times else 0.0),
        missed,
    )


def limit_of(kills: int) -> int:
    """Requests that fit: more than the load between the kills asks for, and not so many that the end takes long."""
    return kills * REQUESTS_PER_KILL + LAST


REQUESTS_PER_KILL = 130  # twelve clients for half a second, 40 ms each


async def use_up(run: Run, simulator: Simulator, limit: int) -> None:
    """Until for a second nobody was admitted."""
    run.going.set()
    seen, since_s = -1, time.monotonic()
    while time.monotonic() < since_s + 1.0:
        answered = run.answered
        if answered != seen:
            seen, since_s = answered, time.monotonic()
        await asyncio.sleep(LOOK_S)
    await run.rest()


@contextlib.contextmanager
def house(kind: Kind, kills: int) -> Iterator[tuple[list[Gateway], Redis | None, Simulator]]:
    with ground() as under:
        redis = under.redises.redis() if kind == "redis" else None
        gateways = 2 if redis else 1
        limits = {"tokens_per_minute": 10**9, "tokens_per_day": limit_of(kills) * USED, "concurrent_requests": 1_000}
        each = settings(
            under.simulator,
            {TENANT: {"limits": limits}},
            redis_url=redis.url if redis else None,
            workers=WORKERS // gateways,
        )
        with started(under.directory, [each] * gateways) as them:
            yield them, redis, under.simulator


def run(kind: Kind, kills: int, seed: int) -> Report:
    with house(kind, kills) as (gateways, redis, simulator):
        return uvloop.run(play(kind, gateways, redis, simulator, kills, seed))


COLUMNS: tuple[tuple[str, Callable[[Report], str]], ...] = (
    ("authority", lambda one: one.authority),
    ("kills", lambda one: str(one.kills)),
    ("answered", lambda one: f"{one.answered:,}"),
    ("died with a worker", lambda one: str(one.broken)),
    ("other answers", lambda one: str(one.other)),
    ("admitted", lambda one: f"{one.admitted:,}"),
    ("the limit", lambda one: f"{one.limit:,}"),
    ("right again after, median s", lambda one: f"{one.median_s:.2f}"),
    ("at most s", lambda one: f"{one.longest_s:.2f}"),
    ("not exact", lambda one: str(one.apart)),
)


def shown(reports: Sequence[Report]) -> str:
    missed = [f"\nMISSED {one.authority}: {what}" for one in reports for what in one.missed]
    lines = [[cell(one) for _, cell in COLUMNS] for one in reports]
    return table([heading for heading, _ in COLUMNS], lines) + "".join(missed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m load.kills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--authority", choices=("redis", "memory"), help="one of them only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="all figures")
    given = parser.parse_args()
    kinds: list[Kind] = [given.authority] if given.authority else ["redis", "memory"]
    reports = [run(kind, given.kills, given.seed) for kind in kinds]
    print(shown(reports))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump([asdict(one) for one in reports], file, indent=1)
    return 1 if any(one.missed for one in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
