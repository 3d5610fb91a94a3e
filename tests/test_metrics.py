"""Metrics: what records add up to, and that the exposition is one that a strict reader takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from span_records import an_attempt, an_end

from edgegw.ledger.record import AttemptRecord, Begin, End, Try, Vitals
from edgegw.telemetry import histogram as histograms
from edgegw.telemetry import metrics as module
from edgegw.telemetry import names, seats
from edgegw.telemetry.exposition import page
from edgegw.telemetry.histogram import Histogram
from edgegw.telemetry.metrics import Metrics
from edgegw.telemetry.seats import OTHER, Seats

# -- a strict reader of the text exposition format 0.0.4 (prometheus.io, "Exposition formats") --

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL})(?:,{_LABEL})*)\}})? (\S+)")
_TYPES = {"counter", "gauge", "histogram"}
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}

Sample = tuple[str, tuple[tuple[str, str], ...]]


class Exposition:
    def __init__(self, text: bytes) -> None:
        self.samples: dict[Sample, float] = {}
        self.types: dict[str, str] = {}
        assert text.endswith(b"\n")
        family = ""
        for line in text.decode("utf-8").split("\n")[:-1]:
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                assert family not in self.types, f"{family} appears twice"
                assert re.fullmatch(r"# HELP \S+ (?:[^\\]|\\\\|\\n)+", line)
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert name == family, "TYPE does not follow its HELP"
                assert re.fullmatch(_NAME, name)
                assert kind in _TYPES
                assert (kind == "counter") == name.endswith("_total")
                self.types[name] = kind
            else:
                self._sample(line, family)
        self._check_histograms()

    def _sample(self, line: str, family: str) -> None:
        match = _SAMPLE.fullmatch(line)
        assert match, f"not a sample: {line!r}"
        name, braces, value = match[1], match[2], match.groups()[-1]
        allowed = [family + suffix for suffix in _SUFFIXES.get(self.types[family], ("",))]
        assert name in allowed, f"{name} stands under {family}"
        labels = tuple((key, _unescaped(text)) for key, text in re.findall(_LABEL, braces or ""))
        assert len({key for key, _ in labels}) == len(labels)
        assert (name, labels) not in self.samples, f"twice: {line}"
        self.samples[name, labels] = float(value.replace("Inf", "inf"))

    def _check_histograms(self) -> None:
        for family in (name for name, kind in self.types.items() if kind == "histogram"):
            buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
            for (name, labels), value in self.samples.items():
                if name == f"{family}_bucket":
                    assert labels[-1][0] == "le"
                    bound = float(labels[-1][1].replace("Inf", "inf"))
                    buckets.setdefault(labels[:-1], []).append((bound, value))
            for labels, found in buckets.items():
                for column in zip(*found, strict=True):
                    assert list(column) == sorted(column), f"{family}: bounds and counts only grow"
                assert found[-1][0] == math.inf
                assert found[-1][1] == self.samples[f"{family}_count", labels]
                assert (f"{family}_sum", labels) in self.samples

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(labels.items())]

    def of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        return ((dict(labels), value) for (found, labels), value in self.samples.items() if found == name)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), text)


def read(metrics: Metrics) -> Exposition:
    """By our strict reader; what Prometheus' own makes of the page has to be the same."""
    text = page(metrics)
    seen = Exposition(text)
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    ours = {(name, tuple(sorted(labels))): value for (name, labels), value in seen.samples.items()}
    assert theirs.keys() == ours.keys()
    assert all(value == ours[sample] or value != value for sample, value in theirs.items())
    return seen


# -- records --


def end(route: str | None = "default", state: str = "complete", status: int = 200, **fields: Any) -> End:
    """In round numbers, and without a price."""
    plain: dict[str, Any] = {
        "model": "gpt-5",
        "stream": False,
        "duration_us": 1_000_000,
        "overhead_us": 150,
        "cost_usd_micro": None,
    }
    return an_end("0", route=route, state=state, status=status, **plain | fields)


