"""Options that several commands share, and how a command comes by its settings and its database.

Imports what it needs when it is asked, as the commands do (cli.py).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgegw.keys.place import Place
    from edgegw.ledger.books import Books
    from edgegw.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
EXIT_SETTINGS = 2
COUNT = click.IntRange(1, 10**12)  # of a limit, as in the settings

config_option = click.option("--config", "-c", metavar="FILE", help="Settings file [EDGEGW_CONFIG, ./edgegw.yaml].")
books_option = click.option(
    "--db", metavar="FILE|URL", help="A SQLite file, or the URL of a PostgreSQL [what the settings name]."
)
limit_option = click.option(
    "--limit", "-n", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."
)
since_option = click.option("--since", metavar="TIME", help="Since then: 15m, 24h, 7d, or 2026-11-22T10:00 (UTC).")
until_option = click.option("--until", metavar="TIME", help="Before then, said alike.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
csv_option = click.option("--csv", "as_csv", is_flag=True, help="CSV, with a head.")
own_limits = (
    click.option("--tokens-per-minute", type=COUNT, help="Input and output together."),
    click.option("--requests-per-minute", type=COUNT, help="Requests begun."),
    click.option("--concurrent-requests", type=COUNT, help="Requests at once."),
    click.option("--tokens-per-day", type=COUNT, help="From midnight to midnight, UTC."),
    click.option("--tokens-per-month", type=COUNT, help="From the first of the month, UTC."),
)


def with_options(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    """Several options as one decorator, in their order."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(options), function)


def read_settings(config: str | None) -> Settings:
    from edgegw.settings import load

    return load(config, os.environ)


def settings_of(config: str | None) -> Settings:
    """The settings, or every mistake in them and exit code 2."""
    from edgegw.settings import SettingsError, warnings

    try:
        settings = read_settings(config)
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_SETTINGS)
    for warning in warnings(settings, time.time_ns()):
        click.echo(f"warning: {warning}", err=True)
    return settings


def place_of_keys(config: str | None, db: str | None) -> Place:
    """Where a command finds the keys: at `db`, a path or a URL, or where the settings say."""
    from edgegw.keys.place import named_place, place_of

    if db is None:
        return place_of(settings_for_reading(config))
    try:
        return named_place(db)
    except ValueError as error:
        raise click.BadParameter(str(error) or "not an address of PostgreSQL", param_hint="--db") from None


def open_books(config: str | None, db: str | None) -> Books:
    """The books that a command is to read: those at `db`, a path or a URL, or those that the settings name."""
    from edgegw.ledger.books import SqliteBooks
    from edgegw.ledger.schema import migrations
    from edgegw.settings.database_address import is_postgres
    from edgegw.settings.model import SQLITE

    if db is None:
        settings = settings_for_reading(config)
        url = settings.postgres_url
        db = settings.sqlite_path if url is None else url.reveal()
    if is_postgres(db):
        return _open_postgres(db)
    return SqliteBooks(Path(db.removeprefix(SQLITE)), migrations("sqlite"))


def _open_postgres(url: str) -> Books:
    from edgegw.ledger.schema import migrations
    from edgegw.settings import parse_postgres

    try:
        address = parse_postgres(url)
    except ValueError as error:
        raise click.BadParameter(str(error) or "not the URL of a PostgreSQL", param_hint="--db") from None
    try:
        from edgegw.ledger.postgres.books import PostgresBooks
    except ImportError as error:
        raise click.ClickException(f"PostgreSQL needs {error.name}: pip install 'edgegw[postgres]'") from None
    return PostgresBooks(address, migrations("postgres"))


def state_dir_of(config: str | None) -> Path:
    """Where the gateway of these settings keeps its journals."""
    return Path(settings_for_reading(config).server.state_dir)


def settings_for_reading(config: str | None) -> Settings:
    """The settings for a command that only wants to know where things are; or every mistake and exit code 2."""
    from edgegw.settings import SettingsError

    try:
        return readable_settings(config)
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_SETTINGS)


def readable_settings(config: str | None) -> Settings:
    """To know where things are takes no keys, and so none must be set for it: what stands in for them is not used."""
    from edgegw.settings import load
    from edgegw.settings.environment import PROVIDERS

    unset = {provider.key: "unset" for provider in PROVIDERS if not os.environ.get(provider.key)}
    return load(config, os.environ | unset)


def admin_url(config: str | None) -> str:
    """Where the gateway of these settings answers probes. Settings that are faulty by now say nothing about a gateway
    that read them before, and it should not be restarted for that: it is asked where they are by default."""
    from edgegw.healthcheck import local_url
    from edgegw.settings import SettingsError
    from edgegw.settings.environment import admin_address

    try:
        admin = readable_settings(config).server.admin
    except SettingsError:
        admin = admin_address(os.environ)
    return local_url(admin.host, admin.port)
