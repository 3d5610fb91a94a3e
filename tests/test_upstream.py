"""The pool and its connections against real sockets on loopback: what is reused, what is sent again, who waits, what is
told to the sink when a provider breaks its word."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from edgegw.clock import ManualClock
from edgegw.errors import UpstreamFault
from edgegw.http.dial import Dialer, Resolver, tls_context
from edgegw.http.proxies import Proxies
from edgegw.http.response import Headers
from edgegw.http.upstream import CLOSE_TIMEOUT_S, Pool, PoolLimits
from edgegw.http.upstream_connection import Connection
from edgegw.limits.turns import WAITING_PER_TENANT_MAX

T = TypeVar("T")

WAIT_S = 5.0
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
REPLY = OK + b"Content-Length: 2\r\n\r\nok"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Origin:
    port: int
    scheme: str = "http"
    host: str = "127.0.0.1"


class Link(asyncio.Protocol):
    """One connection as the provider sees it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.number = len(peer.links)
        self.requests = 0
        self.received = b""
        self.lost = asyncio.get_running_loop().create_future()
        self.lost_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.peer.links.append(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            self.received = self.received[end + 4 :]
            self.requests += 1
            self.peer.requests += 1
            self.peer.answer(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_at_s = time.monotonic()
        self.lost.set_result(exc)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        self.transport.close()

    def reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


@dataclass
class Peer:
    """A provider whose every answer is a function of the connection that asked."""

    answer: Callable[[Link], None] = lambda link: link.write(REPLY)
    links: list[Link] = field(default_factory=list)
    requests: int = 0
    server: asyncio.Server | None = None


class Ear:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = {}
        self.reads: list[bytes] = []
        self.fault: UpstreamFault | None = None
        self.told: list[str] = []
        self.head_came = asyncio.Event()
        self.body_came = asyncio.Event()
        self.over = asyncio.Event()

    def on_head(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers
        self.told.append("head")
        self.head_came.set()

    def on_body(self, data: bytes) -> None:
        self.reads.append(data)
        if self.told[-1] != "body":
            self.told.append("body")
        self.body_came.set()

    def on_end(self) -> None:
        self.told.append("end")
        self.over.set()

    def on_fault(self, fault: UpstreamFault) -> None:
        self.fault = fault
        self.told.append("fault")
        self.over.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.reads)


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


async def until(truth: Callable[[], object]) -> None:
    """Let the loop turn until this is so."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if truth():
                return
            await asyncio.sleep(0)


def lane_of(connection: Connection) -> object:
    return connection.lane


async def ask(pool: Pool, ear: Ear | None = None) -> Ear:
    """One whole request and reply."""
    ear = ear or Ear()
    await soon(pool.open(REQUEST, ear))
    await soon(ear.over.wait())
    return ear


@asynccontextmanager
async def serving(
    peer: Peer,
    clock: ManualClock | None = None,
    link: type[Link] = Link,
    weights: Callable[[str], int] = lambda tenant: 1,
    **limits: float,
) -> AsyncIterator[Pool]:
    clock = clock or ManualClock()
    server = await asyncio.get_running_loop().create_server(lambda: link(peer), "127.0.0.1", 0)
    peer.server = server
    dialer = Dialer(Resolver(clock), tls=None, proxies=Proxies())
    origin = Origin(server.sockets[0].getsockname()[1])
    pool = Pool(origin, limits=PoolLimits(**limits), dialer=dialer, clock=clock, weights=weights)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await pool.close()
        for one in peer.links:
            one.transport.abort()
            await soon(one.lost)
        server.close()
        await server.wait_closed()
        assert (pool.idle, pool.busy, pool.waiting, pool._held) == (0, 0, 0, {})


class TestReuse:
    async def test_one_connection_for_requests_one_after_the_other(self) -> None:
        peer = Peer()
        async with serving(peer) as pool:
            first = Ear()
            assert pool.send(REQUEST, first) is None
            connection = await soon(pool.open(REQUEST, first))
            assert (pool.busy, pool.idle, connection.reused) == (1, 0, False)
            await soon(first.over.wait())
            assert (pool.busy, pool.idle, connection.reused) == (0, 1, False)
            for _ in range(5):
                ear = Ear()
                again = pool.send(REQUEST, ear)
                assert again is connection
                assert again.reused
                await soon(ear.over.wait())
                assert (ear.status, ear.body, ear.told) == (200, b"ok", ["head", "body", "end"])
        assert (len(peer.links), peer.requests) == (1, 6)

    async def test_the_one_used_last_is_taken_first(self) -> None:
        peer = Peer(answer=lambda link: None)
        async with serving(peer) as pool:
            ears = [Ear() for _ in range(3)]
            connections = [await soon(pool.open(REQUEST, ear)) for ear in ears]
            for n in (1, 2, 0):
                peer.links[n].write(REPLY)
                await soon(ears[n].over.wait())
            assert [pool.send(REQUEST, Ear()) for _ in range(4)] == [
                connections[0],
                connections[2],
                connections[1],
                None,
            ]

    @pytest.mark.parametrize(
        "reply",
        [
            OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            REPLY + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            REPLY + b"!",
            CHUNKED + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 2",
        ],
    )
    async def test_not_after_this_reply(self, reply: bytes) -> None:
        peer = Peer(answer=lambda link: link.write(reply))
        async with serving(peer) as pool:
            for n in (1, 2):
                ear = await ask(pool)
                assert (ear.status, ear.body, ear.told) == (200, b"ok", ["head", "body", "end"])
                assert (pool.idle, pool.busy, len(peer.links)) == (0, 0, n)

    async def test_not_when_bytes_come_later(self) -> None:
        peer = Peer()
        async with serving(peer) as pool:
            await ask(pool)
            peer.links[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            await soon(peer.links[0].lost)
            assert (pool.idle, pool.busy) == (0, 0)
            assert (await ask(pool)).body == b"ok"
        assert len(peer.links) == 2

    async def test_not_when_it_was_closed_meanwhile(self) -> None:
        peer = Peer()
        async with serving(peer) as pool:
            await ask(pool)
            peer.links[0].close()
            await soon(peer.links[0].lost)
            assert (await ask(pool)).body == b"ok"
        assert (len(peer.links), peer.requests) == (2, 2)

    async def test_not_when_the_reply_came_before_the_request_was_sent(self) -> None:
        """An early refusal of a large body: what is left of the body must not open the next request."""
        peer = Peer()

        def refuse(link: Link) -> None:
            link.transport.pause_reading()
            link.write(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno")

        peer.answer = refuse
        async with serving(peer) as pool:
            ear = Ear()
            await soon(pool.open(REQUEST[:-2] + b"x: y\r\n\r\n" + b"b" * 32_000_000, ear))
            await soon(ear.over.wait())
            assert (ear.status, ear.told[-1], pool.idle, pool.busy) == (413, "end", 0, 0)

    async def test_a_204_has_no_body_and_keeps_the_connection(self) -> None:
        peer = Peer(answer=lambda link: link.write(b"HTTP/1.1 204 No Content\r\n\r\n"))
        async with serving(peer) as pool:
            for _ in range(2):
                ear = await ask(pool)
                assert (ear.status, ear.told) == (204, ["head", "end"])
        assert len(peer.links) == 1

    async def test_idle_connections_grow_too_old(self) -> None:
        peer, clock = Peer(), ManualClock()
        async with serving(peer, clock, keep_alive_s=60) as pool:
            await ask(pool)
            clock.jump(59)
            ear = Ear()
            assert pool.send(REQUEST, ear) is not None
            await soon(ear.over.wait())
            clock.jump(60)
            assert pool.send(REQUEST, Ear()) is None
            assert (pool.idle, pool.busy) == (0, 0)
            await soon(peer.links[0].lost)

    async def test_the_sweep_closes_the_old_and_keeps_the_young(self) -> None:
        peer, clock = Peer(answer=lambda link: None), ManualClock()
        async with serving(peer, clock, keep_alive_s=60) as pool:
            for n in range(3):
                await soon(pool.open(REQUEST, Ear()))
                clock.jump(n)
            for link in peer.links:
                clock.jump(25)
                link.write(REPLY)
                await until(lambda: pool.idle == link.number + 1)  # noqa: B023
            clock.jump(11)
            pool.sweep()
            assert pool.idle == 2
            await soon(peer.links[0].lost)
            clock.jump(100)
            pool.sweep()
            assert (pool.idle, pool.busy) == (0, 0)

    async def test_the_timer_sweeps(self) -> None:
        peer = Peer()

        class Clock(ManualClock):
            def now(self) -> float:
                return time.monotonic()

        async with serving(peer, Clock(), keep_alive_s=0.05) as pool:
            await ask(pool)
            await soon(peer.links[0].lost)
            assert (pool.idle, pool.busy) == (0, 0)


class TestStaleConnection:
    @pytest.mark.parametrize("how", [Link.close, Link.reset])
    async def test_the_request_is_sent_once_more_on_a_fresh_connection(self, how: Callable[[Link], None]) -> None:
        """The provider closes at the very moment in which we send: it never saw the request."""
        served: list[int] = []

        def answer(link: Link) -> None:
            if link.number == 0 and link.requests == 2:
                how(link)
            else:
                served.append(link.number)
                link.write(REPLY)

        peer = Peer(answer=answer)
        async with serving(peer) as pool:
            await ask(pool)
            ear = Ear()
            connection = pool.send(REQUEST, ear)
            assert connection is not None
            await soon(ear.over.wait())
            assert (ear.status, ear.body, ear.told) == (200, b"ok", ["head", "body", "end"])
            assert not connection.reused
            assert (pool.idle, pool.busy) == (1, 0)
            ear = Ear()
            assert pool.send(REQUEST, ear) is connection
            await soon(ear.over.wait())
            assert (ear.told, connection.reused) == (["head", "body", "end"], True)
        assert (served, len(peer.links)) == ([0, 1, 1], 2)

    async def test_only_once(self) -> None:
        peer = Peer(answer=lambda link: link.write(REPLY) if peer.requests == 1 else link.close())
        async with serving(peer) as pool:
            await ask(pool)
            ear = await ask(pool)
            assert ear.told == ["fault"]
            assert ear.fault is not None
            assert (ear.fault.kind, ear.fault.sent) == ("upstream_cut", True)
            assert (pool.idle, pool.busy) == (0, 0)
        assert (peer.requests, len(peer.links)) == (3, 2)

    async def test_not_on_a_fresh_connection(self) -> None:
        peer = Peer(answer=Link.close)
        async with serving(peer) as pool:
            ear = await ask(pool)
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind, ear.fault.status) == (["fault"], "upstream_cut", 0)
        assert (peer.requests, len(peer.links)) == (1, 1)

    @pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 1", OK, b"HTTP/1.1 103 X\r\n\r\n"])
    async def test_not_after_a_byte_of_the_reply(self, part: bytes) -> None:
        def answer(link: Link) -> None:
            if link.requests == 1:
                link.write(REPLY)
            else:
                link.write(part)
                link.close()

        peer = Peer(answer=answer)
        async with serving(peer) as pool:
            await ask(pool)
            ear = await ask(pool)
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind) == (["fault"], "upstream_cut")
        assert (peer.requests, len(peer.links)) == (2, 1)

    async def test_nobody_there_any_more(self) -> None:
        peer = Peer()
        async with serving(peer) as pool:
            await ask(pool)
            assert peer.server is not None
            peer.server.close()
            peer.answer = Link.close
            ear = await ask(pool)
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind, ear.fault.sent) == (["fault"], "upstream_connect", True)
            assert (pool.idle, pool.busy) == (0, 0)

    async def test_aborted_while_it_is_dialled_again(self) -> None:
        peer = Peer()

        class Slow(Dialer):
            calls = 0
            dialling = asyncio.Event()
            cancelled = asyncio.Event()

            async def connect(self, *args: object, **waits: object) -> None:
                self.calls += 1
                if self.calls > 1:
                    self.dialling.set()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        self.cancelled.set()
                await super().connect(*args, **waits)  # type: ignore[arg-type]

        async with serving(peer) as pool:
            slow = pool._dialer = Slow(Resolver(ManualClock()), tls=None, proxies=Proxies())
            await ask(pool)
            peer.answer = Link.close
            ear = Ear()
            connection = pool.send(REQUEST, ear)
            assert connection is not None
            await soon(slow.dialling.wait())
            assert pool.busy == 1
            connection.abort()
            await soon(slow.cancelled.wait())
            assert (pool.busy, ear.told) == (0, [])


class TestPlaces:
    async def test_the_cap_holds_and_the_wait_is_bounded(self) -> None:
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=2, pool_wait_s=0.05) as pool:
            for _ in range(2):
                await soon(pool.open(REQUEST, Ear()))
            ear = Ear()
            with pytest.raises(UpstreamFault) as caught:
                await soon(pool.open(REQUEST, ear))
            assert (caught.value.kind, caught.value.sent, ear.told) == ("upstream_busy", False, [])
            assert (pool.busy, pool.waiting, len(peer.links)) == (2, 0, 2)

    async def test_first_come_first_served_and_nobody_overtakes(self) -> None:
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=1) as pool:
            ears = [Ear() for _ in range(4)]
            first = await soon(pool.open(REQUEST, ears[0]))
            waiting = [asyncio.create_task(pool.open(REQUEST, ear)) for ear in ears[1:]]
            await until(lambda: pool.waiting == 3)
            for n in range(4):
                await until(lambda: peer.requests == n + 1)  # noqa: B023
                assert pool.send(REQUEST, Ear()) is None
                peer.links[0].write(REPLY)
                await soon(ears[n].over.wait())
                assert [ear.over.is_set() for ear in ears] == [True] * (n + 1) + [False] * (3 - n)
            assert [await soon(task) for task in waiting] == [first, first, first]
            assert first.reused
        assert (len(peer.links), peer.requests) == (1, 4)

    async def test_a_place_without_a_connection_goes_to_the_next_as_well(self) -> None:
        peer = Peer(answer=lambda link: link.close() if link.number == 0 else link.write(REPLY))
        async with serving(peer, connections_max=1) as pool:
            first, second = Ear(), Ear()
            await soon(pool.open(REQUEST, first))
            task = asyncio.create_task(pool.open(REQUEST, second))
            assert not (await soon(task)).reused
            await soon(second.over.wait())
            assert (first.told, second.told) == (["fault"], ["head", "body", "end"])
        assert len(peer.links) == 2

    async def test_a_cancelled_waiter_leaves_no_trace(self) -> None:
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=1) as pool:
            first, last = Ear(), Ear()
            await soon(pool.open(REQUEST, first))
            gone = asyncio.create_task(pool.open(REQUEST, Ear()))
            task = asyncio.create_task(pool.open(REQUEST, last))
            await until(lambda: pool.waiting == 2)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert pool.waiting == 1
            peer.answer = lambda link: link.write(REPLY)
            peer.links[0].write(REPLY)
            await soon(task)
            await soon(last.over.wait())
            assert (pool.idle, pool.busy, pool.waiting) == (1, 0, 0)
        assert (len(peer.links), peer.requests) == (1, 2)

    @pytest.mark.parametrize("close", [False, True])
    async def test_a_waiter_cancelled_with_the_place_in_its_hand(self, close: bool) -> None:
        """The place was given to the waiter, and before its task could run somebody cancelled it."""
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=1) as pool:
            gone: asyncio.Task[Connection]

            class Canceller(Ear):
                def on_end(self) -> None:
                    gone.cancel()

                def on_fault(self, fault: UpstreamFault) -> None:
                    gone.cancel()

            await soon(pool.open(REQUEST, Canceller()))
            gone = asyncio.create_task(pool.open(REQUEST, Ear()))
            last = Ear()
            task = asyncio.create_task(pool.open(REQUEST, last))
            await until(lambda: pool.waiting == 2 and peer.links)
            peer.answer = lambda link: link.write(REPLY)
            if close:
                peer.links[0].close()
            else:
                peer.links[0].write(REPLY)
            with pytest.raises(asyncio.CancelledError):
                await soon(gone)
            await soon(task)
            await soon(last.over.wait())
            assert (pool.idle, pool.busy, pool.waiting) == (1, 0, 0)
        assert len(peer.links) == 1 + close

    async def test_a_connection_that_dies_in_the_hand_of_a_waiter(self) -> None:
        """Handed over, then closed by the provider before the waiter's task could run: the place is still its own."""
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=1) as pool:
            connection: Connection

            class Killer(Ear):
                def on_end(self) -> None:
                    assert (pool.busy, pool.waiting) == (1, 0)
                    connection.eof_received()
                    assert pool.busy == 1

            connection = await soon(pool.open(REQUEST, Killer()))
            ear = Ear()
            task = asyncio.create_task(pool.open(REQUEST, ear))
            await until(lambda: pool.waiting and peer.requests)
            peer.answer = lambda link: link.write(REPLY)
            peer.links[0].write(REPLY)
            other = await soon(task)
            assert (other is connection, other.reused) == (False, False)
            await soon(ear.over.wait())
            assert (ear.told, pool.idle, pool.busy) == (["head", "body", "end"], 1, 0)

    async def test_cancelled_while_connecting(self) -> None:
        dialing = asyncio.Event()

        class Never:
            async def connect(self, *args: object, **waits: object) -> None:
                dialing.set()
                await asyncio.Event().wait()

        pool = Pool(Origin(1), limits=PoolLimits(connections_max=1), dialer=Never(), clock=ManualClock())
        task = asyncio.create_task(pool.open(REQUEST, Ear()))
        await soon(dialing.wait())
        assert pool.busy == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.busy == 0
        await pool.close()

    async def test_refused(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        clock = ManualClock()
        dialer = Dialer(Resolver(clock), tls=None, proxies=Proxies())
        pool = Pool(Origin(port), limits=PoolLimits(), dialer=dialer, clock=clock)
        ear = Ear()
        with pytest.raises(UpstreamFault) as caught:
            await soon(pool.open(REQUEST, ear))
        assert (caught.value.kind, caught.value.sent, ear.told) == ("upstream_connect", False, [])
        assert str(port) not in caught.value.message
        assert "127.0.0.1" not in caught.value.message
        assert pool.busy == 0
        await pool.close()

    async def test_closing_tells_everybody(self) -> None:
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=1) as pool:
            ear = Ear()
            await soon(pool.open(REQUEST, ear))
            task = asyncio.create_task(pool.open(REQUEST, Ear()))
            await until(lambda: pool.waiting)
            await soon(pool.close())
            with pytest.raises(UpstreamFault, match="stopping"):
                await task
            with pytest.raises(UpstreamFault, match="stopping"):
                await pool.open(REQUEST, Ear())
            assert ear.told == ["fault"]
            assert (pool.idle, pool.busy, pool.waiting) == (0, 0, 0)


class Rounds:
    """A provider that answers all it was asked at once, when it is told to: a round is its service time."""

    def __init__(self) -> None:
        self.asked: list[Link] = []
        self.peer = Peer(answer=self.asked.append)
        self.over = 0

    async def one(self, places: int) -> None:
        """Begins when all places are in use."""
        await until(lambda: len(self.asked) == places)
        self.over += 1
        asked = self.asked.copy()
        self.asked.clear()
        for link in asked:
            link.write(REPLY)


class TestFairness:
    """Tenants that share too few places."""

    @pytest.mark.parametrize("places", [1, 2, 3, 8])
    async def test_one_at_a_time_waits_two_service_times_behind_a_flood(self, places: int) -> None:
        rounds = Rounds()
        async with serving(rounds.peer, connections_max=places) as pool:
            flood = [asyncio.create_task(pool.open(REQUEST, Ear(), "flood")) for _ in range(200)]
            await until(lambda: pool.waiting == 200 - places)
            waits: list[int] = []

            async def one_at_a_time() -> None:
                for _ in range(9):
                    ear, since = Ear(), rounds.over
                    await pool.open(REQUEST, ear, "single")
                    waits.append(rounds.over - since)
                    await ear.over.wait()

            single = asyncio.create_task(one_at_a_time())
            while not single.done():
                await rounds.one(places)
                for _ in range(5):
                    await asyncio.sleep(0)  # whoever was answered may ask again
            await single
            assert sorted(waits)[4] <= 1
            assert max(waits) <= 2
            for task in flood:
                task.cancel()
            await asyncio.wait(flood)

    @pytest.mark.parametrize("places", [1, 2, 4, 5])
    async def test_finished_counts_are_by_weight(self, places: int) -> None:
        rounds = Rounds()
        weights = {"three": 3, "one": 1}
        async with serving(rounds.peer, weights=weights.__getitem__, connections_max=places) as pool:
            ears = {tenant: [Ear() for _ in range(200)] for tenant in weights}
            tasks = [
                asyncio.create_task(pool.open(REQUEST, ear, tenant))
                for n in range(200)
                for tenant, ear in ((tenant, ears[tenant][n]) for tenant in weights)
            ]
            await until(lambda: pool.waiting == 400 - places)
            for _ in range(200 // places):
                await rounds.one(places)
            await until(lambda: len(rounds.asked) == places)
            three, one = (sum(ear.over.is_set() for ear in ears[tenant]) for tenant in weights)
            assert three / one == pytest.approx(3, rel=0.1)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def test_what_falls_free_goes_to_those_who_hold_less(self) -> None:
        """Six places are all one tenant's long answers, and more of it wait: the other comes to three all the same."""
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=6) as pool:
            mine, theirs = [Ear() for _ in range(12)], [Ear() for _ in range(6)]
            tasks = [asyncio.create_task(pool.open(REQUEST, ear, "long")) for ear in mine]
            await until(lambda: peer.requests == 6)
            tasks += [asyncio.create_task(pool.open(REQUEST, ear, "late")) for ear in theirs]
            await until(lambda: pool.waiting == 12)
            for n, late in enumerate([1, 2, 3, 3, 3, 3]):
                peer.links[n].write(REPLY)
                await until(lambda: peer.requests == 7 + n)  # noqa: B023
                assert pool._held == {"long": 6 - late, "late": late}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @pytest.mark.parametrize("seed", range(5))
    async def test_places_are_counted_right_whatever_happens(self, seed: int) -> None:
        """Replies, closes, resets, cancelled waiters and aborted requests in any order; a full pool and an idle one."""
        dice = random.Random(seed)
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=4, pool_wait_s=60) as pool:
            tasks: list[asyncio.Task[Connection]] = []
            for _ in range(400):
                what = dice.random()
                if what < 0.4 and pool.waiting < 12:
                    tenant = dice.choice("abc")
                    if pool.send(REQUEST, Ear(), tenant) is None:
                        tasks.append(asyncio.create_task(pool.open(REQUEST, Ear(), tenant)))
                elif what < 0.75 and peer.links:
                    link = dice.choice(peer.links[-4:])
                    if not link.lost.done() and not link.transport.is_closing():
                        dice.choice([lambda x: x.write(REPLY)] * 4 + [Link.close, Link.reset])(link)
                elif what < 0.9 and tasks:
                    dice.choice(tasks).cancel()
                elif tasks and (task := dice.choice(tasks)).done() and not task.cancelled() and not task.exception():
                    task.result().abort()
                for _ in range(dice.randrange(3)):
                    await asyncio.sleep(0)
                assert sum(pool._held.values()) == pool.busy
                assert not (pool.idle and pool.waiting)
            for task in tasks:
                task.cancel()
            await soon(asyncio.wait(tasks))

    async def test_a_flood_is_refused_at_once_and_the_others_may_wait(self) -> None:
        peer = Peer(answer=lambda link: None)
        async with serving(peer, connections_max=1) as pool:
            tasks = [asyncio.create_task(pool.open(REQUEST, Ear(), "flood")) for _ in range(WAITING_PER_TENANT_MAX + 4)]
            await until(lambda: sum(task.done() for task in tasks) == 4)
            refused = [fault for task in tasks if task.done() and (fault := task.exception()) is not None]
            assert [(fault.kind, fault.sent) for fault in refused if isinstance(fault, UpstreamFault)] == [
                ("upstream_busy", False)
            ] * 3
            other = asyncio.create_task(pool.open(REQUEST, Ear(), "other"))
            await until(lambda: pool.waiting == WAITING_PER_TENANT_MAX + 1)
            await until(lambda: peer.links)
            peer.links[0].write(REPLY)
            peer.answer = lambda link: link.write(REPLY)
            await soon(other)
            await soon(asyncio.wait(tasks))


