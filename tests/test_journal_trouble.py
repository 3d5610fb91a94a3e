"""A running gateway whose journal has no room, or whose state directory goes away: the policy, what /readyz and the
metrics say of it, and that it ends by itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ledger_traces import states
from rig import SERVE, Gateway, Simulator, StartGateway, ask, chat, eventually, free_port, providers

pytestmark = pytest.mark.system

WAIT_S = 15.0
POLICIES = ("refuse", "drop")


def settings(simulator: Simulator, policy: str, **storage: str) -> dict[str, Any]:
    return {
        "providers": providers(simulator),
        "models": {"good": {"targets": ["sim/good"]}},
        "storage": {"journal": {"when_full": policy}, **storage},
    }


def journal(running: Gateway) -> dict[str, Any]:
    told = ask(running.admin_url, "GET", "/readyz")
    return {"ready": told.status == 200, **told.json["journal"]}


def metric(running: Gateway, name: str) -> float:
    page = ask(running.admin_url, "GET", "/metrics").body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_directory_that_is_away_ends_in_the_policy_and_comes_back(
    simulator: Simulator, gateway: StartGateway, tmp_path: Path, policy: str
) -> None:
    running = gateway(settings(simulator, policy, database_url=f"sqlite:///{tmp_path}/books.db"))
    assert chat(running.url, "good").status == 200
    assert eventually("all is well", lambda: journal(running), lambda told: told["bytes"] > 0, WAIT_S) == {
        "ready": True,
        "state": "ok",
        "policy": policy,
        "bytes": 2 * (8 << 20),
        "bytes_max": 1 << 30,
        "dropped": 0,
        "dropped_refusals": 0,
        "lost_records": 0,
    }
    away = running.state_dir.with_name("away")
    running.state_dir.rename(away)
    told = eventually("trouble", lambda: journal(running), lambda told: told["state"] == "failing", WAIT_S)
    assert told["reason"] == "the state directory is gone"
    assert told["ready"] is (policy == "drop")
    assert metric(running, 'edgegw_journal_trouble{state="failing"}') == 1
    answers = [chat(running.url, "good").status for _ in range(3)]
    assert answers == [503 if policy == "refuse" else 200] * 3
    kind = "refusal" if policy == "refuse" else "exchange"
    name = f'edgegw_journal_dropped_total{{kind="{kind}"}}'
    eventually("what was dropped", lambda: metric(running, name), lambda dropped: dropped == 3, WAIT_S)
    away.rename(running.state_dir)
    told = eventually("no trouble", lambda: journal(running), lambda told: told["state"] == "ok", WAIT_S)
    assert told["ready"]
    assert chat(running.url, "good").status == 200
    eventually("both rows", lambda: states(tmp_path / "books.db"), lambda found: len(found) == 2, WAIT_S)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_directory_that_was_deleted_is_begun_anew(
    simulator: Simulator, gateway: StartGateway, tmp_path: Path, policy: str
) -> None:
    running = gateway(settings(simulator, policy, database_url=f"sqlite:///{tmp_path}/books.db"))
    assert chat(running.url, "good").status == 200
    eventually("the row", lambda: states(tmp_path / "books.db"), lambda found: len(found) == 1, WAIT_S)
    shutil.rmtree(running.state_dir)
    eventually("trouble", lambda: journal(running), lambda told: told["state"] == "failing", WAIT_S)
    running.state_dir.mkdir()
    eventually("no trouble", lambda: journal(running), lambda told: told["state"] == "ok", WAIT_S)
    assert chat(running.url, "good").status == 200
    eventually("the second row", lambda: states(tmp_path / "books.db"), lambda found: len(found) == 2, WAIT_S)
    assert "what of them was not shipped is lost" in running.running.said
    assert "Traceback" not in running.running.said


def test_a_state_directory_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {
        "EDGEGW_STATE_DIR": str(tmp_path / "file" / "state"),
        "OPENAI_API_KEY": "sk-x",
        "PORT": str(free_port()),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    ended = subprocess.run(SERVE, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
    assert ended.returncode == 1
    assert "cannot use the state directory" in ended.stderr
    assert "Traceback" not in ended.stderr
