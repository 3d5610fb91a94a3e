"""What to simulate."""

from __future__ import annotations

from dataclasses import dataclass

from edgegw.settings.model import WithoutRedis
from load.limits_simulation.traffic import ZIPF

STARTED_S = 2.0  # by then all replicas are there and have seen each other; then requests come


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate. Faults are rates per minute of the whole fleet, but for `redis_away` and `partition`: seconds
    at a time."""

    seed: int = 1
    replicas: int = 10
    workers: int = 1
    tenants: int = 100
    requests_s: float = 100.0
    zipf: float = ZIPF
    only: str = ""  # of the classes of tenants (traffic.py)
    minutes: float = 2.0
    warm_s: float = 20.0
    worker_crashes: float = 0.0
    replica_deaths: float = 0.0
    control_crashes: float = 0.0
    clock_jumps: float = 0.0
    partition_share: float = 0.0  # of the replicas, once a minute
    partition_s: float = 0.0
    redis_away_s: float = 0.0  # once a minute, killed, data kept
    redis_loses_data: bool = False
    packets_lost: float = 0.0  # share of those between replicas and Redis
    redis_slow_s: float = 0.0  # added to each way, always
    without_redis: WithoutRedis = "local"
    record: int = 0  # calls to keep for replay.py
