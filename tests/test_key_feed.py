"""From the store to every worker: the feed, the channel over a real socket, and the worker's table."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edgegw import channel
from edgegw.channel import ChannelClient, Frames, KeyIs, KeysComplete, Message
from edgegw.channel_server import ChannelServer
from edgegw.clock import ManualClock
from edgegw.keys.feed import PORTION_KEYS, KeyFeed
from edgegw.keys.store import Changes, KeyStoreError
from edgegw.keys.subscriber import KeySubscriber
from edgegw.keys.table import Key, KeyTable, digest_of
from edgegw.limits.authority import MemoryAuthority
from edgegw.settings import OwnLimits

NOW_NS = 1_800_000_000 * 10**9
MANY = 10_000
LONGEST = "\U0001f600" * 256


def key(number: int, **fields: object) -> Key:
    made = Key(f"key_{number}", digest_of(b"%d" % number), "acme", "ci", "egw_12345678", 1, None, None)
    return replace(made, **fields)


class Store:
    """A store whose keys are set by a test; each setting is a change."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[int, Key]] = {}
        self.version = 0
        self.error: KeyStoreError | None = None
        self.fresh = True
        self.closed = False

    def put(self, *keys: Key) -> None:
        for each in keys:
            self.version += 1
            self.keys[each.id] = (self.version, each)

    def replaced(self, *keys: Key) -> None:
        """Another database in its place."""
        self.keys, self.version, self.fresh = {}, 0, True
        self.put(*keys)

    async def changes(self, since: int) -> Changes:
        if self.error is not None:
            self.fresh = True
            raise self.error
        whole, self.fresh = self.fresh, False
        news = sorted((at, each) for at, each in self.keys.values() if whole or at > since)
        return Changes(tuple(each for _, each in news), self.version, whole)

    async def write(self, keys: Sequence[Key]) -> None:
        self.put(*keys)

    async def close(self) -> None:
        self.closed = True


class Limits:
    """What was last said of each key."""

    def __init__(self) -> None:
        self.of: dict[str, OwnLimits | None] = {}
        self.changes = 0

    def set_key(self, key_id: str, tenant: str, limits: OwnLimits | None) -> None:
        self.of[key_id] = limits

    def changed(self) -> None:
        self.changes += 1


class Worker:
    def __init__(self, path: str, slot: int = 0) -> None:
        self.channel = ChannelClient(path, slot, 4000 + slot)
        self.table = KeyTable()
        self.limits = Limits()
        self.keys = KeySubscriber(self.channel, self.table, self.limits, self.limits.changed)
        self.channel.start()

    def knows(self, number: int) -> bool:
        return self.table.find(b"%d" % number, NOW_NS) is not None


