"""What the gateway is told: frozen values, every duration in seconds (`*_s`) and every size in bytes (`*_bytes*`).

The shape of a valid setting and nothing more: these structs know neither YAML nor the environment, and whoever holds
one may trust it, because `load.py` builds them only from values that its tables have checked. Defaults stand here,
once; the tables in `fields.py` and the JSON Schema read them from these classes.
"""

from __future__ import annotations

from typing import Literal, NoReturn

from msgspec import Struct, field

from edgegw.exchange import RetryPolicy, Target

ProviderKind = Literal["openai", "anthropic", "openai-compatible"]
Auth = Literal["none", "keys"]
# What happens to a tenant's limits while Redis is away: its share of them, no limit, or no request.
WithoutRedis = Literal["local", "open", "closed"]
# Whose prompts and answers are kept: nobody's, those of exchanges that did not end well, some, all.
CaptureMode = Literal["off", "errors", "sampled", "all"]
# As libpq has them.
SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
SessionAttribute = Literal["any", "primary", "read-write"]

SQLITE = "sqlite:///"
# What becomes of requests that the journal cannot take: a 503, or an answer without a record.
WhenFull = Literal["refuse", "drop"]
# When records are to be on the disk: when the kernel likes, within an interval, or before a request goes on.
Sync = Literal["none", "interval", "always"]

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB


class Secret:
    """A text that is shown only to those who ask for it by name.

    `repr`, `str` and formatting give `***`; msgspec and pickle refuse it. `reveal()` gives the text itself: call it
    where the bytes for the wire are made, and nowhere else.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written down")


class Address(Struct, frozen=True):
    """Where a socket listens. `host` is an IP address or a name, IPv6 without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ServerSettings(Struct, frozen=True, kw_only=True):
    """The side that faces clients. Every size and every wait of a client has its bound here. `allow_unauthenticated`:
    also other machines are served although nobody is asked for a key."""

    listen: Address = Address("127.0.0.1", 8080)
    admin: Address = Address("127.0.0.1", 9090)
    workers: int = 1
    state_dir: str = ".edgegw"
    drain_timeout_s: float = 60.0
    body_bytes_max: int = 20 * _MIB
    head_bytes_max: int = 32 * _KIB
    headers_max: int = 100
    target_bytes_max: int = 16 * _KIB
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_timeout_s: float = 75.0
    requests_per_connection_max: int = 10_000
    in_flight_max: int = 2_000
    total_timeout_s: float = 600.0
    client_stall_timeout_s: float = 60.0
    allow_unauthenticated: bool = False


class Timeouts(Struct, frozen=True, kw_only=True):
    """How long a provider may take, step by step."""

    connect_s: float = 2.0
    tls_s: float = 5.0
    first_byte_s: float = 60.0
    idle_s: float = 60.0
    pool_s: float = 5.0


class ProviderSettings(Struct, frozen=True, kw_only=True):
    """One provider: a dialect (`kind`), an address without a trailing slash, a key, and its own bounds.

    `headers` are sent with every request, names in lower case. `proxy` is an `http://` URL and may carry user info;
    None leaves the choice to HTTP_PROXY, HTTPS_PROXY and NO_PROXY. `trace`: it is told which span calls it.
    """

    name: str
    kind: ProviderKind
    base_url: str
    api_key: Secret | None = None
    timeouts: Timeouts = Timeouts()
    connections_max: int = 1_000
    keep_alive_s: float = 60.0
    headers: dict[str, str] = field(default_factory=dict)
    proxy: str | None = None
    trace: bool = False

    def __repr__(self) -> str:
        """Without the values of headers and the user info of the proxy: those are credentials too."""
        return f"ProviderSettings(name={self.name!r}, kind={self.kind!r}, base_url={self.base_url!r}, …)"


class RouteSettings(Struct, frozen=True):
    """Ordered targets, each `provider/model` (a `*` in a pattern's target is the name asked for), and how to retry."""

    targets: tuple[str, ...]
    retry: RetryPolicy = RetryPolicy()

    @property
    def parsed(self) -> tuple[Target, ...]:
        """The targets as values, in order. Made anew at each call: for those who build a router, not per request."""
        return tuple(parse_target(text) for text in self.targets)


class OwnLimits(Struct, frozen=True, kw_only=True):
    """Limits of one tenant, key or model: tokens (input and output together), requests begun, requests at once. None:
    as the tenant's default for a tenant, else no limit of its own. Days and months are those of UTC."""

    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None


class LimitSettings(Struct, frozen=True, kw_only=True):
    """What a tenant may use when nothing else is said of it. None: no such limit."""

    tokens_per_minute: int = 50_000
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    without_redis: WithoutRedis = "local"


class AllowSettings(Struct, frozen=True, kw_only=True):
    """Where a tenant's requests may go. `routes`: names of use cases and model aliases, and `default`. `models`: names
    of models as a request may ask for them, with `*`. A request passes when its route or its model is listed; both
    None: everything passes."""

    routes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None


