"""The worker's thread that puts content down, so that no request ever waits for a disk.

Making a file takes some hundred microseconds on a disk that is well, and seconds on one that is not; the loop of a
worker has no time for either. What is handed over costs the loop a few microseconds; what has not been put down yet is
bounded, and beyond that it is dropped and counted. The system calls of the thread run without the interpreter's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from edgegw.content.files import Tray

# Handed over and not put down yet, in bytes: at most so much is lost with the worker, and held in its memory. (A single
# exchange may be larger.)
PENDING_BYTES_MAX = 8 * 1024 * 1024
# For a disk that does not answer when the worker is to end.
CLOSE_WAIT_S = 2.0
# With nothing to do, the tray is looked through so often, and so far, for the gauge of what waits.
LOOK_EVERY_S = 1.0
LOOK_FILES_MAX = 1000

Load = tuple[str, int, Callable[[], bytes]]


class Porter:
    """`take` and `close` are the loop's, everything else is the thread's. `open_tray` is called in the thread."""

    def __init__(self, open_tray: Callable[[], Tray]) -> None:
        self._open_tray = open_tray
        self._loads: SimpleQueue[Load | None] = SimpleQueue()
        self._tray: Tray | None = None
        # Each of these is written by one side only.
        self._taken_bytes = 0
        self._done_bytes = 0
        self._left_behind = 0
        self._thread = threading.Thread(target=self._run, name="content", daemon=True)
        self._thread.start()

    def take(self, name: str, size: int, make: Callable[[], bytes]) -> None:
        """Puts down under `name` what `make` returns, soon; `size` is about how many bytes that is."""
        pending_bytes = self._taken_bytes - self._done_bytes
        if pending_bytes and pending_bytes + size > PENDING_BYTES_MAX:
            self._left_behind += 1
            return
        self._taken_bytes += size
        self._loads.put((name, size, make))

    def close(self) -> None:
        """Waits until everything is put down; not for ever."""
        self._loads.put(None)
        self._thread.join(CLOSE_WAIT_S)

    def gauges(self) -> dict[str, float]:
        """For the worker's vitals."""
        tray = self._tray
        if tray is None:
            return {"content_kept": 0, "content_dropped": self._left_behind, "content_waiting_bytes": 0}
        return {
            "content_kept": tray.kept,
            "content_dropped": tray.dropped + self._left_behind,
            "content_waiting_bytes": tray.waiting_bytes,
        }

    def _run(self) -> None:
        tray = self._tray = self._open_tray()
        while True:
            try:
                load = self._loads.get(timeout=LOOK_EVERY_S)
            except Empty:
                tray.look(LOOK_FILES_MAX)
                continue
            if load is None:
                return
            name, size, make = load
            tray.put(name, make())
            self._done_bytes += size