def attempt(kind: str = "primary", error_kind: str | None = None, **fields: Any) -> AttemptRecord:
    """In round numbers, and without a price."""
    tokens = {
        "input_tokens": 10,
        "output_tokens": 20,
        "cached_tokens": 4,
        "cache_write_tokens": 2,
        "reasoning_tokens": 5,
    }
    plain: dict[str, Any] = {
        "model": "gpt-5",
        "first_token_us": 20_000,
        "duration_us": 1_000_000,
        "cost_usd_micro": None,
        **tokens,
    }
    return an_attempt("0", kind=kind, error_kind=error_kind, **plain | fields)


def vitals(slot: int, wall_s: float, **gauges: float) -> Vitals:
    return Vitals(1, 1, slot, int(wall_s * 1e9), gauges)


# -- traces --


def test_a_request_that_fell_back() -> None:
    metrics = Metrics(targets=[("openai", "gpt-5")])
    failed = {"first_token_us": None, "input_tokens": None, "output_tokens": None}
    metrics.observe([attempt("primary", "upstream_error", status=500, **failed)])
    metrics.observe([Try(1, 2, "0", 2, "retry", "openai", "gpt-5", 1, "upstream_error")])
    metrics.observe([attempt("retry", "upstream_cut", retry_reason="upstream_error", **failed)])
    metrics.observe([Try(1, 3, "0", 3, "fallback", "anthropic", "claude", 1, "upstream_cut")])
    metrics.observe([attempt("fallback", provider="anthropic", model="claude", retry_reason="upstream_cut")])
    metrics.observe([end("use_case:s", provider="anthropic", model="claude")])
    seen = read(metrics)
    openai, claude = {"provider": "openai", "model": "gpt-5"}, {"provider": "anthropic", "model": "claude"}
    requests = {"route": "use_case:s", **claude, "state": "complete", "status": "200", "error": "none"}
    assert list(seen.of("edgegw_requests_total")) == [(requests, 1)]
    assert seen.value("edgegw_attempts_total", **openai, kind="primary", outcome="upstream_error") == 1
    assert seen.value("edgegw_attempts_total", **openai, kind="retry", outcome="upstream_cut") == 1
    assert seen.value("edgegw_attempts_total", **claude, kind="fallback", outcome="ok") == 1
    assert list(seen.of("edgegw_retries_total")) == [({**openai, "reason": "upstream_error"}, 1)]
    assert list(seen.of("edgegw_fallbacks_total")) == [({**claude, "reason": "upstream_cut"}, 1)]
    assert list(seen.of("edgegw_gate_saves_total")) == [({**openai, "reason": "upstream_cut"}, 1)]
    assert seen.value("edgegw_tokens_total", **claude, type="input") == 10
    assert seen.value("edgegw_tokens_total", **claude, type="output") == 20
    assert sum(value for _, value in seen.of("edgegw_tokens_total")) == 30, "nothing twice"
    assert seen.value("edgegw_cached_tokens_total", **claude) == 4
    assert seen.value("edgegw_cache_write_tokens_total", **claude) == 2
    assert seen.value("edgegw_reasoning_tokens_total", **claude) == 5
    assert seen.value("edgegw_time_to_first_token_seconds_count", **openai) == 0
    assert seen.value("edgegw_time_to_first_token_seconds_bucket", **claude, le="0.01") == 0
    assert seen.value("edgegw_time_to_first_token_seconds_bucket", **claude, le="0.02") == 1
    assert seen.value("edgegw_time_to_first_token_seconds_sum", **claude) == 0.02
    assert seen.value("edgegw_time_per_output_token_seconds_sum", **claude) == pytest.approx(0.98 / 19, abs=1e-6)
    assert seen.value("edgegw_attempt_duration_seconds_count", **openai, outcome="upstream_cut") == 1


