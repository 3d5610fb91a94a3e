"""Rows that a database does not take: found among those that it does, set aside where nothing is lost, and in nobody's
way."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ledger_traces import (
    TARGET,
    UNPAYABLE,
    WAIT_S,
    WALL_NS,
    books,
    conclude,
    finish,
    make_attempt,
    make_exchange,
    open_journal,
    play,
    priced,
    ship_all,
    sqlite_store,
)

from edgegw.clock import ManualClock
from edgegw.ledger.encoding import encode_attempt, encode_end
from edgegw.ledger.record import ATTEMPT_COLUMNS, REQUEST_COLUMNS, AttemptRecord, End, decoder
from edgegw.ledger.rejected import (
    REJECTED_DIR,
    Blamed,
    lines_of,
    rows_set_aside,
    set_aside,
    write_by_halves,
)
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.store import Batch, RejectedError


def batch_of(requests: int, attempts: int = 0) -> Batch:
    batch = Batch()
    decode = decoder()
    batch.begin("first")
    for number in range(requests):
        if number == 2:
            batch.begin("second")
        exchange = make_exchange(number)
        conclude(exchange)
        record = decode(encode_end(exchange, number + 1))
        assert isinstance(record, End)
        batch.requests.append(record)
    for number in range(attempts):
        exchange = make_exchange(number)
        attempt = make_attempt(exchange)
        finish(attempt)
        row = decode(encode_attempt(exchange, attempt, number + 1))
        assert isinstance(row, AttemptRecord)
        batch.attempts.append(row)
    return batch


class Picky:
    """Takes everything but some rows."""

    def __init__(self, refused: list[object]) -> None:
        self.refused = refused
        self.rows: list[object] = []
        self.writes = 0

    async def write(self, batch: Batch) -> None:
        self.writes += 1
        rows = [*batch.requests, *batch.attempts]
        for row in rows:
            if any(row is one for one in self.refused):
                raise RejectedError(f"no {rows.index(row)}")
        self.rows += rows


@given(st.integers(0, 20), st.integers(0, 20), st.sets(st.integers(0, 39)))
def test_exactly_the_rows_to_blame_are_left(requests: int, attempts: int, bad: set[int]) -> None:
    batch = batch_of(requests, attempts)
    rows: list[object] = [*batch.requests, *batch.attempts]
    bad = {number for number in bad if number < len(rows)}
    assume(bad or len(rows) != 1)  # it was refused as a whole
    store = Picky([rows[number] for number in bad])
    blamed = asyncio.run(write_by_halves(batch, store.write, "no 0"))
    assert {one.number for one in blamed} == bad
    assert len(blamed) == len(bad)
    if len(rows) > 1:
        assert {id(row) for row in store.rows} == {id(row) for number, row in enumerate(rows) if number not in bad}
        assert len(store.rows) == len(rows) - len(bad)


async def test_one_bad_row_costs_few_writes() -> None:
    batch = batch_of(500, 500)
    store = Picky([batch.attempts[123]])
    assert await write_by_halves(batch, store.write, "no") == [Blamed(623, "no 0")]
    assert store.writes <= 20


def test_a_row_knows_its_life() -> None:
    batch = batch_of(4, 2)
    assert [batch.life_of(number) for number in range(6)] == ["first", "first", "second", "second", "second", "second"]


def test_a_line_has_all_that_the_row_would_have_had(tmp_path: Path) -> None:
    batch = batch_of(1, 1)
    batch.attempts[0].model = "half \ud800 a character"
    batch.attempts[0].cost_usd_micro = 2**80
    assert set_aside(tmp_path, lines_of(batch, [Blamed(0, "why"), Blamed(1, "too large")], WALL_NS), WALL_NS) == 0
    request, attempt = rows_set_aside(tmp_path)
    assert request == {
        "time": "2025-06-15T15:06:40Z",
        "life": "first",
        "seq": 1,
        "table": "requests",
        "reason": "why",
        "row": {name: getattr(batch.requests[0], name) for name in REQUEST_COLUMNS},
    }
    assert attempt["row"] == {name: getattr(batch.attempts[0], name) for name in ATTEMPT_COLUMNS}
    (path,) = (tmp_path / REJECTED_DIR).iterdir()
    assert path.name == "2025-06-15.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_twice_is_once_and_what_a_crash_has_cut_off_spoils_nothing(tmp_path: Path) -> None:
    batch = batch_of(3)
    lines = lines_of(batch, [Blamed(number, "why") for number in range(3)], WALL_NS)
    set_aside(tmp_path, lines[:2], WALL_NS)
    (path,) = (tmp_path / REJECTED_DIR).iterdir()
    path.write_bytes(path.read_bytes()[:-30])
    set_aside(tmp_path, lines, WALL_NS)
    set_aside(tmp_path, lines, WALL_NS)
    assert [found["row"]["id"] for found in rows_set_aside(tmp_path)] == [row.id for row in batch.requests]
    assert len(path.read_bytes().splitlines()) == 8


def test_there_is_a_bound_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    batch = batch_of(10)
    lines = lines_of(batch, [Blamed(number, "why") for number in range(10)], WALL_NS)
    room = 3 * max(map(len, lines))
    assert set_aside(tmp_path, lines, WALL_NS, bytes_max=room) == 7
    assert set_aside(tmp_path, lines, WALL_NS, bytes_max=room) == 10
    assert len(list(rows_set_aside(tmp_path))) == 3


async def test_a_row_that_no_column_holds_is_set_aside_and_all_others_are_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(tmp_path)
    targets = [UNPAYABLE if number in (3, 17) else TARGET for number in range(40)]
    ids = [play(journal, number, target=target, within_end=True).id for number, target in enumerate(targets)]
    journal.close()
    store = sqlite_store(tmp_path / "books.db")
    shipper = await ship_all(tmp_path, store, price=priced)
    checkpoint = await store.read_checkpoint()
    await store.close()
    requests, attempts = books(tmp_path / "books.db")
    good = [id_ for number, id_ in enumerate(ids) if number not in (3, 17)]
    assert [row[0] for row in requests] == [row[0] for row in attempts] == good
    bad = sorted(
        (found["table"], found["row"].get("id") or found["row"]["request_id"]) for found in rows_set_aside(tmp_path)
    )
    assert bad == sorted((table, ids[number]) for table in ("requests", "provider_attempts") for number in (3, 17))
    assert (shipper.tally.rejected, shipper.tally.rejected_lost, shipper.tally.errors) == (4, 0, 0)
    (line,) = (vars(record) for record in caplog.records if "they are set aside" in record.message)
    assert (line["request_id"], line["trace_id"]) == (ids[3], ids[3].replace("-", ""))
    assert shipper.tally.rows == 76
    assert not checkpoint.positions
    assert not list((tmp_path / "journal").iterdir())


async def test_rows_wait_while_they_can_be_neither_stored_nor_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgegw.ledger.shipper.BACKOFF_MIN_S", 0.004)
    (tmp_path / REJECTED_DIR).write_text("in the way")
    journal = open_journal(tmp_path)
    play(journal, 1, target=UNPAYABLE, within_end=True)
    journal.close()
    store = sqlite_store(tmp_path / "books.db")
    shipper = Shipper(tmp_path, store, ManualClock(wall_ns=WALL_NS), priced, poll_s=0.002)
    shipping = asyncio.create_task(shipper.run())
    async with asyncio.timeout(WAIT_S):
        while not shipper.tally.errors:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert "cannot be set aside" in str(shipper.tally.failing)
    (tmp_path / REJECTED_DIR).unlink()
    assert await shipper.stop(WAIT_S)
    await shipping
    await store.close()
    assert len(list(rows_set_aside(tmp_path))) == shipper.tally.rejected == 2


def test_lines_are_plain_json(tmp_path: Path) -> None:
    (line,) = lines_of(batch_of(1), [Blamed(0, "why")], WALL_NS)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["table"] == "requests"
