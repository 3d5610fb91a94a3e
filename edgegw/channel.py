"""The channel between workers and control process: messages over a unix stream socket, and the worker's end of it.

On the wire: frames of `[u32 length, big endian][msgpack array of messages]`, each message an array that begins with the
number of its kind. What is sent within one turn of the loop leaves in one frame. A worker says `Hello`, the control
process answers `Ready`; before that nothing else passes. A new kind of message is a Struct with a number, a place in
`Message` and a handler.

Promises: order is kept; a message is delivered at most once, and what was under way when the channel broke is lost
(lease.py and authority.py are built for that). Nothing is queued while the channel is away: `send` says False. Buffers
are bounded: who reads too slowly is cut off. A worker reconnects by itself, for as long as it lives.

The other end is channel_server.py. Knows what the messages are, not what they are good for: handlers do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec

from edgegw.keys.table import Key
from edgegw.limits.words import GiveBack, Offer, Recall, Spent, Want

VERSION = 2  # of the messages; both ends come from the same installation except while it is being replaced
FRAME_BYTES_MAX = 1 << 20
# Of at most 2 KiB each (the names of a tenant and of a model's pattern have at most 256 characters): a frame fits. Keys
# can be longer, and then there are fewer of them in a frame.
MESSAGES_PER_FRAME_MAX = 512
UNREAD_BYTES_MAX = 1 << 20  # waiting for a reader that does not read: thousands of messages, so it hangs; cut it off
HELLO_WITHIN_S = 1.0  # the whole handshake takes microseconds; a process that takes so long is stopped or starting
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 1.0  # between tries to connect: a restarted control process is found at once
PATH_BYTES_MAX = 103  # of a unix socket, less the final zero: 107 on Linux, 103 on macOS and the BSDs

logger = logging.getLogger("edgegw.channel")


class Hello(msgspec.Struct, array_like=True, tag=16, gc=False):
    """Worker, first of all: who I am."""

    slot: int
    pid: int
    version: int = VERSION


class Ready(msgspec.Struct, array_like=True, tag=17, gc=False):
    """Control: you are known. `epoch` differs after a restart; `shares`: among how many a limit is shared."""

    epoch: int
    shares: int
    version: int = VERSION


class Shares(msgspec.Struct, array_like=True, tag=18, gc=False):
    """Control: workers came or went."""

    shares: int


class KeyIs(msgspec.Struct, array_like=True, tag=20, gc=False):
    """Control: a key of the database, new or changed."""

    key: Key


class KeysComplete(msgspec.Struct, array_like=True, tag=21, gc=False):
    """Control: you know all keys of the database as of its change number `version`. Said for the first time after
    `Ready`: and a key that you were not told of since then is gone."""

    version: int


class JournalIs(msgspec.Struct, array_like=True, tag=22, gc=False):
    """Worker: how its journal is (ledger/journal.py). `state` is `ok`, `full` or `failing`, `reason` says why in words;
    the rest counts from the start of the worker. Said at the start of a connection and whenever it changes: over the
    channel, because a journal without room cannot say it itself."""

    state: str
    reason: str
    refusing: bool
    dropped: int
    dropped_refusals: int
    lost: int
    unsynced: int


Message = Want | Offer | GiveBack | Spent | Recall | Hello | Ready | Shares | KeyIs | KeysComplete | JournalIs
M = TypeVar("M", bound=Message)


class ChannelError(Exception):
    """The other side does not speak our language, or the address cannot be used."""


class Frames:
    """Bytes to messages and back. Sans-IO; one per connection and direction."""

    __slots__ = ("_buffer", "_decode", "_encode")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._decode = msgspec.msgpack.Decoder(list[Message]).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def encode(self, messages: list[Message]) -> bytes:
        """As many frames as it takes, each within its bound."""
        frames: list[bytes] = []
        for start in range(0, len(messages), MESSAGES_PER_FRAME_MAX):
            self._frame(messages[start : start + MESSAGES_PER_FRAME_MAX], frames)
        return b"".join(frames)

    def _frame(self, messages: list[Message], frames: list[bytes]) -> None:
        payload = self._encode(messages)
        if len(payload) > FRAME_BYTES_MAX and len(messages) > 1:
            half = len(messages) // 2
            self._frame(messages[:half], frames)
            self._frame(messages[half:], frames)
        else:
            frames += (len(payload).to_bytes(4, "big"), payload)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole by now. Raises ChannelError at a frame that is too long or not understood."""
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        while len(buffer) - start >= 4:
            end = start + 4 + int.from_bytes(buffer[start : start + 4], "big")
            if end - start - 4 > FRAME_BYTES_MAX:
                raise ChannelError("a frame is too long")
            if len(buffer) < end:
                break
            try:
                messages += self._decode(bytes(buffer[start + 4 : end]))
            except msgspec.DecodeError as error:
                raise ChannelError(f"a frame is not understood: {error}") from error
            start = end
        del buffer[:start]
        return messages


