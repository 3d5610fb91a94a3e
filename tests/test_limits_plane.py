"""Workers and a control process in one loop, with a real channel between them and a real authority in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from limits_rig import DAY, PAR, PlaneWorker, T, plane, until

from edgegw.errors import GatewayError
from edgegw.limits import accounts as accounts_module
from edgegw.limits.authority import MemoryAuthority
from edgegw.limits.limiter import Reservation
from edgegw.limits.words import Offer


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is counted: a busy machine must not look like an absent authority."""
    monkeypatch.setattr(accounts_module, "ANSWER_WITHIN_S", 5.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("workers", [1, 4])
async def test_of_100_parallel_first_requests_with_room_for_one_one_is_admitted(tmp_path: Path, workers: int) -> None:
    async with plane(tmp_path, {"tpm": 1000}) as house:
        crew = [await house.worker() for _ in range(workers)]
        asks = [crew[number % workers].reserve(600) for number in range(100)]
        async with asyncio.timeout(5):
            results = await asyncio.gather(*asks, return_exceptions=True)
        assert sum(isinstance(result, Reservation) for result in results) == 1
        refused = [result for result in results if not isinstance(result, Reservation)]
        assert all(isinstance(error, GatewayError) and error.kind == "rate_limited" for error in refused)
        assert not any(worker.degraded for worker in crew)


@pytest.mark.usefixtures("patient")
async def test_many_workers_admit_what_the_limit_says_and_use_it_up(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 60_000}) as house:
        crew = [await house.worker() for _ in range(4)]
        started_s, admitted = time.monotonic(), 0

        async def client(worker: PlaneWorker) -> None:
            nonlocal admitted
            for number in range(100):
                try:
                    reservation = worker.now(300) or await worker.reserve(300)
                except GatewayError:
                    return
                admitted += 200
                if number % 3 == 0:
                    await asyncio.sleep(0)
                reservation.settle(200)

        async with asyncio.timeout(20):
            await asyncio.gather(*(client(crew[number % 4]) for number in range(32)))
        elapsed_s = time.monotonic() - started_s
        assert admitted <= 60_000 + 1000 * elapsed_s
        assert admitted >= 0.94 * 60_000, "two percent per worker may lie in its hand, less near the end"
        await until(lambda: not any(worker.accounts._rotation for worker in crew))

        def unaccounted() -> float:
            return 60_000 - admitted + 1000 * (time.monotonic() - started_s) - house.authority.level(T)

        await until(lambda: abs(unaccounted()) <= 200)  # what was given back may still be on its way


async def test_a_restarted_authority_does_not_forget_what_was_used(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 6000}) as house:
        worker = await house.worker()
        (await worker.reserve(5000)).settle(5000)
        await house.server.close()
        await until(lambda: worker.degraded)
        with pytest.raises(GatewayError):
            await worker.reserve(1500)
        await worker.reserve(400)
        await house.start_control()
        await until(lambda: not worker.degraded)
        await until(lambda: house.authority.level(T) < 6000)
        assert 600 <= house.authority.level(T) <= 600 + 100 * 5


async def test_the_refusal_of_a_dead_authority_comes_at_once(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 600}) as house:
        worker = await house.worker()
        await house.server.close()
        await until(lambda: worker.degraded)
        started_s = time.monotonic()
        for _ in range(100):
            with contextlib.suppress(GatewayError):
                await worker.reserve(100)
        assert time.monotonic() - started_s < 1.0, "nobody waits while it is known to be away"


async def test_a_frozen_authority_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thawed = asyncio.Event()

    class Frozen(MemoryAuthority):
        async def lease(self, meter: str, want: int, need: int) -> Offer:
            await thawed.wait()
            return await super().lease(meter, want, need)

    async with plane(tmp_path, {"tpm": 6000}) as house:
        worker = await house.worker()
        monkeypatch.setattr(house.authority, "__class__", Frozen)
        waits_s = []
        for _ in range(20):
            started_s = time.monotonic()
            await worker.reserve(100)
            waits_s.append(time.monotonic() - started_s)
        assert waits_s[0] < 0.5
        assert sum(waits_s[1:]) < 0.5, "one waits 50 ms, not all of them"
        assert worker.degraded
        thawed.set()
        await until(lambda: not worker.degraded)
        await until(lambda: house.authority.level(T) < 4500)
        assert house.authority.level(T) >= 3900


# -- what does not refill is exact --


