"""`edgegw simulate`: the simulator as a process of its own, from the words of a command line to the last connection.

Whatever cannot be done is an error in words for whoever typed the command.
"""

from __future__ import annotations

import asyncio
import errno
import signal

import uvloop

from edgegw.simulator import rules_file, server
from edgegw.simulator.rules import Rules, RulesError, seconds


class BadOptionError(Exception):
    """An option of the command that cannot be used."""


class ListenError(Exception):
    """The address cannot be had."""


def run(host: str, port: int, *, seed: int, latency: str, pace: str, tokens: int, rules_path: str | None) -> None:
    """Serves until SIGINT or SIGTERM. Raises BadOptionError and ListenError."""
    try:
        latency_s, pace_s = seconds(latency), seconds(pace)
        rules = rules_file.load(rules_path) if rules_path is not None else None
    except RulesError as error:
        raise BadOptionError(str(error)) from None
    try:
        uvloop.run(_serve(host, port, seed, rules, latency_s, pace_s, tokens))
    except OSError as error:
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ListenError(f"cannot listen on {host}:{port}: {why}") from None


async def _serve(
    host: str, port: int, seed: int, rules: Rules | None, latency_s: float, pace_s: float, tokens: int
) -> None:
    told_to_go = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_go.set)
    simulator = await server.start(
        host, port, seed=seed, rules=rules, latency_s=latency_s, pace_s=pace_s, tokens=tokens
    )
    url = simulator.url
    print(f"simulator on {url} (OpenAI at {url}/v1, Anthropic at {url}; help at {url}/simulator/help)", flush=True)
    await told_to_go.wait()
    await simulator.close()
