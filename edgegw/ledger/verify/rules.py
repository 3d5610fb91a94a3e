"""What must hold among the rows of an hour, as questions of which every answer is a finding.

A rule is asked of the requests whose ids are of one hour, so a database has little to sort and nothing to spill. The
text is the same for SQLite and PostgreSQL but for how a number is written in hexadecimal.

Pure: text and values; rows.py asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgegw.ledger.questions import HOURS_PER_DAY, NS_PER_HOUR, Question, Row, first_id_at
from edgegw.ledger.tables import day
from edgegw.ledger.usage import SUMS
from edgegw.ledger.verify.findings import SHOWN_PER_KIND, Kind

_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
_KEY = ("tenant", "use_case", "key_id", "provider", "model")
# How a database writes the milliseconds of a row's start as the first twelve digits of an id.
_HEX = {
    "sqlite": "printf('%012x', started_ns / 1000000)",
    "postgres": "lpad(to_hex(started_ns / 1000000), 12, '0')",
}
_DIGITS = "substr(CAST(id AS TEXT), 1, 8) || substr(CAST(id AS TEXT), 10, 4)"


@dataclass(frozen=True, slots=True)
class Rule:
    """`question`: its rows break the rule. `say`: which of them (an id, or what the hour is summed by), and how."""

    kind: Kind
    question: Question
    say: Callable[[Row], tuple[str, str]]


def rules(hour: int, dialect: str, coarse: bool) -> tuple[Rule, ...]:
    """What must hold in an hour. `coarse`: its sums hold some of rows from before there were sums, whose attempts do
    not say whose they are."""
    ids = (first_id_at(hour * NS_PER_HOUR), first_id_at((hour + 1) * NS_PER_HOUR))
    shown = f"LIMIT {SHOWN_PER_KIND + 1}"
    attempts = "provider_attempts WHERE request_id >= ? AND request_id < ?"
    requests = "requests WHERE id >= ? AND id < ?"
    per_request = (
        "SELECT request_id, count(*) AS found, min(number) AS first, max(number) AS last, "
        "count(DISTINCT number) AS numbers, count(cost_usd_micro) AS priced, sum(cost_usd_micro) AS cost_usd_micro, "
        f"{', '.join(f'sum({name}) AS {name}' for name in _TOKENS)} FROM {attempts} GROUP BY request_id"
    )
    joined = f"(SELECT * FROM {requests}) r LEFT JOIN ({per_request}) a ON a.request_id = r.id"
    return (
        Rule(
            "attempts",
            Question(
                "SELECT r.id AS id, r.attempts AS told, coalesce(a.found, 0) AS found, a.first AS first, "
                f"a.last AS last FROM {joined} WHERE r.attempts <> coalesce(a.found, 0) OR a.first <> 1 "
                f"OR a.last <> a.found OR a.numbers <> a.found {shown}",
                (*ids, *ids),
            ),
            _attempts,
        ),
        Rule(
            "tokens",
            Question(
                f"SELECT r.id AS id, {', '.join(f'r.{name} AS r_{name}, a.{name} AS a_{name}' for name in _TOKENS)} "
                f"FROM {joined} WHERE "
                f"({' OR '.join(f'coalesce(r.{name}, -1) <> coalesce(a.{name}, -1)' for name in _TOKENS)}) {shown}",
                (*ids, *ids),
            ),
            _tokens,
        ),
        Rule(
            "cost",
            Question(
                "SELECT r.id AS id, r.cost_usd_micro AS told, a.cost_usd_micro AS found, "
                "coalesce(a.found, 0) - coalesce(a.priced, 0) AS unknown "
                f"FROM {joined} WHERE (r.cost_usd_micro IS NOT NULL AND (r.cost_usd_micro <> "
                "coalesce(a.cost_usd_micro, 0) OR coalesce(a.found, 0) <> coalesce(a.priced, 0))) "
                f"OR (r.cost_usd_micro IS NULL AND a.found = a.priced) {shown}",
                (*ids, *ids),
            ),
            lambda row: (
                str(row["id"]),
                f"costs {_or_none(row['told'])} micro-dollars, its attempts {_or_none(row['found'])}"
                + (f" and {row['unknown']} of them nobody knows what" if row["unknown"] else ""),
            ),
        ),
        Rule(
            "row doubled",
            Question(
                f"SELECT id, count(*) AS found FROM {requests} GROUP BY id HAVING count(*) > 1 {shown}",
                ids,
            ),
            lambda row: (str(row["id"]), f"{row['found']} requests have this id"),
        ),
        Rule(
            "row doubled",
            Question(
                f"SELECT min(CAST(id AS TEXT)) AS id, max(CAST(id AS TEXT)) AS other FROM {requests} "
                "GROUP BY started_ns, tenant, dialect, state, duration_us, bytes_in, bytes_out "
                f"HAVING min(CAST(id AS TEXT)) <> max(CAST(id AS TEXT)) {shown}",
                ids,
            ),
            lambda row: (
                str(row["id"]),
                f"{row['other']} began in the same nanosecond, took as long and was as large: one request, two ids",
            ),
        ),
        Rule(
            "row doubled",
            Question(
                "SELECT min(CAST(request_id AS TEXT)) AS id, max(CAST(request_id AS TEXT)) AS other, "
                "provider, upstream_request_id AS upstream "
                f"FROM {attempts} AND upstream_request_id IS NOT NULL "
                "GROUP BY provider, upstream_request_id, started_ns, duration_us "
                f"HAVING count(*) > 1 {shown}",
                ids,
            ),
            lambda row: (
                str(row["id"]),
                f"attempts of it and of {row['other']} are one request to {row['provider']} ({row['upstream']})",
            ),
        ),
        Rule(
            "row of another time",
            Question(
                f"SELECT id, started_ns FROM {requests} AND {_DIGITS} <> {_HEX[dialect]} {shown}",
                ids,
            ),
            lambda row: (str(row["id"]), f"its id is not of the moment when it began ({row['started_ns']} ns)"),
        ),
        Rule("sums", _sums(hour, ids, coarse), _summed),
    )


def without_request(hour: int) -> Question:
    """Requests that have attempts and no row: those that are open still may."""
    ids = (first_id_at(hour * NS_PER_HOUR), first_id_at((hour + 1) * NS_PER_HOUR))
    return Question(
        "SELECT a.request_id AS id, min(a.number) AS number FROM "
        "(SELECT request_id, number FROM provider_attempts WHERE request_id >= ? AND request_id < ?) a "
        "LEFT JOIN (SELECT id FROM requests WHERE id >= ? AND id < ?) r ON r.id = a.request_id "
        "WHERE r.id IS NULL GROUP BY a.request_id ORDER BY a.request_id",
        (*ids, *ids),
    )


def counted(hour: int) -> Question:
    """How many rows an hour has, and whether it has sums of rows from before there were sums."""
    ids = (first_id_at(hour * NS_PER_HOUR), first_id_at((hour + 1) * NS_PER_HOUR))
    return Question(
        "SELECT (SELECT count(*) FROM requests WHERE id >= ? AND id < ?) AS requests, "
        "(SELECT count(*) FROM provider_attempts WHERE request_id >= ? AND request_id < ?) AS attempts, "
        "(SELECT count(*) FROM usage_hours WHERE hour = ? AND journal = '') AS nameless",
        (*ids, *ids, hour),
    )


def _sums(hour: int, ids: tuple[str, str], coarse: bool) -> Question:
    """The rows' contributions with a plus, the lines of the table with a minus: what is left is wrong."""
    key = ", ".join(
        "'' AS " + name if coarse and name in _KEY[:3] else f"coalesce({name}, '') AS {name}" for name in _KEY
    )
    used = "CASE WHEN input_tokens IS NULL THEN 0 ELSE {} END"
    nothing = [f"0 AS {name}" for name in SUMS]
    of_requests = ["1 AS requests", "CASE WHEN state <> 'complete' THEN 1 ELSE 0 END AS failed", *nothing[2:]]
    of_attempts = [
        *nothing[:2],
        "1 AS attempts",
        *(f"{used.format(f'coalesce({name}, 0)')} AS {name}" for name in _TOKENS),
        "coalesce(cost_usd_micro, 0) AS cost_usd_micro",
        f"{used.format('CASE WHEN cost_usd_micro IS NULL THEN 1 ELSE 0 END')} AS unpriced",
        f"{used.format('CASE WHEN estimated THEN 1 ELSE 0 END')} AS estimated",
    ]
    of_sums = [f"-{name} AS {name}" for name in SUMS]
    lines = [
        f"SELECT {key}, {', '.join(of_requests)} FROM requests WHERE id >= ? AND id < ?",
        f"SELECT {key}, {', '.join(of_attempts)} FROM provider_attempts WHERE request_id >= ? AND request_id < ?",
        f"SELECT {key}, {', '.join(of_sums)} FROM usage_hours WHERE hour = ?",
    ]
    left = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    wrong = " OR ".join(f"sum({name}) <> 0" for name in SUMS)
    names = ", ".join(_KEY)
    return Question(
        f"SELECT {names}, {left} FROM ({' UNION ALL '.join(lines)}) l GROUP BY {names} HAVING {wrong} "
        f"LIMIT {SHOWN_PER_KIND + 1}",
        (*ids, *ids, hour),
    )


