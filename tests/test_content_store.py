"""Content becomes rows: once, through crashes and absences, no longer and no larger than asked, gone when deleted."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgegw.cli import main
from edgegw.clock import ManualClock, uuid7
from edgegw.content import command
from edgegw.content.files import CONTENT_DIR, TOLD_DIR, TOO_LATE_S, Tray, Trays
from edgegw.content.record import Content
from edgegw.content.shipper import ADOPT_EVERY_S, TRIM_EVERY_S, TRIM_SHARE, ContentShipper
from edgegw.content.sqlite import SqliteContents
from edgegw.content.store import Chosen
from edgegw.http.reply import LAST_CHUNK, chunk
from edgegw.ledger.schema import migrations
from edgegw.ledger.store import RejectedError, StoreError

DAY_S = 86_400
CANARY = b"canary-4711"
SOON_S = 10.0


def content(number: int, clock: ManualClock, tenant: str = "t", reply: bytes = b"answer", **fields: bool) -> Content:
    id_ = uuid7(clock.wall_ns(), number)
    found = Content(id_, tenant, clock.wall_ns(), "openai_chat", False, b"prompt", False, reply, False)
    return msgspec.structs.replace(found, **fields)


def put(state_dir: Path, *contents: Content) -> None:
    tray = Tray(state_dir, 0, 1 << 30)
    for each in contents:
        tray.put(each.request_id, msgspec.msgpack.encode([each]), 1)
        path = state_dir / CONTENT_DIR / "0" / f"{each.request_id}.msgpack"
        os.utime(path, ns=(each.stored_ns, each.stored_ns))  # the clock of these tests is not the machine's


def store(path: Path) -> SqliteContents:
    return SqliteContents(path / "books.db", migrations("sqlite"), ManualClock().wall_ns)


def rows(path: Path) -> list[tuple[str, bytes, bytes]]:
    with closing(sqlite3.connect(path / "books.db")) as connection:
        query = "SELECT request_id, request, reply FROM request_contents ORDER BY request_id"
        return connection.execute(query).fetchall()


def waiting(path: Path) -> int:
    return len(list(Trays(path).all()))


@asynccontextmanager
async def shipping(
    path: Path,
    clock: ManualClock,
    into: SqliteContents | None = None,
    retention_s: float = 7.0 * DAY_S,
    bytes_max: int = 1 << 30,
    adopt: Sequence[str] = (),
    tells: bool = False,
) -> AsyncIterator[ContentShipper]:
    shipper = ContentShipper(
        path,
        into or store(path),
        clock,
        retention_s=retention_s,
        bytes_max=bytes_max,
        adopt=adopt,
        tells=tells,
        poll_s=0.01,
    )
    shipper.start()
    try:
        yield shipper
    finally:
        await shipper.stop(SOON_S)
        await shipper.close()


async def until(look: object) -> None:
    assert callable(look)
    async with asyncio.timeout(SOON_S):
        while not look():  # noqa: ASYNC110 (a test)
            await asyncio.sleep(0.005)


async def test_what_waits_becomes_rows_without_framing(tmp_path: Path) -> None:
    clock = ManualClock()
    streamed = chunk(b"data: 1\n\n") + chunk(b"data: 2\n\n") + LAST_CHUNK
    put(tmp_path, content(1, clock), content(2, clock, reply=streamed, chunked=True))
    async with shipping(tmp_path, clock) as shipper:
        told = {"state": "ok", "stored": 2, "lost": 0, "waiting": 0}
        await until(lambda: waiting(tmp_path) == 0 and shipper.details() == told)
    assert [(request, reply) for _, request, reply in rows(tmp_path)] == [
        (b"prompt", b"answer"),
        (b"prompt", b"data: 1\n\ndata: 2\n\n"),
    ]


async def test_stopping_ships_what_is_there(tmp_path: Path) -> None:
    clock = ManualClock()
    put(tmp_path, *(content(number, clock) for number in range(200)))
    async with shipping(tmp_path, clock):
        pass
    assert (len(rows(tmp_path)), waiting(tmp_path)) == (200, 0)


async def test_shipped_again_after_a_crash_it_is_stored_once(tmp_path: Path) -> None:
    """The file of a row that was committed is still there."""
    clock = ManualClock()
    each = content(1, clock)
    async with shipping(tmp_path, clock):
        for _ in range(2):
            put(tmp_path, each)
            await until(lambda: waiting(tmp_path) == 0)
    assert len(rows(tmp_path)) == 1


class Moody(SqliteContents):
    """Fails as it is told."""

    def __init__(self, path: Path) -> None:
        super().__init__(path / "books.db", migrations("sqlite"), ManualClock().wall_ns)
        self.mood: type[Exception] | None = None
        self.asked = 0
        self.poison = ""

    async def write(self, contents: Sequence[Content]) -> None:
        self.asked += 1
        if self.mood is not None:
            raise self.mood("not now")
        if any(each.request_id == self.poison for each in contents):
            raise RejectedError("never")
        await super().write(contents)


@pytest.mark.parametrize("mood", [StoreError, RuntimeError])
async def test_while_the_database_is_away_files_wait(
    tmp_path: Path, mood: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    clock, into = ManualClock(), Moody(tmp_path)
    into.mood = mood
    put(tmp_path, msgspec.structs.replace(content(1, clock), request=CANARY))
    async with shipping(tmp_path, clock, into) as shipper:
        await until(lambda: into.asked >= 3)
        assert (waiting(tmp_path), shipper.details()["state"]) == (1, "failing")
        assert shipper.tally.errors >= 2
        into.mood = None
        await until(lambda: waiting(tmp_path) == 0)
        await until(lambda: shipper.details()["state"] == "ok")
    assert len(rows(tmp_path)) == 1
    assert CANARY.decode() not in caplog.text
    assert len(caplog.records) == 2  # told once that it fails, once that it works again


async def test_what_the_database_never_takes_does_not_stop_the_rest(tmp_path: Path) -> None:
    clock, into = ManualClock(), Moody(tmp_path)
    contents = [content(number, clock) for number in range(3)]
    into.poison = contents[1].request_id
    put(tmp_path, *contents)
    async with shipping(tmp_path, clock, into) as shipper:
        await until(lambda: waiting(tmp_path) == 0)
        assert (shipper.tally.stored, shipper.tally.lost) == (2, 1)
    assert [id_ for id_, *_ in rows(tmp_path)] == [contents[0].request_id, contents[2].request_id]


async def test_a_file_that_nobody_can_read_is_removed(tmp_path: Path) -> None:
    clock = ManualClock()
    tray = Tray(tmp_path, 0, 1 << 20)
    tray.put("empty", b"", 1)
    tray.put("strange", b"\xc1", 1)
    put(tmp_path, content(1, clock), content(2, clock, reply=b"zz\r\n", chunked=True))
    async with shipping(tmp_path, clock) as shipper:
        await until(lambda: waiting(tmp_path) == 0)
        assert (shipper.tally.stored, shipper.tally.lost) == (1, 3)


async def test_it_is_kept_no_longer_than_the_retention(tmp_path: Path) -> None:
    clock = ManualClock()
    put(tmp_path, content(1, clock))
    async with shipping(tmp_path, clock) as shipper:
        await until(lambda: waiting(tmp_path) == 0)
        clock.jump(6 * DAY_S)
        put(tmp_path, content(2, clock))
        await until(lambda: shipper.tally.stored == 2)
        assert len(rows(tmp_path)) == 2
        clock.jump(DAY_S + TRIM_EVERY_S)
        await until(lambda: shipper.tally.removed == 1)
        assert len(rows(tmp_path)) == 1


async def test_while_the_database_is_away_files_get_no_older_either(tmp_path: Path) -> None:
    clock, into = ManualClock(), Moody(tmp_path)
    put(tmp_path, content(1, clock))
    clock.jump(8 * DAY_S)
    into.mood = StoreError
    async with shipping(tmp_path, clock, into):
        await until(lambda: into.asked >= 1)
    async with shipping(tmp_path, clock) as shipper:
        await until(lambda: shipper.tally.removed == 1)
    assert (waiting(tmp_path), rows(tmp_path)) == (0, [])


async def test_the_table_is_bounded_and_the_oldest_goes(tmp_path: Path) -> None:
    clock = ManualClock()
    size, bytes_max = 10_000, 1_000_000
    contents = []
    for number in range(300):
        clock.jump(1)
        contents.append(content(number, clock, reply=b"x" * (size - len(b"prompt"))))
    put(tmp_path, *contents)
    async with shipping(tmp_path, clock, bytes_max=bytes_max) as shipper:
        await until(lambda: waiting(tmp_path) == 0 and shipper.tally.removed >= 200 - 100 // TRIM_SHARE - 1)
    kept = [id_ for id_, *_ in rows(tmp_path)]
    assert len(kept) * size <= bytes_max * (1 + 1 / TRIM_SHARE) + size
    assert kept == sorted(each.request_id for each in contents)[-len(kept) :]


async def test_what_gateways_that_are_gone_left_is_stored(tmp_path: Path) -> None:
    clock = ManualClock()
    own, gone, old = (tmp_path / name for name in ("own", "gone", "old"))
    own.mkdir()
    (tmp_path / "empty").mkdir()
    put(old, content(1, clock))
    clock.jump(8 * DAY_S)
    put(own, content(2, clock))
    put(gone, *(content(number, clock) for number in range(3, 203)))
    async with shipping(own, clock, store(own), adopt=[str(tmp_path / "*")]) as shipper:
        await until(lambda: waiting(own) == waiting(gone) == waiting(old) == 0)
        put(gone, content(500, clock))
        clock.jump(ADOPT_EVERY_S)
        await until(lambda: waiting(gone) == 0)
        assert shipper.details() == {"state": "ok", "stored": shipper.tally.stored, "lost": 0, "waiting": 0}
    assert len(rows(own)) == 202
    assert not (tmp_path / "empty" / CONTENT_DIR).exists()


async def test_stopped_anywhere_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    """Cancelled after so many turns of the loop; the next one goes on."""
    clock, number = ManualClock(), 0
    for turns in range(60):
        put(tmp_path, *(content(number + each, clock) for each in range(3)))
        number += 3
        shipper = ContentShipper(tmp_path, store(tmp_path), clock, retention_s=DAY_S, bytes_max=1 << 30, poll_s=0.01)
        shipper.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await shipper.stop(0)
        await shipper.close()
    async with shipping(tmp_path, clock):
        pass
    assert (len(rows(tmp_path)), waiting(tmp_path)) == (number, 0)


async def test_nothing_is_made_where_nobody_is_captured(tmp_path: Path) -> None:
    clock = ManualClock()
    async with shipping(tmp_path, clock):
        await asyncio.sleep(0)
    assert not (tmp_path / CONTENT_DIR).exists()


# -- deleting and reading, as an operator does --


def settings(tmp_path: Path) -> list[str]:
    file = tmp_path / "edgegw.yaml"
    file.write_text(
        "version: 1\n"
        f"server: {{state_dir: {tmp_path}}}\n"
        f"storage: {{database_url: 'sqlite:///{tmp_path}/books.db'}}\n"
        "providers: {local: {kind: openai-compatible, base_url: 'http://127.0.0.1:1/v1'}}\n"
    )
    return ["--config", str(file)]


def run(tmp_path: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["content", words[0], *settings(tmp_path), *words[1:]])
    return result.exit_code, result.output


def everything(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def stored(tmp_path: Path, *contents: Content) -> None:
    async def write() -> None:
        into = store(tmp_path)
        await into.write(contents)
        await into.close()

    asyncio.run(write())


def test_deleting_leaves_nothing_behind(tmp_path: Path) -> None:
    """Rows of all sizes and files that wait; the database open in another process's place, its log in use."""
    clock = ManualClock()
    secret = [content(number, clock, "acme", reply=CANARY * (1 + 800 * number)) for number in range(1, 6)]
    other = [content(number, clock, "beta", reply=b"other-secret") for number in range(6, 9)]
    with closing(sqlite3.connect(tmp_path / "books.db")):
        stored(tmp_path, *secret[:4], *other[:2])
        put(tmp_path, secret[4], other[2])
        assert CANARY in everything(tmp_path)
        assert run(tmp_path, "delete", "--tenant", "acme") == (0, "deleted the content of 5 requests\n")
        assert CANARY not in everything(tmp_path)
    assert len(rows(tmp_path)) == 2
    assert waiting(tmp_path) == 1
    assert run(tmp_path, "delete", other[0].request_id) == (0, "deleted the content of 1 request\n")
    assert run(tmp_path, "delete", "--before", "2020-01-01", "--tenant", "beta")[1].startswith(
        "deleted the content of 0"
    )
    assert run(tmp_path, "delete", "--before", "1m", "--tenant", "beta")[1].startswith("deleted the content of 2")
    assert b"other-secret" not in everything(tmp_path)


