"""The image: what it is, and that it serves as it should with a read-only root, no rights and no shell.

`make image` builds it and runs this; `make test` skips it, because building takes minutes, root and Debian.
"""

from __future__ import annotations

import http.client
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from container_files import compose, seconds
from image_rig import SHELLS, STATE, Container, Image, mounted, start, wait_healthy
from rig import Simulator, ask, eventually, start_simulator
from test_containers import readme_requests, send

pytestmark = [pytest.mark.system, pytest.mark.image]

BYTES_MAX = 150_000_000
READY_S = 10.0  # from nothing to ready, on a machine that is busy with tests; some 0.5 s when it is not
GRACE_S = seconds(compose()["services"]["gateway"]["stop_grace_period"])
STREAMS = 40


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest) -> Iterator[Image]:
    if "image" not in request.config.getoption("markexpr").split():
        pytest.skip("the image is built and tried by `make image`")
    with mounted() as image:
        yield image


@pytest.fixture(scope="module")
def slow_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """Its answers take about two seconds."""
    simulator = start_simulator(tmp_path_factory.mktemp("simulator"), "--pace", "50ms", "--tokens", "40")
    yield simulator
    simulator.running.end()


@pytest.fixture
def container(image: Image, slow_simulator: Simulator, tmp_path: Path) -> Iterator[Container]:
    container = start(image, tmp_path, provider(slow_simulator))
    try:
        wait_healthy(container)
        yield container
    finally:
        container.end()


def provider(simulator: Simulator) -> dict[str, str]:
    return {
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": f"{simulator.url}/v1",
        "ANTHROPIC_API_KEY": "k",
        "ANTHROPIC_BASE_URL": simulator.url,
        "EDGEGW_ALLOW_UNAUTHENTICATED": "true",
    }


def test_what_it_is(image: Image) -> None:
    assert image.bytes < BYTES_MAX
    config = image.config
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == (["edgegw"], ["serve"])
    assert config["Healthcheck"]["Test"] == ["CMD", "edgegw", "healthcheck"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["ExposedPorts"].keys() == {"8080/tcp", "9090/tcp"}
    assert config["Volumes"].keys() == {STATE}
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name}
    assert labels.keys() >= {"title", "description", "version", "revision", "source"}
    assert len(labels["revision"]) >= 7
    assert not [name for name in config["Env"] if "KEY" in name or name.startswith("PIP_")]


def test_what_is_in_it(image: Image) -> None:
    state = (image.root / STATE[1:]).stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (65532, 65532, 0o700)
    ours = [path for path in (image.root / "opt/edgegw").rglob("*") if not path.is_symlink()]
    assert [path for path in ours if path.stat().st_uid != 0 or path.stat().st_mode & 0o022] == []
    names = {path.name for path in ours}
    assert {"edgegw", "asyncpg", "hiredis", "uvloop"} <= names
    assert {"pip", "setuptools", "tests", "__pycache__", "grpc"}.isdisjoint(names)
    assert [path for path in ours if path.suffix in (".pyx", ".pyi", ".c", ".h")] == []
    migrations = {path.name for path in ours if path.suffix == ".sql"}
    assert migrations == {path.name for path in Path("sql").rglob("*.sql")}


def test_it_does_not_start_open_to_all_unless_told_to(image: Image, slow_simulator: Simulator, tmp_path: Path) -> None:
    environ = provider(slow_simulator)
    del environ["EDGEGW_ALLOW_UNAUTHENTICATED"]
    container = start(image, tmp_path, environ)
    try:
        assert container.running.wait() == 2
    finally:
        container.end()
    for words in ("EDGEGW_ALLOW_UNAUTHENTICATED", "EDGEGW_AUTH"):
        assert words in container.running.said


