"""The supervisor with real processes: small children, real signals, bounded waits. Traces of what an operator does."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from edgegw import logs, supervisor
from edgegw.child import Lifeline, Ties, fork_child
from edgegw.doors import Doors, StartError
from edgegw.supervisor import Plan

pytestmark = pytest.mark.system

WAIT_S = 15.0


def until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {WAIT_S} s for: {what}"
        time.sleep(0.005)


def told_to_go(lifeline: Lifeline) -> tuple[int, int]:
    """Descriptors that become readable on SIGTERM and when the supervisor is gone."""
    signals_r, signals_w = os.pipe()
    os.set_blocking(signals_w, False)
    signal.set_wakeup_fd(signals_w)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return signals_r, lifeline.fd


def waited_for(fds: set[int], *sockets: socket.socket) -> list[int | socket.socket]:
    return [*fds, *sockets]


class Children:
    """The functions that the children become. They write what happens to them into one file, a line each."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def note(self, what: str) -> None:
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{what} {os.getpid()}\n".encode())
        os.close(fd)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def serving(self, greeting: str = "old") -> Callable[[int, socket.socket, Lifeline], int]:
        """Answers each connection with its greeting and pid when it has read a byte; on SIGTERM stops accepting and
        finishes the connections it has."""

        def worker(slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
            ends = set(told_to_go(lifeline))
            self.note(f"worker{slot}-start")
            lifeline.ready()
            open_connections: list[socket.socket] = []
            watched: list[socket.socket] = [listening]
            while watched or open_connections:
                ready, _, _ = select.select(waited_for(ends, *watched, *open_connections), [], [])
                if ends.intersection(ready):
                    watched, ends = [], set()
                    listening.close()
                    continue
                for sock in [*watched, *open_connections]:
                    if sock not in ready:
                        continue
                    if sock is listening:
                        with suppress(BlockingIOError):
                            open_connections.append(listening.accept()[0])
                    else:
                        if sock.recv(100):
                            sock.sendall(f"{greeting} {os.getpid()}".encode())
                        sock.close()
                        open_connections.remove(sock)
            self.note(f"worker{slot}-end")
            return 0

        return worker

    def control(self, admin: socket.socket, channel: socket.socket, lifeline: Lifeline) -> int:
        ends = set(told_to_go(lifeline))
        self.note("control-start")
        lifeline.ready()
        while True:
            ready, _, _ = select.select(waited_for(ends, admin, channel), [], [])
            if ends.intersection(ready):
                self.note("control-end")
                return 0
            for sock in {admin, channel}.intersection(ready):
                connection = sock.accept()[0]
                connection.sendall(f"control {os.getpid()}".encode())
                connection.close()


class Gateway:
    """A supervisor in a process of its own."""

    def __init__(self, plan: Plan, stderr: Path) -> None:
        self.plan = plan
        self._stderr = stderr
        self._state = Path(plan.state_dir)
        self._ended: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                sys.stderr = stderr.open("w", buffering=1)
                logs.start(logs.Wanted("INFO", "text"), sys.stderr.fileno())
                code = supervisor.run(plan)
            finally:
                os._exit(code)

    def said(self) -> str:
        return self._stderr.read_text() if self._stderr.exists() else ""

    def processes(self) -> dict[str, object]:
        try:
            found = json.loads((self._state / "processes.json").read_text())
        except FileNotFoundError:
            return {}
        assert isinstance(found, dict)
        return found if found["supervisor"] == self.pid else {}

    def control_pid(self) -> int:
        found = self.processes().get("control")
        return found if isinstance(found, int) else 0

    def worker_pid(self, slot: int = 0) -> int:
        found = self.processes().get("workers", {})
        assert isinstance(found, dict)
        return int(found.get(str(slot), 0))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        def over() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended = os.waitstatus_to_exitcode(status)
            return bool(pid)

        if self._ended is None:
            until(over, f"the supervisor's end; it said {self.said()!r}")
        assert self._ended is not None
        return self._ended

    def kill(self) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            if self._ended is None:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ask(port: int) -> list[str]:
    """Greeting and pid of whoever answers; waits in the backlog as long as nobody does."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        sock.sendall(b"?")
        return sock.recv(100).decode().split()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def opened(pid: int) -> list[str]:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(entry))
    return links


def listening_sockets(pid: int) -> set[str]:
    """Inodes of the listening TCP sockets that a process has open."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{line[9]}]" for line in lines if line[3] == "0A"} & set(opened(pid))


