"""A collector as tests want one: takes OTLP over HTTP, reads it with the official classes, and fails when told to.

with Collector() as collector:
    …                        # OTEL_EXPORTER_OTLP_ENDPOINT=collector.url
    spans = collector.wait(lambda spans: len(spans) == 2)
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from rig import eventually

WITHIN_S = 20.0
SERVER, CLIENT = trace_pb2.Span.SPAN_KIND_SERVER, trace_pb2.Span.SPAN_KIND_CLIENT
ERROR = trace_pb2.Status.STATUS_CODE_ERROR


def plain(value: AnyValue) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, which or "string_value")


@dataclass(slots=True)
class Seen:
    """One span, as it came. Ids in hex; `parent` is empty without one."""

    trace: str
    id: str
    parent: str
    state: str
    name: str
    kind: int
    started_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    error: str | None
    flags: int
    resource: dict[str, Any]


@dataclass(slots=True)
class Answer:
    """What to answer, after `after_s`. `hang`: nothing at all, until the collector ends."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    rejected: int = 0
    hang: bool = False


class Collector:
    """`answers` are given in their order, then 200 for ever."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.spans: list[Seen] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.ended = threading.Event()
        self.connections: set[socket.socket] = set()
        collector = self

        class Handler(_Handler):
            owner = collector

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._tls = tls
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://localhost:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def wait(self, good: Callable[[list[Seen]], bool], within_s: float = WITHIN_S) -> list[Seen]:
        return eventually("spans", lambda: list(self.spans), good, within_s)

    def of(self, request_id: str, count: int) -> list[Seen]:
        """The spans of one request, its own first, then those of its attempts in order."""

        def mine(spans: list[Seen]) -> list[Seen]:
            server = [each for each in spans if each.attributes.get("edgegw.request_id") == request_id]
            below = [each for each in spans if server and each.parent == server[0].id]
            return server + sorted(below, key=lambda each: int(each.attributes["edgegw.attempt.number"]))

        return mine(self.wait(lambda spans: len(mine(spans)) >= count))

    def took(self, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        for resource_spans in message.resource_spans:
            resource = {each.key: plain(each.value) for each in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                assert scope_spans.scope.name == "edgegw"
                self.spans += [_seen(span, resource) for span in scope_spans.spans]


def _seen(span: trace_pb2.Span, resource: dict[str, Any]) -> Seen:
    attributes = {each.key: plain(each.value) for each in span.attributes}
    assert len(attributes) == len(span.attributes), "an attribute stands twice"
    return Seen(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        span.name,
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        attributes,
        span.status.message if span.status.code == ERROR else None,
        span.flags,
        resource,
    )


class _Handler(BaseHTTPRequestHandler):
    owner: Collector
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_POST(self) -> None:
        owner = self.owner
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.headers["content-type"] == "application/x-protobuf"
        owner.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        answer = owner.answers.pop(0) if owner.answers else Answer()
        if answer.hang:
            owner.ended.wait(60)
            self.close_connection = True
            return
        if answer.status == 200:
            if self.path.endswith("/v1/metrics"):
                owner.metrics.append(ExportMetricsServiceRequest.FromString(body))
            else:
                owner.took(body)
        partial = ExportTracePartialSuccess(rejected_spans=answer.rejected, error_message="too old")
        response = ExportTraceServiceResponse(partial_success=partial if answer.rejected else None)
        reply = response.SerializeToString()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a gateway that is killed does not wait for it
            self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Not on stderr."""


def closed_port() -> int:
    """Where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port