def test_opentelemetrys_names_are_a_second_rendering() -> None:
    metrics = Metrics(called={"eu": "openai"}, targets=[("eu", "gpt-5")])
    metrics.observe([attempt(provider="eu")])
    metrics.observe([attempt(provider="eu", error_kind="upstream_cut", output_tokens=1)])
    seen = read(metrics)
    asked = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai", "gen_ai_request_model": "gpt-5"}
    assert seen.value("gen_ai_client_token_usage_sum", **asked, gen_ai_token_type="input") == 20
    assert seen.value("gen_ai_client_token_usage_bucket", **asked, gen_ai_token_type="output", le="1") == 1
    assert seen.value("gen_ai_client_operation_duration_seconds_count", **asked, error_type="") == 1
    assert seen.value("gen_ai_client_operation_duration_seconds_count", **asked, error_type="upstream_cut") == 1
    assert seen.value("gen_ai_server_time_to_first_token_seconds_count", **asked) == 2
    assert seen.value("gen_ai_server_time_per_output_token_seconds_count", **asked) == 1


def test_a_failure_that_nobody_saved_is_no_save() -> None:
    """The reply broke off after the client had some of it, or nothing else was tried."""
    metrics = Metrics()
    metrics.observe([attempt(error_kind="upstream_cut", request_id="a")])
    metrics.observe([end(id="a", state="reset", error_kind="upstream_cut")])
    metrics.observe([Try(1, 2, "a", 2, "retry", "openai", "gpt-5", 1, "upstream_cut")])
    for number in range(module.HELD_MAX + 5):
        metrics.observe([attempt(error_kind="upstream_cut", request_id=f"r{number}")])
    metrics.observe([Try(1, 2, "r0", 2, "retry", "openai", "gpt-5", 1, "upstream_cut")])  # forgotten by now
    assert list(read(metrics).of("edgegw_gate_saves_total")) == []


def test_requests_by_how_they_ended() -> None:
    metrics = Metrics(routes=["model:smart"])
    refused = {"attempts": 0, "duration_us": 300, "overhead_us": 300, "provider": None, "model": None}
    metrics.observe([end(None, "refused", 404, error_kind="model_not_found", **refused)])
    metrics.observe([end(None, "refused", 404, error_kind="model_not_found", **refused)])
    gone = {"stream": True, "duration_us": 2_500_000, "overhead_us": 100, "error_kind": "client_gone"}
    metrics.observe([end("model:smart", "client_gone", 200, **gone)])
    seen = read(metrics)
    none = {"route": "none", "provider": "none", "model": "none"}
    not_found = {"state": "refused", "status": "404", "error": "model_not_found"}
    assert seen.value("edgegw_requests_total", **none, **not_found) == 2
    left = {"state": "client_gone", "status": "200", "error": "client_gone"}
    smart = {"route": "model:smart", "provider": "openai", "model": "other"}
    assert seen.value("edgegw_requests_total", **smart, **left) == 1
    assert seen.value("edgegw_request_duration_seconds_count", stream="false") == 2
    assert seen.value("edgegw_request_duration_seconds_bucket", stream="true", le="1") == 0
    assert seen.value("edgegw_request_duration_seconds_bucket", stream="true", le="2.5") == 1  # le is inclusive
    assert seen.value("edgegw_gateway_overhead_seconds_bucket", le="0.0001") == 1
    assert seen.value("edgegw_gateway_overhead_seconds_bucket", le="0.0003") == 3
    assert seen.value("edgegw_gateway_overhead_seconds_sum") == pytest.approx(700e-6)


def test_whose_requests_and_tokens_they_were() -> None:
    metrics = Metrics(tenants=["acme"])
    metrics.observe([attempt(tenant="acme", cost_usd_micro=1_500_000)])
    metrics.observe([end(tenant="acme")])
    metrics.observe([end(tenant="made-up", state="refused", status=429, error_kind="rate_limited")])
    metrics.observe([attempt(tenant="")])
    seen = read(metrics)
    assert seen.value("edgegw_tenant_requests_total", tenant="acme", state="complete") == 1
    assert seen.value("edgegw_tenant_requests_total", tenant=OTHER, state="refused") == 1
    assert seen.value("edgegw_tenant_tokens_total", tenant="acme", type="output") == 20
    assert seen.value("edgegw_tenant_tokens_total", tenant="unknown", type="input") == 10
    assert seen.value("edgegw_tenant_cost_usd_total", tenant="acme") == 1.5
    assert seen.value("edgegw_unpriced_attempts_total", provider="openai", model="gpt-5") == 1
    assert metrics.tenants == ["acme"]


