"""The nouns of one request's life: Exchange, Attempt, Target, Route, Usage.

Plain values with names, no behaviour beyond what their fields already say. What every request makes is a struct of
msgspec's: made at a quarter of the cost of a dataclass. `Exchange` becomes a row of `requests`,
`Attempt` a row of `provider_attempts` (ledger/record.py says how). All `*_s` are monotonic seconds of the worker's
clock, all `*_ns` are Unix nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

# Of one count: 32 bits hold it in the books. No model comes near.
TOKENS_MAX = 2**31 - 1

AttemptKind = Literal["primary", "retry", "fallback"]

# How an exchange ended, as it stands in `requests.state`.
State = Literal[
    "open",  # still going on (never in a row)
    "complete",  # the whole answer was delivered
    "refused",  # the gateway said no before any provider was asked (4xx, 429, 404, …)
    "failed",  # every attempt failed before a byte was committed; the client got one true error status
    "truncated",  # after commit: the upstream ended cleanly but too early
    "reset",  # after commit: the upstream connection broke
    "error_event",  # after commit: the upstream reported an error inside the stream
    "idle_timeout",  # after commit: the upstream stalled
    "client_gone",  # the client left
    "client_slow",  # the client read too slowly for too long
    "drained",  # the gateway was stopped before the answer was whole
    "interrupted",  # the worker died; closed by the control process
]


class Usage(msgspec.Struct, gc=False):
    """Tokens as the provider counted them, in OpenAI's sense: `input` includes `cached` and `cache_write`, `output`
    includes `reasoning`. `estimated` is True when the provider did not say, or only a part, and we counted the rest."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.input + self.output

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cached + other.cached,
            self.cache_write + other.cache_write,
            self.reasoning + other.reasoning,
            self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Target:
    """Where an attempt goes: a provider of the settings and a model of that provider. Written `provider/model`."""

    provider: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts`: how often one target may be tried. `attempts_max`: all attempts of an exchange together."""

    attempts: int = 2
    attempts_max: int = 3
    base_s: float = 0.2
    cap_s: float = 4.0
    retry_after_max_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Route:
    """Ordered targets under a name. `name` is what `x-edgegw-route` says: `use_case:support_summary`, `model:smart`,
    `pattern:claude-*`, `target:openai/gpt-5`, `default`."""

    name: str
    targets: tuple[Target, ...]
    retry: RetryPolicy = RetryPolicy()


class Allowance(Protocol):
    """What an exchange counts against (limits/account.py)."""

    def lines(self, now_s: float) -> bytes:
        """How its limits stand, as header lines."""
        ...


class Grant(Protocol):
    """What was reserved for an exchange (limits/limiter.py)."""

    def settle(self, used_tokens: int) -> None:
        """Once, with what was really used."""
        ...


class Attempt(msgspec.Struct, gc=False):
    """One try at one target. `status` is the provider's HTTP status (0: none came). `error_kind` names a row of
    errors.KINDS, None for a success. `retry_reason` is why this attempt exists (the error kind of the one before)."""

    number: int
    kind: AttemptKind
    target: Target
    started_ns: int
    started_s: float
    retry_reason: str | None = None
    status: int = 0
    error_kind: str | None = None
    first_byte_s: float | None = None  # since started_s: head of the reply
    first_token_s: float | None = None  # since started_s: first content
    duration_s: float = 0.0
    usage: Usage | None = None
    upstream_request_id: str | None = None
    upstream_model: str | None = None  # as the provider named it in its reply
    finish_reason: str | None = None
    reused: bool = False  # on a pooled connection
    written: bool = False  # as a record of its own, before the end of its exchange


class Exchange(msgspec.Struct, gc=False):
    """One client request and its reply, with everything that happened."""

    id: str  # UUIDv7; also x-request-id
    started_ns: int
    started_s: float
    dialect: str = "openai_chat"  # what the client speaks
    tenant: str = "default"
    key_id: str | None = None
    use_case: str | None = None
    session_id: str | None = None  # as the client's own program names its session and its user
    user_id: str | None = None
    trace: str | None = None  # the client's, as trace.received gives it
    model_asked: str | None = None
    stream: bool = False
    route: Route | None = None
    allowance: Allowance | None = None
    grant: Grant | None = None
    attempts: list[Attempt] = []
    status: int = 0  # what the client was told
    state: State = "open"
    error_kind: str | None = None
    usage: Usage | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    committed_s: float | None = None  # since started_s: first byte handed to the client
    upstream_s: float = 0.0  # spent waiting for providers; duration_s - upstream_s is our own share
    duration_s: float = 0.0
    begun: bool = False  # the begin record is written
    dropped: tuple[str, ...] = ()  # request fields that the target's dialect cannot carry
