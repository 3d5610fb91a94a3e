"""OpenTelemetry's environment variables, read once: where spans and metrics go, which ones, and how many may wait.

Names, defaults and units are those of the OpenTelemetry specification ("Environment Variable Specification" and
"Protocol Exporter", 1.50): times in milliseconds. As it asks, an empty variable counts as unset, and one that cannot be
read is told (`complaints`) and passed over: a typing error in a variable of telemetry stops no gateway.

Pure: the environment is an argument. Values of headers are secrets, and in no complaint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from edgegw import __version__
from edgegw.settings import values
from edgegw.trace import Keeping, Sampler

Exporter = Literal["otlp", "console"]
Protocol = Literal["http/protobuf", "grpc"]

# parent_based, exceptions, and the ratio where the argument has no say.
_SAMPLERS: dict[str, tuple[bool, bool, float | None]] = {
    "always_on": (False, True, 1.0),
    "always_off": (False, False, 0.0),
    "traceidratio": (False, True, None),
    "parentbased_always_on": (True, True, 1.0),
    "parentbased_always_off": (True, False, 0.0),
    "parentbased_traceidratio": (True, True, None),
}
_DEFAULT_PORTS = {"http/protobuf": 4318, "grpc": 4317}
Signal = Literal["TRACES", "METRICS"]
_PATHS: dict[Signal, str] = {"TRACES": "/v1/traces", "METRICS": "/v1/metrics"}
SLOW = "EDGEGW_TRACE_SLOW"
SLOW_S = 10.0
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
# Whether spans and events have prompts and answers. `true` and `false` are of the conventions before 1.37.
_CONTENT: dict[str, tuple[bool, bool]] = {
    "no_content": (False, False),
    "span_only": (True, False),
    "event_only": (False, True),
    "span_and_event": (True, True),
    "true": (True, False),
    "false": (False, False),
}
# Of one attribute with prompts or answers, where no other limit is set.
CONTENT_BYTES_MAX = 64 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Otlp:
    """A collector. `certificate`: the file of those it is trusted by, None for the system's; the client's own two are
    for collectors that ask who comes."""

    url: str
    protocol: Protocol = "http/protobuf"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout_s: float = 10.0
    gzip: bool = False
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """`exporters` is empty when nobody wants spans. Bounds count spans; `slow_s`: from there on a request is kept
    whatever the dice say; `export_timeout_s`: how long one batch may take, all tries together. `content`: a collector
    is told prompts and answers, at most `content_bytes_max` of them in one attribute."""

    exporters: frozenset[Exporter]
    sampler: Sampler
    slow_s: float
    otlp: Otlp
    resource: tuple[tuple[str, str], ...]
    delay_s: float = 5.0
    queue_spans_max: int = 2048
    batch_spans_max: int = 512
    export_timeout_s: float = 30.0
    content: bool = False
    content_bytes_max: int = CONTENT_BYTES_MAX
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """Every `interval_s` all metrics go to a collector, within `timeout_s`. `otlp`: None when nobody wants them; they
    are at /metrics all the same."""

    otlp: Otlp | None
    resource: tuple[tuple[str, str], ...]
    interval_s: float = 60.0
    timeout_s: float = 30.0
    complaints: tuple[str, ...] = ()


def read_metrics(environ: Mapping[str, str], instance: str) -> MetricSettings:
    reader = _Reader(environ)
    wanted = reader.metrics_wanted()
    otlp = reader.otlp("METRICS") if wanted else None
    if otlp is not None and otlp.protocol == "grpc":
        reader.complaints.append("metrics are exported by http/protobuf only: set OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")
        otlp = None
    return MetricSettings(
        otlp,
        reader.resource(instance),
        reader.number("OTEL_METRIC_EXPORT_INTERVAL", 60_000.0, float, low=1) / 1000,
        reader.number("OTEL_METRIC_EXPORT_TIMEOUT", 30_000.0, float, low=1) / 1000,
        tuple(reader.complaints),
    )


def read(environ: Mapping[str, str], instance: str) -> TraceSettings:
    """`instance` tells this gateway from others of the same service."""
    reader = _Reader(environ)
    otlp = reader.otlp("TRACES")
    exporters = reader.exporters()
    queue_spans_max = reader.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048, int, low=1)
    batch_spans_max = reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, int, low=1)
    return TraceSettings(
        exporters,
        reader.sampler(),
        reader.slow_s(),
        otlp,
        reader.resource(instance),
        reader.number("OTEL_BSP_SCHEDULE_DELAY", 5000.0, float) / 1000,
        queue_spans_max,
        min(batch_spans_max, queue_spans_max),
        reader.number("OTEL_BSP_EXPORT_TIMEOUT", 30_000.0, float) / 1000,
        reader.content(exporters),
        reader.content_bytes_max(),
        tuple(reader.complaints),
    )


def _url_parts(url: str) -> SplitResult | None:
    """None for what is no URL that can be asked."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable and url.isascii() and url.isprintable() and " " not in url else None


