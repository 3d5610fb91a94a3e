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
    sums: dict[UsageKey, list[int]] = {}
    for end in requests:
        key = UsageKey(
            hour_of(end.id), end.tenant, end.use_case or "", end.key_id or "", end.provider or "", end.model or ""
        )
        line = sums.setdefault(key, [0] * len(SUMS))
        line[0] += 1
        line[1] += end.state != "complete"
    for row in attempts:
        key = UsageKey(
            hour_of(row.request_id), row.tenant, row.use_case or "", row.key_id or "", row.provider, row.model
        )
        line = sums.setdefault(key, [0] * len(SUMS))
        line[2] += 1
        if row.input_tokens is not None:
            line[3] += row.input_tokens
            line[4] += row.output_tokens or 0
            line[5] += row.cached_tokens or 0
            line[6] += row.cache_write_tokens or 0
            line[7] += row.reasoning_tokens or 0
            line[9] += row.cost_usd_micro is None
            line[10] += row.estimated
        line[8] += row.cost_usd_micro or 0
    return sums
