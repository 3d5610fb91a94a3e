"""Which server counts what: one for everything (alone, or the master behind sentinels), or the nodes of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from edgegw.limits.redis.connection import Connection, Login, Place, RedisError, connect, tls_context
from edgegw.limits.redis.keys import HASH_SLOTS, hash_slot, probe_tag
from edgegw.limits.redis.script import Operation, probe
from edgegw.limits.redis.sentinel import Sentinels, as_they_come, asked_once
from edgegw.limits.redis.server import PROBE_EVERY_S, Call, House, Server
from edgegw.limits.redis.tab import Order
from edgegw.settings import RedisAddress

logger = logging.getLogger("edgegw.limits")


class Servers(Protocol):
    def all(self) -> Collection[Server]: ...

    def of(self, slot: int) -> Server | None:
        """Who counts what lies in a hash slot."""
        ...

    def start(self) -> None:
        """Begins to look for them."""
        ...

    async def close(self) -> None: ...

    def apart(self, orders: list[Order]) -> list[list[Order]]:
        """Divided into those that may share a call."""
        ...

    def redirected(self, server: Server, call: Call, kind: str, message: str) -> bool:
        """`server` answered a call with a redirection (`moved`, `ask`, `tryagain`). False: that makes no sense here."""
        ...


class OneServer:
    def __init__(self, address: RedisAddress, house: House) -> None:
        tls = tls_context(address.ca) if address.tls else None
        login = Login(tls, address.username, address.password, address.db)
        self._sentinels: Sentinels | None = None
        self._listening: asyncio.Task[None] | None = None
        find: Callable[[], Awaitable[Connection]]
        if address.mode == "sentinel":
            places = [Place(host, port) for host, port in address.hosts]
            own = Login(tls, None, address.sentinel_password)
            self._sentinels = Sentinels(places, address.service or "", own, login)
            find = self._sentinels.connect
        else:
            place = Place(unix_path=address.unix_path) if address.unix_path else Place(*address.hosts[0])
            find = partial(connect, place, login)
        self._server = Server(str(address), house, find, partial(probe, b"edgegw:", b"edgegw:{probe}:"))

    def all(self) -> Collection[Server]:
        return (self._server,)

    def of(self, slot: int) -> Server | None:
        return self._server

    def start(self) -> None:
        self._server.start()
        if self._sentinels is not None:
            self._listening = asyncio.get_running_loop().create_task(self._sentinels.listen(self._server.leave))

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._server.close()

    def apart(self, orders: list[Order]) -> list[list[Order]]:
        return [orders] if orders else []

    def redirected(self, server: Server, call: Call, kind: str, message: str) -> bool:
        return False


class Cluster:
    """The map of slots is read at the start, when a node redirects us, and while a node is away."""

    def __init__(self, address: RedisAddress, house: House) -> None:
        self._seeds = [Place(host, port) for host, port in address.hosts]
        self._login = Login(tls_context(address.ca) if address.tls else None, address.username, address.password)
        self._house = replace(house, away=self._away)
        self._tell_away = house.away
        self._servers: dict[Place, Server] = {}
        self._slots: list[Server | None] = [None] * HASH_SLOTS
        self._look = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def all(self) -> Collection[Server]:
        return self._servers.values()

    def of(self, slot: int) -> Server | None:
        return self._slots[slot]

    def start(self) -> None:
        self._reading = asyncio.get_running_loop().create_task(self._keep_reading())

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        await asyncio.gather(*self._closing, *(server.close() for server in self._servers.values()))

    def apart(self, orders: list[Order]) -> list[list[Order]]:
        """A call is about one slot."""
        slots: dict[int, list[Order]] = {}
        for order in orders:
            slots.setdefault(hash_slot(order.key), []).append(order)
        return list(slots.values())

    def redirected(self, server: Server, call: Call, kind: str, message: str) -> bool:
        call.over()
        if kind == "tryagain":  # some keys of the slot have moved already, others have not
            parts = [Call([order], call.sent_s) for order in call.orders] if len(call.orders) > 1 else []
            for part in parts:
                server.repeat(part)
            if not parts:
                _refuse(call)
            return True
        target = self._target(server, message)
        if target is None:
            return False
        if kind == "moved":
            self._slots[hash_slot(call.orders[0].key)] = target
            self._look.set()
        call.asking = kind == "ask"
        target.repeat(call)  # which refuses it when the connection is not open yet
        return True

    def _target(self, server: Server, message: str) -> Server | None:
        """Of `MOVED 3999 10.0.0.1:6379`; without a host it is the one that says so."""
        words = message.split()
        if len(words) < 3:
            return None
        host, _, port = words[2].rpartition(":")
        if not port.isdecimal():
            return None
        return self._server(Place(host or self._place_of(server).host, int(port)))

    def _place_of(self, server: Server) -> Place:
        return next((place for place, known in self._servers.items() if known is server), self._seeds[0])

    def _server(self, place: Place) -> Server:
        server = self._servers.get(place)
        if server is None:
            server = Server(str(place), self._house, partial(connect, place, self._login), partial(self._probe, place))
            self._servers[place] = server
            server.start()
        return server

    def _probe(self, place: Place) -> list[Operation]:
        server = self._servers.get(place)
        own = {slot for slot, owner in enumerate(self._slots) if owner is server}
        tag = probe_tag(own or range(HASH_SLOTS))
        return probe(tag, tag)

    def _away(self, server: Server, reason: str) -> None:
        self._look.set()
        self._tell_away(server, reason)

    async def _keep_reading(self) -> None:
        while True:
            if all(server.here for server in self._servers.values()) and self._servers:
                await self._look.wait()
            self._look.clear()
            await self._read()
            await asyncio.sleep(PROBE_EVERY_S)

    async def _read(self) -> None:
        """From the node that answers first."""
        places = list(dict.fromkeys([*self._servers, *self._seeds]))
        async for found in as_they_come([self._slots_as_seen_by(place) for place in places]):
            if isinstance(found, list) and found:
                self._take_over(found)
                return

    async def _slots_as_seen_by(self, place: Place) -> list[tuple[int, int, Place]]:
        answer = await asked_once(place, self._login, "CLUSTER", "SLOTS")
        if not isinstance(answer, list):
            raise RedisError("CLUSTER SLOTS is not answered by a list")
        return [_range(entry, place) for entry in answer]

    def _take_over(self, ranges: Sequence[tuple[int, int, Place]]) -> None:
        slots: list[Server | None] = [None] * HASH_SLOTS
        for first, last, place in ranges:
            slots[first : last + 1] = [self._server(place)] * (last + 1 - first)
        self._slots = slots
        for place in self._servers.keys() - {place for _, _, place in ranges}:
            task = asyncio.ensure_future(self._servers.pop(place).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _range(entry: object, asked: Place) -> tuple[int, int, Place]:
    """One entry of CLUSTER SLOTS: first slot, last slot, the master, its replicas. A node that does not know its own
    host is the one that was asked."""
    match entry:
        case [int(first), int(last), [bytes() | None as host, int(port), *_], *_]:
            return first, last, Place(host.decode() if host else asked.host, port)
    raise RedisError(f"an entry of CLUSTER SLOTS that is not understood: {entry!r:.200}")


def _refuse(call: Call) -> None:
    for order in call.orders:
        order.refused()
