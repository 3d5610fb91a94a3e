"""Lines on stdout: what they say, and that nobody waits for whoever reads them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from span_records import an_attempt, an_end, plain_told, request_id, requests, told_of

from edgegw.ledger.record import AttemptRecord, End
from edgegw.logs import stamp
from edgegw.telemetry import console
from edgegw.telemetry.console import Console, Lines
from edgegw.telemetry.export import RefusedError
from edgegw.telemetry.spans import Told
from edgegw.trace import Sampler

ID = request_id(1)


def line(told: Told) -> str:
    return Lines().text(told).decode()


def json_line(told: Told) -> str:
    return Lines().json(told).decode()


def line_of(*attempts: AttemptRecord, **end: Any) -> str:
    (told,) = told_of(*attempts, an_end(ID, attempts=len(attempts), **end))
    return line(told)


def test_a_line() -> None:
    assert line_of(an_attempt(ID)) == (
        f"2025-06-15T15:06:40.000Z {ID} acme use_case:support_summary openai/gpt-5-mini complete 200 812+230 tokens"
        " $0.001212 801.0 ms (first token 420.5 ms) (own 0.9 ms)\n"
    )


def test_a_line_of_a_request_that_was_tried_again_in_a_trace_of_the_clients() -> None:
    failed = an_attempt(ID, 1, status=0, error_kind="upstream_connect", duration_us=2_500_000)
    text = line_of(failed, an_attempt(ID, 2), stream=False, trace="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    assert text.endswith(
        f" (own 0.9 ms) trace {'a' * 32} 2 attempts: openai/gpt-5-mini - upstream_connect 2.50 s,"
        " openai/gpt-5-mini 200 ok 800.0 ms\n"
    )


def test_a_line_of_a_refused_request() -> None:
    text = line_of(
        state="refused",
        status=404,
        error_kind="model_not_found",
        provider=None,
        model=None,
        route=None,
        input_tokens=None,
        cost_usd_micro=0,
        stream=False,
    )
    assert " acme - - refused 404 model_not_found 801.0 ms (own 0.9 ms)\n" in text


@given(requests())
def test_whatever_a_client_calls_things_it_is_one_line(records: list[AttemptRecord | End]) -> None:
    (told,) = told_of(*records, sampler=Sampler(parent_based=False))
    if told.end.started_ns > 250_000_000_000_000_000_000:
        return
    text = line(told)
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert re.match(r"\S+Z \S+ \S* \S+ \S* \w+ \d+ ", text)


async def test_lines_are_written_whole_and_in_order() -> None:
    reading, writing = os.pipe()
    place = Console(writing, Lines().text)
    told = [plain_told(number) for number in range(100)]
    assert await place.post(await place.pack(told)) == 0
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert stream.read() == "".join(map(line, told))


async def test_lines_are_written_whole_to_a_file_too(tmp_path: Path) -> None:
    told = [plain_told(number) for number in range(500)]
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    place = Console(fd, Lines().json)
    await place.post(await place.pack(told))
    os.close(fd)
    assert (tmp_path / "log").read_text() == "".join(map(json_line, told))


@given(st.lists(st.integers(0, 10**19)))
def test_moments_are_told_as_everywhere_in_the_log(moments: list[int]) -> None:
    lines = Lines()
    for ns in moments:
        assert lines._stamp(ns) == stamp(ns // 1_000_000 / 1000)


async def test_a_stdout_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "READY_TIMEOUT_S", 0.06)
    reading, writing = os.pipe()
    place = Console(writing, Lines().text)
    packed = await place.pack([plain_told(number) for number in range(1000)])
    assert len(packed) > 2 * 65_536
    with pytest.raises(RefusedError, match="not read"):
        await place.post(packed)
    os.close(reading)
    with pytest.raises(RefusedError, match="Broken pipe"):
        await place.post(packed)
    os.close(writing)


def test_a_line_for_machines() -> None:
    failed = an_attempt(ID, 1, status=0, error_kind="upstream_connect", duration_us=2_500_000)
    (told,) = told_of(failed, an_attempt(ID, 2), an_end(ID, attempts=2, use_case=None))
    assert json_line(told).count("\n") == 1
    said = json.loads(json_line(told))
    assert said["ts"] == "2025-06-15T15:06:40.000Z"
    assert (said["level"], said["logger"], said["message"]) == ("INFO", "edgegw.request", "complete 200")
    assert (said["request_id"], said["trace_id"]) == (ID, ID.replace("-", ""))
    assert (said["input_tokens"], said["output_tokens"], said["cost_usd"]) == (812, 230, 0.001212)
    assert (said["duration_ms"], said["first_token_ms"], said["overhead_ms"]) == (801.0, 420.5, 0.9)
    assert [(each["outcome"], each["duration_ms"]) for each in said["attempts"]] == [
        ("upstream_connect", 2500.0),
        ("ok", 800.0),
    ]
    assert "use_case" not in said, "not known, left out"
    assert "error" not in said
    told.end.tenant = "\ud800"
    assert json.loads(json_line(told))["tenant"] == "\ud800"


@given(requests())
def test_whatever_a_client_calls_things_it_is_one_object(records: list[AttemptRecord | End]) -> None:
    (told,) = told_of(*records, sampler=Sampler(parent_based=False))
    assert json_line(told).endswith("}\n")
    assert json.loads(json_line(told))["tenant"] == told.end.tenant
