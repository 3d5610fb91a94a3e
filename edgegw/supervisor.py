"""The parent of all processes: owns the sockets, forks, reaps, restarts, reloads, drains. No event loop and no thread,
so that it can fork at any time, and nothing else, so that it has no reason to die.

It does not know what its children do: a Plan brings two functions that a child becomes. The listening sockets stay
open here while a child is dead or being replaced, so connections queue up in the kernel and none is refused.

How to read it: `run` is the whole; a `_Post` is a place to be filled, a `_Life` one process that fills it. Everything
that happens wakes one poll() (child.py says how), and is then judged in one place: `_hear`, then `_look_around`.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from edgegw.child import Lifeline, Ties, fork_child, name_process
from edgegw.doors import CHANNEL_NAME, Doors, StartError

RESTART_PAUSE_S, RESTART_PAUSE_MAX_S = 0.1, 5.0  # before a restart, doubled while children die young
YOUNG_S = 5.0  # a death before this age counts as young
STILLBORN_S, STILLBORN_MAX = 1.0, 5  # so many deaths before that age, with nothing better ever seen: it cannot start
READY_WAIT_S = 10.0  # a child that never says it is ready is believed to be after this
DRAIN_MARGIN_S = 5.0  # a worker keeps drain_timeout itself; killed only when it is this late
FAST_STOP_S = 2.0  # left to everybody after a second SIGTERM
CONTROL_STOP_S = 15.0  # for shipping what the workers left (its own bound is 10 s)
CONTROL = "control"
PROCESSES_NAME = "processes.json"  # in the state directory

logger = logging.getLogger("edgegw.supervisor")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `worker(slot, listening, lifeline)` and `control(admin, channel, lifeline)` are called in a fresh
    child with SIGTERM at its default, SIGINT and SIGHUP ignored, and return its exit code. SIGTERM asks a worker to
    drain within `drain_timeout_s`, the control process to ship what there is and leave. `reload()` brings the Plan of
    new settings or raises; it may change all but the addresses, the number of workers and the state directory."""

    listen: tuple[str, int]
    admin: tuple[str, int]
    workers: int
    state_dir: str
    drain_timeout_s: float
    worker: Callable[[int, socket.socket, Lifeline], int]
    control: Callable[[socket.socket, socket.socket, Lifeline], int]
    reload: Callable[[], Plan] | None = None

    def fixed(self) -> tuple[object, ...]:
        """What cannot change without a restart."""
        return (self.listen, self.admin, self.workers, self.state_dir)


def run(plan: Plan) -> int:
    """Run the gateway until it is told to stop. The exit code: 0 after a clean stop, 1 when it could not start."""
    try:
        doors = Doors(plan.listen, plan.admin, plan.workers, plan.state_dir)
    except StartError as error:
        with suppress(OSError, ValueError):  # for who has just typed the command, wherever the log goes
            print(f"edgegw: {error}", file=sys.stderr, flush=True)
        return 1
    return _Supervisor(plan, doors).run()


class _Phase(IntEnum):
    RUNNING = 0
    DRAINING = 1  # the workers have been asked to go
    CLOSING = 2  # they are gone, and the control process has been asked to go


@dataclass(slots=True, eq=False)
class _Life:
    pid: int
    post: _Post
    started_s: float
    ready: bool = False
    told: bool = False  # it was asked to go
    kill_at_s: float = math.inf

    def settled(self, now_s: float) -> bool:
        return self.ready or now_s >= self.started_s + READY_WAIT_S


@dataclass(slots=True, eq=False)
class _Post:
    """A place to be filled. `elder` serves on during a reload, until `life` is ready."""

    name: str
    slot: int
    life: _Life | None = None
    elder: _Life | None = None
    due_s: float = math.inf  # when to fork
    pause_s: float = RESTART_PAUSE_S
    stillborn: int = 0
    proven: bool = False