def test_what_only_begins_is_not_counted() -> None:
    metrics = Metrics()
    empty = page(metrics)
    args = ("t", None, "default", "openai_chat", None, False, 1, 1, "primary", "openai", "gpt-5", 1)
    metrics.observe([Begin(1, 1, "0", 1, *args)])
    metrics.observe([Try(1, 1, "0", 2, "retry", "openai", "gpt-5", 1, None)])
    assert page(metrics) == empty


def test_gauges_of_workers() -> None:
    metrics = Metrics()
    metrics.observe([vitals(0, 100.0, in_flight=3, loop_lag_seconds=0.0015)])
    metrics.observe([vitals(1, 100.5, in_flight=4, something_new=math.inf)])
    metrics.observe([vitals(1, 99.5, in_flight=77)])  # an older life, read later
    seen = read(metrics)
    assert list(seen.of("edgegw_in_flight_requests")) == [({"worker": "0"}, 3), ({"worker": "1"}, 4)]
    assert seen.value("edgegw_loop_lag_seconds", worker="0") == 0.0015
    assert seen.value("edgegw_worker_something_new", worker="1") == math.inf
    metrics.observe([vitals(1, 111.0, in_flight=5)])  # worker 0 has been silent for over ten seconds
    assert list(read(metrics).of("edgegw_in_flight_requests")) == [({"worker": "1"}, 5)]


def test_breakers_that_are_not_closed() -> None:
    metrics = Metrics(targets=[("sim", "a/b")])
    metrics.observe([vitals(0, 1.0, **{"breaker:sim/a/b": 1, "breaker:sim/x": 1, "breaker:sim/y": 2})])
    assert list(read(metrics).of("edgegw_breaker_state")) == [
        ({"worker": "0", "provider": "sim", "model": "a/b"}, 1),
        ({"worker": "0", "provider": "sim", "model": OTHER}, 2),
    ]


def test_a_gauge_whose_name_is_no_name_is_left_out() -> None:
    metrics = Metrics()
    metrics.observe([vitals(0, 1.0, **{"a b": 1.0, "ü": 2.0, "": 3.0, 'x"} 1\n': 4.0})])
    assert read(metrics).samples == read(Metrics()).samples


def test_what_others_keep_is_read_when_rendered() -> None:
    lag = [1.5]
    metrics = Metrics({names.LEDGER_LAG: lambda: lag[0], names.LEDGER_ROWS: lambda: 12})
    assert read(metrics).value("edgegw_ledger_lag_seconds") == 1.5
    lag[0] = math.nan
    assert math.isnan(read(metrics).value("edgegw_ledger_lag_seconds"))
    assert read(metrics).value("edgegw_ledger_rows_total") == 12


# -- laws --


def test_series_are_bounded_and_nothing_is_lost() -> None:
    metrics = Metrics()
    total = 3 * seats.TENANTS_MAX
    for number in range(total):
        metrics.observe([attempt(model=f"model-{number}", tenant=f"t{number}")])
        metrics.observe([end(f"target:openai/model-{number}", model=f"model-{number}", tenant=f"t{number}")])
    metrics.observe([attempt(model=OTHER)])  # a model that is really called so is no second series
    seen = read(metrics)
    for family, seated, counted in (
        ("edgegw_attempts_total", seats.TARGETS_MAX, total + 1),
        ("edgegw_requests_total", seats.ROUTES_MAX, total),
        ("edgegw_tenant_requests_total", seats.TENANTS_MAX, total),
    ):
        found = list(seen.of(family))
        assert len(found) == seated + 1
        assert sum(value for _, value in found) == counted
    labels = [labels for labels, _ in seen.of("edgegw_attempts_total")]
    assert {"provider": "openai", "model": OTHER, "kind": "primary", "outcome": "ok"} in labels


