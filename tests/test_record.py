"""Records: what goes in comes out, whatever it is, and nothing that goes in can raise."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.exchange import Attempt, Exchange, Route, Target, Usage
from edgegw.ledger.encoding import encode_attempt, encode_begin, encode_end, encode_try, encode_vitals, only_attempt
from edgegw.ledger.record import (
    INTEGER_MAX,
    RECORD_BYTES_MAX,
    STRING_BYTES_MAX,
    VERSION,
    AttemptRecord,
    BadRecordError,
    Begin,
    End,
    Record,
    Try,
    Vitals,
    attempt_within,
    decoder,
    happened_ns,
)

TARGET = Target("openai", "gpt-5-mini")

# Everything that JSON can smuggle into a str: lone surrogates, NUL, four byte characters, and far too much of it.
hostile = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=40),
    st.builds(
        lambda part, times: part * times,
        st.sampled_from(["a", "\ud800", "\0", "\U0001f9fe", "é"]),
        st.integers(0, 9000),
    ),
)
numbers = st.one_of(st.integers(0, 10**6), st.integers(-(2**70), 2**70))
seconds = st.floats(-1.0, 1e9)
usages = st.none() | st.builds(Usage, numbers, numbers, numbers, numbers, numbers, st.booleans())
attempts = st.builds(
    Attempt,
    st.integers(1, 9),
    st.sampled_from(["primary", "retry", "fallback"]),
    st.builds(Target, hostile, hostile),
    numbers,
    seconds,
    retry_reason=st.none() | hostile,
    status=numbers,
    error_kind=st.none() | hostile,
    first_byte_s=st.none() | seconds,
    first_token_s=st.none() | seconds,
    duration_s=seconds,
    usage=usages,
    upstream_request_id=st.none() | hostile,
    upstream_model=st.none() | hostile,
    finish_reason=st.none() | hostile,
    reused=st.booleans(),
)
exchanges = st.builds(
    Exchange,
    hostile,
    numbers,
    seconds,
    tenant=hostile,
    key_id=st.none() | hostile,
    use_case=st.none() | hostile,
    model_asked=st.none() | hostile,
    stream=st.booleans(),
    route=st.none() | st.builds(Route, hostile, st.just((TARGET,))),
    attempts=st.lists(attempts, max_size=2),
    status=numbers,
    error_kind=st.none() | hostile,
    usage=usages,
    bytes_in=numbers,
    bytes_out=numbers,
    committed_s=st.none() | seconds,
    upstream_s=seconds,
    duration_s=seconds,
)


def an_exchange() -> tuple[Exchange, Attempt]:
    attempt = Attempt(
        2,
        "fallback",
        TARGET,
        2_000,
        1.0,
        "upstream_error",
        200,
        None,
        0.1,
        0.2,
        0.5,
        Usage(10, 20, 3, 4, 5, True),
        "req_1",
        "gpt-5-mini-2025",
        "stop",
        True,
    )
    exchange = Exchange(
        "id-1",
        1_000,
        0.5,
        tenant="acme",
        key_id="key_1",
        use_case="summaries",
        model_asked="smart",
        stream=True,
        route=Route("model:smart", (TARGET,)),
        attempts=[attempt, attempt],
        status=200,
        state="complete",
        usage=Usage(10, 20, 3, 4, 5, True),
        bytes_in=111,
        bytes_out=222,
        committed_s=0.25,
        upstream_s=0.5,
        duration_s=0.75,
    )
    return exchange, attempt


def test_begin_says_what_is_known_before_the_first_byte() -> None:
    exchange, attempt = an_exchange()
    assert decoder()(encode_begin(exchange, attempt, 7)) == Begin(
        VERSION, 7, "id-1", 1_000, "acme", "summaries", "model:smart", "openai_chat", "smart", True, 111, 2, "fallback",
        "openai", "gpt-5-mini", 2_000, "key_1",
    )  # fmt: skip


def test_try_says_where_the_next_attempt_goes_and_why() -> None:
    exchange, attempt = an_exchange()
    assert decoder()(encode_try(exchange, attempt, 8)) == Try(
        VERSION, 8, "id-1", 2, "fallback", "openai", "gpt-5-mini", 2_000, "upstream_error"
    )


def test_an_attempt_is_its_row() -> None:
    exchange, attempt = an_exchange()
    assert decoder()(encode_attempt(exchange, attempt, 9)) == AttemptRecord(
        VERSION, 9, "id-1", 2, "fallback", "openai", "gpt-5-mini", 2_000, 200, None, "upstream_error", 100_000, 200_000,
        500_000, 10, 20, 3, 4, 5, True, "stop", "req_1", "gpt-5-mini-2025", True,
    )  # fmt: skip


def test_an_end_is_its_row() -> None:
    exchange, _ = an_exchange()
    assert decoder()(encode_end(exchange, 10)) == End(
        VERSION, 10, "id-1", 1_000, "acme", "summaries", "model:smart", "openai_chat", "smart", True, "complete", 200,
        None, 2, "openai", "gpt-5-mini", 10, 20, 3, 4, 5, True, 250_000, 750_000, 250_000, 111, 222, "key_1",
    )  # fmt: skip


def test_a_record_from_before_there_were_keys_is_still_read() -> None:
    exchange, attempt = an_exchange()
    for payload, behind in ((encode_begin(exchange, attempt, 7), -2), (encode_end(exchange, 7), -5)):
        fields = msgspec.msgpack.decode(payload)
        assert fields[behind] == "key_1"
        del fields[behind:]
        old = decoder()(msgspec.msgpack.encode(fields))
        assert isinstance(old, Begin | End)
        assert (old.id, old.key_id) == ("id-1", None)


def an_exchange_of_one_attempt() -> tuple[Exchange, Attempt]:
    exchange, attempt = an_exchange()
    attempt.number, attempt.kind, attempt.retry_reason = 1, "primary", None
    attempt.usage = exchange.usage
    exchange.attempts = [attempt]
    return exchange, attempt


def test_an_end_can_carry_its_only_attempt() -> None:
    exchange, attempt = an_exchange_of_one_attempt()
    assert only_attempt(exchange) is attempt
    end = decoder()(encode_end(exchange, 10, attempt))
    assert isinstance(end, End)
    assert end.only is not None
    assert attempt_within(end, end.only) == decoder()(encode_attempt(exchange, attempt, 10))
    end.only = None
    assert end == decoder()(encode_end(exchange, 10))


def test_an_attempt_that_is_told_already_or_not_the_whole_is_not_carried() -> None:
    exchange, attempt = an_exchange_of_one_attempt()
    attempt.written = True
    assert only_attempt(exchange) is None
    exchange, attempt = an_exchange_of_one_attempt()
    exchange.usage = Usage(99, 99)
    assert only_attempt(exchange) is None
    assert only_attempt(an_exchange()[0]) is None
    assert only_attempt(Exchange("id", 0, 0.0)) is None


def test_an_end_of_version_1_is_read() -> None:
    fields = msgspec.msgpack.decode(encode_end(an_exchange()[0], 10))
    end = decoder()(msgspec.msgpack.encode([fields[0], 1, *fields[2:-3]]))
    assert isinstance(end, End)
    assert (end.version, end.bytes_out, end.only) == (1, 222, None)


def test_a_refused_request_has_an_end_with_nothing_upstream() -> None:
    end = decoder()(encode_end(Exchange("id-2", 5, 0.0, state="refused", status=404), 1))
    assert isinstance(end, End)
    assert (end.attempts, end.provider, end.model, end.route, end.input_tokens) == (0, None, None, None, None)


def test_vitals_keep_their_gauges() -> None:
    assert decoder()(encode_vitals(3, 99, {"in_flight": 4, "loop_lag_s": 0.001}, 11)) == Vitals(
        VERSION, 11, 3, 99, {"in_flight": 4.0, "loop_lag_s": 0.001}
    )


def test_vitals_are_bounded_in_number_and_size() -> None:
    many = decoder()(encode_vitals(0, 1, {f"gauge_{number}": number for number in range(10_000)}, 1))
    assert isinstance(many, Vitals)
    assert len(many.gauges) == 128
    payload = encode_vitals(0, 1, {f"{number}" * 900: 1.0 for number in range(128)}, 1)
    assert len(payload) <= RECORD_BYTES_MAX
    assert isinstance(decoder()(payload), Vitals)


@given(exchanges, attempts, st.integers(1, 2**40))
def test_nothing_in_an_exchange_can_raise_or_grow_a_record(exchange: Exchange, attempt: Attempt, seq: int) -> None:
    decode = decoder()
    for payload in (
        encode_begin(exchange, attempt, seq),
        encode_try(exchange, attempt, seq),
        encode_attempt(exchange, attempt, seq),
        encode_end(exchange, seq),
        encode_end(exchange, seq, attempt),
    ):
        assert len(payload) <= RECORD_BYTES_MAX
        record = decode(payload)
        assert record.seq == seq
        assert 0 <= happened_ns(record) <= INTEGER_MAX
        values = msgspec.structs.astuple(record)
        if isinstance(record, End) and record.only is not None:
            values += msgspec.structs.astuple(attempt_within(record, record.only))
        for value in values:
            if isinstance(value, str):
                assert len(value.encode()) <= STRING_BYTES_MAX
            elif isinstance(value, int):
                assert 0 <= value <= INTEGER_MAX


@given(hostile)
def test_a_name_is_the_same_in_every_record(name: str) -> None:
    decode = decoder()
    attempt = Attempt(1, "primary", Target("p" * 200, "m" * 200), 0, 0.0)
    exchange = Exchange("id", 0, 0.0, tenant=name, attempts=[attempt])
    begin, end = decode(encode_begin(exchange, attempt, 1)), decode(encode_end(Exchange("id", 0, 0.0, tenant=name), 2))
    assert isinstance(begin, Begin)
    assert isinstance(end, End)
    assert begin.tenant == end.tenant
    assert name.encode("utf-8", "replace").startswith(begin.tenant.encode())


def test_a_name_of_exactly_the_bound_is_whole_and_one_more_is_cut() -> None:
    for length in (STRING_BYTES_MAX - 1, STRING_BYTES_MAX, STRING_BYTES_MAX + 1):
        end = decoder()(encode_end(Exchange("id", 0, 0.0, tenant="t" * length), 1))
        assert isinstance(end, End)
        assert len(end.tenant) == min(length, STRING_BYTES_MAX)


def test_numbers_beyond_a_column_are_clamped() -> None:
    exchange, _ = an_exchange()
    exchange.usage = Usage(2**64 - 1, 2**80, -5)
    end = decoder()(encode_end(exchange, 1))
    assert isinstance(end, End)
    assert (end.input_tokens, end.output_tokens, end.cached_tokens) == (INTEGER_MAX, INTEGER_MAX, 0)


def test_fields_that_a_later_version_appends_are_passed_over() -> None:
    fields = msgspec.msgpack.decode(encode_try(*an_exchange(), 1))
    assert isinstance(decoder()(msgspec.msgpack.encode([*fields, "new", 5])), Try)


@given(st.binary(max_size=60))
def test_garbage_is_a_bad_record(data: bytes) -> None:
    with pytest.raises(BadRecordError):
        decoder()(data)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [9, 1, 1],
        [2, 1, 1],
        [2, 1, 1, 5, 1, "primary", "p", "m", 1, None],
        {"a": 1},
        [5, VERSION + 1, 1, 0, 1, {}],
        "text",
    ],
)
def test_what_is_no_record_of_this_version_is_a_bad_record(fields: object) -> None:
    with pytest.raises(BadRecordError):
        decoder()(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    ("record", "expected_ns"),
    [
        (Vitals(1, 1, 0, 77, {}), 77),
        (Try(1, 1, "id", 2, "retry", "p", "m", 55, None), 55),
        (decoder()(encode_attempt(*an_exchange(), 1)), 2_000 + 500_000_000),
        (decoder()(encode_end(an_exchange()[0], 1)), 1_000 + 750_000_000),
        (decoder()(encode_begin(*an_exchange(), 1)), 2_000),
    ],
)
def test_a_record_knows_when_it_happened(record: Record, expected_ns: int) -> None:
    assert happened_ns(record) == expected_ns
