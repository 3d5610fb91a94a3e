"""One round: a contender does one kind of work for a while, and what that cost per unit is taken down.

Rounds are short and the contenders take turns, each round beginning with another, so that whatever else the machine
does falls on all of them alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from load import plain, streams
from load.contenders import Contender
from load.measure import CpuMeter, lower_quartile, percentile
from load.wire import OPENAI_PATH
from load.workloads import PLAIN_CONNECTIONS, STREAMS, Workload

# After a run of plain requests a contender may still have work of it to do (the gateway writes its rows in batches).
# The round is over when the tree has used less than 2 % of a core for half a second.
_QUIET_S = 0.5
_QUIET_SHARE = 0.02
_QUIET_WITHIN_S = 6.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contender. CPU times in nanoseconds; `units` of work in `seconds` of wall time."""

    units: int
    seconds: float
    worker_ns: int
    tree_ns: int
    failed: int = 0
    first_failure: str = ""

    @property
    def worker_us(self) -> float:
        return self.worker_ns / 1e3 / self.units

    @property
    def tree_us(self) -> float:
        return self.tree_ns / 1e3 / self.units

    @property
    def rest_us(self) -> float:
        """What all but the worker used."""
        return self.tree_us - self.worker_us


@dataclass(slots=True)
class Figures:
    """All good rounds of one contender at one workload, and how many were bad."""

    samples: list[Sample]
    bad_rounds: int = 0
    first_failure: str = ""

    @property
    def worker_us(self) -> float:
        return lower_quartile([sample.worker_us for sample in self.samples])

    @property
    def tree_us(self) -> float:
        return lower_quartile([sample.tree_us for sample in self.samples])

    @property
    def rest_us(self) -> float:
        return lower_quartile([sample.rest_us for sample in self.samples])

    @property
    def spread(self) -> float:
        """How far the median lies above the lower quartile, as a share: what the machine's noise was worth."""
        return percentile([sample.tree_us for sample in self.samples], 0.5) / self.tree_us - 1.0

    @property
    def units_per_s(self) -> float:
        return percentile([sample.units / sample.seconds for sample in self.samples], 0.5)


@dataclass(slots=True)
class Stopwatch:
    """CPU time of a contender's worker and of its whole tree, from one `mark()` to the next."""

    meter: CpuMeter
    contender: Contender

    def mark(self) -> tuple[int, int]:
        return self.meter.process_ns(self.contender.worker()), self.meter.tree_ns(self.contender.pid)

    async def quiet(self) -> None:
        """Return when the contender has nothing left to do (at the latest after `_QUIET_WITHIN_S`)."""
        deadline = time.monotonic() + _QUIET_WITHIN_S
        while time.monotonic() < deadline:
            before, since = self.meter.tree_ns(self.contender.pid), time.monotonic()
            await asyncio.sleep(_QUIET_S)
            used_s = (self.meter.tree_ns(self.contender.pid) - before) / 1e9
            if used_s < _QUIET_SHARE * (time.monotonic() - since):
                return


async def plain_round(
    contender: Contender, workload: Workload, seconds: float, meter: CpuMeter, wrk: plain.Wrk | None
) -> Sample:
    """From before the first request until the contender has gone quiet: work put off is counted."""
    watch = Stopwatch(meter, contender)
    worker, tree = watch.mark()
    began = time.perf_counter()
    if wrk:
        path = OPENAI_PATH.decode()
        tally = await wrk.send(contender.port, path, connections=PLAIN_CONNECTIONS, seconds=seconds)
    else:
        asking = workload.asking_of(translates=contender.translates)
        tally = await plain.send(contender.port, asking.request, connections=PLAIN_CONNECTIONS, seconds=seconds)
    took_s = time.perf_counter() - began
    await watch.quiet()
    worker_after, tree_after = watch.mark()
    return Sample(tally.done, took_s, worker_after - worker, tree_after - tree, tally.failed, tally.first_failure)


async def stream_round(contender: Contender, workload: Workload, seconds: float, meter: CpuMeter) -> Sample:
    """A window in the middle of a steady flow: work put off before it is done in it, and the other way round."""
    watch = Stopwatch(meter, contender)
    marks: list[tuple[int, int]] = []
    asking = workload.asking_of(translates=contender.translates)
    tally = await streams.run(
        contender.port,
        asking.request,
        asking.terminator,
        streams=STREAMS,
        seconds=seconds,
        at_edge=lambda: marks.append(watch.mark()),
    )
    (worker, tree), (worker_after, tree_after) = marks
    cost = (worker_after - worker, tree_after - tree)
    return Sample(tally.events, tally.seconds, *cost, tally.failed, tally.first_failure)


async def run(
    workload: Workload,
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    meter: CpuMeter,
    run_dir: Path,
) -> dict[str, Figures]:
    """`rounds` rounds of each contender after one that warms up and is thrown away. A round in which a request failed
    is reported, not counted. `seconds` is a round of streams; plain requests make their units faster and get half."""
    wrk = plain.Wrk.found(workload.asking.request, run_dir)
    figures = {contender.name: Figures([]) for contender in contenders}
    for number in range(rounds + 1):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            if workload.streamed:
                sample = await stream_round(contender, workload, seconds, meter)
            else:
                sample = await plain_round(contender, workload, seconds / 2, meter, wrk)
            if number:
                _take(figures[contender.name], sample)
    return figures


def _take(figures: Figures, sample: Sample) -> None:
    if sample.failed or not sample.units:
        figures.bad_rounds += 1
        figures.first_failure = figures.first_failure or sample.first_failure or "no work was done"
    else:
        figures.samples.append(sample)
