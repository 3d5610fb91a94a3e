"""OpenTelemetry's variables: what they mean, and that a typing error in one stops nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw import __version__
from edgegw.telemetry.variables import CONTENT, Otlp, TraceSettings, keeping, read, tells_content
from edgegw.trace import Keeping, Sampler

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


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}


@pytest.mark.parametrize(
    ("value", "content", "complaint"),
    [
        ("", False, ""),
        ("false", False, ""),
        ("NO_CONTENT", False, ""),
        ("true", True, ""),
        ("True", True, ""),
        ("SPAN_ONLY", True, ""),
        ("span_only", True, ""),
        ("SPAN_AND_EVENT", True, "events are not exported: content goes on spans alone"),
        ("EVENT_ONLY", False, "events are not exported: nothing is told; SPAN_ONLY puts content on spans"),
        ("yes", False, "expected one of no_content, span_only, event_only, span_and_event, true, false, found 'yes'"),
    ],
)
def test_whether_spans_have_content(value: str, content: bool, complaint: str) -> None:
    environ = {**ENDPOINT, CONTENT: value}
    wanted = of(**environ)
    assert wanted.content == tells_content(environ) == content
    assert wanted.complaints == ((f"{CONTENT}: {complaint}",) if complaint else ())


@pytest.mark.parametrize("others", [{}, {"OTEL_TRACES_EXPORTER": "console", **ENDPOINT}, {"OTEL_SDK_DISABLED": "true"}])
def test_content_goes_to_a_collector_or_nowhere(others: dict[str, str]) -> None:
    wanted = of(**others, **{CONTENT: "SPAN_ONLY"})
    assert not wanted.content
    assert not tells_content({**others, CONTENT: "SPAN_ONLY"})
    assert wanted.complaints == (f"{CONTENT}: no spans go to a collector, so no content does",)


def test_how_much_content_one_attribute_holds() -> None:
    span, all_ = "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"
    assert [
        of(**environ).content_bytes_max for environ in ({}, {all_: "4095"}, {span: "100", all_: "4095"}, {span: "-1"})
    ] == [65_536, 4095, 100, 65_536]


def test_workers_and_control_process_agree_on_which_requests_have_spans() -> None:
    environ = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1", "EDGEGW_TRACE_SLOW": "3s"}
    assert keeping(environ) == Keeping(of(**environ).sampler, 3_000_000)


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
