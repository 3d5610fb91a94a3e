"""What the gateway is told: one strict YAML file, or the environment alone, read once and trusted from then on.

Only `load` touches files and the environment; everything else is values and pure functions. Importing this package
loads no YAML parser.
"""

from edgegw.settings.checks import warnings
from edgegw.settings.database_address import PostgresAddress, parse_postgres
from edgegw.settings.describe import describe
from edgegw.settings.load import DEFAULT_FILE, load, load_text
from edgegw.settings.mistakes import Mistake, NoProviderError, SettingsError
from edgegw.settings.model import (
    Address,
    AllowSettings,
    Auth,
    CaptureMode,
    CaptureSettings,
    JournalSettings,
    KeySettings,
    LimitSettings,
    OwnLimits,
    OwnPrice,
    ProviderKind,
    ProviderSettings,
    RouteSettings,
    Secret,
    ServerSettings,
    Settings,
    StorageSettings,
    TenantSettings,
    Timeouts,
    WhenFull,
    WithoutRedis,
    parse_target,
)
from edgegw.settings.redis_address import RedisAddress, RedisMode, parse_redis
from edgegw.settings.reference import reference
from edgegw.settings.schema import schema

__all__ = [
    "DEFAULT_FILE",
    "Address",
    "AllowSettings",
    "Auth",
    "CaptureMode",
    "CaptureSettings",
    "JournalSettings",
    "KeySettings",
    "LimitSettings",
    "Mistake",
    "NoProviderError",
    "OwnLimits",
    "OwnPrice",
    "PostgresAddress",
    "ProviderKind",
    "ProviderSettings",
    "RedisAddress",
    "RedisMode",
    "RouteSettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "StorageSettings",
    "TenantSettings",
    "Timeouts",
    "WhenFull",
    "WithoutRedis",
    "describe",
    "load",
    "load_text",
    "parse_postgres",
    "parse_redis",
    "parse_target",
    "reference",
    "schema",
    "warnings",
]
