"""`edgegw migrate`: names and exit codes. What is done is migrate.py."""

from __future__ import annotations

import sys

import click

from edgegw.cli_options import config_option, settings_for_reading


@click.group("migrate")
def migrate_group() -> None:
    """Look at the schema of the database, or bring it up to date.

    A gateway does so by itself when it starts; see docs/ledger.md.
    """


@migrate_group.command()
@config_option
def check(config: str | None) -> None:
    """Say which version the schema has.

    Exits with 1 when that is not the one this program needs.
    """
    from edgegw import migrate

    try:
        found = migrate.standing(settings_for_reading(config))
    except migrate.MigrateError as error:
        raise click.ClickException(str(error)) from None
    click.echo(str(found))
    sys.exit(0 if found.current else 1)


@migrate_group.command()
@config_option
def up(config: str | None) -> None:
    """Bring the schema up to date, and make the partitions of the coming days."""
    from edgegw import migrate

    try:
        done = migrate.up(settings_for_reading(config))
    except migrate.MigrateError as error:
        raise click.ClickException(str(error)) from None
    for line in done or ["nothing to do"]:
        click.echo(line)
