"""The records of the journal: what a worker writes down about an exchange, and how it looks as bytes.

A record is a msgpack array `[tag, version, seq, ...]` whose fields are those of the structs below, in their order.
Workers write it (encoding.py) without ever building a struct, the control process reads it with `decoder()`.

The fields of `End` after `seq` are the columns of `requests`, those of `AttemptRecord` the columns of
`provider_attempts` (sql/; REQUEST_COLUMNS, ATTEMPT_COLUMNS): a row is a record without its first two fields, and
without the attempt and the trace that an `End` may carry. The last fields of both are not the worker's: the control
process fills them in when it makes a row of a record (assembly.py). Fields of the worker are only ever appended, before
those; anything else, and whatever an older program must not pass over, is a new VERSION.
`*_ns` are Unix nanoseconds, `*_us` microseconds since the start of the exchange or the attempt.

Most exchanges have one attempt, and it ends when they do. It is told within the `End` (`OnlyAttempt`) and not in a
record of its own: a third of the work for both sides. `attempt_within` makes a record of it again.

Knows no files, no clock, no database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from edgegw import trace

# 2: an End may carry its only attempt. A reader of version 1 would take such an End and lose the attempt.
VERSION = 2
_READABLE = frozenset({1, 2})

# A string is cut at this many bytes of UTF-8. A payload that is no longer than this cannot hold a longer string, so one
# comparison per record decides, and the same name is cut in the same place in every record.
STRING_BYTES_MAX = 512
# Fifteen strings at their bound, the numbers between them, or the gauges of a worker: nothing we write is longer.
RECORD_BYTES_MAX = 16_384
# What a signed 64 bit column holds.
INTEGER_MAX = 2**63 - 1
TAG_BEGIN, TAG_TRY, TAG_ATTEMPT, TAG_END, TAG_VITALS = 1, 2, 3, 4, 5

_Count = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class BadRecordError(ValueError):
    """Bytes that are no record of this version."""


class Begin(msgspec.Struct, array_like=True, tag=TAG_BEGIN, gc=False):
    """Everything known before the first byte goes upstream, with the first attempt. Matters only if no End follows."""

    version: int
    seq: _Count
    id: str
    started_ns: _Count
    tenant: str
    use_case: str | None
    route: str | None
    dialect: str
    model_asked: str | None
    stream: bool
    bytes_in: _Count
    number: _Count
    kind: str
    provider: str
    model: str
    attempt_started_ns: _Count
    key_id: str | None = None
    trace: str | None = None


class Try(msgspec.Struct, array_like=True, tag=TAG_TRY, gc=False):
    """A second or later attempt starts."""

    version: int
    seq: _Count
    id: str
    number: _Count
    kind: str
    provider: str
    model: str
    started_ns: _Count
    retry_reason: str | None


class AttemptRecord(msgspec.Struct, array_like=True, tag=TAG_ATTEMPT, gc=False):
    """One finished attempt. `status` 0: no reply came. Tokens are None when nothing was counted."""

    version: int
    seq: _Count
    request_id: str
    number: _Count
    kind: str
    provider: str
    model: str
    started_ns: _Count
    status: _Count
    error_kind: str | None
    retry_reason: str | None
    first_byte_us: _Count | None
    first_token_us: _Count | None
    duration_us: _Count
    input_tokens: _Count | None
    output_tokens: _Count | None
    cached_tokens: _Count | None
    cache_write_tokens: _Count | None
    reasoning_tokens: _Count | None
    estimated: bool
    finish_reason: str | None
    upstream_request_id: str | None
    upstream_model: str | None
    reused: bool
    # The control process's part.
    tenant: str = ""
    use_case: str | None = None
    key_id: str | None = None
    cost_usd_micro: int | None = None
    price_version: str | None = None


class OnlyAttempt(msgspec.Struct, array_like=True, gc=False):
    """The first and last attempt of an exchange, within its End: what the End does not say itself."""

    started_ns: _Count
    status: _Count
    error_kind: str | None
    first_byte_us: _Count | None
    first_token_us: _Count | None
    duration_us: _Count
    finish_reason: str | None
    upstream_request_id: str | None
    upstream_model: str | None
    reused: bool


class End(msgspec.Struct, array_like=True, tag=TAG_END, gc=False):
    """The whole row of a request. `provider` and `model` are those of the last attempt, None when none was made.

    `overhead_us` is the gateway's own share of `duration_us`. `only`: the attempt, when there was one and it has no
    record of its own. `trace`: what the client said of it (trace.py); it is for spans, and no column.
    """

    version: int
    seq: _Count
    id: str
    started_ns: _Count
    tenant: str
    use_case: str | None
    route: str | None
    dialect: str
    model_asked: str | None
    stream: bool
    state: str
    status: _Count
    error_kind: str | None
    attempts: _Count
    provider: str | None
    model: str | None
    input_tokens: _Count | None
    output_tokens: _Count | None
    cached_tokens: _Count | None
    cache_write_tokens: _Count | None
    reasoning_tokens: _Count | None
    estimated: bool
    first_byte_us: _Count | None
    duration_us: _Count
    overhead_us: _Count
    bytes_in: _Count
    bytes_out: _Count
    key_id: str | None = None
    only: OnlyAttempt | None = None
    session_id: str | None = None
    user_id: str | None = None
    trace: str | None = None
    # The control process's part.
    model_served: str | None = None
    first_token_us: _Count | None = None
    cost_usd_micro: int | None = None
    price_version: str | None = None


class Vitals(msgspec.Struct, array_like=True, tag=TAG_VITALS, gc=False):
    """A worker's gauges (in_flight, connections, rss_bytes, loop_lag_s, …), once a second."""

    version: int
    seq: _Count
    slot: _Count
    wall_ns: _Count
    gauges: dict[str, float]


