"""When a provider says that it may be asked again: `retry-after-ms`, `retry-after` in seconds or as an HTTP date.

RFC 9110, 10.2.3 and 5.6.7. What cannot be read counts as not said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

# Longer than a day is a mistake or an attack; it means "not in this request" all the same.
RETRY_AFTER_MAX_S = 86_400.0

_NUMBER = re.compile(rb"\d{1,12}(?:\.\d{1,9})?\Z")
_HTTP_DATE = re.compile(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT\Z")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")


def retry_after_s(headers: Mapping[bytes, bytes], wall_s: float) -> float | None:
    """Seconds to wait from `wall_s` (Unix time), at least 0; None when nothing readable was said."""
    milliseconds = headers.get(b"retry-after-ms", b"").strip()
    if _NUMBER.match(milliseconds):
        return min(float(milliseconds) / 1000, RETRY_AFTER_MAX_S)
    value = headers.get(b"retry-after", b"").strip()
    if _NUMBER.match(value):
        return min(float(value), RETRY_AFTER_MAX_S)
    date_s = _unix_time(value)
    return None if date_s is None else min(max(0.0, date_s - wall_s), RETRY_AFTER_MAX_S)


def _unix_time(date: bytes) -> float | None:
    match = _HTTP_DATE.match(date)
    if match is None or match[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(match[group]) for group in (1, 3, 4, 5, 6))
    try:
        moment = datetime(year, _MONTHS.index(match[2]) + 1, day, hour, minute, min(second, 59), tzinfo=UTC)
    except ValueError:
        return None
    return moment.timestamp()
