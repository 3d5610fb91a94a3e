"""A real gateway that keeps its books in a real PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
from postgres_rig import Database, PostgresHouse
from rig import Gateway, Simulator, StartGateway, ask, chat, eventually, providers

pytestmark = pytest.mark.system


def settings(simulator: Simulator, database_url: str, **storage: Any) -> dict[str, Any]:
    return {
        "providers": providers(simulator),
        "models": {"*": {"targets": ["sim/*"]}},
        "storage": {"database_url": database_url, **storage},
    }


def count(database: Database, table: str = "requests") -> int:
    if database.value(f"SELECT to_regclass('{table}')::text") is None:
        return 0
    return int(database.value(f"SELECT count(*) FROM {table}"))


def state_of(gateway: Gateway) -> str:
    return str(ask(gateway.admin_url, "GET", "/readyz").json["ledger"]["state"])


def test_rows_arrive_in_postgresql_and_after_a_restart_none_is_there_twice(
    postgres: Database, simulator: Simulator, gateway: StartGateway
) -> None:
    running = gateway(settings(simulator, postgres.dsn, retention="90d"))
    for _ in range(20):
        assert chat(running.url, "gpt-5-mini").status == 200
    chat(running.url, "gpt-5-mini", stream=True)
    eventually("21 rows", lambda: count(postgres), lambda rows: rows == 21, 15)
    assert count(postgres, "provider_attempts") == 21
    (usage,) = postgres.rows("SELECT sum(requests) AS requests, sum(input_tokens) AS input FROM usage_hours")
    assert usage["requests"] == 21
    assert usage["input"] == postgres.value("SELECT sum(input_tokens) FROM provider_attempts")
    assert not (running.state_dir / "edgegw.db").exists()
    assert state_of(running) == "ok"
    chat(running.url, "gpt-5-mini")
    code, said = running.stop()
    assert code == 0, said
    assert count(postgres) == 22
    assert "Traceback" not in said


def test_while_postgresql_is_away_requests_are_served_and_their_rows_come_later(
    postgreses: PostgresHouse, simulator: Simulator, gateway: StartGateway
) -> None:
    server = postgreses.server()
    database = server.database()
    running = gateway(settings(simulator, database.dsn.replace("postgres@", "postgres:s3cret@")))
    assert chat(running.url, "gpt-5-mini").status == 200
    eventually("a row", lambda: count(database), lambda rows: rows == 1, 15)
    server.kill()
    for _ in range(10):
        assert chat(running.url, "gpt-5-mini").status == 200
    eventually("it says so", lambda: state_of(running), lambda state: state == "failing", 15)
    server.start()
    eventually("11 rows", lambda: count(database), lambda rows: rows == 11, 15)
    assert state_of(running) == "ok"
    _, said = running.stop()
    assert "s3cret" not in said