def test_of_a_file_that_several_share_only_the_chosen_goes(tmp_path: Path) -> None:
    clock = ManualClock()
    contents = [
        content(number, clock, "ab"[number % 2], reply=CANARY if number % 2 else b"other") for number in range(6)
    ]
    Tray(tmp_path, 0, 1 << 20).put("first", msgspec.msgpack.encode(contents), len(contents))
    stored(tmp_path)
    assert run(tmp_path, "delete", "--tenant", "b") == (0, "deleted the content of 3 requests\n")
    assert CANARY not in everything(tmp_path)
    assert run(tmp_path, "delete", "--tenant", "a") == (0, "deleted the content of 3 requests\n")
    assert waiting(tmp_path) == 0


def test_what_is_on_its_way_to_a_span_is_deleted_as_well(tmp_path: Path) -> None:
    clock = ManualClock()
    told = [content(number, clock, "ab"[number % 2], reply=CANARY if number % 2 else b"other") for number in range(4)]
    Tray(tmp_path, 0, 1 << 20, TOLD_DIR).put("first", msgspec.msgpack.encode(told), len(told))
    put(tmp_path, told[1])  # kept as well
    stored(tmp_path, content(9, clock))
    assert run(tmp_path, "delete", "--tenant", "b") == (0, "deleted the content of 2 requests\n")
    assert CANARY not in everything(tmp_path)
    [left] = [path.read_bytes() for path in Trays(tmp_path, TOLD_DIR).all()]
    assert [each.tenant for each in msgspec.msgpack.decode(left, type=list[Content])] == ["a", "a"]


