"""How the acceptance program reckons what was admitted, with figures by hand."""

from __future__ import annotations

import random

from load.clients import chat
from load.fleet import DEMANDS, Admitted, Record, settle_error, worst_minute, worst_moment


def test_the_worst_moment_is_the_one_farthest_beyond_bucket_and_refill() -> None:
    admitted = [Admitted(0, 1, 50), Admitted(1, 2, 20), Admitted(50, 60, 30)]
    assert worst_moment(admitted, 60, 0.0) == (70 - 60 - 2, 2)
    assert worst_moment(admitted[:1], 60, 0.0) == (50 - 60 - 1, 1), "within it"
    assert worst_moment([], 60, 5.0) == (-60, 5.0)


def test_the_worst_minute_is_any_minute() -> None:
    admitted = [Admitted(second, second, 1) for second in (0, 30, 58, 61, 90, 117)]
    assert worst_minute(admitted) == 4


def test_only_requests_in_flight_at_the_moment_may_have_used_more_than_was_reserved() -> None:
    (middle,) = [demand for demand in DEMANDS if demand.tenant == "middle"]
    uses = [155 + kind.answer_max for kind in middle.kinds]
    three = Record(admitted=[Admitted(0, 1, 1), Admitted(0.5, 2, 1), Admitted(3, 4, 1)])
    one = settle_error(middle, uses, three, 3.5, random.Random(1))
    assert 0 < one < 200, "an answer's worth"
    assert settle_error(middle, uses, three, 0.7, random.Random(1)) == 2 * one
    assert settle_error(middle, uses, three, 2.5, random.Random(1)) == 0


def test_a_request_that_is_always_alike_is_never_underestimated() -> None:
    (small,) = [demand for demand in DEMANDS if demand.tenant == "small"]
    assert b'"max_tokens": 1' in chat("", small.model, "a", max_tokens=1)
    at_once = Record(admitted=[Admitted(0, 1, 9)] * 5)
    assert settle_error(small, [9], at_once, 0.5, random.Random(1)) <= 0
