"""Real PostgreSQL servers for tests and load programs, and what can happen to them.

They come from Debian's package (`tests/prepare` installs it as root) or from PATH, and run on free ports in directories
of their own, as the user `postgres` where we are root: PostgreSQL refuses to be. The first of a house answers in about
a second; it is copied for further ones, which take a tenth. Tests share one server, each with a database of its own
(the fixture `postgres`); those that break it start their own (`postgreses`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rig import Running, eventually, free_port, memory

HOST = "127.0.0.1"
OWNER = "postgres"  # of the databases, and the system's user where we are root
QUESTION_S = 20.0
_STOP_S = 15.0

# What is committed outlives the server, but not the machine. `durable` servers are as the package ships them.
_FAST = ("fsync=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0")
_COMMON = (f"listen_addresses={HOST}", "shared_buffers=64MB", "max_connections=60", "log_line_prefix=%t [%p] %a ")


def program(name: str) -> str:
    """The path of one of PostgreSQL's programs; the newest that Debian's packages brought."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: `make test` as root installs it, or: apt-get install postgresql")
    return found


def _as_owner() -> list[str]:
    """What a command begins with so that it does not run as root."""
    if os.getuid() != 0:
        return []
    return ["setpriv", "--reuid", OWNER, "--regid", str(pwd.getpwnam(OWNER).pw_gid), "--clear-groups"]


def _give_to_owner(directory: Path) -> None:
    if os.getuid() == 0:
        user = pwd.getpwnam(OWNER)
        os.chown(directory, user.pw_uid, user.pw_gid)


def _state_and_parent(pid: int) -> tuple[str, int]:
    """As /proc has them; of a process that is gone, X and 0."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return state, int(parent)


@dataclass
class Postgres:
    """One server. `directory` holds its data, its socket and its log; `options` are `name=value`."""

    directory: Path
    options: tuple[str, ...] = ()
    durable: bool = False
    port: int = field(default_factory=free_port)
    running: Running | None = None
    _names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def make(self) -> None:
        """The cluster, empty."""
        command = [program("initdb"), "-D", str(self.data), "-U", OWNER, "-E", "UTF8", "--locale=C", "--auth=trust"]
        made = subprocess.run(
            [*_as_owner(), *command, "--no-sync", "--no-instructions"], capture_output=True, text=True, cwd="/"
        )
        assert made.returncode == 0, made.stderr

    def start(self) -> Postgres:
        options = [
            *_COMMON,
            *(() if self.durable else _FAST),
            f"unix_socket_directories={self.directory}",
            *self.options,
        ]
        settings = [part for option in options for part in ("-c", option)]
        command = [program("postgres"), "-D", str(self.data), "-p", str(self.port), *settings]
        self.running = Running([*_as_owner(), *command], self.directory / "postgres.log", {})
        self.running.wait_ready(lambda: self.answers)
        return self

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.alive

    @property
    def answers(self) -> bool:
        asked = subprocess.run(
            [program("pg_isready"), "-q", "-h", HOST, "-p", str(self.port), "-d", OWNER, "-U", OWNER]
        )
        return asked.returncode == 0

    @property
    def said(self) -> str:
        assert self.running is not None
        return self.running.said

    # Looking.

    def dsn(self, database: str = OWNER, user: str = OWNER, options: str = "") -> str:
        return f"postgresql://{user}@{HOST}:{self.port}/{database}{options}"

    def do(self, sql: str, database: str = OWNER, user: str = OWNER, *, timeout_s: float = QUESTION_S) -> str:
        """What psql says, without headers; CalledProcessError with its stderr."""
        command = [program("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(database, user), "-f", "-"]
        asked = subprocess.run(command, input=sql, capture_output=True, text=True, timeout=timeout_s)
        if asked.returncode:
            raise subprocess.CalledProcessError(asked.returncode, sql[:200], asked.stdout, asked.stderr)
        return asked.stdout.strip("\n")

    def rows(self, query: str, database: str = OWNER) -> list[dict[str, Any]]:
        """The rows of a query, as JSON has their values."""
        return [json.loads(line) for line in self.do(f"SELECT row_to_json(q) FROM ({query}) q", database).splitlines()]

    def database(self) -> Database:
        """A fresh one. Its files are copied where that can be asked for (15): it takes a third of writing their log."""
        name = f"books_{os.getpid()}_{next(self._names)}"
        copied = "STRATEGY file_copy" if not self.durable and int((self.data / "PG_VERSION").read_text()) >= 15 else ""
        self.do(f"CREATE DATABASE {name} TEMPLATE template0 {copied}")
        return Database(self, name)

    # Faults.

    def cut(self, database: str | None = None) -> int:
        """End the connections of clients (to one database); how many there were."""
        which = "" if database is None else f"AND datname = '{database}'"
        ended = self.do(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() {which}"
        )
        return int(ended)

    def _processes(self) -> list[int]:
        """The postmaster, which is stopped so that it makes no more, and its children."""
        assert self.running is not None
        os.kill(self.running.pid, signal.SIGSTOP)
        processes = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
        return [self.running.pid, *(pid for pid in processes if _state_and_parent(pid)[1] == self.running.pid)]

    def kill(self) -> None:
        """All of its processes at once, as when the machine's memory runs out; until they are gone."""
        assert self.running is not None
        processes = self._processes()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.running.wait(5)
        left = lambda: [process for process in processes if _state_and_parent(process)[0] not in "ZX"]  # noqa: E731
        eventually("its processes are gone", left, lambda some: not some, 5)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: at once, clients are sent away. SIGTERM waits for them, SIGQUIT leaves recovery to the next start."""
        assert self.running is not None
        os.kill(self.running.pid, how)
        self.running.wait(_STOP_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections (the kernel does) and answers nothing."""
        processes = self._processes()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def end(self) -> None:
        """Whatever state it is in. One that can takes its shared memory with it: the machine has room for some only."""
        if self.running is None:
            return
        if self.alive:
            try:
                self.stop(signal.SIGQUIT)
            except AssertionError:
                self.kill()
        self.running.end()
        self.running = None


