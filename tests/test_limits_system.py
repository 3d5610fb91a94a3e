"""Limits of real gateways: what a client is told, workers killed under load, and what outlives reloads and restarts."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from operator import le
from pathlib import Path
from typing import Any

import pytest
from rig import Answer, Gateway, Simulator, StartGateway, chat, eventually, providers, start_gateway

pytestmark = pytest.mark.system

PLENTY = 10**9
WAIT_S = 15.0
SOON_S = 1.0  # what a death takes away is back within this
TENANTS = {
    "acme": {"limits": {"requests_per_minute": 3}},
    "beta": {"limits": {"concurrent_requests": 2}},
    "gamma": {"limits": {"tokens_per_day": 500, "tokens_per_month": 1_000_000}},
    "delta": {"models": {"gpt-5*": {"requests_per_minute": 1}}},
}


def settings(simulator: Simulator, tenants: Mapping[str, Any], workers: int = 2) -> dict[str, Any]:
    return {
        "providers": providers(simulator),
        "models": {"*": {"targets": ["sim/*"], "retry": {"attempts": 1}}},
        "limits": {"tokens_per_minute": PLENTY},
        "tenants": tenants,
        "server": {"workers": workers},
    }


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway) -> Gateway:
    return module_gateways(settings(simulator, TENANTS))


def ask(gateway: Gateway, tenant: str, model: str = "good", tokens: int = 5) -> Answer:
    return chat(gateway.url, model, metadata={"tenant": tenant}, max_completion_tokens=tokens)


# -- what a client is told --


def test_requests_per_minute(running: Gateway) -> None:
    answers = [ask(running, "acme") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    told = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert told == ["2", "1", "0", "0"]
    refused = answers[-1]
    assert "Rate limit reached for tenant acme on requests per min (RPM): Limit 3, Used 3." in refused.error["message"]
    assert refused.error["type"] == "requests"
    assert 15 <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["anthropic-ratelimit-requests-limit"] == "3"
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert ask(running, "somebody-else").status == 200


def test_concurrent_requests(running: Gateway) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: ask(running, "beta", "sim-latency-500ms"), range(3)))
    assert sorted(answer.status for answer in answers) == [200, 200, 429]
    refused = next(answer for answer in answers if answer.status == 429)
    assert "tenant beta on concurrent requests: Limit 2, Used 2. Please try again in 1s." in refused.error["message"]
    assert refused.headers["retry-after"] == "1"
    for _ in range(10):  # one after the other is never too many, whichever worker it reaches
        assert ask(running, "beta").status == 200


def test_tokens_per_day(running: Gateway) -> None:
    used = 0
    while (answer := ask(running, "gamma", tokens=20)).status == 200:
        used += answer.json["usage"]["total_tokens"]
    assert answer.status == 429
    assert "tenant gamma on tokens per day (TPD): Limit 500" in answer.error["message"]
    assert 400 < used <= 500
    assert answer.headers["x-should-retry"] == "false"
    left_s = 86_400 - time.time() % 86_400
    assert abs(int(answer.headers["retry-after"]) - left_s) < 5 or left_s < 10
    assert answer.headers["anthropic-ratelimit-tokens-reset"].endswith("T00:00:00Z")
    large = chat(running.url, "good", "x" * 20_000, metadata={"tenant": "gamma"})
    assert (large.status, large.error["code"]) == (413, "request_exceeds_limit")


def test_limits_of_a_model(running: Gateway) -> None:
    assert ask(running, "delta", "gpt-5-mini").status == 200
    refused = ask(running, "delta", "gpt-5-nano")
    assert "tenant delta and model gpt-5* on requests per min" in refused.error["message"]
    assert ask(running, "delta", "gpt-4").status == 200


def used_today(gateway: Gateway, limit: int, used: int) -> int:
    """What the gateway says when it is asked for more than can be left, by a prompt of which nothing is learned yet.
    -1 while its limit is another one."""
    answer = chat(
        gateway.url, "probe", "x" * 4 * (limit - used // 2), metadata={"tenant": "acme"}, max_completion_tokens=1
    )
    assert answer.status in (413, 429), answer.body
    found = re.search(r"tokens per day \(TPD\): Limit (\d+), Used (\d+)", answer.error["message"])
    return int(found[2]) if found is not None and int(found[1]) == limit else -1


# -- workers that are killed --

DAY = 60_000
CLIENTS = 8
DEATHS = 10
RESERVED_MAX = 60  # by one of these requests


class Load:
    """Clients that ask as fast as they are answered, until they are told to stop."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.used = 0
        self.answers: Counter[str] = Counter()
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                answer = ask(self.gateway, "acme")
            except (OSError, HTTPException):
                kind, used = "died", 0  # with the worker that served it
            else:
                used = answer.json["usage"]["total_tokens"] if answer.status == 200 else 0
                kind = str(answer.status) if answer.status == 200 else f"{answer.status} {answer.error['message']}"
                kind = kind.split(":")[0]
            with self._lock:
                self.used += used
                self.answers[kind] += 1
            if kind.startswith("429"):
                time.sleep(0.02)

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(WAIT_S)


