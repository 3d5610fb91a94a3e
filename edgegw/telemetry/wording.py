"""What spans say of a request: a SERVER span for it, and as its children a CLIENT span per attempt.

Worked out by whoever exports them, when he does (`spans_of`). Most of what a span says it has in common with many
others. That part is one object for all of them (`Common`), so that it is put into words, and encoded, once. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from edgegw.content.record import Content
from edgegw.ledger.record import INTEGER_MAX, AttemptRecord, End
from edgegw.telemetry import semconv as names
from edgegw.telemetry.messages import attributes_of
from edgegw.telemetry.spans import Told
from edgegw.telemetry.variables import CONTENT_BYTES_MAX
from edgegw.trace import attempt_span_id, failed, span_id

# Each is a kilobyte or two. Clients choose some of the names in it, so there is a bound; beyond it we begin anew.
COMMON_MAX = 2048

SERVER, CLIENT = 2, 3  # as SpanKind has them in OTLP
Value = str | bool | int | float | tuple[str, ...]
Attributes = Sequence[tuple[str, Value]]
Own = list[tuple[str, str | int | float | tuple[str, ...]]]  # no bool among them

# What the client speaks, as a path.
PATHS = {
    "openai_chat": "/v1/chat/completions",
    "openai_responses": "/v1/responses",
    "anthropic_messages": "/v1/messages",
}
# Refused before anybody knew what it was: of these the path is not known.
NO_PATH = frozenset(
    ("bad_http", "http_version", "not_found", "method_not_allowed", "head_too_large", "target_too_long")
)
# An attempt that ended so has not failed: nobody waited for it any more.
LEFT_ALONE = frozenset(("client_gone", "client_slow"))


class Common:
    """What spans of one kind say alike. `encoded` is for the encoder to fill. `error`: the status is ERROR, with this
    description."""

    __slots__ = ("attributes", "encoded", "error", "kind", "name")

    def __init__(self, kind: int, name: str, attributes: Attributes, error: str | None) -> None:
        self.kind = kind
        self.name = name
        self.attributes = attributes
        self.error = error
        self.encoded: bytes | None = None


class Span(msgspec.Struct, gc=False):
    """Times are Unix nanoseconds. `remote`: the parent is a span of the client's."""

    trace_id: str
    span_id: bytes
    parent_id: bytes | None
    remote: bool
    state: str
    started_ns: int
    ended_ns: int
    common: Common
    own: Own


class Place(NamedTuple):
    """Where a provider is, and what the conventions call it. `apart`: it takes instructions apart from messages."""

    convention: str
    address: str
    port: int
    apart: bool = False

    @classmethod
    def of(cls, name: str, kind: str, base_url: str) -> Place:
        """A provider of the settings."""
        url = urlsplit(base_url)
        known = names.WELL_KNOWN_PROVIDERS
        return cls(
            known.get(kind) or known.get(name, name),
            url.hostname or "",
            url.port or (443 if url.scheme == "https" else 80),
            kind == "anthropic",
        )


