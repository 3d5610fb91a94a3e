"""Real processes for system tests: a simulated provider and a gateway on free ports, and what can be asked of them.

Every wait is bounded and says at its end what it saw. Whatever a test does, its processes are gone when it is over:
each runs in a session of its own, which is ended as a whole.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SIMULATE = [sys.executable, "-m", "edgegw", "simulate"]
SERVE = [sys.executable, "-m", "edgegw", "serve"]
CLIENT_KEY = "sk-client-key"
PROVIDER_KEY = "sk-provider-key"

_START_S = 15.0  # a cold start on a busy two-core machine
_STOP_S = 15.0
_ROWS_S = 15.0
_POLL_S = 0.02
_MEMORY_BYTES_MIN = 1 << 30
# What must not come in from the developer's own shell.
_FOREIGN_PREFIXES = ("EDGEGW_", "OPENAI_", "ANTHROPIC_", "OTEL_")
_FOREIGN = {"PORT", "REDIS_URL", "DATABASE_URL", "TOKENS_PER_MINUTE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}

Row = dict[str, Any]
Settings = Mapping[str, Any]


T = TypeVar("T")


def eventually(what: str, look: Callable[[], T], good: Callable[[T], bool], within_s: float) -> T:
    """The first look that is good; AssertionError with the last one when the time is over."""
    end_s = time.monotonic() + within_s
    while not good(seen := look()):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {within_s:g}s: {what}; last seen: {seen!r:.4000}")
        time.sleep(_POLL_S)
    return seen


@dataclass(slots=True)
class Answer:
    """An HTTP reply. Header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error


