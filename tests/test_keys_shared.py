"""Keys in a PostgreSQL that gateways share: made on one, in force on all; and a gateway that starts without it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from postgres_rig import Database, PostgresHouse
from rig import Simulator, StartGateway, ask, eventually
from test_keys_system import FIXED, WAIT_S, WITHIN_S, House, settings

pytestmark = pytest.mark.system

PASSWORD = "hush-hush"


def shared(simulator: Simulator, dsn: str) -> dict[str, Any]:
    return settings(simulator, storage={"database_url": dsn}, server={"workers": 2})


def state_of(house: House) -> Any:
    return ask(house.gateway.admin_url, "GET", "/readyz").json["keys"]["state"]


def everywhere(houses: list[House], credential: str, status: int, within_s: float = WITHIN_S) -> None:
    """All workers of all gateways answer so, within a second of now."""
    end_s = time.monotonic() + within_s
    for house in houses:
        house.in_force(credential, status, max(0.05, end_s - time.monotonic()))


def test_a_key_made_on_one_gateway_works_on_all_within_a_second_and_ends_so(
    postgres: Database, simulator: Simulator, gateway: StartGateway
) -> None:
    houses = [House(gateway(shared(simulator, postgres.dsn)), postgres.dsn) for _ in range(2)]
    one, other = houses
    credential = one.keys("create", "--tenant", "acme", "--name", "ci", "--expires", "90d")
    everywhere(houses, credential, 200)
    assert one.id_of(credential) == other.id_of(credential)
    assert not (one.gateway.state_dir / "edgegw.db").exists()

    successor = other.keys("rotate", credential, "--grace", "1h")
    everywhere(houses, successor, 200)
    everywhere(houses, credential, 200)
    one.keys("limit", successor, "--tokens-per-day", "1")
    for house in houses:  # no request is that small
        eventually("a limit", lambda house=house: house.chat(successor).status, lambda status: status == 413, WITHIN_S)  # type: ignore[misc]
    one.keys("limit", successor, "--none", "tokens-per-day")
    other.keys("revoke", credential)
    everywhere(houses, credential, 401)
    everywhere(houses, successor, 200)
    assert len(one.keys("list", "--json").splitlines()) == 2
    tenants = {row["tenant"] for row in postgres.rows("SELECT tenant FROM api_keys")}
    assert tenants == {"acme"}


def test_a_gateway_that_starts_without_its_database_knows_the_keys_of_its_settings(
    postgreses: PostgresHouse, simulator: Simulator, gateway: StartGateway
) -> None:
    server = postgreses.server()
    database = server.database()
    dsn = database.dsn.replace("postgres@", f"postgres:{PASSWORD}@")
    before = House(gateway(shared(simulator, dsn)), dsn)
    credential = before.create("acme")
    server.kill()

    house = House(gateway(shared(simulator, dsn)), dsn)
    eventually("it says so", lambda: state_of(house), lambda state: state == "failing", WAIT_S)
    house.in_force(FIXED, 200)
    assert house.chat(FIXED).status == 200
    for unknown in (credential, "egw_nobody-has-this-key"):
        answer = house.ask("GET", "/v1/models", authorization=f"Bearer {unknown}")
        assert answer.status == 503, "nobody can say yet whether there is such a key"
        assert answer.headers["retry-after"] == "1"
    # The one that has known them goes on, and can tell who is nobody.
    before.in_force(credential, 200)
    assert before.status("egw_nobody-has-this-key") == 401

    server.start()
    house.in_force(credential, 200)
    house.in_force("egw_nobody-has-this-key", 401)
    for each in (house, before):
        eventually("it says so", lambda each=each: state_of(each), lambda state: state == "ok", WAIT_S)  # type: ignore[misc]
    before.keys("revoke", credential)
    everywhere([house, before], credential, 401)
    for each in (house, before):
        code, said = each.gateway.stop()
        assert code == 0, said
        assert PASSWORD not in said
        assert said.count("keys cannot be read") == 1


def test_what_a_command_says_of_a_database_that_is_away_or_none(postgreses: PostgresHouse) -> None:
    from click.testing import CliRunner

    from edgegw.cli import main

    server = postgreses.server()
    dsn = server.dsn().replace("postgres@", f"postgres:{PASSWORD}@")
    server.kill()
    for db, code, words in (
        (dsn, 1, "the keys cannot be reached: PostgreSQL 127.0.0.1"),
        (f"postgresql://u:{PASSWORD}@host/", 2, "name of the database is missing"),
        (f"postgresql://u:{PASSWORD}/x@host/db", 2, "--db"),
    ):
        done = CliRunner().invoke(main, ["keys", "list", "--db", db])
        assert done.exit_code == code, done.output
        assert words in done.output
        assert PASSWORD not in done.output
