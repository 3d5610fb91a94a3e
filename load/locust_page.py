"""The report of a run as one HTML page that needs nothing from anywhere: verdicts on top, charts, the table. Pure."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from load.locust_figures import Kind, Quantiles
from load.locust_verdicts import Verdict, passed

WORDS = {True: ("kept", "good"), False: ("missed", "bad"), None: ("not judged", "open")}
HEADINGS = (
    "kind",
    "requests",
    "unplanned",
    "429",
    "total p50 / p95 / p99, ms",
    "TTFT p50 / p95 / p99, ms",
    "gap p50 / p95 / p99, ms",
    "added to TTFT p95 / p99, ms",
    "added to total p95 / p99, ms",
)

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; background: #fff; color: #1f2a37;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 17px; margin: 34px 0 10px; }
.facts { color: #5b6675; margin: 4px 0 20px; }
.outcome { display: inline-block; border-radius: 5px; padding: 1px 10px; font-size: 15px; vertical-align: 3px;
           margin-left: 10px; }
.good { background: #e3f4ea; color: #17663f; }
.bad { background: #fbe4e2; color: #9c261e; }
.open { background: #eef0f3; color: #5b6675; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: left; font-weight: 600; color: #5b6675; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid #e6eaef; vertical-align: top; }
td span { border-radius: 4px; padding: 1px 8px; white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 18px; }
.charts img { width: 100%; border: 1px solid #e6eaef; border-radius: 6px; }
pre { background: #f6f8fa; border-radius: 6px; padding: 10px 14px; overflow-x: auto; font-size: 13px; }
.wide { overflow-x: auto; }
"""


@dataclass(frozen=True, slots=True)
class Page:
    """`charts`: name and SVG. `facts`: what was run, in a line. `notes`: whatever a reader should know besides."""

    title: str
    facts: str
    verdicts: Sequence[Verdict]
    charts: Mapping[str, bytes]
    kinds: Sequence[Kind]
    notes: Sequence[str] = ()


def cells(kind: Kind) -> list[str]:
    """A line of the table, in words; the terminal prints the same."""
    return [
        kind.name,
        f"{kind.requests:,}",
        str(kind.unplanned),
        str(kind.refused),
        _three(kind.total),
        _three(kind.ttft),
        _three(kind.gap),
        _two(kind.added_ttft),
        _two(kind.added),
    ]


def _three(of: Quantiles | None) -> str:
    return "" if of is None else f"{of.p50:.0f} / {of.p95:.0f} / {of.p99:.0f}"


def _two(of: Quantiles | None) -> str:
    return "" if of is None else f"{of.p95:.1f} / {of.p99:.1f}"


def rendered(page: Page) -> str:
    good = passed(page.verdicts)
    word, colour = ("passed", "good") if good else ("failed", "bad")
    charts = "\n".join(
        f'<img alt="{escape(name)}" src="data:image/svg+xml;base64,{b64encode(svg).decode()}">'
        for name, svg in page.charts.items()
    )
    notes = f"<h2>Notes</h2>\n<pre>{escape(chr(10).join(page.notes))}</pre>" if page.notes else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(page.title)}: {word}</title>
<style>{STYLE}</style></head>
<body>
<h1>{escape(page.title)}<span class="outcome {colour}">{word}</span></h1>
<p class="facts">{escape(page.facts)}</p>
<h2>Verdicts</h2>
<table><tr><th>what</th><th>bar</th><th>measured</th><th></th></tr>
{"".join(map(_verdict, page.verdicts))}</table>
<h2>Charts</h2>
<div class="charts">
{charts}
</div>
<h2>Kinds of requests</h2>
<div class="wide"><table><tr>{"".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)}</tr>
{"".join(map(_line, page.kinds))}</table></div>
{notes}
</body>
</html>
"""


def _verdict(verdict: Verdict) -> str:
    word, colour = WORDS[verdict.good]
    told = "".join(f"<td>{escape(text)}</td>" for text in (verdict.what, verdict.bar, verdict.measured))
    return f'<tr>{told}<td><span class="{colour}">{word}</span></td></tr>\n'


def _line(kind: Kind) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(kind))}</tr>\n"