def accepted(pid: int, connection: socket.socket) -> bool:
    """Has the process accepted the other end of `connection`?"""
    port = f":{connection.getsockname()[1]:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[2].endswith(port) and f"socket:[{line[9]}]" in opened(pid) for line in lines)


@pytest.fixture
def children(tmp_path: Path) -> Children:
    return Children(tmp_path / "log")


@pytest.fixture
def plan(tmp_path: Path, children: Children) -> Plan:
    return Plan(
        listen=("127.0.0.1", free_port()),
        admin=("127.0.0.1", free_port()),
        workers=1,
        state_dir=str(tmp_path / "state"),
        drain_timeout_s=10.0,
        worker=children.serving(),
        control=children.control,
    )


Start = Callable[[Plan], Gateway]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Gateway] = []

    def go(plan: Plan) -> Gateway:
        gateway = Gateway(plan, tmp_path / f"stderr{len(started)}")
        started.append(gateway)
        return gateway

    yield go
    for gateway in started:
        pids = [gateway.control_pid(), *(gateway.worker_pid(slot) for slot in range(gateway.plan.workers))]
        gateway.kill()
        for pid in filter(None, pids):  # they leave by themselves, but for those that a test has made stubborn
            with suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("edgegw-"):
                    os.kill(pid, signal.SIGKILL)


def up(gateway: Gateway, children: Children) -> Gateway:
    wanted = {"control-start", *(f"worker{slot}-start" for slot in range(gateway.plan.workers))}
    until(lambda: wanted <= {line.split()[0] for line in children.lines()}, "all children")
    until(lambda: gateway.control_pid() and gateway.worker_pid(), "processes.json")
    return gateway


def test_serves_names_its_processes_and_stops_workers_before_control(
    plan: Plan, start: Start, children: Children
) -> None:
    gateway = up(start(replace(plan, workers=2)), children)
    assert ask(plan.listen[1])[0] == "old"
    assert ask(plan.admin[1]) == ["control", str(gateway.control_pid())]
    pids = {
        "edgegw": gateway.pid,
        "edgegw-control": gateway.control_pid(),
        "edgegw-worker0": gateway.worker_pid(0),
        "edgegw-worker1": gateway.worker_pid(1),
    }
    for name, pid in pids.items():
        assert Path(f"/proc/{pid}/comm").read_text().strip() == name
    gateway.signal(signal.SIGTERM)
    assert gateway.exit_code() == 0
    assert [line.split()[0] for line in children.lines()][-1] == "control-end"
    assert {line.split()[0] for line in children.lines()[-3:-1]} == {"worker0-end", "worker1-end"}
    assert not any(alive(pid) for pid in pids.values())
    assert sorted(os.listdir(plan.state_dir)) == ["lock"]
    with pytest.raises(ConnectionRefusedError):
        ask(plan.listen[1])


def test_a_killed_worker_is_replaced_and_no_connection_is_refused(plan: Plan, start: Start, children: Children) -> None:
    gateway = up(start(plan), children)
    for _ in range(3):
        pid = gateway.worker_pid()
        os.kill(pid, signal.SIGKILL)
        answered_by = int(ask(plan.listen[1])[1])  # refused or reset would raise
        assert answered_by != pid
        until(lambda: gateway.worker_pid() == answered_by, "the new worker in processes.json")  # noqa: B023
    assert gateway.said().count("worker0") == 3
    assert "died by SIGKILL" in gateway.said()


