"""What a provider is: a dialect at an address, with a key, and what its refusals mean.

A provider makes the bytes of a request and reads the bytes of a reply; it opens no connection. Nothing that a client
sends can reach the request line or a header: those are prepared once, from the settings alone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from edgegw import __version__
from edgegw.dialects.base import Ask, Call, PlainReply, StreamReader
from edgegw.dialects.openai_chat_reply import error_words, kind_of_words
from edgegw.errors import OWN_KEY_REFUSED, UpstreamFault
from edgegw.providers.retry_after import retry_after_s

# What is kept of a provider's error body.
ERROR_BODY_BYTES_MAX = 64 * 1024

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff]*\Z")
# Keys of the well-known providers begin like this; an error message may quote one.
_KEY_LIKE = re.compile(rb"\b(?:sk|gsk|xai|pplx)-[A-Za-z0-9_*.-]{5,}[A-Za-z0-9_*-]")
_MASK = b"***"
# A shorter key is no secret but a stand-in for a server that wants none, and may be part of any word.
KEY_BYTES_MIN = 8

# What a status means when the body does not say more. Not in it: 4xx are the caller's fault, 5xx the provider's.
_KIND_OF_STATUS = {
    401: "upstream_auth",
    402: "upstream_auth",
    403: "upstream_auth",
    407: "upstream_auth",
    408: "upstream_timeout",
    429: "upstream_rate_limited",
    503: "upstream_overloaded",
    504: "upstream_timeout",
    529: "upstream_overloaded",
}
# Statuses where the provider's own words tell more than the number.
_WORDS_COUNT = frozenset({400, 429}) | frozenset(range(500, 600))
_RETRYABLE_WHEN_TOLD = frozenset({"upstream_refused"})
_STATUSES_WITH_RETRY_AFTER = frozenset({408, 409, 429, 503, 529})
# "Do not retry" (x-should-retry: false) as a time to stay away: longer than a retry policy waits, and no bad advice.
STAY_AWAY_S = 60.0

# What a client is told when the provider gave no message that can be shown.
_MESSAGES = {
    "upstream_auth": OWN_KEY_REFUSED,
    "upstream_garbage": "The provider sent an answer that cannot be understood.",
    "upstream_overloaded": "The provider is overloaded.",
    "upstream_quota": "The provider's quota for the gateway is used up.",
    "upstream_rate_limited": "The provider's rate limit is reached.",
    "upstream_refused": "The provider refused the request.",
    "upstream_timeout": "The provider timed out.",
    "upstream_error": "The provider failed to answer.",
}


class Revealing(Protocol):
    def reveal(self) -> str: ...


class ProviderSettings(Protocol):
    """What a provider is built from (settings/model.py)."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    @property
    def api_key(self) -> Revealing | None: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a provider's connections go. `scheme` is http or https; `host` a name or an address without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in the Host field: no port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


