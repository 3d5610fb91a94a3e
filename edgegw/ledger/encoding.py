"""From an exchange to the bytes of its records: the hot half of record.py.

A plain tuple goes through one encoder: 0.2 to 0.4 us a record; building the struct first costs a third more. The order
of a tuple is the order of the struct of its tag (tests/test_record.py decodes each of them).

None of these raises (the floats are differences of a clock, so finite): whatever a client managed to put into a name is
bounded and mended here, on a slow path that ordinary records never take. Knows no files and no clock.
"""

from __future__ import annotations

import msgspec

from edgegw.exchange import Attempt, Exchange
from edgegw.ledger.record import (
    INTEGER_MAX,
    RECORD_BYTES_MAX,
    STRING_BYTES_MAX,
    TAG_ATTEMPT,
    TAG_BEGIN,
    TAG_END,
    TAG_TRY,
    TAG_VITALS,
    VERSION,
)

# A worker has some thirty gauges; more than this is a mistake of ours and must not blow up a record.
GAUGES_MAX = 128

_encode = msgspec.msgpack.Encoder().encode


class _NoUsage:
    """Stands in for the Usage of what was not counted."""

    input = output = cached = cache_write = reasoning = None
    estimated = False


def encode_begin(exchange: Exchange, attempt: Attempt, seq: int) -> bytes:
    route = exchange.route
    target = attempt.target
    return _payload(
        (
            TAG_BEGIN,
            VERSION,
            seq,
            exchange.id,
            exchange.started_ns,
            exchange.tenant,
            exchange.use_case,
            None if route is None else route.name,
            exchange.dialect,
            exchange.model_asked,
            exchange.stream,
            exchange.bytes_in,
            attempt.number,
            attempt.kind,
            target.provider,
            target.model,
            attempt.started_ns,
            exchange.key_id,
            exchange.trace,
        )
    )


def encode_try(exchange: Exchange, attempt: Attempt, seq: int) -> bytes:
    target = attempt.target
    return _payload(
        (
            TAG_TRY,
            VERSION,
            seq,
            exchange.id,
            attempt.number,
            attempt.kind,
            target.provider,
            target.model,
            attempt.started_ns,
            attempt.retry_reason,
        )
    )


def encode_attempt(exchange: Exchange, attempt: Attempt, seq: int) -> bytes:
    target = attempt.target
    usage = attempt.usage or _NoUsage
    first_byte_s = attempt.first_byte_s
    first_token_s = attempt.first_token_s
    return _payload(
        (
            TAG_ATTEMPT,
            VERSION,
            seq,
            exchange.id,
            attempt.number,
            attempt.kind,
            target.provider,
            target.model,
            attempt.started_ns,
            attempt.status,
            attempt.error_kind,
            attempt.retry_reason,
            None if first_byte_s is None else int(first_byte_s * 1e6),
            None if first_token_s is None else int(first_token_s * 1e6),
            int(attempt.duration_s * 1e6),
            usage.input,
            usage.output,
            usage.cached,
            usage.cache_write,
            usage.reasoning,
            usage.estimated,
            attempt.finish_reason,
            attempt.upstream_request_id,
            attempt.upstream_model,
            attempt.reused,
        )
    )


def only_attempt(exchange: Exchange) -> Attempt | None:
    """The attempt that can be told within the end: the first and last one, not written yet, whose usage is all there
    is."""
    attempts = exchange.attempts
    if len(attempts) != 1:
        return None
    attempt = attempts[0]
    return None if attempt.written or attempt.usage is not exchange.usage else attempt


def encode_end(exchange: Exchange, seq: int, only: Attempt | None = None) -> bytes:
    """`only`: see only_attempt."""
    route = exchange.route
    attempts = exchange.attempts
    provider = model = within = None
    if attempts:
        target = attempts[-1].target
        provider, model = target.provider, target.model
    if only is not None:
        first_byte_s = only.first_byte_s
        first_token_s = only.first_token_s
        within = (
            only.started_ns,
            only.status,
            only.error_kind,
            None if first_byte_s is None else int(first_byte_s * 1e6),
            None if first_token_s is None else int(first_token_s * 1e6),
            int(only.duration_s * 1e6),
            only.finish_reason,
            only.upstream_request_id,
            only.upstream_model,
            only.reused,
        )
    usage = exchange.usage or _NoUsage
    committed_s = exchange.committed_s
    duration_s = exchange.duration_s
    # Two halves: a tuple of more than thirty is put together item by item, by way of a list.
    whose = (
        TAG_END,
        VERSION,
        seq,
        exchange.id,
        exchange.started_ns,
        exchange.tenant,
        exchange.use_case,
        None if route is None else route.name,
        exchange.dialect,
        exchange.model_asked,
        exchange.stream,
        exchange.state,
        exchange.status,
        exchange.error_kind,
        len(attempts),
        provider,
        model,
    )
    what = (
        usage.input,
        usage.output,
        usage.cached,
        usage.cache_write,
        usage.reasoning,
        usage.estimated,
        None if committed_s is None else int(committed_s * 1e6),
        int(duration_s * 1e6),
        int((duration_s - exchange.upstream_s) * 1e6),
        exchange.bytes_in,
        exchange.bytes_out,
        exchange.key_id,
        within,
        exchange.session_id,
        exchange.user_id,
        exchange.trace,
    )
    return _payload(whose + what)


def encode_vitals(slot: int, wall_ns: int, gauges: dict[str, float], seq: int) -> bytes:
    return _payload((TAG_VITALS, VERSION, seq, slot, wall_ns, gauges))


def _payload(fields: tuple[object, ...]) -> bytes:
    try:
        payload = _encode(fields)
        if len(payload) <= STRING_BYTES_MAX:
            return payload
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError):
        pass
    payload = _encode([_bounded(value) for value in fields])
    if len(payload) > RECORD_BYTES_MAX:
        # Only reachable with gauges: each of their names is bounded, their number is too.
        payload = _encode([{} if isinstance(value, dict) else _bounded(value) for value in fields])
    return payload


def _bounded(value: object) -> object:
    """The value as it can be written: text cut at STRING_BYTES_MAX and free of lone surrogates, integers clamped."""
    match value:
        case str():
            text = value[:STRING_BYTES_MAX].encode("utf-8", "replace")
            return text[:STRING_BYTES_MAX].decode("utf-8", "ignore")
        case bool() | None:
            return value
        case int():
            return max(-INTEGER_MAX, min(value, INTEGER_MAX))
        case float():
            return value
        case tuple():
            return [_bounded(inner) for inner in value]
        case dict():
            return {str(_bounded(str(name))): _number(gauge) for name, gauge in list(value.items())[:GAUGES_MAX]}
        case _:
            return _bounded(str(value))


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        return 0.0
    try:
        return float(value)
    except OverflowError:
        return float("inf")
