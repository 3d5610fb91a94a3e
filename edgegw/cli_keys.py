"""`edgegw keys`: names, options and exit codes. What is done is keys/command.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from edgegw.cli_options import books_option, config_option, json_option, own_limits, place_of_keys, with_options


@click.group()
def keys() -> None:
    """Make, list and end the keys of tenants.

    They are kept in the database; a running gateway follows within a second. See docs/keys.md.
    """


@keys.command()
@config_option
@books_option
@click.option("--tenant", "-t", required=True, help="Whose key it is.")
@click.option("--name", default="", help="What it is for, to tell it from the tenant's others.")
@click.option("--expires", metavar="TIME", help="90d, 12h, or 2027-01-01 (UTC) [never].")
@click.option("--acts-for", multiple=True, metavar="TENANT", help="It may name this tenant as well, * any. Repeatable.")
@with_options(own_limits)
def create(
    config: str | None,
    db: str | None,
    tenant: str,
    name: str,
    expires: str | None,
    acts_for: tuple[str, ...],
    **limits: int | None,
) -> None:
    """Make a key, and show it: this once."""
    from edgegw.keys import command

    with _complaints():
        key, credential = command.create(place_of_keys(config, db), tenant, name, expires, acts_for, limits)
    _show_key(key.id, f"of tenant {key.tenant}, expires: {command.when(key.expires_ns)}", credential)


@keys.command("list")
@config_option
@books_option
@click.option("--tenant", "-t", help="Of this tenant only.")
@json_option
def list_keys(config: str | None, db: str | None, tenant: str | None, as_json: bool) -> None:
    """List keys, by what is known of them."""
    from edgegw.keys import command

    with _complaints():
        for line in command.lines(place_of_keys(config, db), tenant, as_json):
            click.echo(line)


@keys.command()
@config_option
@books_option
@click.argument("key", metavar="ID|PREFIX")
def revoke(config: str | None, db: str | None, key: str) -> None:
    """End a key, within a second."""
    from edgegw.keys import command

    with _complaints():
        found, before = command.revoke(place_of_keys(config, db), key)
    click.echo(f"{found.id} of tenant {found.tenant} {'was revoked before' if before else 'is revoked'}")


@keys.command()
@config_option
@books_option
@click.argument("key", metavar="ID|PREFIX")
@click.option("--grace", metavar="TIME", default="24h", show_default=True, help="How long the old key still works.")
@click.option("--expires", metavar="TIME", help="Of the new one [lives as long as the old one was to].")
def rotate(config: str | None, db: str | None, key: str, grace: str, expires: str | None) -> None:
    """Make a successor for a key, and show it: this once.

    It has the same tenant, name and limits; the old key works on for a while.
    """
    from edgegw.keys import command

    with _complaints():
        old, new, credential = command.rotate(place_of_keys(config, db), key, grace, expires)
    click.echo(f"{old.id} expires: {command.when(old.expires_ns)}", err=True)
    _show_key(new.id, f"of tenant {new.tenant}, expires: {command.when(new.expires_ns)}", credential)


@keys.command()
@config_option
@books_option
@click.argument("key", metavar="ID|PREFIX")
@with_options(own_limits)
@click.option(
    "--none", "lifted", multiple=True, metavar="LIMIT", help="Lift this one, e.g. tokens-per-day. Repeatable."
)
def limit(config: str | None, db: str | None, key: str, lifted: tuple[str, ...], **limits: int | None) -> None:
    """Change what a key may use, within a second.

    Limits that are not named stay; what was used stays used.
    """
    from edgegw.keys import command

    with _complaints():
        changed = command.limit(place_of_keys(config, db), key, limits, lifted)
    told = ", ".join(f"{name}: {value}" for name, value in command.limits_of(changed).items())
    click.echo(f"{changed.id} of tenant {changed.tenant}: {told or 'no limits of its own'}")


@keys.command("hash")
def hash_key() -> None:
    """Print the sha256 of a key, for the settings file.

    The key is read from a prompt, or from standard input.
    """
    from edgegw.keys import command

    given = click.prompt("Key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\r\n")
    with _complaints():
        click.echo(command.settings_digest(given))


def _show_key(id_: str, what: str, credential: str) -> None:
    """The key alone goes to stdout, for a variable or a secret store; who reads along is told on stderr."""
    click.echo(f"{id_} {what}; the key is shown this once and kept nowhere:", err=True)
    click.echo(credential)


@contextmanager
def _complaints() -> Iterator[None]:
    """What `edgegw keys` cannot do: 2 when an option is at fault, else 1."""
    from edgegw.keys.command import CommandError

    try:
        yield
    except CommandError as error:
        if error.option is not None:
            raise click.BadParameter(str(error), param_hint=error.option) from None
        raise click.ClickException(str(error)) from None