class Provider(ABC):
    """A dialect at an origin. One per entry of the settings, shared by all requests, never changed."""

    __slots__ = ("_head_plain", "_head_stream", "_key_forms", "dialect", "name", "origin")

    def __init__(self, settings: ProviderSettings, dialect: str, resource: str, headers: dict[str, str]) -> None:
        """`resource` is the path behind that of the base URL; `headers` carry the key. Settings' own headers win.

        Raises ValueError for a base URL or header value that cannot be sent; it never quotes the value.
        """
        self.name = settings.name
        self.dialect = dialect
        self.origin, path = _address(settings)
        key = b"" if settings.api_key is None else settings.api_key.reveal().encode()
        # As it is, and as JSON writers that escape slashes put it.
        forms = {key, key.replace(b"/", b"\\/")} if len(key) >= KEY_BYTES_MIN else set()
        self._key_forms = tuple(sorted(forms))
        fields = {
            "host": self.origin.authority,
            **headers,
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"edgegw/{__version__}",
            **{name.lower(): value for name, value in settings.headers.items()},
        }
        self._head_plain = _head(settings.name, path + resource, {**fields, "accept": "application/json"})
        self._head_stream = _head(settings.name, path + resource, {**fields, "accept": "text/event-stream"})

    @abstractmethod
    def call(self, ask: Ask, model: str, request_id: str) -> Call:
        """The request for an attempt. `request_id` is our own (a UUID). Raises GatewayError: unsupported_parameter."""

    @abstractmethod
    def stream(self, ask: Ask, model: str, *, created_s: int) -> StreamReader:
        """A reader for the reply to a streamed request. `created_s`: Unix seconds, for replies that must be made."""

    @abstractmethod
    def plain(self, ask: Ask, model: str, body: bytes, *, created_s: int) -> PlainReply:
        """Reads a whole reply of status 200. Raises UpstreamFault: garbage, or an error inside it."""

    def fault(self, status: int, headers: Mapping[bytes, bytes], body: bytes, wall_s: float) -> UpstreamFault:
        """What a reply that is no answer means. `headers` have lower-case names; `wall_s` is Unix time, for dates."""
        body = self.masked(body[:ERROR_BODY_BYTES_MAX])
        error, well_formed = self._error_in(body)
        words = self._words(error)
        kind = self._kind(status, words)
        asked_s = retry_after_s(headers, wall_s) if status in _STATUSES_WITH_RETRY_AFTER else None
        told = headers.get(b"x-should-retry")
        if told == b"true" and kind in _RETRYABLE_WHEN_TOLD:
            kind = "upstream_error"
        elif told == b"false" and kind != "upstream_refused":
            asked_s = max(asked_s or 0.0, STAY_AWAY_S)
        message = words.get("message") if kind not in ("upstream_auth", "upstream_garbage") else None
        return UpstreamFault(
            kind,
            message or _MESSAGES[kind],
            status=status,
            retry_after_s=asked_s,
            wire_type=words.get("type"),
            code=words.get("code"),
            param=words.get("param"),
            body=body,
            verbatim=well_formed and "message" in words,
        )

    def _words(self, error: object) -> dict[str, str]:
        """`message`, `type`, `code` and `param` of an `error` value."""
        return error_words(error)

    def _kind(self, status: int, words: dict[str, str]) -> str:
        if not 400 <= status < 600:
            return "upstream_garbage"
        if status in _WORDS_COUNT:
            told = kind_of_words(words.get("code"), words.get("type"))
            if told is not None:
                return told
        return _KIND_OF_STATUS.get(status) or ("upstream_refused" if status < 500 else "upstream_error")

    def _error_in(self, body: bytes) -> tuple[object, bool]:
        """What an error body says (None when it is no JSON object), and whether it does so in the dialect's form."""
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None, False
        if isinstance(document, list) and len(document) == 1:  # Google
            return (document[0].get("error") if isinstance(document[0], dict) else None), False
        if not isinstance(document, dict):
            return None, False
        error = document.get("error")
        if error is None:
            return document, False
        return error, isinstance(error, dict) and isinstance(error.get("message"), str)

    def masked(self, text: bytes) -> bytes:
        """`text` without our key and without anything that looks like one."""
        for key in self._key_forms:
            text = text.replace(key, _MASK)
        return _KEY_LIKE.sub(_MASK, text)

    def _call(self, ask: Ask, body: bytes, request_id: str, dropped: tuple[str, ...] = ()) -> Call:
        head = self._head_stream if ask.stream else self._head_plain
        return Call(head % (request_id.encode(), len(body)) + body, dropped)


def _address(settings: ProviderSettings) -> tuple[Origin, str]:
    """The origin and the path of a base URL, the path without a slash at its end."""
    url = urlsplit(settings.base_url)
    if url.scheme not in _DEFAULT_PORTS or not url.hostname or url.query or url.fragment or "@" in url.netloc:
        raise ValueError(f"provider {settings.name}: base_url must be http(s)://host[:port][/path]")
    return Origin(url.scheme, url.hostname, url.port or _DEFAULT_PORTS[url.scheme]), url.path.rstrip("/")


def _head(provider: str, path: str, fields: dict[str, str]) -> bytes:
    """A request head with two holes: our request id and the body's length."""
    lines = [f"POST {path} HTTP/1.1"]
    for name, value in fields.items():
        if not _HEADER_VALUE.match(value):
            raise ValueError(f"provider {provider}: the value of {name} has characters that no header can carry")
        lines.append(f"{name}: {value}")
    fixed = "\r\n".join(lines).encode("latin-1").replace(b"%", b"%%")
    return fixed + b"\r\nx-client-request-id: %b\r\ncontent-length: %d\r\n\r\n"
