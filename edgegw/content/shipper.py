"""From files to rows: what the workers put down goes into the database, and what is old or too much goes out of it.

A task of the control process beside the ledger's shipper, with a connection of its own: the books never wait for
content. A file is removed when its row is committed; whoever dies in between leaves it to be shipped again, and stored
once. While the database is away files wait, up to the bound that the workers keep; failures are told once, and never
with anything of what was to be stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from edgegw.clock import Clock
from edgegw.content.files import TOLD_DIR, TOO_LATE_S, Trays
from edgegw.content.record import Content
from edgegw.content.store import ContentStore
from edgegw.content.wire import unchunked
from edgegw.ledger.store import RejectedError, SchemaTooNewError, StoreError

POLL_S = 0.5
BACKOFF_MAX_S = 5.0
# In one transaction, for which the books may have to wait; a single file may be larger.
BATCH_FILES_MAX = 64
BATCH_BYTES_MAX = 1024 * 1024
# Of the files that wait, looked at to find the oldest.
LOOK_FILES_MAX = 1000
TRIM_EVERY_S = 3600.0
ADOPT_EVERY_S = 60.0
# Looked after earlier when so much of the bound has come in: so the table is never larger by more than that.
TRIM_SHARE = 16
# Between two portions of what is deleted: whoever waits for the file comes first.
TRIM_PAUSE_S = 0.02
_TOO_LATE_NS = int(TOO_LATE_S * 1e9)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ContentTally:
    """What was done since the start, for metrics and /readyz. `lost`: files that could not be read, or that the
    database never takes. `removed`: what was too old or too much. `waiting`: files, as far as they were looked at.
    `failing`: the latest complaint, None when it works."""

    stored: int = 0
    lost: int = 0
    removed: int = 0
    errors: int = 0
    waiting: int = 0
    failing: str | None = None


class ContentShipper:
    """A task from `start()` to `stop()`, which ends it when what is there is stored. Whatever happens, it goes on.

    `adopt`: patterns of state directories whose content is shipped as well, once a minute. Their gateways need not be
    gone: who holds the files ships them, and what is shipped twice is stored once. `tells`: files for spans are fetched
    by somebody. Those that nobody fetches, or fetched in time, are removed."""

    def __init__(
        self,
        state_dir: Path,
        store: ContentStore,
        clock: Clock,
        *,
        retention_s: float,
        bytes_max: int,
        adopt: Sequence[str] = (),
        tells: bool = False,
        poll_s: float = POLL_S,
    ) -> None:
        self._own = Trays(state_dir)
        self._told = Trays(state_dir, TOLD_DIR)
        self._told_max_ns = _TOO_LATE_NS if tells else 0
        self._adopt = tuple(adopt)
        self._others: list[Trays] = []
        self._look_at_s = clock.now()
        self._store = store
        self._clock = clock
        self._retention_ns = int(retention_s * 1e9)
        self._bytes_max = bytes_max
        self._poll_s = poll_s
        self._decode = msgspec.msgpack.Decoder(list[Content]).decode
        self._trim_at_s = clock.now()
        self._bytes_since_trim = 0
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.tally = ContentTally()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, timeout_s: float) -> None:
        """Store what is there, then end; what is not stored in time waits for the next start."""
        self._stopping.set()
        if self._task is not None and not (await asyncio.wait((self._task,), timeout=timeout_s))[0]:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def details(self) -> dict[str, Any]:
        """For /readyz."""
        tally = self.tally
        return {
            "state": "failing" if tally.failing else "ok",
            "stored": tally.stored,
            "lost": tally.lost,
            "waiting": tally.waiting,
        }

    async def close(self) -> None:
        await self._store.close()

    async def _run(self) -> None:
        pause_s = self._poll_s
        while True:
            last_round = self._stopping.is_set()
            try:
                shipped = await self._ship_some(self._own) or (not last_round and await self._ship_others())
                trimmed = not last_round and await self._trim_some()
            except Exception as error:
                self._complain(error)
                shipped, pause_s = False, min(pause_s * 2, BACKOFF_MAX_S)
            else:
                self._rejoice()
                pause_s = TRIM_PAUSE_S if trimmed else self._poll_s
            if not shipped:
                if last_round:
                    return
                await self._pause(pause_s)

    async def _ship_others(self) -> bool:
        """One batch of what other gateways left; whether there may be more."""
        if self._adopt and self._clock.now() >= self._look_at_s:
            self._look_at_s = self._clock.now() + ADOPT_EVERY_S
            self._others = await asyncio.to_thread(self._own.others, self._adopt)
        while self._others:
            if await self._ship_some(self._others[-1]):
                return True
            self._others.pop()
        return False

    async def _ship_some(self, trays: Trays) -> bool:
        """One batch; whether there may be more."""
        if not trays.there:
            return False
        with trays.held() as held:
            if not held:  # somebody is deleting content
                return False
            files = await asyncio.to_thread(self._gather, trays)
            if not files:
                return False
            contents = [content for found in files.values() for content in found]
            await self._write(contents)
            await asyncio.to_thread(_remove, files)
            if trays is self._own:
                self.tally.waiting -= len(files)
        self._bytes_since_trim += sum(content.size for content in contents)
        if self._bytes_since_trim > self._bytes_max // TRIM_SHARE:
            self._trim_at_s = self._clock.now()
        return True

    def _gather(self, trays: Trays) -> dict[Path, list[Content]]:
        """The oldest of what waits, as much as goes in one batch. In a thread: a disk may be slow, and taking the
        framing off a long stream takes a while, and leases are waited for at this loop."""
        waiting = trays.waiting(LOOK_FILES_MAX)
        if trays is self._own:
            self.tally.waiting = len(waiting)
        files: dict[Path, list[Content]] = {}
        size = 0
        for path in waiting:
            found = self._read(path)
            found_bytes = sum(content.size for content in found)
            if files and size + found_bytes > BATCH_BYTES_MAX:
                break
            if found:
                files[path] = found
                size += found_bytes
            if len(files) == BATCH_FILES_MAX:
                break
        return files

    def _read(self, path: Path) -> list[Content]:
        """Nothing, when it is gone or cannot be read now; what can never be read is removed."""
        try:
            return [_readable(content) for content in self._decode(path.read_bytes())]
        except OSError:
            return []
        except (msgspec.DecodeError, ValueError):
            self.tally.lost += 1
            path.unlink(missing_ok=True)
            return []

    async def _write(self, contents: Sequence[Content]) -> None:
        try:
            await self._store.write(contents)
            self.tally.stored += len(contents)
        except RejectedError:
            for content in contents:
                try:
                    await self._store.write([content])
                    self.tally.stored += 1
                except RejectedError:
                    self.tally.lost += 1

    async def _trim_some(self) -> bool:
        """A portion of what is too old or too much; whether there may be more."""
        now_s = self._clock.now()
        if now_s < self._trim_at_s:
            return False
        wall_ns = self._clock.wall_ns()
        before_ns = wall_ns - self._retention_ns
        self.tally.removed += await asyncio.to_thread(self._tidy, wall_ns, before_ns)
        removed = await self._store.trim(before_ns, self._bytes_max)
        self.tally.removed += removed
        if not removed:
            self._trim_at_s = now_s + TRIM_EVERY_S
            self._bytes_since_trim = 0
            await self._store.rest()
        return bool(removed)

    def _tidy(self, wall_ns: int, before_ns: int) -> int:
        self._told.tidy(wall_ns, wall_ns - self._told_max_ns)
        for told in self._told.others(self._adopt):  # of gateways that may well be there
            told.tidy(wall_ns, wall_ns - _TOO_LATE_NS)
        return sum(trays.tidy(wall_ns, before_ns) for trays in (self._own, *self._own.others(self._adopt)))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _complain(self, error: Exception) -> None:
        known = isinstance(error, StoreError | SchemaTooNewError)
        complaint = str(error) if known else f"a defect: {type(error).__name__}"
        if self.tally.failing is None:
            _log.warning("content cannot be stored and waits in files: %s", complaint)
        self.tally.failing = complaint
        self.tally.errors += 1

    def _rejoice(self) -> None:
        if self.tally.failing is not None:
            _log.warning("content is stored again")
            self.tally.failing = None


def _readable(content: Content) -> Content:
    return replace(content, reply=unchunked(content.reply), chunked=False) if content.chunked else content


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
