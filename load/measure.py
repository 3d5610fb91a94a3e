"""What processes have cost so far, read from /proc, and the one statistic the benchmark trusts.

CPU time comes from `schedstat` (nanoseconds, every thread) where the kernel keeps it, else from `stat` (ticks of
10 ms). Both count user and system time. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_BURN_NS = 2_000_000  # enough work for a live schedstat to move


def tree_of(pid: int) -> list[int]:
    """`pid` and all its descendants that are alive."""
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        found.append(parent)
        try:
            for task in (_PROC / str(parent) / "task").iterdir():
                waiting.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:
            continue  # ended while we were looking
    return found


@dataclass(frozen=True, slots=True)
class CpuMeter:
    """Reads CPU time in nanoseconds, from the better source this kernel offers."""

    source: str  # "schedstat" or "stat"

    @classmethod
    def best(cls) -> CpuMeter:
        """A kernel may lack schedstat or leave it at zero: burn a little and see whether ours moved."""
        try:
            before = _schedstat_ns(os.getpid())
            until = time.process_time_ns() + _BURN_NS
            while time.process_time_ns() < until:
                pass
            os.sched_yield()  # the figure is brought up to date when the scheduler looks
            return cls("schedstat" if _schedstat_ns(os.getpid()) > before else "stat")
        except OSError:
            return cls("stat")

    def process_ns(self, pid: int) -> int:
        """0 for a process that is gone."""
        try:
            return _schedstat_ns(pid) if self.source == "schedstat" else _stat_ns(pid)
        except OSError:
            return 0

    def tree_ns(self, pid: int) -> int:
        return sum(self.process_ns(each) for each in tree_of(pid))


def _schedstat_ns(pid: int) -> int:
    tasks = (_PROC / str(pid) / "task").iterdir()
    return sum(int((task / "schedstat").read_text().split(" ", 1)[0]) for task in tasks)


def _stat_ns(pid: int) -> int:
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _NS_PER_TICK  # utime, stime: proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB of a process tree. `pss` shares each page fairly among those who map it; `anonymous` is the part that is
    neither a file (libraries, the mapped journal) nor shared memory: the heap."""

    pss_mib: float
    anonymous_mib: float


def memory_of(pid: int) -> Memory:
    pss = anonymous = 0
    for each in tree_of(pid):
        try:
            lines = (_PROC / str(each) / "smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        pss += kib["Pss"]
        anonymous += kib["Pss_Anon"]
    return Memory(pss / 1024, anonymous / 1024)


def resident_mib(pid: int, name: str = "VmRSS") -> float:
    """Of one process; VmHWM is the most it ever was. 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the (not necessarily sorted) values lie, between neighbours by proportion."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def lower_quartile(values: Sequence[float]) -> float:
    """Noise on a shared machine mostly adds, so the better rounds are nearer to the truth; the best may be a fluke."""
    return percentile(values, 0.25)