class TestAbort:
    @pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 2", CHUNKED, CHUNKED + b"2\r\nok\r\n"])
    async def test_the_provider_sees_it_within_100_ms_and_the_sink_hears_nothing(self, reply: bytes) -> None:
        asked = asyncio.Event()

        def answer(link: Link) -> None:
            link.write(reply)
            asked.set()

        peer = Peer(answer=answer)
        async with serving(peer) as pool:
            ear = Ear()
            connection = await soon(pool.open(REQUEST, ear))
            await soon(asked.wait())
            if reply.startswith(CHUNKED):
                await soon(ear.head_came.wait())
            told = list(ear.told)
            at_s = time.monotonic()
            connection.abort()
            assert pool.busy == 0
            await soon(peer.links[0].lost)
            assert peer.links[0].lost_at_s - at_s < 0.1
            connection.abort()  # twice is once
            assert ear.told == told
            assert (pool.idle, pool.busy) == (0, 0)

    @pytest.mark.parametrize("when", ["on_head", "on_body"])
    async def test_from_within_the_sink(self, when: str) -> None:
        peer = Peer()
        async with serving(peer) as pool:
            ear = Ear()

            def abort(*_: object) -> None:
                ear.told.append(when)
                connection.abort()

            setattr(ear, when, abort)
            connection = await soon(pool.open(REQUEST, ear))
            await soon(peer.links[0].lost)
            assert ear.told[-1] == when
            assert (pool.idle, pool.busy) == (0, 0)

    @pytest.mark.parametrize(("where", "told"), [
        ("on_head", ["fault"]),
        ("on_body", ["head", "fault"]),
        ("on_end", ["head", "body", "fault"]),
    ])  # fmt: skip
    async def test_a_sink_that_raises_is_not_the_providers_fault(
        self, where: str, told: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Ear, where, broken)
        async with serving(Peer()) as pool:
            ear = await ask(pool, Ear())
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind) == (told, "internal")
            assert type(ear.fault.__cause__) is ZeroDivisionError
            assert pool.busy == 0
            assert pool.idle == (where == "on_end"), "a connection whose reply was whole is as good as any"


