"""A short share of load/outage.py: PostgreSQL is away, and no request fails, no row is missing, nothing grows."""

from __future__ import annotations

import pytest

from load.outage import CAUGHT_UP_S_MAX, RSS_MIB_MAX, live_through

pytestmark = pytest.mark.system


async def test_nobody_notices_that_postgresql_is_frozen() -> None:
    report = await live_through("frozen", away_s=8, before_s=4, rate=100)
    assert report.failed == 0, report.missed
    assert report.rows == report.requests > 800
    assert report.rss_peak_mib - report.rss_before_mib <= RSS_MIB_MAX
    assert report.caught_up_s <= CAUGHT_UP_S_MAX
    assert not [what for what in report.missed if "p99" not in what]  # times are for a machine of its own
