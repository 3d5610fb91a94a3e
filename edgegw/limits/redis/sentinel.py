"""Where the master is, by the word of its sentinels.

All are asked at once, and the first whose master says of itself that it is one (ROLE) is believed: a sentinel that was
cut off may name the one of before. Asked anew for every connection, so that a failover needs no more than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from edgegw.limits.redis.connection import Connection, Login, Place, RedisError, connect

ASKED_WITHIN_S = 0.4  # a sentinel answers within its round trip; the whole way to the master has a second

T = TypeVar("T")


class Sentinels:
    """`own` is how to log in with them, `login` with the server."""

    def __init__(self, places: Sequence[Place], service: str, own: Login, login: Login) -> None:
        self._places = places
        self._service = service
        self._own = own
        self._login = login

    async def connect(self) -> Connection:
        """To the master. Raises OSError and RedisError."""
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
