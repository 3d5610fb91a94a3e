"""`edgegw ledger verify` on real gateways: right under load, and after whatever was killed; wrong when one row is."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from postgres_rig import Database
from rig import REPOSITORY, Gateway, Simulator, StartGateway, chat, eventually, providers

pytestmark = pytest.mark.system

MODELS = ("gpt-5-mini", "sim-500", "gpt-5-nano")
CLIENTS = 4


def settings(simulator: Simulator, **storage: Any) -> dict[str, Any]:
    return {
        "server": {"workers": 2},
        "providers": providers(simulator),
        "models": {"*": {"targets": ["sim/*"], "retry": {"attempts": 2, "base": "1ms"}}},
        "limits": {"tokens_per_minute": 100_000_000},
        "storage": storage,
    }


@pytest.fixture(params=["sqlite", "postgres"])
def running(request: pytest.FixtureRequest, simulator: Simulator, gateway: StartGateway) -> tuple[Gateway, str]:
    """A gateway, and the `--db` of its books. They are there; its first answers do not wait for that."""
    if request.param == "sqlite":
        house = gateway(settings(simulator))
        db = str(house.state_dir / "edgegw.db")
    else:
        database: Database = request.getfixturevalue("postgres")
        house, db = gateway(settings(simulator, database_url=database.dsn)), database.dsn
    eventually("there are books", lambda: command(house, db).returncode, lambda code: code == 0, 20)
    return house, db


def command(house: Gateway, db: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "EDGEGW_STATE_DIR": str(house.state_dir)}
    words = [sys.executable, "-m", "edgegw", "ledger", "verify", "--json", "--db", db]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, cwd=house.state_dir.parent)


def verify(house: Gateway, db: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    done = command(house, db)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


@contextmanager
def load(house: Gateway) -> Iterator[list[int]]:
    """Plain and streamed requests from several clients; the list counts those that were answered."""
    over = threading.Event()
    answered: list[int] = []

    def client(number: int) -> None:
        turn = number
        while not over.is_set():
            turn += 1
            try:
                answered.append(chat(house.url, MODELS[turn % len(MODELS)], stream=turn % 2 == 0).status)
            except OSError:
                time.sleep(0.02)
            except Exception:  # a reply that was cut
                pass

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in clients:
            thread.join()


def right(house: Gateway, db: str) -> dict[str, Any]:
    code, report = verify(house, db)
    assert (code, report["findings"]) == (0, [])
    return report


def test_right_under_load_and_after_each_kill(running: tuple[Gateway, str]) -> None:
    house, db = running
    with load(house) as answered:
        eventually("some answers", lambda: len(answered), lambda count: count > 50, 20)
        right(house, db)
        for which in ("worker", "control process", "worker"):
            os.kill(house.worker_pids()[0] if which == "worker" else house.control_pid(), signal.SIGKILL)
            right(house, db)
            time.sleep(0.5)
            right(house, db)
    report = eventually("all is shipped", lambda: right(house, db), lambda told: told["compared"]["waiting"] < 20, 20)
    assert report["compared"]["requests"] >= len(answered)


def test_right_after_all_was_killed_and_after_the_next_start(
    running: tuple[Gateway, str], gateway: StartGateway
) -> None:
    house, db = running
    with load(house) as answered:
        eventually("some answers", lambda: len(answered), lambda count: count > 50, 20)
        os.killpg(house.pid, signal.SIGKILL)
        house.running.wait()
    report = right(house, db)
    assert report["compared"]["lives"] == 2
    server = {"workers": 2, "state_dir": str(house.state_dir)}
    again = gateway({**house.settings, "server": server})
    again.state_dir = house.state_dir
    assert chat(again.url, MODELS[0]).status == 200
    eventually("the old lives are closed", lambda: right(again, db)["compared"]["lives"], lambda lives: lives == 2, 20)
    again.stop()
    report = right(again, db)
    assert report["compared"]["requests"] > len(answered)
    assert (report["compared"].get("waiting", 0), report["notes"]) == (0, [])


def test_wrong_when_one_row_is_gone(simulator: Simulator, gateway: StartGateway) -> None:
    house = gateway(settings(simulator))
    db = str(house.state_dir / "edgegw.db")
    for _ in range(5):
        assert chat(house.url, MODELS[0]).status == 200
    house.rows("requests", lambda rows: len(rows) == 5)
    right(house, db)
    with closing(sqlite3.connect(db)) as books, books:
        books.execute("DELETE FROM requests WHERE id = (SELECT min(id) FROM requests)")
    code, report = verify(house, db)
    assert code == 1
    assert {"row missing", "attempt without request", "sums"} <= report["counts"].keys()


def test_nothing_to_look_at_is_not_all_right(simulator: Simulator, gateway: StartGateway) -> None:
    house = gateway(settings(simulator))
    words = [sys.executable, "-m", "edgegw", "ledger", "verify", "--db", "nowhere.db"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "EDGEGW_STATE_DIR": str(house.state_dir)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, cwd=house.state_dir.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no ledger at nowhere.db" in done.stderr
