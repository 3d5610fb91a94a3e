"""One connection to Redis: commands go out as they come, answers are matched in their order, none is ever skipped.

The only place that knows the protocol (RESP 2, by hiredis). Nobody waits in here: `send` takes who is to be called with
the answer, also when that is late, or that there will be none. `connect` opens a connection and says who we are.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import hiredis

from edgegw.settings import Secret

CLIENT_NAME = b"edgegw"  # in CLIENT LIST
UNREAD_BYTES_MAX = 4 << 20  # waiting for a server that does not read; some hundred full calls, so it is as good as gone
# A server that vanished without a word (its machine, a firewall) is noticed by calls; between them by these.
KEEP_ALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))

Command = tuple[bytes | int | str, ...]


class RedisError(Exception):
    """Redis is not to be had, or does not do what it was asked."""


class Refused(RedisError):  # noqa: N818 (the three ways to get no answer, by their names)
    """An error that Redis replied, in its words: what was asked was not done."""


class Lost(RedisError):  # noqa: N818
    """The connection ended before the answer: nobody knows whether it was done."""


class Garbled(RedisError):  # noqa: N818
    """What arrives is not the protocol of Redis."""


OnReply = Callable[[object], None]
"""Called once: with the reply, a Refused, or a Lost."""


class _NotYet:
    """What the reader says when a reply is not complete."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    unix_path: str | None = None

    def __str__(self) -> str:
        return self.unix_path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


@dataclass(frozen=True, slots=True)
class Login:
    """How to get in: TLS, who we are, and the number of the database."""

    tls: ssl.SSLContext | None = None
    username: str | None = None
    password: Secret | None = None
    db: int = 0


class Connection(asyncio.Protocol):
    """`lost` is called when it ends, after all that still waited for an answer were told; `told` with what arrives
    unasked, which only a connection that has subscribed to something should see."""

    def __init__(self) -> None:
        self.lost: Callable[[Connection], None] = _ignore
        self.told: Callable[[object], None] | None = None
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[OnReply] = deque()
        self._reader = hiredis.Reader(protocolError=Garbled, replyError=Refused, notEnoughData=_NotYet)

    @property
    def unanswered(self) -> int:
        return len(self._waiting)

    def send(self, command: Command, on_reply: OnReply) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            on_reply(Lost("the connection is closed"))
            return
        self._waiting.append(on_reply)
        transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub knows no tuple of many
        if transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            transport.abort()

    async def ask(self, *command: bytes | int | str) -> object:
        """The reply. Raises Refused and Lost."""
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.send(command, partial(_settle, answer))
        return await answer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NotYet:
                if self._waiting:
                    self._waiting.popleft()(reply)
                elif self.told is not None:
                    self.told(reply)
                else:
                    raise Garbled("a reply that nobody asked for")
        except Garbled:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.open = False
        waiting, self._waiting = self._waiting, deque()
        for on_reply in waiting:
            on_reply(Lost("the connection is closed" if exc is None else str(exc)))
        self.lost(self)


async def connect(place: Place, login: Login) -> Connection:
    """A connection that is logged in. Raises OSError (also for TLS) and RedisError; waits for as long as it takes."""
    loop = asyncio.get_running_loop()
    if place.unix_path is not None:
        _, connection = await loop.create_unix_connection(Connection, place.unix_path)
    else:
        name = place.host if login.tls else None
        transport, connection = await loop.create_connection(
            Connection, place.host, place.port, ssl=login.tls, server_hostname=name
        )
        _keep_alive(transport.get_extra_info("socket"))
    try:
        await _log_in(connection, login)
    except BaseException:
        connection.abort()
        raise
    return connection


def tls_context(ca: str | None) -> ssl.SSLContext:
    """Certificates are checked against the system's trust store or the file `ca`, and for the name that we dialled.
    Raises OSError when the file cannot be read or holds no certificate."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _log_in(connection: Connection, login: Login) -> None:
    """All of it at once: one round trip."""
    commands: list[Command] = []
    if login.password is not None:
        user = (login.username,) if login.username else ()
        commands.append(("AUTH", *user, login.password.reveal()))
    if login.db:
        commands.append(("SELECT", login.db))
    asked = [asyncio.ensure_future(connection.ask(*command)) for command in commands]
    named = asyncio.ensure_future(connection.ask("CLIENT", "SETNAME", CLIENT_NAME))
    try:
        for answer in asked:
            await answer
        try:
            await named
        except Refused as refusal:  # a courtesy that an ACL need not allow
            if str(refusal).startswith("NOAUTH"):
                raise
    finally:
        for answer in (*asked, named):
            answer.cancel()


def _keep_alive(sock: socket.socket | None) -> None:
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in KEEP_ALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _settle(answer: asyncio.Future[object], reply: object) -> None:
    if answer.done():
        return
    if isinstance(reply, RedisError):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)


def _ignore(_: Connection) -> None:
    """Nobody wants to know that it ended."""
