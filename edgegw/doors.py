"""What the gateway opens before its first fork: the lock of the state directory, a listening socket per worker slot,
the admin port's, and the unix socket of the channel. They belong to the supervisor and outlive every child.

Layer 4 shell: it knows addresses and files, not processes. Whatever cannot be opened is a StartError that says why in
words for an operator.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress

from edgegw.http.knocks import ignore_knocks
from edgegw.ledger.identity import ADOPTED, LOCK_FILE

CHANNEL_NAME = "control.sock"  # in the state directory
_UNIX_PATH_BYTES_MAX = 100  # the kernel's limit is 107 on Linux, 103 elsewhere
# One that ships what we left at our last end is done soon, or lets go (ledger/adoption.py).
ADOPTED_WAIT_S = 20.0
ADOPTED_POLL_S = 0.05
BACKLOG = 4096  # connections waiting while a worker restarts; the kernel caps it at net.core.somaxconn


class StartError(Exception):
    """Why the gateway cannot start, in words for its operator."""


class Doors:
    """`listening`: one socket per worker slot; `admin` and `channel` are the control process's; all are non-blocking.
    `lock_fd` holds the lock."""

    def __init__(self, listen: tuple[str, int], admin: tuple[str, int], workers: int, state_dir: str) -> None:
        """Raises StartError; what was open by then is closed."""
        self._opened: list[socket.socket] = []
        self.lock_fd = -1
        try:
            self.lock_fd = _lock(state_dir)
            self.listening = self._listen_per_slot(listen, workers)
            self.admin = self._keep(_listen(admin, shared=False))
            self.channel = self._keep(_channel(state_dir))
        except BaseException:
            self.close()
            raise

    def _keep(self, sock: socket.socket) -> socket.socket:
        self._opened.append(sock)
        return sock

    def _listen_per_slot(self, address: tuple[str, int], slots: int) -> list[socket.socket]:
        # Bound alone first: with SO_REUSEPORT a second gateway would quietly share the port instead of failing.
        first = _listen(address, shared=False)
        if slots == 1:
            return [self._keep(first)]
        address = (address[0], first.getsockname()[1])
        first.close()
        return [self._keep(_listen(address, shared=True)) for _ in range(slots)]

    def stop_listening(self) -> None:
        """Close our copies: once the workers have closed theirs, connections are refused. Until then nobody new gets
        into their queues, where closing would reset them: who knocks now knocks again in a second, in vain."""
        for sock in self.listening:
            ignore_knocks(sock)
            sock.close()

    def keep_only(self, *wanted: socket.socket) -> None:
        """In a child: close what is not its own."""
        for sock in self._opened:
            if sock not in wanted:
                sock.close()

    def close(self) -> None:
        self.keep_only()
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def _lock(state_dir: str) -> int:
    """One gateway per state directory. The control process inherits the lock, so that a successor cannot start while
    one that lost its supervisor still ships."""
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(state_dir, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot use the state directory {state_dir}: {error.strerror}") from error
    by_s = time.monotonic() + ADOPTED_WAIT_S
    while not _locked(fd):
        holder = os.pread(fd, 32, 0)
        if holder == ADOPTED and time.monotonic() < by_s:
            time.sleep(ADOPTED_POLL_S)
            continue
        os.close(fd)
        if holder == ADOPTED:
            raise StartError(f"another gateway ships what was left in the state directory {state_dir}: try again later")
        pid = holder.decode("ascii", "replace").strip() or "unknown"
        raise StartError(
            f"another gateway (pid {pid}) runs on the state directory {state_dir}: stop it, or choose another"
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _listen(address: tuple[str, int], *, shared: bool) -> socket.socket:
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"cannot listen on {shown}: {error.strerror}") from error
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind(where)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise StartError(f"cannot listen on {shown}: {why}") from error
    return sock


def _channel(state_dir: str) -> socket.socket:
    """The unix socket between workers and control process. We hold the lock, so a file in its place is stale."""
    path = os.path.join(state_dir, CHANNEL_NAME)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory_fd = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    deep = len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        # A deep directory is reached through its descriptor (Linux); elsewhere bind() says that the path is too long.
        sock.bind(f"/proc/self/fd/{directory_fd}/{CHANNEL_NAME}" if deep else path)
        os.chmod(path, 0o600)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartError(f"cannot make the socket {path}: {error.strerror or error}") from error
    finally:
        os.close(directory_fd)
    return sock
