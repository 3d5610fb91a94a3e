"""Sums of rows by the hour: what a batch of rows adds to the table `usage_hours`.

Requests are counted where their last attempt went, tokens and money where they were spent, attempt by attempt. A sum is
made of rows that a database has taken for new, in the transaction that writes them, so it is as exact as they are.

Pure: records in, numbers out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edgegw.ledger.record import AttemptRecord, End

_MS_PER_HOUR = 3_600_000
# So many characters of a UUIDv7 tell its time to 16 ms, of which an hour has a whole number.
_HOUR_CHARS = 12

_Named = tuple[int, str, str | None, str | None, str | None, str | None]


class UsageKey(NamedTuple):
    """What is summed together. `hour`: hours since 1970, of the request's id. Empty: there was none."""

    hour: int
    tenant: str
    use_case: str
    key_id: str
    provider: str
    model: str


# In the order of the table's columns.
SUMS = (
    "requests",
    "failed",
    "attempts",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd_micro",
    "unpriced",
    "estimated",
)


def hour_of(request_id: str) -> int:
    """Hours since 1970 of a UUIDv7; 0 for what is none."""
    try:
        return int(request_id[:8] + request_id[9:13], 16) // _MS_PER_HOUR
    except ValueError:
        return 0


def usage_of(requests: Iterable[End], attempts: Iterable[AttemptRecord]) -> dict[UsageKey, list[int]]:
    """What these rows add, in the order of SUMS. `unpriced`: attempts that used tokens nobody has a price for."""
    # What one row adds is looked up by what stands in it; only the few different ones are put into words.
    lines: dict[_Named, list[int]] = {}
    hours: dict[str, int] = {}
    for end in requests:
        hour = hours.get(end.id[:_HOUR_CHARS]) or _hour_among(hours, end.id)
        named = (hour, end.tenant, end.use_case, end.key_id, end.provider, end.model)
        line = lines.get(named)
        if line is None:
            line = lines[named] = [0] * len(SUMS)
        line[0] += 1
        if end.state != "complete":
            line[1] += 1
    for row in attempts:
        hour = hours.get(row.request_id[:_HOUR_CHARS]) or _hour_among(hours, row.request_id)
        named = (hour, row.tenant, row.use_case, row.key_id, row.provider, row.model)
        line = lines.get(named)
        if line is None:
            line = lines[named] = [0] * len(SUMS)
        line[2] += 1
        used = row.input_tokens
        if used is not None:
            line[3] += used
            line[4] += row.output_tokens or 0
            line[5] += row.cached_tokens or 0
            line[6] += row.cache_write_tokens or 0
            line[7] += row.reasoning_tokens or 0
            if row.estimated:
                line[10] += 1
        cost = row.cost_usd_micro
        if cost is not None:
            line[8] += cost
        elif used is not None:
            line[9] += 1
    return _by_key(lines)


def _hour_among(hours: dict[str, int], request_id: str) -> int:
    """Remembers it for the ids of the same 16 ms."""
    hour = hours[request_id[:_HOUR_CHARS]] = hour_of(request_id)
    return hour


def _by_key(lines: dict[_Named, list[int]]) -> dict[UsageKey, list[int]]:
    """Nothing and an empty name are the same line."""
    sums: dict[UsageKey, list[int]] = {}
    for (hour, tenant, *names), line in lines.items():
        key = UsageKey(hour, tenant, *(name or "" for name in names))
        known = sums.get(key)
        sums[key] = line if known is None else [a + b for a, b in zip(known, line, strict=True)]
    return sums
