"""What can be done to a gateway and to its database, at moments that the dice choose, and how often it is done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from load.books import Books, in_thread
from load.crowd import Crowd
from load.processes import Database, Gateway, Simulator

Kind = Literal["sqlite", "postgres"]

MOMENT_S = (0.05, 0.5)  # from one fault to the next, by the dice
# A child that dies young is started again ever later; a gateway that is stopped and started in between forgets that.
KILLS_IN_A_ROW = 5
SETTLE_S = 60.0  # for what waits in the journal, when everything works again


@dataclass(slots=True)
class Stage:
    """Everything that a fault may lay hands on."""

    gateway: Gateway
    simulator: Simulator
    crowd: Crowd
    books: Books
    dice: random.Random
    pause_s: float  # how long PostgreSQL stays away
    kills: int = 0

    @property
    def database(self) -> Database:
        assert self.books.database is not None
        return self.books.database

    async def moment(self) -> None:
        await asyncio.sleep(self.dice.uniform(*MOMENT_S))

    async def soon_restarted(self) -> None:
        """Now and then, so that what dies young is not started ever later."""
        self.kills += 1
        if self.kills % KILLS_IN_A_ROW == 0:
            await restart(self)


async def until(what: str, look: Callable[[], bool], within_s: float = SETTLE_S) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not await in_thread(look):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {within_s:g} s: {what}") from None


def processes(gateway: Gateway) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return gateway.processes()
    return {"control": None, "workers": {}}


def signalled(pid: int | None, number: signal.Signals) -> bool:
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


async def kill_a_worker(stage: Stage) -> None:
    await stage.moment()
    await until("a worker lives", lambda: bool(processes(stage.gateway)["workers"]))
    workers = list(processes(stage.gateway)["workers"].values())
    signalled(stage.dice.choice(workers), signal.SIGKILL)
    await stage.soon_restarted()


async def kill_the_control_process(stage: Stage) -> None:
    await stage.moment()
    await until("the control process lives", lambda: bool(processes(stage.gateway)["control"]))
    signalled(processes(stage.gateway)["control"], signal.SIGKILL)
    await stage.soon_restarted()


async def kill_all(stage: Stage) -> None:
    await stage.moment()
    await in_thread(stage.gateway.kill)
    await in_thread(stage.gateway.start_again)


async def restart(stage: Stage) -> None:
    """SIGTERM, and a new start."""
    await stage.moment()
    code, said = await in_thread(stage.gateway.stop)
    if code:
        raise AssertionError(f"the gateway ended with {code}:\n{said[-2000:]}")
    await in_thread(stage.gateway.start_again)


async def reload(stage: Stage) -> None:
    """SIGHUP: new workers, while the old ones end what they have begun."""
    await stage.moment()
    signalled(stage.gateway.pid, signal.SIGHUP)


async def pause_the_control_process(stage: Stage) -> None:
    await stage.moment()
    pid = processes(stage.gateway)["control"]
    if signalled(pid, signal.SIGSTOP):
        await asyncio.sleep(stage.dice.uniform(0.5, 2.0))
        signalled(pid, signal.SIGCONT)


async def fill_the_state_directory(stage: Stage) -> None:
    """New requests get a 503 then; what has begun is in the books."""
    await stage.moment()
    ballast = stage.gateway.state_dir / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 << 10))

    await in_thread(fill)
    await asyncio.sleep(stage.dice.uniform(4.0, 6.0))
    ballast.unlink()
    await asyncio.sleep(1.0)


async def freeze_postgres(stage: Stage) -> None:
    await stage.moment()
    with stage.database.server.frozen():
        await asyncio.sleep(stage.pause_s)


async def stop_postgres(stage: Stage) -> None:
    await stage.moment()
    server = stage.database.server
    await in_thread(server.stop)
    await asyncio.sleep(stage.pause_s)
    await in_thread(server.start)


async def restart_postgres(stage: Stage) -> None:
    await stage.moment()
    await in_thread(stage.database.server.restart)


async def kill_postgres(stage: Stage) -> None:
    """kill -9 of all its processes, wherever a batch is."""
    await stage.moment()
    server = stage.database.server
    await in_thread(server.kill)
    await in_thread(server.start)


async def cut_connections(stage: Stage) -> None:
    """Again and again, for a second."""
    await stage.moment()
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s:
        await in_thread(stage.database.cut)
        await asyncio.sleep(stage.dice.uniform(0.0, 0.05))


async def fill_postgres(stage: Stage) -> None:
    await stage.moment()
    ballast = stage.database.server.data / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 << 10))

    await in_thread(fill)
    await asyncio.sleep(stage.dice.uniform(1.0, 2.0))
    ballast.unlink()
    server = stage.database.server
    if server.running is None or not server.running.alive:  # it gives up when its log has no room
        await in_thread(server.start)


DEADLOCK = """
BEGIN;
SET LOCAL deadlock_timeout = '10s';
SELECT count(*) FROM (SELECT 1 FROM usage_hours ORDER BY {order} DESC LIMIT 1 FOR UPDATE) AS one;
SELECT pg_sleep(0.3);
SELECT count(*) FROM (SELECT 1 FROM usage_hours ORDER BY {order} FOR UPDATE) AS all_of_them;
COMMIT;
"""


async def force_a_deadlock(stage: Stage) -> None:
    """Somebody else locks lines of the sums the other way round; the shipper is the one that is sent away."""
    await stage.moment()
    order = "hour, tenant, use_case, key_id, provider, model, journal"
    with contextlib.suppress(subprocess.CalledProcessError):
        await in_thread(lambda: stage.database.do(DEADLOCK.format(order=order.replace(", ", " DESC, "))))


Fault = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """`share`: of the rounds. `small`: which disk is small."""

    name: str
    fault: Fault
    share: float
    only: Kind | None = None
    small: Literal["", "state", "postgres"] = ""

    def runs(self, rounds: int) -> int:
        return max(1, round(self.share * rounds))


FULL = "state_dir full"
CASES = (
    Case("kill -9 of a worker", kill_a_worker, 0.5),
    Case("kill -9 of the control process", kill_the_control_process, 0.3),
    Case("kill -9 of all at once", kill_all, 0.2),
    Case("SIGTERM, and a new start", restart, 0.25),
    Case("SIGHUP", reload, 0.1),
    Case("control process paused", pause_the_control_process, 0.05),
    Case(FULL, fill_the_state_directory, 0.025, small="state"),
    Case("PostgreSQL frozen", freeze_postgres, 0.005, only="postgres"),
    Case("PostgreSQL stopped", stop_postgres, 0.005, only="postgres"),
    Case("PostgreSQL restarted", restart_postgres, 0.05, only="postgres"),
    Case("PostgreSQL killed", kill_postgres, 0.05, only="postgres"),
    Case("connections cut", cut_connections, 0.05, only="postgres"),
    Case("deadlock", force_a_deadlock, 0.05, only="postgres"),
    Case("PostgreSQL's disk full", fill_postgres, 0.025, only="postgres", small="postgres"),
)
