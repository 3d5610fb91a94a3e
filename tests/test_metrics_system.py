"""What /metrics adds up to is what stands in the database, after a mix of everything that can become of a request.

More of them than usual: MIXED_REQUESTS=10000 pytest tests/test_metrics_system.py
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mixed_requests
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rig import Gateway, StartGateway, ask, eventually, start_simulator

from edgegw.telemetry.seats import OTHER, TENANTS_MAX

pytestmark = pytest.mark.system

REQUESTS = int(os.environ.get("MIXED_REQUESTS", "1500"))
WITHIN_S = 60.0

Sums = dict[tuple[str, ...], float]


class Page:
    """/metrics, as Prometheus' own parser reads it."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def sums(self, name: str, *labels: str, **where: str) -> Sums:
        """The samples of one name, added up by some of their labels; what is 0 is left out."""
        found: Sums = defaultdict(float)
        for sample in self.samples:
            if sample.name == name and where.items() <= sample.labels.items():
                found[tuple(sample.labels[label] for label in labels)] += sample.value
        return {key: value for key, value in found.items() if value}

    def sum(self, name: str, **where: str) -> float:
        return self.sums(name, **where).get((), 0)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, module_gateways: StartGateway) -> Iterator[tuple[Page, Path]]:
    directory = tmp_path_factory.mktemp("mixed")
    simulator = start_simulator(directory, "--rules", str(mixed_requests.rules_file(directory)))
    try:
        gateway = module_gateways(mixed_requests.settings(simulator))
        mixed_requests.send(gateway.url, REQUESTS)
        yield eventually("all of it in the books", lambda: page(gateway), complete, WITHIN_S), database(gateway)
    finally:
        simulator.running.end()


def page(gateway: Gateway) -> Page:
    return Page(ask(gateway.admin_url, "GET", "/metrics").body.decode())


def complete(seen: Page) -> bool:
    told = seen.sum("edgegw_requests_total"), seen.sum("edgegw_attempts_total")
    return told[0] == REQUESTS and seen.sum("edgegw_ledger_rows_total") == sum(told) and in_flight(seen) == 0


def in_flight(seen: Page) -> float:
    return seen.sum("edgegw_in_flight_requests")


def database(gateway: Gateway) -> Path:
    return gateway.state_dir / "edgegw.db"


