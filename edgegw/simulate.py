"""`edgegw simulate`: the simulator as a process of its own."""

from __future__ import annotations

import asyncio
import signal

import uvloop

from edgegw.simulator import rules_file, server
from edgegw.simulator.rules import Rules, RulesError, seconds


class BadOptionError(Exception):
    """An option of the command that cannot be used, in words for its user."""


def run(host: str, port: int, *, seed: int, latency: str, pace: str, tokens: int, rules_file: str | None) -> None:
    """Serves until SIGINT or SIGTERM."""
    try:
        latency_s, pace_s = seconds(latency), seconds(pace)
        rules = _rules(rules_file)
    except RulesError as error:
        raise BadOptionError(str(error)) from None
    try:
        uvloop.run(_serve(host, port, seed, rules, latency_s, pace_s, tokens))
    except OSError as error:
        raise BadOptionError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _rules(path: str | None) -> Rules | None:
    return rules_file.load(path) if path is not None else None


async def _serve(
    host: str, port: int, seed: int, rules: Rules | None, latency_s: float, pace_s: float, tokens: int
) -> None:
    told_to_go = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_go.set)
    simulator = await server.start(
        host, port, seed=seed, rules=rules, latency_s=latency_s, pace_s=pace_s, tokens=tokens
    )
    print(
        f"simulator on {simulator.url} (OpenAI at {simulator.url}/v1; help at {simulator.url}/simulator/help)",
        flush=True,
    )
    await told_to_go.wait()
    await simulator.close()
