"""What the tests of the limits share: a channel held in the test's hand, one worker on it, a fleet of workers with an
authority that dies and restarts as often as a test likes, and both ends of a real channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgegw.channel import ChannelClient, Message, Ready
from edgegw.channel_server import ChannelServer
from edgegw.clock import ManualClock
from edgegw.errors import GatewayError
from edgegw.limits import tally
from edgegw.limits.account import Allowance
from edgegw.limits.accounts import Accounts
from edgegw.limits.authority import MemoryAuthority
from edgegw.limits.limiter import Limiter, Reservation
from edgegw.limits.meter import BY_CODE, Meter, read_meter
from edgegw.limits.words import Offer, Want

CELLS = 40  # of a worker's tally: few, so that places are used again


def meter(code: str, tenant: str = "t") -> str:
    return Meter(BY_CODE[code], tenant).id


T = meter("tpm")
RPM, PAR, DAY, MONTH = (meter(code) for code in ("rpm", "par", "day", "month"))


class Table:
    """Limits by code, the same for every tenant; what a request counts against is all of them. Limits of keys and
    models are `Rules`."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        self.limits = dict(limits)

    def meters(self, tenant: str, key_id: str | None, model: str) -> list[tuple[str, int]]:
        return [(meter(code, tenant), limit) for code, limit in self.limits.items()]

    def limit(self, meter: str) -> int:
        return self.limits[read_meter(meter).measure.code]


class Hand:
    """A channel held in the test's hand: `sent` is what the worker said, `say` speaks for the control process."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.is_open = False
        self._handlers: dict[type[Any], Callable[[Any], None]] = {}
        self._closed: list[Callable[[], None]] = []

    def handle(self, kind: type[Any], handler: Callable[[Any], None]) -> None:
        self._handlers[kind] = handler

    def on_closed(self, handler: Callable[[], None]) -> None:
        self._closed.append(handler)

    def send(self, message: Message) -> bool:
        if self.is_open:
            self.sent.append(message)
        return self.is_open

    def say(self, message: Message) -> None:
        if isinstance(message, Ready):
            self.is_open = True
        self._handlers[type(message)](message)

    def breaks(self) -> None:
        self.is_open = False
        for handler in self._closed:
            handler()

    def take_sent(self) -> list[Message]:
        sent, self.sent = self.sent, []
        return sent


class Bench:
    """One worker. `limits` by code; without any, `limit` tokens per minute."""

    def __init__(self, limit: int = 6000, shares: int = 2, limits: Mapping[str, int] | None = None, cells: int = CELLS):
        self.clock = ManualClock()
        self.hand = Hand()
        self.limit = limit
        self.rules = Table({"tpm": limit} if limits is None else limits)
        self.tally = [0] * cells
        self.accounts = Accounts(self.hand, self.clock, shares, self.tally)
        self.limiter = Limiter(self.accounts, self.rules, self.clock)

    def ready(self, epoch: int = 1, shares: int = 2) -> None:
        self.hand.say(Ready(epoch, shares))

    def offer(
        self, granted: int, remaining: int, retry_after_s: float = 0.0, code: str = "tpm", resets_s: float = 0.0
    ) -> None:
        self.hand.say(Offer(meter(code), granted, self.rules.limits[code], remaining, retry_after_s, resets_s))

    def away(self) -> bool:
        return self.limiter.degraded

    def allowance(self, tenant: str = "t") -> Allowance:
        return self.limiter.allowance(tenant, None, "m")

    def now(self, tokens: int, tenant: str = "t") -> Reservation | None:
        return self.limiter.reserve_now(self.allowance(tenant), tokens)

    async def reserve(self, tokens: int, tenant: str = "t") -> Reservation:
        return await self.limiter.reserve(self.allowance(tenant), tokens)

    async def ask(self, tokens: int, tenant: str = "t") -> asyncio.Task[Reservation]:
        task = asyncio.create_task(self.reserve(tokens, tenant))
        await asyncio.sleep(0)
        return task

    def checks(self, times: int = 1) -> None:
        """So many checks, a tenth of a second apart."""
        for _ in range(times):
            self.clock.jump(0.1001)
            self.accounts.check_leases()

    def wants(self) -> list[Want]:
        return [message for message in self.hand.sent if isinstance(message, Want)]

    def answer(self, granted: int = 0, remaining: int = 0) -> None:
        for message in self.wants():
            limit = self.rules.limit(message.meter)
            self.hand.say(Offer(message.meter, granted, limit, remaining))


def tokens(reservation: Reservation | None) -> int | None:
    return None if reservation is None else reservation.tokens


async def outcome(task: asyncio.Task[Reservation]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        async with asyncio.timeout(5):
            await task
    return caught.value


async def until(true: Callable[[], bool]) -> None:
    for _ in range(2500):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come true within 5 s")


# -- with a real channel and a real authority --


class Wall:
    def now(self) -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()


class PlaneWorker:
    """What a worker has of the limits."""

    def __init__(self, plane: Plane, slot: int) -> None:
        pid = os.getpid()
        self.client = ChannelClient(plane.path, slot, pid)
        self.tally = tally.create(tally.path(plane.state_dir, slot, pid), CELLS)
        self.accounts = Accounts(self.client, Wall(), 1, self.tally)
        self.limiter = Limiter(self.accounts, plane.rules, Wall())
        self.allowance = self.limiter.allowance("t", None, "m")

    @property
    def degraded(self) -> bool:
        return self.limiter.degraded

    def now(self, tokens: int) -> Reservation | None:
        return self.limiter.reserve_now(self.allowance, tokens)

    async def reserve(self, tokens: int) -> Reservation:
        return await self.limiter.reserve(self.allowance, tokens)

    def cut(self) -> None:
        """The channel breaks as if the other side had died."""
        assert self.client._link is not None
        self.client._link.cut("a test wants it so")


class Plane:
    """A control process and workers in one loop, with a real socket between them."""

    def __init__(self, path: Path, limits: Mapping[str, int]) -> None:
        self.state_dir = path
        self.path = str(path / "control.sock")
        self.rules = Table(limits)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(self.path)
        self.sock.listen()
        self.workers: list[PlaneWorker] = []
        self.epoch = 0

    async def start_control(self) -> None:
        self.epoch += 1
        self.authority = MemoryAuthority(self.rules.limit, Wall())
        self.server = ChannelServer(self.sock, self.authority, self.epoch, self.state_dir)
        await self.server.start()

    async def worker(self) -> PlaneWorker:
        worker = PlaneWorker(self, len(self.workers))
        worker.client.start()
        assert await worker.client.wait_open(5.0)
        self.workers.append(worker)
        return worker


@contextlib.asynccontextmanager
async def plane(path: Path, limits: Mapping[str, int]) -> AsyncIterator[Plane]:
    plane = Plane(path, limits)
    await plane.start_control()
    try:
        yield plane
    finally:
        for worker in plane.workers:
            await worker.client.close()
        await plane.server.close()
        plane.sock.close()
