"""The simulator on a port: reads HTTP/1.1 with httptools and plays scenes with timers, without a task per request.

Knows connections, clocks and sockets; what is answered is decided in `house.py`. One connection plays one scene at a
time; pipelined requests wait in a bounded queue, while reading goes on so that a client that leaves is noticed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from edgegw.simulator.house import House
from edgegw.simulator.rules import Behaviour, Rules
from edgegw.simulator.scene import Ending, Scene, reply
from edgegw.simulator.stats import Served, Stats

_BACKLOG = 4096
_BODY_BYTES_MAX = 64 * 1024 * 1024
_QUEUE_MAX = 64  # pipelined requests of one connection
_FRAMES_PER_WRITE = 32  # without a pace: big enough to be cheap, small enough to leave in several writes
_RESET_NOW = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_RESET_DELAY_S = 0.02  # what was written leaves before the RST, which would overtake it in the transport's buffer
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_BAD_HTTP = reply(400, b"connection: close\r\n", b"", "text/plain")
_TOO_LARGE = reply(413, b"connection: close\r\n", b"", "text/plain")


Log = Callable[[Served], None]


class _Asked:
    """A request that is being read, then waits its turn."""

    __slots__ = ("body", "headers", "keep_alive", "method", "size", "url")

    def __init__(self) -> None:
        self.url = b""
        self.method = b""
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self.size = 0
        self.keep_alive = True


class _Connection(asyncio.Protocol):
    """One client. Scene playing state: `_scene` is None between two replies."""

    __slots__ = (
        "_asked",
        "_began_s",
        "_connections",
        "_house",
        "_keep_alive",
        "_last_write_s",
        "_log",
        "_loop",
        "_parser",
        "_paused",
        "_position",
        "_queue",
        "_scene",
        "_sent",
        "_silent",
        "_timer",
        "_transport",
    )

    _transport: asyncio.Transport

    def __init__(
        self, house: House, loop: asyncio.AbstractEventLoop, connections: set[_Connection], log: Log | None
    ) -> None:
        self._house = house
        self._log = log
        self._loop = loop
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._asked = _Asked()
        self._queue: deque[_Asked] = deque()
        self._scene: Scene | None = None
        self._timer: asyncio.Handle | None = None
        self._paused = False
        self._silent = False  # the scene ended in silence: nothing follows on this connection
        self._keep_alive = True
        self._position = 0
        self._sent = 0
        self._began_s = 0.0
        self._last_write_s: float | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not inherit from it
        self._connections.add(self)
        stats = self._house.stats
        stats.connections += 1
        stats.connections_accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        stats = self._house.stats
        stats.connections -= 1
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()
        if (scene := self._scene) is not None:
            stats.client_left(scene.model, self._sent, self._loop.time(), self._last_write_s)
            self._leave(scene, whole=False)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._scene is None and not self._transport.is_closing():
                self._transport.write(_BAD_HTTP)
            self._transport.close()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._scene is not None and self._timer is None and not self._silent:
            self._step()

    def close(self) -> None:
        self._transport.abort()

    # ---- httptools

    def on_message_begin(self) -> None:
        self._asked = _Asked()

    def on_url(self, url: bytes) -> None:
        self._asked.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._asked.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        asked = self._asked
        asked.method = self._parser.get_method()
        asked.keep_alive = self._parser.should_keep_alive()
        if "expect" in asked.headers and self._scene is None:
            self._transport.write(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        asked = self._asked
        asked.size += len(data)
        if asked.size > _BODY_BYTES_MAX:
            self._transport.write(_TOO_LARGE)
            self._transport.close()
            return
        asked.body.append(data)

    def on_message_complete(self) -> None:
        if self._transport.is_closing() or self._silent:
            return
        if self._scene is None:
            self._begin(self._asked)
        elif len(self._queue) < _QUEUE_MAX:
            self._queue.append(self._asked)
        else:
            self._transport.abort()

    # ---- playing

    def _begin(self, asked: _Asked) -> None:
        body = asked.body[0] if len(asked.body) == 1 else b"".join(asked.body)
        scene = self._house.answer(asked.method, asked.url.partition(b"?")[0], asked.headers, body)
        self._scene = scene
        self._keep_alive = asked.keep_alive and not scene.close
        self._position = self._sent = 0
        self._began_s = 0.0
        self._last_write_s = None
        self._house.stats.opened(scene.model, scene.stream)
        if scene.latency_s > 0:
            self._timer = self._loop.call_later(scene.latency_s, self._start)
        else:
            self._start()

    def _start(self) -> None:
        scene = self._scene
        assert scene is not None
        self._timer = None
        self._began_s = self._loop.time()
        self._house.stats.prompt_tokens += scene.prompt_tokens
        self._step()

    def _step(self) -> None:
        """Sends the frames that are due and arranges for the next. A late timer is made up for, so that the pace
        holds on average whatever the resolution of the clock."""
        scene = self._scene
        assert scene is not None
        self._timer = None
        frames, at = scene.frames, self._position
        now_s = self._loop.time()
        if scene.pace_s > 0:
            due = min(len(frames), int((now_s - self._began_s) / scene.pace_s + 1e-6) + 1)
        else:
            due = min(len(frames), at + _FRAMES_PER_WRITE)
        if due > at:
            sent = sum(scene.counts[at:due])
            self._sent += sent
            self._house.stats.completion_tokens += sent
            self._position = due
            self._last_write_s = now_s
            self._transport.write(frames[at] if due == at + 1 else b"".join(frames[at:due]))
        if due == len(frames):
            self._finish(scene)
        elif scene.pace_s > 0:
            wait_s = self._began_s + due * scene.pace_s - now_s
            self._timer = self._loop.call_later(max(0.0, wait_s), self._step)
        elif not self._paused:
            self._timer = self._loop.call_soon(self._step)

    def _finish(self, scene: Scene) -> None:
        if scene.ending is Ending.SILENCE:
            self._silent = True  # stays open until the client leaves
            return
        stats = self._house.stats
        stats.completed += scene.whole
        stats.cut += not scene.whole and scene.model != "" and scene.status in (0, 200)
        self._leave(scene, whole=scene.whole)
        if scene.ending is Ending.RESET:
            self._silent = True
            self._timer = self._loop.call_later(_RESET_DELAY_S if scene.frames else 0, self._reset)
        elif scene.ending is Ending.CLOSE or not self._keep_alive:
            self._transport.close()
        elif self._queue and not self._transport.is_closing():
            self._begin(self._queue.popleft())

    def _leave(self, scene: Scene, *, whole: bool) -> None:
        self._scene = None
        self._house.stats.closed(scene.model, scene.stream)
        if self._log is not None and scene.id:
            tokens = scene.prompt_tokens if self._began_s else 0, self._sent
            self._log(Served(scene.id, scene.client_id, scene.model, scene.stream, scene.status, *tokens, whole))

    def _reset(self) -> None:
        """RST instead of FIN."""
        raw = self._transport.get_extra_info("socket")
        with socket.socket(fileno=os.dup(raw.fileno())) as duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_NOW)
        self._transport.abort()


class Simulator:
    """A running simulator. `stats` are live counters."""

    __slots__ = ("_connections", "_server", "host", "port", "stats")

    def __init__(self, server: asyncio.Server, connections: set[_Connection], host: str, stats: Stats) -> None:
        self._server = server
        self._connections = connections
        self.host = host
        self.port: int = server.sockets[0].getsockname()[1]
        self.stats = stats

    @property
    def url(self) -> str:
        """Without a path: `/v1` belongs to OpenAI's base URL, not to Anthropic's."""
        return f"http://{self.host}:{self.port}"

    async def close(self) -> None:
        """Stops listening and aborts every connection."""
        self._server.close()
        for connection in list(self._connections):
            connection.close()
        await self._server.wait_closed()


async def start(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    seed: int = 0,
    rules: Rules | None = None,
    latency_s: float = 0.0,
    pace_s: float = 0.0,
    tokens: int = 24,
    log: Log | None = None,
) -> Simulator:
    """A simulator inside the running loop; port 0 takes a free one (`.port`). OSError when the port is in use. `log` is
    called when a request has ended, however it did."""
    loop = asyncio.get_running_loop()
    house = House(seed, rules or Rules(), Behaviour(latency_s=latency_s, pace_s=pace_s, tokens=tokens))
    connections: set[_Connection] = set()
    server = await loop.create_server(lambda: _Connection(house, loop, connections, log), host, port, backlog=_BACKLOG)
    return Simulator(server, connections, host, house.stats)