def test_combinations_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SERIES_MAX", 10)
    monkeypatch.setattr(module, "WAYS_MAX", 4)
    metrics = Metrics()
    for number in range(90):
        for _ in range(2):
            metrics.observe([end(f"r{number % 9}", model=f"m{number % 10}")])
    found = list(read(metrics).of("edgegw_requests_total"))
    assert (len(found), sum(value for _, value in found)) == (11, 180)


def test_what_clients_make_up_is_shown_when_it_works() -> None:
    metrics = Metrics()
    metrics.observe([attempt(error_kind="upstream_refused", status=404, model="nonsense")])
    metrics.observe([attempt(error_kind="upstream_refused", status=404, model="works")])
    metrics.observe([attempt(model="works")])
    metrics.observe([attempt(error_kind="upstream_refused", status=404, model="works")])
    told = {(labels["model"], labels["outcome"]): value for labels, value in read(metrics).of("edgegw_attempts_total")}
    assert told == {(OTHER, "upstream_refused"): 2, ("works", "ok"): 1, ("works", "upstream_refused"): 1}


@given(names=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=40))
def test_a_seat_is_never_taken_back(names: list[tuple[str, bool]]) -> None:
    seats = Seats(3, known={"a", "b"})
    seated: set[str] = set()
    for name, success in names:
        offered = seats.offers(name, success)
        assert offered == (name in seated or (len(seated) < 3 and (success or name in "ab")))
        seated |= {name} if offered else set()


@given(model=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_name_survives_the_exposition(model: str) -> None:
    metrics = Metrics()
    metrics.observe([attempt(model=model)])
    metrics.observe([end(f"target:openai/{model}")])
    seen = read(metrics)
    assert seen.value("edgegw_attempts_total", provider="openai", model=model, kind="primary", outcome="ok") == 1
    told = [labels["route"] for labels, _ in seen.of("edgegw_requests_total")]
    assert told == [f"target:openai/{model}"]


def test_a_lone_surrogate_does_not_break_the_page() -> None:
    metrics = Metrics()
    metrics.observe([attempt(model="\ud800")])
    assert read(metrics).value("edgegw_attempts_total", provider="openai", model="?", kind="primary", outcome="ok") == 1


@given(values=st.lists(st.integers(0, 10**10), max_size=50))
def test_a_histogram_counts_every_value_once_and_where_it_belongs(values: list[int]) -> None:
    histogram = Histogram(histograms.OVERHEAD_BOUNDS_US)
    for value in values:
        histogram.observe(value)
    assert histogram.sum == sum(values)
    for place, bound in enumerate(histogram.bounds):
        assert sum(histogram.counts[: place + 1]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)


def test_bounds_ascend() -> None:
    for name in [name for name in vars(histograms) if "BOUNDS" in name]:
        bounds = getattr(histograms, name)
        assert list(bounds) == sorted(set(bounds))


def test_the_strict_reader_is_strict() -> None:
    """The oracle itself: each of these is refused."""
    head = "# HELP edgegw_x_total Text.\n# TYPE edgegw_x_total counter\n"
    histogram = "# HELP h Text.\n# TYPE h histogram\n"
    Exposition((head + 'edgegw_x_total{a="b\\"\\n"} 1\n').encode())
    for bad in (
        head + "edgegw_x_total 1",
        head + "edgegw_x_total  1\n",
        head + 'edgegw_x_total{a="b"} 1\nedgegw_x_total{a="b"} 1\n',
        head + 'edgegw_x_total{a="b\\x"} 1\n',
        head + 'edgegw_x_total{a="b"} one\n',
        head + "edgegw_y 1\n",
        head + head,
        "# HELP y Text.\n# TYPE edgegw_x_total counter\n",
        histogram + 'h_bucket{le="1"} 1\nh_sum 1\nh_count 1\n',
        histogram + 'h_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n',
        histogram + 'h_bucket{le="+Inf"} 1\nh_count 1\n',
        histogram + 'h_bucket{le="+Inf"} 1\nh_sum 1\nh_count 2\n',
    ):
        with pytest.raises((AssertionError, ValueError)):
            Exposition(bad.encode())
