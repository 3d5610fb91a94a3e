"""Traces: what a client may say of its own, ids that need no dice, and which traces are kept."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from edgegw.clock import uuid7
from edgegw.trace import Announcer, Parent, Sampler, attempt_span_id, own_trace_id, parent_of, received, span_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
ID = "0198c5e0-7d3a-7abc-8def-0123456789ab"
hexadecimal = st.sampled_from("0123456789abcdef")


def hexes(count: int) -> st.SearchStrategy[str]:
    return st.text(hexadecimal, min_size=count, max_size=count)


@pytest.mark.parametrize(
    ("said", "parent"),
    [
        (GOOD, Parent(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", Parent(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-fe", Parent(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-ff", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01.what", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"0-{TRACE}-{SPAN}-01", None),
        (f"{GOOD}, {GOOD}", None),
        (f"{GOOD}\n", None),
        (f" {GOOD}", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_to_the_letter(said: str, parent: Parent | None) -> None:
    assert parent_of(received(said.encode(), None)) == parent


@given(st.one_of(st.builds("-".join, st.tuples(hexes(2), hexes(32), hexes(16), hexes(2))), st.text(max_size=70)))
def test_what_opentelemetry_reads_we_read_alike(said: str) -> None:
    theirs = TraceContextTextMapPropagator().extract({"traceparent": said})
    span = next(iter(theirs.values()), None)
    kept = received(said.encode(), None) if re.fullmatch("[ -~]*", said) else None
    ours = parent_of(kept)
    if ours is None:  # they are lenient with white space around it
        assert span is None or said.strip() != said or not said.isascii()
        return
    context = span.get_span_context()  # type: ignore[attr-defined]
    assert (context.trace_id, context.span_id) == (int(ours.trace_id, 16), int(ours.span_id, 16))
    assert bool(context.trace_flags & 1) == ours.sampled


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", True),
        ("fw529a3039@dt=FfAAAAAA , ,a=b c", True),
        ("a=" + "b" * 256, True),
        ("a=" + "b" * 257, False),
        (",".join(f"k{n}={'v' * 10}" for n in range(32)), True),
        (",".join(f"k{n}=v" for n in range(33)), False),
        (",".join(f"k{n}={'v' * 150}" for n in range(4)), False),  # longer than 512
        ("Upper=1", False),
        ("a", False),
        ("a=b=c", False),
        ("a=b\r\nx-evil: 1", False),
        ("a=é", False),
        ("", False),
    ],
)
def test_a_tracestate_is_passed_on_as_it_is_or_not_at_all(state: str, kept: bool) -> None:
    assert parent_of(received(GOOD.encode(), state.encode())) == Parent(TRACE, SPAN, True, state if kept else "")


def test_a_tracestate_that_a_record_has_cut_loses_the_member_that_was_cut() -> None:
    state = ",".join(f"key{n}={'v' * 100}" for n in range(4)) + ",last=" + "w" * 70
    trace = received(GOOD.encode(), state.encode())
    assert trace is not None
    assert len(trace) > 512
    parent = parent_of(trace[:512], 512)
    assert parent is not None
    assert state.startswith(parent.state + ",")
    assert parent.state.count("=") == 4


@given(st.binary(max_size=600), st.none() | st.binary(max_size=600))
def test_nothing_that_a_client_sends_gets_past_the_grammar(said: bytes, state: bytes | None) -> None:
    for line in (said, GOOD.encode()):
        trace = received(line, state)
        assert trace is None or re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01](;[\t -~]+)?", trace)


def test_span_ids_are_a_function_of_request_and_attempt() -> None:
    requests = [span_id(uuid7(1_750_000_000_000_000_000, dice)) for dice in range(100)]
    spans = [*requests, *(attempt_span_id(span, number) for span in requests for number in range(1, 21))]
    assert len(set(spans)) == len(spans)
    assert all(len(span) == 8 for span in spans)
    assert all(map(any, spans))
    assert own_trace_id(ID) == "0198c5e07d3a7abc8def0123456789ab"


@given(st.floats(0, 1), st.integers(0, 2**74 - 1), st.integers(1_600_000_000, 2_000_000_000))
def test_a_larger_ratio_keeps_all_that_a_smaller_one_keeps(ratio: float, dice: int, at_s: int) -> None:
    trace_id = own_trace_id(uuid7(at_s * 1_000_000_000, dice))
    if Sampler(ratio).keeps(trace_id, None):
        assert Sampler(min(1.0, ratio + 0.1)).keeps(trace_id, None)
    assert Sampler(1.0).keeps(trace_id, None)
    assert not Sampler(0.0).keeps(trace_id, None)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.9])
def test_of_our_own_ids_the_ratio_is_kept(ratio: float) -> None:
    """The fixed bits of a UUIDv7 have no part in it, whatever the time."""
    count, golden = 20_000, 0x9E3779B97F4A7C15F39C
    kept = sum(
        Sampler(ratio).keeps(own_trace_id(uuid7(1_750_000_000_000_000_000 + n * 1_000_000, n * golden % 2**74)), None)
        for n in range(count)
    )
    assert kept == pytest.approx(count * ratio, rel=0.1, abs=30)


@given(st.floats(0, 1), hexes(32))
def test_a_parent_decides_when_the_sampler_asks_it(ratio: float, trace_id: str) -> None:
    assert Sampler(ratio, parent_based=True).keeps(trace_id, True)
    assert not Sampler(ratio, parent_based=True).keeps(trace_id, False)
    alone = Sampler(ratio, parent_based=False)
    assert alone.keeps(trace_id, True) == alone.keeps(trace_id, False) == alone.keeps(trace_id, None)


CALL = b"POST /v1/chat/completions HTTP/1.1\r\nhost: p\r\ncontent-length: 4\r\n\r\n\r\n{}"


def test_a_provider_is_told_the_span_of_its_attempt() -> None:
    announcer = Announcer(Sampler())
    trace = received(GOOD.encode(), b"a=1,b=2")
    told = announcer.announced(CALL, ID, trace, 2)
    assert told == (
        b"POST /v1/chat/completions HTTP/1.1\r\n"
        b"traceparent: 00-%b-%b-01\r\ntracestate: a=1,b=2\r\n"
        b"host: p\r\ncontent-length: 4\r\n\r\n\r\n{}" % (TRACE.encode(), attempt_span_id(span_id(ID), 2).hex().encode())
    )
    alone = announcer.announced(CALL, ID, None, 1)
    assert (
        b"traceparent: 00-%b-%b-01\r\n" % (own_trace_id(ID).encode(), attempt_span_id(span_id(ID), 1).hex().encode())
        in alone
    )
    assert b"tracestate" not in alone


def test_what_is_not_kept_is_told_so() -> None:
    silent = Announcer(Sampler(0.0))
    assert b"-00\r\nhost" in silent.announced(CALL, ID, None, 1)
    assert b"-01\r\nhost" in silent.announced(CALL, ID, received(GOOD.encode(), None), 1)