Record = Begin | Try | AttemptRecord | End | Vitals

REQUEST_COLUMNS = tuple(name for name in End.__struct_fields__[2:] if name not in ("only", "trace"))
ATTEMPT_COLUMNS = AttemptRecord.__struct_fields__[2:]
_ONLY, _TRACE = End.__struct_fields__.index("only"), End.__struct_fields__.index("trace")


def decoder() -> Callable[[bytes], Record]:
    """A function from a payload to its record; raises BadRecordError for anything that is not one of this version.

    Numbers outside of a 64 bit column are clamped, so that no record can be refused by a database.
    """
    typed: Callable[[bytes], Record] = msgspec.msgpack.Decoder(Record).decode

    def decode(payload: bytes) -> Record:
        try:
            record = typed(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            record = _mended(payload)
        if record.version not in _READABLE:
            raise BadRecordError(f"a record of version {record.version}; this program reads up to {VERSION}")
        return record

    return decode


def attempt_within(end: End, only: OnlyAttempt) -> AttemptRecord:
    """The record of the attempt that `end` carries: the primary one, and what it used is what the request used."""
    return AttemptRecord(
        end.version,
        end.seq,
        end.id,
        1,
        "primary",
        end.provider or "",
        end.model or "",
        only.started_ns,
        only.status,
        only.error_kind,
        None,
        only.first_byte_us,
        only.first_token_us,
        only.duration_us,
        end.input_tokens,
        end.output_tokens,
        end.cached_tokens,
        end.cache_write_tokens,
        end.reasoning_tokens,
        end.estimated,
        only.finish_reason,
        only.upstream_request_id,
        only.upstream_model,
        only.reused,
    )


def request_row(end: End) -> tuple[object, ...]:
    """The values of REQUEST_COLUMNS."""
    values = msgspec.structs.astuple(end)
    return values[2:_ONLY] + values[_ONLY + 1 : _TRACE] + values[_TRACE + 1 :]


def attempt_row(attempt: AttemptRecord) -> tuple[object, ...]:
    """The values of ATTEMPT_COLUMNS."""
    return msgspec.structs.astuple(attempt)[2:]


def request_columns(ends: Iterable[End]) -> list[tuple[object, ...]]:
    """The values of many rows by column, in the order of REQUEST_COLUMNS."""
    columns = list(zip(*map(msgspec.structs.astuple, ends), strict=True))
    return columns[2:_ONLY] + columns[_ONLY + 1 : _TRACE] + columns[_TRACE + 1 :]


def attempt_columns(attempts: Iterable[AttemptRecord]) -> list[tuple[object, ...]]:
    """The same in the order of ATTEMPT_COLUMNS."""
    return list(zip(*map(msgspec.structs.astuple, attempts), strict=True))[2:]


def happened_ns(record: Record) -> int:
    """When the thing happened that a record tells of (Unix nanoseconds)."""
    match record:
        case Begin():
            return record.attempt_started_ns
        case Try():
            return record.started_ns
        case AttemptRecord() | End():
            return min(record.started_ns + record.duration_us * 1000, INTEGER_MAX)
        case Vitals():
            return record.wall_ns


def about(record: Record) -> dict[str, str] | None:
    """What a line of the log carries that is about this record. Of what happens within a request the trace is told at
    its begin and at its end."""
    match record:
        case Begin() | End():
            return trace.about(record)
        case Try():
            return {"request_id": record.id}
        case AttemptRecord():
            return {"request_id": record.request_id}
        case Vitals():
            return None


def _mended(payload: bytes) -> Record:
    """Decode a record with numbers that no column holds."""
    try:
        fields = msgspec.msgpack.decode(payload)
        if not isinstance(fields, list):
            raise BadRecordError("not a record: no array")
        record: Record = msgspec.convert([_clamped(value) for value in fields], Record)
        return record
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecordError(f"not a record: {error}") from None


def _clamped(value: object) -> object:
    if isinstance(value, list):
        return [_clamped(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return max(0, min(value, INTEGER_MAX))
    return value
