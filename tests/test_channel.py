"""The channel: frames as bytes, and both ends over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits_rig import T, meter

from edgegw import channel
from edgegw.channel import ChannelClient, ChannelError, Frames, Hello, Message, Ready, Shares
from edgegw.channel_server import ChannelServer
from edgegw.clock import ManualClock
from edgegw.limits import tally
from edgegw.limits.authority import MemoryAuthority
from edgegw.limits.words import GiveBack, Offer, Recall, Spent, Want

METERS = st.text(max_size=256).filter(lambda name: name.isprintable()).map(lambda name: meter("tpm", name))
TOKENS = st.integers(-(2**62), 2**62)
MESSAGES = st.one_of(
    st.builds(Want, METERS, TOKENS, TOKENS, TOKENS),
    st.builds(Offer, METERS, TOKENS, TOKENS, TOKENS, st.floats(0), st.floats(0), st.integers(0, 3)),
    st.builds(GiveBack, METERS, TOKENS, TOKENS),
    st.builds(Spent, METERS, TOKENS),
    st.builds(Recall, METERS, TOKENS),
    st.builds(Hello, st.integers(0, 64), st.integers(1, 2**22), st.integers(0, 9)),
    st.builds(Ready, st.integers(0, 2**62), st.integers(1, 64)),
    st.builds(Shares, st.integers(1, 64)),
)


# -- frames --


@given(st.lists(MESSAGES, max_size=20), st.integers(1, 100))
def test_what_goes_in_comes_out_whole_or_in_pieces(messages: list[Message], piece: int) -> None:
    data = Frames().encode(messages)
    assert Frames().feed(data) == messages
    frames, heard = Frames(), list[Message]()
    for start in range(0, len(data), piece):
        heard += frames.feed(data[start : start + piece])
    assert heard == messages
    assert frames.feed(b"") == []


def test_many_messages_take_several_frames_each_within_its_bound() -> None:
    messages: list[Message] = [Want("\U0001f600" * 256, 2**62, 2**62, 2**62)] * 2000
    data = Frames().encode(messages)
    assert Frames().feed(data) == messages
    assert int.from_bytes(data[:4], "big") <= channel.FRAME_BYTES_MAX


@pytest.mark.parametrize("data", [
    b"\xff\xff\xff\xff",
    b"\x00\x10\x00\x01",
    b"\x00\x00\x00\x00",
    b"\x00\x00\x00\x01\x01",
    b"\x00\x00\x00\x02\x91\x01",
    b"\x00\x00\x00\x03\x91\x91\x63",
    b"\x00\x00\x00\x06\x91\x95\x01\x01\x01\x01",
    b"GET / HTTP/1.1\r\n\r\n",
])  # fmt: skip
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ChannelError):
        Frames().feed(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_wait_for_more(data: bytes) -> None:
    with contextlib.suppress(ChannelError):
        assert all(isinstance(message, Message) for message in Frames().feed(data))


# -- both ends --


class House:
    """A listening socket as the supervisor would own it, and a control process on it."""

    def __init__(self, path: Path) -> None:
        self.state_dir = path
        self.path = str(path / "control.sock")
        self.clock = ManualClock()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(self.path)
        self.sock.listen()
        self.server: ChannelServer | None = None
        self.clients: list[ChannelClient] = []
        self.heard: list[Message] = []
        self.breaks = 0

    async def start(self, epoch: int = 1) -> ChannelServer:
        self.authority = MemoryAuthority(lambda meter: 1000, self.clock)
        self.server = ChannelServer(self.sock, self.authority, epoch, self.state_dir)
        await self.server.start()
        return self.server

    def client(self, slot: int = 0) -> ChannelClient:
        client = ChannelClient(self.path, slot, 4000 + slot)
        for kind in (Ready, Offer, Shares):
            client.handle(kind, self.heard.append)
        client.on_closed(self._broke)
        self.clients.append(client)
        client.start()
        return client

    def _broke(self) -> None:
        self.breaks += 1

    async def until(self, true: Callable[[], bool]) -> None:
        for _ in range(2500):
            if true():
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it did not come true within 5 s")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    for client in house.clients:
        await client.close()
    if house.server is not None:
        await house.server.close()
    house.sock.close()


@contextlib.asynccontextmanager
async def raw(house: House) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(house.path)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_hello_ready_and_a_question_answered(house: House) -> None:
    server = await house.start(epoch=77)
    client = house.client(slot=3)
    assert not client.send(Want(T, 1, 1, 0)), "before it is open nothing is taken"
    assert await client.wait_open(5)
    assert client.open
    assert server.workers == [(3, 4003)]
    assert client.send(Want(T, 300, 100, 0))
    assert client.send(Want(T, 900, 800, 0))
    await house.until(lambda: len(house.heard) == 3)
    ready, first, second = house.heard
    assert ready == Ready(77, 1)
    assert first == Offer(T, 300, 1000, 700)
    assert isinstance(second, Offer)
    assert (second.granted, second.remaining) == (0, 700)
    assert second.retry_after_s == pytest.approx(6.0, abs=0.001)


async def test_what_is_said_in_one_turn_leaves_in_one_frame(house: House) -> None:
    await house.start()
    async with raw(house) as (reader, writer):
        wants: list[Message] = [Want(meter("tpm", f"t{number}"), 1, 1, number) for number in range(10)]
        writer.write(Frames().encode([Hello(0, 1), *wants]))
        async with asyncio.timeout(5):
            size = int.from_bytes(await reader.readexactly(4), "big")
            assert Frames().feed(size.to_bytes(4, "big") + await reader.readexactly(size)) == [Ready(1, 1)]
            size = int.from_bytes(await reader.readexactly(4), "big")
            offers = Frames().feed(size.to_bytes(4, "big") + await reader.readexactly(size))
        assert len(offers) == 10


async def test_workers_come_and_go_and_the_others_hear_of_it(house: House) -> None:
    server = await house.start()
    first = house.client(0)
    assert await first.wait_open(5)
    second = house.client(1)
    assert await second.wait_open(5)
    await house.until(lambda: Shares(2) in house.heard)
    await second.close()
    await house.until(lambda: Shares(1) in house.heard)
    assert server.workers == [(0, 4000)]


async def test_a_worker_finds_its_control_process_again(house: House) -> None:
    client = house.client()
    assert not await client.wait_open(0.01), "it waits in the queue of the listening socket"
    for epoch in (1, 2, 3):
        server = await house.start(epoch)
        await house.until(lambda epoch=epoch: Ready(epoch, 1) in house.heard)  # type: ignore[misc]
        await server.close()
        await house.until(lambda epoch=epoch: house.breaks == epoch)  # type: ignore[misc]
        assert not client.open
        assert not client.send(Want(T, 1, 1, 0))
    os.rename(house.path, house.path + "x")  # it is still there: the socket is the supervisor's


async def test_a_socket_that_is_not_there_yet(house: House) -> None:
    os.rename(house.path, house.path + "x")
    client = house.client()
    assert not await client.wait_open(0.01)
    os.rename(house.path + "x", house.path)
    await house.start()
    assert await client.wait_open(5)


async def test_what_a_dead_worker_held_comes_back(house: House) -> None:
    await house.start()
    spent = tally.create(tally.path(house.state_dir, 0, 4000), 8)
    client = house.client()
    assert await client.wait_open(5)
    client.send(Want(T, 500, 500, 3))
    client.send(Want(T, 100, 0, 3))
    await house.until(lambda: len(house.heard) == 3)
    assert house.authority.level(T) == 400
    spent[3] += 120
    link = client._link
    assert link is not None
    link.cut("as kill -9 would")
    await house.until(lambda: house.authority.level(T) == 880)


async def test_an_offer_that_finds_its_worker_gone_goes_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await house.start()
    reached, answer = asyncio.Event(), asyncio.Event()
    lease = house.authority.lease

    async def slowly(asked: str, want: int, need: int) -> Offer:
        offer = await lease(asked, want, need)
        reached.set()
        await answer.wait()
        return offer

    monkeypatch.setattr(house.authority, "lease", slowly)
    client = house.client()
    assert await client.wait_open(5)
    client.send(Want(T, 600, 600, 0))
    async with asyncio.timeout(5):
        await reached.wait()
    assert house.authority.level(T) == 400
    await client.close()
    await house.until(lambda: not server.workers)
    answer.set()
    await house.until(lambda: house.authority.level(T) == 1000)


async def test_words_that_need_no_answer_reach_the_authority(house: House) -> None:
    await house.start()
    client = house.client()
    assert await client.wait_open(5)
    for message in (Recall(T, 900), Spent(T, 100), GiveBack(T, -50, 0)):
        client.send(message)
    await house.until(lambda: house.authority.level(T) == 750)


async def test_an_authority_that_fails_answers_nothing_and_harms_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await house.start()
    lease = house.authority.lease

    async def failing(asked: str, want: int, need: int) -> Offer:
        if asked == meter("tpm", "bad"):
            raise ConnectionError("away")
        return await lease(asked, want, need)

    monkeypatch.setattr(house.authority, "lease", failing)
    client = house.client()
    assert await client.wait_open(5)
    client.send(Want(meter("tpm", "bad"), 1, 1, 0))
    client.send(Want(T, 1, 1, 0))
    await house.until(lambda: len(house.heard) == 2)
    assert house.heard[1] == Offer(T, 1, 1000, 999)
    assert "the authority failed" in caplog.text


@pytest.mark.parametrize("opening", [
    Frames().encode([Want(T, 1, 1, 0)]),
    Frames().encode([Hello(0, 1, version=99)]),
    Frames().encode([Hello(0, 1), Ready(1, 1)]),
    Frames().encode([Hello(0, 1), Want("nothing that is counted", 1, 1, 0)]),
    Frames().encode([Hello(0, 1), GiveBack("tpm", 1, 1)]),
    b"GET /metrics HTTP/1.1\r\n\r\n",
])  # fmt: skip
async def test_who_does_not_speak_properly_is_cut_off(house: House, opening: bytes) -> None:
    server = await house.start()
    async with raw(house) as (reader, writer):
        writer.write(opening)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        await house.until(lambda: not server.workers)
    assert house.authority.level(T) == 1000


async def test_who_says_nothing_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgegw.channel_server.HELLO_WITHIN_S", 0.05)
    await house.start()
    async with raw(house) as (reader, _):
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""


async def test_a_worker_that_does_not_read_is_cut_off_and_counted(house: House) -> None:
    server = await house.start()
    async with raw(house) as (_, writer):
        writer.write(Frames().encode([Hello(0, 1)]))
        await house.until(lambda: bool(server.workers))
        async with asyncio.timeout(10):
            while server.links:
                (link,) = server.links
                for _ in range(2000):
                    link.send(Offer(T * 200, 1, 1, 1))
                await asyncio.sleep(0)
    assert server.slow_readers == 1


async def test_a_control_process_that_is_frozen_is_cut_off_and_sought_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "HELLO_WITHIN_S", 0.05)
    client = house.client()  # connects: the kernel queues it; nobody accepts
    await house.until(lambda: client._link is not None)
    first = client._link
    assert first is not None
    await house.until(lambda: client._link not in (None, first))
    assert not client.open
    assert house.breaks == 0, "it had never been open"
    await house.start()
    assert await client.wait_open(5)


@pytest.mark.parametrize("turns", range(8))
async def test_closed_while_it_connects_it_leaves_nothing(house: House, turns: int) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    server = await house.start()
    client = house.client()
    for _ in range(turns):
        await asyncio.sleep(0)
    await client.close()
    await client.close()
    await house.until(lambda: not server.links)
    assert not client.open
    assert told == []


async def test_last_words_are_sent_before_closing(house: House) -> None:
    await house.start()
    client = house.client()
    assert await client.wait_open(5)
    client.send(Spent(T, 123))
    await client.close()
    await house.until(lambda: house.authority.level(T) == 877)
    assert not client.open
    assert house.breaks == 1


def test_a_path_that_no_socket_can_have_is_refused_at_the_start() -> None:
    with pytest.raises(ChannelError, match="longer than 103 bytes"):
        ChannelClient("/" + "deep/" * 30 + "control.sock", 0, 1)
