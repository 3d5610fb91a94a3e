"""What a client request is, and the rules that its head must keep beyond what llhttp checks.

llhttp (httptools) is strict about framing, but lets by several things that a gateway must not (unknown versions,
`Transfer-Encoding: gzip, chunked`, repeated `Host`, absolute targets of other authorities, `Upgrade` with a body, …).
Those checks are here, pure, each with the RFC it comes from. No I/O, no clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from edgegw.errors import GatewayError
from edgegw.http.chunked import too_large

# RFC 9110 7.2: Host = uri-host [ ":" port ]; no user info, no list, no path.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]+)(?::[0-9]{0,5})?")
# Origin form (RFC 9112 3.2.1) of visible ASCII; encoded slashes, NUL and dot segments have no honest use here.
_PATH = re.compile(rb"/[!-~]*")
_QUERY = re.compile(rb"[!\"$-~]*")
_TRICKY_PATH = re.compile(rb"%00|%2[fF]|%5[cC]|/\.\.?(?:/|$)|#|\\|//")
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?#]*)([/?].*)?")
_LENGTH_DIGITS_MAX = 18
# Nearly all targets and hosts consist of these alone, which one C call tells; only the others meet the grammars above.
_ALPHANUMERIC = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_PLAIN_PATH = _ALPHANUMERIC + b"/_-"
_PLAIN_HOST = _ALPHANUMERIC + b".-"

# Fields that say who asks or how to read the message: twice would mean two things (RFC 9110 5.3).
SINGLETONS = frozenset(
    (
        *(b"authorization", b"x-api-key", b"x-edgegw-tenant", b"idempotency-key"),
        *(b"content-type", b"host", b"content-length", b"transfer-encoding", b"expect"),
    )
)
METHODS = frozenset((b"GET", b"HEAD", b"POST", b"OPTIONS", b"PUT", b"PATCH", b"DELETE"))


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one request, in bytes and counts; the reasons are in docs/settings.md."""

    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    target_bytes_max: int = 16 * 1024
    body_bytes_max: int = 20 * 1024 * 1024


class Request(msgspec.Struct):
    """One whole request. `headers` has lower-case names; repeated fields are joined by a comma. `error` is set when
    the head was already enough to refuse it; then `body` is empty and `close` says whether the connection must end.
    `key`: what the gate found out about who asks, for the handler; nothing to HTTP."""

    method: bytes = b""
    path: bytes = b""
    query: bytes = b""
    headers: dict[bytes, bytes] = {}
    body: bytes = b""
    http_1_0: bool = False
    keep_alive: bool = True
    error: GatewayError | None = None
    key: Any = None


def target_of(raw: bytes, method: bytes, host: bytes) -> tuple[bytes, bytes]:
    """(path, query) of a request target. Absolute form must name the Host's own authority (RFC 9112 3.2.2): this is
    not a forward proxy. Raises GatewayError."""
    if not raw.translate(None, _PLAIN_PATH) and raw.startswith(b"/") and b"//" not in raw:
        return raw, b""
    if raw[:1] != b"/":
        if raw == b"*" and method == b"OPTIONS":
            return raw, b""
        absolute = _ABSOLUTE.fullmatch(raw)
        if absolute is None or absolute[1].lower() != host.lower():
            raise GatewayError("bad_http", "The request target must be a path of this server.")
        raw = absolute[2] or b"/"
        if raw[:1] == b"?":
            raw = b"/" + raw
    path, _, query = raw.partition(b"?")
    if not _PATH.fullmatch(path) or _TRICKY_PATH.search(path) or not _QUERY.fullmatch(query):
        raise GatewayError("bad_http", "The request target has characters that are not allowed in it.")
    return path, query


def check_host(headers: dict[bytes, bytes], http_1_0: bool) -> bytes:
    """The Host field: exactly one in HTTP/1.1 (RFC 9112 3.2), well-formed. Never used to authorise anything."""
    host = headers.get(b"host")
    if host is None:
        if http_1_0:
            return b""
        raise GatewayError("bad_http", "The Host header is missing.")
    name, _, port = host.partition(b":")
    if name and not name.translate(None, _PLAIN_HOST) and (not port or (port.isdigit() and len(port) <= 5)):
        return host
    if not _HOST.fullmatch(host):
        raise GatewayError("bad_http", "The Host header is malformed.")
    return host


def body_length(headers: dict[bytes, bytes], http_1_0: bool, body_bytes_max: int) -> int:
    """Length of the body: -1 for chunked. One coding, `chunked`, in one line, HTTP/1.1 only (RFC 9112 6.1, 6.3)."""
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if length is not None or http_1_0:
            raise GatewayError("bad_http", "Transfer-Encoding cannot be combined with Content-Length or HTTP/1.0.")
        if coding.lower() != b"chunked":
            raise GatewayError("bad_http", "The only supported Transfer-Encoding is chunked.")
        return -1
    if length is None:
        return 0
    if not length.isdigit():
        raise GatewayError("bad_http", "The Content-Length header is malformed.")
    size = int(length) if len(length) <= _LENGTH_DIGITS_MAX else body_bytes_max + 1
    if size > body_bytes_max:
        raise too_large(body_bytes_max)
    return size


def check_expect(headers: dict[bytes, bytes], http_1_0: bool) -> bool:
    """True when the client waits for `100 Continue` (RFC 9110 10.1.1); an HTTP/1.0 client never does."""
    expect = headers.get(b"expect")
    if expect is None or http_1_0:
        return False
    if expect.lower() != b"100-continue":
        raise GatewayError("expectation_failed", "The only supported expectation is 100-continue.")
    return True


def wants_close(headers: dict[bytes, bytes], http_1_0: bool) -> bool:
    """Whether the connection ends after the reply (RFC 9112 9.3): `close` listed, or HTTP/1.0 without keep-alive."""
    connection = headers.get(b"connection")
    if connection is None:
        return http_1_0
    options = [option.strip() for option in connection.lower().split(b",")]
    return b"close" in options or (http_1_0 and b"keep-alive" not in options)
