"""Where a request meets its content: whoever comes first waits, nobody for long, and no request is lost."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from span_records import an_attempt, an_end, plain_told, request_id, told_of

from edgegw.clock import ManualClock
from edgegw.content.choice import Choice
from edgegw.content.courier import Courier
from edgegw.content.files import TOLD_DIR, TOO_LATE_S, Tray, Trays
from edgegw.content.record import Content
from edgegw.settings import load_text
from edgegw.telemetry import export, meeting
from edgegw.telemetry.export import Exporter
from edgegw.telemetry.meeting import CONTENT_WAIT_S, TOLD_WAIT_S, Meeting
from edgegw.telemetry.spans import Told

BASE = "version: 1\nproviders: {local: {kind: openai-compatible, base_url: 'http://127.0.0.1:1/v1'}}\n"
WITHIN_S = 10.0


def choice(tenants: str = "{}", capture: str = "{}") -> Choice:
    return Choice(load_text(f"{BASE}tenants: {tenants}\ncapture: {capture}\n", {}), tells=True)


def content(number: int = 0, tenant: str = "acme", size: int = 10) -> Content:
    return Content(request_id(number), tenant, 0, "openai_chat", False, b"p" * size, False, b"a", False)


class Case:
    """A meeting, and what went on from it."""

    def __init__(self, of: Choice | None = None) -> None:
        self.clock = ManualClock()
        self.onward: list[Told] = []
        self.meeting = Meeting(self.onward.append, of or choice(), self.clock)

    def later(self, seconds: float) -> None:
        self.clock.jump(seconds)
        self.meeting.look()

    @property
    def prompts(self) -> list[bytes | None]:
        """Of all that went on."""
        return [None if told.content is None else told.content.request for told in self.onward]

    @property
    def tally(self) -> dict[str, int]:
        tally = self.meeting.tally
        counts = {name: getattr(tally, name) for name in ("attached", "missing", "unclaimed", "refused")}
        return {name: count for name, count in counts.items() if count}


def test_whoever_comes_first_waits_for_the_other() -> None:
    case = Case()
    case.meeting.offer(plain_told(1))
    case.meeting.bring(content(2))
    assert case.onward == []
    assert case.meeting.waiting == 2
    case.meeting.bring(content(1))
    case.meeting.offer(plain_told(2))
    assert [told.end.id for told in case.onward] == [request_id(1), request_id(2)]
    assert case.prompts == [b"p" * 10] * 2
    assert (case.tally, case.meeting.waiting) == ({"attached": 2}, 0)


def test_a_request_whose_content_does_not_come_goes_on_without_it() -> None:
    case = Case()
    case.meeting.offer(plain_told(1))
    case.later(TOLD_WAIT_S - 0.1)
    assert case.onward == []
    case.meeting.offer(plain_told(2))
    case.later(0.2)
    assert [told.end.id for told in case.onward] == [request_id(1)]
    assert case.prompts == [None]
    case.meeting.close()  # the gateway stops
    assert len(case.onward) == 2
    assert case.tally == {"missing": 2}


def test_content_whose_request_does_not_come_is_let_go() -> None:
    case = Case()
    case.meeting.bring(content(1))
    case.meeting.bring(content(1))  # twice is once
    case.later(CONTENT_WAIT_S + 0.1)
    case.meeting.offer(plain_told(1))
    case.later(TOLD_WAIT_S + 0.1)
    assert case.prompts == [None]
    assert case.tally == {"unclaimed": 1, "missing": 1}
    assert case.meeting.room


def test_who_has_no_content_does_not_wait() -> None:
    """Refused before anybody was asked; of a worker that died; of a tenant that is off, or of whom only failures are
    told."""
    case = Case(choice("{quiet: {capture: off}, faulty: {capture: errors}}"))
    id_ = request_id(1)
    for number, (attempts, end) in enumerate(
        (
            ([], an_end(id_, attempts=0, state="refused", status=404)),
            ([an_attempt(id_)], an_end(id_, state="interrupted", status=0)),
            ([an_attempt(id_)], an_end(id_, tenant="quiet")),
            ([an_attempt(id_)], an_end(id_, tenant="faulty")),
        ),
        1,
    ):
        (told,) = told_of(*attempts, end)
        case.meeting.offer(told)
        assert len(case.onward) == number
    (told,) = told_of(an_attempt(id_), an_end(id_, tenant="faulty", state="failed", status=502))
    case.meeting.offer(told)
    assert case.meeting.waiting == 2


def test_what_must_not_be_told_is_not_told_whoever_put_it_down() -> None:
    case = Case(choice("{quiet: {capture: off}}", "{mode: all}"))
    case.meeting.bring(content(1, "quiet"))
    (told,) = told_of(an_attempt(request_id(1)), an_end(request_id(1), tenant="quiet"))
    case.meeting.offer(told)
    assert case.prompts == [None]
    assert case.tally == {"refused": 1}


def test_not_more_than_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "TOLD_MAX", 3)
    monkeypatch.setattr(meeting, "CONTENT_BYTES_MAX", 30)
    case = Case()
    for number in range(5):
        case.meeting.offer(plain_told(number))
    assert [told.end.id for told in case.onward] == [request_id(0), request_id(1)]
    case.meeting.bring(content(7, size=29))
    assert not case.meeting.room
    case.meeting.offer(plain_told(7))
    assert case.meeting.room


# -- from the files --


def put(state_dir: Path, *contents: Content, directory: str = TOLD_DIR) -> None:
    Tray(state_dir, 0, 1 << 30, directory).put(contents[0].request_id, msgspec.msgpack.encode(contents), len(contents))


async def brought(state_dir: Path, room: Callable[[], bool] = lambda: True) -> list[str]:
    """All that a courier brings until it is stopped."""
    found: list[Content] = []
    clock = ManualClock(wall_ns=time.time_ns())
    courier = Courier(state_dir, found.append, room, clock)
    courier.start()
    await courier.stop(WITHIN_S)
    return [each.request_id for each in found]


async def test_a_courier_brings_each_content_once(tmp_path: Path) -> None:
    assert await brought(tmp_path) == []
    put(tmp_path, content(1), content(2))
    put(tmp_path, content(3))
    put(tmp_path, content(4), directory="content")  # that is to be stored, and nothing else
    assert await brought(tmp_path) == [request_id(number) for number in (1, 2, 3)]
    assert await brought(tmp_path) == []
    assert (list(Trays(tmp_path, TOLD_DIR).all()), len(list(Trays(tmp_path).all()))) == ([], 1)


async def test_a_content_that_is_not_taken_is_told_by_its_request_and_keeps_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, content(1), content(2), content(3))
    found: list[str] = []

    def bring(each: Content) -> None:
        if each.request_id == request_id(2):
            raise ValueError("words that may be the content's")
        found.append(each.request_id)

    courier = Courier(tmp_path, bring, lambda: True, ManualClock(wall_ns=time.time_ns()))
    courier.start()
    await courier.stop(WITHIN_S)
    assert found == [request_id(1), request_id(3)]
    (line,) = caplog.records
    assert vars(line)["request_id"] == request_id(2)
    assert "words" not in caplog.text


async def test_a_courier_waits_while_there_is_no_room_and_while_somebody_deletes(tmp_path: Path) -> None:
    put(tmp_path, content(1))
    assert await brought(tmp_path, lambda: False) == []
    with Trays(tmp_path, TOLD_DIR).held():
        assert await brought(tmp_path) == []
    assert await brought(tmp_path) == [request_id(1)]


async def test_what_is_broken_or_too_late_is_removed_and_not_brought(tmp_path: Path) -> None:
    put(tmp_path, content(1))
    put(tmp_path, content(2))
    put(tmp_path, content(3))
    trays = Trays(tmp_path, TOLD_DIR)
    broken, late, _ = trays.waiting(9)
    broken.write_bytes(b"\x93\x01")
    written_ns = time.time_ns() - int((TOO_LATE_S + 1) * 1e9)
    os.utime(late, ns=(written_ns, written_ns))
    assert await brought(tmp_path) == [request_id(3)]
    assert list(trays.all()) == []


# -- on to the collector --


class Place:
    """A destination that waits until it may take something."""

    def __init__(self) -> None:
        self.batches: list[list[Told]] = []
        self.gate = asyncio.Event()

    async def pack(self, batch: Any) -> Any:
        return list(batch)

    async def post(self, packed: Any) -> int:
        await self.gate.wait()
        self.batches.append(packed)
        return 0

    async def close(self) -> None: ...


async def test_a_batch_holds_so_much_content_and_the_queue_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond that spans go without: none is lost."""
    monkeypatch.setattr(export, "BATCH_CONTENT_BYTES", 300)
    monkeypatch.setattr(export, "QUEUE_CONTENT_BYTES_MAX", 1000)
    place = Place()
    exporter = Exporter(
        place, ManualClock(), lambda: 0.5, delay_s=60, queue_spans_max=2048, batch_spans_max=512, timeout_s=30
    )
    running = asyncio.create_task(exporter.run())
    for number in range(12):
        exporter.offer(msgspec.structs.replace(plain_told(number), content=content(number, size=99)))
    assert exporter.tally.bare == 2
    place.gate.set()
    async with asyncio.timeout(WITHIN_S):
        while sum(map(len, place.batches)) < 9:  # noqa: ASYNC110 (what is waited for belongs to the code under test)
            await asyncio.sleep(0.001)
    await exporter.stop(WITHIN_S)
    await running
    assert [len(batch) for batch in place.batches] == [3, 3, 3, 3]
    bare = [told.content is None for batch in place.batches for told in batch]
    assert bare == [False] * 10 + [True] * 2
    assert (exporter.tally.sent, exporter.tally.dropped) == (24, {})
    exporter.offer(msgspec.structs.replace(plain_told(99), content=content(99, size=999)))
    assert exporter.tally.bare == 2  # what is gone makes room