def days(since_day: int) -> Question:
    """Lines of the days (sql/postgres/0003) that are not what the merged lines of their hours come to."""
    key = ", ".join(("day", *_KEY))
    lines = (
        f"SELECT {key}, {', '.join(f'-{name} AS {name}' for name in SUMS)} FROM usage_days WHERE day >= ? UNION ALL "
        f"SELECT hour / {HOURS_PER_DAY} AS {key}, {', '.join(SUMS)} FROM usage_hours WHERE hour >= ? AND journal = ''"
    )
    left = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    wrong = " OR ".join(f"sum({name}) <> 0" for name in SUMS)
    text = f"SELECT {key}, {left} FROM ({lines}) l GROUP BY {key} HAVING {wrong} LIMIT {SHOWN_PER_KIND + 1}"
    return Question(text, (since_day, since_day * HOURS_PER_DAY))


def say_day(row: Row) -> tuple[str, str]:
    """Where a line of a day is wrong, and how."""
    of, how = _summed(row)
    return f"the day {day(row['day'])} of {of}", how.replace("the rows have", "its hours have")


def _summed(row: Row) -> tuple[str, str]:
    of = ", ".join(f"{name} {row[name]}" for name in _KEY if row[name])
    return of or "nobody", "the rows have " + ", ".join(_difference(name, row[name]) for name in SUMS if row[name])


def _difference(name: str, by: object) -> str:
    assert isinstance(by, int)
    return f"{abs(by)} {name} {'more' if by > 0 else 'less'} than the sums"


def _attempts(row: Row) -> tuple[str, str]:
    told, found = row["told"], row["found"]
    if told != found:
        return str(row["id"]), f"had {told} attempts and there are rows of {found}"
    return str(row["id"]), f"its {found} attempts are numbered from {row['first']} to {row['last']}"


def _tokens(row: Row) -> tuple[str, str]:
    wrong = [
        f"{name} {_or_none(row[f'r_{name}'])}, its attempts {_or_none(row[f'a_{name}'])}"
        for name in _TOKENS
        if row[f"r_{name}"] != row[f"a_{name}"]
    ]
    return str(row["id"]), "; ".join(wrong)


def _or_none(value: object) -> str:
    return "nothing" if value is None else str(value)
