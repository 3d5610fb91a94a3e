"""Real processes for the acceptance programs: gateways that share one Redis, and the simulated provider behind them.

The rig is that of the tests (tests/rig.py, tests/redis_rig.py): the same processes, started the same way, whether
pytest or a person at a terminal wants them. Everything ends with the `with` block.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from postgres_rig import Database, Postgres, PostgresHouse, can_mount
from redis_rig import HOST, House, Redis, Sentinels, Slow
from rig import CLIENT_KEY, REPOSITORY, Gateway, Simulator, ask, eventually, start_gateway, start_simulator

__all__ = [
    "CLIENT_KEY",
    "HOST",
    "REPOSITORY",
    "Database",
    "Gateway",
    "Ground",
    "House",
    "Plane",
    "Postgres",
    "PostgresHouse",
    "Redis",
    "Sentinels",
    "Simulator",
    "Slow",
    "ask",
    "can_mount",
    "credential",
    "digest",
    "eventually",
    "ground",
    "plane",
    "port_of",
    "settings",
    "start_gateway",
    "start_simulator",
    "started",
]


def credential(tenant: str) -> str:
    """The key of a tenant in these programs."""
    return f"key-of-{tenant}"


def digest(text: str) -> str:
    return f"sha256:{sha256(text.encode()).hexdigest()}"


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


def settings(
    simulator: Simulator,
    tenants: Mapping[str, Mapping[str, Any]],
    *,
    redis_url: str | None = None,
    workers: int = 1,
    **more: Any,
) -> dict[str, Any]:
    """A gateway with `auth: keys`; `tenants` as in the settings, a key for each is added. Every model is the
    simulator's."""
    provider = {
        "kind": "openai-compatible",
        "base_url": f"{simulator.url}/v1",
        "api_key": "sk-provider-key",
        "timeouts": {"connect": "5s", "first_byte": "30s", "idle": "30s"},
    }
    return {
        "version": 1,
        "auth": "keys",
        "server": {"workers": workers},
        "providers": {"sim": provider},
        "models": {"*": {"targets": ["sim/*"]}},
        "default": {"targets": ["sim/gpt-5-mini"]},
        "tenants": {name: {"keys": {"own": digest(credential(name))}, **tenant} for name, tenant in tenants.items()},
        **({"storage": {"redis_url": redis_url}} if redis_url is not None else {}),
        **more,
    }


@contextlib.contextmanager
def started(directory: Path, wanted: list[dict[str, Any]]) -> Iterator[list[Gateway]]:
    """A gateway for each of the settings, started side by side, each with a directory of its own."""

    def start(number: int) -> Gateway:
        own = directory / f"gateway-{number}"
        own.mkdir(parents=True)
        return start_gateway(own, wanted[number])

    with ThreadPoolExecutor(len(wanted)) as threads:
        starts = [threads.submit(start, number) for number in range(len(wanted))]
    gateways = [start.result() for start in starts if start.exception() is None]
    try:
        for failed in starts:
            failed.result()
        yield gateways
    finally:
        for gateway in gateways:
            gateway.running.end()


@dataclass(slots=True)
class Plane:
    """Gateways that share a Redis."""

    gateways: list[Gateway]
    simulator: Simulator
    redis: Redis

    @property
    def ports(self) -> list[int]:
        return [port_of(gateway) for gateway in self.gateways]


@dataclass(slots=True)
class Ground:
    """What gateways stand on: a directory, a simulator, and where Redis servers are started."""

    directory: Path
    simulator: Simulator
    redises: House


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    with tempfile.TemporaryDirectory(prefix="edgegw-load-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        simulator = start_simulator(directory)
        stack.callback(simulator.running.end)
        house = House(directory)
        stack.callback(house.end)
        yield Ground(directory, simulator, house)


@contextlib.contextmanager
def plane(tenants: Mapping[str, Mapping[str, Any]], replicas: int, **more: Any) -> Iterator[Plane]:
    """`replicas` gateways, a fresh Redis and a simulator."""
    with ground() as under:
        redis = under.redises.redis()
        each = settings(under.simulator, tenants, redis_url=redis.url, **more)
        with started(under.directory, [each] * replicas) as gateways:
            yield Plane(gateways, under.simulator, redis)
