"""What a run must keep to, and whether it did.

What is judged is the gateway's addition: a reply's time less what the simulator was told to take. The machine's own
lateness (of simulator and generator) is in it, which is why the same figure without the gateway is told beside it.
Against a real provider nobody knows what it should take: those bars are left out then, and the verdict says so.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from load.locust_figures import added, added_ttfts, quantiles
from load.locust_outcome import Outcome
from load.served import Findings


@dataclass(frozen=True, slots=True)
class Bars:
    """Each may be set with `--bar name=value`. Milliseconds unless the name says otherwise."""

    errors_percent: float = 0.1
    ttft_p95: float = 25.0
    ttft_p99: float = 75.0
    total_p95: float = 50.0
    total_p99: float = 150.0
    generator_cpu_percent: float = 80.0


def bars_of(given: Sequence[str]) -> Bars:
    """Raises ValueError with words for the one who typed it."""
    known = {field.name for field in fields(Bars)}
    values = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name not in known:
            raise ValueError(f"{one!r}: a bar is NAME=VALUE, with one of {', '.join(sorted(known))}")
        values[name] = float(value)
    return Bars(**values)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`good`: None where it could not be judged, and `measured` says why."""

    what: str
    bar: str
    measured: str
    good: bool | None


@dataclass(frozen=True, slots=True)
class Narrow:
    """A tenant that is held to a limit. Slack for leases there is none: a lease is taken out of the limit."""

    tenant: str
    requests_per_minute: int


def of_replies(outcomes: Sequence[Outcome], bars: Bars) -> list[Verdict]:
    """Everything that the clients alone can tell."""
    through = [one for one in outcomes if not one.direct]
    if not through:
        return [Verdict("requests", "at least one", "none", False)]
    bad = sum(one.problem is not None for one in through)
    share = 100 * bad / len(through)
    silent = sum(one.end == "silent" for one in through)
    streams = sum(one.stream and one.end in ("whole", "broken", "silent") for one in through)
    nameless = sum(not one.request_id for one in through)
    names = [one.request_id for one in through if one.request_id]
    return [
        Verdict(
            "requests that went wrong",
            f"at most {bars.errors_percent:g} %",
            f"{bad} of {len(through):,} ({share:.2f} %)",
            share <= bars.errors_percent,
        ),
        Verdict("streams that ended in silence", "none", f"{silent} of {streams:,}", silent == 0),
        Verdict(
            "replies without an id of their own",
            "none",
            f"{nameless + len(names) - len(set(names))} of {len(through):,}",
            nameless == 0 and len(names) == len(set(names)),
        ),
        *_additions("time to first token", outcomes, added_ttfts, (bars.ttft_p95, bars.ttft_p99)),
        *_additions("whole answers", outcomes, added, (bars.total_p95, bars.total_p99)),
    ]


def _additions(what: str, outcomes: Sequence[Outcome], values: Any, bars: tuple[float, float]) -> list[Verdict]:
    here = quantiles(values(one for one in outcomes if not one.direct))
    there = quantiles(values(one for one in outcomes if one.direct))
    found = []
    for name, bar in zip(("p95", "p99"), bars, strict=True):
        title, limit = f"added to {what}, {name}", f"at most {bar:g} ms"
        if here is None:
            found.append(Verdict(title, limit, "not known: nobody told this provider how long to take", None))
            continue
        value = getattr(here, name)
        beside = "" if there is None else f"; {getattr(there, name):.1f} ms without the gateway"
        found.append(Verdict(title, limit, f"{value:.1f} ms{beside}", value <= bar))
    return found


def of_limits(outcomes: Sequence[Outcome], narrow: Sequence[Narrow]) -> list[Verdict]:
    """A bucket that is full at the beginning and refills: nothing beyond it may have been admitted, by all gateways
    together, at the end of the run."""
    found = []
    for one in narrow:
        asked = [outcome for outcome in outcomes if outcome.tenant == one.tenant and not outcome.direct]
        admitted = sum(outcome.status != 429 for outcome in asked)
        if not asked:
            continue
        window_s = max(outcome.ended_s for outcome in asked) - min(outcome.at_s for outcome in asked)
        most = math.floor(one.requests_per_minute * (1 + window_s / 60))
        found.append(
            Verdict(
                f"admitted of {one.tenant} ({one.requests_per_minute} a minute)",
                f"at most {most} in {window_s:.0f} s",
                f"{admitted} of {len(asked)} asked, {len(asked) - admitted} refused",
                admitted <= most,
            )
        )
    return found


def of_books(outcomes: Sequence[Outcome], rows: Sequence[Mapping[str, Any]], findings: Findings) -> list[Verdict]:
    """`findings`: of `served.compare`, request by request. Besides, there are as many rows as requests."""
    sent = sum(not one.direct for one in outcomes)
    return [
        Verdict("requests with exactly one row", f"all {sent:,}", f"{len(rows):,} rows", len(rows) == sent),
        Verdict(
            "rows lost, doubled, wrong",
            "none",
            f"{findings.lost}, {findings.duplicated}, {findings.wrong}",
            not findings.any,
        ),
    ]


def of_generator(busy_percent: Sequence[float], bars: Bars) -> Verdict:
    """A generator that is short of CPU measures itself. Its median second counts: it starts with a burst."""
    bar = f"at most {bars.generator_cpu_percent:g} % of a core"
    found = quantiles(busy_percent)
    if found is None:
        return Verdict("the generator's own CPU", bar, "not measured", None)
    return Verdict("the generator's own CPU", bar, f"{found.p50:.0f} %", found.p50 <= bars.generator_cpu_percent)


def passed(verdicts: Sequence[Verdict]) -> bool:
    return all(verdict.good is not False for verdict in verdicts)
