"""The dashboard and the alerts: what they name exists, their runbook too, and Prometheus itself can run them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from observability import SCRAPED, Expression, dashboard, expressions, family_of, rules
from rig import Gateway, Simulator, StartGateway, ask, chat, eventually, free_port, providers

HOUSE = Path(__file__).parent.parent
ALL = list(expressions())


@pytest.mark.parametrize("expression", ALL, ids=lambda each: each.where)
def test_every_metric_and_label_that_is_named_exists(expression: Expression) -> None:
    assert expression.families
    labels = set(SCRAPED)
    for metric, selected in expression.families.items():
        family = family_of(metric)
        assert family is not None, metric
        own = {*family.labels, "le"} if metric.endswith("_bucket") else {*family.labels}
        assert selected - own - SCRAPED == set(), metric
        labels |= own
    assert expression.grouped <= labels
    assert expression.shown <= (expression.grouped or labels), "shown, and summed away"


def test_the_dashboard_is_laid_out() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
        sources = [panel.get("datasource"), *(target["datasource"] for target in panel.get("targets", ()))]
        assert {source["uid"] for source in sources if source} <= {"${datasource}"}
    variables = {each["name"]: each["type"] for each in dashboard()["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query"}


def test_every_alert_says_what_to_do() -> None:
    headings = re.findall(r"^### (\w+)$", (HOUSE / "docs" / "operating.md").read_text("utf-8"), re.MULTILINE)
    assert headings == [rule["alert"] for rule in sorted(rules(), key=lambda rule: headings.index(rule["alert"]))]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")


# -- Prometheus itself, where it is installed --

with_prometheus = pytest.mark.skipif(shutil.which("promtool") is None, reason="no Prometheus here (Debian: prometheus)")

# Series that appear when there is trouble (or Redis) of a sort that this test does not make.
IN_TROUBLE = re.compile(r"edgegw_(redis|traces|metric_export|journal_trouble|unpriced|limit_leased)")


@with_prometheus
def test_prometheus_takes_the_rules() -> None:
    checked = subprocess.run(
        ["promtool", "check", "rules", HOUSE / "k8s" / "observability" / "edgegw-alerts.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# What makes each alert come: series with their values, minute by minute (in Prometheus' notation).
TROUBLE = {
    "EdgegwLedgerLag": {"edgegw_ledger_lag_seconds": "5 100x20"},
    "EdgegwJournalTrouble": {'edgegw_journal_trouble{state="full"}': "0 1x20"},
    "EdgegwRecordsLost": {'edgegw_journal_dropped_total{kind="refusal"}': "0 1x20"},
    "EdgegwRowsRejected": {"edgegw_ledger_rejected_total": "0 1x20"},
    "EdgegwLedgerDamage": {'edgegw_ledger_damage_total{kind="torn"}': "0 1x20"},
    "EdgegwUpkeepFailing": {"edgegw_ledger_upkeep_errors_total": "0+1x30"},
    "EdgegwRedisAway": {"edgegw_redis_away": "0 1x20"},
    "EdgegwLimitsNotExact": {'edgegw_limits_degraded{worker="0"}': "0 1x20"},
    "EdgegwKeysFailing": {"edgegw_keys_failing": "0 1x20"},
    "EdgegwErrorRatio": {
        'edgegw_requests_total{state="complete",status="200"}': "0+90x30",
        'edgegw_requests_total{state="failed",status="502"}': "0+4x30",
        'edgegw_requests_total{state="reset",status="200"}': "0+6x30",
    },
    "EdgegwBreakerOpen": {'edgegw_breaker_state{worker="0",provider="p",model="m"}': "1x20"},
    "EdgegwUpstreamWaiting": {'edgegw_upstream_waiting{worker="0"}': "0 3x20"},
    "EdgegwOverhead": {
        'edgegw_gateway_overhead_seconds_bucket{le="0.01"}': "0+90x30",
        'edgegw_gateway_overhead_seconds_bucket{le="0.05"}': "0+100x30",
        'edgegw_gateway_overhead_seconds_bucket{le="+Inf"}': "0+100x30",
    },
    "EdgegwUnpriced": {'edgegw_unpriced_attempts_total{provider="p",model="m"}': "_x10 3x20"},
    "EdgegwRestarts": {'edgegw_worker_start_time_seconds{worker="0"}': "0+60x30"},
    "EdgegwLoopLag": {'edgegw_loop_lag_seconds{worker="0"}': "0 0.5x20"},
    "EdgegwTelemetryDropped": {'edgegw_traces_dropped_total{reason="refused"}': "_x10 9x20"},
    "EdgegwContentLost": {"edgegw_content_lost_total": "0 1x20"},
}


@with_prometheus
def test_each_alert_comes_when_it_should_and_no_other(tmp_path: Path) -> None:
    """For as long as the trouble lasts; EdgegwDown when there is nothing at all."""
    assert {*TROUBLE, "EdgegwDown"} == {rule["alert"] for rule in rules()}
    tests = []
    for alert, trouble in {**TROUBLE, "EdgegwDown": {}}.items():
        series = trouble if alert == "EdgegwDown" else {**trouble, "edgegw_build_info": "1x60"}
        named = {name: name if "{" in name else f"{name}{{}}" for name in series}
        labelled = [
            {"series": named[name].replace("{", '{job="edgegw",instance="i",').replace(",}", "}"), "values": values}
            for name, values in series.items()
        ]
        tests.append(
            {
                "name": alert,
                "interval": "1m",
                "input_series": labelled,
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "14m",
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
                    }
                ],
            }
        )
    file = tmp_path / "alerts_test.yml"
    rule_files = [str(HOUSE / "k8s" / "observability" / "edgegw-alerts.yml")]
    file.write_text(json.dumps({"rule_files": rule_files, "evaluation_interval": "1m", "tests": tests}))
    tested = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@contextmanager
def prometheus(directory: Path, gateway: Gateway) -> Iterator[str]:
    """One that scrapes the gateway each second, with our rules; its URL."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(HOUSE / "k8s" / "observability" / "edgegw-alerts.yml")],
        "scrape_configs": [
            {"job_name": "edgegw", "static_configs": [{"targets": [gateway.admin_url.removeprefix("http://")]}]}
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    with (directory / "prometheus.log").open("wb") as log:
        running = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(20)


def query(url: str, expression: str) -> list[Any]:
    """The samples; AssertionError with Prometheus' complaint when it does not take it."""
    answer = ask(url, "GET", f"/api/v1/query?query={urllib.parse.quote(expression)}").json
    assert answer["status"] == "success", f"{expression}: {answer}"
    result = answer["data"]["result"]
    assert isinstance(result, list)
    return result


@with_prometheus
@pytest.mark.system
def test_prometheus_runs_every_expression(simulator: Simulator, gateway: StartGateway, tmp_path: Path) -> None:
    once = {"attempts": 1}
    running = gateway(
        {
            "providers": providers(simulator),
            "models": {
                "good": {"targets": ["sim/good"]},
                "bad": {"targets": ["sim/sim-500"]},
                "saved": {"targets": ["sim/sim-error-event-0", "claude/good"], "retry": once},
            },
        }
    )

    def traffic() -> None:
        chat(running.url, "bad")
        for model in ("good", "saved"):
            chat(running.url, model, stream=True, stream_options={"include_usage": True})
        chat(running.url, "unheard-of")

    def up() -> bool:
        traffic()
        return len(query(url, "edgegw_build_info")) == 1 and bool(query(url, "rate(edgegw_requests_total[1m])"))

    def ready() -> bool:
        try:
            return ask(url, "GET", "/-/ready").status == 200
        except OSError:
            return False

    with prometheus(tmp_path, running) as url:
        eventually("Prometheus", ready, bool, 30)
        eventually("a scrape", up, bool, 30)
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            traffic()
        silent = [
            f"{each.where}: {each.runnable}"
            for each in ALL
            if not query(url, each.runnable) and not IN_TROUBLE.search(each.text) and each.where not in QUIET
        ]
        assert silent == []

        def pending() -> set[str]:
            alerts = ask(url, "GET", "/api/v1/alerts").json["data"]["alerts"]
            return {alert["labels"]["alertname"] for alert in alerts}

        expected = {"EdgegwBreakerOpen", "EdgegwErrorRatio", "EdgegwUnpriced"}
        assert eventually("alerts", pending, lambda seen: seen >= expected, 20) == expected
        health = ask(url, "GET", "/api/v1/rules").json["data"]["groups"][0]["rules"]
        assert {rule["name"]: rule["lastError"] for rule in health if rule.get("lastError")} == {}


# What shows nothing while all is well: alerts, and a panel of what broke off.
QUIET = {rule["alert"] for rule in rules()} | {
    "Broken off after the reply had begun",
    "Control process started",
    "Refused for a limit, by route",
}
