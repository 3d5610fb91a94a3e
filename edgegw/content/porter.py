"""The worker's thread that puts content down, so that no request ever waits for a disk.

Making a file takes some hundred microseconds on a disk that is well, and seconds on one that is not; the loop of a
worker has no time for either. What is handed over costs the loop a few microseconds; what has not been put down yet is
bounded, and beyond that it is dropped and counted.

The system calls of the thread run without the interpreter's lock, but to get it back from a busy loop takes
milliseconds each time: so all that has come meanwhile goes into one file. The busier the worker, the more is in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

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

Load = tuple[int, Callable[[], Content]]


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

    def take(self, size: int, make: Callable[[], Content]) -> None:
        """Puts down what `make` returns, soon; `size` is about how many bytes that is."""
        pending_bytes = self._taken_bytes - self._done_bytes
        if pending_bytes and pending_bytes + size > PENDING_BYTES_MAX:
            self._left_behind += 1
            return
        self._taken_bytes += size
        self._loads.put((size, make))

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
        encode = msgspec.msgpack.Encoder().encode
        file_bytes_max = min(FILE_BYTES_MAX, tray.bytes_max // 8)
        going = True
        while going:
            try:
                load = self._loads.get(timeout=LOOK_EVERY_S)
            except Empty:
                tray.look(LOOK_FILES_MAX)
                continue
            contents: list[Content] = []
            size = 0
            while load is not None:
                size += load[0]
                contents.append(load[1]())
                if size >= file_bytes_max:
                    break
                try:
                    load = self._loads.get_nowait()
                except Empty:
                    break
            going = load is not None
            if contents:
                tray.put(contents[0].request_id, encode(contents), len(contents))
            self._done_bytes += size
