"""Content on its way: files of what a few exchanges left, from their worker to the control process.

    <state_dir>/content/<slot>/<id of the first>.msgpack     0600, in directories that are 0700; to be stored
    <state_dir>/content-told/<slot>/…                        the same; for spans, and gone within seconds

A file is a msgpack array of Contents (record.py). It is written under another name and renamed: it is there whole, or
not at all. Nothing is synced to the disk; what a machine's death leaves of a file is found unreadable and removed. A
`Tray` is where one worker puts its files down, and knows when it is full; `Trays` is the control process's view of all.
"""

from __future__ import annotations

import fcntl
import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

CONTENT_DIR = "content"  # in the state directory: what is to be stored,
TOLD_DIR = "content-told"  # … and what is for spans
SUFFIX = ".msgpack"
UNFINISHED = ".tmp"
LOCK = "lock"
# A file occupies whole blocks; so a bound on bytes is one on the number of files as well.
BLOCK_BYTES = 4096
# Files that a worker asks after when it puts one down: about a microsecond each.
ASKED_AFTER_MAX = 64
# A file that is unfinished for so long belongs to a worker that died while writing it, which takes microseconds.
UNFINISHED_S = 60.0
# A span does not wait that long for its content, by far; a gateway that was away for a moment has come back.
TOO_LATE_S = 60.0

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Tray:
    """Where one worker puts content down. `waiting_bytes` is what it believes is still there: never less than the
    truth. `kept` and `dropped` count exchanges; they are dropped when the tray is full or the disk will not have them.
    """

    __slots__ = ("_directory", "_waiting", "bytes_max", "dropped", "kept", "waiting_bytes")

    def __init__(self, state_dir: Path, slot: int, bytes_max: int, directory: str = CONTENT_DIR) -> None:
        self._directory = str(state_dir / directory / str(slot))
        self.bytes_max = bytes_max
        self._waiting: deque[tuple[str, int]] = deque()  # in the order in which they were put down
        self.waiting_bytes = 0
        self.kept = 0
        self.dropped = 0
        with suppress(OSError):  # told by what is dropped
            self._make_directory()
            self._find_what_waits()

    def put(self, name: str, data: bytes, exchanges: int) -> None:
        """A file of so many exchanges. Never raises for what the disk does."""
        size = _occupied(len(data))
        self.look(ASKED_AFTER_MAX)
        if self.waiting_bytes + size > self.bytes_max:
            self.dropped += exchanges
            return
        path = f"{self._directory}/{name}{SUFFIX}"
        try:
            try:
                write_whole(path, data)
            except FileNotFoundError:  # somebody tidied up
                self._make_directory()
                write_whole(path, data)
        except OSError:
            self.dropped += exchanges
            return
        self.kept += exchanges
        self._waiting.append((path, size))
        self.waiting_bytes += size

    def look(self, files_max: int) -> None:
        """What has been taken away does not wait any more. They go in about the order in which they came."""
        waiting = self._waiting
        for _ in range(files_max):
            if not waiting or os.access(waiting[0][0], os.F_OK):
                return
            self.waiting_bytes -= waiting.popleft()[1]

    def _make_directory(self) -> None:
        for directory in (os.path.dirname(self._directory), self._directory):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            os.chmod(directory, 0o700)  # whoever made it

    def _find_what_waits(self) -> None:
        """From lives of this slot before this one."""
        with os.scandir(self._directory) as entries:
            found = sorted((entry.path, entry.stat().st_size) for entry in entries if entry.name.endswith(SUFFIX))
        self._waiting.extend((path, _occupied(size)) for path, size in found)
        self.waiting_bytes = sum(size for _, size in self._waiting)


class Trays:
    """All that waits in a state directory. Of files that go away meanwhile nothing is said."""

    def __init__(self, state_dir: Path, directory: str = CONTENT_DIR) -> None:
        self._root = state_dir / directory

    def others(self, patterns: Iterable[str]) -> list[Trays]:
        """Those of other state directories that the patterns name, and that have some."""
        found = {Path(name).resolve() for pattern in patterns for name in glob.glob(pattern)}
        found.discard(self._root.parent.resolve())
        each = (Trays(state_dir, self._root.name) for state_dir in sorted(found))
        return [trays for trays in each if trays.there]

    def waiting(self, files_max: int) -> list[Path]:
        """Some of the files that wait, oldest request first."""
        return sorted(islice(self.all(), files_max), key=lambda path: path.name)

    def all(self) -> Iterator[Path]:
        """Every file that waits, in no order."""
        return (path for path in self._files() if path.suffix == SUFFIX)

    def tidy(self, wall_ns: int, before_ns: int) -> int:
        """Removes what was put down before a time, and what workers that died left unfinished. How many went of the
        former."""
        unfinished_ns = wall_ns - int(UNFINISHED_S * 1e9)
        old = 0
        for path in self._files():
            with suppress(OSError):
                written_ns = path.stat().st_mtime_ns
                if written_ns < before_ns or (path.suffix == UNFINISHED and written_ns < unfinished_ns):
                    path.unlink()
                    old += path.suffix == SUFFIX
        return old

    @contextmanager
    def held(self) -> Iterator[bool]:
        """While it is held, nobody else ships or removes content here; False: somebody does right now, or there is
        nothing to hold."""
        try:
            fd = os.open(self._root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            yield False
            return
        try:
            yield True
        finally:
            os.close(fd)

    @property
    def there(self) -> bool:
        """Something was captured here, at some time."""
        return self._root.is_dir()

    def _files(self) -> Iterator[Path]:
        with suppress(OSError), os.scandir(self._root) as trays:
            for tray in trays:
                if tray.is_dir(follow_symlinks=False):
                    with suppress(OSError), os.scandir(tray.path) as entries:
                        yield from (Path(entry.path) for entry in entries)


def write_whole(path: str, data: bytes) -> None:
    """Instead of what is there, if anything is. Raises OSError."""
    unfinished = path + UNFINISHED
    fd = os.open(unfinished, _NEW, 0o600)
    try:
        try:
            whole = os.write(fd, data) == len(data)
        finally:
            os.close(fd)
        if not whole:
            raise OSError("the disk is full")
        os.rename(unfinished, path)
    except OSError:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def _occupied(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
