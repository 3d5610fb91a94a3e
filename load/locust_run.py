"""A load run from beginning to end: `python -m load.locust_run sidecar|edge` (`make load-sidecar`, `make load-edge`).

Starts what is asked (locust_stage.py), lets locust play against it in a venv of its own, watches what the processes
cost, judges (locust_verdicts.py), prints the table, and leaves a report with its evidence in build/load/<time>/.

Exit code 1 when a bar is missed, 2 when there was nothing to judge.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from load.locust_figures import Load, charts_of, kinds, problems
from load.locust_outcome import Outcome, outcome_of
from load.locust_page import HEADINGS, WORDS, Page, cells, rendered
from load.locust_stage import Place, edge, elsewhere, sidecar
from load.locust_verdicts import Verdict, bars_of, of_generator, of_limits, of_replies, passed
from load.measure import CpuMeter, memory_of
from load.processes import REPOSITORY
from load.tables import table

PLACES = {"sidecar": sidecar, "edge": edge}
LOCUST = REPOSITORY / "build" / "locust" / "bin" / "python"
GENERATOR = "generator (locust)"
RAMP_S = 5.0
STOP_WITHIN_S = 30  # for what is under way when the time is over
WEB_PORT = 8089
SHOWN_PROBLEMS = 15


@dataclass(slots=True)
class Watch:
    """Looks at processes once a second, in a thread of its own."""

    groups: dict[str, int]
    loads: list[Load] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _run(self) -> None:
        meter = CpuMeter.best()
        before, before_s = {name: meter.tree_ns(pid) for name, pid in self.groups.items()}, time.monotonic()
        while not self._over.wait(1.0):
            now, now_s = {name: meter.tree_ns(pid) for name, pid in self.groups.items()}, time.monotonic()
            cpu = {name: max(0, now[name] - before[name]) / 1e7 / (now_s - before_s) for name in now}
            memory = {name: memory_of(pid).pss_mib for name, pid in self.groups.items() if name.startswith("gateway")}
            self.loads.append(Load(time.time(), cpu, memory))
            before, before_s = now, now_s


@dataclass(frozen=True, slots=True)
class Played:
    """`code`: locust's exit code, which is not 0 when a request went wrong, and when a user of it broke."""

    outcomes: list[Outcome]
    loads: list[Load]
    code: int


def generate(arguments: argparse.Namespace, place: Place, directory: Path) -> Played:
    """Locust, until it is over: by the time, by its page, or by Ctrl-C."""
    command = [str(LOCUST), "-m", "locust", "-f", f"load/locust_{arguments.place}.py", "--host", ",".join(place.hosts)]
    command += ["--users", str(arguments.users), "--spawn-rate", str(max(1.0, arguments.users / RAMP_S))]
    command += ["--stop-timeout", str(STOP_WITHIN_S), "--record", str(directory / "requests.jsonl")]
    command += ["--model", arguments.model, "--loglevel", "WARNING"]
    if place.simulator is not None:
        command += ["--direct", place.simulator.url, "--faults", "1"]
        command += ["--told-latency-ms", str(arguments.latency), "--told-pace-ms", str(arguments.pace)]
    if place.keys is not None:
        command += ["--keys", str(place.keys)]
    if arguments.web:
        command += ["--web-host", "127.0.0.1", "--web-port", str(WEB_PORT), "--autostart"]
        print(f"http://127.0.0.1:{WEB_PORT} shows the run; Ctrl-C ends it and writes the report", flush=True)
    else:
        command += ["--headless", "--run-time", f"{arguments.time:g}s"]
    with (directory / "locust.txt").open("wb") as said:
        locust = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # locust hears it too, and ends in peace
        watch = Watch({**place.groups, GENERATOR: locust.pid})
        try:
            with watch.going():
                locust.wait(None if arguments.web else arguments.time + STOP_WITHIN_S + 60)
        finally:
            signal.signal(signal.SIGINT, before)
            if locust.poll() is None:
                locust.kill()
                locust.wait()
    with contextlib.suppress(FileNotFoundError):
        lines = (directory / "requests.jsonl").read_text("utf-8").splitlines()
        return Played([outcome_of(line) for line in lines], watch.loads, locust.returncode)
    return Played([], watch.loads, locust.returncode)


def judged(arguments: argparse.Namespace, place: Place, played: Played) -> list[Verdict]:
    bars = bars_of(arguments.bar)
    verdicts = of_replies(played.outcomes, bars) + of_limits(played.outcomes, place.narrow)
    if place.gateways:
        verdicts += place.close_books(played.outcomes)
    told = any(one.problem for one in played.outcomes)
    return [
        *verdicts,
        Verdict("the generator's exit code", "0, or errors above", str(played.code), played.code == 0 or told),
        of_generator([load.cpu[GENERATOR] for load in played.loads], bars),
    ]


