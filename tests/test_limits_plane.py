"""Workers and a control process in one loop, with a real channel between them and a real authority in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from limits_rig import PlaneWorker, T, plane, until

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
async def test_many_crewadmit_what_the_limit_says_and_use_it_up(tmp_path: Path) -> None:
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
