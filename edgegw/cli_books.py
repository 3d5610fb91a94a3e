"""The commands that read the books: names, options and exit codes. What they print is show.py."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from edgegw.cli_options import (
    books_option,
    config_option,
    csv_option,
    json_option,
    limit_option,
    open_books,
    since_option,
    state_dir_of,
    until_option,
    with_options,
)

if TYPE_CHECKING:
    from edgegw.ledger.books import Books
    from edgegw.ledger.questions import Filter, Table
    from edgegw.show import Form

USAGE_SINCE = "30d"
EXIT_FINDINGS, EXIT_CANNOT_LOOK = 1, 2
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _request_id(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _ID.fullmatch(value):
        raise click.BadParameter(f"not the id of a request (x-request-id): {value}")
    return value if value is None else value.lower()


of_requests = (
    click.option("--tenant", help="Of this tenant only."),
    click.option("--use-case", help="Of this use case only."),
    click.option("--key", "key_id", metavar="ID", help="With this key only."),
    click.option("--provider", help="Of this provider only."),
    click.option("--model", help="Of this model of a provider only."),
)
of_rows = (
    *of_requests,
    click.option("--status", type=click.IntRange(0, 999), help="With this status only."),
    click.option("--error", "error_kind", metavar="KIND", help="With this error kind only, e.g. upstream_timeout."),
    click.option("--request", "request_id", metavar="ID", callback=_request_id, help="This request only."),
)
of_ends = (
    click.option("--state", help="With this end state only, e.g. complete or failed."),
    click.option("--session", "session_id", metavar="ID", help="Of this session only."),
    click.option("--user", "user_id", metavar="ID", help="Of this user only."),
)
kind_option = click.option("--kind", type=click.Choice(("primary", "retry", "fallback")), help="Of this kind only.")
reading = (config_option, books_option)
spanning = (since_option, until_option)
shaped = (json_option, csv_option)


class Chosen(TypedDict, total=False):
    """The options that name fields of a Filter."""

    tenant: str | None
    use_case: str | None
    key_id: str | None
    provider: str | None
    model: str | None
    status: int | None
    error_kind: str | None
    kind: str | None
    request_id: str | None
    state: str | None
    session_id: str | None
    user_id: str | None


@click.command()
@with_options((*reading, *of_ends, *of_rows, *spanning, limit_option, *shaped))
def requests(
    config: str | None,
    db: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
    as_csv: bool,
    **chosen: Unpack[Chosen],
) -> None:
    """List requests, one row each, the latest last."""
    _list("requests", config, db, _filter(since, until, chosen), limit, _form(as_json, as_csv))


@click.command()
@with_options((*reading, *of_rows, kind_option, *spanning, limit_option, *shaped))
def attempts(
    config: str | None,
    db: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
    as_csv: bool,
    **chosen: Unpack[Chosen],
) -> None:
    """List provider attempts: each primary, retry and fallback."""
    _list("provider_attempts", config, db, _filter(since, until, chosen), limit, _form(as_json, as_csv))


@click.command()
@with_options((*reading, *of_ends, *of_rows, limit_option, *shaped))
@click.option("--attempts", "of_attempts", is_flag=True, help="Attempts instead of requests.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written, until interrupted.")
def tail(
    config: str | None,
    db: str | None,
    limit: int,
    as_json: bool,
    as_csv: bool,
    of_attempts: bool,
    follow: bool,
    **chosen: Unpack[Chosen],
) -> None:
    """Show the latest requests, and with -f those to come."""
    table: Table = "provider_attempts" if of_attempts else "requests"
    for name, option in (("state", "--state"), ("session_id", "--session"), ("user_id", "--user")):
        if of_attempts and chosen.get(name) is not None:
            raise click.UsageError(f"attempts have no {option[2:]}: {option} is for requests")
    form = _form(as_json, as_csv)
    wanted = _filter(None, None, chosen)
    if not follow:
        _list(table, config, db, wanted, limit, form)
        return

    async def go(books: Books) -> None:
        from edgegw import show

        await show.tail(books, table, sys.stdout, chosen=wanted, last=limit, form=form, poll_s=show.FOLLOW_POLL_S)

    _ask(config, db, go)


@click.command()
@with_options((*reading, *of_requests))
@click.option(
    "--by",
    default="tenant",
    show_default=True,
    metavar="NAMES",
    help="Of tenant, use_case, key, provider, model, day, hour; several with commas.",
)
@click.option("--since", default=USAGE_SINCE, show_default=True, metavar="TIME", help="From the hour of then on.")
@click.option("--until", metavar="TIME", help="Until the end of the hour of then [now].")
@with_options(shaped)
def usage(
    config: str | None,
    db: str | None,
    by: str,
    since: str,
    until: str | None,
    as_json: bool,
    as_csv: bool,
    **chosen: Unpack[Chosen],
) -> None:
    """Sum requests, tokens and cost, by tenant, model, day, …"""
    from edgegw import show
    from edgegw.ledger import questions

    try:
        names = questions.by_names(by)
    except questions.BadQuestionError as error:
        raise click.BadParameter(str(error), param_hint="--by") from None
    wanted = _filter(since, until, chosen)
    form = _form(as_json, as_csv)

    async def sums(books: Books) -> None:
        since_ns = wanted.since_ns or 0
        until_ns = time.time_ns() if wanted.until_ns is None else wanted.until_ns
        await show.usage(
            books, sys.stdout, sys.stderr, by=names, chosen=wanted, since_ns=since_ns, until_ns=until_ns, form=form
        )

    _ask(config, db, sums)


@click.group()
def ledger() -> None:
    """Look after the books."""


@ledger.command()
@with_options((*reading, since_option, json_option))
def verify(config: str | None, db: str | None, since: str | None, as_json: bool) -> None:
    """Compare journals, checkpoints, rows and sums.

    Exits with 0 when all is right, 1 when anything is not, 2 when it cannot look. A gateway may be running.
    """
    import asyncio
    import json

    from edgegw.ledger.books import NoLedgerError
    from edgegw.ledger.verify.findings import Report
    from edgegw.ledger.verify.verify import verify

    since_ns = _time(since, "--since") or 0
    state_dir = state_dir_of(config)

    async def look() -> Report:
        books = open_books(config, db)
        try:
            return await verify(books, state_dir, since_ns)
        finally:
            await books.close()

    try:
        report = asyncio.run(look())
    except (NoLedgerError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_CANNOT_LOOK)
    for line in [json.dumps(report.document())] if as_json else report.lines():
        click.echo(line)
    sys.exit(0 if report.in_order else EXIT_FINDINGS)


def _list(table: Table, config: str | None, db: str | None, chosen: Filter, limit: int, form: Form) -> None:
    async def rows(books: Books) -> None:
        from edgegw import show

        await show.show(books, table, sys.stdout, chosen=chosen, limit=limit, form=form)

    _ask(config, db, rows)


def _ask(config: str | None, db: str | None, what: Callable[[Books], Awaitable[None]]) -> None:
    """Runs it with the books open. Ctrl-C ends it and is no error."""
    import asyncio

    from edgegw.ledger.books import NoLedgerError

    async def go() -> None:
        books = open_books(config, db)
        try:
            await what(books)
        finally:
            await books.close()

    try:
        asyncio.run(go())
    except NoLedgerError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(0)


def _filter(since: str | None, until: str | None, chosen: Chosen) -> Filter:
    from edgegw.ledger.questions import Filter

    return Filter(since_ns=_time(since, "--since"), until_ns=_time(until, "--until"), **chosen)


def _time(text: str | None, option: str) -> int | None:
    from edgegw import show

    try:
        return show.time_ns(text, time.time_ns())
    except show.TimeError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def _form(as_json: bool, as_csv: bool) -> Form:
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    return "json" if as_json else "csv" if as_csv else "table"
