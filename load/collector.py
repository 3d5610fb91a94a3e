"""A collector that takes everything and forgets it: `python -m load.collector PORT` (0: any, told on stdout).

It costs as little as it can, and what it costs is nobody's figure. It reads no message: whether spans were sent is told
by the gateway's own metrics.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import uvloop

from load.wire import message_end

_REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_READ_BYTES = 1 << 20


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    gathered = b""
    with suppress(ConnectionError):
        while data := await reader.read(_READ_BYTES):
            gathered += data
            while end := message_end(gathered):
                gathered = gathered[end:]
                writer.write(_REPLY)
    writer.close()


async def listen(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=_READ_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(listen(int(sys.argv[1])))