@dataclass(frozen=True)
class Database:
    """One database of a server."""

    server: Postgres
    name: str

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    def do(self, sql: str) -> str:
        return self.server.do(sql, self.name)

    def rows(self, query: str) -> list[dict[str, Any]]:
        return self.server.rows(query, self.name)

    def value(self, query: str) -> Any:
        """The one value of a query with one row and one column."""
        ((value,),) = (row.values() for row in self.rows(query))
        return value

    def cut(self) -> int:
        return self.server.cut(self.name)

    def drop(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.server.do(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")


class PostgresHouse:
    """Starts servers below a directory of its own (in `parent`), which all users may enter, and ends them all."""

    def __init__(self, parent: Path | None = None) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="edgegw-postgres-", dir=parent))
        self._directory.chmod(0o755)
        self._made: Path | None = None
        self._started: list[Postgres] = []
        self._mounted: list[Path] = []

    def server(self, *options: str, durable: bool = False, room: str | None = None) -> Postgres:
        """A server that answers. `room`: the size of the disk that it has to itself ("100m"), which takes root."""
        directory = self._directory / f"server-{len(self._started)}"
        directory.mkdir(mode=0o755)
        if room is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room},mode=755", "tmpfs", str(directory)], check=True)
            self._mounted.append(directory)
        _give_to_owner(directory)
        server = Postgres(directory, options, durable)
        self._started.append(server)
        if self._made is None:
            server.make()
            self._made = self._directory / "made"
            subprocess.run(["cp", "-a", str(server.data), str(self._made)], check=True)
        else:
            subprocess.run(["cp", "-a", str(self._made), str(server.data)], check=True)
        return server.start()

    def end(self) -> None:
        for server in self._started:
            server.end()
        for directory in self._mounted:
            subprocess.run(["umount", "-l", str(directory)], check=False)
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def pooler(database: Database, sessions: int) -> Iterator[str]:
    """A PgBouncer before a database that gives each transaction the next of a few sessions; its URL."""
    found = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if found is None:
        pytest.fail("pgbouncer is not installed: `make test` as root installs it, or: apt-get install pgbouncer")
    directory = Path(tempfile.mkdtemp(prefix="edgegw-pooler-"))
    port = free_port()
    try:
        directory.chmod(0o755)
        (directory / "pooler.ini").write_text(
            f"[databases]\n{database.name} = host={HOST} port={database.server.port} user={OWNER}\n"
            f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {sessions}\nserver_round_robin = 1\n"
        )
        running = Running([*_as_owner(), found, str(directory / "pooler.ini")], directory / "pooler.log", {})
        try:
            running.wait_ready(lambda: _listens(port))
            yield f"postgresql://{OWNER}@{HOST}:{port}/{database.name}"
        finally:
            running.end()
    finally:
        shutil.rmtree(directory)


def _listens(port: int) -> bool:
    socket.create_connection((HOST, port), timeout=1).close()
    return True


def can_mount() -> bool:
    """Whether a server can have a small disk of its own."""
    directory = tempfile.mkdtemp(prefix="edgegw-mount-")
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], capture_output=True)
        if mounted.returncode == 0:
            subprocess.run(["umount", directory], check=True)
        return mounted.returncode == 0
    except OSError:
        return False
    finally:
        os.rmdir(directory)


StartPostgres = Callable[..., Postgres]


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[Postgres]:
    """One for all tests. Who breaks it starts another: `postgreses`."""
    house = PostgresHouse(memory())
    try:
        yield house.server()
    finally:
        house.end()


@pytest.fixture
def postgres(shared_postgres: Postgres) -> Iterator[Database]:
    """A fresh database of the shared server."""
    database = shared_postgres.database()
    yield database
    database.drop()


@pytest.fixture
def postgreses() -> Iterator[PostgresHouse]:
    """Servers that live as long as the test."""
    house = PostgresHouse()
    yield house
    house.end()


@pytest.fixture(scope="module")
def module_postgreses() -> Iterator[PostgresHouse]:
    """Servers that live as long as the module."""
    house = PostgresHouse()
    yield house
    house.end()
