"""`edgegw content`: names, options and exit codes. What is done is content/command.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

# Content is where the rows are, as the keys are.
from edgegw.cli_options import books_option, config_option, json_option, place_of_keys, state_dir_of


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
        for line in command.show(place_of_keys(config, db), request_id, raw=raw, as_json=as_json):
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
        state_dir = state_dir_of(config) if db is None else None
        deleted = command.delete(place_of_keys(config, db), state_dir, chosen)
    click.echo(f"deleted the content of {deleted} request{'' if deleted == 1 else 's'}")


@contextmanager
def _complaints() -> Iterator[None]:
    from edgegw.content.command import ContentCommandError

    try:
        yield
    except ContentCommandError as error:
        raise click.ClickException(str(error)) from None
