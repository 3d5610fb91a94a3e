"""The lines of a run made into figures: a table of kinds, curves over time, distributions.

What the charts and the table show is computed here and nowhere else. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from load.locust_outcome import Outcome
from load.measure import percentile

SHARES = [n / 200 for n in range(190)] + [0.95 + n / 1000 for n in range(50)] + [0.9999]  # of a distribution's curve
BUCKETS_MAX = 120  # points of a curve over time
REFUSED = "refused (429)"


@dataclass(frozen=True, slots=True)
class Load:
    """What processes cost in one second: percent of a core and MiB, by the name of the process group."""

    at_s: float
    cpu: dict[str, float]
    memory_mib: dict[str, float]


@dataclass(frozen=True, slots=True)
class Quantiles:
    count: int
    p50: float
    p95: float
    p99: float
    largest: float


def quantiles(values: Sequence[float]) -> Quantiles | None:
    if not values:
        return None
    ordered = sorted(values)
    p50, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.95, 0.99))
    return Quantiles(len(ordered), p50, p95, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class Kind:
    """One line of the table."""

    name: str
    requests: int
    unplanned: int
    refused: int
    total: Quantiles | None
    ttft: Quantiles | None
    gap: Quantiles | None
    added: Quantiles | None
    added_ttft: Quantiles | None


def kinds(outcomes: Iterable[Outcome]) -> list[Kind]:
    """In the order of their names; those not through the gateway last."""
    by_name: dict[tuple[bool, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_name[outcome.direct, outcome.kind].append(outcome)
    return [_kind(f"{name}, direct" if direct else name, by_name[direct, name]) for direct, name in sorted(by_name)]


def _kind(name: str, of: list[Outcome]) -> Kind:
    answered = [one for one in of if one.status == 200 and one.end == "whole"]
    return Kind(
        name,
        len(of),
        sum(one.problem is not None for one in of),
        sum(one.status == 429 for one in of),
        quantiles([one.total_ms for one in answered]),
        quantiles(ttfts(of)),
        quantiles(gaps(of)),
        quantiles(added(of)),
        quantiles(added_ttfts(of)),
    )


def ttfts(of: Iterable[Outcome]) -> list[float]:
    return [one.ttft_ms for one in of if one.ttft_ms is not None]


def gaps(of: Iterable[Outcome]) -> list[float]:
    return [gap for one in of for gap in one.gaps_ms]


def added(of: Iterable[Outcome]) -> list[float]:
    return [one.added_ms for one in of if one.added_ms is not None]


def added_ttfts(of: Iterable[Outcome]) -> list[float]:
    return [one.added_ttft_ms for one in of if one.added_ttft_ms is not None]


@dataclass(slots=True)
class Curves:
    """Values over time, one for each bucket of `bucket_s` seconds; None where there is nothing to show."""

    bucket_s: float
    at_s: list[float]
    rates: dict[str, list[float]] = field(default_factory=dict)
    problems: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, list[float]] = field(default_factory=dict)
    total: dict[str, list[float | None]] = field(default_factory=dict)
    ttft: dict[str, list[float | None]] = field(default_factory=dict)


def curves(outcomes: Sequence[Outcome]) -> Curves:
    """Of what went through the gateway; a request counts where it ended, its first token where that was seen."""
    through = [one for one in outcomes if not one.direct]
    if not through:
        return Curves(1.0, [])
    begin_s = min(one.at_s for one in through)
    length_s = max(one.ended_s for one in through) - begin_s
    bucket_s = float(max(1, -(-int(length_s) // BUCKETS_MAX)))
    # What ends after the last whole bucket is the rest of a run that is being stopped: it would look like a dip.
    count = max(1, int(length_s // bucket_s))
    filled: list[list[Outcome]] = [[] for _ in range(count)]
    for one in through:
        if (number := int((one.ended_s - begin_s) // bucket_s)) < count:
            filled[number].append(one)
    found = Curves(bucket_s, [(number + 0.5) * bucket_s for number in range(count)])
    for name in sorted({_class(one) for one in through}):
        found.rates[name] = [sum(_class(one) == name for one in each) / bucket_s for each in filled]
    for name in sorted({_trouble(one) for one in through} - {""}):
        found.problems[name] = [sum(_trouble(one) == name for one in each) / bucket_s for each in filled]
    found.tokens = {
        "input": [sum(one.input_tokens or 0 for one in each) / bucket_s for each in filled],
        "output": [sum(one.output_tokens or 0 for one in each) / bucket_s for each in filled],
    }
    whole = [[one.total_ms for one in each if one.status == 200 and one.end == "whole"] for each in filled]
    first = [ttfts(each) for each in filled]
    for name, share in (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99)):
        found.total[name] = [percentile(each, share) if each else None for each in whole]
        found.ttft[name] = [percentile(each, share) if each else None for each in first]
    return found


def _class(one: Outcome) -> str:
    if one.status == 429:
        return REFUSED
    if one.end == "left":
        return "left early"
    return "streamed" if one.stream else "plain"


def _trouble(one: Outcome) -> str:
    return one.problem or (REFUSED if one.status == 429 else "")


def distribution(values: Sequence[float]) -> list[tuple[float, float]]:
    """(value, share of all that are at most it), for a curve."""
    if not values:
        return []
    ordered = sorted(values)
    return [(percentile(ordered, share), share) for share in SHARES]


def distributions(
    outcomes: Sequence[Outcome], values: Callable[[Iterable[Outcome]], list[float]]
) -> dict[str, list[tuple[float, float]]]:
    """Of plain everyday streams, with the gateway and without it."""
    streams = [one for one in outcomes if one.kind == "streamed"]
    both = {
        "through the gateway": distribution(values(one for one in streams if not one.direct)),
        "straight from the simulator": distribution(values(one for one in streams if one.direct)),
    }
    return {name: curve for name, curve in both.items() if curve}


def charts_of(outcomes: Sequence[Outcome], loads: Sequence[Load]) -> dict[str, Any]:
    """All that the charts are drawn from, as JSON has it."""
    begin_s = min((one.at_s for one in outcomes if not one.direct), default=0.0)
    names = sorted({name for load in loads for name in load.cpu})
    return {
        "curves": asdict(curves(outcomes)),
        "ttft": distributions(outcomes, ttfts),
        "gap": distributions(outcomes, gaps),
        "load_at_s": [load.at_s - begin_s for load in loads],
        "cpu": {name: [load.cpu.get(name) for load in loads] for name in names},
        "memory": {
            name: [load.memory_mib.get(name) for load in loads]
            for name in names
            if any(name in load.memory_mib for load in loads)
        },
    }


def problems(outcomes: Iterable[Outcome]) -> Counter[str]:
    return Counter(f"{one.kind}: {one.problem}" for one in outcomes if one.problem)
