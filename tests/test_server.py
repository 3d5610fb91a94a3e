"""The listening side on real sockets: order, waits, half-closed and vanished clients, slow ones, early ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from edgegw.clock import ManualClock
from edgegw.endpoints import gate
from edgegw.http.client_connection import Waits
from edgegw.http.date import Date
from edgegw.http.knocks import ignore_knocks
from edgegw.http.outbox import Outbox
from edgegw.http.reply import JSON, Reply
from edgegw.http.request import Request, RequestLimits
from edgegw.http.server import QUEUE_S, Server
from edgegw.http.watch import Watch

Handler = Callable[[Request, Reply], Coroutine[Any, Any, None]]
NOW_NS = 1_700_000_000_123_456_789
GET = b"GET /v1/models HTTP/1.1\r\nHost: e\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: 2\r\n\r\n{}"


async def echo(request: Request, reply: Reply) -> None:
    if request.error is not None:
        reply.send(request.error.status, JSON, b"{}")
    else:
        reply.send(200, JSON, request.path)


class Running:
    def __init__(self, server: Server, door: socket.socket) -> None:
        self.server = server
        self.door = door
        self.address = door.getsockname()[:2]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)


PATIENT = Waits()
Start = Callable[..., Coroutine[Any, Any, Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    running: list[tuple[Server, Watch]] = []

    async def run(handler: Handler, waits: Waits = PATIENT, host: str = "127.0.0.1", **limits: int) -> Running:
        loop = asyncio.get_running_loop()
        watch = Watch(loop, time.monotonic)
        watch.start()
        server = Server(
            loop,
            watch,
            handler,
            gate,
            limits=RequestLimits(**limits),
            waits=waits,
            date=Date(lambda: NOW_NS),
            outbox=Outbox(loop.call_soon),
        )
        sock = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        await server.listen(sock)
        running.append((server, watch))
        return Running(server, sock)

    yield run
    for server, watch in running:
        server.drain()
        server.abort()
        watch.stop()
    await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the condition is in the server, which has no event for it)
            await asyncio.sleep(0.005)


async def reply_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    return int(head[9:12]), await reader.readexactly(int(fields[b"content-length"]))


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(start: Start) -> None:
    in_work: list[int] = []

    async def slow(request: Request, reply: Reply) -> None:
        in_work.append(running.server.in_work)
        await asyncio.sleep(0.01 if request.method == b"POST" else 0)
        await echo(request, reply)

    running = await start(slow)
    reader, writer = await running.connect()
    writer.write(POST + GET + POST + GET)
    paths = [(await reply_of(reader))[1] for _ in range(4)]
    assert paths == [b"/v1/chat/completions", b"/v1/models"] * 2
    assert in_work == [1, 1, 1, 1]
    writer.close()


async def test_a_thousand_requests_in_one_write_do_not_hold_up_others(start: Start) -> None:
    """They are answered, all and in order; whoever else asks gets an answer between them."""
    asked: list[bytes] = []

    async def count(request: Request, reply: Reply) -> None:
        asked.append(request.query)
        await echo(request, reply)

    running = await start(count)
    reader, writer = await running.connect()
    other_reader, other_writer = await running.connect()
    writer.write(b"".join(GET.replace(b"models", b"models?%d" % number) for number in range(1000)))
    writer.write_eof()
    other_writer.write(GET.replace(b"models", b"models?other"))
    assert (await reply_of(other_reader))[0] == 200
    assert asked.index(b"other") < 500
    assert [(await reply_of(reader))[0] for _ in range(1000)] == [200] * 1000
    assert await reader.read() == b""
    asked.remove(b"other")
    assert asked == [b"%d" % number for number in range(1000)]
    writer.close()
    other_writer.close()


async def test_who_does_not_take_the_answers_is_asked_for_no_more_requests(start: Start) -> None:
    answered = 0

    async def large(request: Request, reply: Reply) -> None:
        nonlocal answered
        answered += 1
        reply.send(200, JSON, b"x" * 100_000)

    running = await start(large)
    reader, writer = await running.connect()
    writer.write(GET * 2000)
    await until(lambda: answered > 0 and any(connection.write_paused for connection in running.server.connections))
    before = answered
    await asyncio.sleep(0.05)
    assert answered == before < 500
    assert [(await reply_of(reader))[0] for _ in range(2000)] == [200] * 2000
    writer.close()


async def test_head_has_no_body_and_the_connection_goes_on(start: Start) -> None:
    running = await start(echo)
    reader, writer = await running.connect()
    writer.write(GET.replace(b"GET", b"HEAD") + GET)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-length: 10" in head
    assert await reply_of(reader) == (200, b"/v1/models")
    writer.close()


async def test_continue_is_sent_when_the_client_waits_for_it(start: Start) -> None:
    running = await start(echo)
    reader, writer = await running.connect()
    writer.write(POST[:-2].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert (await reply_of(reader))[0] == 200
    writer.close()


async def test_a_refused_upload_is_answered_before_it_is_read_and_without_a_reset(start: Start) -> None:
    running = await start(echo, body_bytes_max=1000)
    reader, writer = await running.connect()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000)
    assert (await reply_of(reader))[0] == 413
    for _ in range(100):  # it goes on sending, as clients do that read nothing before they have sent it all
        writer.write(b"x" * 50_000)
        await writer.drain()
    assert await asyncio.wait_for(reader.read(), 3) == b""  # an orderly end, not ConnectionResetError
    writer.close()


async def test_a_slow_head_and_a_slow_body_time_out_and_an_idle_connection_closes(start: Start) -> None:
    running = await start(echo, Waits(head_s=0.2, body_s=0.2, keep_alive_s=0.2, stall_s=1))
    for sent, status in ((GET[:20], 408), (POST[:-1], 408), (b"", None)):
        reader, writer = await running.connect()
        writer.write(sent)
        if status is not None:
            assert (await reply_of(reader))[0] == status
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()


async def test_dripping_bytes_do_not_prolong_the_wait_for_a_head(start: Start) -> None:
    running = await start(echo, Waits(head_s=0.3, keep_alive_s=5))
    reader, writer = await running.connect()
    began = time.monotonic()
    drip = asyncio.create_task(_drip(writer))
    assert (await reply_of(reader))[0] == 408
    assert time.monotonic() - began < 1.0
    drip.cancel()
    writer.close()


async def _drip(writer: asyncio.StreamWriter) -> None:
    for byte in GET[:-2] + b"X-A: " + b"a" * 1000:
        writer.write(bytes((byte,)))
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("phase", ["before the head", "within a stream"])
async def test_a_client_that_closes_is_noticed_within_100_ms(start: Start, phase: str) -> None:
    gone = asyncio.Event()

    async def hang(request: Request, reply: Reply) -> None:
        reply.on_gone = gone.set
        if phase == "within a stream":
            reply.start(200, JSON, b"data: 1\n\n")
        await asyncio.sleep(30)

    running = await start(hang)
    reader, writer = await running.connect()
    writer.write(POST)
    if phase == "within a stream":
        await reader.readuntil(b"data: 1\n\n")
    else:
        await until(lambda: running.server.in_work == 1)
    began = time.monotonic()
    writer.close()
    await asyncio.wait_for(gone.wait(), 2)
    assert time.monotonic() - began < 0.1
    await until(lambda: running.server.in_work == 0)


async def test_a_handler_that_waits_elsewhere_is_cancelled_when_the_client_goes(start: Start) -> None:
    cancelled = asyncio.Event()

    async def hang(request: Request, reply: Reply) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()

    running = await start(hang)
    _, writer = await running.connect()
    writer.write(POST)
    await until(lambda: running.server.in_work == 1)
    writer.close()
    await asyncio.wait_for(cancelled.wait(), 2)


async def test_a_client_that_only_half_closes_still_gets_its_answer(start: Start) -> None:
    async def slow(request: Request, reply: Reply) -> None:
        await asyncio.sleep(0.3)
        await echo(request, reply)

    running = await start(slow)
    reader, writer = await running.connect()
    writer.write(POST)
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(), 3)
    final = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert final.startswith(b"HTTP/1.1 200 OK")
    assert final.count(b"HTTP/1.1") == 1
    writer.close()


async def test_backpressure_is_told_and_a_client_that_does_not_read_is_dropped(start: Start) -> None:
    told: list[str] = []
    gone = asyncio.Event()

    async def flood(request: Request, reply: Reply) -> None:
        reply.on_pause = lambda: told.append("pause")
        reply.on_gone = gone.set
        reply.start(200, JSON, b"x")
        for _ in range(400):
            reply.write(b"x" * 65536)
            await asyncio.sleep(0)
            if told:
                break
        await asyncio.wait_for(gone.wait(), 5)
        assert reply.slow
        told.append("slow")

    running = await start(flood, Waits(stall_s=0.3))
    _, writer = await running.connect()
    writer.write(POST)
    await until(lambda: told == ["pause", "slow"])
    writer.close()


async def test_draining_finishes_what_is_in_work_and_closes_what_is_idle(start: Start) -> None:
    release = asyncio.Event()

    async def wait(request: Request, reply: Reply) -> None:
        await release.wait()
        await echo(request, reply)

    running = await start(wait)
    idle_reader, idle_writer = await running.connect()
    reader, writer = await running.connect()
    writer.write(POST)
    await until(lambda: running.server.in_work == 1)
    running.server.drain()
    assert await asyncio.wait_for(idle_reader.read(), 3) == b""
    release.set()
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
    assert b"connection: close" not in head or head.startswith(b"HTTP/1.1 200")
    assert (await asyncio.wait_for(reader.read(), 3)).endswith(b"/v1/chat/completions")
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    writer.close()
    idle_writer.close()


async def test_draining_waits_for_who_still_asks_and_who_reads_slowly(start: Start) -> None:
    """Nothing is in work for either: the one has sent a part of its request, the other has not taken its answer yet."""
    answer = b"a" * 8_000_000  # more than the kernel's buffers hold

    async def give(request: Request, reply: Reply) -> None:
        reply.send(200, JSON, answer)

    running = await start(give)
    server = running.server
    asking_reader, asking = await running.connect()
    asking.write(POST[:-1])
    slow_reader, slow = await running.connect()
    slow.write(POST)
    await slow_reader.readuntil(b"\r\n\r\n")
    assert server.in_work == 0
    server.drain()
    await server.wait_gone(0.2)
    assert len(server.connections) == 2
    gone = asyncio.ensure_future(server.wait_gone(10))
    asking.write(POST[-1:])
    assert (await asking_reader.read()).endswith(answer)
    assert await slow_reader.read() == answer
    for writer in (asking, slow):
        writer.close()
    await gone
    assert not server.connections


async def test_draining_does_not_reset_who_still_sends_what_was_refused(start: Start) -> None:
    """The refusal would be lost with it: to some clients a reset while they send is the end."""

    async def refuse(request: Request, reply: Reply) -> None:
        assert request.error is not None
        reply.send(request.error.status, JSON, b"{}")

    running = await start(refuse, body_bytes_max=1000)
    reader, writer = await running.connect()
    writer.write(POST.replace(b": 2", b": 100000"))
    await until(lambda: running.server.in_work == 0 and not next(iter(running.server.connections)).is_new)
    running.server.drain()
    gone = asyncio.ensure_future(running.server.wait_gone(5))
    for _ in range(20):
        writer.write(b"{" * 4000)
        await writer.drain()
        await asyncio.sleep(0.005)
    assert (await asyncio.wait_for(reader.read(), 3)).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await gone


async def test_who_has_knocked_before_the_door_is_shut_is_answered(start: Start) -> None:
    running = await start(echo)
    callers = []
    for _ in range(50):  # the kernel has let them in, and the server knows nothing of them yet
        caller = socket.create_connection(running.address)
        caller.sendall(POST)
        callers.append(caller)
    late = socket.create_connection(running.address)  # … and will ask only when the door is shut
    shutting = asyncio.ensure_future(running.server.shut_the_door())
    await asyncio.sleep(2 * QUEUE_S)
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    late.sendall(POST)
    await shutting
    running.server.drain()
    for caller in (*callers, late):
        caller.settimeout(3)
        with caller, caller.makefile("rb") as stream:
            answer = await asyncio.to_thread(stream.read)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"/v1/chat/completions")


@pytest.mark.parametrize("when", ["at once", "later", "after its reply"])
async def test_a_handler_that_fails_leaves_no_client_waiting(start: Start, when: str) -> None:
    complaints: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))

    async def failing(request: Request, reply: Reply) -> None:
        if request.method == b"GET":
            await echo(request, reply)
            return
        if when == "later":
            await asyncio.sleep(0.01)
        if when == "after its reply":
            await echo(request, reply)
        raise ZeroDivisionError

    running = await start(failing)
    reader, writer = await running.connect()
    writer.write(POST + GET)
    if when == "after its reply":
        assert [(await reply_of(reader))[0] for _ in range(2)] == [200, 200]
    else:
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await until(lambda: not running.server.connections)
        assert running.server.in_work == 0
    assert [type(error) for error in complaints] == [ZeroDivisionError]
    writer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a door cannot be told to let nobody in")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_who_knocks_when_the_door_is_being_shut_is_not_heard_and_who_was_let_in_is(
    start: Start, host: str
) -> None:
    running = await start(echo, host=host)
    server, door = running.server, running.door
    ignore_knocks(door)
    with socket.socket(door.family) as late:
        late.setblocking(False)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.loop.sock_connect(late, running.address), 0.1)
    # A handshake that ends after the door was told looks like this: the bound of the door is on the connection.
    callers = [_let_in_with_the_bound_of_the_door(running), _let_in_with_the_bound_of_the_door(running)]
    await until(lambda: len(server.connections) == 2)
    shutting = asyncio.ensure_future(server.shut_the_door())
    await asyncio.sleep(0)
    callers.append(_let_in_with_the_bound_of_the_door(running))
    await asyncio.sleep(QUEUE_S / 2)
    for caller in callers:
        caller.setblocking(False)
        await server.loop.sock_sendall(caller, POST)
        with caller:
            assert (await asyncio.wait_for(server.loop.sock_recv(caller, 1000), 3)).startswith(b"HTTP/1.1 200 OK")
    await shutting


def _let_in_with_the_bound_of_the_door(running: Running) -> socket.socket:
    caller = socket.socket(running.door.family)
    level, option = (
        (socket.IPPROTO_IP, socket.IP_TTL)
        if caller.family == socket.AF_INET
        else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    )
    caller.setsockopt(level, option, 255)
    caller.connect(running.address)
    caller.setsockopt(level, option, 64)
    return caller


async def test_replies_say_when(start: Start) -> None:
    """RFC 9110 6.6.1, whole ones and streams of either version."""

    async def answer(request: Request, reply: Reply) -> None:
        if request.method == b"GET":
            reply.send(200, JSON, b"{}")
        else:
            reply.start(200, JSON, b"a")
            reply.end(b"b")

    running = await start(answer)
    for asked in (GET, POST, POST.replace(b"/1.1", b"/1.0")):
        reader, writer = await running.connect()
        writer.write(asked)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        assert head.count(b"\r\ndate: Tue, 14 Nov 2023 22:13:20 GMT\r\n") == 1
        writer.close()


def test_a_date_is_written_anew_each_second() -> None:
    clock = ManualClock(wall_ns=NOW_NS)
    date = Date(clock.wall_ns)
    date.expire(100.0)
    assert date.expires_s == pytest.approx(100.877, abs=0.001)
    clock.jump(0.9)
    date.expire(100.9)
    assert date.line == b"date: Tue, 14 Nov 2023 22:13:21 GMT\r\n"
    clock.jump(-60)  # a wall clock may be set back
    date.expire(102.0)
    assert date.line == b"date: Tue, 14 Nov 2023 22:12:21 GMT\r\n"


async def test_http_1_0_streams_end_with_the_connection(start: Start) -> None:
    async def stream(request: Request, reply: Reply) -> None:
        reply.start(200, JSON, b"a")
        reply.write(b"b")
        reply.end(b"c")

    running = await start(stream)
    reader, writer = await running.connect()
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    received = await asyncio.wait_for(reader.read(), 3)
    assert received.endswith(b"\r\n\r\nabc")
    assert b"transfer-encoding" not in received
    writer.close()


@pytest.mark.system  # it takes seconds to be slow
@pytest.mark.parametrize("closing", [True, False])
async def test_a_slow_reader_gets_all_of_a_large_reply(start: Start, closing: bool) -> None:
    """Slower than the wait for a client that takes nothing, and than the wait after a close."""
    size = 12_000_000

    async def large(request: Request, reply: Reply) -> None:
        reply.send(200, JSON, b"x" * size)

    running = await start(large, Waits(stall_s=1.6, keep_alive_s=0.8))
    loop = asyncio.get_running_loop()
    with socket.create_connection(running.address) as sock:
        sock.setblocking(False)
        request = POST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if closing else POST
        await loop.sock_sendall(sock, request)
        received = await loop.sock_recv(sock, 65536)
        left = size - len(received.partition(b"\r\n\r\n")[2])
        pause_at = left
        while left:
            piece = await asyncio.wait_for(loop.sock_recv(sock, min(65536, left)), 3)
            assert piece, f"{left} bytes are missing"
            left -= len(piece)
            if left < pause_at:
                pause_at -= 500_000
                await asyncio.sleep(0.13)
    await until(lambda: not running.server.connections)


async def test_a_reader_that_stops_in_a_finished_reply_is_dropped(start: Start) -> None:
    async def large(request: Request, reply: Reply) -> None:
        reply.send(200, JSON, b"x" * 20_000_000)

    running = await start(large, Waits(stall_s=0.4))
    with socket.create_connection(running.address) as sock:
        sock.sendall(POST)
        await until(lambda: bool(running.server.connections))
        await until(lambda: not running.server.connections, 5)
