"""A short share of the chaos program: real processes are killed under load, and the books are right to the token."""

from __future__ import annotations

import pytest

from load.chaos import play
from load.faults import CASES, Kind

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("kind", "fault", "rounds"),
    [
        ("sqlite", "kill -9 of a worker", 6),
        ("sqlite", "kill -9 of all at once", 5),
        ("postgres", "kill -9 of the control process", 8),
    ],
)
async def test_nothing_is_lost_doubled_or_wrong(kind: Kind, fault: str, rounds: int) -> None:
    (case,) = (case for case in CASES if case.name == fault)
    report = await play(case, kind, rounds, seed=7, pause_s=2)
    assert (report.lost, report.duplicated, report.wrong) == (0, 0, 0), report.what
    assert report.rows > 20
    assert report.tokens > 500
