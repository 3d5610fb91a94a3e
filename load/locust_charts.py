"""Draws the charts of a report: `python -m load.locust_charts DIRECTORY`, in the venv of load/locust.lock.

Reads `charts.json` (locust_figures.charts_of) in the directory; writes each chart there as SVG, for the page, and as
PNG, and their names, in order, into `drawn.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

SIZE_INCHES = (7.2, 3.4)
PNG_DPI = 144
EDGE: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.12}
INK, FAINT = "#1f2a37", "#d7dde5"
COLOURS = ["#2563a8", "#e08a1e", "#3a9d6e", "#c2453d", "#7a5bb0", "#4aa3b5", "#8a8f98", "#b5873f", "#d46a9f"]
FIXED = {"refused (429)": "#8a8f98", "median": "#3a9d6e", "95 %": "#e08a1e", "99 %": "#c2453d"}
STYLE = {
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "edgegw",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

Axes = Any
Series = Mapping[str, Sequence[float | None]]


def _colours(names: Sequence[str]) -> list[str]:
    return [FIXED.get(name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(names)]


def _dress(axes: Axes, title: str, x: str, y: str, *, entries: int) -> None:
    axes.set_title(title, pad=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    if entries:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=8)


def _lines(axes: Axes, at: Sequence[float], series: Series) -> None:
    for (name, values), colour in zip(series.items(), _colours(list(series)), strict=True):
        axes.plot(at, [float("nan") if value is None else value for value in values], label=name, color=colour)


def _stack(axes: Axes, at: Sequence[float], series: Series) -> None:
    if series:
        axes.stackplot(
            at, list(series.values()), labels=list(series), colors=_colours(list(series)), alpha=0.85, linewidth=0
        )


def requests(axes: Axes, data: Any) -> None:
    curves = data["curves"]
    _stack(axes, curves["at_s"], curves["rates"])
    _dress(axes, "Requests", "seconds since the start", "requests / s", entries=len(curves["rates"]))


def latency(axes: Axes, data: Any) -> None:
    curves = data["curves"]
    _lines(axes, curves["at_s"], curves["total"])
    _dress(axes, "Time to the whole answer", "seconds since the start", "ms", entries=3)


def first_token(axes: Axes, data: Any) -> None:
    curves = data["curves"]
    _lines(axes, curves["at_s"], curves["ttft"])
    _dress(axes, "Time to the first token", "seconds since the start", "ms", entries=3)


def _distribution(axes: Axes, curves: Mapping[str, Sequence[Sequence[float]]], title: str) -> None:
    """Shares near 100 % are what matters, so the axis is that of what is slower, and logarithmic."""
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(
            [value for value, _ in curve],
            [100 * (1 - share) for _, share in curve],
            label=name,
            color=colour,
        )
    _dress(axes, title, "ms", "% of them are slower", entries=0)
    axes.set_yscale("log")
    axes.set_ylim(0.1, 110)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if curves:
        axes.legend(loc="lower left", fontsize=8)


def ttft_distribution(axes: Axes, data: Any) -> None:
    _distribution(axes, data["ttft"], "Time to the first token, distribution (streamed)")


def gap_distribution(axes: Axes, data: Any) -> None:
    _distribution(axes, data["gap"], "Gaps between tokens, distribution (streamed)")


def errors(axes: Axes, data: Any) -> None:
    curves = data["curves"]
    named = {name if len(name) < 34 else f"{name[:33]}…": values for name, values in curves["problems"].items()}
    _stack(axes, curves["at_s"], named)
    if not named:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes, color="#8a8f98")
    _dress(axes, "Errors and refusals", "seconds since the start", "requests / s", entries=len(named))


def cpu(axes: Axes, data: Any) -> None:
    _lines(axes, data["load_at_s"], data["cpu"])
    _dress(axes, "CPU", "seconds since the start", "% of a core", entries=len(data["cpu"]))


def memory(axes: Axes, data: Any) -> None:
    _lines(axes, data["load_at_s"], data["memory"])
    _dress(axes, "Memory of the gateways (PSS)", "seconds since the start", "MiB", entries=len(data["memory"]))


def tokens(axes: Axes, data: Any) -> None:
    curves = data["curves"]
    _lines(axes, curves["at_s"], curves["tokens"])
    _dress(axes, "Tokens of answers that ended", "seconds since the start", "tokens / s", entries=2)


CHARTS: dict[str, Callable[[Axes, Any], None]] = {
    "requests": requests,
    "latency": latency,
    "first-token": first_token,
    "first-token-distribution": ttft_distribution,
    "gap-distribution": gap_distribution,
    "errors": errors,
    "cpu": cpu,
    "memory": memory,
    "tokens": tokens,
}


def draw(directory: Path) -> None:
    data = json.loads((directory / "charts.json").read_text("utf-8"))
    with plt.rc_context(STYLE):
        for name, chart in CHARTS.items():
            figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
            chart(axes, data)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None}, **EDGE)
            figure.savefig(directory / f"{name}.png", dpi=PNG_DPI, **EDGE)
            plt.close(figure)
    (directory / "drawn.json").write_text(json.dumps(list(CHARTS)), "utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
