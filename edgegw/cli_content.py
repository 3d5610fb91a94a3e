"""`edgegw content`: names, options and exit codes. What is done is content/command.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgegw.cli_options import books_option, config_option, json_option, settings_for_reading

if TYPE_CHECKING:
    from edgegw.content.store import ContentStore


@click.group()
def content() -> None:
    """Show and delete the prompts and answers that are kept.

    None are, unless the settings say so for a tenant. See docs/content.md.
    """


@content.command()
@config_option
@books_option
@click.argument("request_id", metavar="ID")
@click.option("--raw", is_flag=True, help="A stream as it was sent, not put together.")
@json_option
def show(config: str | None, db: str | None, request_id: str, raw: bool, as_json: bool) -> None:
    """Print the prompt and the answer of a request."""
    from edgegw.content import command

    with _complaints():
        for line in command.show(_store(config, db), request_id, raw=raw, as_json=as_json):
            click.echo(line)


@content.command()
@config_option
@books_option
@click.argument("request_id", metavar="[ID]", required=False)
@click.option("--tenant", "-t", help="All of this tenant's.")
@click.option("--before", metavar="TIME", help="All from before then: 7d, 24h, or 2026-11-22 (UTC).")
def delete(config: str | None, db: str | None, request_id: str | None, tenant: str | None, before: str | None) -> None:
    """Delete content for good; the rows of the requests stay.

    What is given must fit all together. Of this gateway also what still waits in files is deleted.
    """
    from edgegw import show as times
    from edgegw.content import command
    from edgegw.content.store import Chosen

    if request_id is None and tenant is None and before is None:
        raise click.UsageError("Say whose content: that of a request, --tenant, --before, or several of these.")
    try:
        chosen = Chosen(request_id, tenant, times.time_ns(before, time.time_ns()))
    except times.TimeError as error:
        raise click.BadParameter(str(error), param_hint="--before") from None
    with _complaints():
        state_dir = None if db else Path(settings_for_reading(config).server.state_dir)
        deleted = command.delete(_store(config, db), state_dir, chosen)
    click.echo(f"deleted the content of {deleted} request{'' if deleted == 1 else 's'}")


def _store(config: str | None, db: str | None) -> ContentStore:
    """At `db`, a path or a URL, or where the settings have it."""
    from edgegw.content.sqlite import SqliteContents
    from edgegw.ledger.schema import migrations
    from edgegw.settings import parse_postgres
    from edgegw.settings.model import SQLITE

    settings = settings_for_reading(config) if db is None else None
    url = db if settings is None or settings.postgres_url is None else settings.postgres_url.reveal()
    if url is not None and url.startswith(("postgres://", "postgresql://")):
        try:
            from edgegw.content.postgres import PostgresContents
        except ModuleNotFoundError as error:
            raise click.ClickException(f"PostgreSQL needs {error.name}: pip install 'edgegw[postgres]'") from None
        return PostgresContents(parse_postgres(url), migrations("postgres"), time.time_ns)
    path = Path(settings.sqlite_path if settings is not None else (db or "").removeprefix(SQLITE))
    if not path.exists():
        raise click.ClickException(f"there is no database {path}")
    return SqliteContents(path, migrations("sqlite"), time.time_ns)


@contextmanager
def _complaints() -> Iterator[None]:
    from edgegw.content.command import ContentCommandError

    try:
        yield
    except ContentCommandError as error:
        raise click.ClickException(str(error)) from None
