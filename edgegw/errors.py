"""Every way in which a request can end badly: one table from kind to status, type, code and who is to blame.

A `GatewayError` is raised by whoever finds the trouble and travels to `gateway.handle()`, which turns it into the
client's own dialect. An `UpstreamFault` is what one attempt ended with; `retry.py` decides what follows from it, and
only when nothing more is to be tried does it become the `GatewayError` of the exchange.

Nothing in here may carry a key, an address of a provider or a stack trace: messages go to clients as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Source(IntEnum):
    """Who is to blame."""

    CLIENT = 0
    UPSTREAM = 1
    GATEWAY = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table. `status` is what an HTTP client sees before anything was committed."""

    name: str
    status: int
    source: Source
    type: str
    code: str | None = None


def _table(*rows: Kind) -> dict[str, Kind]:
    return {row.name: row for row in rows}


_C, _U, _G = Source.CLIENT, Source.UPSTREAM, Source.GATEWAY
_INVALID = "invalid_request_error"

# Types and codes are OpenAI's where OpenAI has one (platform documentation, "Error codes"); the rest are ours.
KINDS = _table(
    Kind("bad_request", 400, _C, _INVALID),
    Kind("invalid_json", 400, _C, _INVALID, "invalid_json"),
    Kind("invalid_type", 400, _C, _INVALID, "invalid_type"),
    Kind("invalid_value", 400, _C, _INVALID, "invalid_value"),
    Kind("missing_parameter", 400, _C, _INVALID, "missing_required_parameter"),
    Kind("unsupported_parameter", 400, _C, _INVALID, "unsupported_parameter"),
    Kind("bad_http", 400, _C, _INVALID, "bad_http"),
    Kind("unauthorized", 401, _C, "authentication_error", "invalid_api_key"),
    Kind("forbidden", 403, _C, "permission_error", "forbidden"),
    Kind("model_not_allowed", 403, _C, "permission_error", "model_not_allowed"),
    Kind("not_found", 404, _C, _INVALID, "not_found"),
    Kind("model_not_found", 404, _C, _INVALID, "model_not_found"),
    Kind("method_not_allowed", 405, _C, _INVALID, "method_not_allowed"),
    Kind("request_timeout", 408, _C, "timeout_error", "request_timeout"),
    Kind("body_too_large", 413, _C, _INVALID, "request_too_large"),
    Kind("never_fits", 413, _C, "tokens", "request_exceeds_limit"),
    Kind("target_too_long", 414, _C, _INVALID, "target_too_long"),
    Kind("unsupported_media", 415, _C, _INVALID, "unsupported_media_type"),
    Kind("expectation_failed", 417, _C, _INVALID, "expectation_failed"),
    Kind("rate_limited", 429, _C, "tokens", "rate_limit_exceeded"),
    Kind("head_too_large", 431, _C, _INVALID, "header_too_large"),
    Kind("client_gone", 499, _C, "client_error", "client_gone"),
    Kind("client_slow", 499, _C, "client_error", "client_slow"),
    Kind("not_implemented", 501, _C, _INVALID, "not_implemented"),
    Kind("http_version", 505, _C, _INVALID, "http_version_not_supported"),
    Kind("internal", 500, _G, "server_error", "internal_error"),
    Kind("overloaded", 503, _G, "overloaded_error", "overloaded"),
    Kind("draining", 503, _G, "overloaded_error", "draining"),
    Kind("deadline", 504, _G, "timeout_error", "deadline_exceeded"),
    Kind("no_target", 503, _G, "overloaded_error", "no_target_available"),
    Kind("upstream_connect", 502, _U, "upstream_error", "upstream_unreachable"),
    Kind("upstream_tls", 502, _U, "upstream_error", "upstream_tls"),
    Kind("upstream_busy", 503, _U, "overloaded_error", "upstream_pool_full"),
    Kind("upstream_timeout", 504, _U, "timeout_error", "upstream_timeout"),
    Kind("upstream_stalled", 504, _U, "timeout_error", "upstream_stalled"),
    Kind("upstream_cut", 502, _U, "upstream_error", "upstream_incomplete"),
    Kind("upstream_garbage", 502, _U, "upstream_error", "upstream_invalid_response"),
    Kind("upstream_auth", 502, _U, "upstream_auth_error", "upstream_auth_error"),
    Kind("upstream_refused", 400, _U, _INVALID),
    Kind("upstream_rate_limited", 429, _U, "rate_limit_error", "rate_limit_exceeded"),
    Kind("upstream_quota", 429, _U, "insufficient_quota", "insufficient_quota"),
    Kind("upstream_overloaded", 503, _U, "overloaded_error", "overloaded"),
    Kind("upstream_error", 502, _U, "upstream_error", "upstream_error"),
)


