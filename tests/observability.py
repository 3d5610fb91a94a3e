"""The dashboard and the alerts as tests read them: their expressions, and what those name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgegw.telemetry import names
from edgegw.telemetry.family import Family

FILES = Path(__file__).parent.parent / "k8s" / "observability"
# What Prometheus adds to what it scrapes.
SCRAPED = {"job", "instance"}
_SUFFIXES = ("_bucket", "_sum", "_count")
_FAMILY = re.compile(r"\b((?:edgegw|gen_ai)_\w+)(?:\{([^}]*)\})?")
_SELECTED = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def dashboard() -> dict[str, Any]:
    loaded = json.loads((FILES / "edgegw-dashboard.json").read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((FILES / "edgegw-alerts.yml").read_text("utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


@dataclass(frozen=True, slots=True)
class Expression:
    """`shown`: labels that its legend or its texts name."""

    where: str
    text: str
    shown: frozenset[str]

    @property
    def families(self) -> dict[str, set[str]]:
        """Names of metrics, with the labels that are selected by."""
        found: dict[str, set[str]] = {}
        for name, selector in _FAMILY.findall(self.text):
            found.setdefault(name, set()).update(_SELECTED.findall(selector))
        return found

    @property
    def grouped(self) -> set[str]:
        return {label.strip() for labels in _GROUPED.findall(self.text) for label in labels.split(",")} - {""}

    @property
    def runnable(self) -> str:
        """As Grafana would send it."""
        return self.text.replace("$__rate_interval", "1m").replace("$instance", ".*")


def expressions() -> Iterator[Expression]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            shown = frozenset(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            yield Expression(panel["title"], target["expr"], shown)
    for annotation in dashboard()["annotations"]["list"]:
        yield Expression(annotation["name"], annotation["expr"], frozenset({"instance"}))
    for rule in rules():
        shown = frozenset(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        yield Expression(rule["alert"], rule["expr"], shown)


def family_of(metric: str) -> Family | None:
    """The family of a metric's name in an expression."""
    families = {each.name: each for each in vars(names).values() if isinstance(each, Family)}
    families |= {each.name: each for each in names.WORKER_GAUGES.values()}
    exact = families.get(metric)
    if exact is not None:
        return None if exact.type == "histogram" else exact
    for suffix in _SUFFIXES:
        if metric.endswith(suffix) and (found := families.get(metric.removesuffix(suffix))) is not None:
            return found if found.type == "histogram" else None
    return None
