"""Rows against each other and against their sums, an hour at a time, so that neither side has much to hold."""

from __future__ import annotations

from collections.abc import Collection

from edgegw.ledger import tables
from edgegw.ledger.books import Books
from edgegw.ledger.questions import HOURS_PER_DAY, NS_PER_HOUR, Question, first_id_at
from edgegw.ledger.usage import hour_of
from edgegw.ledger.verify.findings import Report
from edgegw.ledger.verify.rules import counted, days, rules, say_day, without_request


async def check_rows(books: Books, report: Report, open_ids: Collection[str], since_hour: int) -> None:
    """All hours from `since_hour` on that have rows or sums. `open_ids`: requests that may have attempts and no row."""
    hour = await _next_hour(books, report, since_hour)
    while hour is not None:
        await _check_hour(books, report, open_ids, hour)
        hour = await _next_hour(books, report, hour + 1)
    if books.dialect == "postgres":
        for row in await books.rows(days(-(-since_hour // HOURS_PER_DAY))):
            report.found("sums", *say_day(row))


async def _check_hour(books: Books, report: Report, open_ids: Collection[str], hour: int) -> None:
    (count,) = await books.rows(counted(hour))
    report.compared["hours"] += 1
    for name in ("requests", "attempts"):
        report.compared[name] += _number(count[name])
    coarse = books.dialect == "sqlite" and count["nameless"] != 0
    for rule in rules(hour, books.dialect, coarse):
        for row in await books.rows(rule.question):
            where, what = rule.say(row)
            if rule.kind == "sums":
                where = f"the hour from {tables.hour(hour)} of {where}"
            report.found(rule.kind, where, what)
    for row in await books.rows(without_request(hour)):
        if row["id"] not in open_ids:
            report.found(
                "attempt without request", str(row["id"]), f"has attempt {row['number']} and no row of its own"
            )


async def _next_hour(books: Books, report: Report, hour: int) -> int | None:
    """The first hour from this one on that there is anything of."""
    from_id = first_id_at(hour * NS_PER_HOUR)
    found: list[int] = []
    for text in (
        "SELECT id AS id FROM requests WHERE id >= ? ORDER BY id LIMIT 1",
        "SELECT request_id AS id FROM provider_attempts WHERE request_id >= ? ORDER BY request_id LIMIT 1",
    ):
        for row in await books.rows(Question(text, (from_id,))):
            next_hour = hour_of(str(row["id"]))
            if next_hour >= hour:
                found.append(next_hour)
            else:  # text that sorts behind every id
                report.found("row of another time", str(row["id"]), "is no id of ours")
    (row,) = await books.rows(Question("SELECT min(hour) AS hour FROM usage_hours WHERE hour >= ?", (hour,)))
    if row["hour"] is not None:
        found.append(_number(row["hour"]))
    return min(found, default=None)


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
