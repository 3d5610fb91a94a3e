"""Plain requests: the same one again and again on keep-alive connections, the next as soon as the last is answered.

Two clients do this. `wrk`, where it is installed, costs next to nothing and is what the bars were measured with. Ours
is a protocol under uvloop that checks every reply to its last byte; it also takes latencies and sends big bodies.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from load.wire import ANSWER, message_end, says_close

_STALL_S = 60.0  # a contender that answers nothing for so long has failed
_WRK_REQUESTS = re.compile(r"(\d+) requests in")
_WRK_BAD = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_WRKS_OWN = {"host", "content-length"}  # it writes these itself
_WRK_SOCKET = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")


@dataclass(slots=True)
class Tally:
    """What one run of plain requests came to. `latencies_s` only from our own client."""

    done: int = 0
    failed: int = 0
    first_failure: str = ""
    latencies_s: list[float] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.failed += 1
        self.first_failure = self.first_failure or what


class _Run:
    """What the connections of one run share: how many requests are still to be sent, or until when to send."""

    __slots__ = ("_reopening", "finished", "left", "loop", "open", "port", "request", "tally", "until")

    def __init__(self, port: int, request: bytes, left: int, until: float) -> None:
        self.port = port
        self.request = request
        self.left = left
        self.until = until
        self.tally = Tally()
        self.open = 0
        self.loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self.loop.create_future()
        self._reopening: set[asyncio.Task[None]] = set()

    def reopen(self) -> None:
        self.open += 1
        task = self.loop.create_task(_open(self))
        self._reopening.add(task)
        task.add_done_callback(self._reopening.discard)

    def closed(self) -> None:
        self.open -= 1
        if not self.open and not self.finished.done():
            self.finished.set_result(None)


class _Connection(asyncio.Protocol):
    __slots__ = ("_gathered", "_run", "_sent_at", "_transport", "_waiting")

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._gathered = b""
        self._waiting = False
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of asyncio's classes
        self._next()

    def _next(self) -> None:
        run = self._run
        if run.left <= 0 or time.perf_counter() >= run.until:
            self._transport.close()
            return
        run.left -= 1
        self._waiting = True
        self._sent_at = time.perf_counter()
        self._transport.write(run.request)

    def data_received(self, data: bytes) -> None:
        reply = self._gathered + data if self._gathered else data
        end = message_end(reply)
        if not end:
            self._gathered = reply
            return
        tally = self._run.tally
        tally.latencies_s.append(time.perf_counter() - self._sent_at)
        self._gathered = b""
        self._waiting = False
        if end == len(reply) and reply.startswith(b"HTTP/1.1 200"):
            tally.done += 1
        else:
            tally.fail(reply[:200].decode("latin-1"))
        if says_close(reply):
            self._transport.close()
        else:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        run = self._run
        if self._waiting:
            run.tally.fail(f"connection lost before the reply: {exc or 'closed'}")
        elif run.left > 0 and time.perf_counter() < run.until:
            # The server ended a connection it had said it would end: go on with a fresh one.
            run.reopen()
        run.closed()


async def _open(run: _Run) -> None:
    try:
        await run.loop.create_connection(lambda: _Connection(run), "127.0.0.1", run.port)
    except OSError as error:
        run.tally.fail(f"cannot connect: {error}")
        run.closed()


async def send(
    port: int, request: bytes, *, connections: int, count: int = 1 << 60, seconds: float = float("inf")
) -> Tally:
    """Send `request` until `count` replies or `seconds` are over, whichever is first. Never raises for a bad reply:
    failures are in the tally."""
    run = _Run(port, request, count, time.perf_counter() + seconds)
    run.open = connections
    for _ in range(connections):
        await _open(run)
    longest_s = _STALL_S if seconds == float("inf") else seconds + _STALL_S
    try:
        await asyncio.wait_for(run.finished, longest_s)
    except TimeoutError:
        run.tally.fail(f"not finished after {longest_s:.0f} s")
    return run.tally


class IdleConnection(asyncio.Protocol):
    """Sends one request, checks the reply, and then sits there."""

    __slots__ = ("_gathered", "_request", "answered", "transport")

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._gathered = b""
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._gathered += data
        if message_end(self._gathered) and not self.answered.done():
            self.answered.set_result(self._gathered.startswith(b"HTTP/1.1 200"))
            self._gathered = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_result(False)


async def one(port: int, request: bytes) -> bytes:
    """The body of a single reply with status 200. Raises OSError for anything else (bounded by the stall limit)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        reply = b""
        async with asyncio.timeout(_STALL_S):
            while not message_end(reply):
                data = await reader.read(65536)
                if not data:
                    raise OSError(f"closed before the reply was whole: {reply[:300]!r}")
                reply += data
    finally:
        writer.close()
    if not reply.startswith(b"HTTP/1.1 200"):
        raise OSError(f"not a success: {reply[:600]!r}")
    return reply.partition(b"\r\n\r\n")[2]


async def check(port: int, request: bytes, *, verbatim: bool) -> None:
    """Raise OSError unless the contender answers, and, when `verbatim`, with exactly what the provider sent."""
    body = await one(port, request)
    if verbatim and body != ANSWER:
        raise OSError(f"not the provider's answer: {body[:300]!r}")


def wrk_program() -> str | None:
    return shutil.which("wrk")


class Wrk:
    """Debian's wrk with a script of ours. It checks status and framing of every reply, as it counts them."""

    __slots__ = ("_program", "_script")

    def __init__(self, program: str, request: bytes, run_dir: Path) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
        lines = ['wrk.method = "POST"', f"wrk.body = [==[{body.decode()}]==]"]
        lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers if name not in _WRKS_OWN]
        self._program = program
        self._script = run_dir / "plain.lua"
        self._script.write_text("\n".join(lines) + "\n")

    @classmethod
    def found(cls, request: bytes, run_dir: Path) -> Wrk | None:
        program = wrk_program()
        return cls(program, request, run_dir) if program else None

    async def send(self, port: int, path: str, *, connections: int, seconds: float) -> Tally:
        """wrk counts whole seconds only: rounded up."""
        whole_s = max(1, round(seconds + 0.49))
        process = await asyncio.create_subprocess_exec(
            *(self._program, "-t1", f"-c{connections}", f"-d{whole_s}s", "-s", str(self._script)),
            f"http://127.0.0.1:{port}{path}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        text = (await process.communicate())[0].decode()
        tally = Tally()
        requests = _WRK_REQUESTS.search(text)
        if process.returncode or not requests:
            tally.fail(f"wrk: {text.strip()[-300:]}")
            return tally
        bad = _WRK_BAD.search(text)
        sockets = _WRK_SOCKET.search(text)
        tally.failed = int(bad[1] if bad else 0) + sum(int(n) for n in (sockets.groups() if sockets else ()))
        tally.done = int(requests[1]) - int(bad[1] if bad else 0)
        if tally.failed:
            tally.first_failure = (bad or sockets or requests)[0]
        return tally