class KeySettings(Struct, frozen=True, kw_only=True):
    """A key of a tenant, by the SHA-256 (32 bytes) of the whole credential. `name` is unique within the tenant and has
    no dot. `expires_ns` is Unix nanoseconds. `acts_for`: tenants that its requests may name instead of its own, `*` for
    any."""

    name: str
    digest: bytes
    expires_ns: int | None = None
    acts_for: tuple[str, ...] = ()
    limits: OwnLimits = OwnLimits()

    def __repr__(self) -> str:
        """Without the digest, which is nobody's business either."""
        return f"KeySettings(name={self.name!r}, …)"


class TenantSettings(Struct, frozen=True, kw_only=True):
    """One tenant. `models`: limits by model name, or by a pattern whose models count together. `weight`: its share of
    a provider's connections when they are scarce. `capture`: instead of the mode that all have."""

    name: str
    limits: OwnLimits = OwnLimits()
    models: dict[str, OwnLimits] = field(default_factory=dict)
    allow: AllowSettings = AllowSettings()
    keys: dict[str, KeySettings] = field(default_factory=dict)
    weight: int = 1
    without_redis: WithoutRedis | None = None
    capture: CaptureMode | None = None


class OwnPrice(Struct, frozen=True, kw_only=True):
    """What a model costs by the operator's own word: USD per million tokens of each kind, as decimals in a text, so
    that they stay what they are. None: `cached` and `cache_write` as `input`, `reasoning` as `output`. Either `free`,
    or with `input` and `output`."""

    input: str | None = None
    output: str | None = None
    cached: str | None = None
    cache_write: str | None = None
    reasoning: str | None = None
    free: bool = False


class JournalSettings(Struct, frozen=True, kw_only=True):
    """How much may wait on disk: all segments of all workers together, and one of them; and what becomes of requests
    when nothing more may, or can. `adopt`: state directories of other gateways, with wildcards."""

    bytes_max: int = _GIB
    segment_bytes: int = 8 * _MIB
    when_full: WhenFull = "refuse"
    sync: Sync = "none"
    sync_interval_s: float = 1.0
    adopt: tuple[str, ...] | None = None


class StorageSettings(Struct, frozen=True, kw_only=True):
    """Where rows and limits are kept. `database_url` is `sqlite:///…`, or one that `database_address.parse_postgres`
    takes apart; None: SQLite in the state directory. `redis_url` is one that `redis_address.parse_redis` takes apart;
    None: each gateway keeps its own limits. `retention_s`: how old a row may become; None: rows are kept."""

    database_url: Secret | None = None
    redis_url: Secret | None = None
    retention_s: float | None = None
    journal: JournalSettings = JournalSettings()


class CaptureSettings(Struct, frozen=True, kw_only=True):
    """Whether prompts and answers are kept, and how much of them for how long. `mode` is that of tenants without one of
    their own, `sample` a share. Bounds: of a prompt and of an answer, of what waits on disk, of the table."""

    mode: CaptureMode = "off"
    sample: float = 0.01
    body_bytes_max: int = 64 * _KIB
    waiting_bytes_max: int = 64 * _MIB
    retention_s: float = 7 * 86_400.0
    bytes_max: int = _GIB


class Settings(Struct, frozen=True, kw_only=True):
    """Everything, valid as a whole: every target names a provider of `providers`. `source` is the file, or
    `environment`. `models` maps aliases and patterns (with a `*`) in the order of the file."""

    version: int = 1
    auth: Auth = "none"
    server: ServerSettings = ServerSettings()
    providers: dict[str, ProviderSettings] = field(default_factory=dict)
    use_cases: dict[str, RouteSettings] = field(default_factory=dict)
    models: dict[str, RouteSettings] = field(default_factory=dict)
    default: RouteSettings | None = None
    limits: LimitSettings = LimitSettings()
    tenants: dict[str, TenantSettings] = field(default_factory=dict)
    prices: dict[str, OwnPrice] = field(default_factory=dict)
    storage: StorageSettings = StorageSettings()
    capture: CaptureSettings = CaptureSettings()
    source: str = "environment"

    @property
    def postgres_url(self) -> Secret | None:
        """The database of the rows when that is a PostgreSQL; None: it is SQLite, see `sqlite_path`."""
        url = self.storage.database_url
        return None if url is None or url.reveal().startswith(SQLITE) else url

    @property
    def sqlite_path(self) -> str:
        """The file of the rows where no PostgreSQL is set: what follows `sqlite:///`, else `edgegw.db` in the state
        directory."""
        url = self.storage.database_url
        if url is None or self.postgres_url is not None:
            return f"{self.server.state_dir}/edgegw.db"
        return url.reveal().removeprefix(SQLITE)


def parse_target(text: str) -> Target:
    """`provider/model` as a value. Only the first slash divides: `local/meta-llama/Llama-3` has a slash in its model.
    Raises ValueError when either half is missing."""
    provider, _, model = text.partition("/")
    if not provider or not model:
        raise ValueError("a target is written provider/model")
    return Target(provider, model)