def test_a_killed_control_process_is_replaced_on_the_same_sockets(plan: Plan, start: Start, children: Children) -> None:
    gateway = up(start(plan), children)
    worker, old = gateway.worker_pid(), gateway.control_pid()
    os.kill(old, signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(WAIT_S)
        channel.connect(f"{plan.state_dir}/control.sock")
        _, new = channel.recv(100).decode().split()
    assert ask(plan.admin[1])[1] == new != str(old)
    assert gateway.worker_pid() == worker


def test_control_killed_just_before_the_stop_comes_back_to_ship(plan: Plan, start: Start, children: Children) -> None:
    gateway = up(start(plan), children)
    with socket.create_connection(plan.listen) as held:
        until(lambda: accepted(gateway.worker_pid(), held), "the connection to be accepted")
        gateway.signal(signal.SIGTERM)
        os.kill(gateway.control_pid(), signal.SIGKILL)
        held.sendall(b"?")
        assert held.recv(100)
    assert gateway.exit_code() == 0
    assert [line.split()[0] for line in children.lines()].count("control-start") == 2
    assert children.lines()[-1].startswith("control-end")


def test_control_killed_over_the_last_of_the_books_ships_once_more(
    plan: Plan, start: Start, children: Children
) -> None:
    def slow(admin: socket.socket, channel: socket.socket, lifeline: Lifeline) -> int:
        if any(line.startswith("shipping") for line in children.lines()):
            return children.control(admin, channel, lifeline)
        children.note("control-start")
        lifeline.ready()
        ends = told_to_go(lifeline)
        select.select(ends, [], [])
        children.note("shipping")
        select.select(ends[1:], [], [])
        return 0

    gateway = up(start(replace(plan, control=slow)), children)
    control = gateway.control_pid()
    gateway.signal(signal.SIGTERM)
    until(lambda: any(line.startswith("shipping") for line in children.lines()), "the control process to be told")
    os.kill(control, signal.SIGKILL)
    assert gateway.exit_code() == 0
    assert children.lines()[-1].startswith("control-end")


def test_a_worker_that_cannot_start_ends_the_gateway_with_1(plan: Plan, start: Start, children: Children) -> None:
    def stillborn(slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
        children.note(f"born-{time.monotonic()}")
        raise RuntimeError("no such provider")

    gateway = start(replace(plan, worker=stillborn))
    assert gateway.exit_code() == 1
    births = [float(line.split()[0].removeprefix("born-")) for line in children.lines() if line.startswith("born-")]
    assert len(births) == supervisor.STILLBORN_MAX
    pauses = [later - earlier for earlier, later in pairwise(births)]
    for pause, wanted in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert wanted <= pause < wanted + 2
    assert "RuntimeError: no such provider" in gateway.said()
    assert "worker0 cannot start" in gateway.said()
    assert children.lines()[-1].startswith("control-end")


def test_a_worker_that_dies_young_but_was_ready_is_never_given_up(
    plan: Plan, start: Start, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says it is ready and dies at once, more often than a stillborn may: the gateway goes on."""
    monkeypatch.setattr(supervisor, "RESTART_PAUSE_MAX_S", 0.2)

    def fragile(slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
        if sum(line.startswith("worker0-start") for line in children.lines()) > supervisor.STILLBORN_MAX:
            return children.serving()(slot, listening, lifeline)
        children.note("worker0-start")
        lifeline.ready()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    gateway = start(replace(plan, worker=fragile))
    until(lambda: children.lines(), "the first birth")
    assert ask(plan.listen[1])[0] == "old"
    gateway.signal(signal.SIGTERM)
    assert gateway.exit_code() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_said(plan: Plan, start: Start, tmp_path: Path, children: Children, workers: int) -> None:
    up(start(replace(plan, workers=workers)), children)
    other = replace(plan, workers=workers, state_dir=str(tmp_path / "other"), admin=("127.0.0.1", free_port()))
    second = start(other)
    assert second.exit_code() == 1
    assert f"cannot listen on 127.0.0.1:{plan.listen[1]}: another program listens there" in second.said()


def test_a_second_gateway_on_the_same_state_is_refused(plan: Plan, start: Start, children: Children) -> None:
    first = up(start(plan), children)
    second = start(replace(plan, listen=("127.0.0.1", free_port()), admin=("127.0.0.1", free_port())))
    assert second.exit_code() == 1
    assert f"another gateway (pid {first.pid}) runs on the state directory" in second.said()
    assert ask(plan.admin[1])[1] == str(first.control_pid())  # and it has not taken the first one's channel away
    assert Path(plan.state_dir, "control.sock").exists()


def test_what_cannot_be_opened_is_said(plan: Plan, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(StartError, match="cannot use the state directory"):
        Doors(plan.listen, plan.admin, 1, str(in_the_way))
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:1: "):
        Doors(("192.0.2.1", 1), plan.admin, 1, plan.state_dir)
    Path(plan.state_dir, "control.sock").mkdir()
    with pytest.raises(StartError, match=r"cannot make the socket .*control\.sock"):
        Doors(plan.listen, plan.admin, 1, plan.state_dir)
    Path(plan.state_dir, "control.sock").rmdir()
    Doors(plan.listen, plan.admin, 1, plan.state_dir).close()  # nothing was left open or locked


def test_a_stale_channel_and_a_deep_directory_are_no_obstacle(tmp_path: Path) -> None:
    state_dir = str(tmp_path.joinpath(*["deep" * 10] * 4))
    for _ in range(2):  # the second finds the first one's file
        doors = Doors(("127.0.0.1", 0), ("127.0.0.1", 0), 2, state_dir)
        ports = {sock.getsockname()[1] for sock in doors.listening}
        assert len(ports) == 1
        assert os.stat(f"{state_dir}/control.sock").st_mode & 0o777 == 0o600
        doors.close()


@pytest.mark.parametrize(("host", "peer"), [("::1", "::1"), ("::", "127.0.0.1"), ("localhost", "localhost")])
def test_addresses(tmp_path: Path, host: str, peer: str) -> None:
    if ":" in host and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    doors = Doors((host, 0), ("127.0.0.1", 0), 1, str(tmp_path))
    socket.create_connection((peer, doors.listening[0].getsockname()[1]), timeout=WAIT_S).close()
    doors.close()


def test_reload_refuses_no_connection_and_cuts_no_stream(plan: Plan, start: Start, children: Children) -> None:
    new = replace(plan, worker=children.serving("new"))
    gateway = up(start(replace(plan, reload=lambda: new)), children)
    old_worker, old_control = gateway.worker_pid(), gateway.control_pid()
    with socket.create_connection(plan.listen) as held:
        until(lambda: accepted(old_worker, held), "the connection to be accepted")
        gateway.signal(signal.SIGHUP)
        until(lambda: ask(plan.listen[1])[0] == "new", "an answer of the new worker")  # none of them is refused
        until(lambda: gateway.control_pid() not in (0, old_control), "the new control process")
        assert alive(old_worker)
        held.sendall(b"?")
        assert held.recv(100).decode() == f"old {old_worker}"
    until(lambda: not alive(old_worker), "the end of the old worker")
    assert gateway.worker_pid() != old_worker
    gateway.signal(signal.SIGTERM)
    assert gateway.exit_code() == 0


@pytest.mark.parametrize("trouble", ["raises", "moves"])
def test_a_bad_reload_changes_nothing(plan: Plan, start: Start, children: Children, trouble: str) -> None:
    def reload() -> Plan:
        if trouble == "raises":
            raise ValueError("edgegw.yaml:3:1: unknown key")
        return replace(plan, workers=2)

    gateway = up(start(replace(plan, reload=reload)), children)
    before = gateway.processes()
    gateway.signal(signal.SIGHUP)
    until(lambda: "reload refused, the old settings stay" in gateway.said(), "the refusal")
    assert ("unknown key" in gateway.said()) == (trouble == "raises")
    assert gateway.processes() == before
    assert ask(plan.listen[1]) == ["old", str(gateway.worker_pid())]


def test_a_reload_to_a_worker_that_cannot_start_leaves_the_old_one_serving(
    plan: Plan, start: Start, children: Children
) -> None:
    def broken(slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
        children.note("broken")
        return 3

    new = replace(plan, worker=broken)
    gateway = up(start(replace(plan, reload=lambda: new)), children)
    old = gateway.worker_pid()
    gateway.signal(signal.SIGHUP)
    until(lambda: sum(line.startswith("broken") for line in children.lines()) >= 3, "three deaths of the new worker")
    assert ask(plan.listen[1]) == ["old", str(old)]
    gateway.signal(signal.SIGTERM)
    assert gateway.exit_code() == 0


def test_a_storm_of_signals_loses_none(plan: Plan, start: Start, children: Children) -> None:
    gateway = up(start(replace(plan, workers=2, reload=lambda: replace(plan, workers=2))), children)
    first = {gateway.control_pid(), gateway.worker_pid(0), gateway.worker_pid(1)}
    for number in [signal.SIGHUP, signal.SIGCHLD, signal.SIGHUP] * 4:
        gateway.signal(number)
        ask(plan.listen[1])
    until(lambda: not any(map(alive, first)), "everybody to be replaced")
    gateway.signal(signal.SIGTERM)
    assert gateway.exit_code() == 0
    pids = {int(line.split()[1]) for line in children.lines()}
    assert not any(map(alive, pids))
    assert children.lines()[-1].startswith("control-end")


@pytest.mark.parametrize("how", ["twice", "late"])
def test_a_worker_that_will_not_go_is_killed(
    plan: Plan, start: Start, children: Children, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By a second SIGTERM, or when the time to drain is over."""
    monkeypatch.setattr(supervisor, "FAST_STOP_S", 0.2)
    monkeypatch.setattr(supervisor, "DRAIN_MARGIN_S", 0.2)

    def stubborn(slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        children.note(f"worker{slot}-start")
        lifeline.ready()
        while True:
            signal.pause()

    gateway = up(start(replace(plan, worker=stubborn, drain_timeout_s=0.1 if how == "late" else 60.0)), children)
    worker = gateway.worker_pid()
    gateway.signal(signal.SIGTERM)
    if how == "twice":
        until(lambda: len(listening_sockets(gateway.pid)) == 1, "only the admin port to be open in the supervisor")
        gateway.signal(signal.SIGTERM)
    assert gateway.exit_code() == 0
    assert f"worker0 (pid {worker}) did not stop in time and is killed" in gateway.said()


def test_children_leave_when_the_supervisor_is_killed_and_the_lock_is_free(
    plan: Plan, start: Start, children: Children
) -> None:
    gateway = up(start(plan), children)
    pids = [gateway.control_pid(), gateway.worker_pid()]
    os.kill(gateway.pid, signal.SIGKILL)
    assert gateway.exit_code() == -signal.SIGKILL
    for pid in pids:
        until(lambda pid=pid: not alive(pid), "the children's end")  # type: ignore[misc]
    again = start(plan)
    until(lambda: again.worker_pid(), f"a successor; it said {again.said()!r}")
    assert ask(plan.listen[1])[0] == "old"


def test_a_stop_right_after_the_start_is_clean(plan: Plan, start: Start, children: Children) -> None:
    for _ in range(3):
        gateway = start(replace(plan, workers=2))
        until(lambda: gateway.processes(), "the first forks")  # noqa: B023
        gateway.signal(signal.SIGTERM)
        assert gateway.exit_code() == 0
    pids = {int(line.split()[1]) for line in children.lines()}
    assert not any(map(alive, pids))


def test_children_keep_only_what_is_theirs(plan: Plan, start: Start, children: Children) -> None:
    """A worker has its own listening socket and no lock; the control process holds the lock and no listening socket."""
    gateway = up(start(replace(plan, workers=2)), children)
    own = [listening_sockets(gateway.worker_pid(slot)) for slot in range(2)]
    assert [len(sockets) for sockets in own] == [1, 1]
    assert own[0] != own[1]
    assert not listening_sockets(gateway.control_pid()) & (own[0] | own[1])
    assert any(link.endswith("/lock") for link in opened(gateway.control_pid()))
    assert not any(link.endswith("/lock") for link in opened(gateway.worker_pid()))


def test_why_a_child_gives_up_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    def give_up(_: Lifeline) -> int:
        raise SystemExit("storage.database_url needs asyncpg")

    ties = Ties()
    ties.listen_for(())
    try:
        pid = fork_child("edgegw-control", ties, give_up)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    finally:
        ties.close()
    assert capfd.readouterr().err == "edgegw-control: storage.database_url needs asyncpg\n"
