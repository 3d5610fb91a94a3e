"""Where the master is, by the word of its sentinels.

All are asked at once, and the first whose master says of itself that it is one (ROLE) is believed: a sentinel that was
cut off may name the one of before. Asked anew for every connection. And all are listened to: after a planned failover
the old master takes writes for seconds, which nobody else will ever see.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from edgegw.limits.redis.connection import Connection, Login, Place, RedisError, connect

SWITCHED = b"+switch-master"  # what they announce: service, old host and port, new host and port
LISTEN_AGAIN_S = 1.0  # to a sentinel that was lost
ASKED_WITHIN_S = 0.4  # a sentinel answers within its round trip; the whole way to the master has a second

T = TypeVar("T")


class Sentinels:
    """`own` is how to log in with them, `login` with the server."""

    def __init__(self, places: Sequence[Place], service: str, own: Login, login: Login) -> None:
        self._places = places
        self._service = service
        self._own = own
        self._login = login
        self._master_at: Place | None = None
        self._announced: Place | None = None  # the newest, until it was tried

    async def listen(self, switched: Callable[[str], None]) -> None:
        """Calls `switched` with the reason when there is another master than that of the last `connect`. For ever."""
        await asyncio.gather(*(self._listen(place, switched) for place in self._places))

    async def connect(self) -> Connection:
        """To the master. Raises OSError and RedisError. After a switch not all sentinels know the new one at once."""
        announced, self._announced = self._announced, None
        if announced is not None:
            with contextlib.suppress(OSError, RedisError):
                return await self._master(announced)
        tried: set[Place] = set()
        fault: Exception = RedisError("no sentinel knows a master")
        async for found in as_they_come([self._named_by(place) for place in self._places]):
            if isinstance(found, Exception):
                fault = found
            elif found is not None and found not in tried:
                tried.add(found)
                try:
                    return await self._master(found)
                except (OSError, RedisError) as error:
                    fault = error
        raise fault

    async def _listen(self, sentinel: Place, switched: Callable[[str], None]) -> None:
        def told(message: object) -> None:
            match message:
                case [b"message", _, bytes(said)]:
                    service, _, _, host, port = said.decode().split(" ")
                    if service == self._service and self._master_at not in (None, Place(host, int(port))):
                        self._announced = Place(host, int(port))
                        switched("the sentinels have chosen another master")

        while True:
            ended = asyncio.Event()
            try:
                async with asyncio.timeout(ASKED_WITHIN_S):
                    connection = await connect(sentinel, self._own)
            except (OSError, RedisError):
                pass  # it is away; the others are there
            else:
                connection.told = told
                connection.lost = lambda _, ended=ended: ended.set()  # type: ignore[misc]
                connection.send(("SUBSCRIBE", SWITCHED), lambda _: None)
                try:
                    await ended.wait()
                finally:
                    connection.abort()
            await asyncio.sleep(LISTEN_AGAIN_S)

    async def _named_by(self, sentinel: Place) -> Place | None:
        answer = await asked_once(sentinel, self._own, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        match answer:
            case [bytes(host), bytes(port)]:
                return Place(host.decode(), int(port))
        return None

    async def _master(self, place: Place) -> Connection:
        connection = await connect(place, self._login)
        try:
            role = await connection.ask("ROLE")
            if not isinstance(role, list) or role[0] != b"master":
                raise RedisError(f"{place} is no master (any more)")
        except BaseException:
            connection.abort()
            raise
        self._master_at = place
        return connection


async def asked_once(place: Place, login: Login, *command: str) -> object:
    """The answer of a server that is asked for nothing else. Raises OSError (TimeoutError) and RedisError."""
    async with asyncio.timeout(ASKED_WITHIN_S):
        connection = await connect(place, login)
        try:
            return await connection.ask(*command)
        finally:
            connection.abort()


async def as_they_come(tries: Sequence[Awaitable[T]]) -> AsyncIterator[T | Exception]:
    """What comes of each, the quickest first; an OSError or RedisError is given as it is. Who stops early stops all."""
    tasks = [asyncio.ensure_future(one) for one in tries]
    try:
        for next_one in asyncio.as_completed(tasks):
            try:
                yield await next_one
            except (OSError, RedisError) as error:
                yield error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
