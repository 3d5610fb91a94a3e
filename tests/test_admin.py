"""The admin port of a running gateway: alive, ready, and metrics that agree with the rows."""

from __future__ import annotations

import re

import pytest
from rig import Simulator, StartGateway, ask, chat, eventually, providers

pytestmark = pytest.mark.system

WAIT_S = 15.0
_SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


def test_what_the_admin_port_says(simulator: Simulator, gateway: StartGateway) -> None:
    once = {"attempts": 1}
    running = gateway(
        {
            "providers": providers(simulator),
            "models": {
                "good": {"targets": ["sim/good"]},
                "bad": {"targets": ["sim/sim-500"], "retry": once},
            },
        }
    )

    def metrics() -> dict[str, float]:
        page = ask(running.admin_url, "GET", "/metrics")
        assert page.status == 200
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        return {name: float(value) for name, value in _SAMPLE.findall(page.body.decode())}

    assert ask(running.admin_url, "GET", "/livez").status == 200
    ready = ask(running.admin_url, "GET", "/readyz")
    assert (ready.status, ready.json["workers"]) == (200, {"wanted": 1, "connected": 1})
    assert ask(running.admin_url, "GET", "/v1/models").status == 404

    assert chat(running.url, "good").status == 200
    assert {chat(running.url, "bad").status for _ in range(5)} == {502}
    rows = len(running.rows("requests", lambda rows: len(rows) == 6)) + len(running.rows("provider_attempts"))

    told = eventually("the rows and the vitals", metrics, lambda told: told["edgegw_ledger_rows_total"] == rows, WAIT_S)
    assert told["edgegw_ledger_errors_total"] == told["edgegw_ledger_interrupted_total"] == 0
    assert told["edgegw_ledger_lag_seconds"] < WAIT_S
    assert told["edgegw_journal_bytes"] > 0
    counted = [told[name] for name in told if name.startswith("edgegw_requests_total")]
    assert sorted(counted) == [1, 5]

    name = 'edgegw_breakers_open{worker="0"}'
    told = eventually("the breaker of the target that failed", metrics, lambda told: told.get(name) == 1, WAIT_S)
    assert told['edgegw_worker_resident_memory_bytes{worker="0"}'] > 1 << 20
