"""A collector that is spoken to in OTLP over gRPC, by OpenTelemetry's own exporter (the extra `grpc`).

It is loaded only when OTEL_EXPORTER_OTLP_PROTOCOL says grpc: the SDK and gRPC take some 30 MiB and a third of a second.
Their exporter blocks and retries by itself, so it lives in a thread of its own, which nobody waits for at the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from edgegw.telemetry.collector import worked_out
from edgegw.telemetry.export import AwayError
from edgegw.telemetry.spans import Told
from edgegw.telemetry.variables import Otlp
from edgegw.telemetry.wording import CLIENT, Attributes, Span, Wording

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class ReadableSpans:
    """Our spans as the SDK has them."""

    def __init__(self, resource: Attributes, scope: str, version: str, schema_url: str) -> None:
        self._resource = Resource(dict(resource))
        self._scope = InstrumentationScope(scope, version, schema_url)

    def of(self, span: Span) -> ReadableSpan:
        common = span.common
        trace_id = int(span.trace_id, 16)
        state = TraceState.from_header([span.state]) if span.state else None

        def context(span_id: bytes, remote: bool) -> SpanContext:
            return SpanContext(trace_id, int.from_bytes(span_id, "big"), remote, _SAMPLED, state)

        return ReadableSpan(
            common.name,
            context(span.span_id, False),
            None if span.parent_id is None else context(span.parent_id, span.remote),
            self._resource,
            {**dict(common.attributes), **dict(span.own)},
            kind=SpanKind.CLIENT if common.kind == CLIENT else SpanKind.SERVER,
            status=Status(StatusCode.UNSET) if common.error is None else Status(StatusCode.ERROR, common.error),
            start_time=span.started_ns,
            end_time=span.ended_ns,
            instrumentation_scope=self._scope,
        )


class GrpcCollector:
    """Certificates and compression are the exporter's to read, from the same variables."""

    def __init__(self, otlp: Otlp, wording: Wording, spans: ReadableSpans) -> None:
        self._exporter = OTLPSpanExporter(
            otlp.url,
            insecure=True if otlp.insecure else None,
            headers=dict(otlp.headers),
            timeout=otlp.timeout_s,
        )
        self._wording = wording
        self._spans = spans
        self._work: SimpleQueue[tuple[list[ReadableSpan], asyncio.Future[SpanExportResult]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._live, name="grpc-collector", daemon=True).start()

    async def pack(self, batch: Sequence[Told]) -> list[ReadableSpan]:
        return await worked_out(batch, self._readable)

    def _readable(self, batch: Sequence[Told]) -> list[ReadableSpan]:
        return [self._spans.of(span) for told in batch for span in self._wording.spans_of(told)]

    async def post(self, packed: list[ReadableSpan]) -> int:
        done: asyncio.Future[SpanExportResult] = self._loop.create_future()
        self._work.put((packed, done))
        if await done is not SpanExportResult.SUCCESS:
            raise AwayError("the collector did not take them")
        return 0

    async def close(self) -> None:
        self._work.put(None)

    def _live(self) -> None:
        while (work := self._work.get()) is not None:
            spans, done = work
            try:
                result = self._exporter.export(spans)
            except Exception:
                result = SpanExportResult.FAILURE
            with suppress(RuntimeError):  # the loop is closed: nobody waits for it
                self._loop.call_soon_threadsafe(_settle, done, result)
        self._exporter.shutdown()


def _settle(done: asyncio.Future[SpanExportResult], result: SpanExportResult) -> None:
    if not done.done():
        done.set_result(result)