def grouped(path: Path, sql: str) -> Sums:
    """Rows of a query: texts first, then one number."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as books:
        rows: list[tuple[Any, ...]] = books.execute(sql).fetchall()
    return {tuple(map(str, row[:-1])): row[-1] for row in rows if row[-1]}


def test_requests(counted: tuple[Page, Path]) -> None:
    seen, books = counted
    by_ending = "SELECT state, status, ifnull(error_kind, 'none'), count(*) FROM requests GROUP BY 1, 2, 3"
    assert seen.sums("edgegw_requests_total", "state", "status", "error") == grouped(books, by_ending)
    assert seen.sum("edgegw_requests_total") == REQUESTS
    states = {state for (state,) in seen.sums("edgegw_requests_total", "state")}
    assert states >= {"complete", "refused", "failed", "client_gone"}, "the mix is one"
    assert seen.sum("edgegw_requests_total", error="rate_limited") > 0
    by_route = "SELECT ifnull(route, 'none'), ifnull(provider, 'none'), count(*) FROM requests GROUP BY 1, 2"
    assert seen.sums("edgegw_requests_total", "route", "provider") == grouped(books, by_route)
    for stream in (0, 1):
        of = {"stream": ("false", "true")[stream]}
        (count,), (total,) = (
            grouped(books, f"SELECT {what} FROM requests WHERE stream = {stream}").values()
            for what in ("count(*)", "sum(duration_us) / 1e6")
        )
        assert seen.sum("edgegw_request_duration_seconds_count", **of) == count
        assert seen.sum("edgegw_request_duration_seconds_sum", **of) == pytest.approx(total)
    (overhead,) = grouped(books, "SELECT sum(overhead_us) / 1e6 FROM requests").values()
    assert seen.sum("edgegw_gateway_overhead_seconds_sum") == pytest.approx(overhead)


def test_tenants(counted: tuple[Page, Path]) -> None:
    seen, books = counted
    told = seen.sums("edgegw_tenant_requests_total", "tenant", "state")
    rows = grouped(books, "SELECT tenant, state, count(*) FROM requests GROUP BY 1, 2")
    assert sum(told.values()) == sum(rows.values())
    settled = {"acme", "poor"}
    assert {key: n for key, n in told.items() if key[0] in settled} == {
        key: n for key, n in rows.items() if key[0] in settled
    }
    shown = {tenant for tenant, _ in told} - {OTHER}
    assert shown <= {tenant for tenant, _ in rows}
    assert len(shown) <= TENANTS_MAX
    tokens = {
        ("input",): grouped(books, "SELECT sum(input_tokens) FROM requests")[()],
        ("output",): grouped(books, "SELECT sum(output_tokens) FROM requests")[()],
    }
    assert seen.sums("edgegw_tenant_tokens_total", "type") == tokens
    (cost,) = grouped(books, "SELECT sum(cost_usd_micro) / 1e6 FROM provider_attempts").values()
    assert seen.sum("edgegw_tenant_cost_usd_total") == pytest.approx(cost)
    assert seen.sum("edgegw_limit", tenant="poor", limit="requests_per_minute") == 5


def test_attempts(counted: tuple[Page, Path]) -> None:
    seen, books = counted
    attempts = "FROM provider_attempts"
    by_outcome = f"SELECT provider, kind, ifnull(error_kind, 'ok'), count(*) {attempts} GROUP BY 1, 2, 3"
    assert seen.sums("edgegw_attempts_total", "provider", "kind", "outcome") == grouped(books, by_outcome)
    again = "SELECT provider, retry_reason, count(*) FROM provider_attempts WHERE kind = '{}' GROUP BY 1, 2"
    for family, kind in (("edgegw_retries_total", "retry"), ("edgegw_fallbacks_total", "fallback")):
        assert seen.sums(family, "provider", "reason") == grouped(books, again.format(kind)) != {}
    saved = """
        SELECT a.provider, a.model, a.error_kind, count(*) FROM provider_attempts a
        JOIN provider_attempts b ON b.request_id = a.request_id AND b.number = a.number + 1
        WHERE a.status BETWEEN 200 AND 299 AND a.error_kind IS NOT NULL GROUP BY 1, 2, 3
    """
    assert seen.sums("edgegw_gate_saves_total", "provider", "model", "reason") == grouped(books, saved) != {}
    ended = f"SELECT ifnull(error_kind, 'ok'), sum(duration_us) / 1e6 {attempts} GROUP BY 1"
    assert seen.sums("edgegw_attempt_duration_seconds_sum", "outcome") == pytest.approx(grouped(books, ended))
    first = grouped(books, f"SELECT provider, count(first_token_us) {attempts} GROUP BY 1")
    assert seen.sums("edgegw_time_to_first_token_seconds_count", "provider") == first
    several = f"SELECT provider, count(*) {attempts} WHERE first_token_us IS NOT NULL AND output_tokens > 1 GROUP BY 1"
    assert seen.sums("edgegw_time_per_output_token_seconds_count", "provider") == grouped(books, several)


def test_tokens_and_money(counted: tuple[Page, Path]) -> None:
    seen, books = counted
    of = "SELECT provider, sum({}) FROM provider_attempts GROUP BY 1"
    for type_ in ("input", "output"):
        rows = grouped(books, of.format(f"{type_}_tokens"))
        assert seen.sums("edgegw_tokens_total", "provider", type=type_) == rows
        usage = seen.sums("gen_ai_client_token_usage_sum", "gen_ai_provider_name", gen_ai_token_type=type_)
        assert sum(usage.values()) == sum(rows.values())
    for part in ("cached", "cache_write", "reasoning"):
        rows = grouped(books, of.format(f"{part}_tokens"))
        assert seen.sums(f"edgegw_{part}_tokens_total", "provider") == rows
    assert seen.sum("edgegw_reasoning_tokens_total") > 0
    assert seen.sums("edgegw_cost_usd_total", "provider") == pytest.approx(
        grouped(books, of.format("cost_usd_micro / 1e6"))
    )
    counted_only = "WHERE input_tokens IS NOT NULL AND cost_usd_micro IS NULL"
    unpriced = grouped(books, f"SELECT provider, count(*) FROM provider_attempts {counted_only} GROUP BY 1")
    assert seen.sums("edgegw_unpriced_attempts_total", "provider") == unpriced != {}