def report(directory: Path, page: Page, outcomes: Sequence[Outcome], loads: Sequence[Load]) -> None:
    """Charts, page and figures, beside the record that they were made of."""
    (directory / "charts.json").write_text(json.dumps(charts_of(outcomes, loads)), "utf-8")
    subprocess.run([str(LOCUST), "-m", "load.locust_charts", str(directory)], cwd=REPOSITORY, check=True)
    names = json.loads((directory / "drawn.json").read_text("utf-8"))
    charts = {name: (directory / f"{name}.svg").read_bytes() for name in names}
    for name in names:
        (directory / f"{name}.svg").unlink()  # the page has them
    (directory / "drawn.json").unlink()
    whole = Page(page.title, page.facts, page.verdicts, charts, page.kinds, page.notes)
    (directory / "index.html").write_text(rendered(whole), "utf-8")


def facts_of(arguments: argparse.Namespace, place: Place, outcomes: Sequence[Outcome]) -> str:
    through = [one for one in outcomes if not one.direct]
    length_s = max(one.ended_s for one in through) - min(one.at_s for one in through)
    answered = sum(one.status == 200 for one in through)
    tokens = sum((one.input_tokens or 0) + (one.output_tokens or 0) for one in through)
    told = f", simulator at {arguments.latency:g} ms and {arguments.pace:g} ms a token" if place.simulator else ""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} · {len(place.hosts)} gateway{'s' * (len(place.hosts) > 1)} · "
        f"{arguments.users} users for {length_s:.0f} s{told} · {len(through):,} requests, "
        f"{len(through) / length_s:.1f} a second, {answered:,} answered · {tokens:,} tokens"
    )


def printed(page: Page) -> None:
    print(table(HEADINGS, [cells(kind) for kind in page.kinds]))
    print()
    lines = [[one.what, one.bar, one.measured, WORDS[one.good][0]] for one in page.verdicts]
    print(table(["verdict", "bar", "measured", ""], lines))
    for note in page.notes:
        print(f"- {note}")


def run(arguments: argparse.Namespace, directory: Path) -> int:
    with contextlib.ExitStack() as stack:
        if arguments.host:
            place = elsewhere(arguments.host, arguments.keys)
        else:
            simulated = ("--latency", f"{arguments.latency:g}ms", "--pace", f"{arguments.pace:g}ms")
            place = stack.enter_context(PLACES[arguments.place](simulated))
        for note in place.notes:
            print(f"note: {note}", flush=True)
        played = generate(arguments, place, directory)
        outcomes = played.outcomes
        if not any(not one.direct for one in outcomes):
            print((directory / "locust.txt").read_text("utf-8", "replace")[-4000:], file=sys.stderr)
            print("no request was made", file=sys.stderr)
            return 2
        verdicts = judged(arguments, place, played)
        said = [f"{count} times {what}" for what, count in problems(outcomes).most_common(SHOWN_PROBLEMS)]
        title = f"Load on {'an' if arguments.place == 'edge' else 'a'} {arguments.place}"
        page = Page(title, facts_of(arguments, place, outcomes), verdicts, {}, kinds(outcomes), [*place.notes, *said])
    print(page.facts, end="\n\n")
    printed(page)
    report(directory, page, outcomes, played.loads)
    good = passed(verdicts)
    print(f"\n{'passed' if good else 'FAILED'}; report: {directory / 'index.html'}")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="load.locust_run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("place", choices=sorted(PLACES))
    parser.add_argument("--time", type=float, default=60.0, help="seconds (60)")
    parser.add_argument("--users", type=int, default=50, help="users at the same time (50)")
    parser.add_argument("--web", action="store_true", help="with locust's page, until Ctrl-C")
    parser.add_argument("--latency", type=float, default=200.0, help="of the simulator before the first byte, ms (200)")
    parser.add_argument("--pace", type=float, default=20.0, help="of the simulator between two tokens, ms (20)")
    parser.add_argument("--host", default="", help="a gateway that runs already, or several: http://a,http://b")
    parser.add_argument("--keys", default="", help="JSON file {tenant: key} for --host")
    parser.add_argument("--model", default="gpt-5-mini", help="what to ask for (gpt-5-mini)")
    parser.add_argument(
        "--bar", action="append", default=[], metavar="NAME=VALUE", help="another bar, as in ttft_p95=40"
    )
    parser.add_argument("--out", type=Path, help="directory of the report (build/load/<time>)")
    arguments = parser.parse_args()
    try:
        bars_of(arguments.bar)
    except ValueError as error:
        parser.error(str(error))
    if not LOCUST.exists():
        parser.error("locust is not installed; `make load-sidecar` and `make load-edge` see to it")
    directory = arguments.out or REPOSITORY / "build" / "load" / time.strftime("%Y%m%d-%H%M%S")
    directory.mkdir(parents=True, exist_ok=True)
    return run(arguments, directory)


if __name__ == "__main__":
    sys.exit(main())
