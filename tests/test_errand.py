"""Errands: stepped on the spot, tasks only from where they have to be, and cancelled wherever they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from edgegw.errand import Errand, Wakeup


class Story:
    """What a handler did, and what it saw. `awaits` are what it waits for, one after the other."""

    def __init__(self, *awaits: Callable[[], object]) -> None:
        self.awaits = awaits
        self.told: list[str] = []
        self.errand = Errand(self._run(), asyncio.get_running_loop())

    async def _run(self) -> None:
        try:
            for number, make in enumerate(self.awaits):
                await make()  # type: ignore[misc]
                self.told.append(f"after {number}")
        except asyncio.CancelledError:
            self.told.append("cancelled")
            raise
        finally:
            self.told.append("end")


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_is_stepped_on_the_spot_while_it_waits_for_wakeups() -> None:
    first, second = Wakeup(), Wakeup()
    story = Story(lambda: first, lambda: second)
    story.errand.step()
    assert story.told == []
    first.fire()
    assert story.told == ["after 0"]
    second.fire()
    assert story.told == ["after 0", "after 1", "end"]


async def test_it_becomes_a_task_where_it_waits_for_anything_else_and_may_wait_for_wakeups_again() -> None:
    wakeup = Wakeup()
    story = Story(lambda: asyncio.sleep(0), lambda: wakeup)
    story.errand.step()
    await settled()
    assert story.told == ["after 0"]
    wakeup.fire()
    await settled()
    assert story.told == ["after 0", "after 1", "end"]


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("turns", [0, 1, 2])  # 0: before the task has made its first step
@pytest.mark.parametrize("wait", [_forever, Wakeup], ids=["task", "wakeup"])
async def test_it_is_cancelled_wherever_it_waits(wait: Callable[[], object], turns: int) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    story = Story(wait, wait)
    story.errand.step()
    for _ in range(turns):
        await asyncio.sleep(0)
    story.errand.cancel()
    await settled()
    assert story.told == ["cancelled", "end"]
    assert [str(context["message"]) for context in told] == ["a handler failed"] * (wait is Wakeup)


async def test_cancelled_after_its_end_nothing_happens() -> None:
    wakeup = Wakeup()
    story = Story(lambda: wakeup)
    story.errand.step()
    wakeup.fire()
    story.errand.cancel()
    await settled()
    assert story.told == ["after 0", "end"]
