"""The load runs without locust: how a stream is read, what is wrong with a reply, the figures, the bars, the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from load.locust_figures import Load, charts_of, curves, kinds, problems, quantiles
from load.locust_outcome import End, Outcome, StreamReader, Told, Wish, outcome_of, own_share_ms, problem_of
from load.locust_page import HEADINGS, Page, cells, rendered
from load.locust_run import Watch
from load.locust_verdicts import (
    Bars,
    Narrow,
    Verdict,
    bars_of,
    of_books,
    of_generator,
    of_limits,
    of_replies,
    passed,
)
from load.served import Findings

DONE = b"data: [DONE]"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
FAULT = b'data: {"error": {"message": "cut", "code": "upstream_incomplete"}}'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": null}'
FINISH = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}'


def token(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode()


CALL = b'data: {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]}'


def read(*events: bytes) -> StreamReader:
    """A stream with an event every 10 ms from 1 s on."""
    reader = StreamReader()
    for number, event in enumerate(events):
        reader.event(event + b"\n\n", 1.0 + number / 100)
    return reader


def outcome(**given: Any) -> Outcome:
    whole: dict[str, Any] = {
        "at_s": 1000.0,
        "kind": "streamed",
        "tenant": "app",
        "direct": False,
        "stream": True,
        "status": 200,
        "end": "whole",
        "request_id": "id-1",
        "total_ms": 300.0,
        "ttft_ms": 205.0,
        "gaps_ms": (20.0, 21.0),
        "added_ms": 10.0,
        "added_ttft_ms": 5.0,
        "own_ms": 0.2,
        "input_tokens": 3,
        "output_tokens": 3,
        "problem": None,
    }
    return Outcome(**{**whole, **given})


def many(count: int, **given: Any) -> list[Outcome]:
    return [outcome(**{"at_s": 1000 + number / 10, "request_id": f"id-{number}", **given}) for number in range(count)]


def measured(verdicts: list[Verdict], what: str) -> Verdict:
    (found,) = (verdict for verdict in verdicts if verdict.what.startswith(what))
    return found


# -- a stream --


def test_a_stream_is_timed_from_its_first_content() -> None:
    reader = read(ROLE, b": still there", token("One"), token(" two"), FINISH, USAGE, DONE)
    assert reader.end == "whole"
    assert reader.tokens == 2
    assert reader.first_s == pytest.approx(1.02)
    assert reader.gaps_ms == [pytest.approx(10)]
    assert reader.usage == {"prompt_tokens": 3, "completion_tokens": 2}


def test_pieces_of_a_tool_call_are_content() -> None:
    assert read(ROLE, CALL, CALL, DONE).tokens == 2


@pytest.mark.parametrize(
    ("events", "end"),
    [
        ([token("One"), DONE], "whole"),
        ([token("One"), FAULT], "broken"),
        ([token("One"), FINISH], "silent"),
        ([], "silent"),
        ([token("One"), FAULT, DONE], "silent"),
        ([token("One"), FAULT, FAULT], "silent"),
        ([token("One"), DONE, token(" more")], "silent"),
        ([token("One"), b"data: {not JSON", DONE], "silent"),
    ],
)
def test_there_are_two_ends_and_every_other_is_silence(events: list[bytes], end: End) -> None:
    assert read(*events).end == end


GOOD = {"x-request-id": "id-1"}
PLAIN = Wish("plain", 1, b"{}")
FAULTY = replace(PLAIN, faulty=True, planned=frozenset({200, 502}))
LIMITED = replace(PLAIN, planned=frozenset({200, 429}))


@pytest.mark.parametrize(
    ("wish", "status", "end", "headers", "usage", "problem"),
    [
        (PLAIN, 200, "whole", GOOD, True, None),
        (PLAIN, 200, "whole", {}, True, "no x-request-id"),
        (replace(PLAIN, direct=True), 200, "whole", {}, True, None),
        (PLAIN, 200, "whole", GOOD, False, "no usage"),
        (PLAIN, 200, "left", GOOD, False, None),
        (PLAIN, 0, "none", {}, False, "no reply"),
        (PLAIN, 502, "whole", GOOD, False, "status 502"),
        (FAULTY, 502, "whole", GOOD, False, None),
        (FAULTY, 200, "broken", GOOD, False, None),
        (FAULTY, 200, "silent", GOOD, False, "silent end of a stream"),
        (PLAIN, 200, "broken", GOOD, False, "stream broke off with an error"),
        (LIMITED, 429, "whole", {**GOOD, "retry-after": "1"}, False, None),
        (LIMITED, 429, "whole", GOOD, False, "429 without retry-after"),
        (PLAIN, 429, "whole", {**GOOD, "retry-after": "1"}, False, "status 429"),
    ],
)
def test_what_is_wrong_with_a_reply(
    wish: Wish, status: int, end: End, headers: dict[str, str], usage: bool, problem: str | None
) -> None:
    assert problem_of(wish, status, end, headers, usage=usage) == problem


def test_what_the_simulator_was_told_to_take() -> None:
    told = Told(200, 20)
    assert told.first_ms() == 200
    assert told.total_ms(24, stream=True) == 200 + 23 * 20
    assert told.total_ms(24, stream=False) == 200 + 24 * 20
    assert told.total_ms(0, stream=True) == 200


def test_the_gateways_own_share_is_what_it_says() -> None:
    assert own_share_ms({"server-timing": "gw;dur=0.123, upstream;dur=200.1"}) == 0.123
    assert own_share_ms({}) is None


def test_a_line_of_the_record_is_read_again() -> None:
    for one in (outcome(), outcome(ttft_ms=None, gaps_ms=(), problem="no reply")):
        assert outcome_of(one.line()) == one


# -- figures --


def test_kinds_are_counted_apart_and_so_is_what_went_straight_to_the_provider() -> None:
    of = [*many(10), *many(2, status=429, stream=False, ttft_ms=None, gaps_ms=()), *many(3, direct=True)]
    of.append(outcome(problem="no usage"))
    through, direct = kinds(of)
    assert (through.name, through.requests, through.unplanned, through.refused) == ("streamed", 13, 1, 2)
    assert (direct.name, direct.requests) == ("streamed, direct", 3)
    assert through.total is not None
    assert through.total.count == 11
    assert through.gap is not None
    assert through.gap.count == 22
    assert dict(problems(of)) == {"streamed: no usage": 1}


def test_quantiles_of_a_hundred_and_one_values() -> None:
    found = quantiles(list(range(100, -1, -1)))
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.largest) == (50, 95, 99, 100)
    assert quantiles([]) is None


def test_curves_have_a_point_a_second_until_the_last_whole_one() -> None:
    of = [*many(100), *many(10, end="left", stream=True), *many(4, direct=True)]
    found = curves(of)
    assert found.at_s == [number + 0.5 for number in range(10)]
    assert found.rates["streamed"][1:] == [10] * 9
    assert sum(found.rates["left early"]) == 10
    assert found.tokens["output"][5] == 30
    assert found.total["median"][5] == 300


def test_curves_of_a_long_run_have_wider_buckets() -> None:
    of = [outcome(at_s=1000.0), outcome(at_s=2000.0)]
    found = curves(of)
    assert len(found.at_s) <= 120
    assert found.bucket_s == 9
    assert found.total["median"][50] is None


def test_charts_are_drawn_from_what_json_can_hold() -> None:
    loads = [Load(1001.0, {"gateway, worker": 12.0, "generator": 5.0}, {"gateway, worker": 20.0})]
    data = json.loads(json.dumps(charts_of([*many(20), *many(5, direct=True)], loads)))
    assert data["cpu"] == {"gateway, worker": [12.0], "generator": [5.0]}
    assert data["memory"] == {"gateway, worker": [20.0]}
    assert data["load_at_s"] == [1.0]
    assert list(data["ttft"]) == ["through the gateway", "straight from the simulator"]


def test_processes_are_watched_by_their_groups() -> None:
    watch = Watch({"gateway": 2**22 + 1})  # nobody has this number
    with watch.going():
        pass
    assert watch.loads == []


# -- verdicts --


def test_a_good_run_keeps_every_bar() -> None:
    verdicts = of_replies(many(100), Bars())
    assert passed(verdicts)
    assert all(verdict.good for verdict in verdicts)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"problem": "status 502", "status": 502}, "requests that went wrong"),
        ({"end": "silent", "problem": "silent end of a stream"}, "streams that ended in silence"),
        ({"request_id": ""}, "replies without an id"),
        ({"request_id": "id-5"}, "replies without an id"),
    ],
)
def test_one_bad_reply_in_a_hundred_is_too_much(bad: dict[str, Any], what: str) -> None:
    verdicts = of_replies([*many(99), outcome(**{"request_id": "another", **bad})], Bars())
    assert measured(verdicts, what).good is False
    assert not passed(verdicts)


def test_what_is_added_is_judged_and_told_beside_what_the_machine_adds() -> None:
    verdicts = of_replies([*many(100, added_ttft_ms=30.0), *many(10, direct=True, added_ttft_ms=28.0)], Bars())
    first = measured(verdicts, "added to time to first token, p95")
    assert (first.good, first.measured) == (False, "30.0 ms; 28.0 ms without the gateway")
    assert measured(verdicts, "added to time to first token, p99").good
    assert passed(of_replies(many(100, added_ttft_ms=30.0), bars_of(["ttft_p95=40"])))


def test_what_cannot_be_known_is_not_judged() -> None:
    verdicts = of_replies(many(100, added_ms=None, added_ttft_ms=None), Bars())
    assert measured(verdicts, "added to whole answers, p99").good is None
    assert passed(verdicts)


def test_no_request_at_all_is_a_failure() -> None:
    assert not passed(of_replies(many(3, direct=True), Bars()))


def test_a_limit_is_a_full_bucket_and_its_refill() -> None:
    of = many(100, tenant="narrow") + many(50, tenant="narrow", status=429)  # over 10.2 s
    (kept,) = of_limits(of, [Narrow("narrow", 90)])
    assert (kept.good, kept.measured) == (True, "100 of 150 asked, 50 refused")
    assert kept.bar == "at most 105 in 10 s"
    (missed,) = of_limits(of, [Narrow("narrow", 80)])
    assert missed.good is False
    assert of_limits(of, [Narrow("nobody", 1)]) == []


def test_every_request_has_one_row() -> None:
    rows: list[dict[str, Any]] = [{} for _ in range(10)]
    of = [*many(10), *many(2, direct=True)]
    assert passed(of_books(of, rows, Findings()))
    assert not passed(of_books(of, rows[1:], Findings()))
    assert not passed(of_books(of, rows, Findings(wrong=1)))


def test_a_generator_that_is_short_of_cpu_fails_the_run() -> None:
    assert of_generator([100.0, 30.0, 31.0], Bars()).good
    assert of_generator([100.0, 90.0, 31.0], Bars()).good is False
    assert of_generator([], Bars()).good is None


@pytest.mark.parametrize("given", ["ttft_p95", "ttft=3", "ttft_p95=fast"])
def test_a_bar_that_does_not_exist_is_a_mistake(given: str) -> None:
    with pytest.raises(ValueError, match=r"ttft|fast"):
        bars_of([given])


# -- the page --


def page(verdicts: list[Verdict], **given: Any) -> str:
    charts = {"latency": b"<svg>l</svg>"}
    return rendered(Page("Load on an edge", "facts", verdicts, charts, kinds(many(5)), **given))


def test_the_page_says_first_whether_the_run_passed() -> None:
    good, bad = Verdict("errors", "none", "0", True), Verdict("<silence>", "none", "1 & more", False)
    assert 'Load on an edge<span class="outcome good">passed' in page([good])
    told = page([good, bad], notes=["a note"])
    assert 'outcome bad">failed' in told
    assert "&lt;silence&gt;" in told
    assert "1 &amp; more" in told
    assert told.index("Verdicts") < told.index("Charts") < told.index("Kinds") < told.index("a note")


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    told = page([])
    assert "http" not in told
    assert "data:image/svg+xml;base64," in told


def test_a_line_of_the_table_has_a_cell_for_each_heading() -> None:
    (kind,) = kinds(many(5))
    line = cells(kind)
    assert len(line) == len(HEADINGS)
    assert line[:4] == ["streamed", "5", "0", "0"]
    assert line[4] == "300 / 300 / 300"
