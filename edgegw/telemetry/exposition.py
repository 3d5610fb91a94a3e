"""Metrics as Prometheus reads them: the text exposition format, version 0.0.4. Pure: families in, pages out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from edgegw.telemetry.cells import Sample
from edgegw.telemetry.family import Family
from edgegw.telemetry.histogram import Histogram
from edgegw.telemetry.metrics import Metrics


def parts(metrics: Metrics) -> Iterator[bytes]:
    """The page (`text/plain; version=0.0.4`), family by family: with many names it takes a while, and whoever writes it
    may do something else in between."""
    for family, samples in metrics.families():
        yield "".join(_lines(family, samples)).encode("utf-8", "replace")


def page(metrics: Metrics) -> bytes:
    return b"".join(parts(metrics))


def _lines(family: Family, samples: Iterable[Sample]) -> Iterator[str]:
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {family.name} {text}\n# TYPE {family.name} {family.type}\n"
    for labels, value in samples:
        pairs = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(family.labels, labels, strict=True))
        if isinstance(value, Histogram):
            yield from _histogram(family.name, pairs, value)
        else:
            yield f"{family.name}{_braces(pairs)} {number(value)}\n"


def _histogram(name: str, pairs: str, histogram: Histogram) -> Iterator[str]:
    before = f"{name}_bucket{{{pairs},le=" if pairs else f"{name}_bucket{{le="
    one = histogram.one
    counts = list(accumulate(histogram.counts))
    for bound, count in zip(histogram.bounds, counts, strict=False):
        yield f'{before}"{number(bound / one)}"}} {count}\n'
    braces, count = _braces(pairs), counts[-1]
    yield f'{before}"+Inf"}} {count}\n{name}_sum{braces} {number(histogram.sum / one)}\n{name}_count{braces} {count}\n'


def _braces(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def number(value: float) -> str:
    """A Go-style float; whole numbers without a fraction."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
