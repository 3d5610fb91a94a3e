"""What the chaos program compares, and a short share of the program itself (`make chaos` is the whole)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from load.served import Line, Reply, compare

ID = "01a21437-9ea6-785c-9263-17484cfb45ca"
LINES = [Line("req_1", ID, 500, 0, 0, False), Line("req_2", ID, 200, 10, 20, True)]
REPLY = Reply(ID, 200, True, (10, 20))
REQUEST = {"id": ID, "state": "complete", "status": 200, "error_kind": None, "attempts": 2}
TRY = {"request_id": ID, "estimated": 0, "error_kind": None, "input_tokens": None, "output_tokens": None}
TRIES = [
    {**TRY, "number": 1, "status": 500, "error_kind": "upstream_error", "upstream_request_id": "req_1"},
    {**TRY, "number": 2, "status": 200, "upstream_request_id": "req_2", "input_tokens": 10, "output_tokens": 20},
]


def found(**given: Any) -> tuple[int, int, int]:
    given = {"lines": LINES, "replies": [REPLY], "requests": [REQUEST], "attempts": TRIES, **given}
    findings, _ = compare(**given)
    return findings.lost, findings.duplicated, findings.wrong


def changed(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**one, **(fields if one["number"] == number else {})} for one in TRIES]


def test_books_that_are_right() -> None:
    assert found() == (0, 0, 0)
    _, sums = compare(LINES, [REPLY], [REQUEST], TRIES)
    assert sums.served == sums.booked == (10, 20)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"requests": [], "attempts": []}, (2, 0, 0)),  # no row: of what was served, and of what a client has seen
        ({"attempts": TRIES[:1]}, (2, 0, 1)),  # a try without its row
        ({"replies": [Reply("other", 200, True, None)]}, (1, 0, 0)),
        ({"replies": [Reply("other", 503, True, None)], "full": True}, (0, 0, 0)),
        ({"replies": [Reply("other", 503, True, None)]}, (1, 0, 0)),
        ({"requests": [REQUEST, REQUEST]}, (0, 1, 0)),
        ({"attempts": [*TRIES, {**TRIES[1], "number": 3}]}, (0, 2, 1)),  # the same answer in two rows
        (
            {"attempts": [*TRIES, {**TRIES[1], "number": 3, "upstream_request_id": "req_9"}]},
            (0, 2, 0),
        ),  # served by none
        ({"attempts": changed(2, input_tokens=11)}, (0, 0, 3)),  # the try, the sum, and what the client was told
        ({"attempts": changed(2, upstream_request_id=None)}, (0, 0, 1)),
        ({"attempts": changed(2, status=201)}, (0, 0, 1)),
        ({"attempts": changed(2, input_tokens=None)}, (0, 0, 2)),
        ({"requests": [{**REQUEST, "state": "interrupted"}]}, (0, 0, 1)),  # the client has the whole answer
        ({"requests": [{**REQUEST, "status": 502}]}, (0, 0, 1)),
        ({"lines": [LINES[0], replace(LINES[1], whole=False)]}, (0, 0, 1)),
    ],
)
def test_books_that_are_not(given: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert found(**given) == expected


def test_who_was_cut_short_has_no_usage_to_speak_of() -> None:
    tries = changed(
        2, error_kind="interrupted", upstream_request_id=None, input_tokens=None, output_tokens=None, status=0
    )
    request = {**REQUEST, "state": "interrupted", "status": 0}
    assert found(replies=[], requests=[request], attempts=tries) == (0, 0, 0)


def test_a_connection_that_is_not_there_any_more_makes_no_try() -> None:
    assert found(lines=[Line("req_0", ID, 200, 0, 0, False), *LINES]) == (0, 0, 0)
    assert found(lines=[Line("req_0", ID, 200, 5, 0, False), *LINES]) == (1, 0, 0)
