"""Metrics by OTLP: the official classes read what /metrics shows, and a collector that fails is only counted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from collector import Answer, Collector
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, Metric
from rig import Simulator, StartGateway, chat, eventually, providers
from test_metrics import attempt, end, vitals

from edgegw.clock import Clock
from edgegw.ledger.record import Try
from edgegw.telemetry import names
from edgegw.telemetry.export import AwayError, RefusedError
from edgegw.telemetry.family import Family
from edgegw.telemetry.histogram import Histogram
from edgegw.telemetry.metric_export import MetricExporter
from edgegw.telemetry.metrics import Metrics
from edgegw.telemetry.otlp_metrics import MetricEncoder
from edgegw.telemetry.variables import Otlp, read_metrics

STARTED_NS, NOW_NS = 1_700_000_000_000_000_000, 1_700_000_060_000_000_000
RESOURCE = (("service.name", "edgegw"), ("service.instance.id", "0123"))


def some() -> Metrics:
    metrics = Metrics({names.LEDGER_LAG: lambda: math.nan, names.LEDGER_ROWS: lambda: 2**40}, targets=[("openai", "ü")])
    metrics.observe([attempt("primary", "upstream_cut", model="ü", cost_usd_micro=1_234_567)])
    metrics.observe([Try(1, 2, "0", 2, "fallback", "openai", "gpt-5", 1, "upstream_cut")])
    metrics.observe([attempt("fallback", retry_reason="upstream_cut", tenant="acme", input_tokens=70_000_000)])
    metrics.observe([end("default")])
    metrics.observe([vitals(0, 1.0, in_flight=3, cpu_seconds=1.25)])
    return metrics


def encoder() -> MetricEncoder:
    return MetricEncoder(RESOURCE, "edgegw", "1.2.3", "https://opentelemetry.io/schemas/1", STARTED_NS)


def written(metrics: Metrics) -> ExportMetricsServiceRequest:
    encode, message = encoder(), ExportMetricsServiceRequest()
    body = encode.request(encode.metric(family, samples, NOW_NS) for family, samples in metrics.families())
    message.ParseFromString(body)
    return message


def of(message: ExportMetricsServiceRequest) -> Iterator[Metric]:
    for resource_metrics in message.resource_metrics:
        assert {each.key: each.value.string_value for each in resource_metrics.resource.attributes} == dict(RESOURCE)
        for scope_metrics in resource_metrics.scope_metrics:
            assert (scope_metrics.scope.name, scope_metrics.scope.version) == ("edgegw", "1.2.3")
            assert scope_metrics.schema_url
            yield from scope_metrics.metrics


def test_the_official_classes_read_what_the_page_shows() -> None:
    metrics = some()
    read = {metric.name: metric for metric in of(written(metrics))}
    shown = {family.otel_name: (family, list(samples)) for family, samples in metrics.families()}
    assert read.keys() == {name for name, (_, samples) in shown.items() if samples}
    for name, metric in read.items():
        family, samples = shown[name]
        assert (metric.description, metric.unit) == (family.help, family.otel_unit)
        data = getattr(metric, {"counter": "sum"}.get(family.type, family.type))
        if family.type != "gauge":
            assert data.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
        if family.type == "counter":
            assert data.is_monotonic
        assert len(data.data_points) == len(samples)
        for point, (labels, value) in zip(data.data_points, samples, strict=True):
            assert (point.start_time_unix_nano, point.time_unix_nano) == (STARTED_NS, NOW_NS)
            told = {each.key: each.value.string_value for each in point.attributes}
            known = zip(family.attributes or family.labels, labels, strict=True)
            assert told == {key: label for key, label in known if label}
            if isinstance(value, Histogram):
                assert list(point.bucket_counts) == value.counts
                assert list(point.explicit_bounds) == [bound / value.one for bound in value.bounds]
                assert (point.count, point.sum) == (sum(value.counts), value.sum / value.one)
            else:
                number = getattr(point, point.WhichOneof("value") or "")
                assert number == value or (number != number and value != value)


def test_names_and_units() -> None:
    read = {metric.name: metric.unit for metric in of(written(some()))}
    assert read["edgegw.ledger_lag"] == "s"
    assert read["edgegw.in_flight_requests"] == ""
    assert read["edgegw.requests"] == read["edgegw.cost_usd"] == ""
    assert read["gen_ai.client.token.usage"] == "{token}"
    assert read["gen_ai.server.time_to_first_token"] == "s"
    assert sum(metric.name == "edgegw.worker_cpu" for metric in of(written(some()))) == 1


def test_no_two_families_have_one_name() -> None:
    families = [family for family in vars(names).values() if isinstance(family, Family)]
    families += names.WORKER_GAUGES.values()
    for called in ([family.name for family in families], [family.otel_name for family in families]):
        assert len(set(called)) == len(called)


# -- variables --


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/otel/"}, "http://c:4318/otel/v1/metrics"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318/x"}, "http://c:4318/x"),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, "http://localhost:4318/v1/metrics"),
        ({"OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, None),
    ],
)
def test_where_metrics_go(environ: dict[str, str], url: str | None) -> None:
    wanted = read_metrics(environ, "0123")
    assert (wanted.otlp.url if wanted.otlp else None) == url
    assert wanted.complaints == ()


def test_how_often_and_what_is_not_to_be_had() -> None:
    wanted = read_metrics({"OTEL_METRIC_EXPORT_INTERVAL": "5000", "OTEL_METRIC_EXPORT_TIMEOUT": "700"}, "0123")
    assert (wanted.interval_s, wanted.timeout_s, wanted.otlp) == (5, 0.7, None)
    assert read_metrics({}, "0").interval_s == 60
    over_grpc = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert read_metrics(over_grpc, "0123").otlp is None
    assert "http/protobuf only" in read_metrics(over_grpc, "0123").complaints[0]
    mended = read_metrics({**over_grpc, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"}, "0123")
    assert mended.otlp == Otlp("http://localhost:4318/v1/metrics")
    delta = read_metrics({"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}, "0123")
    assert "expected one of cumulative" in delta.complaints[0]


# -- the export --


class Played:
    """A collector that answers as it is told to, then takes everything."""

    def __init__(self, *answers: Exception | int) -> None:
        self.answers = list(answers)
        self.taken: list[bytes] = []
        self.closed = False
        self.taken_twice = asyncio.Event()

    async def request(self, body: bytes) -> bytes:
        return body

    async def post(self, packed: bytes) -> int:
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, Exception):
            raise answer
        self.taken.append(packed)
        if len(self.taken) == 2:
            self.taken_twice.set()
        return answer

    async def close(self) -> None:
        self.closed = True


class Wall:
    def now(self) -> float:
        return 0.0

    def wall_ns(self) -> int:
        return NOW_NS


async def test_what_fails_is_counted_told_once_and_made_up_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    answers = (AwayError("nobody there"), AwayError("nobody there"), RefusedError("answered 400"), KeyError("x"), 3)
    collector, clock = Played(*answers), Wall()
    kept: Clock = clock
    exporter = MetricExporter(some(), encoder(), collector, kept, interval_s=0.001, timeout_s=1)
    exporter.start()
    async with asyncio.timeout(5):
        await collector.taken_twice.wait()
    await exporter.stop(1)
    assert exporter.failures == {("unreachable",): 2, ("refused",): 1, ("failed",): 1, ("rejected",): 1}
    assert collector.closed
    said = [record.message for record in caplog.records]
    assert said == ["metrics are not exported (unreachable): nobody there", "metrics are exported again"]
    names_read = [metric.name for metric in of(ExportMetricsServiceRequest.FromString(collector.taken[-1]))]
    assert "edgegw.requests" in names_read


async def test_one_that_hangs_is_given_up() -> None:
    class Hanging(Played):
        async def post(self, packed: bytes) -> int:
            await asyncio.sleep(3600)
            return 0

    exporter = MetricExporter(some(), encoder(), Hanging(), Wall(), interval_s=3600, timeout_s=0.01)
    exporter.start()
    await exporter.stop(5)
    assert exporter.failures == {("unreachable",): 1}


@pytest.mark.system
def test_a_gateway_exports_what_it_counted_also_when_it_goes(simulator: Simulator, gateway: StartGateway) -> None:
    with Collector(Answer(status=503)) as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "300",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        running = gateway({"providers": providers(simulator), "models": {"good": {"targets": ["sim/good"]}}}, env)
        eventually("an export", lambda: len(collector.metrics), bool, 15)
        assert {chat(running.url, "good").status for _ in range(5)} == {200}
        code, said = running.stop()
        assert code == 0, said
        last = {
            metric.name: metric
            for group in collector.metrics[-1].resource_metrics
            for metric in group.scope_metrics[0].metrics
        }
        (counted,) = last["edgegw.requests"].sum.data_points
        assert counted.as_int == 5
        failures = last["edgegw.metric_export_failures"].sum.data_points
        assert [(each.as_int, each.attributes[0].value.string_value) for each in failures] == [(1, "unreachable")]
        assert {path for path, _ in collector.requests} == {"/v1/metrics"}
