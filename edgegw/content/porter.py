"""The worker's thread that puts content down, so that no request ever waits for a disk.

Making a file takes some hundred microseconds on a disk that is well, and seconds on one that is not; the loop of a
worker has no time for either. What is handed over costs the loop a few microseconds; what has not been put down yet is
bounded, and beyond that it is dropped and counted.

The system calls of the thread run without the interpreter's lock, but to get it back from a busy loop takes
milliseconds each time: so all that has come meanwhile goes into one file. The busier the worker, the more is in it.
What is to be stored and what is for spans goes into trays of their own, because others take it from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from edgegw.content.files import Tray
from edgegw.content.record import Content

# Handed over and not put down yet, in bytes: at most so much is lost with the worker, and held in its memory. (A single
# exchange may be larger.)
PENDING_BYTES_MAX = 8 * 1024 * 1024
# In one file, which is at most an eighth of a tray; a single exchange may be larger.
FILE_BYTES_MAX = 512 * 1024
# For a disk that does not answer when the worker is to end.
CLOSE_WAIT_S = 2.0
# With nothing to do, the tray is looked through so often, and so far, for the gauge of what waits.
LOOK_EVERY_S = 1.0
LOOK_FILES_MAX = 1000


class Load(NamedTuple):
    """What `make` returns is to be put down: to be kept, to be told, or both. `size`: about so many bytes."""

    size: int
    make: Callable[[], Content]
    keep: bool = True
    tell: bool = False


class TrayPair(NamedTuple):
    """One for each purpose; None where nothing is put down for it."""

    kept: Tray | None
    told: Tray | None = None


class Porter:
    """`take` and `close` are the loop's, everything else is the thread's. `open_trays` is called in the thread."""

    def __init__(self, open_trays: Callable[[], TrayPair]) -> None:
        self._open_trays = open_trays
        self._loads: SimpleQueue[Load | None] = SimpleQueue()
        self._trays: tuple[Tray, ...] = ()
        # Each of these is written by one side only.
        self._taken_bytes = 0
        self._done_bytes = 0
        self._left_behind = 0
        self._thread = threading.Thread(target=self._run, name="content", daemon=True)
        self._thread.start()

    def take(self, load: Load) -> None:
        """Puts it down, soon."""
        size = load.size
        pending_bytes = self._taken_bytes - self._done_bytes
        if pending_bytes and pending_bytes + size > PENDING_BYTES_MAX:
            self._left_behind += 1
            return
        self._taken_bytes += size
        self._loads.put(load)

    def close(self) -> None:
        """Waits until everything is put down; not for ever."""
        self._loads.put(None)
        self._thread.join(CLOSE_WAIT_S)

    def gauges(self) -> dict[str, float]:
        """For the worker's vitals."""
        trays = self._trays
        return {
            "content_kept": sum(tray.kept for tray in trays),
            "content_dropped": sum(tray.dropped for tray in trays) + self._left_behind,
            "content_waiting_bytes": sum(tray.waiting_bytes for tray in trays),
        }

    def _run(self) -> None:
        kept, told = self._open_trays()
        self._trays = tuple(tray for tray in (kept, told) if tray is not None)
        file_bytes_max = min(FILE_BYTES_MAX, *(tray.bytes_max // 8 for tray in self._trays))
        going = True
        while going:
            try:
                load = self._loads.get(timeout=LOOK_EVERY_S)
            except Empty:
                for tray in self._trays:
                    tray.look(LOOK_FILES_MAX)
                continue
            to_keep: list[Content] = []
            to_tell: list[Content] = []
            size = 0
            while load is not None:
                size += load.size
                content = load.make()
                if load.keep:
                    to_keep.append(content)
                if load.tell:
                    to_tell.append(content)
                if size >= file_bytes_max:
                    break
                try:
                    load = self._loads.get_nowait()
                except Empty:
                    break
            going = load is not None
            _put(told, to_tell)
            _put(kept, to_keep)
            self._done_bytes += size


def _put(tray: Tray | None, contents: list[Content]) -> None:
    if tray is not None and contents:
        tray.put(contents[0].request_id, msgspec.msgpack.encode(contents), len(contents))