def test_it_runs_as_a_container_does(container: Container) -> None:
    """Process 1, no root, no rights, nothing to write to, no shell; and all bytecode is there."""
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{container.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["65532"] * 4
    assert status["Gid"].split() == ["65532"] * 4
    assert status["NSpid"].split()[-1] == "1"
    assert (int(status["CapPrm"], 16), int(status["CapEff"], 16), status["NoNewPrivs"]) == (0, 0, "1")
    for name in SHELLS:
        assert container.execute(name, "-c", "true").returncode != 0
    write = "open('{}/x', 'w')"
    for place in ("/tmp", "/etc/edgegw", "/opt/edgegw"):
        ran = container.execute("python", "-c", write.format(place))
        assert "Read-only file system" in ran.stderr
    assert container.execute("python", "-c", write.format(STATE)).returncode == 0
    loaded = container.execute("python", "-v", "-c", "import edgegw.app, edgegw.cli, asyncpg, hiredis")
    compiled = [line for line in loaded.stderr.splitlines() if line.startswith("# code object from '/")]
    assert [line for line in compiled if not line.endswith(".pyc'")] == []
    assert len(compiled) > 100


def test_both_requests_of_the_readme(container: Container) -> None:
    for path, body in readme_requests():
        send(container.url, path, body)
    assert ask(container.admin_url, "GET", "/metrics").status == 200
    told = container.execute("edgegw", "requests")
    assert told.stdout.count("complete") == 2, told.stdout + told.stderr


def test_it_is_ready_soon(image: Image, slow_simulator: Simulator, tmp_path: Path) -> None:
    begun_s = time.monotonic()
    container = start(image, tmp_path, provider(slow_simulator))
    try:
        eventually("ready", lambda: _is_ready(container), bool, 20)
        assert time.monotonic() - begun_s < READY_S
        begun_s = time.monotonic()
        assert container.execute("edgegw", "healthcheck").stdout == '{"status":"alive"}\n'
        print(f"healthcheck took {time.monotonic() - begun_s:.3f} s")
    finally:
        container.end()


def _is_ready(container: Container) -> bool:
    try:
        return ask(container.admin_url, "GET", "/readyz").status == 200
    except OSError:
        return False


def test_told_to_stop_under_load_it_loses_nothing(container: Container) -> None:
    """Streams that run end complete; whoever is let in has an answer, whoever comes later is refused at the door; and
    the books have every answer."""
    begun, outcomes = threading.Semaphore(0), ThreadPoolExecutor(STREAMS + 4)

    def stream() -> bytes:
        netloc = urlsplit(container.url).netloc
        with closing(http.client.HTTPConnection(netloc, timeout=GRACE_S)) as connection:
            body = b'{"model": "gpt-5-mini", "stream": true, "messages": [{"role": "user", "content": "Go on."}]}'
            connection.request("POST", "/v1/chat/completions", body)
            reply = connection.getresponse()
            first = reply.read1(1)
            begun.release()
            return first + reply.read()

    def keep_asking() -> tuple[int, int]:
        """Short requests, each on a connection of its own, until the door is shut: how many were answered, and how
        many were let in and had no answer."""
        answered = lost = 0
        while True:
            try:
                answer = ask(container.url, "GET", "/v1/models")
            except ConnectionRefusedError:
                return answered, lost
            except (OSError, http.client.HTTPException):
                lost += 1
            else:
                assert answer.status == 200
                answered += 1
            if lost > 100:
                return answered, lost

    streams = [outcomes.submit(stream) for _ in range(STREAMS)]
    asking = [outcomes.submit(keep_asking) for _ in range(4)]
    for _ in range(STREAMS):
        assert begun.acquire(timeout=GRACE_S)
    begun_s = time.monotonic()
    os.kill(container.pid, signal.SIGTERM)
    assert container.running.wait(GRACE_S) == 0, container.running.said
    took_s = time.monotonic() - begun_s
    bodies = [each.result() for each in streams]
    assert [body[-60:] for body in bodies if not body.endswith(b"data: [DONE]\n\n")] == []
    answered, lost = (sum(column) for column in zip(*(each.result() for each in asking), strict=True))
    print(f"stopped within {took_s:.2f} s; {STREAMS} streams complete, {answered} short requests answered, {lost} lost")
    assert answered > 0
    assert lost == 0
    with closing(sqlite3.connect(container.state / "edgegw.db")) as database:
        states = database.execute("SELECT state, count(*) FROM requests GROUP BY state").fetchall()
    assert states == [("complete", STREAMS)]
