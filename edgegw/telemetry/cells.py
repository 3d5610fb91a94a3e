"""What is counted of targets and of tenants, and which families show it.

Who is counted where is metrics.py's to decide: it leads to a cell here, which goes up. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from edgegw.telemetry import names
from edgegw.telemetry.family import Family
from edgegw.telemetry.histogram import FIRST_TOKEN_BOUNDS_US, PER_TOKEN_BOUNDS_US, TOKEN_BOUNDS, Histogram

Labels = tuple[str, ...]
Sample = tuple[Labels, float | Histogram]


@dataclass(slots=True, eq=False)
class Count:
    value: int = 0


@dataclass(slots=True, eq=False)
class Target:
    """What is counted of one provider and model. The keys of `attempts` are (kind, outcome)."""

    attempts: dict[tuple[str, str], Count] = field(default_factory=dict)
    durations: dict[str, Histogram] = field(default_factory=dict)
    retries: dict[str, Count] = field(default_factory=dict)
    fallbacks: dict[str, Count] = field(default_factory=dict)
    saves: dict[str, int] = field(default_factory=dict)
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cost_usd_micro: int = 0
    unpriced: int = 0
    input: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS, 1))
    output: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS, 1))
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_US))
    per_token: Histogram = field(default_factory=lambda: Histogram(PER_TOKEN_BOUNDS_US))


@dataclass(slots=True, eq=False)
class Tenant:
    requests: dict[str, int] = field(default_factory=dict)
    input: int = 0
    output: int = 0
    cost_usd_micro: int = 0


@dataclass(slots=True, eq=False)
class Way:
    """Where an attempt's record leads; `again` counts why it was made, if it was not the first."""

    target: Target
    attempts: Count
    again: Count | None
    duration: Histogram


def of_tenants(counted: Mapping[str, Tenant]) -> Iterator[tuple[Family, Iterable[Sample]]]:
    """Each family of tenants."""
    tenants = counted.items()
    yield names.TENANT_REQUESTS, [((name, state), n) for name, own in tenants for state, n in own.requests.items()]
    inputs = [((name, "input"), own.input) for name, own in tenants]
    yield names.TENANT_TOKENS, [*inputs, *(((name, "output"), own.output) for name, own in tenants)]
    yield names.TENANT_COST, [((name,), own.cost_usd_micro / 1e6) for name, own in tenants]


def of_targets(
    counted: Mapping[tuple[str, str], Target], called: Mapping[str, str]
) -> Iterator[tuple[Family, Iterable[Sample]]]:
    """Each family of targets. `called`: what the semantic conventions call a provider, where it is not its name."""
    targets = list(counted.items())
    yield (
        names.ATTEMPTS,
        [((*name, *key), count.value) for name, target in targets for key, count in target.attempts.items()],
    )
    ends = [(name, outcome, each) for name, target in targets for outcome, each in target.durations.items()]
    yield names.ATTEMPT_DURATION, [((*name, outcome), histogram) for name, outcome, histogram in ends]
    for family, reasons in (
        (names.RETRIES, [(name, target.retries) for name, target in targets]),
        (names.FALLBACKS, [(name, target.fallbacks) for name, target in targets]),
    ):
        yield family, [((*name, why), count.value) for name, each in reasons for why, count in each.items()]
    yield names.GATE_SAVES, [((*name, why), n) for name, target in targets for why, n in target.saves.items()]
    used = [
        (name, type_, histogram)
        for name, target in targets
        for type_, histogram in (("input", target.input), ("output", target.output))
    ]
    yield names.TOKENS, [((*name, type_), histogram.sum) for name, type_, histogram in used]
    yield names.CACHED_TOKENS, [(name, target.cached) for name, target in targets]
    yield names.CACHE_WRITE_TOKENS, [(name, target.cache_write) for name, target in targets]
    yield names.REASONING_TOKENS, [(name, target.reasoning) for name, target in targets]
    yield names.COST, [(name, target.cost_usd_micro / 1e6) for name, target in targets]
    yield names.UNPRICED, [(name, target.unpriced) for name, target in targets if target.unpriced]
    yield names.FIRST_TOKEN, [(name, target.first_token) for name, target in targets]
    yield names.TIME_PER_TOKEN, [(name, target.per_token) for name, target in targets]
    asked = {name: (names.OPERATION_NAME, called.get(name[0], name[0]), name[1]) for name, _ in targets}
    yield (
        names.GEN_AI_DURATION,
        [((*asked[name], "" if outcome == "ok" else outcome), histogram) for name, outcome, histogram in ends],
    )
    yield names.GEN_AI_USAGE, [((*asked[name], type_), histogram) for name, type_, histogram in used]
    yield names.GEN_AI_FIRST_TOKEN, [(asked[name], target.first_token) for name, target in targets]
    yield names.GEN_AI_PER_TOKEN, [(asked[name], target.per_token) for name, target in targets]
