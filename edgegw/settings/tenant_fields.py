"""The rows about who may use the gateway, and how much of it: limits, tenants, their keys.

Part of the list that `fields.py` is the root of; how rows are read stands in `specs.py` and `values.py`.
"""

from __future__ import annotations

from msgspec.structs import replace

from edgegw.settings import values
from edgegw.settings.model import AllowSettings, KeySettings, LimitSettings, OwnLimits, TenantSettings
from edgegw.settings.specs import Field, Named, Section, Several, Shorthand
from edgegw.settings.values import Kind

TENANT_CHARS_MAX = 256  # as the limiter has it: a name travels in messages, meters and rows
MODEL_CHARS_MAX = 256  # as the dialects have it, for a request's model
KEY_CHARS_MAX = 64  # shown in listings, and after the tenant's name in the id of a key

TOKENS_MAX = 10**12  # of a limit: stays exact in a double, with room for sums
REQUESTS_MAX = 10**9
CONCURRENT_MAX = 10**6
WEIGHT_MAX = 1_000

_BLOCKED = "to block a tenant, write allow: {routes: [], models: []}"
_TENANT = values.printable(TENANT_CHARS_MAX, "a tenant's name")
_MODEL = values.printable(MODEL_CHARS_MAX, "a model's name")
# Without a dot, so that tenant.key, the id of a key, is nobody else's.
_KEY_NAME = values.matching(
    f"[A-Za-z0-9][A-Za-z0-9_\\-]{{0,{KEY_CHARS_MAX - 1}}}",
    f"a name of at most {KEY_CHARS_MAX} letters, digits, dashes and underscores",
)


def _limit(high: int) -> Kind:
    """A limit. Zero is none: somebody who may do nothing is told so by `allow`, and not to come again later."""
    return replace(values.whole(1, high), hint=lambda text: _BLOCKED if text == "0" else None)


_MEASURES = (
    Field(
        "tokens_per_minute",
        "tokens_per_minute",
        _limit(TOKENS_MAX),
        "Tokens, input and output together, within a minute.",
    ),
    Field("requests_per_minute", "requests_per_minute", _limit(REQUESTS_MAX), "Requests begun within a minute."),
    Field("concurrent_requests", "concurrent_requests", _limit(CONCURRENT_MAX), "Requests at the same time."),
    Field("tokens_per_day", "tokens_per_day", _limit(TOKENS_MAX), "Tokens within a day (UTC)."),
    Field("tokens_per_month", "tokens_per_month", _limit(TOKENS_MAX), "Tokens within a calendar month (UTC)."),
)
_WITHOUT_REDIS = values.choice("local", "open", "closed")
_MODES = ("off", "errors", "sampled", "all")
# To an editor that knows YAML 1.1 only, `off` is a boolean.
CAPTURE_MODE = replace(values.choice(*_MODES), schema={"enum": [False, *_MODES]})

LIMITS = Section(
    LimitSettings,
    (
        *_MEASURES,
        Field(
            "without_redis",
            "without_redis",
            _WITHOUT_REDIS,
            "While Redis is away: local (this gateway's share), open (no limit) or closed (no request).",
        ),
    ),
    LimitSettings,
)

OWN_LIMITS = Section(OwnLimits, _MEASURES, OwnLimits)

ALLOW = Section(
    AllowSettings,
    (
        Field(
            "routes",
            "routes",
            Several(values.label(), "[support_summary, default]", least=0),
            "Names of use cases and of model aliases, and default.",
        ),
        Field(
            "models", "models", Several(_MODEL, '["gpt-*"]', least=0), "Models that may be asked for by name, with *."
        ),
    ),
    AllowSettings,
)

_DIGEST = Field(
    "digest",
    "digest",
    values.digest(),
    "The SHA-256 of the key, as edgegw keys hash prints it.",
    required=True,
    hint=values.HOW_TO_DIGEST,
)

KEY = Section(
    KeySettings,
    (
        _DIGEST,
        Field("expires", "expires_ns", values.moment(), "The key is refused from then on (UTC): a date, or a time."),
        Field(
            "acts_for",
            "acts_for",
            Several(_TENANT, '[beta] or ["*"]', least=0),
            "Tenants that metadata.tenant may name instead of the key's own; * is any.",
        ),
        Field("limits", "limits", OWN_LIMITS, "What this key may use of what its tenant may."),
    ),
    KeySettings,
)

TENANT = Section(
    TenantSettings,
    (
        Field("limits", "limits", OWN_LIMITS, "What it may use; limits.* goes for what is not set."),
        Field(
            "models",
            "models",
            Named(_MODEL, OWN_LIMITS, called="MODEL"),
            "What it may use of a model, or of all that a * matches.",
        ),
        Field("allow", "allow", ALLOW, "Where its requests may go."),
        Field(
            "keys",
            "keys",
            Named(_KEY_NAME, Shorthand(_DIGEST, KEY), tells_name=True, called="KEY"),
            "Its keys, by a name each.",
        ),
        Field(
            "weight",
            "weight",
            values.whole(1, WEIGHT_MAX),
            "Its share of a provider's connections when they are scarce, against the others' weights.",
        ),
        Field("without_redis", "without_redis", _WITHOUT_REDIS, "As limits.without_redis, for this tenant."),
        Field("capture", "capture", CAPTURE_MODE, "As capture.mode, for this tenant."),
    ),
    TenantSettings,
)

TENANTS = Named(_TENANT, TENANT, tells_name=True)
