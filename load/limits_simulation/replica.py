"""One replica of the gateway in virtual time: a control process and workers, with the production's code for everything
that counts.

Of the worker: Limiter, Accounts, Lease and its end of the channel; of the control process: the channel's server, the
holdings and the Redis authority with its connection. Only the sockets between them are virtual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from edgegw.channel import ChannelClient, Hello, WorkerLink
from edgegw.channel_server import ChannelServer, ControlLink
from edgegw.limits.accounts import METERS_MAX, Accounts
from edgegw.limits.holdings import Holdings
from edgegw.limits.limiter import Limiter
from edgegw.limits.redis.authority import RedisAuthority
from edgegw.limits.redis.script import Script
from edgegw.settings.model import WithoutRedis
from edgegw.settings.redis_address import RedisAddress
from load.limits_simulation.loop import VirtualClock, VirtualLoop
from load.limits_simulation.redis import VirtualRedis
from load.limits_simulation.wire import End, connect

CHANNEL_S = 0.0001  # from one process of a machine to another, its turn of the loop included

WAITS_S = 1.0  # as worker.py: then it serves without its control process
NOWHERE = Path("/nonexistent")  # tallies are handed over in memory


class Meters:
    """What requests count against: limits by meter, and meters by tenant."""

    def __init__(self, limits: Mapping[str, int], by_tenant: Mapping[str, list[tuple[str, int]]]) -> None:
        self.limits = limits
        self._by_tenant = by_tenant

    def meters(self, tenant: str, key_id: str | None, model: str) -> list[tuple[str, int]]:
        return self._by_tenant[tenant]


class Tally(list[int]):
    """A worker's. The control process reads `seen`: the same while it lives, a copy of its last state afterwards (an
    object that is dead in the story may still move)."""

    def __init__(self) -> None:
        super().__init__([0] * METERS_MAX)
        self.seen: Sequence[int] = self


class Worker:
    def __init__(self, replica: Replica, slot: int, pid: int, meters: Meters) -> None:
        self.replica = replica
        self.slot = slot
        self.alive = True
        self.tally = Tally()
        self.channel = VirtualChannel(replica, self, pid)
        self.accounts = Accounts(self.channel, replica.clock, replica.workers_max, self.tally)
        self.limiter = Limiter(self.accounts, meters, replica.clock)
        self.channel.start()
        self._listens_s = replica.loop.time() + WAITS_S

    @property
    def ready(self) -> bool:
        """It listens when its channel was open once, or has been waited for long enough."""
        first = self.channel._first_ready
        return self.replica.loop.time() >= self._listens_s or (first is not None and first.done())

    def die(self) -> None:
        self.alive = False
        self.tally.seen = list(self.tally)
        self.channel.die()

    def held(self) -> dict[str, int]:
        """What lies in hand at this moment, by meter."""
        return {account.meter: account.level for account in self.accounts._rotation if account.level > 0}


class VirtualChannel(ChannelClient):
    def __init__(self, replica: Replica, worker: Worker, pid: int) -> None:
        super().__init__("channel", worker.slot, pid)
        self._replica = replica
        self._worker = worker
        self._end: End | None = None

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> WorkerLink:
        server = self._replica.server
        if server is None:
            raise ConnectionRefusedError
        link = WorkerLink(loop, self)
        self._end = connect(self._replica.loop, link, VirtualLink(loop, server, self._worker), lambda: CHANNEL_S)
        return link

    def die(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._end is not None:
            self._end.vanish()
        self._link = None


class VirtualLink(ControlLink):
    def __init__(self, loop: asyncio.AbstractEventLoop, server: ChannelServer, worker: Worker) -> None:
        super().__init__(loop, server)
        self._worker = worker

    def _greet(self, hello: Hello) -> None:
        super()._greet(hello)
        self.holdings = Holdings(cast(Sequence[int], _Seen(self._worker.tally)))


class _Seen:
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __getitem__(self, place: int) -> int:
        return self._tally.seen[place]


class Replica:
    """`name` is told from all before it by its number of lives."""

    def __init__(
        self,
        loop: VirtualLoop,
        redis: VirtualRedis,
        number: int,
        workers: int,
        meters: Meters,
        script: Script,
        without_redis: Callable[[str], WithoutRedis],
    ) -> None:
        self.loop = loop
        self.number = number
        self.workers_max = workers
        self.clock = VirtualClock(loop)
        self.server: ChannelServer | None = None
        self.authority: RedisAuthority | None = None
        self.workers: list[Worker] = []
        self.lives = 0
        self._redis = redis
        self._meters = meters
        self._script = script
        self._without_redis = without_redis
        self._pids = 0
        self._redis_ends: list[End] = []

    @property
    def name(self) -> str:
        return f"{self.number}.{self.lives}"

    def start(self) -> None:
        self.start_control()
        for slot in range(self.workers_max):
            self.start_worker(slot)

    def start_control(self) -> None:
        self.lives += 1
        name = self.name
        self._redis_ends = []
        self.loop.addresses[name] = lambda protocol: self._to_redis(name, protocol)
        self.authority = RedisAuthority(
            RedisAddress(mode="single", unix_path=name),
            self._script,
            self._meters.limits.__getitem__,
            self._without_redis,
            self.clock,
            name,
        )
        self.loop.create_task(self._open(self.authority))

    async def _open(self, authority: RedisAuthority) -> None:
        await authority.start()
        if self.authority is authority:
            self.server = ChannelServer(cast(Any, None), authority, self.lives, NOWHERE)

    async def _to_redis(self, name: str, protocol: asyncio.Protocol) -> End:
        end = await self._redis.accept(str(self.number), protocol)
        if name != self.name:  # we died meanwhile
            end.vanish()
            await asyncio.get_running_loop().create_future()
        self._redis_ends.append(end)
        return end

    def start_worker(self, slot: int) -> None:
        self._pids += 1
        self.workers.append(Worker(self, slot, self._pids, self._meters))

    # -- faults --

    def kill_worker(self, worker: Worker) -> None:
        worker.die()
        self.workers.remove(worker)

    def kill_control(self) -> None:
        """Of the control process nothing is left but what others know."""
        if self.server is not None:
            for link in list(self.server._accepted):
                cast(End, link._transport).vanish()
        self.server = None
        authority, self.authority = self.authority, None
        for end in self._redis_ends:
            end.vanish()
        if authority is not None:
            stop(authority)

    def kill(self) -> None:
        for worker in list(self.workers):
            self.kill_worker(worker)
        self.kill_control()

    def redis_calls(self) -> tuple[int, int]:
        """Calls and operations of this life."""
        tally = self.authority.tally if self.authority is not None else None
        return (tally.calls, tally.operations) if tally is not None else (0, 0)


def stop(authority: RedisAuthority) -> None:
    """Without a word: its tasks end, its connections are gone."""
    if authority._caring is not None:
        authority._caring.cancel()
    for server in authority._servers.all():
        if server._returning is not None:
            server._returning.cancel()
        server._tabs, server._orders, server.here = {}, [], False
