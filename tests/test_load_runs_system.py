"""A few seconds of each load run, with a few users: the whole way from the processes to the report.

Locust has a venv of its own (`make build/locust/.locust`; `make load-sidecar` and `make load-edge` see to it), and to
install it takes longer than these tests. They are skipped where nobody has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rig import REPOSITORY

LOCUST = REPOSITORY / "build" / "locust" / ".locust"
# Other tests run beside these: what a minute on a quiet machine keeps to is not asked of them.
BARS = ("ttft_p95=2000", "ttft_p99=4000", "total_p95=2000", "total_p99=4000", "generator_cpu_percent=1000")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not LOCUST.exists(), reason="locust is not installed: make build/locust/.locust"),
]


def run(place: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    bars = [part for bar in BARS for part in ("--bar", bar)]
    command = [sys.executable, "-m", "load.locust_run", place, "--time", "8", "--users", "6", "--out", str(out)]
    command += ["--latency", "30", "--pace", "5", *bars, *arguments]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=150)


@pytest.mark.parametrize("place", ["sidecar", "edge"])
def test_a_short_run_passes_and_leaves_its_report(place: str, tmp_path: Path) -> None:
    done = run(place, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"report: {tmp_path / 'index.html'}" in done.stdout
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.count("<img ") == 9
    assert len(list(tmp_path.glob("*.png"))) == 9
    assert "rows lost, doubled, wrong" in page
    own = (tmp_path / "locust.txt").read_text("utf-8")
    assert {"POST", "TTFT", "gap"} <= {line.split(" ", 1)[0] for line in own.splitlines()}


def test_a_bar_that_is_missed_fails_the_run(tmp_path: Path) -> None:
    done = run("sidecar", tmp_path, "--time", "3", "--bar", "total_p95=0.001")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout
    assert 'class="outcome bad">failed' in (tmp_path / "index.html").read_text("utf-8")
