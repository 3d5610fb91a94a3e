"""What `python -m load.ledger_queries` measures, on a short share of its rows: every plan is the one that is wanted."""

from __future__ import annotations

import asyncio

import pytest

from load import ledger_queries
from load.ledger_queries import Asked
from load.ledger_rows import DAYS, TENANTS, filled

pytestmark = pytest.mark.system

ROWS = 50_000


@pytest.fixture(scope="module")
def asked() -> dict[str, Asked]:
    with filled(ROWS) as database:
        found = asyncio.run(ledger_queries.ask(database, runs=3))
        assert database.value("SELECT count(*) FROM requests") == ROWS
        assert database.value("SELECT sum(requests) FROM usage_days") == ROWS
    return {each.name: each for each in found}


def test_no_question_reads_a_whole_table_of_rows(asked: dict[str, Asked]) -> None:
    assert [name for name, each in asked.items() if each.scans] == []
    assert len(asked) >= 40


def test_each_question_has_its_index(asked: dict[str, Asked]) -> None:
    wanted = {
        "requests": "requests_pkey",
        "requests --tenant (small)": "requests_tenant_id_idx",
        "requests --state failed": "requests_state_id_idx",
        "requests --key (none)": "requests_key_id_id_idx",
        "requests --session": "requests_session_id_id_idx",
        "requests --request": "requests_pkey",
        "requests --since --until": "requests_pkey",
        "attempts --request": "provider_attempts_pkey",
        "usage --by tenant, a day": "usage_days_pkey",
        "usage --by hour, a day": "usage_hours_pkey",
    }
    assert {name: index for name, index in wanted.items() if index not in asked[name].reads} == {}


def test_the_rows_are_there_that_are_asked_for(asked: dict[str, Asked]) -> None:
    rows = {name: each.rows for name, each in asked.items()}
    assert rows["usage --by tenant, a month"] == TENANTS
    assert (rows["usage --by day, a month"], rows["usage --by hour, a day"]) == (DAYS, 24)
    assert (rows["requests"], rows["requests --request"], rows["requests --tenant (none)"]) == (20, 1, 0)
    assert rows["requests --session"] > 0
    table = list(ledger_queries.lines(list(asked.values())))
    assert len(table) == len(asked) + 2
