"""Prometheus metrics, derived from the journal's records: nothing is measured for them on a request's path.

Lives in the control process. `observe` takes each record once (a microsecond or so per request), `render` writes the
text exposition format, version 0.0.4. It knows records and names; not who reads a journal or serves a port.

The number of series is bounded whatever clients ask for: the first so many targets and routes are shown under their
names, later ones together as `other`. Tenants are no label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from edgegw import __version__
from edgegw.ledger.record import AttemptRecord, End, Record, Vitals
from edgegw.telemetry import names
from edgegw.telemetry.names import Family

TARGETS_MAX = 200  # provider and model; each is some 25 lines
ROUTES_MAX = 100
OTHER = "other"
NO_ROUTE = "none"  # refused before it was routed
# A worker whose last vitals are so much older than the newest of all is gone (they come once a second).
VITALS_STALE_NS = 10_000_000_000

# Upper bounds in microseconds. Durations reach to the longest total timeout; first tokens of reasoning models take
# minutes; our own share is a fraction of a millisecond, and its tail is what matters.
DURATION_BOUNDS_US: tuple[int, ...] = (5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000)
DURATION_BOUNDS_US += (5_000_000, 10_000_000, 30_000_000, 60_000_000, 120_000_000, 300_000_000, 600_000_000)
FIRST_TOKEN_BOUNDS_US: tuple[int, ...] = (
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
)
FIRST_TOKEN_BOUNDS_US += (10_000_000, 20_000_000, 60_000_000, 300_000_000)
OVERHEAD_BOUNDS_US: tuple[int, ...] = (50, 100, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 50_000, 250_000)
OVERHEAD_BOUNDS_US += (1_000_000,)

Labels = tuple[str, ...]
Figure = float | Mapping[Labels, float]
"""What others keep: one number, or one for each combination of labels."""


class Histogram:
    """Counts per bucket, and the sum, in microseconds; `le` is inclusive."""

    __slots__ = ("bounds_us", "counts", "sum_us")

    def __init__(self, bounds_us: tuple[int, ...]) -> None:
        self.bounds_us = bounds_us
        self.counts = [0] * (len(bounds_us) + 1)
        self.sum_us = 0

    def observe(self, value_us: int) -> None:
        self.counts[bisect_left(self.bounds_us, value_us)] += 1
        self.sum_us += value_us


@dataclass(slots=True)
class _Target:
    """What is counted of one provider and model. The keys of `attempts` are (kind, outcome)."""

    attempts: dict[tuple[str, str], int] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, int] = field(default_factory=dict)
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cost_usd_micro: int = 0
    unpriced: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_US))


_TOKEN_TYPES = ("input", "output", "cached", "cache_write", "reasoning")


class Metrics:
    """All counters of this gateway since its control process started.

    `own`: gauges and counters that others keep (the shipper's lag, …), read when rendered.
    """

    def __init__(self, own: Mapping[Family, Callable[[], Figure]] | None = None) -> None:
        self._own = dict(own or {})
        self._requests: dict[tuple[str, str, int], int] = {}
        self._routes: dict[str | None, str] = {None: NO_ROUTE}
        self._targets: dict[tuple[str, str], _Target] = {}
        self._other_target = _Target()
        self._durations = {stream: Histogram(DURATION_BOUNDS_US) for stream in (False, True)}
        self._overhead = Histogram(OVERHEAD_BOUNDS_US)
        self._vitals: dict[int, Vitals] = {}
        self._observers: dict[type, Callable[..., None]] = {
            End: self._request,
            AttemptRecord: self._attempt,
            Vitals: self._gauges,
        }

    def add(self, own: Mapping[Family, Callable[[], Figure]]) -> None:
        """Further ones that others keep."""
        self._own |= own

    def observe(self, record: Record) -> None:
        """Count one record. Each is to be observed once; kinds that nothing is derived from are passed over."""
        observer = self._observers.get(type(record))
        if observer is not None:
            observer(record)

    def render(self) -> bytes:
        """The text exposition format (content type `text/plain; version=0.0.4`)."""
        return "".join(self._lines()).encode("utf-8", "replace")

    # What is counted

    def _request(self, end: End) -> None:
        route = self._routes.get(end.route) or self._new_route(end.route)
        key = (route, end.state, end.status)
        self._requests[key] = self._requests.get(key, 0) + 1
        self._durations[end.stream].observe(end.duration_us)
        self._overhead.observe(end.overhead_us)

    def _attempt(self, attempt: AttemptRecord) -> None:
        name = (attempt.provider, attempt.model)
        target = self._targets.get(name) or self._new_target(name)
        kind = attempt.kind
        key = (kind, attempt.error_kind or "ok")
        target.attempts[key] = target.attempts.get(key, 0) + 1
        if kind != "primary":
            reasons = target.retries if kind == "retry" else target.fallbacks
            reason = attempt.retry_reason or "unknown"
            reasons[reason] = reasons.get(reason, 0) + 1
        if attempt.input_tokens is not None:
            target.input += attempt.input_tokens
            target.output += attempt.output_tokens or 0
            target.cached += attempt.cached_tokens or 0
            target.cache_write += attempt.cache_write_tokens or 0
            target.reasoning += attempt.reasoning_tokens or 0
            if attempt.cost_usd_micro is None:
                target.unpriced += 1
            else:
                target.cost_usd_micro += attempt.cost_usd_micro
        if attempt.first_token_us is not None:
            target.first_token.observe(attempt.first_token_us)

    def _gauges(self, vitals: Vitals) -> None:
        before = self._vitals.get(vitals.slot)
        # Journals of workers that are gone may be read after those of their successors.
        if before is None or vitals.wall_ns >= before.wall_ns:
            self._vitals[vitals.slot] = vitals

    def _new_route(self, route: str | None) -> str:
        if route is None or len(self._routes) > ROUTES_MAX:
            return OTHER
        return self._routes.setdefault(route, route)

    def _new_target(self, name: tuple[str, str]) -> _Target:
        if len(self._targets) >= TARGETS_MAX or name == (OTHER, OTHER):
            return self._other_target
        return self._targets.setdefault(name, _Target())

    # How it is written

    def _lines(self) -> Iterator[str]:
        requests = self._requests.items()
        yield from _simple(names.REQUESTS, (((route, state, str(code)), n) for (route, state, code), n in requests))
        durations = [(("true" if stream else "false",), histogram) for stream, histogram in self._durations.items()]
        yield from _histograms(names.REQUEST_DURATION, durations)
        yield from _histograms(names.OVERHEAD, [((), self._overhead)])
        yield from self._target_lines()
        yield from self._worker_lines()
        for family, read in self._own.items():
            figure = read()
            yield from _simple(family, figure.items() if isinstance(figure, Mapping) else [((), figure)])
        yield from _simple(names.BUILD_INFO, [((__version__,), 1)])

    def _target_lines(self) -> Iterator[str]:
        targets = list(self._targets.items())
        if self._other_target.attempts:
            targets.append(((OTHER, OTHER), self._other_target))
        yield from _simple(
            names.ATTEMPTS,
            (((*name, *key), count) for name, target in targets for key, count in target.attempts.items()),
        )
        yield from _simple(
            names.RETRIES, (((*name, why), count) for name, target in targets for why, count in target.retries.items())
        )
        yield from _simple(
            names.FALLBACKS,
            (((*name, why), count) for name, target in targets for why, count in target.fallbacks.items()),
        )
        yield from _simple(
            names.TOKENS,
            (((*name, type_), getattr(target, type_)) for name, target in targets for type_ in _TOKEN_TYPES),
        )
        yield from _simple(names.COST, ((name, target.cost_usd_micro / 1e6) for name, target in targets))
        yield from _simple(names.UNPRICED, ((name, target.unpriced) for name, target in targets if target.unpriced))
        yield from _histograms(names.FIRST_TOKEN, [(name, target.first_token) for name, target in targets])

    def _worker_lines(self) -> Iterator[str]:
        newest_ns = max((vitals.wall_ns for vitals in self._vitals.values()), default=0)
        families: dict[Family, list[tuple[Labels, float]]] = {}
        for slot, vitals in sorted(self._vitals.items()):
            if vitals.wall_ns + VITALS_STALE_NS < newest_ns:
                continue
            for gauge, value in vitals.gauges.items():
                family = _worker_family(gauge)
                if family is not None:
                    families.setdefault(family, []).append(((str(slot),), value))
        for family, samples in families.items():
            yield from _simple(family, samples)


def _worker_family(gauge: str) -> Family | None:
    known = names.WORKER_GAUGES.get(gauge)
    if known is not None or not (gauge.isascii() and gauge.isidentifier()):
        return known
    return Family(names.WORKER_GAUGE_PREFIX + gauge, "gauge", names.WORKER_GAUGE_HELP, names.WORKER_LABELS)


def _head(family: Family) -> str:
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {family.name} {text}\n# TYPE {family.name} {family.type}\n"


def _simple(family: Family, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield _head(family)
    for labels, value in samples:
        yield f"{family.name}{_braces(family.labels, labels)} {_number(value)}\n"


def _histograms(family: Family, samples: Sequence[tuple[Labels, Histogram]]) -> Iterator[str]:
    yield _head(family)
    name = family.name
    with_le = (*family.labels, "le")
    for labels, histogram in samples:
        cumulative = list(accumulate(histogram.counts))
        for bound_us, count in zip(histogram.bounds_us, cumulative, strict=False):
            yield f"{name}_bucket{_braces(with_le, (*labels, _number(bound_us / 1e6)))} {count}\n"
        yield f"{name}_bucket{_braces(with_le, (*labels, '+Inf'))} {cumulative[-1]}\n"
        braces = _braces(family.labels, labels)
        yield f"{name}_sum{braces} {_number(histogram.sum_us / 1e6)}\n{name}_count{braces} {cumulative[-1]}\n"


def _braces(label_names: Labels, values: Labels) -> str:
    if not label_names:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(label_names, values, strict=True))
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    """A Go-style float; whole numbers without a fraction."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))
