"""`make bench`: what the gateway costs beside plain proxies, all from one run on one machine.

The gateway and every other contender are pinned to one core, the mock provider and the load client to another. Reads as
its story: start all, let them take turns, print the tables, stop all. How to read them: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from load import footprint, plain, report, rounds
from load.contenders import BASELINES, PEERS, Contender, ContenderError, start_gateway, start_mock, start_redis
from load.measure import CpuMeter
from load.report import Verdict
from load.rounds import Figures
from load.workloads import WORKLOADS, Workload

_ROUNDS = 15
_SECONDS = 4.0
_ONLY = (*(workload.name for workload in WORKLOADS), "footprint")

Results = dict[Workload, dict[str, Figures]]
Start = Callable[[int, int, Path], Contender]


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="load.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="rounds of each contender (default %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="of a round of streams; plain gets half (default %(default)s)"
    )
    parser.add_argument("--only", action="append", choices=_ONLY, help="leave out the rest (may be repeated)")
    parser.add_argument("--peers", action="append", default=[], choices=sorted(PEERS), help="add one (may be repeated)")
    parser.add_argument("--redis", action="store_true", help="limits in Redis (which runs on the other core)")
    parser.add_argument("--long", action="store_true", help="200,000 requests for the memory figure, not 50,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE as well")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a bar is missed")
    return parser.parse_args(arguments)


def two_cores() -> tuple[int, int]:
    """One for the contenders, one for everything else. Raises ContenderError on a machine that has only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ContenderError("two cores are needed: one for the contender, one for provider and load")
    return cores[0], cores[1]


async def start_all(starts: Mapping[str, Start], mock: Contender, core: int, run_dir: Path) -> list[Contender]:
    """Every contender, up and answering. Raises ContenderError for the first that is not; those are stopped again."""
    running: list[Contender] = []
    try:
        for start in starts.values():
            contender = start(mock.port, core, run_dir)
            running.append(contender)
            await contender.ready()
            await _answers(contender)
    except BaseException:
        stop_all(running)
        raise
    return running


async def _answers(contender: Contender) -> None:
    try:
        await plain.check(contender.port, WORKLOADS[0].asking.request, verbatim=contender.verbatim)
    except OSError as error:
        raise ContenderError(f"{contender.name} does not answer: {error}\n{contender.complaint()}") from error


def stop_all(contenders: list[Contender]) -> None:
    for contender in contenders:
        contender.stop()


async def bench(asked: argparse.Namespace, starts: Mapping[str, Start], run_dir: Path) -> tuple[Results, list[Verdict]]:
    """All that was asked for, measured: the gateway beside whom `starts` starts. Progress goes to stderr."""
    contender_core, load_core = two_cores()
    os.sched_setaffinity(0, {load_core})
    meter = CpuMeter.best()
    only = asked.only or _ONLY
    mock = start_mock(load_core, run_dir)
    contenders: list[Contender] = []
    redis = start_redis(load_core, run_dir) if asked.redis else None
    start = partial(start_gateway, redis=redis)
    try:
        await mock.ready()
        if redis is not None:
            await redis.ready()
        found: list[Verdict] = []
        if "footprint" in only:
            _say("footprint")
            found = await footprint.measure(start, mock, contender_core, run_dir, meter, long=asked.long)
        workloads = [workload for workload in WORKLOADS if workload.name in only]
        results: Results = {}
        if workloads:
            contenders = await start_all({report.GATEWAY: start, **starts}, mock, contender_core, run_dir)
        for workload in workloads:
            _say(f"{workload.name}: {asked.rounds} rounds of {', '.join(each.name for each in contenders)}")
            results[workload] = await rounds.run(
                workload, contenders, rounds=asked.rounds, seconds=asked.seconds, meter=meter, run_dir=run_dir
            )
        return results, found
    finally:
        stop_all([*contenders, mock, *([] if redis is None else [redis])])


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def show(results: Results, found: list[Verdict], asked: argparse.Namespace) -> None:
    meter = CpuMeter.best()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}; "
        f"CPU time from /proc/PID/{meter.source}; {asked.rounds} rounds, the lower quartile of each contender; "
        f"plain requests by {'wrk' if plain.wrk_program() else 'our own client'}; "
        f"limits in {'Redis' if asked.redis else 'memory'}\n"
    )
    if results:
        print(report.costs_table(results), report.ratios_table(results), sep="\n\n", end="\n\n")
    if found:
        print(report.footprint_table(found), end="\n\n")
    for line in report.failures(results):
        print(f"NOT COUNTED: {line}")


def as_json(results: Results, found: list[Verdict]) -> dict[str, Any]:
    """Every round, every ratio, every footprint figure: for those who compare runs."""
    return {
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "cpu_time_source": CpuMeter.best().source,
        "workloads": {
            workload.name: {
                "contenders": {name: dataclasses.asdict(figure) for name, figure in figures.items()},
                "verdicts": [_verdict(verdict) for verdict in report.verdicts(workload, figures)],
            }
            for workload, figures in results.items()
        },
        "footprint": [_verdict(verdict) for verdict in found],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return dataclasses.asdict(verdict) | {"met": verdict.met}


def outcome(results: Results, found: list[Verdict], *, strict: bool) -> int:
    """2 when a contender failed requests in a round, 1 when a bar is missed (and that was asked for), else 0."""
    if report.failures(results):
        return 2
    judged = [verdict for workload, figures in results.items() for verdict in report.verdicts(workload, figures)]
    return int(strict and any(verdict.met is False for verdict in (*judged, *found)))


def main() -> int:
    asked = options()
    starts: dict[str, Start] = BASELINES | {name: PEERS[name] for name in asked.peers}
    with tempfile.TemporaryDirectory(prefix="edgegw-bench-") as run_dir:
        try:
            results, found = uvloop.run(bench(asked, starts, Path(run_dir)))
        except (ContenderError, OSError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
    show(results, found, asked)
    if asked.json:
        asked.json.write_text(json.dumps(as_json(results, found), indent=1) + "\n")
    return outcome(results, found, strict=asked.strict)


if __name__ == "__main__":
    sys.exit(main())
