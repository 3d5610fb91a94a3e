"""The command line: names, options and exit codes. What a command does is elsewhere.

Commands import what they need when they run, so that `edgegw --help` does not wait for an event loop and `edgegw
serve` does not load what only the demo needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgegw import __version__

if TYPE_CHECKING:
    from edgegw.ledger.listing import Table
    from edgegw.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
EXIT_SETTINGS = 2
PORT = click.IntRange(0, 65_535)
COUNT = click.IntRange(1, 10**12)  # of a limit, as in the settings

config_option = click.option("--config", "-c", metavar="FILE", help="Settings file [EDGEGW_CONFIG, ./edgegw.yaml].")
db_option = click.option("--db", metavar="FILE", help="The SQLite file [the one that the settings name].")
limit_option = click.option(
    "--limit", "-n", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."
)
since_option = click.option("--since", metavar="TIME", help="Since then: 15m, 24h, 7d, or 2026-11-22T10:00 (UTC).")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
own_limits = (
    click.option("--tokens-per-minute", type=COUNT, help="Input and output together."),
    click.option("--requests-per-minute", type=COUNT, help="Requests begun."),
    click.option("--concurrent-requests", type=COUNT, help="Requests at once."),
    click.option("--tokens-per-day", type=COUNT, help="From midnight to midnight, UTC."),
    click.option("--tokens-per-month", type=COUNT, help="From the first of the month, UTC."),
)
follow_option = click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")


def _with(options: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    """Several options as one decorator, in their order."""
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(options), function)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgegw")
def main() -> None:
    """edgegw, an AI gateway: exact limits, an exact ledger, streams that never end silently."""


@main.command()
@config_option
def serve(config: str | None) -> None:
    """Run the gateway.

    SIGTERM or Ctrl-C drains and stops it; SIGHUP reads the settings again.
    """
    from edgegw import app

    settings = _settings(config)
    server = settings.server
    workers = f"{server.workers} worker{'s' if server.workers > 1 else ''}"
    click.echo(
        f"edgegw {__version__}: clients on http://{server.listen}, probes and metrics on http://{server.admin}, "
        f"{workers}, settings from {settings.source}",
        err=True,
    )
    sys.exit(app.serve(settings, lambda: _read(config)))


@main.command()
@config_option
def check(config: str | None) -> None:
    """Check the settings, and print what is in force.

    Mistakes are all told at once, each with its place, and the exit code is 2.
    """
    from edgegw.settings import describe

    click.echo(describe(_settings(config)), nl=False)


@main.command()
def schema() -> None:
    """Print the JSON Schema of the settings file, for editors."""
    from edgegw.settings import schema as settings_schema

    click.echo(json.dumps(settings_schema(), indent=2))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=PORT, default=9901, show_default=True, help="0 takes a free one.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same answers.")
@click.option("--latency", metavar="TIME", default="0s", show_default=True, help="Before the first byte, e.g. 200ms.")
@click.option("--pace", metavar="TIME", default="0s", show_default=True, help="Between two tokens, e.g. 20ms.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=24, show_default=True, help="Of an answer that nothing else bounds."
)
@click.option("--rules", metavar="FILE", help="YAML rules for faults; see docs/simulator.md.")
def simulate(host: str, port: int, seed: int, latency: str, pace: str, tokens: int, rules: str | None) -> None:
    """Run a simulated provider, with faults on demand.

    It speaks OpenAI Chat Completions and Anthropic Messages, plain and streamed; see docs/simulator.md.
    """
    from edgegw.simulator import run as simulator

    try:
        simulator.run(host, port, seed=seed, latency=latency, pace=pace, tokens=tokens, rules_path=rules)
    except simulator.BadOptionError as error:
        raise click.UsageError(str(error)) from None
    except simulator.ListenError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--port", type=PORT, default=8080, show_default=True, help="The gateway's, or a free one when taken.")
@click.option("--once", is_flag=True, help="Stop after the tour instead of waiting for you.")
def demo(port: int, once: bool) -> None:
    """Take a tour that needs no key and no server.

    Starts simulator and gateway, sends a few requests, and shows the rows of all attempts.
    """
    from edgegw import demo as tour

    sys.exit(tour.run(port, once=once))


@main.command()
@config_option
@db_option
@click.option("--tenant", help="Of this tenant only.")
@click.option("--state", help="With this end state only, e.g. complete or failed.")
@since_option
@limit_option
@json_option
@follow_option
def requests(
    config: str | None,
    db: str | None,
    tenant: str | None,
    state: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
    follow: bool,
) -> None:
    """List requests, one row each, the latest last."""
    _list("requests", config, db, since, limit, as_json, follow, tenant=tenant, state=state)


@main.command()
@config_option
@db_option
@click.option("--request", "request_id", metavar="ID", help="Of this request only.")
@since_option
@limit_option
@json_option
@follow_option
def attempts(
    config: str | None,
    db: str | None,
    request_id: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
    follow: bool,
) -> None:
    """List provider attempts: each primary, retry and fallback."""
    _list("provider_attempts", config, db, since, limit, as_json, follow, request_id=request_id)


@main.group()
def keys() -> None:
    """Make, list and end the keys of tenants.

    They are kept in the database; a running gateway follows within a second. See docs/keys.md.
    """


@keys.command()
@config_option
@db_option
@click.option("--tenant", "-t", required=True, help="Whose key it is.")
@click.option("--name", default="", help="What it is for, to tell it from the tenant's others.")
@click.option("--expires", metavar="TIME", help="90d, 12h, or 2027-01-01 (UTC) [never].")
@click.option("--acts-for", multiple=True, metavar="TENANT", help="It may name this tenant as well, * any. Repeatable.")
@_with(own_limits)
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
        key, credential = command.create(_database(config, db), tenant, name, expires, acts_for, limits)
    _show_key(key.id, f"of tenant {key.tenant}, expires: {command.when(key.expires_ns)}", credential)


@keys.command("list")
@config_option
@db_option
@click.option("--tenant", "-t", help="Of this tenant only.")
@json_option
def list_keys(config: str | None, db: str | None, tenant: str | None, as_json: bool) -> None:
    """List keys, by what is known of them."""
    from edgegw.keys import command

    with _complaints():
        for line in command.lines(_database(config, db), tenant, as_json):
            click.echo(line)


@keys.command()
@config_option
@db_option
@click.argument("key", metavar="ID|PREFIX")
def revoke(config: str | None, db: str | None, key: str) -> None:
    """End a key, within a second."""
    from edgegw.keys import command

    with _complaints():
        found, before = command.revoke(_database(config, db), key)
    click.echo(f"{found.id} of tenant {found.tenant} {'was revoked before' if before else 'is revoked'}")


@keys.command()
@config_option
@db_option
@click.argument("key", metavar="ID|PREFIX")
@click.option("--grace", metavar="TIME", default="24h", show_default=True, help="How long the old key still works.")
@click.option("--expires", metavar="TIME", help="Of the new one [lives as long as the old one was to].")
def rotate(config: str | None, db: str | None, key: str, grace: str, expires: str | None) -> None:
    """Make a successor for a key, and show it: this once.

    It has the same tenant, name and limits; the old key works on for a while.
    """
    from edgegw.keys import command

    with _complaints():
        old, new, credential = command.rotate(_database(config, db), key, grace, expires)
    click.echo(f"{old.id} expires: {command.when(old.expires_ns)}", err=True)
    _show_key(new.id, f"of tenant {new.tenant}, expires: {command.when(new.expires_ns)}", credential)


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


def _read(config: str | None) -> Settings:
    from edgegw.settings import load

    return load(config, os.environ)


def _settings(config: str | None) -> Settings:
    """The settings, or every mistake in them and exit code 2."""
    from edgegw.settings import SettingsError, warnings

    try:
        settings = _read(config)
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_SETTINGS)
    for warning in warnings(settings, time.time_ns()):
        click.echo(f"warning: {warning}", err=True)
    return settings


def _database(config: str | None, db: str | None) -> Path:
    """Which rows to read. That takes no keys, and so none must be set for it: what stands in for them is not used."""
    from edgegw.settings import SettingsError, load
    from edgegw.settings.environment import PROVIDERS

    if db is not None:
        return Path(db)
    unset = {provider.key: "unset" for provider in PROVIDERS if not os.environ.get(provider.key)}
    try:
        return Path(load(config, os.environ | unset).sqlite_path)
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_SETTINGS)


def _list(
    table: Table,
    config: str | None,
    db: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
    follow: bool,
    tenant: str | None = None,
    state: str | None = None,
    request_id: str | None = None,
) -> None:
    from edgegw import show
    from edgegw.ledger.listing import Filter, NoLedgerError

    try:
        chosen = Filter(request_id=request_id, tenant=tenant, state=state, since_ns=show.since_ns(since))
        show.show(table, _database(config, db), sys.stdout, chosen=chosen, limit=limit, as_json=as_json, follow=follow)
    except show.TimeError as error:
        raise click.BadParameter(str(error), param_hint="--since") from None
    except NoLedgerError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(0)
