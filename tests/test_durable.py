"""`storage.journal.sync`: what is on the disk when, seen at the calls that bring it there and in what the kernel says
of a worker's pages."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger_traces import WALL_NS, life_dir, make_attempt, make_exchange, open_journal, play, read_all

from edgegw.errand import Errand
from edgegw.errors import GatewayError
from edgegw.exchange import Exchange
from edgegw.ledger import life as life_module
from edgegw.ledger import syncing as syncing_module
from edgegw.ledger.durable import Durable
from edgegw.ledger.journal import Journal
from edgegw.ledger.record import Begin, End, Record
from edgegw.ledger.room import Trouble
from edgegw.ledger.segment import SEGMENT_BYTES_MIN, segment_name
from edgegw.ledger.syncing import Syncer

WAIT_S = 10.0


class Disk:
    """Stands in for the disk: what was synced is copied, as it would be found after the machine died."""

    def __init__(self, survived: Path) -> None:
        self.survived = survived
        self.error: OSError | None = None
        self.calls: list[str] = []
        self.held = threading.Event()
        self.held.set()

    def datasync(self, fd: int) -> None:
        self.held.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        size = os.fstat(fd).st_size
        copy = self.survived / "journal" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(os.pread(fd, size, 0))
        self.calls.append(path.name)

    def sync_directory(self, path: Path) -> None:
        self.calls.append(f"{path.name}/")

    def records(self) -> list[Record]:
        """What is read of what survived."""
        return read_all(self.survived)[0]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path / "survived")
    for module in (life_module, syncing_module):
        monkeypatch.setattr(module, "datasync", disk.datasync)
        monkeypatch.setattr(module, "sync_directory", disk.sync_directory)
    return disk


def syncing_journal(state_dir: Path) -> Journal:
    state_dir.mkdir()
    return Journal.open(
        state_dir, 0, wall_ns=WALL_NS, pid=7, segment_bytes=SEGMENT_BYTES_MIN, bytes_max=1 << 30, syncs=True
    )


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (what happens in a thread has no event)
            await asyncio.sleep(0.001)


class Request:
    """An exchange that waits for the disk as the gateway does, and what it has reached: `seen` is what would have
    survived by then."""

    def __init__(self, journal: Journal, durable: Durable, number: int, disk: Disk | None = None) -> None:
        self.exchange: Exchange = make_exchange(number)
        self.reached: list[str] = []
        self.seen: list[list[Record]] = []
        self._disk = disk
        self._journal = journal
        self._durable = durable
        self.errand = Errand(self._run(), asyncio.get_running_loop())
        self.errand.step()

    async def _run(self) -> None:
        try:
            self._journal.begin(self.exchange, make_attempt(self.exchange))
            await self._durable.before_upstream()
            self._reach("upstream")
        except GatewayError as error:
            self.reached.append(error.message)
        except asyncio.CancelledError:
            self.reached.append("cancelled")
        self._journal.end(self.exchange)
        await self._durable.before_client()
        self._reach("client")

    def _reach(self, what: str) -> None:
        self.reached.append(what)
        if self._disk is not None:
            self.seen.append(self._disk.records())

    @property
    def over(self) -> bool:
        return "client" in self.reached


async def test_begin_is_on_the_disk_before_the_upstream_and_end_before_the_client(tmp_path: Path, disk: Disk) -> None:
    journal = syncing_journal(tmp_path / "state")
    durable = Durable(journal, asyncio.get_running_loop(), refuses=True)
    disk.held.clear()
    request = Request(journal, durable, 1, disk)
    assert disk.calls == request.reached == []
    disk.held.set()
    await settled(lambda: request.over)
    assert request.reached == ["upstream", "client"]
    assert [type(records[-1]) for records in request.seen] == [Begin, End]
    names = [f"{life_dir(tmp_path / 'state').name}/", "journal/", "state/"]
    assert disk.calls == ["00000001.seg", *names, "00000001.seg"]  # names only once
    durable.close()
    journal.close()


async def test_those_who_come_during_a_sync_share_the_next(tmp_path: Path, disk: Disk) -> None:
    journal = syncing_journal(tmp_path / "state")
    durable = Durable(journal, asyncio.get_running_loop(), refuses=True)
    disk.held.clear()
    requests = [Request(journal, durable, number) for number in range(40)]
    disk.held.set()
    await settled(lambda: all(request.over for request in requests))
    assert len([call for call in disk.calls if call.endswith(".seg")]) <= 6
    ended = {record.id for record in disk.records() if isinstance(record, End)}
    assert ended == {request.exchange.id for request in requests}
    durable.close()
    journal.close()


async def test_segments_that_are_left_behind_are_synced_as_well(tmp_path: Path, disk: Disk) -> None:
    journal = syncing_journal(tmp_path / "state")
    durable = Durable(journal, asyncio.get_running_loop(), refuses=True)
    for number in range(300):
        play(journal, number)
    request = Request(journal, durable, 999)
    await settled(lambda: request.over)
    assert [record.seq for record in disk.records()] == [*range(1, 901), 901, 902, 902]
    durable.close()
    journal.close()


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_disk_that_fails_ends_in_the_policy_and_is_counted(tmp_path: Path, disk: Disk, refuses: bool) -> None:
    journal = syncing_journal(tmp_path / "state")
    durable = Durable(journal, asyncio.get_running_loop(), refuses=refuses)
    disk.error = OSError(errno.EIO, "Input/output error")
    request = Request(journal, durable, 1)
    await settled(lambda: request.over)
    assert request.reached == ["The disk of the ledger fails." if refuses else "upstream", "client"]
    assert journal.unsynced == 2
    assert (journal.sync_trouble or Trouble("full", "")).reason == "the disk fails"
    disk.error = None
    again = Request(journal, durable, 2)
    await settled(lambda: again.over)
    assert again.reached == ["upstream", "client"]
    assert journal.sync_trouble is None
    assert "journal/" in disk.calls  # the names are synced by whoever comes through first
    durable.close()
    journal.close()


async def test_who_is_cancelled_while_waiting_has_an_end_on_the_disk_all_the_same(tmp_path: Path, disk: Disk) -> None:
    journal = syncing_journal(tmp_path / "state")
    durable = Durable(journal, asyncio.get_running_loop(), refuses=True)
    disk.held.clear()
    request = Request(journal, durable, 1)
    request.errand.cancel()
    assert request.reached == ["cancelled"]  # before anything went upstream
    request.errand.cancel()
    request.errand.cancel()
    assert not request.over
    disk.held.set()
    await settled(lambda: request.over)
    assert isinstance(disk.records()[-1], End)
    durable.close()
    journal.close()


def test_a_round_brings_all_journals_to_the_disk(tmp_path: Path, disk: Disk) -> None:
    state_dir = tmp_path / "state"
    syncer = Syncer(state_dir, 1.0)
    syncer.sync_now()  # nothing is there yet
    journal = open_journal(state_dir)
    play(journal, 1)
    syncer.sync_now()
    names = [f"{life_dir(state_dir).name}/", "journal/", "state/"]
    assert disk.calls == ["life.json", "00000001.seg", "00000002.seg", *names]
    assert [record.seq for record in disk.records()] == [1, 2, 3]
    disk.calls.clear()
    syncer.sync_now()
    assert disk.calls == ["00000001.seg"]  # the spare has nothing new, the names are there
    for number in range(300):
        play(journal, number)
    syncer.sync_now()
    assert [record.seq for record in disk.records()] == list(range(1, 904))
    disk.calls.clear()
    syncer.sync_now()
    assert len([call for call in disk.calls if call.endswith(".seg")]) == 1  # what is sealed is there for good
    (life_dir(state_dir) / segment_name(1)).unlink()
    syncer.sync_now()
    journal.close()
    syncer.close()


def test_what_the_machine_loses_is_at_most_what_came_after_the_last_round(tmp_path: Path, disk: Disk) -> None:
    """The pages of a segment survive, or not, one by one: whatever else survives, what was synced is read."""
    state_dir = tmp_path / "state"
    syncer = Syncer(state_dir, 1.0)
    journal = open_journal(state_dir)
    for number in range(100):
        play(journal, number)
    syncer.sync_now()
    synced = len(disk.records())
    for number in range(100, 130):
        play(journal, number)
    written = (life_dir(state_dir) / segment_name(2)).read_bytes()
    (survived,) = (tmp_path / "survived" / "journal").iterdir()
    before = (survived / segment_name(2)).read_bytes()
    for page in range(0, len(written), 4096):  # one page more than was synced, any one
        torn = before[:page] + written[page : page + 4096] + before[page + 4096 :]
        (survived / segment_name(2)).write_bytes(torn)
        found = [record.seq for record in disk.records()]
        assert found[:synced] == list(range(1, synced + 1))
        assert found == sorted(set(found))
    journal.close()
    syncer.close()


async def test_a_disk_that_fails_in_a_round_is_asked_in_the_next(tmp_path: Path, disk: Disk) -> None:
    state_dir = tmp_path / "state"
    syncer = Syncer(state_dir, 1.0)
    journal = open_journal(state_dir)
    disk.error = OSError(errno.EIO, "Input/output error")
    await syncer.sync()
    assert (syncer.syncs, syncer.errors, syncer.trouble) == (0, 1, Trouble("failing", "the disk fails"))
    disk.error = None
    play(journal, 1)
    await syncer.sync()
    assert (syncer.syncs, syncer.errors, syncer.trouble) == (1, 1, None)
    assert len(disk.records()) == 3
    journal.close()
    syncer.close()


_WRITER = """
import sys
from pathlib import Path
from ledger_traces import open_journal, play
journal = open_journal(Path(sys.argv[1]))
for number in range(20):
    play(journal, number)
print("written", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """Quick tests have their other files in memory."""
    with tempfile.TemporaryDirectory(prefix="edgegw-") as name:
        yield Path(name)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not say which pages are dirty")
def test_a_sync_from_another_process_writes_what_a_worker_has_in_its_pages(disk_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(disk_path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == b"written\n"
        before = dirty_kib(writer.pid)
        syncer = Syncer(disk_path, 1.0)
        syncer.sync_now()
        after = dirty_kib(writer.pid)
        syncer.close()
        writer.stdin.close()
    assert before > 0
    if is_in_memory(disk_path):
        pytest.skip("this file system has no disk")
    assert after == 0


def dirty_kib(pid: int) -> int:
    """What a process has written into its mapped segments and the disk has not."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.split()[0].count("-") == 1 and not line.split()[0].endswith(":"):
            ours = line.endswith(".seg")
        elif ours and line.startswith(("Private_Dirty:", "Shared_Dirty:")):
            total += int(line.split()[1])
    return total


def is_in_memory(path: Path) -> bool:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    _, kind = max((mount for mount in mounts if str(path).startswith(mount[0])), key=lambda mount: len(mount[0]))
    return kind in ("tmpfs", "ramfs")
