"""How the control process tells of what happened: spans and figures, and to whom."""

from __future__ import annotations

import logging
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgegw import __version__
from edgegw.app.parts import SystemClock
from edgegw.content.choice import Choice
from edgegw.content.courier import Courier
from edgegw.http.proxies import Proxies
from edgegw.settings import Settings
from edgegw.telemetry import semconv, variables
from edgegw.telemetry.console import DELAY_S, Console, Lines
from edgegw.telemetry.export import Destination, Exporter
from edgegw.telemetry.meeting import Meeting
from edgegw.telemetry.metrics import Metrics
from edgegw.telemetry.spans import Spans, Told
from edgegw.telemetry.tracing import Contents, Tracing
from edgegw.telemetry.wording import Place, Wording

if TYPE_CHECKING:
    from edgegw.telemetry.metric_export import MetricExporter

STDOUT = 1
# Tenants whose content is not told, in one line of the log.
REFUSING_NAMED = 10

logger = logging.getLogger("edgegw")


def places(settings: Settings) -> dict[str, Place]:
    return {each.name: Place.of(each.name, each.kind, each.base_url) for each in settings.providers.values()}


def build_tracing(settings: Settings, clock: SystemClock, instance: str, *, as_json: bool) -> Tracing | None:
    """As OpenTelemetry's variables have it. A collector's client is loaded only when one is named."""
    wanted = variables.read(os.environ, instance)
    for complaint in wanted.complaints:
        logger.warning("%s", complaint)
    dice = random.Random(secrets.randbits(64)).random

    def exporter(destination: Destination, delay_s: float) -> Exporter:
        return Exporter(
            destination,
            clock,
            dice,
            delay_s=delay_s,
            queue_spans_max=wanted.queue_spans_max,
            batch_spans_max=wanted.batch_spans_max,
            timeout_s=wanted.export_timeout_s,
        )

    exporters: list[Exporter] = []
    sinks: list[Callable[[Told], None]] = []
    contents: Contents | None = None
    if "otlp" in wanted.exporters:
        wording = Wording(places(settings), wanted.content_bytes_max)
        exporters.append(exporter(build_collector(wanted, wording, clock), wanted.delay_s))
        if wanted.content:
            contents = build_contents(settings, clock, exporters[-1].offer)
        sinks.append(exporters[-1].offer if contents is None else contents.meeting.offer)
    if "console" in wanted.exporters:
        lines = Lines()
        write = lines.json if as_json else lines.text
        exporters.append(exporter(Console(STDOUT, write), min(DELAY_S, wanted.delay_s)))
        sinks.append(exporters[-1].offer)
    if not exporters:
        return None
    return Tracing(Spans(wanted.sampler, variables.slow_us(wanted.slow_s), sinks), exporters, contents)


def build_contents(settings: Settings, clock: SystemClock, onward: Callable[[Told], None]) -> Contents:
    choice = Choice(settings, tells=True)
    refusing = choice.refusing
    more = f" and {len(refusing) - REFUSING_NAMED} more" if len(refusing) > REFUSING_NAMED else ""
    but = f", but not those of {', '.join(refusing[:REFUSING_NAMED])}{more}" if refusing else ""
    logger.warning("prompts and answers go to the collector%s: %s says so", but, variables.CONTENT)
    meeting = Meeting(onward, choice, clock)
    return Contents(Courier(Path(settings.server.state_dir), meeting.bring, lambda: meeting.room, clock), meeting)


def build_collector(wanted: variables.TraceSettings, wording: Wording, clock: SystemClock) -> Destination:
    about = wanted.resource, semconv.SCOPE, __version__, semconv.SCHEMA_URL
    if wanted.otlp.protocol == "http/protobuf":
        from edgegw.telemetry.collector import HttpCollector
        from edgegw.telemetry.otlp import Encoder

        proxies = Proxies.from_environment(os.environ)
        return HttpCollector(wanted.otlp, proxies, wording, Encoder(*about), clock)
    try:
        from edgegw.telemetry.collector_grpc import GrpcCollector, ReadableSpans
    except ModuleNotFoundError as error:
        raise SystemExit(f"OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs {error.name}: pip install 'edgegw[grpc]'") from None

    return GrpcCollector(wanted.otlp, wording, ReadableSpans(*about))


def build_metric_exporter(metrics: Metrics, clock: SystemClock, instance: str) -> MetricExporter | None:
    """None: nobody wants metrics but from /metrics."""
    wanted = variables.read_metrics(os.environ, instance)
    for complaint in wanted.complaints:
        logger.warning("%s", complaint)
    if wanted.otlp is None:
        return None
    from edgegw.telemetry.collector import OtlpHttp
    from edgegw.telemetry.metric_export import MetricExporter
    from edgegw.telemetry.otlp_metrics import MetricEncoder

    encoder = MetricEncoder(wanted.resource, semconv.SCOPE, __version__, semconv.SCHEMA_URL, clock.wall_ns())
    collector = OtlpHttp(wanted.otlp, Proxies.from_environment(os.environ), clock)
    return MetricExporter(metrics, encoder, collector, clock, wanted.interval_s, wanted.timeout_s)


def route_names(settings: Settings) -> set[str]:
    """As routing.py writes them, but for those of targets that only clients name."""
    names = {f"use_case:{name}" for name in settings.use_cases}
    names |= {f"pattern:{name}" if "*" in name else f"model:{name}" for name in settings.models}
    return names | {f"target:{provider}/{model}" for provider, model in fixed_targets(settings)} | {"default"}


def fixed_targets(settings: Settings) -> set[tuple[str, str]]:
    """The targets that the settings spell out."""
    routes = [*settings.use_cases.values(), *settings.models.values()]
    routes += [] if settings.default is None else [settings.default]
    targets = {(target.provider, target.model) for route in routes for target in route.parsed}
    return {(provider, model) for provider, model in targets if "*" not in model}
