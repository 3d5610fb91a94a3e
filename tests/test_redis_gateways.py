"""Two whole gateways that share a Redis: one limit for both, and what an operator sees when it is away."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from redis_rig import House
from rig import Gateway, Simulator, StartGateway, ask, chat, eventually, providers

pytestmark = pytest.mark.system

_SAMPLE = re.compile(r"^(edgegw_redis_\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def limits(gateway: Gateway) -> dict[str, object]:
    told = ask(gateway.admin_url, "GET", "/readyz")
    assert told.status == 200, "Redis makes nobody unready"
    found = told.json["limits"]
    assert isinstance(found, dict)
    return found


def metrics(gateway: Gateway) -> dict[str, float]:
    page = ask(gateway.admin_url, "GET", "/metrics").body.decode()
    return {name: float(value) for name, value in _SAMPLE.findall(page)}


def test_two_gateways_share_one_limit_and_go_on_without_redis(
    simulator: Simulator, gateway: StartGateway, redises: House
) -> None:
    redis = redises.redis("--requirepass", "hush-hush", login=("hush-hush",))
    settings = {
        "providers": providers(simulator),
        "models": {"good": {"targets": ["sim/good"]}},
        "limits": {"tokens_per_minute": 1_000_000, "tokens_per_day": 1_000_000, "requests_per_minute": 20},
        "storage": {"redis_url": f"redis://:hush-hush@127.0.0.1:{redis.port}"},
    }
    one, other = gateway(settings), gateway(settings)
    both = lambda: [limits(one)["replicas"], limits(other)["replicas"]]  # noqa: E731
    eventually("they see each other", both, lambda seen: seen == [2, 2], 5)
    assert limits(one) == {"authority": "redis", "state": "exact", "replicas": 2, "away_seconds": 0}

    statuses = [chat(one.url if number % 2 else other.url, "good").status for number in range(26)]
    assert 20 <= statuses.count(200) <= 22, "and what a few seconds refill"
    assert set(statuses) == {200, 429}
    told = metrics(one)
    assert told["edgegw_redis_calls_total"] > 5
    assert told["edgegw_redis_operations_total"] >= told["edgegw_redis_calls_total"]
    assert told["edgegw_redis_call_seconds_total"] > 0
    assert (told["edgegw_redis_away"], told["edgegw_redis_replicas"]) == (0, 2)

    redis.kill()
    eventually("it is away", lambda: limits(one)["state"], lambda state: state == "away", 5)
    assert chat(one.url, "good").status in (200, 429)
    assert metrics(one)["edgegw_redis_away"] == 1
    assert metrics(one)['edgegw_redis_failures_total{kind="connection"}'] >= 1
    redis.start()
    eventually("it is back", lambda: limits(one)["state"], lambda state: state == "exact", 5)
    for running in (one, other):
        code, said = running.stop()
        assert code == 0
        assert said.count("Redis is away") == said.count("Redis is back") == 1
        assert "Traceback" not in said
        assert "hush-hush" not in said
    assert redis.do("ZCARD", "edgegw:replicas") == 0, "who leaves says so"


def test_without_redis_no_redis_client_is_loaded() -> None:
    look = "import sys, edgegw.app; print([name for name in sys.modules if 'redis' in name])"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "['edgegw.settings.redis_address']"
