"""One fork, done with care, and the pipes that tie children to their parent.

Layer 4 shell: it knows processes and signals, and nothing of what a child is for, or of when one is forked.

Three pipes. `lifeline`: never carries a byte; only the supervisor holds its writing end, so its end of file tells every
child that the supervisor is gone, however it went. `ready`: children write their pid when they serve. `signals`: the
interpreter's C handler writes the number of each signal here, so that one poll() sees everything and none is lost.
"""

from __future__ import annotations

import gc
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

_PID = struct.Struct("=i")
_READ_BYTES = 1024 * _PID.size  # a multiple: pids are written whole, and so are read whole


@dataclass(frozen=True, slots=True)
class Lifeline:
    """A child's end. `fd` becomes readable (end of file) when the supervisor is gone: a worker then drains, the control
    process ships and leaves. `ready()` is the child's word that it serves; a reload drains the old worker only then."""

    fd: int
    _ready_fd: int

    def ready(self) -> None:
        with suppress(BrokenPipeError):  # the supervisor is gone: `fd` tells
            os.write(self._ready_fd, _PID.pack(os.getpid()))


@dataclass(slots=True)
class Ties:
    """The supervisor's end: the pipes, and what it has replaced of the process's signal handling."""

    _lifeline: tuple[int, int] = field(default_factory=os.pipe)
    _ready: tuple[int, int] = field(default_factory=os.pipe)
    _signals: tuple[int, int] = field(default_factory=os.pipe)
    _before: dict[int, Any] = field(default_factory=dict)  # handlers, as signal.signal returned them
    _wakeup_before: int = -1

    def listen_for(self, numbers: Iterable[int]) -> None:
        """From now on these signals arrive as bytes."""
        for fd in (*self._signals, self._ready[0]):
            os.set_blocking(fd, False)
        self._wakeup_before = signal.set_wakeup_fd(self._signals[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _heard) for number in numbers}

    def watched(self) -> tuple[int, int]:
        return self._signals[0], self._ready[0]

    def signals_heard(self) -> list[int]:
        return [number for number in _read(self._signals[0]) if number in self._before]

    def children_ready(self) -> list[int]:
        return [pid for (pid,) in _PID.iter_unpack(_read(self._ready[0]))]

    def become_childs(self) -> Lifeline:
        """In a child: hand back the signals, let go of the supervisor's ends."""
        signal.set_wakeup_fd(-1)
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all of us; the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        for fd in (self._lifeline[1], self._ready[0], *self._signals):
            os.close(fd)
        return Lifeline(self._lifeline[0], self._ready[1])

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for fd in (*self._lifeline, *self._ready, *self._signals):
            os.close(fd)


def fork_child(name: str, ties: Ties, live: Callable[[Lifeline], int]) -> int:
    """Fork a child named `name` (Linux shows 15 characters) that calls `live` and exits with what it returns. Returns
    its pid. Raises OSError when there can be no further process. SIGTERM is at its default there, SIGINT and SIGHUP
    are ignored."""
    gc.freeze()  # what exists now is never looked at by a child's collector, so its pages stay shared
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal for the child must not end up in the supervisor's pipe: none is delivered until it has let go of it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live_and_exit(name, ties, live, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _live_and_exit(name: str, ties: Ties, live: Callable[[Lifeline], int], mask: set[int | signal.Signals]) -> NoReturn:
    code = 1
    try:
        lifeline = ties.become_childs()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        name_process(name)
        code = live(lifeline)
    except SystemExit as error:
        if isinstance(error.code, str):  # why it cannot start, in words
            print(f"{name}: {error.code}", file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # what the supervisor has registered for its own end is not the child's to run


def name_process(name: str) -> None:
    """What `ps` and `top` show. Elsewhere than on Linux nothing happens."""
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return b""


def _heard(*_: object) -> None:
    """A signal's handler: its byte is in the pipe already."""
