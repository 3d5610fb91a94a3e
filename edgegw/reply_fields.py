"""The header lines that tell a client what happened: who answered, over which route, what is left of its limit.

Pure: values in, header lines out. Nothing of a provider's own headers is passed on but its request id; organisation
names and the like stay with us.
"""

from __future__ import annotations

from edgegw.errors import GatewayError, Source
from edgegw.exchange import Exchange, Route, Target
from edgegw.http.reply import EVENT_STREAM, JSON


def visible(text: str) -> bytes:
    """`text` as a field value: visible ASCII, everything else a question mark, at most 256 bytes."""
    raw = text[:256].encode("ascii", "replace")
    if raw.isascii() and text.isprintable():
        return raw
    return bytes(byte if 0x20 <= byte < 0x7F else 0x3F for byte in raw)


def target_fields(route: Route, target: Target) -> bytes:
    """The lines that are the same in all replies of a target on a route."""
    return b"cache-control: no-store\r\nx-edgegw-provider: %b\r\nx-edgegw-model: %b\r\nx-edgegw-route: %b\r\n" % (
        visible(target.provider),
        visible(target.model),
        visible(route.name),
    )


def answer_fields(
    exchange: Exchange,
    fields: bytes,
    limit_fields: bytes,
    own_ms: float,
    upstream_ms: float,
    upstream_request_id: bytes | None,
) -> bytes:
    """Of a provider's answer, plain or streamed. `fields` are its target's; `own_ms` is the gateway's share so far."""
    lines = b"%b%bx-request-id: %b\r\nx-edgegw-attempts: %d\r\nserver-timing: gw;dur=%.3f, upstream;dur=%.1f\r\n%b" % (
        EVENT_STREAM if exchange.stream else JSON,
        fields,
        exchange.id.encode(),
        len(exchange.attempts),
        own_ms,
        upstream_ms,
        limit_fields,
    )
    if upstream_request_id is not None:
        lines += b"x-upstream-request-id: %b\r\n" % upstream_request_id
    if exchange.dropped:
        lines += b"x-edgegw-dropped: %b\r\n" % visible(", ".join(exchange.dropped))
    return lines


def refusal_fields(exchange: Exchange, error: GatewayError, limit_fields: bytes) -> bytes:
    """Of an error. After our own retries are used up, `x-should-retry: false` keeps an SDK from multiplying them; the
    caller's own faults will not get better either."""
    pieces = [JSON, b"x-request-id: %b\r\n" % exchange.id.encode()]
    if exchange.attempts:
        last = exchange.attempts[-1]
        pieces.append(
            b"x-edgegw-provider: %b\r\nx-edgegw-model: %b\r\nx-edgegw-attempts: %d\r\n"
            % (visible(last.target.provider), visible(last.target.model), len(exchange.attempts))
        )
        if last.upstream_request_id is not None:  # what the provider's support asks for
            pieces.append(b"x-upstream-request-id: %b\r\n" % visible(last.upstream_request_id))
    if exchange.route is not None:
        pieces.append(b"x-edgegw-route: %b\r\n" % visible(exchange.route.name))
    if error.source is Source.UPSTREAM or exchange.attempts:
        pieces.append(b"x-should-retry: false\r\n")
    pieces.extend(b"%b: %b\r\n" % field for field in error.headers)
    if not any(name.startswith(b"x-ratelimit-") for name, _ in error.headers):
        pieces.append(limit_fields)
    return b"".join(pieces)
