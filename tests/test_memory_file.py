"""What the memory authority knows, over restarts: days and minutes, leases in hand, and files that are bad."""

from __future__ import annotations

import asyncio
from math import inf, nan
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits_rig import DAY, MONTH, PAR, RPM, T, Table, meter, until

from edgegw.clock import ManualClock
from edgegw.limits import memory_file
from edgegw.limits.authority import MemoryAuthority, Remembered
from edgegw.limits.memory_file import FILE_NAME, MemoryFile

LIMITS = {"tpm": 6000, "rpm": 60, "par": 4, "day": 100_000, "month": 1_000_000}
LEFT_S = 6_400  # of the day at which the clock starts: 2023-11-14, 22:13:20 UTC


class House:
    """One control process after the other, with the same file. Monotonic clocks begin anew with the machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rules = Table(LIMITS)
        self.wall = ManualClock()
        self.held: dict[str, int] = {}
        self.restart()

    def restart(self, away_s: float = 0.0, monotonic_s: float = 50.0) -> None:
        self.wall.jump(away_s)
        self.clock = ManualClock(monotonic_s, self.wall.wall_ns())
        self.authority = MemoryAuthority(self.rules.limit, self.clock)
        self.file = MemoryFile(self.path, self.authority, lambda: self.held)
        self.file.load()

    def jump(self, seconds: float) -> None:
        self.clock.jump(seconds)
        self.wall.jump(seconds)

    async def use(self, **amounts: int) -> None:
        for code, amount in amounts.items():
            assert (await self.authority.lease(meter(code), amount, amount)).granted == amount

    def levels(self) -> dict[str, int]:
        return {code: self.authority.level(meter(code)) for code in LIMITS}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("monotonic_s", [0.0, 50.0, 1e6])
async def test_days_months_and_minutes_outlive_a_restart(house: House, monotonic_s: float) -> None:
    await house.use(tpm=6000, rpm=30, par=3, day=40_000, month=70_000)
    house.file.save()
    house.restart(away_s=10.0, monotonic_s=monotonic_s)
    assert house.levels() == {
        "tpm": 1000, "rpm": 40, "par": 4, "day": 60_000, "month": 930_000
    }, "minutes have refilled for ten seconds, and slots are counted by who holds them"  # fmt: skip
    house.jump(60)
    assert house.levels()["tpm"] == 6000


async def test_a_day_that_ended_while_nobody_was_there_is_over_and_its_month_is_not(house: House) -> None:
    await house.use(day=100_000, month=100_000)
    house.file.save()
    house.restart(away_s=LEFT_S - 1)
    assert (house.levels()["day"], house.levels()["month"]) == (0, 900_000)
    house.file.save()
    house.restart(away_s=2)
    assert (house.levels()["day"], house.levels()["month"]) == (100_000, 900_000)


async def test_leases_in_hand_are_counted_once(house: House) -> None:
    await house.use(day=1000, tpm=1000)
    house.held = {DAY: 300, T: 300, RPM: 5, PAR: 2}
    house.file.save()
    assert house.levels()["day"] == 99_000, "asking what is in hand gives nothing back"
    house.restart()
    assert (house.levels()["day"], house.levels()["tpm"]) == (99_300, 5300)
    house.authority.spent(DAY, 300)  # they were spent meanwhile, and the worker says so
    assert house.levels()["day"] == 99_000


async def test_a_debt_in_hand_is_remembered_too(house: House) -> None:
    await house.use(day=1000)
    house.held = {DAY: -40}
    house.file.save()
    house.restart()
    assert house.levels()["day"] == 98_960


async def test_what_workers_remember_beyond_the_file_counts_once(house: House) -> None:
    await house.use(day=1000)
    house.file.save()
    house.restart()
    house.authority.recall(DAY, 98_500)  # 500 were leased after the file was written
    house.authority.recall(DAY, 98_700)
    assert house.levels()["day"] == 98_500
    house.authority.recall(DAY, 99_500)  # less than the file knows
    assert house.levels()["day"] == 98_500


async def test_another_limit_after_the_restart_forgets_nothing(house: House) -> None:
    await house.use(day=40_000, tpm=6000)
    house.file.save()
    house.rules.limits |= {"day": 50_000, "tpm": 12_000}
    house.restart()
    assert (house.levels()["day"], house.levels()["tpm"]) == (10_000, 6000)


async def test_a_clock_that_was_set_back_meanwhile_refills_nothing(house: House) -> None:
    await house.use(tpm=6000, day=1000)
    house.file.save()
    house.restart(away_s=-3600)
    assert (house.levels()["tpm"], house.levels()["day"]) == (0, 99_000)


@given(
    st.lists(st.tuples(st.sampled_from(["tpm", "day", "month"]), st.integers(0, 3000), st.floats(0, 30)), max_size=30),
    st.sets(st.integers(0, 29)),
)
async def test_restarts_admit_nothing_that_one_process_would_not(
    asks: list[tuple[str, int, float]], restarts: set[int]
) -> None:
    """The authority of many lives, each told what the one before remembered, against one that lived on."""
    wall = ManualClock()
    rules = Table(LIMITS)
    steady, current = MemoryAuthority(rules.limit, wall), MemoryAuthority(rules.limit, wall)
    for number, (code, amount, pause_s) in enumerate(asks):
        wall.jump(pause_s)
        if number in restarts:
            kept = msgspec.msgpack.decode(msgspec.msgpack.encode(current.remember({})), type=list[Remembered])
            current = MemoryAuthority(rules.limit, wall)
            current.restore(kept)
        offers = [(await authority.lease(meter(code), amount, 0)).granted for authority in (steady, current)]
        lost = 1 + len(restarts) if code == "tpm" else 0  # a part of a token for each restart, which refills
        assert offers[0] - lost <= offers[1] <= offers[0] + lost


# -- the file --


def packed(*entries: object) -> bytes:
    return msgspec.msgpack.encode(entries)


@pytest.mark.parametrize(("content", "told"), [
    (b"", True), (b"\xc1", True), (b"garbage", True), (msgspec.msgpack.encode(7), True), (packed([T, 1]), True),
    (packed([T, "9", 1, 0.0]), True), (packed(["nothing", 1, 1, 0.0]), True), (packed([DAY, 9, 1, 1e300]), True),
    (packed([MONTH, 9, 1, inf]), True), (packed([T, 9, 1, nan]), False), (packed([T, 9, 1, -1e300]), False),
])  # fmt: skip
async def test_a_bad_file_is_logged_and_written_anew(
    house: House, content: bytes, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (house.path / FILE_NAME).write_bytes(content)
    house.restart()
    assert ("what was used of the limits before is not known" in caplog.text) == told
    assert (await house.authority.lease(meter("day", "u"), 1000, 1000)).granted == 1000
    house.file.save()
    house.restart()
    assert house.authority.level(meter("day", "u")) == 99_000


def test_without_a_file_everything_is_there_and_none_is_written_for_nothing(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.file.save()
    assert list(house.path.iterdir()) == []
    assert house.levels() == LIMITS
    assert caplog.text == ""


async def test_what_has_refilled_is_forgotten_in_the_file(house: House) -> None:
    await house.use(tpm=100)
    house.file.save()
    house.jump(60)
    house.file.save()
    assert msgspec.msgpack.decode((house.path / FILE_NAME).read_bytes()) == []
    written_ns = (house.path / FILE_NAME).stat().st_mtime_ns
    house.file.save()
    assert (house.path / FILE_NAME).stat().st_mtime_ns == written_ns, "nothing new"


async def test_a_disk_that_is_full_is_told_once_and_harms_nobody(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.use(day=100)
    (house.path / "limits.new").mkdir()
    house.file.save()
    house.file.save()
    assert caplog.text.count("cannot be kept") == 1
    (house.path / "limits.new").rmdir()
    house.file.save()
    house.restart()
    assert house.levels()["day"] == 99_900


async def test_it_is_saved_by_itself(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_file, "SAVE_EVERY_S", 0.001)
    await house.use(month=5)
    task = asyncio.create_task(house.file.run())
    await until((house.path / FILE_NAME).exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    house.restart()
    assert house.levels()["month"] == 999_995
