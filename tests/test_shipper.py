"""The shipper: every row exactly once, whatever dies and whenever; and nothing waits for a store that does not work."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger_traces import (
    WAIT_S,
    WALL_NS,
    begin,
    books,
    conclude,
    die,
    finish,
    make_attempt,
    make_exchange,
    open_journal,
    play,
    refuse,
    ship_all,
    sqlite_store,
    states,
)

from edgegw.clock import ManualClock
from edgegw.ledger.assembly import Assembler, unpriced
from edgegw.ledger.journal import Journal
from edgegw.ledger.reader import LifeReader
from edgegw.ledger.record import AttemptRecord, End, Record, Try, Vitals
from edgegw.ledger.shipper import FEW_POLLS, Shipper, polls_to_wait
from edgegw.ledger.store import Batch, Checkpoint, SchemaTooNewError, Store, StoreError

TESTS = Path(__file__).parent
KILLS = 20


class Crash(BaseException):
    """The control process dies here."""


class FaultyStore:
    """A store that does what `plan` says at its n-th write (from 0): before it, or after the commit."""

    def __init__(self, store: Store, before: Callable[[int], None], after: Callable[[int], None]) -> None:
        self._store = store
        self._before = before
        self._after = after
        self.writes = 0

    async def write(self, batch: Batch, checkpoint: Checkpoint) -> None:
        number = self.writes
        self.writes += 1
        self._before(number)
        await self._store.write(batch, checkpoint)
        self._after(number)

    async def read_checkpoint(self) -> Checkpoint:
        return await self._store.read_checkpoint()

    async def close(self) -> None:
        await self._store.close()


def nothing(number: int) -> None:
    pass


def raising(error: BaseException, when: Callable[[int], bool]) -> Callable[[int], None]:
    def step(number: int) -> None:
        if when(number):
            raise error

    return step


def mixed_lives(state_dir: Path) -> None:
    """Two dead lives: whole, retried, refused and failed exchanges, and some that were open at the death."""
    for life in (1, 2):
        journal = open_journal(state_dir, life)
        for number in range(life * 1000, life * 1000 + 150):
            kind = number % 10
            if kind == 0:
                refuse(journal, number)
            elif kind == 1:  # dies before its first attempt is over
                begin(journal, number)
            elif kind == 2:  # dies in its second attempt
                begin(journal, number, failures=1)
            elif kind == 3:  # dies between its attempt's end and its own
                exchange = begin(journal, number)
                finish(exchange.attempts[0])
                journal.attempt(exchange, exchange.attempts[0])
            else:
                play(journal, number, failures=kind % 3, within_end=kind < 8)
        journal.vitals({"in_flight": 45}, WALL_NS + 60 * 10**9)
        die(journal)


async def test_requests_and_attempts_become_rows(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    whole = play(journal, 1, failures=2)
    refused = refuse(journal, 2)
    journal.close()
    store = sqlite_store(tmp_path / "books.db")
    shipper = await ship_all(tmp_path, store)
    await store.close()
    assert states(tmp_path / "books.db") == {whole.id: "complete", refused.id: "refused"}
    _, attempts = books(tmp_path / "books.db")
    assert [(row[1], row[2], row[7], row[8]) for row in attempts] == [
        (1, "primary", "upstream_error", None),
        (2, "fallback", "upstream_error", "upstream_error"),
        (3, "fallback", None, "upstream_error"),
    ]
    assert (shipper.tally.requests, shipper.tally.attempts, shipper.tally.rows) == (2, 3, 5)
    assert not list((tmp_path / "journal").iterdir())


async def test_an_attempt_makes_the_same_row_whether_it_is_written_by_itself_or_within_the_end(tmp_path: Path) -> None:
    rows = []
    for within_end in (False, True):
        state_dir = tmp_path / str(within_end)
        journal = open_journal(state_dir)
        for number in range(9):
            play(journal, number, failures=number % 3, within_end=within_end)
        die(journal)
        seen: list[Record] = []
        store = sqlite_store(state_dir / "books.db")
        shipper = await ship_all(state_dir, store, [seen.extend], batch_rows_max=4)
        await store.close()
        rows.append(books(state_dir / "books.db"))
        assert (shipper.tally.requests, shipper.tally.attempts) == (9, 18)
        assert sum(isinstance(record, AttemptRecord) for record in seen) == 18
    assert rows[0] == rows[1]


async def test_a_dead_life_leaves_interrupted_rows(tmp_path: Path) -> None:
    mixed_lives(tmp_path)
    store = sqlite_store(tmp_path / "books.db")
    seen: list[Record] = []
    shipper = await ship_all(tmp_path, store, [seen.extend])
    await store.close()
    requests, attempts = books(tmp_path / "books.db")
    assert Counter(row[8] for row in requests) == {"complete": 180, "refused": 30, "interrupted": 90}
    by_request = itertools.groupby(attempts, key=lambda row: row[0])
    assert all([row[1] for row in rows] == list(range(1, 1 + len(rows))) for rows in (list(g) for _, g in by_request))
    first = make_exchange(1001)
    second = make_exchange(1002)
    third = make_exchange(1003)
    rows = {str(row[0]): row for row in requests}
    assert rows[first.id][9:14] == (0, "interrupted", 1, "openai", "gpt-5-mini")
    assert rows[second.id][9:14] == (0, "interrupted", 2, "anthropic", "claude-haiku-4-5")
    assert rows[third.id][11:17] == (1, "openai", "gpt-5-mini", 10, 20, 4)  # what its attempt has used is known
    assert rows[first.id][21] == (WALL_NS + 60 * 10**9 - first.started_ns) // 1000
    tries = [row for row in attempts if row[0] == second.id]
    assert [(row[2], row[7], row[8]) for row in tries] == [
        ("primary", "upstream_error", None),
        ("fallback", "interrupted", "upstream_error"),
    ]
    assert shipper.tally.interrupted == 90
    assert sum(isinstance(record, End) and record.state == "interrupted" for record in seen) == 90
    assert sum(isinstance(record, AttemptRecord) and record.error_kind == "interrupted" for record in seen) == 60


async def clean_books(path: Path) -> object:
    mixed_lives(path)
    store = sqlite_store(path / "books.db")
    await ship_all(path, store)
    await store.close()
    return books(path / "books.db")


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_at_any_write_loses_and_doubles_nothing(tmp_path: Path, moment: str) -> None:
    expected = await clean_books(tmp_path / "clean")
    (tmp_path / "crashed").mkdir()
    mixed_lives(tmp_path / "crashed")
    path = tmp_path / "crashed" / "books.db"
    crashes = 0
    for nth in itertools.count():
        crash = raising(Crash(), lambda number, nth=nth: number == nth % 3)  # type: ignore[misc]
        store = FaultyStore(sqlite_store(path), *((crash, nothing) if moment == "before" else (nothing, crash)))
        try:
            await ship_all(tmp_path / "crashed", store, batch_rows_max=40)
        except Crash:
            crashes += 1
        else:
            break
        finally:
            await store.close()
        assert crashes < 500
    assert crashes > 5
    assert books(path) == expected
    assert not list((tmp_path / "crashed" / "journal").iterdir())


@pytest.mark.parametrize("method", ["release", "remove"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_while_files_are_deleted_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, moment: str
) -> None:
    expected = await clean_books(tmp_path / "clean")
    mixed_lives(tmp_path / "crashed")
    path = tmp_path / "crashed" / "books.db"
    original = getattr(LifeReader, method)

    def crashing(self: LifeReader, *arguments: object) -> None:
        if moment == "after":
            original(self, *arguments)
        raise Crash

    crashes = 0
    with monkeypatch.context() as patch:
        patch.setattr(LifeReader, method, crashing)
        for _ in range(10):
            store = sqlite_store(path)
            try:
                await ship_all(tmp_path / "crashed", store, batch_rows_max=100)
            except Crash:
                crashes += 1
            await store.close()
    assert crashes > 1
    store = sqlite_store(path)
    await ship_all(tmp_path / "crashed", store)
    await store.close()
    assert books(path) == expected


async def test_a_cancelled_shipper_is_a_crashed_one(tmp_path: Path) -> None:
    expected = await clean_books(tmp_path / "clean")
    mixed_lives(tmp_path / "cut")
    path = tmp_path / "cut" / "books.db"
    for steps in range(40):
        store = sqlite_store(path)
        shipper = Shipper(tmp_path / "cut", store, ManualClock(), unpriced, poll_s=0.001, batch_rows_max=60)
        running = asyncio.create_task(shipper.run())
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()
    store = sqlite_store(path)
    await ship_all(tmp_path / "cut", store)
    await store.close()
    assert books(path) == expected


async def test_segments_go_while_a_long_stream_is_open(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stream = make_exchange(0)
    attempt = make_attempt(stream)
    journal.begin(stream, attempt)
    for number in range(1, 300):
        play(journal, number)
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await ship_all(tmp_path, store)
    assert len(list((tmp_path / "journal").glob("*/*.seg"))) == 2  # the current one and the spare
    assert stream.id not in states(path)
    finish(attempt)
    journal.attempt(stream, attempt)
    conclude(stream)
    journal.end(stream)
    journal.close()
    await ship_all(tmp_path, store)
    assert states(path)[stream.id] == "complete"
    assert not (await store.read_checkpoint()).opened
    await store.close()


async def test_a_stream_remembered_in_the_checkpoint_is_closed_when_its_worker_dies(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stream = make_exchange(0)
    journal.begin(stream, make_attempt(stream))
    for number in range(1, 300):
        play(journal, number)
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await ship_all(tmp_path, store)
    die(journal)
    await ship_all(tmp_path, store)
    assert states(path)[stream.id] == "interrupted"
    checkpoint = await store.read_checkpoint()
    assert not checkpoint.opened
    await store.close()


async def test_what_is_open_in_a_directory_that_was_taken_away_is_interrupted(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    stream = make_exchange(0)
    journal.begin(stream, make_attempt(stream))
    play(journal, 1)
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    await ship_all(tmp_path, store)
    die(journal)
    (tmp_path / "journal").rename(tmp_path / "elsewhere")
    await ship_all(tmp_path, store)
    assert states(path)[stream.id] == "interrupted"
    checkpoint = await store.read_checkpoint()
    assert (checkpoint.positions, checkpoint.opened) == ({}, {})
    await store.close()


async def test_an_idle_gateway_writes_nothing(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for second in range(60):
        journal.vitals({"in_flight": 0}, WALL_NS + second * 10**9)
    store = FaultyStore(sqlite_store(tmp_path / "books.db"), nothing, nothing)
    seen: list[Record] = []
    await ship_all(tmp_path, store, [seen.extend])
    assert len(seen) == 60
    assert store.writes == 0
    await store.close()
    journal.close()


def complaint(shipper: Shipper) -> str | None:
    return shipper.tally.failing


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event, and should have none)
            await asyncio.sleep(0.002)


async def test_while_the_store_is_away_rows_wait_and_observers_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgegw.ledger.shipper.BACKOFF_MIN_S", 0.004)
    monkeypatch.setattr("edgegw.ledger.shipper.BACKOFF_MAX_S", 0.008)
    allowed = 0  # writes that succeed before the store is away again

    def fail(number: int) -> None:
        nonlocal allowed
        if allowed <= 0:
            raise StoreError("the disk is full")
        allowed -= 1

    path = tmp_path / "books.db"
    store = FaultyStore(sqlite_store(path), fail, nothing)
    seen: list[Record] = []
    clock = ManualClock(wall_ns=WALL_NS + 10 * 10**9)
    shipper = Shipper(tmp_path, store, clock, unpriced, [seen.extend], poll_s=0.002, batch_rows_max=50)
    running = asyncio.create_task(shipper.run())
    journal = open_journal(tmp_path)
    played = 0

    async def outage(writes: int) -> None:
        """The store is away while 100 exchanges go by, then for so many writes it is not."""
        nonlocal allowed, played
        allowed = 0
        for number in range(played, played + 100):
            play(journal, number)
        played += 100
        await until(lambda: len(seen) == 3 * played)  # observers hear of all of it meanwhile
        assert complaint(shipper) == "the disk is full"
        assert 9 < shipper.lag_s <= 10
        batches = shipper.tally.batches
        allowed = writes
        await until(lambda: len(states(path)) == played or shipper.tally.batches == batches + writes)

    await outage(2)
    await outage(2)  # begins amidst rows that observers know already
    await outage(1000)
    await until(lambda: shipper.lag_s == 0)
    assert complaint(shipper) is None
    await outage(2)
    allowed = 1000
    journal.close()
    assert await shipper.stop(WAIT_S)
    await running
    await store.close()
    assert len(states(path)) == played == 400
    assert Counter(record.seq for record in seen) == Counter(range(1, 1201))
    assert shipper.tally.errors >= 4
    assert shipper.tally.damage.gaps == 0


async def test_there_is_a_lag_until_the_whole_backlog_is_stored(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(200):
        play(journal, number)
    journal.close()
    store = sqlite_store(tmp_path / "books.db")
    clock = ManualClock(wall_ns=WALL_NS + 60 * 10**9)
    shipper = Shipper(tmp_path, store, clock, unpriced, poll_s=0.002, batch_rows_max=20)
    running = asyncio.create_task(shipper.run())
    seen = []
    while shipper.tally.rows < 400:
        await asyncio.sleep(0)
        seen.append((shipper.tally.rows, shipper.lag_s))
    assert not [rows for rows, lag_s in seen if lag_s < 59 and 0 < rows < 400]
    await until(lambda: shipper.lag_s == 0)
    assert await shipper.stop(WAIT_S)
    await running
    await store.close()


@pytest.mark.parametrize(
    ("rows", "waited", "polls"),
    [(0, 1, FEW_POLLS), (99, 1, FEW_POLLS), (100, 1, 1), (249, 2.5, FEW_POLLS), (250, 2.5, 1), (5_000, 1, 1)],
)
def test_where_rows_are_few_they_wait_for_more(rows: int, waited: float, polls: float) -> None:
    """By the rows of a second, so that the longer wait does not make many of them."""
    assert polls_to_wait(rows, waited) == polls


async def test_an_observer_that_fails_does_not_stop_the_books(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in range(5):
        play(journal, number)
    journal.close()
    seen: list[Record] = []

    def broken(records: Iterator[Record]) -> None:
        for _ in records:
            raise RuntimeError("no")

    def idle(records: Iterator[Record]) -> None:
        raise RuntimeError("it does not even look")

    store = sqlite_store(tmp_path / "books.db")
    shipper = await ship_all(tmp_path, store, [broken, idle, seen.extend])
    await store.close()
    assert len(seen) == 15
    assert shipper.observer_errors == 2 * 15
    assert len(states(tmp_path / "books.db")) == 5


async def test_stop_gives_up_in_time_and_the_next_start_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal(tmp_path)
    play(journal, 1)
    journal.close()
    path = tmp_path / "books.db"
    store = FaultyStore(sqlite_store(path), raising(StoreError("busy"), lambda number: True), nothing)
    shipper = Shipper(tmp_path, store, ManualClock(), unpriced, poll_s=0.002)
    running = asyncio.create_task(shipper.run())
    await until(lambda: shipper.tally.errors > 0)
    assert not await shipper.stop(0.01)
    assert "stops before all is stored" in caplog.text
    assert running.cancelled()
    await store.close()
    store = FaultyStore(sqlite_store(path), nothing, nothing)
    await ship_all(tmp_path, store)
    await store.close()
    assert len(states(path)) == 1


async def test_a_schema_that_is_too_new_is_not_tried_again(tmp_path: Path) -> None:
    store = FaultyStore(sqlite_store(tmp_path / "books.db"), raising(SchemaTooNewError(), lambda _: True), nothing)
    play(open_journal(tmp_path), 1)
    with pytest.raises(SchemaTooNewError):
        await ship_all(tmp_path, store)
    await store.close()


def test_the_assembler_remembers_changes_only() -> None:
    """Opened once, closed once: what opens and ends between two takes never reaches the checkpoint."""
    assembler = Assembler(Checkpoint(), unpriced)
    first, second = make_exchange(1), make_exchange(2)
    journaled = [make_attempt(first), make_attempt(second)]
    records = [
        _decoded("begin", first, journaled[0]),
        _decoded("begin", second, journaled[1]),
        _decoded("end", first),
        Vitals(1, 4, 0, WALL_NS, {}),
    ]
    assembler.add("life", records)
    batch, checkpoint = assembler.take({})
    assert [row.id for row in batch.requests] == [first.id]
    assert (list(checkpoint.opened), checkpoint.closed) == ([second.id], [])
    assembler.add("life", [])
    assert assembler.take({})[1] == Checkpoint()
    assembler.add("life", [Try(1, 5, second.id, 2, "retry", "p", "m", WALL_NS, "upstream_cut")])
    assert list(assembler.take({})[1].opened) == [second.id]
    assembler.add("life", [_decoded("end", second)])
    assert assembler.take({})[1].closed == [second.id]
    assert assembler.open == 0


def _decoded(kind: str, *arguments: object) -> Record:
    from edgegw.ledger import encoding
    from edgegw.ledger.record import decoder

    return decoder()(getattr(encoding, f"encode_{kind}")(*arguments, 1))


# kill -9, on real processes.


class Said:
    """What a writer has said it has written, and what must follow from it."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.attempts: set[tuple[str, int]] = set()
        self.ended: dict[str, str] = {}

    def take(self, line: str) -> None:
        match line.split():
            case ["b", id_]:
                self.begun.add(id_)
            case ["a", id_, number]:
                self.attempts.add((id_, int(number)))
            case ["e", id_, state]:
                self.ended[id_] = state

    def check(self, path: Path) -> None:
        requests, attempts = books(path)
        found = {str(row[0]): str(row[8]) for row in requests}
        assert len(found) == len(requests)
        assert self.begun <= found.keys()
        assert self.ended.items() <= found.items()
        finished = {(str(row[0]), int(str(row[1]))) for row in attempts if row[7] != "interrupted"}
        assert self.attempts <= finished
        numbers: dict[str, list[int]] = {}
        for row in attempts:
            numbers.setdefault(str(row[0]), []).append(int(str(row[1])))
        for request in requests:
            assert numbers.get(str(request[0]), []) == list(range(1, int(str(request[11])) + 1))


