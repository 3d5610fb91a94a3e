"""Metrics: what records add up to, and that the exposition is one that a strict reader takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.ledger.record import AttemptRecord, Begin, End, Try, Vitals
from edgegw.telemetry import metrics as module
from edgegw.telemetry import names
from edgegw.telemetry.metrics import OTHER, Histogram, Metrics

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
    return Exposition(metrics.render())


# -- records --


def end(route: str | None = "default", state: str = "complete", status: int = 200, **fields: object) -> End:
    record = End(
        version=1,
        seq=1,
        id="0",
        started_ns=1,
        tenant="t",
        use_case=None,
        route=route,
        dialect="openai_chat",
        model_asked="m",
        stream=False,
        state=state,
        status=status,
        error_kind=None,
        attempts=1,
        provider="openai",
        model="gpt-5",
        input_tokens=1,
        output_tokens=1,
        cached_tokens=0,
        cache_write_tokens=0,
        reasoning_tokens=0,
        estimated=False,
        first_byte_us=1,
        duration_us=1_000_000,
        overhead_us=150,
        bytes_in=1,
        bytes_out=1,
    )
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def attempt(kind: str = "primary", error_kind: str | None = None, **fields: object) -> AttemptRecord:
    record = AttemptRecord(
        version=1,
        seq=1,
        request_id="0",
        number=1,
        kind=kind,
        provider="openai",
        model="gpt-5",
        started_ns=1,
        status=200,
        error_kind=error_kind,
        retry_reason=None,
        first_byte_us=1000,
        first_token_us=20_000,
        duration_us=1_000_000,
        input_tokens=10,
        output_tokens=20,
        cached_tokens=4,
        cache_write_tokens=2,
        reasoning_tokens=5,
        estimated=False,
        finish_reason="stop",
        upstream_request_id=None,
        upstream_model=None,
        reused=True,
    )
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def vitals(slot: int, wall_s: float, **gauges: float) -> Vitals:
    return Vitals(1, 1, slot, int(wall_s * 1e9), gauges)


# -- traces --


def test_a_request_that_fell_back() -> None:
    metrics = Metrics()
    failed = {"first_token_us": None, "input_tokens": None, "output_tokens": None}
    metrics.observe(attempt("primary", "upstream_error", **failed))
    metrics.observe(attempt("retry", "upstream_cut", retry_reason="upstream_error", **failed))
    metrics.observe(attempt("fallback", provider="anthropic", model="claude", retry_reason="upstream_cut"))
    metrics.observe(end("use_case:s"))
    seen = read(metrics)
    openai, claude = {"provider": "openai", "model": "gpt-5"}, {"provider": "anthropic", "model": "claude"}
    assert seen.value("edgegw_requests_total", route="use_case:s", state="complete", status="200") == 1
    assert seen.value("edgegw_attempts_total", **openai, kind="primary", outcome="upstream_error") == 1
    assert seen.value("edgegw_attempts_total", **openai, kind="retry", outcome="upstream_cut") == 1
    assert seen.value("edgegw_attempts_total", **claude, kind="fallback", outcome="ok") == 1
    assert list(seen.of("edgegw_retries_total")) == [({**openai, "reason": "upstream_error"}, 1)]
    assert list(seen.of("edgegw_fallbacks_total")) == [({**claude, "reason": "upstream_cut"}, 1)]
    tokens = {labels["type"]: value for labels, value in seen.of("edgegw_tokens_total") if labels["model"] == "claude"}
    assert tokens == {"input": 10, "output": 20, "cached": 4, "cache_write": 2, "reasoning": 5}
    assert seen.value("edgegw_time_to_first_token_seconds_count", **openai) == 0
    assert seen.value("edgegw_time_to_first_token_seconds_bucket", **claude, le="0.01") == 0
    assert seen.value("edgegw_time_to_first_token_seconds_bucket", **claude, le="0.025") == 1
    assert seen.value("edgegw_time_to_first_token_seconds_sum", **claude) == 0.02


def test_requests_by_how_they_ended() -> None:
    metrics = Metrics()
    refused = {"attempts": 0, "duration_us": 300, "overhead_us": 300}
    metrics.observe(end(None, "refused", 404, **refused))
    metrics.observe(end(None, "refused", 404, **refused))
    metrics.observe(end("model:smart", "client_gone", 200, stream=True, duration_us=2_500_000, overhead_us=100))
    seen = read(metrics)
    assert seen.value("edgegw_requests_total", route="none", state="refused", status="404") == 2
    assert seen.value("edgegw_requests_total", route="model:smart", state="client_gone", status="200") == 1
    assert seen.value("edgegw_request_duration_seconds_count", stream="false") == 2
    assert seen.value("edgegw_request_duration_seconds_bucket", stream="true", le="1") == 0
    assert seen.value("edgegw_request_duration_seconds_bucket", stream="true", le="2.5") == 1  # le is inclusive
    assert seen.value("edgegw_gateway_overhead_seconds_bucket", le="0.0001") == 1
    assert seen.value("edgegw_gateway_overhead_seconds_bucket", le="0.0003") == 3
    assert seen.value("edgegw_gateway_overhead_seconds_sum") == pytest.approx(700e-6)


def test_what_only_begins_is_not_counted() -> None:
    metrics = Metrics()
    empty = metrics.render()
    args = ("t", None, "default", "openai_chat", None, False, 1, 1, "primary", "openai", "gpt-5", 1)
    metrics.observe(Begin(1, 1, "0", 1, *args))
    metrics.observe(Try(1, 1, "0", 2, "retry", "openai", "gpt-5", 1, None))
    assert metrics.render() == empty


def test_gauges_of_workers() -> None:
    metrics = Metrics()
    metrics.observe(vitals(0, 100.0, in_flight=3, loop_lag_seconds=0.0015))
    metrics.observe(vitals(1, 100.5, in_flight=4, something_new=math.inf))
    metrics.observe(vitals(1, 99.5, in_flight=77))  # an older life, read later
    seen = read(metrics)
    assert list(seen.of("edgegw_in_flight_requests")) == [({"worker": "0"}, 3), ({"worker": "1"}, 4)]
    assert seen.value("edgegw_loop_lag_seconds", worker="0") == 0.0015
    assert seen.value("edgegw_worker_something_new", worker="1") == math.inf
    metrics.observe(vitals(1, 111.0, in_flight=5))  # worker 0 has been silent for over ten seconds
    assert list(read(metrics).of("edgegw_in_flight_requests")) == [({"worker": "1"}, 5)]


def test_a_gauge_whose_name_is_no_name_is_left_out() -> None:
    metrics = Metrics()
    metrics.observe(vitals(0, 1.0, **{"a b": 1.0, "ü": 2.0, "": 3.0, 'x"} 1\n': 4.0}))
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
    total = 3 * module.TARGETS_MAX
    for number in range(total):
        metrics.observe(attempt(model=f"model-{number}"))
        metrics.observe(end(f"target:openai/model-{number}"))
    metrics.observe(attempt(provider=OTHER, model=OTHER))  # a target that is really called so is no second series
    seen = read(metrics)
    attempts = list(seen.of("edgegw_attempts_total"))
    assert len(attempts) == module.TARGETS_MAX + 1
    assert sum(value for _, value in attempts) == total + 1
    requests = list(seen.of("edgegw_requests_total"))
    assert len(requests) == module.ROUTES_MAX + 1
    assert sum(value for _, value in requests) == total
    assert {"provider": OTHER, "model": OTHER, "kind": "primary", "outcome": "ok"} in [labels for labels, _ in attempts]


@given(model=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_name_survives_the_exposition(model: str) -> None:
    metrics = Metrics()
    metrics.observe(attempt(model=model))
    metrics.observe(end(f"target:openai/{model}"))
    seen = read(metrics)
    assert seen.value("edgegw_attempts_total", provider="openai", model=model, kind="primary", outcome="ok") == 1
    assert seen.value("edgegw_requests_total", route=f"target:openai/{model}", state="complete", status="200") == 1


def test_a_lone_surrogate_does_not_break_the_page() -> None:
    metrics = Metrics()
    metrics.observe(attempt(model="\ud800"))
    assert read(metrics).value("edgegw_attempts_total", provider="openai", model="?", kind="primary", outcome="ok") == 1


@given(values=st.lists(st.integers(0, 10**10), max_size=50))
def test_a_histogram_counts_every_value_once_and_where_it_belongs(values: list[int]) -> None:
    histogram = Histogram(module.OVERHEAD_BOUNDS_US)
    for value in values:
        histogram.observe(value)
    assert histogram.sum_us == sum(values)
    for place, bound in enumerate(histogram.bounds_us):
        assert sum(histogram.counts[: place + 1]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)


def test_bounds_ascend() -> None:
    for bounds in (module.DURATION_BOUNDS_US, module.FIRST_TOKEN_BOUNDS_US, module.OVERHEAD_BOUNDS_US):
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
