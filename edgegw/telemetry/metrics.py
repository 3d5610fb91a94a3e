"""What the journal's records add up to, for /metrics and OTLP: nothing is measured for it on a request's path.

Lives in the control process. `observe` takes each record once, in a few microseconds; `families` gives what is counted,
as numbers and histograms under the names of names.py. How that is written is exposition.py's and otlp_metrics.py's.

How a record is counted: what stands in it is one key, and a key leads to the cells that go up (remembered, so all but
the first of its kind cost one look-up). Who is shown under a name of its own is decided in seats.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TypeVar

from edgegw import __version__
from edgegw.ledger.record import AttemptRecord, End, Record, Try, Vitals
from edgegw.telemetry import names
from edgegw.telemetry.cells import Count, Labels, Sample, Target, Tenant, Way, of_targets, of_tenants
from edgegw.telemetry.family import Family
from edgegw.telemetry.histogram import ATTEMPT_BOUNDS_US, DURATION_BOUNDS_US, OVERHEAD_BOUNDS_US, Histogram
from edgegw.telemetry.seats import NONE, OTHER, ROUTES_MAX, TARGETS_MAX, TENANTS_MAX, Seats

# A worker whose last vitals are so much older than the newest of all is gone (they come once a second).
VITALS_STALE_NS = 10_000_000_000
# Of each sort of record; a new one costs a few microseconds, so forgetting them now and then does no harm.
WAYS_MAX = 10_000
# Combinations of routes, targets and endings; the rest is counted as `other`. Nobody has so many but by design.
REQUEST_SERIES_MAX = 5_000
# Attempts that the gate held back and whose request goes on.
HELD_MAX = 4_096
SUCCESS_MAX = 399
TENANT_UNKNOWN = "unknown"  # of an attempt whose beginning is lost

Figure = float | Mapping[Labels, float]
"""What others keep: one number, or one for each combination of labels."""

_Key = TypeVar("_Key")
_Kept = TypeVar("_Kept")


class Metrics:
    """All counters of this gateway since its control process started. `routes`, `targets` and `tenants` are those of
    the settings. `called`: what the semantic conventions call a provider, where it is not its name in the settings.
    `own`: what others keep (the shipper's lag, …), read when it is asked for."""

    def __init__(
        self,
        own: Mapping[Family, Callable[[], Figure]] | None = None,
        *,
        routes: Collection[str] = (),
        targets: Collection[tuple[str, str]] = (),
        tenants: Collection[str] = (),
        called: Mapping[str, str] | None = None,
    ) -> None:
        self._own = dict(own or {})
        self._called = dict(called or {})
        self._route_seats = Seats(ROUTES_MAX, routes)
        self._target_seats = Seats(TARGETS_MAX, targets)
        self._tenant_seats = Seats(TENANTS_MAX, tenants)
        self._requests: dict[Labels, Count] = {}
        self._targets: dict[tuple[str, str], Target] = {}
        self._tenants: dict[str, Tenant] = {}
        self._durations = {stream: Histogram(DURATION_BOUNDS_US) for stream in (False, True)}
        self._overhead = Histogram(OVERHEAD_BOUNDS_US)
        self._vitals: dict[int, Vitals] = {}
        self._request_ways: dict[tuple[object, ...], Count] = {}
        self._attempt_ways: dict[tuple[object, ...], Way] = {}
        self._tenant_ways: dict[str, Tenant] = {}
        self._held: dict[str, tuple[Target, str]] = {}
        self._observers: dict[type, Callable[..., None]] = {
            End: self._request,
            AttemptRecord: self._attempt,
            Try: self._another,
            Vitals: self._gauges,
        }

    def add(self, own: Mapping[Family, Callable[[], Figure]]) -> None:
        """Further ones that others keep."""
        self._own |= own

    def observe(self, records: Iterable[Record]) -> None:
        """Count records. Each is to be observed once; kinds that nothing is derived from are passed over."""
        observers = self._observers
        for record in records:
            observer = observers.get(type(record))
            if observer is not None:
                observer(record)

    @property
    def tenants(self) -> list[str]:
        """Who is shown under a name of its own, for what others keep of them."""
        return [name for name in self._tenants if name not in (OTHER, TENANT_UNKNOWN)]

    # What is counted

    def _request(self, end: End) -> None:
        way = (end.route, end.provider, end.model, end.state, end.status, end.error_kind)
        count = self._request_ways.get(way)
        if count is None:
            count = self._new_request_way(way, end)
        count.value += 1
        duration_us, overhead_us = end.duration_us, end.overhead_us
        histogram = self._durations[end.stream]
        histogram.counts[bisect_left(DURATION_BOUNDS_US, duration_us)] += 1
        histogram.sum += duration_us
        histogram = self._overhead
        histogram.counts[bisect_left(OVERHEAD_BOUNDS_US, overhead_us)] += 1
        histogram.sum += overhead_us
        requests = (self._tenant_ways.get(end.tenant) or self._tenant(end.tenant, _went_well(end))).requests
        requests[end.state] = requests.get(end.state, 0) + 1
        if self._held:
            self._held.pop(end.id, None)

    def _attempt(self, attempt: AttemptRecord) -> None:
        error, reason = attempt.error_kind, attempt.retry_reason
        key = (attempt.provider, attempt.model, attempt.kind, error, reason)
        way = self._attempt_ways.get(key)
        if way is None:
            way = self._new_attempt_way(key, attempt)
        target = way.target
        way.attempts.value += 1
        if way.again is not None:
            way.again.value += 1
        duration_us = attempt.duration_us
        way.duration.observe(duration_us)
        used = attempt.input_tokens
        if used is not None:
            output = attempt.output_tokens or 0
            target.input.observe(used)
            target.output.observe(output)
            target.cached += attempt.cached_tokens or 0
            target.cache_write += attempt.cache_write_tokens or 0
            target.reasoning += attempt.reasoning_tokens or 0
            tenant = self._tenant_ways.get(attempt.tenant) or self._tenant(attempt.tenant, error is None)
            tenant.input += used
            tenant.output += output
            cost = attempt.cost_usd_micro
            if cost is None:
                target.unpriced += 1
            else:
                target.cost_usd_micro += cost
                tenant.cost_usd_micro += cost
            first_us = attempt.first_token_us
            if first_us is not None:
                target.first_token.observe(first_us)
                if output > 1:
                    target.per_token.observe(max(0, duration_us - first_us) // (output - 1))
        elif attempt.first_token_us is not None:
            target.first_token.observe(attempt.first_token_us)
        if error is not None and 200 <= attempt.status < 300:
            if len(self._held) >= HELD_MAX:
                del self._held[next(iter(self._held))]
            self._held[attempt.request_id] = target, error

    def _another(self, another: Try) -> None:
        """The attempt before it was not the end, though its reply had begun well: the gate saved the request."""
        held = self._held.pop(another.id, None) if self._held else None
        if held is not None:
            target, error = held
            target.saves[error] = target.saves.get(error, 0) + 1

    def _gauges(self, vitals: Vitals) -> None:
        before = self._vitals.get(vitals.slot)
        # Journals of workers that are gone may be read after those of their successors.
        if before is None or vitals.wall_ns >= before.wall_ns:
            self._vitals[vitals.slot] = vitals

    # Who is counted where

    def _new_request_way(self, way: tuple[object, ...], end: End) -> Count:
        well = _went_well(end)
        route = end.route
        shown_route = NONE if route is None else route if self._route_seats.offers(route, well) else OTHER
        target = (NONE, NONE)
        if end.provider is not None:
            target = self._shown_target(end.provider, end.model or "", well)
        ending = (end.state, str(end.status), end.error_kind or NONE)
        key = (shown_route, *target, *ending)
        if key not in self._requests and len(self._requests) >= REQUEST_SERIES_MAX:
            key = (OTHER, OTHER, OTHER, *ending)
        count = self._requests.setdefault(key, Count())
        if well or OTHER not in key:  # a way that may still come to a name of its own is looked at again
            _remember(self._request_ways, way, count)
        return count

    def _new_attempt_way(self, key: tuple[object, ...], attempt: AttemptRecord) -> Way:
        well = attempt.error_kind is None
        name = self._shown_target(attempt.provider, attempt.model, well)
        target = self._targets.get(name)
        if target is None:
            target = self._targets[name] = Target()
        kind, outcome = attempt.kind, attempt.error_kind or "ok"
        again = None
        if kind != "primary":
            reasons = target.retries if kind == "retry" else target.fallbacks
            again = reasons.setdefault(attempt.retry_reason or "unknown", Count())
        way = Way(
            target,
            target.attempts.setdefault((kind, outcome), Count()),
            again,
            target.durations.setdefault(outcome, Histogram(ATTEMPT_BOUNDS_US)),
        )
        if well or name[1] != OTHER:
            _remember(self._attempt_ways, key, way)
        return way

    def _shown_target(self, provider: str, model: str, success: bool) -> tuple[str, str]:
        """Providers are those of the settings; there are not many, and a model without a seat is told by its own."""
        name = (provider, model)
        return name if self._target_seats.offers(name, success) else (provider, OTHER)

    def _tenant(self, tenant: str, success: bool) -> Tenant:
        shown = tenant or TENANT_UNKNOWN
        seated = self._tenant_seats.offers(shown, success)
        found = self._tenants.setdefault(shown if seated else OTHER, Tenant())
        if seated or success:
            _remember(self._tenant_ways, tenant, found)
        return found

    # What is told

    def families(self) -> Iterator[tuple[Family, Iterable[Sample]]]:
        """Each family once, with all its samples."""
        yield names.REQUESTS, [(key, count.value) for key, count in self._requests.items()]
        durations = self._durations.items()
        yield names.REQUEST_DURATION, [(("true" if stream else "false",), histogram) for stream, histogram in durations]
        yield names.OVERHEAD, [((), self._overhead)]
        yield from of_tenants(self._tenants)
        yield from of_targets(self._targets, self._called)
        yield from self._of_workers()
        for family, read in self._own.items():
            figure = read()
            yield family, list(figure.items()) if isinstance(figure, Mapping) else [((), figure)]
        yield names.BUILD_INFO, [((__version__,), 1)]

    def _of_workers(self) -> Iterator[tuple[Family, Iterable[Sample]]]:
        newest_ns = max((vitals.wall_ns for vitals in self._vitals.values()), default=0)
        families: dict[Family, list[Sample]] = {}
        breakers: dict[Labels, float] = {}
        for slot, vitals in sorted(self._vitals.items()):
            if vitals.wall_ns + VITALS_STALE_NS < newest_ns:
                continue
            for gauge, value in vitals.gauges.items():
                if gauge.startswith(names.BREAKER_GAUGE):
                    provider, _, model = gauge.removeprefix(names.BREAKER_GAUGE).partition("/")
                    labels = (str(slot), *self._shown_target(provider, model, success=False))
                    breakers[labels] = max(value, breakers.get(labels, 0))
                elif (family := _worker_family(gauge)) is not None:
                    families.setdefault(family, []).append(((str(slot),), value))
        yield from families.items()
        yield names.BREAKER_STATE, list(breakers.items())


def _went_well(end: End) -> bool:
    return end.error_kind is None and 0 < end.status <= SUCCESS_MAX


def _remember(ways: dict[_Key, _Kept], key: _Key, value: _Kept) -> None:
    if len(ways) >= WAYS_MAX:
        ways.clear()
    ways[key] = value


def _worker_family(gauge: str) -> Family | None:
    known = names.WORKER_GAUGES.get(gauge)
    if known is not None or not (gauge.isascii() and gauge.isidentifier()):
        return known
    return Family(names.WORKER_GAUGE_PREFIX + gauge, "gauge", names.WORKER_GAUGE_HELP, names.WORKER_LABELS)
