"""What the gateway is told: one strict YAML file, or the environment alone, read once and trusted from then on.

Only `load` touches files and the environment; everything else is values and pure functions. Importing this package
loads no YAML parser.
"""

from edgegw.settings.checks import warnings
from edgegw.settings.describe import describe
from edgegw.settings.load import DEFAULT_FILE, load, load_text
from edgegw.settings.mistakes import Mistake, NoProviderError, SettingsError
from edgegw.settings.model import (
    Address,
    JournalSettings,
    LimitSettings,
    ProviderKind,
    ProviderSettings,
    RouteSettings,
    Secret,
    ServerSettings,
    Settings,
    StorageSettings,
    Timeouts,
    parse_target,
)
from edgegw.settings.schema import schema

__all__ = [
    "DEFAULT_FILE",
    "Address",
    "JournalSettings",
    "LimitSettings",
    "Mistake",
    "NoProviderError",
    "ProviderKind",
    "ProviderSettings",
    "RouteSettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "StorageSettings",
    "Timeouts",
    "describe",
    "load",
    "load_text",
    "parse_target",
    "schema",
    "warnings",
]