def sampler(environ: Mapping[str, str]) -> Sampler:
    return _Reader(environ).sampler()


def keeping(environ: Mapping[str, str]) -> Keeping:
    """Which requests have spans."""
    reader = _Reader(environ)
    return Keeping(reader.sampler(), slow_us(reader.slow_s()))


def slow_us(slow_s: float) -> int:
    return round(slow_s * 1e6)


def tells_content(environ: Mapping[str, str]) -> bool:
    """Whether spans that go to a collector have prompts and answers."""
    reader = _Reader(environ)
    return reader.content(reader.exporters())


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.complaints: list[str] = []

    def text(self, name: str) -> str | None:
        return self._environ.get(name, "").strip() or None

    def flag(self, name: str) -> bool:
        return (self.text(name) or "").lower() == "true"

    def choice(self, name: str, known: Mapping[str, _T], default: _T) -> _T:
        text = self.text(name)
        if text is None:
            return default
        if text.lower() not in known:
            self.complaints.append(f"{name}: expected one of {', '.join(known)}, found {text!r}")
            return default
        return known[text.lower()]

    def number(self, name: str, default: _T, kind: Callable[[str], _T], low: float = 0) -> _T:
        text = self.text(name)
        if text is None:
            return default
        try:
            value = kind(text)
            if not low <= float(value) < float("inf"):  # type: ignore[arg-type]
                raise ValueError
        except ValueError:
            self.complaints.append(f"{name}: expected a number of at least {low:g}, found {text!r}")
            return default
        return value

    def exporters(self) -> frozenset[Exporter]:
        """Unset: a collector when one is named, else a line per request on stdout."""
        if self.flag("OTEL_SDK_DISABLED"):
            return frozenset()
        named = self.text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or self.text("OTEL_EXPORTER_OTLP_ENDPOINT")
        default: frozenset[Exporter] = frozenset({"otlp"} if named else {"console"})
        text = self.text("OTEL_TRACES_EXPORTER")
        if text is None:
            return default
        wanted = {word.strip().lower() for word in text.split(",")} - {""}
        if not wanted <= {"otlp", "console", "none"}:
            self.complaints.append(f"OTEL_TRACES_EXPORTER: expected otlp, console or none, found {text!r}")
            return default
        both: tuple[Exporter, ...] = ("otlp", "console")
        return frozenset(exporter for exporter in both if exporter in wanted)

    def metrics_wanted(self) -> bool:
        """Unset: when a collector is named."""
        if self.flag("OTEL_SDK_DISABLED"):
            return False
        named = self.text("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") or self.text("OTEL_EXPORTER_OTLP_ENDPOINT")
        # Prometheus finds them at /metrics in any case.
        known = {"otlp": True, "none": False, "prometheus": False}
        preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
        self.choice(preference, {"cumulative": True}, True)
        return self.choice("OTEL_METRICS_EXPORTER", known, named is not None)

    def sampler(self) -> Sampler:
        parent_based, exceptions, ratio = self.choice(
            "OTEL_TRACES_SAMPLER", _SAMPLERS, _SAMPLERS["parentbased_always_on"]
        )
        if ratio is None:
            ratio = self.number("OTEL_TRACES_SAMPLER_ARG", 1.0, float)
            if ratio > 1:
                self.complaints.append(f"OTEL_TRACES_SAMPLER_ARG: expected at most 1, found {ratio:g}")
                ratio = 1.0
        return Sampler(ratio, parent_based, exceptions)

    def slow_s(self) -> float:
        text = self.text(SLOW)
        if text is None:
            return SLOW_S
        try:
            return float(values.duration("1ms", "24h").read(text))
        except ValueError:
            self.complaints.append(f"{SLOW}: expected a duration such as 10s or 500ms, found {text!r}")
            return SLOW_S

    def content(self, exporters: frozenset[Exporter]) -> bool:
        """Only a clear word sends prompts anywhere: of events there are none, and a line never has any."""
        on_spans, as_events = self.choice(CONTENT, _CONTENT, (False, False))
        if as_events:
            instead = "content goes on spans alone" if on_spans else "nothing is told; SPAN_ONLY puts content on spans"
            self.complaints.append(f"{CONTENT}: events are not exported: {instead}")
        if on_spans and "otlp" not in exporters:
            self.complaints.append(f"{CONTENT}: no spans go to a collector, so no content does")
            return False
        return on_spans

    def content_bytes_max(self) -> int:
        span, all_ = "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"
        return self.number(span if self.text(span) is not None else all_, CONTENT_BYTES_MAX, int)

    def otlp(self, signal: Signal) -> Otlp:
        """The signal's own variables win over those of all signals."""

        def name(ending: str) -> str:
            own = f"OTEL_EXPORTER_OTLP_{signal}_{ending}"
            return own if self.text(own) is not None else f"OTEL_EXPORTER_OTLP_{ending}"

        protocols: dict[str, Protocol] = {"http/protobuf": "http/protobuf", "grpc": "grpc"}
        protocol = self.choice(name("PROTOCOL"), protocols, "http/protobuf")
        return Otlp(
            self._url(name("ENDPOINT"), protocol, _PATHS[signal]),
            protocol,
            self._headers(name("HEADERS")),
            self.number(name("TIMEOUT"), 10_000.0, float) / 1000,
            self.choice(name("COMPRESSION"), {"gzip": True, "none": False}, False),
            self.text(name("CERTIFICATE")),
            self.text(name("CLIENT_CERTIFICATE")),
            self.text(name("CLIENT_KEY")),
            self.flag(name("INSECURE")),
        )

    def _url(self, name: str, protocol: Protocol, path: str) -> str:
        """That of a signal is used as it is, to that of all signals the signal's path is added."""
        path = "" if protocol == "grpc" else path
        default = f"http://localhost:{_DEFAULT_PORTS[protocol]}{path}"
        url = self.text(name)
        if url is None:
            return default
        parts = _url_parts(url)
        if parts is None:
            self.complaints.append(f"{name}: expected an http:// or https:// URL")
            return default
        if protocol == "grpc":
            return url
        whole = parts.path.rstrip("/") + path if name == "OTEL_EXPORTER_OTLP_ENDPOINT" else parts.path or "/"
        return parts._replace(path=whole, fragment="").geturl()

    def _pairs(self, name: str) -> list[tuple[str, str]]:
        """`key=value,…`, both percent-encoded where they have to be."""
        pairs = []
        for part in (self.text(name) or "").split(","):
            key, equals, value = part.partition("=")
            if equals and key.strip():
                pairs.append((unquote(key.strip()), unquote(value.strip())))
            elif part.strip():
                self.complaints.append(f"{name}: expected key=value, found something else")
        return pairs

    def _headers(self, name: str) -> tuple[tuple[str, str], ...]:
        headers = []
        for key, value in self._pairs(name):
            if key.isascii() and value.isascii() and key.isprintable() and value.isprintable() and " " not in key:
                headers.append((key.lower(), value))
            else:
                self.complaints.append(f"{name}: {key!r} cannot be sent as a header")
        return tuple(headers)

    def resource(self, instance: str) -> tuple[tuple[str, str], ...]:
        resource = {
            "service.name": "edgegw",
            "service.version": __version__,
            "service.instance.id": instance,
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "edgegw",
            "telemetry.sdk.version": __version__,
        }
        resource.update(self._pairs("OTEL_RESOURCE_ATTRIBUTES"))
        name = self.text("OTEL_SERVICE_NAME")
        if name is not None:
            resource["service.name"] = name
        return tuple(resource.items())