class GatewayError(Exception):
    """How an exchange ends when it does not end with an answer.

    `kind` names a row of KINDS. `param` is the JSON path of the field at fault. `status`, `type` and `code` override
    the row (an upstream's own 404 stays a 404). `headers` are sent along (`allow`, `retry-after`, …). `body` is the
    provider's own error body, sent verbatim when it is already in the client's dialect.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        status: int = 0,
        type: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        body: bytes | None = None,
    ) -> None:
        super().__init__(message)
        row = KINDS[kind]
        self.kind = kind
        self.message = message
        self.param = param
        self.source = row.source
        self.status = status or row.status
        self.type = type or row.type
        self.code = code or row.code
        self.headers = headers
        self.body = body


@dataclass(slots=True)
class UpstreamFault(Exception):  # noqa: N818 (what the provider did; the error is what the client is told)
    """How one attempt failed, before anybody has decided what follows.

    `kind` names a row of KINDS whose source is UPSTREAM, or is `internal` when the mistake was ours. `status` is the
    provider's HTTP status, 0 when there was none. `retry_after_s` is what the provider asked for. `wire_type`, `code`
    and `param` are the provider's own words. `body` is the provider's error body as it came (at most 64 KiB),
    `verbatim` says that it is well-formed in the provider's dialect and may be shown to a client that speaks it. `sent`
    is False when surely no byte of the request reached the provider.
    """

    kind: str
    message: str
    status: int = 0
    retry_after_s: float | None = None
    wire_type: str | None = None
    code: str | None = None
    param: str | None = None
    body: bytes | None = field(default=None, repr=False)
    verbatim: bool = False
    sent: bool = True


def own_fault(error: Exception) -> UpstreamFault:
    """What an attempt ends with when we, and not the provider, failed on its answer: `error` is the cause."""
    fault = UpstreamFault("internal", "The gateway failed while it handled the provider's answer.")
    fault.__cause__ = error
    return fault


# The provider's own error body is shown as it is (in its own dialect only) where it is about the request or a limit.
_SHOWN_VERBATIM = frozenset(("upstream_refused", "upstream_rate_limited", "upstream_quota"))
# What clients are told where the provider refused our own key: none of its words, which would be about a key of theirs.
OWN_KEY_REFUSED = "The provider refused the gateway's own credentials."
# A provider that says "do not retry" is said to stay away for this long: no time to pass on to a client.
_RETRY_AFTER_SHOWN_MAX_S = 3599.0


def final_error(fault: UpstreamFault) -> GatewayError:
    """What the client is told when nothing more is tried. The provider's own words are kept where they are its error
    message in the client's dialect (a number is no code there); its status where it is about the request
    (`upstream_refused`)."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    after_s = fault.retry_after_s
    if after_s is not None and after_s <= _RETRY_AFTER_SHOWN_MAX_S:
        headers = ((b"retry-after", b"%d" % max(1, -int(-after_s // 1))), (b"retry-after-ms", b"%d" % (after_s * 1e3)))
    if fault.kind == "upstream_auth":
        return GatewayError(fault.kind, OWN_KEY_REFUSED, headers=headers)
    refused = fault.kind == "upstream_refused"
    return GatewayError(
        fault.kind,
        fault.message,
        param=fault.param,
        status=fault.status if refused else 0,
        type=fault.wire_type if refused else None,
        code=None if fault.code is None or fault.code.isdecimal() else fault.code,
        headers=headers,
        body=fault.body if fault.verbatim and fault.kind in _SHOWN_VERBATIM else None,
    )