class Link(asyncio.Protocol):
    """One connection, either side: collects what is sent in a turn of the loop, and cuts off who does not read."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames = Frames()
        self._outbox: list[Message] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.opened()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self.heard(message)
        except ChannelError as error:
            self.cut(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost()

    def send(self, message: Message) -> bool:
        """False: there is no connection; the message is forgotten."""
        if self._transport is None:
            return False
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)
        return True

    def cut(self, why: str) -> None:
        if self._transport is not None:
            logger.warning("channel cut off: %s", why)
            self._transport.abort()

    def close(self) -> None:
        """Sends what was said in this turn, then closes."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def opened(self) -> None: ...

    def heard(self, message: Message) -> None: ...

    def lost(self) -> None: ...

    def slow(self) -> None:
        self.cut("the other side does not read")

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        transport = self._transport
        if transport is None or transport.is_closing() or not outbox:
            return
        transport.write(self._frames.encode(outbox))
        if transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self.slow()


class Channel(Protocol):
    """What a worker's parts need of the channel."""

    def handle(self, kind: type[M], handler: Callable[[M], None]) -> None:
        """`handler` is called with every message of `kind`. `Ready` comes first, each time the channel opens."""
        ...

    def on_closed(self, handler: Callable[[], None]) -> None:
        """`handler` is called each time an open channel breaks."""
        ...

    def send(self, message: Message) -> bool:
        """False: the channel is not open, the message is forgotten."""
        ...


class ChannelClient:
    """The worker's end. `start()` once the loop runs; from then on it connects and reconnects by itself."""

    def __init__(self, path: str, slot: int, pid: int) -> None:
        if len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise ChannelError(f"the path of the channel's socket is longer than {PATH_BYTES_MAX} bytes: {path}")
        self._path = path
        self._hello = Hello(slot, pid)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {}
        self._closed_handlers: list[Callable[[], None]] = []
        self._link: WorkerLink | None = None
        self._task: asyncio.Task[None] | None = None
        self._dialling: asyncio.Task[WorkerLink] | None = None
        self._first_ready: asyncio.Future[None] | None = None

    def handle(self, kind: type[M], handler: Callable[[M], None]) -> None:
        self._handlers[kind] = handler

    def on_closed(self, handler: Callable[[], None]) -> None:
        self._closed_handlers.append(handler)

    @property
    def open(self) -> bool:
        link = self._link
        return link is not None and link.ready and not link.gone.done()

    def send(self, message: Message) -> bool:
        link = self._link
        return link is not None and link.ready and link.send(message)

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._first_ready = loop.create_future()
        self._task = loop.create_task(self._stay_connected(loop))

    async def wait_open(self, timeout_s: float) -> bool:
        """Whether the channel was open at least once within `timeout_s`."""
        if self._first_ready is None:
            return False
        done, _ = await asyncio.wait((self._first_ready,), timeout=timeout_s)
        return bool(done)

    async def close(self) -> None:
        """Sends what was said, closes, and stays closed."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._dialling is not None:  # cut short it would leave a link that nobody knows of
            with contextlib.suppress(OSError):
                self._link = await self._dialling
        if self._link is not None:
            self._link.close()
            await self._link.gone

    async def _stay_connected(self, loop: asyncio.AbstractEventLoop) -> None:
        backoff_s = BACKOFF_MIN_S
        while True:
            self._dialling = loop.create_task(self._connect(loop))
            try:
                link = self._link = await asyncio.shield(self._dialling)
            except OSError:
                pass  # not there yet, or not any more
            else:
                await asyncio.shield(link.gone)
                self._link = None
                backoff_s = BACKOFF_MIN_S if link.ready else backoff_s
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> WorkerLink:
        """Connecting to a unix socket never waits: it succeeds, or fails at once (EAGAIN when too many are queued)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self._path)
            _, link = await loop.create_unix_connection(lambda: WorkerLink(loop, self), sock=sock)
        except BaseException:
            sock.close()
            raise
        return link

    def _heard(self, message: Message) -> None:
        if type(message) is Ready and self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(None)
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(message)

    def _lost(self) -> None:
        for handler in self._closed_handlers:
            handler()


class WorkerLink(Link):
    def __init__(self, loop: asyncio.AbstractEventLoop, client: ChannelClient) -> None:
        super().__init__(loop)
        self._client = client
        self._patience = loop.call_later(HELLO_WITHIN_S, self._give_up)
        self.gone: asyncio.Future[None] = loop.create_future()
        self.ready = False  # stays True when the connection is lost: it had been

    def opened(self) -> None:
        self.send(self._client._hello)

    def heard(self, message: Message) -> None:
        if type(message) is Ready:
            if message.version != VERSION:
                raise ChannelError(f"it speaks version {message.version}, we speak {VERSION}")
            self._patience.cancel()
            self._client._link = self  # data may come before create_unix_connection has returned
            self.ready = True
        self._client._heard(message)

    def _give_up(self) -> None:
        """No answer to our hello: not logged, it happens once a second while the control process is stopped."""
        if self._transport is not None:
            self._transport.abort()

    def lost(self) -> None:
        self._patience.cancel()
        if not self.gone.done():
            self.gone.set_result(None)
        if self.ready:
            self._client._lost()
