"""`make bench-telemetry`: what it costs to tell of requests, and which process pays, all from one run.

The same gateway, started once for each way of telling: without traces, with a line on stdout, with all spans to a
collector, with one trace in a hundred. All are pinned to one core, the mock provider, the load client and the collector
to another; they take turns with short rounds of plain requests, as in `make bench`. Metrics are always on.

`worker` is the process that carries the requests: telling must not cost it anything. `control` is the rest of the tree:
rows, metrics, spans. `spans` says how many were sent for each request that the gateway ever had, so that nobody is
cheap for having dropped them.

`--against DIRECTORY` adds the gateways of another checkout of this repository, to compare two versions in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import uvloop

from load import rounds
from load.bench import Start, start_all, stop_all, two_cores
from load.contenders import Contender, ContenderError, free_port, launch, start_gateway, start_mock
from load.measure import CpuMeter
from load.rounds import Figures
from load.tables import table
from load.workloads import WORKLOADS

_ROUNDS = 15
_SECONDS = 4.0  # as in make bench: of which plain requests take half
_PLAIN = next(workload for workload in WORKLOADS if workload.name == "plain")
_SENT = re.compile(r"^edgegw_traces_sent_total (\S+)", re.MULTILINE)
_DROPPED = re.compile(r"^edgegw_traces_dropped_total\{.*\} (\S+)", re.MULTILINE)
_REQUESTS = re.compile(r"^edgegw_requests_total\{.*\} (\S+)", re.MULTILINE)

_ONE_PERCENT = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}


def ways(collector: int) -> dict[str, dict[str, str]]:
    """How a gateway tells of requests, as environments."""
    otlp = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{collector}/"}
    return {
        "off": {"OTEL_TRACES_EXPORTER": "none"},
        "stdout": {"OTEL_TRACES_EXPORTER": "console"},
        "otlp": otlp,
        "otlp-1": otlp | _ONE_PERCENT,
    }


TITLES = {"off": "no traces", "stdout": "lines on stdout", "otlp": "OTLP, all", "otlp-1": "OTLP, 1 %"}
AGAINST = "other"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="load.bench_telemetry", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="rounds of each way (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="twice a round's length (default %(default)s)")
    parser.add_argument("--only", action="append", choices=tuple(TITLES), help="leave out the rest (may be repeated)")
    parser.add_argument("--against", type=Path, metavar="DIRECTORY", help="another checkout, in the same run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE as well")
    return parser.parse_args(arguments)


def start_collector(core: int, run_dir: Path) -> Contender:
    port = free_port()
    command = [sys.executable, "-m", "load.collector", str(port)]
    return launch("collector", port, command, core=core, run_dir=run_dir)


async def measure(asked: argparse.Namespace, run_dir: Path) -> dict[str, tuple[Figures, str]]:
    """By name: the rounds, and spans per request."""
    gateway_core, load_core = two_cores()
    os.sched_setaffinity(0, {load_core})
    helpers = [start_mock(load_core, run_dir), start_collector(load_core, run_dir)]
    gateways: list[Contender] = []
    try:
        for helper in helpers:
            await helper.ready()
        mock, collector = helpers
        checkouts = {"": None} if asked.against is None else {"": None, f"{AGAINST} ": asked.against.resolve()}
        environs = ways(collector.port)
        names = [f"{which}{way}" for way in TITLES if way in (asked.only or TITLES) for which in checkouts]
        starts: dict[str, Start] = {}
        for name in names:
            which, way = name[: name.rfind(" ") + 1], name.rpartition(" ")[2]
            starts[name] = partial(
                start_gateway, name=name.replace(" ", "-"), environ=environs[way], checkout=checkouts[which]
            )
        gateways = await start_all(starts, mock, gateway_core, run_dir)
        figures = await rounds.run(
            _PLAIN, gateways, rounds=asked.rounds, seconds=asked.seconds, meter=CpuMeter.best(), run_dir=run_dir
        )
        spans = await asyncio.to_thread(lambda: [spans_per_request(gateway) for gateway in gateways])
        return {name: (figures[each.name], told) for name, each, told in zip(names, gateways, spans, strict=True)}
    finally:
        stop_all([*gateways, *helpers])


def spans_per_request(gateway: Contender) -> str:
    """With how many were dropped, which makes the figures of that gateway say less."""
    with urlopen(f"http://127.0.0.1:{gateway.admin}/metrics", timeout=10) as reply:
        page = reply.read().decode()
    sent, dropped, requests = (sum(map(float, each.findall(page))) for each in (_SENT, _DROPPED, _REQUESTS))
    return f"{sent / max(1.0, requests):.2f}" + (f" ({dropped:.0f} dropped)" if dropped else "")


def shown(found: Mapping[str, tuple[Figures, str]]) -> str:
    lines: list[Sequence[str]] = []
    for name, (figures, spans) in found.items():
        prefix, _, way = name.rpartition(" ")
        title = f"{TITLES[way]}{', other checkout' if prefix else ''}"
        count = f"{len(figures.samples)}" + (f", {figures.bad_rounds} failed" if figures.bad_rounds else "")
        if figures.samples:
            cells = (f"{figures.worker_us:.1f}", f"{figures.rest_us:.1f}", f"{figures.tree_us:.1f}")
            lines.append((title, *cells, f"+{figures.spread:.0%}", spans, count))
        else:
            lines.append((title, "-", "-", "-", "-", "-", f"{count}: {figures.first_failure}"))
    headings = ("us of CPU per plain request", "worker", "control", "tree", "spread", "spans", "rounds")
    return table(headings, lines)


def main() -> int:
    asked = options()
    with tempfile.TemporaryDirectory(prefix="edgegw-bench-") as run_dir:
        try:
            found = uvloop.run(measure(asked, Path(run_dir)))
        except (ContenderError, OSError) as error:
            print(f"bench-telemetry: {error}", file=sys.stderr)
            return 2
    print(shown(found))
    if asked.json:
        each = {name: [vars_of(sample) for sample in figures.samples] for name, (figures, _) in found.items()}
        asked.json.write_text(json.dumps(each, indent=1) + "\n")
    return 2 if any(figures.bad_rounds for figures, _ in found.values()) else 0


def vars_of(sample: rounds.Sample) -> dict[str, float]:
    return {"worker_us": sample.worker_us, "control_us": sample.rest_us, "units": sample.units}


if __name__ == "__main__":
    sys.exit(main())