def ask(
    url: str, method: str, path: str, body: bytes | Settings | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request on a fresh connection; a mapping is sent as JSON."""
    given = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        given.setdefault("content-type", "application/json")
    given.setdefault("authorization", f"Bearer {CLIENT_KEY}")
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, given)
        reply = connection.getresponse()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())


def chat(url: str, model: str, text: str = "How are you?", **fields: Any) -> Answer:
    """One chat completion, not streamed unless the fields say so."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return ask(url, "POST", "/v1/chat/completions", body)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


def memory() -> Path | None:
    """Where a file is in memory, so that a sync costs nothing, if there is room for what tests write."""
    place = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if shutil.disk_usage(place).free >= _MEMORY_BYTES_MIN and os.access(place, os.W_OK):
            return place
    return None


class Running:
    """A process of ours, with its children, and what it says on stderr."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str]) -> None:
        self._log = log
        clean = {
            name: value
            for name, value in os.environ.items()
            if name.upper() not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
        }
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**clean, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **env},
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, ready: Callable[[], bool]) -> None:
        """Until `ready`; AssertionError with the process's own words when it ends first or takes too long."""
        end_s = time.monotonic() + _START_S
        while True:
            if (code := self._process.poll()) is not None:
                raise AssertionError(f"{self._process.args!r} ended with {code}:\n{self.said}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if ready():
                    return
            if time.monotonic() > end_s:
                raise AssertionError(f"{self._process.args!r} is not ready after {_START_S:g}s:\n{self.said}")
            time.sleep(_POLL_S)

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, within_s: float = _STOP_S) -> int:
        """The exit code; AssertionError when it still runs."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._process.args!r} still runs after {within_s:g}s:\n{self.said}") from None

    def stop(self, within_s: float = _STOP_S) -> tuple[int, str]:
        """SIGTERM; the exit code and everything it said."""
        self.terminate()
        return self.wait(within_s), self.said

    def end(self) -> None:
        """Ends whatever is left of the session, by force if need be. Never raises because of the process."""
        if self._process.poll() is None:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(5)


@dataclass(slots=True)
class Simulator:
    """A simulated provider in a process of its own."""

    running: Running
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stats(self) -> dict[str, Any]:
        stats = ask(self.url, "GET", "/simulator/stats").json
        assert isinstance(stats, dict)
        return stats

    def seen(self, model: str) -> list[dict[str, Any]]:
        """The requests for a model as they arrived: `headers`, `body` (text), `path`."""
        seen = ask(self.url, "GET", "/simulator/requests").json
        return [request for request in seen if request["model"] == model]

    def count(self, model: str) -> int:
        return int(self.stats()["by_model"].get(model, 0))

    def reset(self) -> None:
        ask(self.url, "POST", "/simulator/reset")


@dataclass(slots=True)
class Gateway:
    """A gateway in processes of its own."""

    running: Running
    url: str
    admin_url: str
    state_dir: Path
    settings: dict[str, Any] = field(repr=False)

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.running.pid

    def processes(self) -> dict[str, Any]:
        """{"supervisor": pid, "control": pid, "workers": {"0": pid}}, as the supervisor says now."""
        processes = json.loads((self.state_dir / "processes.json").read_text())
        assert isinstance(processes, dict)
        return processes

    def worker_pids(self) -> list[int]:
        return list(self.processes()["workers"].values())

    def control_pid(self) -> int:
        """0 while there is none."""
        return self.processes()["control"] or 0

    def stop(self, within_s: float = _STOP_S) -> tuple[int, str]:
        return self.running.stop(within_s)

    def kill(self) -> None:
        """All of its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.running.wait()

    def start_again(self) -> None:
        """After it was stopped or killed: the same settings, ports and directory."""
        directory = self.state_dir.parent
        log = directory / f"gateway-after-{self.pid}.log"
        self.running = Running([*SERVE, "--config", str(directory / "edgegw.yaml")], log, {})
        self.running.wait_ready(lambda: ask(self.admin_url, "GET", "/readyz").status == 200)

    def rows(
        self, table: str, until: Callable[[list[Row]], bool] = bool, *, where: str = "", within_s: float = _ROWS_S
    ) -> list[Row]:
        """The rows of `requests` or `provider_attempts`, in the order they were written, as soon as `until` holds."""
        return eventually(f"rows of {table} {where}", lambda: self._select(table, where), until, within_s)

    def row(self, request_id: str) -> Row:
        """The row of one request."""
        return self.rows("requests", where=f"WHERE id = '{request_id}'")[0]

    def attempts(self, request_id: str) -> list[Row]:
        """The attempts of one request, in order."""
        expected = self.row(request_id)["attempts"]
        where = f"WHERE request_id = '{request_id}' ORDER BY number"
        return self.rows("provider_attempts", lambda rows: len(rows) == expected, where=where)

    def written(self, under: str = "") -> dict[Path, bytes]:
        """What it has on its disk: of the state directory, or of a part of it. Files may come and go meanwhile."""
        found: dict[Path, bytes] = {}
        for directory, _, names in os.walk(self.state_dir / under):
            for path in (Path(directory, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file():  # and no socket
                        found[path] = path.read_bytes()
        return found

    def _select(self, table: str, where: str) -> list[Row]:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.state_dir}/edgegw.db?mode=ro", uri=True)) as database:
                database.row_factory = sqlite3.Row
                return [dict(row) for row in database.execute(f"SELECT * FROM {table} {where}")]
        except sqlite3.OperationalError:
            return []  # not created yet, or locked for this moment


StartGateway = Callable[..., Gateway]


def start_simulator(directory: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Simulator:
    """A simulator whose port answers. Its stderr goes to a file in `directory`."""
    port = free_port()
    command = [*SIMULATE, "--port", str(port), "--seed", "7", *arguments]
    running = Running(command, directory / f"simulator-{port}.log", env or {})
    simulator = Simulator(running, port)
    try:
        running.wait_ready(lambda: ask(simulator.url, "GET", "/simulator/stats").status == 200)
    except BaseException:
        running.end()
        raise
    return simulator


def start_gateway(directory: Path, settings: str | Settings, env: Mapping[str, str] | None = None) -> Gateway:
    """A gateway that says it is ready. `server.listen`, `server.admin` and `server.state_dir` are filled in; everything
    else is as `settings` (a mapping, or YAML) has it."""
    filled: dict[str, Any] = dict(yaml.safe_load(settings) if isinstance(settings, str) else settings)
    state_dir = directory / "state"
    listen, admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    filled.setdefault("version", 1)
    filled["server"] = {"listen": listen, "admin": admin, "state_dir": str(state_dir), **filled.get("server", {})}
    file = directory / "edgegw.yaml"
    file.write_text(json.dumps(filled, indent=2), "utf-8")  # JSON is YAML
    running = Running([*SERVE, "--config", str(file)], directory / "gateway.log", env or {})
    gateway = Gateway(running, f"http://{listen}", f"http://{admin}", state_dir, filled)
    try:
        running.wait_ready(lambda: ask(gateway.admin_url, "GET", "/readyz").status == 200)
    except BaseException:
        running.end()
        raise
    return gateway


def providers(simulator: Simulator, **timeouts: str) -> dict[str, Any]:
    """One simulated provider under three names: `sim` speaks OpenAI, `claude` Anthropic, `locked` refuses our key."""
    timeouts = {"connect": "2s", "first_byte": "20s", "idle": "20s"} | timeouts
    common = {"api_key": PROVIDER_KEY, "timeouts": timeouts}
    return {
        "sim": {"kind": "openai-compatible", "base_url": f"{simulator.url}/v1", **common},
        "claude": {"kind": "anthropic", "base_url": simulator.url, **common},
        "locked": {"kind": "openai-compatible", "base_url": f"{simulator.url}/v1", **common, "api_key": "bad-key"},
    }


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One per module; counters begin anew with `reset`."""
    simulator = start_simulator(tmp_path_factory.mktemp("simulator"))
    yield simulator
    simulator.running.end()


@pytest.fixture(scope="module")
def module_gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGateway]:
    """Starts gateways that live as long as the module: `start(settings, env)`."""
    with _gateways(lambda: tmp_path_factory.mktemp("gateway")) as start:
        yield start


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGateway]:
    """Starts gateways that live as long as the test: `gateway(settings, env)`."""
    with _gateways(lambda: tmp_path_factory.mktemp("gateway")) as start:
        yield start


@contextlib.contextmanager
def _gateways(directory: Callable[[], Path]) -> Iterator[StartGateway]:
    started: list[Gateway] = []

    def start(settings: str | Settings, env: Mapping[str, str] | None = None) -> Gateway:
        gateway = start_gateway(directory(), settings, env)
        started.append(gateway)
        return gateway

    try:
        yield start
    finally:
        for gateway in started:
            gateway.running.end()