class Wording:
    """Puts requests into spans. `places`: the providers of the settings. `content_bytes_max`: of one attribute."""

    def __init__(self, places: Mapping[str, Place], content_bytes_max: int = CONTENT_BYTES_MAX) -> None:
        self._places = places
        self._content_bytes_max = content_bytes_max
        self._commons: dict[tuple[object, ...], Common] = {}

    def spans_of(self, told: Told) -> list[Span]:
        """The request's span, then those of its attempts."""
        end, parent, trace_id = told.end, told.parent, told.trace_id
        state, stream, started_ns = "", end.stream, end.started_ns
        server_id, parent_id = span_id(end.id), None
        if parent is not None:
            state, parent_id = parent.state, bytes.fromhex(parent.span_id)
        spans = [
            Span(
                trace_id,
                server_id,
                parent_id,
                parent is not None,
                state,
                started_ns,
                min(started_ns + end.duration_us * 1000, INTEGER_MAX),
                self._request_common(end),
                _request_own(end),
            )
        ]
        for attempt in told.attempts:
            started_ns = attempt.started_ns
            spans.append(
                Span(
                    trace_id,
                    attempt_span_id(server_id, attempt.number),
                    server_id,
                    False,
                    state,
                    started_ns,
                    min(started_ns + attempt.duration_us * 1000, INTEGER_MAX),
                    self._attempt_common(attempt, stream),
                    _attempt_own(attempt, stream),
                )
            )
        if told.content is not None and told.attempts:
            spans[-1].own += self._content_words(told.content, told.attempts[-1])
        return spans

    def _content_words(self, content: Content, attempt: AttemptRecord) -> Own:
        """Of the attempt whose answer the client saw: the last one."""
        place = self._places.get(attempt.provider)
        return [
            *attributes_of(
                content,
                apart=place is not None and place.apart,
                finish_reason=attempt.finish_reason,
                bytes_max=self._content_bytes_max,
            )
        ]

    def _request_common(self, end: End) -> Common:
        key = (
            end.tenant,
            end.use_case,
            end.route,
            end.key_id,
            end.model_asked,
            end.dialect,
            end.state,
            end.status,
            end.error_kind,
            end.stream,
            end.attempts,
        )
        return self._commons.get(key) or self._kept(key, _request_words(end))

    def _attempt_common(self, attempt: AttemptRecord, stream: bool) -> Common:
        key = (
            attempt.provider,
            attempt.model,
            attempt.upstream_model,
            attempt.number,
            attempt.kind,
            attempt.retry_reason,
            attempt.status,
            attempt.error_kind,
            attempt.finish_reason,
            attempt.reused,
            attempt.estimated,
            stream,
        )
        return self._commons.get(key) or self._kept(key, self._attempt_words(attempt, stream))

    def _kept(self, key: tuple[object, ...], common: Common) -> Common:
        if len(self._commons) >= COMMON_MAX:
            self._commons.clear()
        self._commons[key] = common
        return common

    def _attempt_words(self, attempt: AttemptRecord, stream: bool) -> Common:
        place = self._places.get(attempt.provider)
        kind = attempt.error_kind
        error = None if kind is None or kind in LEFT_ALONE else kind
        return Common(
            CLIENT,
            f"chat {attempt.model}",
            _said(
                (names.OPERATION, "chat"),
                (names.PROVIDER, attempt.provider if place is None else place.convention),
                (names.PROVIDER_NAME, attempt.provider),
                (names.REQUEST_MODEL, attempt.model),
                (names.REQUEST_STREAM, stream or None),
                (names.RESPONSE_MODEL, attempt.upstream_model),
                (names.FINISH_REASONS, None if attempt.finish_reason is None else (attempt.finish_reason,)),
                (names.SERVER_ADDRESS, None if place is None else place.address),
                (names.SERVER_PORT, None if place is None else place.port),
                (names.HTTP_STATUS, attempt.status or None),
                (names.ERROR_TYPE, kind),
                (names.ATTEMPT_NUMBER, attempt.number),
                (names.ATTEMPT_KIND, attempt.kind),
                (names.RETRY_REASON, attempt.retry_reason),
                (names.CONNECTION_REUSED, attempt.reused),
                (names.USAGE_ESTIMATED, attempt.estimated or None),
            ),
            error,
        )


def _request_words(end: End) -> Common:
    path = PATHS.get(end.dialect) if end.error_kind not in NO_PATH else None
    return Common(
        SERVER,
        "HTTP" if path is None else f"POST {path}",
        _said(
            (names.HTTP_METHOD, "_OTHER" if path is None else "POST"),
            (names.HTTP_ROUTE, path),
            (names.URL_PATH, path),
            (names.URL_SCHEME, "http"),
            (names.HTTP_STATUS, end.status or None),
            (names.ERROR_TYPE, end.error_kind),
            (names.TENANT, end.tenant),
            (names.USE_CASE, end.use_case),
            (names.ROUTE, end.route),
            (names.KEY_ID, end.key_id),
            (names.MODEL_ASKED, end.model_asked),
            (names.STATE, end.state),
            (names.STREAM, end.stream),
            (names.ATTEMPTS, end.attempts),
        ),
        (end.error_kind or end.state) if failed(end.status, end.state) else None,
    )


def _said(*attributes: tuple[str, Value | None]) -> Attributes:
    return tuple((name, value) for name, value in attributes if value is not None)


def _request_own(end: End) -> Own:
    own: Own = [
        (names.REQUEST_ID, end.id),
        (names.OVERHEAD, end.overhead_us / 1e6),
        (names.HTTP_REQUEST_BODY_SIZE, end.bytes_in),
        (names.BYTES_OUT, end.bytes_out),
    ]
    if end.cost_usd_micro is not None:
        own.append((names.COST, end.cost_usd_micro / 1e6))
    if end.first_token_us is not None:
        own.append((names.FIRST_TOKEN, end.first_token_us / 1e6))
    if end.session_id is not None:
        own.append((names.SESSION_ID, end.session_id))
    if end.user_id is not None:
        own.append((names.USER_ID, end.user_id))
    return own


def _attempt_own(attempt: AttemptRecord, stream: bool) -> Own:
    own: Own = []
    if attempt.input_tokens is not None:
        own.append((names.INPUT_TOKENS, attempt.input_tokens))
    if attempt.output_tokens is not None:
        own.append((names.OUTPUT_TOKENS, attempt.output_tokens))
    if attempt.cached_tokens:
        own.append((names.CACHED_TOKENS, attempt.cached_tokens))
    if attempt.cache_write_tokens:
        own.append((names.CACHE_WRITE_TOKENS, attempt.cache_write_tokens))
    if attempt.reasoning_tokens:
        own.append((names.REASONING_TOKENS, attempt.reasoning_tokens))
    if stream and attempt.first_token_us is not None:
        own.append((names.FIRST_CHUNK, attempt.first_token_us / 1e6))
    if attempt.upstream_request_id is not None:
        own.append((names.UPSTREAM_REQUEST_ID, attempt.upstream_request_id))
    if attempt.cost_usd_micro is not None:
        own.append((names.COST, attempt.cost_usd_micro / 1e6))
    return own
