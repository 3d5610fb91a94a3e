"""The command line: names, options and exit codes. What a command does is elsewhere.

Commands import what they need when they run, so that `edgegw --help` does not wait for an event loop and `edgegw
serve` does not load what only the demo needs.
"""

from __future__ import annotations

import json
import sys

import click

from edgegw import __version__
from edgegw.cli_books import attempts, ledger, requests, tail, usage
from edgegw.cli_content import content
from edgegw.cli_keys import keys
from edgegw.cli_migrate import migrate_group
from edgegw.cli_options import admin_url, config_option, read_settings, settings_of

PORT = click.IntRange(0, 65_535)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=[attempts, content, keys, ledger, migrate_group, requests, tail, usage],
)
@click.version_option(__version__, prog_name="edgegw")
def main() -> None:
    """edgegw, an AI gateway: exact limits, an exact ledger, streams that never end silently."""


@main.command()
@config_option
def serve(config: str | None) -> None:
    """Run the gateway.

    SIGTERM or Ctrl-C drains and stops it; SIGHUP reads the settings again.
    """
    from edgegw.app import serve as run_gateway

    settings = settings_of(config)
    server = settings.server
    workers = f"{server.workers} worker{'s' if server.workers > 1 else ''}"
    click.echo(
        f"edgegw {__version__}: clients on http://{server.listen}, probes and metrics on http://{server.admin}, "
        f"{workers}, settings from {settings.source}",
        err=True,
    )
    sys.exit(run_gateway(settings, lambda: read_settings(config)))


@main.command()
@config_option
def check(config: str | None) -> None:
    """Check the settings, and print what is in force.

    Mistakes are all told at once, each with its place, and the exit code is 2.
    """
    from edgegw.settings import describe

    click.echo(describe(settings_of(config)), nl=False)


@main.command()
@config_option
@click.option("--url", metavar="URL", help="Of the admin port [where the settings have it, on this machine].")
@click.option("--ready", is_flag=True, help="Whether it takes requests (/readyz), not only whether it lives (/livez).")
def healthcheck(config: str | None, url: str | None, ready: bool) -> None:
    """Ask a running gateway how it is.

    One line, and exit code 0 when it is well, 1 when it is not.
    """
    from edgegw import healthcheck as probe

    try:
        click.echo(probe.ask(url or admin_url(config), "/readyz" if ready else "/livez"))
    except probe.UnhealthyError as error:
        raise click.ClickException(str(error)) from None
    except ValueError:
        raise click.BadParameter("expected a URL such as http://127.0.0.1:9090", param_hint="--url") from None


@main.command()
def schema() -> None:
    """Print the JSON Schema of the settings file, for editors."""
    from edgegw.settings import schema as settings_schema

    click.echo(json.dumps(settings_schema(), indent=2))


@main.command()
def reference() -> None:
    """Print the reference of all settings and variables, in Markdown."""
    from edgegw.settings import reference as settings_reference

    click.echo(settings_reference(), nl=False)


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
@click.option("--log", metavar="FILE", help="A line of JSON per request, appended when it has ended.")
def simulate(
    host: str, port: int, seed: int, latency: str, pace: str, tokens: int, rules: str | None, log: str | None
) -> None:
    """Run a simulated provider, with faults on demand.

    It speaks OpenAI Chat Completions and Anthropic Messages, plain and streamed; see docs/simulator.md.
    """
    from edgegw.simulator import run as simulator

    try:
        simulator.run(host, port, seed=seed, latency=latency, pace=pace, tokens=tokens, rules_path=rules, log_path=log)
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
