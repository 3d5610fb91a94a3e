"""A collector by gRPC, through OpenTelemetry's own exporter."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from collector import Collector, Seen, closed_port
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from rig import Simulator, StartGateway, chat, providers
from span_records import plain_told, wording

from edgegw.telemetry.collector_grpc import GrpcCollector, ReadableSpans
from edgegw.telemetry.export import AwayError
from edgegw.telemetry.variables import Otlp

ABOUT = (("service.name", "edgegw"),), "edgegw", "0.1.0", "https://schema"


class Service(trace_service_pb2_grpc.TraceServiceServicer):
    """Reads what comes as the stand-in by HTTP does. `refuse`: every call fails with this."""

    def __init__(self, refuse: grpc.StatusCode | None) -> None:
        self.reader = Collector()
        self.metadata: list[dict[str, str]] = []
        self._refuse = refuse

    @property
    def spans(self) -> list[Seen]:
        return self.reader.spans

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (its name in the protocol)
        self.metadata.append(dict(context.invocation_metadata()))
        if self._refuse is not None:
            context.abort(self._refuse, "no")
        self.reader.took(request.SerializeToString())
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def serving(refuse: grpc.StatusCode | None = None) -> Iterator[tuple[Service, str]]:
    service = Service(refuse)
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield service, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        service.reader._server.server_close()


def collector_at(url: str, **fields: Any) -> GrpcCollector:
    otlp = Otlp(url, "grpc", **{"timeout_s": 5.0, **fields})
    return GrpcCollector(otlp, wording(), ReadableSpans(*ABOUT))


async def test_a_batch_arrives_whole() -> None:
    with serving() as (service, url):
        collector = collector_at(url, headers=(("x-scope", "a"),))
        packed = await collector.pack([plain_told(number) for number in range(100)])
        assert await collector.post(packed) == 0
        await collector.close()
        assert len({span.id for span in service.spans}) == 200
        assert service.metadata[0]["x-scope"] == "a"
        assert service.spans[0].name == "POST /v1/chat/completions"


@pytest.mark.parametrize("refuse", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE])
async def test_a_collector_that_does_not_take_it(refuse: grpc.StatusCode) -> None:
    with serving(refuse) as (_, url):
        collector = collector_at(url, timeout_s=0.3)
        with pytest.raises(AwayError):
            await collector.post(await collector.pack([plain_told()]))
        await collector.close()


async def test_a_collector_that_is_not_there_holds_nobody_up() -> None:
    collector = collector_at(f"http://127.0.0.1:{closed_port()}", timeout_s=2.0)
    packed = await collector.pack([plain_told()])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await collector.post(packed)
    await collector.close()
    threads = [thread for thread in threading.enumerate() if thread.name == "grpc-collector"]
    assert all(thread.daemon for thread in threads)
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)


@pytest.mark.system
def test_a_gateway_with_a_collector_by_grpc(simulator: Simulator, gateway: StartGateway) -> None:
    with serving() as (service, url):
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true",
        }
        known = {"providers": providers(simulator), "default": {"targets": ["sim/gpt-5-mini"]}}
        running = gateway(known, env)
        for _ in range(3):
            assert chat(running.url, "gpt-5-mini").status == 200
        code, words = running.stop()
        assert code == 0, words
        assert len(service.spans) == 6
        assert (
            sum(
                '"content":"How are you?"' in span.attributes.get("gen_ai.input.messages", "") for span in service.spans
            )
            == 3
        )
