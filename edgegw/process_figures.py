"""What the kernel says of a process of ours: its memory and its CPU time, 0 where /proc does not say."""

from __future__ import annotations

import os

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields behind the name in /proc/PID/stat (proc(5), which counts from 1, and from before the name).
_UTIME, _STIME = 14 - 3, 15 - 3


def resident_bytes(pid: int | str = "self") -> int:
    try:
        return int(_read(pid, "statm").split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def cpu_s(pid: int | str = "self") -> float:
    """Since it started."""
    try:
        fields = _read(pid, "stat").rpartition(b")")[2].split()  # a name may hold anything
        return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S
    except (OSError, ValueError, IndexError):
        return 0.0


def _read(pid: int | str, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()
