"""`edgegw simulate`: the simulator as a process of its own, from the words of a command line to the last connection.

Whatever cannot be done is an error in words for whoever typed the command.
"""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import msgspec
import uvloop

from edgegw.simulator import rules_file, server
from edgegw.simulator.rules import Rules, RulesError, seconds
from edgegw.simulator.stats import Served


class BadOptionError(Exception):
    """An option of the command that cannot be used."""


class ListenError(Exception):
    """The address cannot be had."""


def run(
    host: str,
    port: int,
    *,
    seed: int,
    latency: str,
    pace: str,
    tokens: int,
    rules_path: str | None,
    log_path: str | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM. Raises BadOptionError and ListenError."""
    try:
        latency_s, pace_s = seconds(latency), seconds(pace)
        rules = rules_file.load(rules_path) if rules_path is not None else None
    except RulesError as error:
        raise BadOptionError(str(error)) from None
    try:
        with nullcontext() if log_path is None else _log_to(log_path) as log:
            uvloop.run(_serve(host, port, seed, rules, latency_s, pace_s, tokens, log))
    except OSError as error:
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ListenError(f"cannot listen on {host}:{port}: {why}") from None


@contextmanager
def _log_to(path: str) -> Iterator[server.Log]:
    """Each line leaves us at once: whoever reads the file sees all that has ended."""
    encode = msgspec.json.Encoder().encode
    try:
        file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise BadOptionError(f"cannot write {path}: {error.strerror}") from None
    with file:

        def log(served: Served) -> None:
            file.write(encode(asdict(served)) + b"\n")

        yield log


async def _serve(
    host: str,
    port: int,
    seed: int,
    rules: Rules | None,
    latency_s: float,
    pace_s: float,
    tokens: int,
    log: server.Log | None,
) -> None:
    told_to_go = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_go.set)
    simulator = await server.start(
        host, port, seed=seed, rules=rules, latency_s=latency_s, pace_s=pace_s, tokens=tokens, log=log
    )
    url = simulator.url
    print(f"simulator on {url} (OpenAI at {url}/v1, Anthropic at {url}; help at {url}/simulator/help)", flush=True)
    await told_to_go.wait()
    await simulator.close()
