"""Days as ranges of ids: which partition a row belongs to, what it is called, and where it begins and ends.

An id is a UUIDv7, whose first 48 bits are milliseconds since 1970. Pure: texts and numbers, no clock, no database.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, timedelta

TABLES = ("requests", "provider_attempts")
# A row that is further from today than this is one of a clock that was wrong; it is not worth partitions of its own.
DAYS_AROUND_MAX = 400

_MS_PER_DAY = 86_400_000
_NS_PER_DAY = _MS_PER_DAY * 1_000_000
_EPOCH = date(1970, 1, 1)
_PREFIX = re.compile(r"[0-9a-fA-F]{8}")
_NAME = re.compile(r"(?:requests|provider_attempts)_([0-9]{4})([0-9]{2})([0-9]{2})")


def day_of_ns(wall_ns: int) -> int:
    """Days since 1970."""
    return wall_ns // _NS_PER_DAY


def days_of(ids: Iterable[str]) -> set[int]:
    """The days of these ids, and perhaps the next when they are of its eve. Raises ValueError for what is no id."""
    # The first 8 digits tell the time to 65 s; there are few of them in a batch.
    days: set[int] = set()
    for prefix in {id_[:8] for id_ in ids}:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"{prefix!r} begins no id")
        first_ms = int(prefix, 16) << 16
        days.add(first_ms // _MS_PER_DAY)
        days.add((first_ms + 0xFFFF) // _MS_PER_DAY)
    return days


def bounds(day: int) -> tuple[str, str]:
    """The first id of a day, and that of the next."""
    return _first_id(day), _first_id(day + 1)


def partition_of(table: str, day: int) -> str:
    """The name of the partition of a table."""
    return f"{table}_{_EPOCH + timedelta(days=day):%Y%m%d}"


def day_of_partition(name: str) -> int | None:
    """The way back from `partition_of`; None for other tables."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    try:
        return (date(int(found[1]), int(found[2]), int(found[3])) - _EPOCH).days
    except ValueError:
        return None


def _first_id(day: int) -> str:
    digits = f"{day * _MS_PER_DAY:012x}"
    return f"{digits[:8]}-{digits[8:]}-0000-0000-000000000000"
