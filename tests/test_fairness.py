"""One tenant floods a provider with few connections; another, through the same gateway, hardly notices."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest
from rig import Simulator, StartGateway, chat, eventually, providers

pytestmark = pytest.mark.system

PLACES = 2
SERVICE_S = 0.1
FLOOD = 60  # three seconds of work


def test_a_flood_of_one_tenant_is_not_the_wait_of_another(simulator: Simulator, gateway: StartGateway) -> None:
    sim = {**providers(simulator)["sim"], "connections_max": PLACES}
    running = gateway({"providers": {"sim": sim}, "default": {"targets": ["sim/sim-latency-100ms"]}})
    model = "sim/sim-latency-100ms"

    def asked(tenant: str) -> float:
        since_s = time.monotonic()
        assert chat(running.url, model, metadata={"tenant": tenant}).status == 200
        return time.monotonic() - since_s

    with ThreadPoolExecutor(FLOOD) as crowd:
        flood = [crowd.submit(asked, "flood") for _ in range(FLOOD)]
        eventually("the flood works", lambda: simulator.count("sim-latency-100ms"), lambda n: n > PLACES, 10)
        took_s = [asked("single") for _ in range(9)]
        unfinished = sum(not one.done() for one in flood)
        slowest_s = max(one.result() for one in flood)
    assert unfinished > 0, "the flood was over too soon to say anything"
    assert slowest_s > FLOOD / PLACES * SERVICE_S
    assert median(took_s) < 3 * SERVICE_S + 0.1  # its own service, two of others, and a busy machine