class House:
    """A control process on a listening socket, and workers."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "control.sock")
        self.directory = directory
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(self.path)
        self.sock.listen()
        self.workers: list[Worker] = []
        self.clock = ManualClock()

    async def start(self, store: Store) -> None:
        self.store = store
        self.limits = Limits()
        authority = MemoryAuthority(lambda meter: 1000, self.clock)
        self.server = ChannelServer(self.sock, authority, 1, self.directory)
        self.feed = KeyFeed(store, self.server, self.limits, self.clock)
        await self.server.start()

    def worker(self, slot: int = 0) -> Worker:
        worker = Worker(self.path, slot)
        self.workers.append(worker)
        return worker

    async def until(self, true: Callable[[], bool]) -> None:
        for _ in range(2500):
            if true():
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it did not come true within 5 s")

    async def close(self) -> None:
        for worker in self.workers:
            await worker.channel.close()
        await self.server.close()
        self.sock.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.start(Store())
    yield house
    await house.close()


async def test_a_joining_worker_is_told_everything_and_then_what_is_new(house: House) -> None:
    house.store.put(key(1), key(2, revoked_ns=5), key(3, limits=OwnLimits(requests_per_minute=2)))
    worker = house.worker()
    assert not await worker.keys.wait_complete(0.05), "before the store was read nothing is complete"
    await house.feed.look()
    assert await worker.keys.wait_complete(5)
    assert [worker.knows(number) for number in (1, 2, 3)] == [True, False, True]
    assert worker.limits.of == {"key_3": OwnLimits(requests_per_minute=2)}
    assert worker.limits.changes == 1
    assert house.limits.of["key_3"] == OwnLimits(requests_per_minute=2)

    house.store.put(key(4), replace(key(1), revoked_ns=NOW_NS))
    await house.feed.look()
    await house.until(lambda: worker.knows(4))
    assert not worker.knows(1)
    late = house.worker(1)
    assert await late.keys.wait_complete(5)
    assert [late.knows(number) for number in range(1, 5)] == [False, False, True, True]
    assert house.feed.details() == {"state": "ok", "known": 4, "version": 5}


async def test_limits_of_a_key_change_and_end_with_it(house: House) -> None:
    house.store.put(key(1, limits=OwnLimits(tokens_per_day=9)))
    await house.feed.look()
    worker = house.worker()
    assert await worker.keys.wait_complete(5)
    for limits, revoked_ns, told in (
        (OwnLimits(tokens_per_day=8), None, OwnLimits(tokens_per_day=8)),
        (OwnLimits(tokens_per_day=8), 5, None),
    ):
        house.store.put(key(1, limits=limits, revoked_ns=revoked_ns))
        await house.feed.look()
        await house.until(lambda told=told: worker.limits.of["key_1"] == told)  # type: ignore[misc]
        assert house.limits.of["key_1"] == told
    assert worker.limits.changes == 3


async def test_many_keys_get_through_to_a_worker_that_joins(house: House) -> None:
    house.store.put(*(key(number) for number in range(MANY)))
    await house.feed.look()
    worker = house.worker()
    assert await worker.keys.wait_complete(5)
    assert len(worker.table) == MANY
    assert worker.knows(0)
    assert worker.knows(MANY - 1)
    assert house.server.slow_readers == 0


async def test_keys_of_the_longest_kind_get_through_as_well(house: House) -> None:
    longest = {"tenant": LONGEST, "name": LONGEST, "acts_for": (LONGEST,) * 16}
    house.store.put(*(key(number, **longest) for number in range(200)))
    await house.feed.look()
    worker = house.worker()
    assert await worker.keys.wait_complete(5)
    assert len(worker.table) == 200
    assert house.server.slow_readers == 0


NAMES = st.text(max_size=256).filter(str.isprintable)
TIMES = st.none() | st.integers(0, 2**63 - 1)
MESSAGES = st.builds(KeysComplete, st.integers(0, 2**62)) | st.builds(
    KeyIs,
    st.builds(
        Key,
        NAMES,
        st.binary(min_size=32, max_size=32),
        NAMES,
        created_ns=st.integers(0, 2**63 - 1),
        expires_ns=TIMES,
        revoked_ns=TIMES,
        acts_for=st.lists(NAMES, max_size=3).map(tuple),
        limits=st.builds(OwnLimits, tokens_per_day=st.none() | st.integers(1, 10**12)),
    ),
)


@given(st.lists(MESSAGES, max_size=20))
def test_what_is_said_of_keys_is_what_is_heard(messages: list[Message]) -> None:
    assert Frames().feed(Frames().encode(messages)) == messages


def test_frames_of_long_keys_keep_their_bound() -> None:
    messages: list[Message] = [KeyIs(key(number, acts_for=(LONGEST,) * 16)) for number in range(300)]
    data = Frames().encode(messages)
    sizes, at = [], 0
    while at < len(data):
        sizes.append(int.from_bytes(data[at : at + 4], "big"))
        at += 4 + sizes[-1]
    assert max(sizes) <= channel.FRAME_BYTES_MAX
    assert Frames().feed(data) == messages
    assert len(Frames().encode(messages[:PORTION_KEYS])) < channel.UNREAD_BYTES_MAX


async def test_a_worker_that_reads_nothing_is_waited_for(house: House) -> None:
    """A stopped process: its portion waits, nobody else does, and it is not cut off for the keys' sake."""
    house.store.put(*(key(number) for number in range(MANY)))
    await house.feed.look()
    hello = Frames().encode([channel.Hello(7, 7777)])
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.connect(house.path)
        stopped.sendall(hello)
        worker = house.worker()
        assert await worker.keys.wait_complete(5)
        house.store.put(key(MANY))
        await house.feed.look()
        await house.until(lambda: worker.knows(MANY))
        assert house.server.slow_readers == 0
        assert len(house.server.links) == 2
    await house.until(lambda: len(house.server.links) == 1)


async def test_a_store_that_fails_is_told_once_and_workers_go_on(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgegw.keys")
    house.store.put(key(1))
    await house.feed.look()
    worker = house.worker()
    assert await worker.keys.wait_complete(5)
    house.store.error = KeyStoreError("books.db: database is locked")
    for _ in range(3):
        await house.feed.look()
    assert house.feed.details()["state"] == "failing"
    assert worker.knows(1)
    house.store.error = None
    house.store.put(key(2))
    await house.feed.look()
    await house.until(lambda: worker.knows(2))
    assert house.feed.details()["state"] == "ok"
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "database is locked" in caplog.text


async def test_what_is_gone_from_the_store_is_revoked(house: House) -> None:
    house.store.put(key(1, limits=OwnLimits(tokens_per_day=9)), key(2))
    await house.feed.look()
    worker = house.worker()
    assert await worker.keys.wait_complete(5)
    house.store.replaced(key(2), key(3))
    await house.feed.look()
    await house.until(lambda: worker.knows(3))
    assert [worker.knows(number) for number in (1, 2)] == [False, True]
    assert worker.limits.of["key_1"] is None
    house.store.replaced(key(1))
    await house.feed.look()
    await house.until(lambda: worker.knows(1))
    assert not worker.knows(2)


async def test_a_worker_outlives_the_control_process_and_learns_what_went_meanwhile(house: House) -> None:
    house.store.put(key(1), key(2), key(3))
    await house.feed.look()
    worker = house.worker()
    assert await worker.keys.wait_complete(5)
    await house.server.close()
    await house.until(lambda: not worker.channel.open)
    assert all(worker.knows(number) for number in (1, 2, 3))
    assert worker.keys.complete()
    store = Store()
    store.put(key(1), key(2, revoked_ns=5), key(4))
    await house.start(store)
    await house.until(lambda: worker.channel.open)
    assert all(worker.knows(number) for number in (1, 2, 3)), "nothing is forgotten before all is known"
    await house.feed.look()
    await house.until(lambda: worker.knows(4))
    await house.until(lambda: not worker.knows(3))
    assert [worker.knows(number) for number in (1, 2)] == [True, False]


async def test_the_feed_closes_its_store_when_it_ends(house: House) -> None:
    task = asyncio.get_running_loop().create_task(house.feed.run())
    await house.until(lambda: house.feed.details()["state"] == "ok")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert house.store.closed
