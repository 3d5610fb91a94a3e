"""From files to spans: what the workers put down to be told is brought to whoever joins it with its request.

A task of the control process, beside the shipper that stores content: neither waits for the other, and neither sees the
other's files. A file is removed as soon as it is read. What nobody fetched in time is of no use to a span any more, and
is removed unread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from edgegw.clock import Clock
from edgegw.content.files import TOLD_DIR, TOO_LATE_S, Trays
from edgegw.content.record import Content

POLL_S = 0.1
# In one go, read in a thread; a single file may be larger.
BATCH_FILES_MAX = 64
BATCH_BYTES_MAX = 1024 * 1024
# Of the files that wait, looked at to find the oldest.
LOOK_FILES_MAX = 1000

_log = logging.getLogger(__name__)


class Courier:
    """A task from `start()` to `stop()`, which ends it when what is there is brought. `bring` is told of each content;
    `room`: whether it can take more just now."""

    def __init__(
        self, state_dir: Path, bring: Callable[[Content], None], room: Callable[[], bool], clock: Clock
    ) -> None:
        self._trays = Trays(state_dir, TOLD_DIR)
        self._bring = bring
        self._room = room
        self._clock = clock
        self._decode = msgspec.msgpack.Decoder(list[Content]).decode
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, timeout_s: float) -> None:
        self._stopping.set()
        if self._task is not None and not (await asyncio.wait((self._task,), timeout=timeout_s))[0]:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            last_round = self._stopping.is_set()
            try:
                brought = await self._bring_some()
            except Exception as error:
                self._tell(error, None)
                brought = False
            if brought:
                continue
            if last_round:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._stopping.wait()

    async def _bring_some(self) -> bool:
        """Whether there may be more."""
        if not self._trays.there or not self._room():
            return False
        with self._trays.held() as held:
            if not held:  # somebody is deleting content
                return False
            contents = await asyncio.to_thread(self._fetch)
        for content in contents:
            try:
                self._bring(content)
            except Exception as error:
                self._tell(error, content)
        return bool(contents)

    def _tell(self, error: Exception, content: Content | None) -> None:
        """A defect, without its words: they may have some of the content."""
        whose = None if content is None else {"request_id": content.request_id}
        _log.error("content cannot be brought to its spans; a defect: %s", type(error).__name__, extra=whose)

    def _fetch(self) -> list[Content]:
        """The oldest of what waits. In a thread: a disk may be slow."""
        wall_ns = self._clock.wall_ns()
        self._trays.tidy(wall_ns, wall_ns - int(TOO_LATE_S * 1e9))
        contents: list[Content] = []
        size = 0
        for path in self._trays.waiting(LOOK_FILES_MAX)[:BATCH_FILES_MAX]:
            with suppress(OSError):
                data = path.read_bytes()
                path.unlink()
                with suppress(msgspec.DecodeError):  # a part of one, left by a machine that died
                    contents += self._decode(data)
                size += len(data)
            if size > BATCH_BYTES_MAX:
                break
        return contents