# What the provider sends before it closes, what the sink hears, and the kind of its fault.
BROKEN: list[tuple[bytes, list[str], str | None]] = [
    (OK + b"Content-Length: 5\r\n\r\nok", ["head", "body", "fault"], "upstream_cut"),
    (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nok", ["head", "body", "fault"], "upstream_cut"),
    (CHUNKED + b"2\r\nok\r\n", ["head", "body", "fault"], "upstream_cut"),
    (CHUNKED + b"5\r\nok", ["head", "body", "fault"], "upstream_cut"),
    (OK + b"Content-", ["fault"], "upstream_cut"),
    (b"HTTP/1.1 100 Continue\r\n\r\n", ["fault"], "upstream_cut"),
    (OK + b"Connection: close\r\n\r\nok", ["head", "body", "end"], None),
    (b"HTTP/1.0 200 OK\r\n\r\nok", ["head", "body", "end"], None),
    (CHUNKED + b"ZZ\r\nok\r\n", ["head", "fault"], "upstream_garbage"),
    (CHUNKED + b"2\r\nok\r\nZZ\r\n", ["head", "body", "fault"], "upstream_garbage"),
    (b"SSH-2.0-OpenSSH_9\r\n", ["fault"], "upstream_garbage"),
    (b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", ["fault"], "upstream_garbage"),
    (b"HTTP/1.1 103 X\r\n\r\n" * 11 + REPLY, ["fault"], "upstream_garbage"),
    (OK + b"X: %b\r\n" % (b"v" * 1000) * 70, ["fault"], "upstream_garbage"),
]


class TestReply:
    async def test_a_head_byte_by_byte(self) -> None:
        reply = b"HTTP/1.1 103 X\r\n\r\n" + REPLY

        async def drip(link: Link) -> None:
            for i in range(len(reply)):
                link.write(reply[i : i + 1])
                await asyncio.sleep(0)

        tasks: list[asyncio.Task[None]] = []
        peer = Peer(answer=lambda link: tasks.append(asyncio.create_task(drip(link))))
        async with serving(peer) as pool:
            for _ in range(2):
                ear = await ask(pool)
                assert (ear.status, ear.headers, ear.body) == (200, {b"content-length": b"2"}, b"ok")
        assert len(peer.links) == 1

    async def test_chunks_that_came_together_are_told_together(self) -> None:
        peer = Peer(answer=lambda link: link.write(CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"))
        async with serving(peer) as pool:
            ear = await ask(pool)
            assert (ear.reads, ear.told) == ([b"abc"], ["head", "body", "end"])

    async def test_the_lane_takes_whole_chunks_between_chunks_only(self) -> None:
        peer = Peer(answer=lambda link: link.write(CHUNKED))
        async with serving(peer) as pool:
            ear, offered = Ear(), asyncio.Queue[bytes]()

            def lane(data: bytes) -> bool:
                offered.put_nowait(data)
                return data.endswith(b"\r\n") and not data.startswith(b"0")

            connection = await soon(pool.open(REQUEST, ear))
            connection.lane = lane
            await soon(ear.head_came.wait())
            link = peer.links[0]
            link.write(b"2\r\nab\r\n")
            assert await soon(offered.get()) == b"2\r\nab\r\n"
            link.write(b"2\r\nc")  # offered, not taken
            assert await soon(offered.get()) == b"2\r\nc"
            await soon(ear.body_came.wait())
            ear.body_came.clear()
            link.write(b"d\r\n")  # not offered: within a chunk
            await soon(ear.body_came.wait())
            assert ear.reads == [b"c", b"d"]
            link.write(b"1\r\ne\r\n")
            assert await soon(offered.get()) == b"1\r\ne\r\n"
            link.write(b"0\r\n\r\n")
            assert await soon(offered.get()) == b"0\r\n\r\n"
            await soon(ear.over.wait())
            assert (ear.body, ear.told, pool.idle) == (b"cd", ["head", "body", "end"], 1)
            assert lane_of(connection) is None
            peer.answer = lambda link: link.write(REPLY)
            assert (await ask(pool)).body == b"ok"

    async def test_backpressure_holds_the_provider(self) -> None:
        size = 64 * 1024 * 1024
        peer = Peer(answer=lambda link: link.write(OK + b"Content-Length: %d\r\n\r\n" % size + bytes(size)))
        async with serving(peer) as pool:

            class Full(Ear):
                def on_body(self, data: bytes) -> None:
                    super().on_body(data)
                    connection.pause()

            ear = Full()
            connection = await soon(pool.open(REQUEST, ear))
            await soon(ear.body_came.wait())
            link = peer.links[0]
            for _ in range(20):
                await asyncio.sleep(0)
                assert len(ear.reads) == 1
            assert link.transport.get_write_buffer_size() > 0
            while not ear.over.is_set():
                ear.body_came.clear()
                connection.resume()
                if not ear.over.is_set():
                    await soon(ear.body_came.wait())
            assert len(ear.body) == size
            # Paused during its last read, and all the same fit for the next request.
            peer.answer = lambda link: link.write(REPLY)
            assert (await ask(pool)).body == b"ok"
        assert len(peer.links) == 1

    @pytest.mark.parametrize(("reply", "told", "kind"), BROKEN)
    async def test_broken_promises(self, reply: bytes, told: list[str], kind: str | None) -> None:
        def answer(link: Link) -> None:
            link.write(reply)
            link.close()

        peer = Peer(answer=answer)
        async with serving(peer) as pool:
            ear = await ask(pool)
            assert (ear.told, ear.fault.kind if ear.fault else None) == (told, kind)
            assert ear.fault is None or ear.fault.status == ear.status
            assert (pool.idle, pool.busy) == (0, 0)

    @pytest.mark.parametrize(("reply", "told", "kind"), [row for row in BROKEN if row[2] != "upstream_garbage"])
    async def test_a_reset_is_no_honest_end(self, reply: bytes, told: list[str], kind: str | None) -> None:
        peer = Peer(answer=lambda link: link.write(reply))
        async with serving(peer) as pool:
            ear = Ear()
            await soon(pool.open(REQUEST, ear))
            await until(lambda: peer.requests and ("body" not in told or ear.body_came.is_set()))
            peer.links[0].reset()
            await soon(ear.over.wait())
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind) == ([*told[:-1], "fault"], "upstream_cut")
            assert (pool.idle, pool.busy) == (0, 0)

    async def test_megabytes_of_head_end_at_the_bound(self) -> None:
        async def bomb(link: Link) -> None:
            link.write(OK)
            for n in range(5000):
                if link.transport.is_closing():
                    return
                link.write(b"X-%d: %b\r\n" % (n, b"v" * 1000))
                await asyncio.sleep(0)

        tasks: list[asyncio.Task[None]] = []
        peer = Peer(answer=lambda link: tasks.append(asyncio.create_task(bomb(link))))
        async with serving(peer) as pool:
            ear = await ask(pool)
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind) == (["fault"], "upstream_garbage")
            await soon(tasks[0])

    async def test_who_speaks_first_is_not_talked_to(self) -> None:
        class Greeter(Link):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self.write(b"220 mail ready\r\n")

        ear = Ear()
        async with serving(Peer(), link=Greeter) as pool:
            try:
                await soon(pool.open(REQUEST, ear))
                await soon(ear.over.wait())
            except UpstreamFault as fault:  # the greeting was faster than our request
                ear.on_fault(fault)
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind) in ((["fault"], "upstream_garbage"), (["fault"], "upstream_connect"))
            assert pool.busy == 0


class TestTls:
    """The same promises inside TLS, where closing has a ceremony of its own."""

    @asynccontextmanager
    async def serving(self, peer: Peer, clock: ManualClock) -> AsyncIterator[Pool]:
        ca, context = trustme.CA(), tls_context()
        ca.configure_trust(context)
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(server_tls)
        server = await asyncio.get_running_loop().create_server(lambda: Link(peer), "127.0.0.1", 0, ssl=server_tls)
        origin = Origin(server.sockets[0].getsockname()[1], "https")
        dialer = Dialer(Resolver(clock), tls=context, proxies=Proxies())
        pool = Pool(origin, limits=PoolLimits(), dialer=dialer, clock=clock)
        try:
            yield pool
        finally:
            await soon(pool.close())
            for link in peer.links:
                link.transport.abort()
                await soon(link.lost)
            server.close()
            await server.wait_closed()

    async def test_reuse_then_a_stale_connection_then_old_age(self) -> None:
        def answer(link: Link) -> None:
            if link.number == 0 and link.requests == 3:
                link.close()
            else:
                link.write(REPLY)

        peer, clock = Peer(answer=answer), ManualClock()
        async with self.serving(peer, clock) as pool:
            for _ in range(3):
                ear = await ask(pool)
                assert (ear.status, ear.body, ear.told) == (200, b"ok", ["head", "body", "end"])
            assert (len(peer.links), [link.requests for link in peer.links]) == (2, [3, 1])
            clock.jump(100)
            pool.sweep()
            assert (pool.idle, pool.busy) == (0, 0)
            await soon(peer.links[1].lost)

    async def test_who_leaves_when_a_stale_connection_is_just_dialled_again_leaves_nothing_open(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(link: Link) -> None:
            link.write(REPLY) if link.requests == 1 else link.close()

        async with self.serving(Peer(answer=answer), ManualClock()) as pool:
            await ask(pool)
            redial = pool.redial

            def redial_and_leave(connection: Connection) -> None:
                redial(connection)
                connection.abort()

            monkeypatch.setattr(pool, "redial", redial_and_leave)
            await soon(pool.open(REQUEST, Ear()))
            await soon(until(lambda: pool.busy == 0))
            at_s = time.monotonic()
            await soon(pool.close())
            assert time.monotonic() - at_s < CLOSE_TIMEOUT_S / 2

    async def test_abort_is_seen_within_100_ms(self) -> None:
        peer = Peer(answer=lambda link: link.write(CHUNKED + b"2\r\nok\r\n"))
        async with self.serving(peer, ManualClock()) as pool:
            ear = Ear()
            connection = await soon(pool.open(REQUEST, ear))
            await soon(ear.body_came.wait())
            at_s = time.monotonic()
            connection.abort()
            await soon(peer.links[0].lost)
            assert peer.links[0].lost_at_s - at_s < 0.1
            assert (ear.told, pool.busy) == (["head", "body"], 0)

    async def test_a_cut(self) -> None:
        def answer(link: Link) -> None:
            link.write(CHUNKED + b"2\r\nok\r\n")
            link.close()

        peer = Peer(answer=answer)
        async with self.serving(peer, ManualClock()) as pool:
            ear = await ask(pool)
            assert ear.fault is not None
            assert (ear.told, ear.fault.kind) == (["head", "body", "fault"], "upstream_cut")

    async def test_closing_does_not_wait_for_a_goodbye(self) -> None:
        """A provider that has stopped reading never answers our close_notify."""
        peer, clock = Peer(), ManualClock()
        async with self.serving(peer, clock) as pool:
            await ask(pool)
            peer.links[0].transport.pause_reading()
            clock.jump(100)
            pool.sweep()
            at_s = time.monotonic()
            await soon(pool.close())
            assert time.monotonic() - at_s < 0.5


CASES = Path(__file__).parents[2] / "shared" / "cases" / "http1" / "upstream"

# What the pool tells of each: status, what the sink hears last, fault kind, whether the connection is kept. Where the
# case is about the body (HTML, SSE) framing is all that is judged here.
VERDICTS: dict[str, tuple[int, str, str | None, bool]] = {
    "bad-204": (204, "end", None, True),
    "bad-302-ssrf": (302, "end", None, True),
    "bad-chunk-size": (200, "fault", "upstream_garbage", False),
    "bad-empty-close": (0, "fault", "upstream_cut", False),
    "bad-header-bomb": (0, "fault", "upstream_garbage", False),
    "bad-header-inject": (0, "fault", "upstream_garbage", False),
    "bad-html-200": (200, "end", None, True),
    "bad-not-http": (0, "fault", "upstream_garbage", False),
    "bad-obs-fold": (0, "fault", "upstream_garbage", False),
    "bad-rst": (200, "fault", "upstream_cut", False),
    "bad-status-line": (0, "fault", "upstream_garbage", False),
    "bad-two-cl": (0, "fault", "upstream_garbage", False),
    "extra-bytes-after": (200, "end", None, False),
    "hang-no-answer": (0, "nothing", None, False),
    "ok-103-then-200": (200, "end", None, True),
    "ok-close-delimited": (200, "end", None, False),
    "ok-utf8-bom": (200, "end", None, True),
    "sse-after-done": (200, "end", None, True),
    "sse-bom": (200, "end", None, True),
    "sse-close-mid": (200, "fault", "upstream_cut", False),
    "sse-cr": (200, "end", None, True),
    "sse-error-event": (200, "end", None, True),
    "sse-error-first": (200, "end", None, True),
    "sse-rst-mid": (200, "fault", "upstream_cut", False),
    "sse-wrong-ctype": (200, "end", None, True),
}


def segments(case: dict[str, object]) -> list[bytes]:
    """The bytes of a case; `parts` repeats a text with a running number."""
    result = []
    for segment in case["segments"]:  # type: ignore[attr-defined]
        if "raw" in segment:
            result.append(segment["raw"].encode(case["encoding"]))
        for text, count in segment.get("parts", []):
            result.append("".join(text.replace("{i}", str(n)) for n in range(count)).encode(str(case["encoding"])))
    return result


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared corpus of broken replies is not here")
@pytest.mark.parametrize("name", VERDICTS)
async def test_the_corpus_of_broken_replies(name: str) -> None:
    case = json.loads((CASES / f"{name}.json").read_text())
    status, last, kind, kept = VERDICTS[name]
    data = b"".join(segments(case))
    ends = last == "fault" or name == "ok-close-delimited"

    def answer(link: Link) -> None:
        link.write(data)
        if ends and not case.get("rst"):
            link.close()

    peer = Peer(answer=answer)
    async with serving(peer) as pool:
        ear = Ear()
        connection = await soon(pool.open(REQUEST, ear))
        if case.get("rst"):
            await soon(ear.body_came.wait())
            peer.links[0].reset()
        if last == "nothing":
            await until(lambda: peer.requests)
            connection.abort()
            await soon(peer.links[0].lost)
            assert ear.told == []
            return
        await soon(ear.over.wait())
        assert (ear.status, ear.told[-1], ear.fault.kind if ear.fault else None) == (status, last, kind)
        assert (pool.idle == 1, pool.busy) == (kept, 0)
        shown = ear.body + b"".join(name + b":" + value for name, value in ear.headers.items())
        if name not in ("bad-302-ssrf", "sse-after-done"):  # those are for whoever reads the reply
            assert not any(word.encode() in shown for word in case.get("forbid", []))


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared corpus of broken replies is not here")
def test_the_corpus_is_covered() -> None:
    assert {path.stem for path in CASES.glob("*.json")} == set(VERDICTS)
