"""The settings, row by row: what may stand in the file, how it is read, and what it is for.

The one list (with `tenant_fields.py`): the loader validates with it, `schema.py` describes it to editors, `describe.py`
prints by it, and `reference.py` makes docs/settings-reference.md of it. To add a setting, add a field with its default
in `model.py` and a row here, and call `make reference`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from edgegw.exchange import RetryPolicy
from edgegw.settings import addresses, database_address, redis_address, values
from edgegw.settings.model import (
    CaptureSettings,
    JournalSettings,
    OwnPrice,
    ProviderSettings,
    RouteSettings,
    ServerSettings,
    Settings,
    StorageSettings,
    Timeouts,
)
from edgegw.settings.specs import Field, Named, Section, Several
from edgegw.settings.tenant_fields import CAPTURE_MODE, LIMITS, TENANTS


class Preset(Struct, frozen=True):
    """What a kind of provider brings along. `headers`: those its dialect writes itself."""

    base_url: str | None
    needs_key: bool
    headers: frozenset[str] = frozenset()


PRESETS = {
    "openai": Preset("https://api.openai.com/v1", needs_key=True),
    "anthropic": Preset("https://api.anthropic.com", needs_key=True, headers=frozenset({"x-api-key"})),
    "openai-compatible": Preset(None, needs_key=False),
}


def _provider(*, name: str, kind: str, base_url: str | None = None, **rest: Any) -> ProviderSettings:
    """With the base URL that its kind brings along; an empty one is for `checks.py` to find."""
    known_kind: Any = kind  # choice() has let only the Literal's words through
    return ProviderSettings(name=name, kind=known_kind, base_url=base_url or PRESETS[kind].base_url or "", **rest)


_WAIT = values.duration("1ms", "24h")
_PATH = values.matching(r"[^\x00]{1,4096}", "a path")
_COUNT = values.whole(1, 1_000_000)

_PRICE = values.price(100_000)  # the dearest model there has been took 600

_LABEL = values.label()
_PROVIDER_NAME = values.matching(
    "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}", "a name of letters, digits, dots, dashes and underscores"
)

RETRY = Section(
    RetryPolicy,
    (
        Field("attempts", "attempts", values.whole(1, 10), "How often one target may be tried."),
        Field("attempts_max", "attempts_max", values.whole(1, 20), "All attempts of a request, fallbacks included."),
        Field("base", "base_s", _WAIT, "The first pause is random below this, each further one below twice as much."),
        Field("cap", "cap_s", _WAIT, "No pause is longer."),
        Field("retry_after_max", "retry_after_max_s", _WAIT, "A provider that asks for more is not waited for."),
    ),
    RetryPolicy,
)

ROUTE = Section(
    RouteSettings,
    (
        Field(
            "targets",
            "targets",
            Several(values.target(), "[provider/model]"),
            "Where to go, in order, each written provider/model. In a pattern, * stands for the model asked for.",
            required=True,
            hint="for example targets: [openai/gpt-5-mini]",
        ),
        Field("retry", "retry", RETRY, "How often to try before the next target's turn, and how long to pause."),
    ),
    RouteSettings,
)

TIMEOUTS = Section(
    Timeouts,
    (
        Field("connect", "connect_s", _WAIT, "Until a TCP connection to one address stands."),
        Field("tls", "tls_s", _WAIT, "Until the TLS handshake is done."),
        Field("first_byte", "first_byte_s", _WAIT, "From the request sent to the first byte of the reply."),
        Field("idle", "idle_s", _WAIT, "Between two pieces of a reply."),
        Field("pool", "pool_s", _WAIT, "The wait for a free connection, when connections_max are busy."),
    ),
    Timeouts,
)

PROVIDER = Section(
    ProviderSettings,
    (
        Field(
            "kind",
            "kind",
            values.choice(*PRESETS),
            "What the provider speaks.",
            required=True,
            hint=f"one of {', '.join(PRESETS)}",
        ),
        Field("base_url", "base_url", addresses.base_url(), "Where it is; openai and anthropic know their own."),
        Field("api_key", "api_key", values.secret(), "Its key, best written ${OPENAI_API_KEY} or ${file:/path}."),
        Field("timeouts", "timeouts", TIMEOUTS, "How long it may take, step by step."),
        Field("connections_max", "connections_max", _COUNT, "Open connections to it, per worker."),
        Field(
            "keep_alive",
            "keep_alive_s",
            _WAIT,
            "How long an idle connection is kept; shorter than the provider keeps it.",
        ),
        Field(
            "headers",
            "headers",
            Named(addresses.header_name(), addresses.header_value()),
            "Further headers, sent with every request.",
        ),
        Field("proxy", "proxy", addresses.proxy(), "An HTTP proxy to go through, instead of HTTP_PROXY, HTTPS_PROXY."),
        Field("trace", "trace", values.boolean(), "Tell it the trace of each request (traceparent, tracestate)."),
    ),
    _provider,
)

SERVER = Section(
    ServerSettings,
    (
        Field("listen", "listen", addresses.address(), "Where clients are served.", restart=True),
        Field("admin", "admin", addresses.address(), "Where probes and metrics are served.", restart=True),
        Field("workers", "workers", values.processes(512), "Worker processes; auto is one per CPU.", restart=True),
        Field("state_dir", "state_dir", _PATH, "Where journal, rows and sockets are kept.", restart=True),
        Field(
            "drain_timeout",
            "drain_timeout_s",
            values.duration("0s", "24h"),
            "How long open requests may go on, once told to stop.",
        ),
        Field("body_max", "body_bytes_max", values.size("1KiB", "1GiB"), "Bytes of a request body; more is a 413."),
        Field("head_max", "head_bytes_max", values.size("1KiB", "1MiB"), "Request line and headers; more is a 431."),
        Field("headers_max", "headers_max", values.whole(10, 10_000), "Header fields of a request; more is a 431."),
        Field("target_max", "target_bytes_max", values.size("256B", "1MiB"), "The request's path; more is a 414."),
        Field("head_timeout", "head_timeout_s", _WAIT, "From the first byte of a request to the end of its headers."),
        Field("body_timeout", "body_timeout_s", _WAIT, "The longest wait for the next byte of a body."),
        Field(
            "keep_alive_timeout",
            "keep_alive_timeout_s",
            _WAIT,
            "How long a connection may idle; longer than at the load balancer before it.",
        ),
        Field(
            "requests_per_connection_max",
            "requests_per_connection_max",
            _COUNT,
            "After so many, a connection is closed.",
        ),
        Field("in_flight_max", "in_flight_max", _COUNT, "Requests at once, per worker; more is a 503."),
        Field("total_timeout", "total_timeout_s", _WAIT, "The longest a request may take, all attempts included."),
        Field(
            "client_stall_timeout", "client_stall_timeout_s", _WAIT, "How long a client may read nothing of its stream."
        ),
        Field(
            "allow_unauthenticated",
            "allow_unauthenticated",
            values.boolean(),
            "Serve other machines although auth is none: whoever reaches the port may spend your money.",
        ),
    ),
    ServerSettings,
)

PRICE = Section(
    OwnPrice,
    (
        Field("input", "input", _PRICE, "A million tokens of prompts."),
        Field("output", "output", _PRICE, "A million tokens of answers."),
        Field("cached_input", "cached", _PRICE, "A million prompt tokens read from a cache; as input if not set."),
        Field("cache_write", "cache_write", _PRICE, "A million prompt tokens put into a cache; as input if not set."),
        Field("reasoning", "reasoning", _PRICE, "A million answer tokens of reasoning; as output if not set."),
        Field("free", "free", values.boolean(), "It costs nothing, and nothing else is to be said."),
    ),
    OwnPrice,
)

JOURNAL = Section(
    JournalSettings,
    (
        Field("max", "bytes_max", values.size("1MiB", "1024GiB"), "All that may wait on disk for the database."),
        Field("segment", "segment_bytes", values.size("64KiB", "1GiB"), "One file of the journal."),
        Field(
            "when_full",
            "when_full",
            values.choice("refuse", "drop"),
            "Requests that it cannot take: refuse (503), or drop their records, and count them.",
        ),
        Field(
            "sync",
            "sync",
            values.choice("none", "interval", "always"),
            "When records are on the disk, should the machine die: when the kernel likes, soon, or first of all.",
        ),
        Field(
            "adopt",
            "adopt",
            Several(_PATH, "[/var/lib/edgegw/*]"),
            "State directories, with wildcards: what gateways that are gone have left there is shipped.",
        ),
        Field("sync_interval", "sync_interval_s", values.duration("10ms", "1h"), "How soon interval is."),
    ),
    JournalSettings,
)

STORAGE = Section(
    StorageSettings,
    (
        Field(
            "database_url",
            "database_url",
            database_address.database_url(),
            "The rows; edgegw.db in state_dir if not set.",
        ),
        Field("redis_url", "redis_url", redis_address.redis_url(), "Limits shared between gateways."),
        Field(
            "retention",
            "retention_s",
            values.duration("1h", "36500d"),
            "How old rows may become, e.g. 90d; they are kept if not set.",
        ),
        Field("journal", "journal", JOURNAL, "What waits on disk until the database has it."),
    ),
    StorageSettings,
)

CAPTURE = Section(
    CaptureSettings,
    (
        Field("mode", "mode", CAPTURE_MODE, "Whose prompts and answers are kept: off, errors, sampled or all."),
        Field("sample", "sample", values.share(), "How many of them, where the mode is sampled."),
        Field("body_max", "body_bytes_max", values.size("1KiB", "64MiB"), "Kept of a prompt, and of an answer."),
        Field("waiting", "waiting_bytes_max", values.size("1MiB", "1024GiB"), "All that may wait for the database."),
        Field("retention", "retention_s", values.duration("1m", "3650d"), "How long the database keeps it."),
        Field("max", "bytes_max", values.size("1MiB", "1024GiB"), "All that the database keeps; the oldest goes."),
    ),
    CaptureSettings,
)

ROOT = Section(
    Settings,
    (
        Field(
            "version",
            "version",
            values.version(1),
            "The version of this format: 1.",
            required=True,
            hint="begin with version: 1",
        ),
        Field(
            "auth",
            "auth",
            values.choice("none", "keys"),
            "none: requests say which tenant they are. keys: each brings the key of a tenant.",
        ),
        Field("server", "server", SERVER, "The side that faces clients."),
        Field(
            "providers",
            "providers",
            Named(_PROVIDER_NAME, PROVIDER, tells_name=True),
            "Who answers, by a name of your choice.",
            required=True,
            hint="for example openai: {kind: openai, api_key: ${OPENAI_API_KEY}}",
        ),
        Field("use_cases", "use_cases", Named(_LABEL, ROUTE), "Routes by a request's metadata.use_case."),
        Field("models", "models", Named(_LABEL, ROUTE), "Routes by a request's model: aliases, and patterns with a *."),
        Field("default", "default", ROUTE, "The route of a request that names neither."),
        Field("limits", "limits", LIMITS, "What each tenant may use, unless tenants says more."),
        Field("tenants", "tenants", TENANTS, "Who has limits, permissions or keys of its own, by the tenant's name."),
        Field(
            "prices",
            "prices",
            Named(values.target(), PRICE, called="TARGET"),
            "What models cost, by provider/model or a pattern with a *, where it is not what the table of prices says.",
        ),
        Field("storage", "storage", STORAGE, "Where rows are kept."),
        Field("capture", "capture", CAPTURE, "Whether prompts and answers are kept, and for how long."),
    ),
    Settings,
)
