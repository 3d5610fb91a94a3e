"""Two real gateways and one PostgreSQL: one is killed with records that nobody has shipped, the other ships them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from postgres_rig import Database
from rig import Gateway, Simulator, StartGateway, ask, chat, eventually, providers

pytestmark = pytest.mark.system

WAIT_S = 20.0


def adopted(running: Gateway) -> dict[str, Any]:
    told = ask(running.admin_url, "GET", "/readyz").json["adoption"]
    assert isinstance(told, dict)
    return told


def test_what_a_killed_gateway_has_left_is_stored_by_another(
    postgres: Database, simulator: Simulator, gateway: StartGateway
) -> None:
    settings = {
        "providers": providers(simulator),
        "models": {"*": {"targets": ["sim/*"]}},
        "storage": {"database_url": postgres.dsn},
    }
    gone = gateway(settings)
    assert chat(gone.url, "gpt-5-mini").status == 200
    eventually("a row", lambda: count(postgres), lambda rows: rows == 1, WAIT_S)
    os.kill(gone.control_pid(), signal.SIGSTOP)  # nothing is shipped any more
    for _ in range(10):
        assert chat(gone.url, "gpt-5-mini").status == 200
    os.killpg(gone.pid, signal.SIGKILL)
    assert count(postgres) == 1
    heir = gateway(settings | {"storage": {"database_url": postgres.dsn, "journal": {"adopt": [pattern(gone)]}}})
    eventually("all rows", lambda: count(postgres), lambda rows: rows == 11, WAIT_S)
    told = eventually("adopted", lambda: adopted(heir), lambda told: told["journals"] == 1, WAIT_S)
    assert told == {"state": "idle", "journals": 1, "rows": 20, "failures": 0}
    assert "edgegw_adopted_rows_total 20" in ask(heir.admin_url, "GET", "/metrics").body.decode()
    assert postgres.value("SELECT sum(requests) FROM usage_hours") == 11
    assert postgres.value("SELECT count(*) FROM provider_attempts") == 11
    assert postgres.value("SELECT count(*) FROM open_exchanges") == 0
    assert not list((gone.state_dir / "journal").iterdir())
    assert chat(heir.url, "gpt-5-mini").status == 200
    eventually("its own row", lambda: count(postgres), lambda rows: rows == 12, WAIT_S)
    assert postgres.value("SELECT count(DISTINCT journal) FROM usage_hours") == 2
    code, said = heir.stop()
    assert code == 0
    assert "Traceback" not in said


def pattern(gone: Gateway) -> str:
    return str(Path(gone.state_dir).parent / "sta*")


def count(database: Database) -> int:
    if database.value("SELECT to_regclass('requests')::text") is None:
        return 0
    return int(database.value("SELECT count(*) FROM requests"))
