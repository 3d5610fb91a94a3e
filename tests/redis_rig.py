"""Real Redis servers for tests: alone, with a password, TLS, or a unix socket, behind sentinels, as a cluster; and what
can happen to them.

They come from Debian's packages (`tests/prepare` installs them as root) and run on free ports in directories of
their own, without a disk. Each starts in some 50 ms. Everything is ended with its test or module.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import pytest
import trustme
from rig import Running, eventually, free_port

HOST = "127.0.0.1"
CLUSTER_BUS_S = 15.0  # three nodes that have never met agree within a second or two


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(
            f"{name} is not installed: `make test` as root installs it, or: apt-get install redis-server redis-sentinel"
        )
    return found


class Client:
    """A blocking connection for looking and for faults. An error that Redis replies is raised."""

    def __init__(self, port: int, *login: str) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=5)
        self._reader = hiredis.Reader()
        if login:
            self.do("AUTH", *login)

    def do(self, *command: bytes | int | str) -> Any:
        self._socket.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("closed")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        self._socket.close()


@dataclass
class Redis:
    """One server process. `arguments` as on the command line of redis-server."""

    directory: Path
    arguments: tuple[str, ...] = ()
    login: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    sentinel: bool = False
    running: Running | None = None

    def start(self) -> Redis:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.sentinel:
            command = [_program("redis-sentinel"), str(self.directory / "sentinel.conf"), *self.arguments]
        else:
            own = ("--save", "", "--appendonly", "no", "--dir", str(self.directory), "--bind", HOST)
            command = [_program("redis-server"), *own, "--repl-diskless-sync-delay", "0", *self.arguments]
        port = () if "--tls-port" in self.arguments else ("--port", str(self.port))
        self.running = Running([*command, *port], self.directory / "redis.log", {})
        self.running.wait_ready(self._answers)
        return self

    def _answers(self) -> bool:
        if "--tls-port" in self.arguments:
            socket.create_connection((HOST, self.port), timeout=1).close()
            return True
        try:
            return bool(self.do("PING") == b"PONG")
        except hiredis.ReplyError:
            return False

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def client(self) -> Client:
        return Client(self.port, *self.login)

    def do(self, *command: bytes | int | str) -> Any:
        client = self.client()
        try:
            return client.do(*command)
        finally:
            client.close()

    def signal(self, number: int) -> None:
        assert self.running is not None
        os.kill(self.running.pid, number)

    def kill(self) -> None:
        """At once, and until it is gone."""
        assert self.running is not None
        self.signal(signal.SIGKILL)
        self.running.wait(5)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It takes connections (the kernel does) and answers nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def evalsha_calls(self) -> int:
        """EVALSHA and EVAL since the start, as the server counts them."""
        stats = self.do("INFO", "commandstats").decode()
        lines = [line for line in stats.splitlines() if line.startswith(("cmdstat_evalsha:", "cmdstat_eval:"))]
        return sum(int(line.split("calls=")[1].split(",")[0]) for line in lines)

    def end(self) -> None:
        if self.running is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self.running.end()
            self.running = None


@dataclass
class Sentinels:
    """A master, a replica and three sentinels."""

    master: Redis
    replica: Redis
    sentinels: list[Redis]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/mymaster"

    def wait_promoted(self) -> None:
        eventually("the replica is the master", lambda: self.replica.do("ROLE")[0], lambda role: role == b"master", 20)


StartRedis = Callable[..., Redis]


class House:
    """Starts servers in a directory, and ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Redis] = []

    def redis(self, *arguments: str, login: tuple[str, ...] = (), port: int | None = None) -> Redis:
        server = Redis(self._directory / f"redis-{len(self._started)}", arguments, login, port or free_port())
        self._started.append(server)
        return server.start()

    def sentinels(self) -> Sentinels:
        """Failover within about a second of the master's silence."""
        master = self.redis()
        replica = self.redis("--replicaof", HOST, str(master.port))
        linked = lambda: b"master_link_status:up" in replica.do("INFO", "replication")  # noqa: E731
        eventually("the replica is linked", linked, bool, 15)
        sentinels = []
        for number in range(3):
            directory = self._directory / f"sentinel-{number}-{free_port()}"
            directory.mkdir(parents=True)
            (directory / "sentinel.conf").write_text(
                f"bind {HOST}\nsentinel monitor mymaster {HOST} {master.port} 2\n"
                "sentinel down-after-milliseconds mymaster 300\nsentinel failover-timeout mymaster 2000\n"
            )
            sentinels.append(Redis(directory, sentinel=True))
            self._started.append(sentinels[-1].start())
        for sentinel in sentinels:

            def others(one: Redis = sentinel) -> tuple[int, int]:
                told = one.do("SENTINEL", "MASTER", "mymaster")
                facts = dict(zip(told[::2], told[1::2], strict=True))
                return int(facts[b"num-other-sentinels"]), int(facts[b"num-slaves"])

            eventually("the sentinels know each other", others, lambda known: known == (2, 1), 15)
        return Sentinels(master, replica, sentinels)

    def cluster(self) -> list[Redis]:
        """Three masters with a third of the slots each."""
        common = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
        buses = [free_port() for _ in range(3)]
        nodes = [self.redis(*common, "--cluster-port", str(bus)) for bus in buses]
        for number, node in enumerate(nodes):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            node.do("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            node.do("CLUSTER", "MEET", HOST, nodes[0].port, buses[0])
        for node in nodes:
            state = lambda one=node: one.do("CLUSTER", "INFO")  # noqa: E731
            eventually("the cluster is whole", state, _whole, CLUSTER_BUS_S)
        return nodes

    def end(self) -> None:
        for server in self._started:
            server.end()


def _whole(info: bytes) -> bool:
    return b"cluster_state:ok" in info and b"cluster_slots_assigned:16384" in info and b"cluster_known_nodes:3" in info


def certificates(directory: Path) -> tuple[list[str], Path]:
    """Arguments for redis-server with TLS, for the name `localhost`; and the file with the authority to trust."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    ca, chain, key = directory / "ca.pem", directory / "chain.pem", directory / "key.pem"
    authority.cert_pem.write_to_path(str(ca))
    chain.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server.private_key_pem.write_to_path(str(key))
    files = ["--tls-cert-file", str(chain), "--tls-key-file", str(key), "--tls-ca-cert-file", str(ca)]
    return [*files, "--tls-auth-clients", "no"], ca


class Slow:
    """A proxy before a server that holds every byte back for `delay_s`, in both directions together."""

    def __init__(self, server: Redis) -> None:
        self.delay_s = 0.0
        self.port = free_port()
        self._to = server.port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Slow]:
        server = await asyncio.start_server(self._connected, HOST, self.port)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._to)
        self._writers += (writer, back)
        loop = asyncio.get_running_loop()
        self._tasks |= {loop.create_task(self._pass(reader, back)), loop.create_task(self._pass(there, writer))}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        free_s = 0.0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                free_s = max(free_s, loop.time() + self.delay_s / 2)  # bytes keep their order when the delay shrinks
                loop.call_at(free_s, _write, writer, data)
        loop.call_at(max(free_s, loop.time()), writer.close)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


@pytest.fixture(scope="module")
def module_redises(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Servers that live as long as the module."""
    house = House(tmp_path_factory.mktemp("redis"))
    yield house
    house.end()


@pytest.fixture
def redises(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Servers that live as long as the test."""
    house = House(tmp_path_factory.mktemp("redis"))
    yield house
    house.end()


@pytest.fixture(scope="module")
def shared_redis(module_redises: House) -> Redis:
    """One for the module, to be emptied by who uses it: `redis`."""
    return module_redises.redis()


@pytest.fixture
def redis(shared_redis: Redis) -> Redis:
    """The module's server, empty."""
    shared_redis.do("FLUSHALL")
    return shared_redis


def wait_s(condition: Callable[[], bool], within_s: float) -> float:
    """How long it took, in a test without a loop."""
    started_s = time.monotonic()
    eventually("", condition, bool, within_s)
    return time.monotonic() - started_s