@pytest.fixture
def attacked(simulator: Simulator, gateway: StartGateway) -> Iterator[Load]:
    tenants = {"acme": {"limits": {"tokens_per_day": DAY, "concurrent_requests": CLIENTS}}}
    load = Load(gateway(settings(simulator, tenants)))
    yield load
    load.end()


def test_ten_kills_of_workers_lose_nothing_and_admit_nothing_twice(attacked: Load) -> None:
    gateway = attacked.gateway
    for number in range(DEATHS):
        seen = attacked.answers["200"]
        eventually("requests pass", lambda: attacked.answers["200"], partial(le, seen + 30), WAIT_S)
        pids = eventually("two workers", gateway.worker_pids, lambda pids: len(set(pids)) == 2, WAIT_S)
        os.kill(pids[number % 2], signal.SIGKILL)
    seen = attacked.answers["200"]
    eventually("requests pass", lambda: attacked.answers["200"], lambda n: n >= seen + 100, WAIT_S)
    attacked.end()
    died = attacked.answers["died"]
    assert attacked.used < DAY, "else it was used up before the last death"

    # All slots are there again: so many slow requests at once.
    slow_used = 0

    def slow_at_once() -> list[int]:
        nonlocal slow_used
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda _: ask(gateway, "acme", "sim-latency-300ms"), range(CLIENTS)))
        slow_used += sum(answer.json["usage"]["total_tokens"] for answer in answers if answer.status == 200)
        return [answer.status for answer in answers]

    statuses = eventually("all slots", slow_at_once, lambda statuses: statuses == [200] * CLIENTS, SOON_S)
    assert statuses == [200] * CLIENTS
    # And all tokens: what is used is what clients were told, and what was reserved for requests that died.
    time.sleep(SOON_S)
    used = attacked.used + slow_used
    told = used_today(gateway, DAY, used)
    print(f"used {used} of {DAY}, told {told}; {died} requests died with {DEATHS} workers: {attacked.answers}")
    assert used <= told <= used + died * RESERVED_MAX


# -- reloads and restarts --


def test_a_days_usage_outlives_kills_reloads_and_restarts(simulator: Simulator, tmp_path: Path) -> None:
    limit = 10_000
    planned = settings(simulator, {"acme": {"limits": {"tokens_per_day": limit}}})
    used = 0

    def use(gateway: Gateway) -> None:
        nonlocal used
        for _ in range(10):
            answer = ask(gateway, "acme")
            assert answer.status == 200
            used += answer.json["usage"]["total_tokens"]

    def known(gateway: Gateway, limit: int = limit) -> None:
        eventually(
            "what was used is known", lambda: used_today(gateway, limit, used), lambda told: told == used, WAIT_S
        )

    first = start_gateway(tmp_path, planned)
    try:
        use(first)
        known(first)
        # The control process is killed. What it wrote is at most a second old, and the workers remember the rest; what
        # others had in hand when they last heard is lost.
        control = first.control_pid()
        os.kill(control, signal.SIGKILL)
        eventually("another", first.control_pid, lambda pid: pid not in (0, control), WAIT_S)
        use(first)
        time.sleep(SOON_S)
        told = used_today(first, limit, used)
        assert used <= told <= used + 2 * limit // 50 + RESERVED_MAX
        used = told
        # A reload, with another limit.
        limit = 12_000
        planned["tenants"]["acme"]["limits"]["tokens_per_day"] = limit
        file = tmp_path / "edgegw.yaml"
        filled = json.loads(file.read_text())
        filled["tenants"] = planned["tenants"]
        file.write_text(json.dumps(filled))
        before = set(first.worker_pids())
        os.kill(first.pid, signal.SIGHUP)
        eventually("new workers", lambda: set(first.worker_pids()), lambda now: not now & before, WAIT_S)
        known(first, limit)
        use(first)
        known(first, limit)
        assert first.stop()[0] == 0
    finally:
        first.running.end()
    second = start_gateway(tmp_path, planned)
    try:
        known(second, limit)
        use(second)
        known(second, limit)
    finally:
        second.running.end()
