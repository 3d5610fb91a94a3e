"""`edgegw demo`: the whole way of a request, shown on a machine with no key and no server.

Starts the simulator and the gateway as the processes that they are, sends a plain request, a streamed one, and one
whose first provider fails, and shows the rows of all attempts. On a terminal everything stays up until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from edgegw import show
from edgegw.ledger.books import NoLedgerError, SqliteBooks
from edgegw.ledger.questions import Filter, Table, newest
from edgegw.ledger.schema import migrations

START_TIMEOUT_S = 15.0
ROWS_TIMEOUT_S = 5.0
PACE = "15ms"

SETTINGS = """\
version: 1
server: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}", state_dir: {state_dir}}}
providers:
  primary: {{kind: openai, base_url: "http://127.0.0.1:{simulator}/v1", api_key: demo-key}}
  second:  {{kind: anthropic, base_url: "http://127.0.0.1:{simulator}", api_key: demo-key}}
use_cases:
  support_summary: {{targets: [primary/gpt-5-mini, second/claude-haiku-4-5]}}
models:
  smart:       {{targets: [primary/gpt-5, second/claude-sonnet-4-5]}}
  flaky:       {{targets: [primary/sim-500, second/claude-haiku-4-5], retry: {{attempts: 2, base: 50ms}}}}
default: {{targets: [primary/gpt-5-mini]}}
limits: {{tokens_per_minute: 50000}}
"""

SHOWN_FIELDS = ("x-edgegw-route", "x-edgegw-provider", "x-edgegw-model", "x-edgegw-attempts", "server-timing")
METADATA = {"tenant": "acme", "use_case": "support_summary"}


class DemoError(Exception):
    """The tour cannot go on, in words for whoever takes it."""


def run(port: int, *, once: bool) -> int:
    """The tour. The exit code."""
    with tempfile.TemporaryDirectory(prefix="edgegw-demo-") as folder:
        try:
            with _started(port, Path(folder)) as (port, state_dir):
                _tour(port, state_dir)
                if not once and sys.stdin.isatty() and sys.stdout.isatty():
                    _stay(port, state_dir)
        except (DemoError, OSError, http.client.HTTPException) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 0
    return 0


@contextmanager
def _started(port: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """Simulator and gateway, up and answering; both are gone afterwards."""
    if port and not _is_free(port):
        print(f"Port {port} is taken; the gateway gets another one.")
        port = 0
    port = port or _free_port()
    simulator, admin, state_dir = _free_port(), _free_port(), folder / "state"
    settings = folder / "edgegw.yaml"
    settings.write_text(
        SETTINGS.format(port=port, admin=admin, state_dir=json.dumps(str(state_dir)), simulator=simulator)
    )
    log = folder / "log"
    program = [sys.executable, "-m", "edgegw"]
    commands = (
        [*program, "simulate", "--port", str(simulator), "--pace", PACE, "--seed", "7"],
        [*program, "serve", "--config", str(settings)],
    )
    processes: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as out:
        try:
            processes.extend(subprocess.Popen(command, stdout=out, stderr=out) for command in commands)
            _wait_until_ready(admin, processes, log)
            yield port, state_dir
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def _wait_until_ready(admin: int, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s:
        if any(process.poll() is not None for process in processes):
            break
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=2)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.03)
    raise DemoError(f"the gateway did not start:\n{log.read_text(errors='replace')}")


def _tour(port: int, state_dir: Path) -> None:
    title(1, "A plain request, by use case")
    ask(port, {"messages": [_user("Summarise: the parcel never came.")], "metadata": METADATA})
    title(2, "A streamed request, by model alias, as it arrives")
    ask(port, {"model": "smart", "stream": True, "messages": [_user("Tell me about gateways.")]})
    title(3, "The first provider fails (twice); the second one, of another dialect, answers")
    ask(port, {"model": "flaky", "stream": True, "messages": [_user("Are you still there?")]})
    title(4, "What the ledger has of it: the requests, and every attempt")
    database = state_dir / "edgegw.db"
    _wait_for_rows(database, 5)
    asyncio.run(_show(database, "requests"))
    print()
    asyncio.run(_show(database, "provider_attempts"))


async def _show(database: Path, table: Table) -> None:
    books = SqliteBooks(database, migrations("sqlite"))
    try:
        await show.show(books, table, sys.stdout, chosen=Filter(), limit=20)
    finally:
        await books.close()


def _stay(port: int, state_dir: Path) -> None:
    plain = {"model": "smart", "messages": [_user("Hello")]}
    print(f"""
Everything is still up. In another terminal:

{_curl(port, plain)}

{_curl(port, {**plain, "model": "flaky", "stream": True})}

{_program()} tail --attempts -f --db {state_dir / "edgegw.db"}

Ctrl-C ends it.""")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


# -- one request, shown --


def title(number: int, text: str) -> None:
    print(f"\n{number}. {text}\n", flush=True)


def ask(port: int, body: Mapping[str, object]) -> None:
    """Sends the request; shows it as curl would send it, the answer as it comes, and what the gateway says of it."""
    print(f"{_curl(port, body)}\n")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise DemoError(f"the gateway answered {reply.status}: {reply.read().decode()}")
    for line in _words(reply) if body.get("stream") else [_answer(reply.read())]:
        print(line, end="", flush=True)
    print()
    for name in SHOWN_FIELDS:
        print(f"  {name}: {reply.headers[name]}")
    connection.close()


def _words(reply: http.client.HTTPResponse) -> Iterator[str]:
    """The words of a stream, as they come."""
    finished = False
    for line in reply:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            finished = True
        elif data:
            for choice in json.loads(data)["choices"]:
                yield choice["delta"].get("content") or ""
    if not finished:
        raise DemoError("the stream ended without [DONE]")


def _answer(body: bytes) -> str:
    document = json.loads(body)
    usage = {name: count for name, count in document["usage"].items() if isinstance(count, int)}
    return f"{document['choices'][0]['message']['content']}\n  usage: {json.dumps(usage)}"


def _wait_for_rows(database: Path, attempts: int) -> None:
    until_s = time.monotonic() + ROWS_TIMEOUT_S
    while time.monotonic() < until_s:
        with suppress(NoLedgerError):
            if asyncio.run(_attempts(database, attempts)) >= attempts:
                return
        time.sleep(0.05)
    raise DemoError("the rows did not arrive")


async def _attempts(database: Path, limit: int) -> int:
    books = SqliteBooks(database, migrations("sqlite"))
    try:
        return len(await books.rows(newest("provider_attempts", Filter(), limit)))
    finally:
        await books.close()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _curl(port: int, body: Mapping[str, object]) -> str:
    """The request as one types it, a field a line."""
    fields = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in body.items())
    options = "-sN" if body.get("stream") else "-s"
    return f"curl {options} localhost:{port}/v1/chat/completions -d '{{\n{fields}\n}}'"


def _program() -> str:
    """How this program is called from a shell: not by its bare name when it lies in an environment of its own."""
    own = Path(sys.executable).with_name("edgegw")
    return str(own) if own.is_file() and shutil.which("edgegw") != str(own) else "edgegw"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
