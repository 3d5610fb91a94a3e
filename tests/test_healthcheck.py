"""`edgegw healthcheck`: what it asks, what it makes of the answer, and where it looks for the gateway."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rig import Gateway, Simulator, StartGateway, free_port, providers

from edgegw.cli import main
from edgegw.healthcheck import UnhealthyError, ask, local_url

ALIVE = b'HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{"status":"alive"}'
START_S = 1.5  # of the command, on a machine that is busy with other tests; 0.2 s when it is not


class Answering:
    """A server that gives every client the same bytes, and notes what it was asked."""

    def __init__(self, answer: bytes, host: str = "127.0.0.1") -> None:
        self.asked = b""
        self._answer = answer
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                self.asked = client.recv(65536)
                client.sendall(self._answer)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def alive() -> Iterator[Answering]:
    server = Answering(ALIVE)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("EDGEGW_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["healthcheck", *arguments])


def test_well(alive: Answering) -> None:
    ran = run("--url", alive.url)
    assert (ran.exit_code, ran.output) == (0, '{"status":"alive"}\n')
    assert alive.asked.startswith(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1:")
    assert run("--url", alive.url, "--ready").exit_code == 0
    assert alive.asked.startswith(b"GET /readyz ")
    assert run("--url", f"{alive.url}/metrics").exit_code == 0
    assert alive.asked.startswith(b"GET /metrics ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"status":"not ready"}', '/livez: 503 {"status":"not ready"}'),
        (b"HTTP/1.1 404 Not Found\r\n\r\n" + b"x" * 200_000, "/livez: 404 x"),
        (b"220 a mail server\r\n", "no HTTP answer"),
        (b"", "no HTTP answer"),
    ],
)
def test_unwell(answer: bytes, said: str) -> None:
    server = Answering(answer)
    try:
        ran = run("--url", server.url)
    finally:
        server.close()
    assert ran.exit_code == 1
    assert said in ran.output
    assert len(ran.output.splitlines()) == 1


def test_nobody_there() -> None:
    ran = run("--url", f"http://127.0.0.1:{free_port()}")
    assert ran.exit_code == 1
    assert "Connection refused" in ran.output


def test_nobody_who_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnhealthyError, match="timed out"):
        ask(f"http://127.0.0.1:{silent.getsockname()[1]}", "/livez", timeout_s=0.05)


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "https://127.0.0.1:9090", "http://:9090", "http://h:port"])
def test_what_is_no_url(url: str) -> None:
    assert run("--url", url).exit_code == 2


def test_who_listens_everywhere_is_asked_here() -> None:
    assert local_url("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert local_url("::", 1) == "http://[::1]:1"
    assert local_url("localhost", 1) == "http://localhost:1"


def test_where_the_settings_have_it(alive: Answering, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key has to be set, and a file that is faulty by now does not make the gateway ill that runs."""
    monkeypatch.setenv("EDGEGW_ADMIN_HOST", "0.0.0.0")
    monkeypatch.setenv("EDGEGW_ADMIN_PORT", str(alive.port))
    assert run().exit_code == 0
    (place / "edgegw.yaml").write_text("version: 1\nserver: {wrkers: 2}\n")
    assert run().exit_code == 0
    monkeypatch.delenv("EDGEGW_ADMIN_PORT")
    monkeypatch.delenv("EDGEGW_ADMIN_HOST")
    (place / "edgegw.yaml").write_text(
        f'version: 1\nserver: {{admin: "127.0.0.1:{alive.port}"}}\n'
        "providers: {openai: {kind: openai, api_key: k}}\ndefault: {targets: [openai/a]}\n"
    )
    assert run().exit_code == 0


@pytest.mark.system
def test_a_gateway_while_it_runs_and_after(gateway: StartGateway, simulator: Simulator) -> None:
    started: Gateway = gateway({"providers": providers(simulator), "default": {"targets": ["sim/a"]}})
    command = [sys.executable, "-m", "edgegw", "healthcheck", "--url", started.admin_url]

    def asked(*more: str) -> tuple[int, str]:
        ran = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
        return ran.returncode, ran.stdout + ran.stderr

    begun_s = time.monotonic()
    assert asked() == (0, '{"status":"alive"}\n')
    assert time.monotonic() - begun_s < START_S
    code, said = asked("--ready")
    assert code == 0
    assert said.startswith('{"status":"ready"')
    started.stop()
    assert asked()[0] == 1
