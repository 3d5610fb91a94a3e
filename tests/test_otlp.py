"""The bytes of our spans are those of OpenTelemetry's own SDK for the same spans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from laws import tried
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from span_records import plain_told, requests, told_of, wording

from edgegw.content.record import Content
from edgegw.ledger.record import AttemptRecord, End
from edgegw.telemetry.collector_grpc import ReadableSpans
from edgegw.telemetry.otlp import Encoder, rejected, varint
from edgegw.telemetry.wording import Span
from edgegw.trace import Sampler

ALL = Sampler(parent_based=False)
ABOUT = (("service.name", "edgegw"), ("service.version", "1"), ("ü", "x" * 300)), "edgegw", "0.1.0", "https://schema"


def same(spans: list[Span]) -> None:
    encoder, readable = Encoder(*ABOUT), ReadableSpans(*ABOUT)
    for _ in range(2):  # also from what the first time has left prepared
        ours = ExportTraceServiceRequest.FromString(encoder.request(map(encoder.span, spans)))
        theirs = encode_spans([readable.of(span) for span in spans])
        assert ours == theirs


def test_a_plain_request_is_encoded_as_the_sdk_does() -> None:
    same(wording().spans_of(plain_told(1)) + wording().spans_of(plain_told(2, attempts=3)))


def test_prompts_and_answers_are_encoded_as_the_sdk_does() -> None:
    told = plain_told(1)
    asked = b'{"messages":[{"role":"user","content":"' + "é".encode() * 500 + b'"}]}'
    answered = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    told.content = Content(told.end.id, "acme", 0, "openai_chat", False, asked, True, answered, False)
    spans = wording().spans_of(told)
    assert {"gen_ai.input.messages", "edgegw.content.cut"} <= dict(spans[1].own).keys()
    same(spans)


@tried(1.5)
@given(st.lists(requests(), min_size=1, max_size=3))
def test_whatever_a_record_holds_is_encoded_as_the_sdk_does(records: list[list[AttemptRecord | End]]) -> None:
    words = wording()
    same([span for each in records for told in told_of(*each, sampler=ALL) for span in words.spans_of(told)])


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_is_as_long_as_protobuf_makes_it(number: int) -> None:
    expected = AnyValue(int_value=number).SerializeToString()
    assert b"\x18" + varint(number) == expected


@given(st.integers(0, 2**63 - 1), st.text(max_size=300))
def test_a_collector_says_how_many_it_has_not_taken(count: int, message: str) -> None:
    partial = ExportTracePartialSuccess(rejected_spans=count, error_message=message)
    assert rejected(ExportTraceServiceResponse(partial_success=partial).SerializeToString()) == count


@given(st.binary(max_size=60))
def test_a_reply_that_is_not_understood_rejects_nothing_and_raises_nothing(reply: bytes) -> None:
    assert rejected(reply) >= 0
    assert rejected(b"") == 0