class _Supervisor:
    def __init__(self, plan: Plan, doors: Doors) -> None:
        self._plan = plan
        self._doors = doors
        self._ties = Ties()
        self._control = _Post(CONTROL, -1)
        self._workers = [_Post(f"worker{slot}", slot) for slot in range(plan.workers)]
        self._lives: dict[int, _Life] = {}
        self._phase = _Phase.RUNNING
        self._books_s = CONTROL_STOP_S
        self._closing_by_s = math.inf  # set when the workers are gone
        self._exit_code = 0
        self._published = ""
        self._on_signal: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self._reload,
            signal.SIGCHLD: self._reap,
        }

    def run(self) -> int:
        self._ties.listen_for(self._on_signal)
        poll = select.poll()
        for fd in self._ties.watched():
            poll.register(fd, select.POLLIN)
        name_process("edgegw")
        gc.collect()
        try:
            for post in (self._control, *self._workers):
                self._start(post)
            while self._lives or self._phase is not _Phase.CLOSING:
                self._publish()
                poll.poll(self._wait_ms())
                self._hear()
                self._look_around()
        finally:
            self._ties.close()
            for name in (CHANNEL_NAME, PROCESSES_NAME):  # before the lock is let go: the next gateway has its own
                with suppress(OSError):
                    os.unlink(os.path.join(self._plan.state_dir, name))
            self._doors.close()
        return self._exit_code

    # What happened

    def _hear(self) -> None:
        self._hear_ready()
        for number in self._ties.signals_heard():
            self._on_signal[number]()

    def _hear_ready(self) -> None:
        for pid in self._ties.children_ready():
            if pid in self._lives:
                self._lives[pid].ready = True

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._hear_ready()  # its last words, before it is judged
                # As process 1 of a container we also reap strangers.
                life = self._lives.pop(ended[0], None)
                if life is not None:
                    self._bury(life, os.waitstatus_to_exitcode(ended[1]))

    def _bury(self, life: _Life, code: int) -> None:
        post, now_s = life.post, time.monotonic()
        age_s = now_s - life.started_s
        if not life.told:
            how = f"exited with {code}" if code >= 0 else f"died by {signal.Signals(-code).name}"
            _say(f"{post.name} (pid {life.pid}) {how} after {age_s:.1f} s")
        if post.elder is life:
            post.elder = None
        if post.life is not life:
            return
        post.life = None
        if self._phase is not _Phase.RUNNING and post is not self._control:
            return
        if self._phase is _Phase.CLOSING:
            if code < 0 and now_s < self._closing_by_s:  # killed over the last of the books: once more
                self._phase = _Phase.DRAINING
                post.due_s = now_s
            return
        if life.told:  # a reload wants the next one at once
            post.due_s = now_s
            return
        if life.ready or age_s >= STILLBORN_S:
            post.proven = True
        elif not post.proven:
            post.stillborn += 1
        if post.stillborn >= STILLBORN_MAX and not post.proven:
            _say(f"{post.name} cannot start: it died {post.stillborn} times within {STILLBORN_S:g} s; giving up")
            self._exit_code = 1
            self._stop()
            return
        post.due_s = now_s + post.pause_s if age_s < YOUNG_S else now_s
        post.pause_s = min(2 * post.pause_s, RESTART_PAUSE_MAX_S) if age_s < YOUNG_S else RESTART_PAUSE_S

    def _stop(self) -> None:
        """SIGTERM or SIGINT: drain. Once more: be quick."""
        if self._phase is _Phase.RUNNING:
            self._phase = _Phase.DRAINING
            self._doors.stop_listening()  # the workers have their own copies, and decide when to refuse
            for post in self._workers:
                post.due_s = math.inf
            for life in self._lives.values():
                if life.post is not self._control and not life.told:
                    self._tell(life, self._drain_s())
        else:
            self._books_s = FAST_STOP_S
            if math.isfinite(self._closing_by_s):
                self._closing_by_s = time.monotonic()
            for life in self._lives.values():
                if life.told:
                    self._tell(life, FAST_STOP_S)

    def _reload(self) -> None:
        """SIGHUP: new settings, new processes; the old ones finish what they have begun."""
        if self._phase is not _Phase.RUNNING or self._plan.reload is None:
            return
        try:
            plan = self._plan.reload()
            if plan.fixed() != self._plan.fixed():
                raise StartError("addresses, the number of workers and the state directory need a restart")
        except Exception as error:  # whatever is wrong with the new settings, the old ones go on
            _say(f"reload refused, the old settings stay: {error}")
            return
        self._plan = plan
        logger.info("reloading")
        for post in self._workers:
            if post.life is not None and post.elder is not None:  # it never got ready
                self._tell(post.life, self._drain_s())
            else:
                post.elder = post.life
            post.pause_s = RESTART_PAUSE_S
            self._start(post)
        # Two of them must not ship the same journal: the next control process starts when this one has ended.
        if self._control.life is not None and not self._control.life.told:
            self._tell(self._control.life, CONTROL_STOP_S)

    # What to do about it

    def _look_around(self) -> None:
        now_s = time.monotonic()
        for post in (self._control, *self._workers):
            if now_s >= post.due_s:
                self._start(post)
            if post.elder is not None and post.life is not None and post.life.settled(now_s):
                self._tell(post.elder, self._drain_s())
                post.elder = None
        for life in self._lives.values():
            if now_s >= life.kill_at_s:
                life.kill_at_s = math.inf
                _say(f"{life.post.name} (pid {life.pid}) did not stop in time and is killed")
                os.kill(life.pid, signal.SIGKILL)
        if self._phase is _Phase.DRAINING and all(life.post is self._control for life in self._lives.values()):
            self._close_books(now_s)

    def _close_books(self, now_s: float) -> None:
        """The workers are gone: the control process ships what they left, also when it has just been restarted."""
        self._closing_by_s = min(self._closing_by_s, now_s + self._books_s)
        life = self._control.life
        coming = math.isfinite(self._control.due_s) if life is None else not life.settled(now_s)
        if coming and now_s < self._closing_by_s and not self._exit_code:
            return
        self._phase = _Phase.CLOSING
        self._control.due_s = math.inf
        if life is not None:
            self._tell(life, self._books_s)

    def _drain_s(self) -> float:
        return self._plan.drain_timeout_s + DRAIN_MARGIN_S

    def _tell(self, life: _Life, patience_s: float) -> None:
        life.told = True
        life.kill_at_s = min(life.kill_at_s, time.monotonic() + patience_s)
        os.kill(life.pid, signal.SIGTERM)  # not reaped yet, so the pid is still its own

    def _wait_ms(self) -> float | None:
        posts, now_s = (self._control, *self._workers), time.monotonic()
        waits = [post.due_s for post in posts]
        waits += [life.kill_at_s for life in self._lives.values()]
        waits += [life.started_s + READY_WAIT_S for life in self._lives.values() if not life.settled(now_s)]
        if self._phase is _Phase.DRAINING:
            waits.append(self._closing_by_s)
        until_s = min(waits)
        return None if math.isinf(until_s) else max(0.0, math.ceil((until_s - now_s) * 1000))

    def _start(self, post: _Post) -> None:
        post.due_s = math.inf
        post.life = None
        try:
            pid = fork_child(f"edgegw-{post.name}", self._ties, lambda lifeline: self._live(post, lifeline))
        except OSError as error:
            _say(f"{post.name} cannot be forked: {error.strerror}")
            post.due_s = time.monotonic() + post.pause_s
            post.pause_s = min(2 * post.pause_s, RESTART_PAUSE_MAX_S)
            return
        post.life = self._lives[pid] = _Life(pid, post, time.monotonic())

    def _live(self, post: _Post, lifeline: Lifeline) -> int:
        doors = self._doors
        if post is self._control:
            doors.keep_only(doors.admin, doors.channel)
            return self._plan.control(doors.admin, doors.channel, lifeline)
        listening = doors.listening[post.slot]
        doors.keep_only(listening)
        os.close(doors.lock_fd)
        return self._plan.worker(post.slot, listening, lifeline)

    def _publish(self) -> None:
        """`processes.json`, for people and tests: who is who now."""
        serving = {post.name: post.life or post.elder for post in (self._control, *self._workers)}
        control = serving.pop(CONTROL)
        workers = {str(post.slot): life.pid for post in self._workers if (life := serving[post.name]) is not None}
        text = json.dumps({"supervisor": os.getpid(), "control": control and control.pid, "workers": workers})
        if text == self._published:
            return
        path = os.path.join(self._plan.state_dir, PROCESSES_NAME)
        try:
            with open(f"{path}.new", "w", encoding="ascii") as file:
                file.write(text)
            os.replace(f"{path}.new", path)
            self._published = text
        except OSError as error:
            _say(f"cannot write {path}: {error.strerror}")


def _say(what: str) -> None:
    logger.warning("%s", what)
