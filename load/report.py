"""From figures to the page that is read: costs, ratios, bars, and a mark at each. Pure: takes values, gives text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from load.rounds import Figures
from load.workloads import Workload

GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure against its bar (None: there is none, it is only told). `met` is None without a bar."""

    what: str
    value: float
    bar: float | None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else self.value <= self.bar

    def __str__(self) -> str:
        if self.bar is None:
            return f"{self.value:.2f}{self.unit}"
        return f"{self.value:.2f}{self.unit} (at most {self.bar:g}) {'pass' if self.met else 'MISS'}"


def verdicts(workload: Workload, figures: Mapping[str, Figures]) -> list[Verdict]:
    """The ratios that have a bar, as far as both sides have figures."""
    gateway = figures.get(GATEWAY)
    if gateway is None or not gateway.samples:
        return []
    bars = workload.bars
    wanted = (
        ("worker / Envoy", gateway.worker_us, "envoy", bars.worker_to_envoy),
        ("worker / nginx", gateway.worker_us, "nginx", bars.worker_to_nginx),
        ("whole tree / Envoy", gateway.tree_us, "envoy", bars.tree_to_envoy),
    )
    return [
        Verdict(what, ours_us / figures[theirs].tree_us, bar)
        for what, ours_us, theirs, bar in wanted
        if theirs in figures and figures[theirs].samples
    ]


def costs_table(results: Mapping[Workload, Mapping[str, Figures]]) -> str:
    rows = [("CPU time per", "contender", "worker us", "tree us", "spread", "per s", "rounds")]
    for workload, figures in results.items():
        for name, figure in figures.items():
            rows.append((workload.title, name, *_cost_cells(figure)))
    return table(rows)


def _cost_cells(figure: Figures) -> tuple[str, str, str, str, str]:
    rounds = f"{len(figure.samples)}"
    if figure.bad_rounds:
        rounds += f", {figure.bad_rounds} failed"
    if not figure.samples:
        return ("-", "-", "-", "-", rounds)
    return (
        f"{figure.worker_us:.1f}",
        f"{figure.tree_us:.1f}",
        f"+{figure.spread:.0%}",
        f"{figure.units_per_s:.0f}",
        rounds,
    )


def ratios_table(results: Mapping[Workload, Mapping[str, Figures]]) -> str:
    columns = ("worker / Envoy", "worker / nginx", "whole tree / Envoy")
    rows: list[Sequence[str]] = [("work", *columns)]
    for workload, figures in results.items():
        cells = {verdict.what: str(verdict) for verdict in verdicts(workload, figures)}
        rows.append((workload.title, *(cells.get(column, "not measured") for column in columns)))
    return table(rows)


def footprint_table(found: Iterable[Verdict]) -> str:
    rows: list[Sequence[str]] = [("footprint", "")]
    rows += [(verdict.what, str(verdict)) for verdict in found]
    return table(rows)


def failures(results: Mapping[Workload, Mapping[str, Figures]]) -> list[str]:
    """What went wrong in rounds that were not counted, one line each."""
    return [
        f"{name}, {workload.name}: {figure.bad_rounds} rounds failed, first: {figure.first_failure}"
        for workload, figures in results.items()
        for name, figure in figures.items()
        if figure.bad_rounds
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown that is also readable as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