@pytest.mark.parametrize("tells", [False, True])
async def test_what_nobody_fetches_for_a_span_is_removed(tmp_path: Path, tells: bool) -> None:
    """At once where nothing is told any more, else when it is too late; of other gateways only then."""
    clock = ManualClock()
    mine, other = tmp_path / "mine", tmp_path / "other"
    late_ns = clock.wall_ns() - int((TOO_LATE_S + 1) * 1e9)
    for state_dir in (mine, other):
        tray = Tray(state_dir, 0, 1 << 20, TOLD_DIR)
        for name, written_ns in (("fresh", clock.wall_ns() - 1), ("late", late_ns)):
            tray.put(name, b"x", 1)
            os.utime(state_dir / TOLD_DIR / "0" / f"{name}.msgpack", ns=(written_ns, written_ns))
    async with shipping(mine, clock, store(tmp_path), adopt=[str(other)], tells=tells):
        await until(lambda: len(list(Trays(other, TOLD_DIR).all())) == 1)
        await until(lambda: [path.stem for path in Trays(mine, TOLD_DIR).all()] == (["fresh"] if tells else []))


def test_deleting_everything_has_to_be_said(tmp_path: Path) -> None:
    code, said = run(tmp_path, "delete")
    assert code == 2
    assert "Say whose content" in said
    assert run(tmp_path, "delete", "--before", "soon")[0] == 2


