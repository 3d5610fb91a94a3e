"""Records for tests of what is told of them: a plain request and what can be different about it."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from edgegw.clock import uuid7
from edgegw.ledger.record import INTEGER_MAX, AttemptRecord, End
from edgegw.telemetry.spans import Spans, Told
from edgegw.telemetry.wording import Place, Wording
from edgegw.trace import Sampler

WALL_NS = 1_750_000_000_000_000_000
PLACES = {
    "openai": Place.of("openai", "openai", "https://api.openai.com/v1"),
    "anthropic": Place.of("anthropic", "anthropic", "https://api.anthropic.com"),
    "groq": Place.of("groq", "openai-compatible", "http://10.0.0.1:8000/v1"),
}
GOLDEN = 0x9E3779B97F4A7C15F39C


def request_id(number: int = 0) -> str:
    return uuid7(WALL_NS, number * GOLDEN % 2**74)


def an_attempt(id_: str, number: int = 1, **fields: Any) -> AttemptRecord:
    record = AttemptRecord(
        version=2,
        seq=number,
        request_id=id_,
        number=number,
        kind="primary",
        provider="openai",
        model="gpt-5-mini",
        started_ns=WALL_NS + 100_000 * number,
        status=200,
        error_kind=None,
        retry_reason=None,
        first_byte_us=410_000,
        first_token_us=420_000,
        duration_us=800_000,
        input_tokens=812,
        output_tokens=230,
        cached_tokens=512,
        cache_write_tokens=0,
        reasoning_tokens=64,
        estimated=False,
        finish_reason="stop",
        upstream_request_id="req_0a1b2c3d4e5f",
        upstream_model="gpt-5-mini-2025-08-07",
        reused=True,
        cost_usd_micro=1_212,
        tenant="acme",
    )
    return msgspec.structs.replace(record, **fields)


def an_end(id_: str, **fields: Any) -> End:
    record = End(
        version=2,
        seq=9,
        id=id_,
        started_ns=WALL_NS,
        tenant="acme",
        use_case="support_summary",
        route="use_case:support_summary",
        dialect="openai_chat",
        model_asked="smart",
        stream=True,
        state="complete",
        status=200,
        error_kind=None,
        attempts=1,
        provider="openai",
        model="gpt-5-mini",
        input_tokens=812,
        output_tokens=230,
        cached_tokens=512,
        cache_write_tokens=0,
        reasoning_tokens=64,
        estimated=False,
        first_byte_us=410_000,
        duration_us=801_000,
        overhead_us=900,
        bytes_in=2_310,
        bytes_out=1_404,
        key_id="key_1",
        session_id="session-7",
        user_id="user-9",
        first_token_us=420_500,
        cost_usd_micro=1_212,
    )
    return msgspec.structs.replace(record, **fields)


def told_of(*records: AttemptRecord | End, sampler: Sampler | None = None, slow_us: int = 10_000_000) -> list[Told]:
    """What an observer of these records tells."""
    told: list[Told] = []
    spans = Spans(sampler or Sampler(), slow_us, [told.append])
    spans.observe(records)
    return told


def plain_told(number: int = 0, *, attempts: int = 1) -> Told:
    id_ = request_id(number)
    (told,) = told_of(*(an_attempt(id_, each + 1) for each in range(attempts)), an_end(id_, attempts=attempts))
    return told


def wording() -> Wording:
    return Wording(PLACES)


# -- anything that a record can hold --

names = st.one_of(st.sampled_from(["openai", "acme", "ü" * 100]), st.text(max_size=30), st.text("x", max_size=512))
maybe_names = st.none() | names
counts = st.one_of(st.sampled_from([0, 1, 127, 128, 16_383, 16_384, INTEGER_MAX]), st.integers(0, INTEGER_MAX))
maybe_counts = st.none() | counts
kinds = st.sampled_from([None, None, "upstream_error", "client_gone", "interrupted", "overloaded", "not_found"])
traces = st.sampled_from(
    [
        None,
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00;congo=t61rcWkgMzE,rojo=1",
    ]
)
ids = st.integers(0, 2**74 - 1).map(lambda dice: uuid7(WALL_NS, dice))


@st.composite
def requests(draw: st.DrawFn) -> list[AttemptRecord | End]:
    """Attempts and the end of a request, with all their fields at will."""
    id_ = draw(ids)
    attempts = [
        an_attempt(
            id_,
            number,
            kind=draw(st.sampled_from(["primary", "retry", "fallback"])),
            provider=draw(names),
            model=draw(names),
            started_ns=draw(counts),
            status=draw(st.sampled_from([0, 200, 400, 529])),
            error_kind=draw(kinds),
            retry_reason=draw(kinds),
            first_token_us=draw(maybe_counts),
            duration_us=draw(counts),
            input_tokens=draw(maybe_counts),
            output_tokens=draw(maybe_counts),
            cached_tokens=draw(maybe_counts),
            reasoning_tokens=draw(maybe_counts),
            estimated=draw(st.booleans()),
            finish_reason=draw(maybe_names),
            upstream_request_id=draw(maybe_names),
            upstream_model=draw(maybe_names),
            reused=draw(st.booleans()),
            cost_usd_micro=draw(maybe_counts),
        )
        for number in range(1, draw(st.integers(0, 3)) + 1)
    ]
    end = an_end(
        id_,
        started_ns=draw(counts),
        tenant=draw(names),
        use_case=draw(maybe_names),
        route=draw(maybe_names),
        dialect=draw(st.sampled_from(["openai_chat", "anthropic_messages", "of tomorrow"])),
        model_asked=draw(maybe_names),
        stream=draw(st.booleans()),
        state=draw(st.sampled_from(["complete", "failed", "refused", "reset", "interrupted", "client_gone"])),
        status=draw(st.sampled_from([0, 200, 404, 499, 502])),
        error_kind=draw(kinds),
        attempts=len(attempts),
        duration_us=draw(counts),
        overhead_us=draw(counts),
        bytes_in=draw(counts),
        bytes_out=draw(counts),
        key_id=draw(maybe_names),
        session_id=draw(maybe_names),
        user_id=draw(maybe_names),
        first_token_us=draw(maybe_counts),
        cost_usd_micro=draw(maybe_counts),
        trace=draw(traces),
    )
    return [*attempts, end]
