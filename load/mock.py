"""A provider that costs little itself: fixed answers, plain or streamed at an even pace, in either dialect.

`python -m load.mock PORT`. It shares a core with the load client, so it reads no more of a request than it must: the
length, the path and whether a stream is asked for. The faithful provider is `edgegw simulate`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from load.wire import (
    ANTHROPIC_PATH,
    ANTHROPIC_SCRIPT,
    EVENT_PACE_S,
    EVENTS_PER_STREAM,
    OPENAI_SCRIPT,
    PLAIN_REPLY,
    Script,
    message_end,
)

_REFUSAL = b"HTTP/1.1 500 unexpected bytes\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_BACKLOG = 4096  # two thousand clients may arrive at once


class Mock(asyncio.Protocol):
    """One connection: one request at a time, as every proxy under test sends them."""

    __slots__ = ("_gathered", "_left", "_loop", "_script", "_transport")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._gathered = bytearray()
        self._script: Script = OPENAI_SCRIPT
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of asyncio's classes

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        message: bytes | bytearray = data
        if self._gathered:
            self._gathered += data
            message = self._gathered
        end = message_end(message)
        if not end:
            if message is data:
                self._gathered += data
            return
        if self._gathered:
            message = bytes(self._gathered)
            self._gathered.clear()
        self._answer(bytes(message), whole=end == len(message))

    def _answer(self, message: bytes, *, whole: bool) -> None:
        assert self._transport is not None
        if not whole or not message.startswith(b"POST ") or self._left:
            self._transport.write(_REFUSAL)
            self._transport.close()
        elif b'"stream":true' in message or b'"stream": true' in message:
            self._script = ANTHROPIC_SCRIPT if message.startswith(ANTHROPIC_PATH, 5) else OPENAI_SCRIPT
            self._left = EVENTS_PER_STREAM
            self._transport.write(self._script.opening)
            self._loop.call_later(EVENT_PACE_S, self._tick)
        else:
            self._transport.write(PLAIN_REPLY)

    def _tick(self) -> None:
        if self._transport is None:
            return
        if self._left:
            self._left -= 1
            self._transport.write(self._script.event)
            self._loop.call_later(EVENT_PACE_S, self._tick)
        else:
            self._transport.write(self._script.closing)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Mock(loop), "127.0.0.1", port, backlog=_BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
