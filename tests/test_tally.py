"""The tally: what a worker counted is there when it is gone, however it went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rig import REPOSITORY
from tally_writer import STEP

from edgegw.limits import tally


def test_a_new_tally_is_of_zeros_and_costs_nothing(tmp_path: Path) -> None:
    file = tally.path(tmp_path, 3, 77)
    cells = tally.create(file, 40_000)
    assert file.stat().st_blocks * 512 <= 8192, "sparse"
    assert (len(cells), sum(cells)) == (40_000, 0)
    cells[39_999] = -5
    seen = tally.read(file)
    assert seen is not None
    assert (seen[39_999], seen[0], len(seen)) == (-5, 0, 40_000)


def test_a_tally_of_the_same_name_begins_anew(tmp_path: Path) -> None:
    file = tally.path(tmp_path, 0, 1)
    tally.create(file, 4)[0] = 9
    assert list(tally.create(file, 2)) == [0, 0]


def test_who_reads_sees_every_change_also_after_the_file_is_removed(tmp_path: Path) -> None:
    file = tally.path(tmp_path, 0, 1)
    cells = tally.create(file, 2)
    seen = tally.read(file)
    assert seen is not None
    tally.remove(file)
    tally.remove(file)  # twice is nothing new
    cells[1] += 2**62
    assert seen[1] == 2**62
    assert tally.read(file) is None


@pytest.mark.parametrize("content", [None, b""])
def test_what_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tally-0-1"
    if content is not None:
        file.write_bytes(content)
    assert tally.read(file) is None


def test_tallies_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    ours, theirs = tally.path(tmp_path, 0, os.getpid()), tally.path(tmp_path, 1, dead.pid)
    for file in (ours, theirs, tmp_path / "tally-x-y", tmp_path / "limits.state"):
        file.write_bytes(bytes(8))
    tally.sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([ours.name, "limits.state", "tally-x-y"])


@pytest.mark.parametrize("steps", [1, 500, 5000])
def test_what_a_process_counted_outlives_its_kill_9(tmp_path: Path, steps: int) -> None:
    file = tally.path(tmp_path, 0, 1)
    command = [sys.executable, str(Path(__file__).with_name("tally_writer.py")), str(file), "7"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= steps:
                break
        seen = tally.read(file)
        writer.kill()
        told = [int(line) for line in writer.stdout.read().split(b"\n") if line]
    assert seen is not None
    counted = sum(seen)
    last = told[-1] if told else steps
    assert counted % STEP == 0, "no cell was half written"
    assert last * STEP <= counted <= (last + 1) * STEP, "all that it said, and at most the step in which it died"