def test_deleting_waits_for_the_shipper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "HOLD_WAIT_S", 0.05)
    stored(tmp_path, content(1, ManualClock()))
    put(tmp_path, content(2, ManualClock()))
    with Trays(tmp_path).held() as held:
        assert held
        code, said = run(tmp_path, "delete", "--tenant", "t")
    assert code == 1
    assert "holds the files" in said
    assert run(tmp_path, "delete", "--tenant", "t") == (0, "deleted the content of 2 requests\n")


async def test_the_shipper_waits_for_the_deleting(tmp_path: Path) -> None:
    clock = ManualClock()
    put(tmp_path, content(1, clock))
    async with shipping(tmp_path, clock) as shipper:
        await until(lambda: shipper.tally.stored == 1)
        holding = False
        while not holding:
            with Trays(tmp_path).held() as holding:
                if holding:
                    put(tmp_path, content(2, clock))
                    await asyncio.sleep(0.05)  # several rounds of it
                    assert shipper.tally.stored == 1
            await asyncio.sleep(0)
        await until(lambda: shipper.tally.stored == 2)


def test_content_is_shown(tmp_path: Path) -> None:
    clock = ManualClock()
    stream = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\ndata: [DONE]\n\n'
    one = content(1, clock, reply=stream, stream=True, request_cut=True)
    stored(tmp_path, one)
    code, said = run(tmp_path, "show", one.request_id)
    assert code == 0
    assert said.splitlines()[:3] == [
        f"request {one.request_id}  tenant t  kept 2023-11-14 22:13:20.000 (UTC)",
        "--- prompt, 6 bytes, cut here",
        "prompt",
    ]
    assert '"content": "Hi"' in said
    assert "data: [DONE]" not in said
    assert "data: [DONE]" in run(tmp_path, "show", "--raw", one.request_id)[1]
    told = msgspec.json.decode(run(tmp_path, "show", "--json", one.request_id)[1])
    assert (told["reply"], told["stream"], told["request_cut"]) == (stream.decode(), True, True)


def test_content_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no database" in run(tmp_path, "show", "x")[1]
    assert not (tmp_path / "books.db").exists()
    stored(tmp_path, content(1, ManualClock()))
    code, said = run(tmp_path, "show", "x")
    assert (code, "no content is kept of request x" in said) == (1, True)


def test_what_is_chosen_must_fit_altogether() -> None:
    each = content(1, ManualClock())
    assert Chosen(tenant="t").fits(each)
    assert not Chosen(tenant="t", request_id="other").fits(each)
    assert not Chosen(tenant="t", before_ns=each.stored_ns).fits(each)
    assert Chosen(before_ns=each.stored_ns + 1).clause("${}") == ("stored_ns < $1", [each.stored_ns + 1])
    assert Chosen("i", "t", 5).clause("${}") == ("request_id = $1 AND tenant = $2 AND stored_ns < $3", ["i", "t", 5])
