"""One life of a worker on disk: its directory, locked for as long as the worker lives, and its mapped segments.

    state_dir/journal/<slot>-<pid>-<nanoseconds>/       one directory per life
        life.json                                       who writes here, and the salt of its checksums; locked (flock)
        00000001.seg, 00000002.seg, …                   see segment.py

The lock is how a reader knows that a life is over: the kernel drops it with the process, whatever its pid is reused
for. Knows how the files are made, and nothing of what is written into them or of what follows when they cannot be.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgegw.ledger import segment
from edgegw.ledger.room import AT_THE_BOUND, NO_SPACE, JournalFull, bytes_on_disk, trouble_of
from edgegw.ledger.segment import header, segment_name

JOURNAL_DIR = "journal"
LIFE_FILE = "life.json"
# A life is set up under this prefix and then renamed, so that a reader never sees one that is not locked yet.
OPENING_PREFIX = ".opening-"
LIFE_NAME = re.compile(r"\d+-\d+-\d+")


@dataclass(slots=True)
class Segment:
    """A segment as a mapped file. `words`: the same bytes as 32 bit words."""

    path: Path
    index: int
    bytes: int
    fd: int
    map: mmap.mmap
    words: memoryview

    def there(self) -> bool:
        """Whether the file is still where a reader looks for it: not deleted, moved away, or hidden by a mount."""
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        mine = os.fstat(self.fd)
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)

    def close(self) -> None:
        self.words.release()
        self.map.close()
        os.close(self.fd)

    def discard(self) -> None:
        """Close and delete one that nothing was written into."""
        self.close()
        with suppress(OSError):
            self.path.unlink()


@dataclass(slots=True)
class Life:
    """`salt` is where its checksums start from (segment.py)."""

    directory: Path
    lock_fd: int
    salt: int

    def make(self, index: int, size: int) -> Segment:
        """The next segment. Raises OSError, and leaves nothing behind then."""
        path = self.directory / segment_name(index)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            allocate(fd, size)
            # In one call, which no death divides: a piece of a header would be taken for damage.
            os.pwrite(fd, header(index, self.salt, size), 0)
            mapped = mmap.mmap(fd, size)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        return Segment(path, index, size, fd, mapped, memoryview(mapped).cast("I"))

    def close(self) -> None:
        os.close(self.lock_fd)

    def discard(self) -> None:
        """Close and delete one that has no record."""
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def make_segment(life: Life, index: int, size: int, bytes_max: int | None = None) -> Segment:
    """The next segment. `bytes_max`: what all journals below the state directory may occupy with it. Raises
    JournalFull, and leaves nothing behind then."""
    try:
        if bytes_max is not None and bytes_on_disk(life.directory.parent) + size > bytes_max:
            raise JournalFull(AT_THE_BOUND)
        return life.make(index, size)
    except OSError as error:
        raise JournalFull(trouble_of(error)) from error


def open_life(state_dir: Path, slot: int, pid: int, wall_ns: int) -> Life:
    """A new life. Call it in the worker, after the fork: the lock belongs to the process. The state directory has to be
    there: made here, it might be made under a mount that is only away. Raises OSError, and leaves nothing behind."""
    name = f"{slot}-{pid}-{wall_ns}"
    root = state_dir / JOURNAL_DIR
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    opening = root / f"{OPENING_PREFIX}{name}"
    opening.mkdir(mode=0o700)
    lock_fd = -1
    try:
        lock_fd = os.open(opening / LIFE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        salt = int.from_bytes(os.urandom(4), "little")
        about = {"format": segment.FORMAT, "slot": slot, "pid": pid, "opened_ns": wall_ns, "salt": salt}
        os.write(lock_fd, json.dumps(about).encode() + b"\n")
        directory = root / name
        opening.rename(directory)
    except OSError:
        if lock_fd >= 0:
            os.close(lock_fd)
        shutil.rmtree(opening, ignore_errors=True)
        raise
    return Life(directory, lock_fd, salt)


def datasync(fd: int) -> None:
    """Have a file's bytes, and what is needed to find them, written to the disk: also those that another process has
    put into mapped pages (Linux; elsewhere the system may ask for more)."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Have the names in a directory written to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync(fds: list[int], directories: list[Path]) -> None:
    """Files, then the names in directories; the descriptors are closed. Raises OSError."""
    try:
        for fd in fds:
            datasync(fd)
        for directory in directories:
            sync_directory(directory)
    finally:
        for fd in fds:
            os.close(fd)


def allocate(fd: int, size: int) -> None:
    """Real blocks for the whole file: writing to a mapped hole of a full disk would kill the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
    block = bytes(64 << 10)
    for at in range(0, size, len(block)):
        left = min(len(block), size - at)
        if os.pwrite(fd, block[:left], at) != left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
