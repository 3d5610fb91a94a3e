"""OpenTelemetry's variables: what they mean, and that a typing error in one stops nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw import __version__
from edgegw.telemetry.variables import Otlp, TraceSettings, read
from edgegw.trace import Sampler

HOUSE = Path(__file__).parent.parent


def of(**environ: str) -> TraceSettings:
    return read(environ, "0123")


def test_without_any_of_them_there_are_lines_on_stdout() -> None:
    wanted = of()
    assert wanted.exporters == {"console"}
    assert wanted.sampler == Sampler(1.0, parent_based=True)
    assert (wanted.delay_s, wanted.queue_spans_max, wanted.batch_spans_max, wanted.export_timeout_s) == (
        5,
        2048,
        512,
        30,
    )
    assert wanted.slow_s == 10
    assert wanted.otlp == Otlp("http://localhost:4318/v1/traces")
    assert dict(wanted.resource) == {
        "service.name": "edgegw",
        "service.version": __version__,
        "service.instance.id": "0123",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "edgegw",
        "telemetry.sdk.version": __version__,
    }
    assert wanted.complaints == ()
    assert of(**dict.fromkeys(("OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"), "")) == wanted


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"otlp"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/x"}, {"otlp"}),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, {"otlp"}),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, set()),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"console"}),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, {"otlp", "console"}),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"}, set()),
    ],
)
def test_where_spans_go(environ: dict[str, str], exporters: set[str]) -> None:
    assert of(**environ).exporters == exporters


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"ENDPOINT": "https://c/prefix/"}, "https://c/prefix/v1/traces"),
        ({"ENDPOINT": "c:4318"}, "http://c:4318/v1/traces"),
        ({"TRACES_ENDPOINT": "http://c:4318"}, "http://c:4318/"),
        ({"TRACES_ENDPOINT": "http://c/otlp?x=1", "ENDPOINT": "http://other"}, "http://c/otlp?x=1"),
        ({"PROTOCOL": "grpc"}, "http://localhost:4317"),
        ({"PROTOCOL": "grpc", "ENDPOINT": "https://c:4317"}, "https://c:4317"),
    ],
)
def test_the_address_of_a_collector(environ: dict[str, str], url: str) -> None:
    assert of(**{f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environ.items()}).otlp.url == url


def test_all_of_a_collector_and_the_signals_own_variables_win() -> None:
    wanted = of(
        OTEL_EXPORTER_OTLP_ENDPOINT="https://c:4318",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20abc,X-Tenant=a%2Cb",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="authorization=Bearer%20traces",
        OTEL_EXPORTER_OTLP_TIMEOUT="2500",
        OTEL_EXPORTER_OTLP_COMPRESSION="none",
        OTEL_EXPORTER_OTLP_TRACES_COMPRESSION="gzip",
        OTEL_EXPORTER_OTLP_CERTIFICATE="/ca.pem",
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE="/me.pem",
        OTEL_EXPORTER_OTLP_CLIENT_KEY="/me.key",
    )
    assert wanted.otlp == Otlp(
        "https://c:4318/v1/traces",
        headers=(("authorization", "Bearer traces"),),
        timeout_s=2.5,
        gzip=True,
        certificate="/ca.pem",
        client_certificate="/me.pem",
        client_key="/me.key",
    )
    assert "Bearer" not in repr(wanted)
    assert of(OTEL_EXPORTER_OTLP_HEADERS="a=1, X-Tenant = a%2Cb").otlp.headers == (("a", "1"), ("x-tenant", "a,b"))


@pytest.mark.parametrize(
    ("name", "arg", "sampler"),
    [
        ("always_on", "", Sampler(1.0, parent_based=False)),
        ("always_off", "0.5", Sampler(0.0, parent_based=False, exceptions=False)),
        ("traceidratio", "0.25", Sampler(0.25, parent_based=False)),
        ("traceidratio", "", Sampler(1.0, parent_based=False)),
        ("parentbased_always_on", "", Sampler(1.0)),
        ("parentbased_always_off", "", Sampler(0.0, exceptions=False)),
        ("parentbased_traceidratio", "0", Sampler(0.0)),
        ("ParentBased_TraceIdRatio", "0.01", Sampler(0.01)),
    ],
)
def test_the_samplers(name: str, arg: str, sampler: Sampler) -> None:
    assert of(OTEL_TRACES_SAMPLER=name, OTEL_TRACES_SAMPLER_ARG=arg).sampler == sampler


def test_the_batches_and_the_resource() -> None:
    wanted = of(
        OTEL_BSP_SCHEDULE_DELAY="200",
        OTEL_BSP_MAX_QUEUE_SIZE="100",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1000",
        OTEL_BSP_EXPORT_TIMEOUT="1500",
        OTEL_RESOURCE_ATTRIBUTES="service.name=x,k8s.pod.name=edge%2D1,deployment.environment.name=prod",
        OTEL_SERVICE_NAME="gateway",
        EDGEGW_TRACE_SLOW="2500ms",
    )
    assert (wanted.delay_s, wanted.queue_spans_max, wanted.batch_spans_max) == (0.2, 100, 100)
    assert (wanted.export_timeout_s, wanted.slow_s) == (1.5, 2.5)
    resource = dict(wanted.resource)
    assert (resource["service.name"], resource["k8s.pod.name"]) == ("gateway", "edge-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "nan"),
        ("OTEL_RESOURCE_ATTRIBUTES", "nonsense"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://c"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:99999"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/ x"),
        ("EDGEGW_TRACE_SLOW", "soon"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x=a%0d%0aevil: 1"),
    ],
)
def test_what_cannot_be_read_is_told_and_passed_over(name: str, value: str) -> None:
    wanted = of(**{name: value})
    (complaint,) = wanted.complaints
    assert complaint.startswith(name)
    assert "evil" not in complaint
    assert wanted.otlp == of().otlp


def test_a_ratio_beyond_one_is_told() -> None:
    wanted = of(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="7")
    assert (wanted.sampler.ratio, len(wanted.complaints)) == (1.0, 1)


@given(st.dictionaries(st.sampled_from(["TRACES_ENDPOINT", "ENDPOINT", "HEADERS", "TIMEOUT", "PROTOCOL"]), st.text()))
def test_nothing_in_them_raises(values: dict[str, str]) -> None:
    read({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in values.items()}, "i")


def test_every_variable_is_documented() -> None:
    text = "".join((HOUSE / "docs" / page).read_text("utf-8") for page in ("traces.md", "metrics.md"))
    source = (HOUSE / "edgegw" / "telemetry" / "variables.py").read_text("utf-8")
    named = set(re.findall(r'"((?:OTEL|EDGEGW)_[A-Z_]*[A-Z])"', source))
    assert len(named) >= 12
    assert {name for name in named if f"`{name}`" not in text} == set()
    endings = ("ENDPOINT", "PROTOCOL", "HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE", "CLIENT_CERTIFICATE")
    assert [each for each in (*endings, "CLIENT_KEY", "INSECURE") if f"OTEL_EXPORTER_OTLP_{each}`" not in text] == []