async def run_and_kill(state_dir: Path, life: int, dice: random.Random, said: Said) -> None:
    """A writer's life: it is killed when it has said so many lines, wherever it is by then."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable,
        str(TESTS / "ledger_writer.py"),
        str(state_dir),
        str(life),
        str(dice.randrange(2**32)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
    )
    assert writer.stdout is not None
    try:
        async with asyncio.timeout(WAIT_S):
            for _ in range(dice.randrange(0, 1500)):
                said.take((await writer.stdout.readline()).decode())
            writer.send_signal(signal.SIGKILL)
            *lines, torn = (await writer.stdout.read()).decode().split("\n")
            assert torn == "" or not torn.endswith("\n")
            for line in lines:
                said.take(line)
    finally:
        if writer.returncode is None:
            writer.kill()
        assert await writer.wait() == -signal.SIGKILL


@pytest.mark.system
async def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    dice = random.Random(20_250)
    path = tmp_path / "books.db"
    store = sqlite_store(path)
    said = Said()
    damage = interrupted = 0
    for life in range(1, KILLS + 1):
        shipper = Shipper(tmp_path, store, ManualClock(), unpriced, poll_s=0.002, batch_rows_max=200)
        shipping = asyncio.create_task(shipper.run())
        await run_and_kill(tmp_path, life, dice, said)
        if life % 3 == 0:  # the control process dies as well, somewhere
            shipping.cancel()
            await asyncio.gather(shipping, return_exceptions=True)
            shipper = await ship_all(tmp_path, store)
        else:
            assert await shipper.stop(WAIT_S)
        await asyncio.gather(shipping, return_exceptions=True)
        damage += shipper.tally.damage.torn + shipper.tally.damage.gaps + shipper.tally.damage.unreadable
        interrupted += shipper.tally.interrupted
        assert not list((tmp_path / "journal").iterdir())
    said.check(path)
    assert len(said.ended) > 1000
    assert interrupted > KILLS
    assert damage == 0
    assert not (await store.read_checkpoint()).opened
    await store.close()


def test_a_journal_is_not_opened_twice_for_one_life(tmp_path: Path) -> None:
    journal: Journal = open_journal(tmp_path)
    second = open_journal(tmp_path)
    assert second.full
    second.prepare()  # under another name
    play(second, 1)
    assert len(list((tmp_path / "journal").iterdir())) == 2
    second.close()
    journal.close()
