"""A running gateway whose journal has no room, or whose state directory goes away: the policy, what /readyz and the
metrics say of it, and that it ends by itself."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgres_rig import can_mount
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


def rows_in(path: Path) -> list[str]:
    """The states of all requests in a database, none while it is being made."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return [state for (state,) in connection.execute("SELECT state FROM requests")]
    except sqlite3.OperationalError:
        return []


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
        "sync": "none",
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
    eventually("both rows", lambda: rows_in(tmp_path / "books.db"), lambda found: len(found) == 2, WAIT_S)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_directory_that_was_deleted_is_begun_anew(
    simulator: Simulator, gateway: StartGateway, tmp_path: Path, policy: str
) -> None:
    running = gateway(settings(simulator, policy, database_url=f"sqlite:///{tmp_path}/books.db"))
    assert chat(running.url, "good").status == 200
    eventually("the row", lambda: rows_in(tmp_path / "books.db"), lambda found: len(found) == 1, WAIT_S)
    shutil.rmtree(running.state_dir)
    eventually("trouble", lambda: journal(running), lambda told: told["state"] == "failing", WAIT_S)
    running.state_dir.mkdir()
    eventually("no trouble", lambda: journal(running), lambda told: told["state"] == "ok", WAIT_S)
    assert chat(running.url, "good").status == 200
    eventually("the second row", lambda: rows_in(tmp_path / "books.db"), lambda found: len(found) == 2, WAIT_S)
    assert "what of them was not shipped is lost" in running.running.said
    assert "Traceback" not in running.running.said


@pytest.mark.parametrize("sync", ["none", "interval", "always"])
def test_requests_wait_for_the_disk_and_end_as_ever(simulator: Simulator, gateway: StartGateway, sync: str) -> None:
    wanted = settings(simulator, "refuse")
    wanted["storage"]["journal"] |= {"sync": sync, "sync_interval": "50ms"}
    wanted["models"] |= {"bad": {"targets": ["sim/sim-500", "claude/good"]}}
    running = gateway(wanted)
    answers = [chat(running.url, "good", stream=number % 2 == 0).status for number in range(6)]
    assert answers == [200] * 6
    assert chat(running.url, "bad").status == 200
    assert chat(running.url, "nobody knows it").status == 404
    rows = running.rows("requests", lambda rows: len(rows) == 8)
    assert sorted(row["state"] for row in rows) == ["complete"] * 7 + ["refused"]
    told = journal(running)
    assert (told["sync"], told["state"]) == (sync, "ok")
    assert metric(running, 'edgegw_journal_sync_errors_total{kind="round"}') == 0
    assert metric(running, 'edgegw_journal_sync_errors_total{kind="wait"}') == 0
    code, said = running.stop()
    assert code == 0
    assert "Traceback" not in said


def serve(place: Path, state_dir: Path) -> subprocess.CompletedProcess[str]:
    """A gateway that is expected to end by itself."""
    environment = {
        "EDGEGW_STATE_DIR": str(state_dir),
        "OPENAI_API_KEY": "sk-x",
        "PORT": str(free_port()),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.run(SERVE, env=environment, cwd=place, capture_output=True, text=True, timeout=WAIT_S)


def test_a_state_directory_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = serve(tmp_path, tmp_path / "file" / "state")
    assert ended.returncode == 1
    assert "cannot use the state directory" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for two segments and a half."""
    if not can_mount():
        pytest.skip("nothing can be mounted here")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_without_room_ends_in_the_policy_until_it_has_some(
    simulator: Simulator, gateway: StartGateway, small_disk: Path, tmp_path: Path
) -> None:
    wanted = settings(simulator, "drop", database_url=f"sqlite:///{tmp_path}/books.db")
    wanted["server"] = {"state_dir": str(small_disk / "state")}
    wanted["storage"]["journal"]["segment"] = "1MiB"
    (small_disk / "ballast").write_bytes(bytes(1_400_000))  # one segment fits, the next does not
    running = gateway(wanted)
    told = eventually("trouble", lambda: journal(running), lambda told: told["state"] == "full", WAIT_S)
    assert (told["reason"], told["ready"]) == ("the disk is full", True)
    assert chat(running.url, "good").status == 200
    eventually("it is dropped", lambda: journal(running), lambda told: told["dropped"] == 1, WAIT_S)
    (small_disk / "ballast").unlink()
    eventually("no trouble", lambda: journal(running), lambda told: told["state"] == "ok", WAIT_S)
    assert chat(running.url, "good").status == 200
    eventually("its row", lambda: rows_in(tmp_path / "books.db"), lambda found: found == ["complete"], WAIT_S)
    code, said = running.stop()
    assert code == 0
    assert "Traceback" not in said


@pytest.mark.parametrize("policy", POLICIES)
def test_a_disk_that_becomes_read_only_ends_in_the_policy_also_for_workers_that_start_then(
    simulator: Simulator, gateway: StartGateway, small_disk: Path, tmp_path: Path, policy: str
) -> None:
    """A file system with files open for writing cannot be made read-only, but another one can lie over it."""
    wanted = settings(simulator, policy, database_url=f"sqlite:///{tmp_path}/books.db")
    wanted["server"] = {"state_dir": str(small_disk / "state")}
    wanted["storage"]["journal"]["segment"] = "1MiB"
    running = gateway(wanted)
    assert chat(running.url, "good").status == 200
    eventually("its row", lambda: rows_in(tmp_path / "books.db"), lambda found: found == ["complete"], WAIT_S)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(small_disk / "state")], check=True)
    try:
        told = eventually("trouble", lambda: journal(running), lambda told: told["state"] == "failing", WAIT_S)
        assert told["reason"] == "the disk is read-only"
        assert chat(running.url, "good").status == (503 if policy == "refuse" else 200)
    finally:
        subprocess.run(["umount", str(small_disk / "state")], check=True)
    eventually("no trouble", lambda: journal(running), lambda told: told["state"] == "ok", WAIT_S)
    assert chat(running.url, "good").status == 200
    eventually("its row", lambda: rows_in(tmp_path / "books.db"), lambda found: len(found) == 2, WAIT_S)
    code, said = running.stop()
    assert code == 0
    assert "Traceback" not in said


def test_a_read_only_disk_is_said_at_the_start(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = serve(tmp_path, small_disk / "state")
    assert ended.returncode == 1
    assert "cannot use the state directory" in ended.stderr
    assert "Read-only file system" in ended.stderr
    assert "Traceback" not in ended.stderr