@pytest.mark.usefixtures("patient")
async def test_a_worker_that_leaves_in_peace_gives_back_what_it_did_not_spend_and_no_more(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 10**9, "day": 100_000}) as house:
        worker = await house.worker()
        for _ in range(20):
            (await worker.reserve(1000)).settle(700)
        open_ = await worker.reserve(1000)
        worker.limiter.close()
        await worker.client.close()
        await until(lambda: not house.server.links)
        assert house.authority.level(DAY) == 100_000 - 20 * 700 - open_.tokens


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("settled", ["before", "while it is broken", "after"])
async def test_a_broken_channel_changes_nothing_of_what_is_left(tmp_path: Path, settled: str) -> None:
    async with plane(tmp_path, {"tpm": 10**9, "par": 3, "day": 100_000}) as house:
        worker = await house.worker()
        (await worker.reserve(1000)).settle(1000)
        reservation = await worker.reserve(1000)
        for _ in range(5):
            if settled == "before":
                reservation.settle(400)
            worker.cut()
            await until(lambda: worker.degraded)
            if settled == "while it is broken":
                reservation.settle(400)
            await until(lambda: not worker.degraded)
        if settled == "after":
            await until(lambda: house.authority.level(PAR) == 2)
            reservation.settle(400)
        await until(lambda: house.authority.level(DAY) == 100_000 - 1400)
        await until(lambda: house.authority.level(PAR) == 3)
        assert house.server.unspent() == {}


@pytest.mark.usefixtures("patient")
async def test_a_death_loses_nothing_and_admits_nothing_twice(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 10**9, "par": 50, "day": 1_000_000}) as house:
        used = 0
        for number in range(10):
            worker = await house.worker()
            for step in range(number):
                reservation = await worker.reserve(1000)
                used += 1000 if step % 3 == 0 else 600
                if step % 3:
                    reservation.settle(600)  # the others run when it dies
            worker.tally = list(worker.tally)  # it writes no more
            worker.accounts._open = False
            worker.cut()
            await until(lambda: not house.server.links)
            await worker.client.close()
            assert house.authority.level(DAY) == 1_000_000 - used
            assert house.authority.level(PAR) == 50


@pytest.mark.usefixtures("patient")
async def test_slots_in_use_are_told_to_a_control_process_that_is_new(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 10**9, "par": 8}) as house:
        crew = [await house.worker() for _ in range(2)]
        running = [await worker.reserve(10) for worker in crew for _ in range(3)]
        assert house.authority.level(PAR) == 2
        await house.server.close()
        await until(lambda: all(worker.degraded for worker in crew))
        running.pop(0).settle(10)
        fourth = crew[1].now(10)
        assert fourth is not None, "its share is four, and three ran"
        assert crew[1].now(10) is None
        running.append(fourth)
        await house.start_control()
        await until(lambda: not any(worker.degraded for worker in crew))
        await until(lambda: house.authority.level(PAR) == 2)
        for reservation in running:
            reservation.settle(10)
        await until(lambda: house.authority.level(PAR) == 8)


@pytest.mark.usefixtures("patient")
async def test_one_after_the_other_is_never_one_too_many_whichever_worker_it_reaches(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 10**9, "par": 1}) as house:
        crew = [await house.worker() for _ in range(4)]
        for number in range(40):
            reservation = await crew[number % 4].reserve(10)
            with pytest.raises(GatewayError) as caught:
                await crew[(number + 1) % 4].reserve(10)
            assert "concurrent requests: Limit 1, Used 1." in caught.value.message
            reservation.settle(10)
            await asyncio.sleep(0.002)  # until its client has read the reply and asks again
            crew[(number + 1) % 4].allowance.accounts[
                1
            ].refused_until_s = 0.0  # it does not wait for 20 ms, as it should


@pytest.mark.usefixtures("patient")
async def test_many_workers_never_run_more_at_once_than_there_are_slots(tmp_path: Path) -> None:
    async with plane(tmp_path, {"tpm": 10**9, "par": 5}) as house:
        crew = [await house.worker() for _ in range(4)]
        at_once = most = served = 0

        async def client(worker: PlaneWorker) -> None:
            nonlocal at_once, most, served
            for _ in range(60):
                try:
                    reservation = worker.now(10) or await worker.reserve(10)
                except GatewayError:
                    await asyncio.sleep(0.001)
                    continue
                at_once += 1
                most, served = max(most, at_once), served + 1
                await asyncio.sleep(0.001)
                at_once -= 1
                reservation.settle(10)

        async with asyncio.timeout(20):
            await asyncio.gather(*(client(crew[number % 4]) for number in range(20)))
        assert most <= 5
        assert served > 100
        await until(lambda: house.authority.level(PAR) == 5)


async def test_workers_know_among_how_many_a_limit_is_shared_whatever_comes_and_goes(tmp_path: Path) -> None:
    """While the control process is away each of them admits its share, and those of other replicas admit theirs."""
    async with plane(tmp_path, {"tpm": 60_000}) as house:
        house.authority.replicas = 10
        first, second = await house.worker(), await house.worker()
        await until(lambda: first.accounts._shares == second.accounts._shares == 20)
        house.authority.replicas = 30
        await first.reserve(100)
        assert first.accounts._shares == 60, "told with the first answer"
        await second.client.close()
        house.workers.remove(second)
        await until(lambda: first.accounts._shares == 30)
