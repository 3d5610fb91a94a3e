"""What the gateway takes besides CPU: time to start, memory, idle connections, added latency, the cost of a big body.

Each figure comes with its bar (the design, section 8). The gateway measured here is a fresh one, beside the one of the
CPU rounds, so that its memory is that of the work named.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path

from load import plain
from load.contenders import PORT_POLL_S, Contender, ContenderError, start_nginx
from load.measure import CpuMeter, lower_quartile, memory_of, percentile
from load.report import Verdict
from load.rounds import Stopwatch
from load.wire import OPENAI_PATH, plain_body, request

_STARTS = 5
_FIRST_ANSWER_WITHIN_S = 20.0
_FEW_REQUESTS = 10_000
_MANY_REQUESTS = 50_000
_VERY_MANY_REQUESTS = 200_000
_IDLE_CONNECTIONS = 2_000
_CONNECTIONS = 32
_LATENCY_BLOCKS = 16
_LATENCY_BLOCK = 300
_BODY_REQUESTS = 200
_BODY_BYTES = 1_000_000
_SMALL_BODY_BYTES = 1_000
_FILES_NEEDED = 2 * _IDLE_CONNECTIONS + 512

_REQUEST = request(OPENAI_PATH, plain_body("plain"))

_START_S_MAX = 0.5
_PSS_MIB_MAX = 64.0
_IDLE_MIB_MAX = 15.0
_ADDED_P50_MS_MAX = 0.4
_ADDED_P99_MS_MAX = 1.0
_BODY_MS_MAX = 3.0
# "Flat" has to leave room for an allocator's arenas and for tables that fill once; a leak of 50 bytes a request shows.
_GROWTH_MIB_MAX = 2.0


StartGateway = Callable[[int, int, Path, str], Contender]


async def measure(
    start_gateway: StartGateway, mock: Contender, core: int, run_dir: Path, meter: CpuMeter, *, long: bool
) -> list[Verdict]:
    """All figures, in the order they are told. Raises ContenderError when the gateway fails its work."""
    found = [await _start_time(start_gateway, mock, core, run_dir)]
    gateway = start_gateway(mock.port, core, run_dir, "footprint")
    nginx: Contender | None = None
    try:
        nginx = start_nginx(mock.port, core, run_dir, "footprint-nginx")
        for each in (gateway, nginx):
            await each.ready()
            await _first_answer(each)
        found += await _memory(gateway, _VERY_MANY_REQUESTS if long else _MANY_REQUESTS)
        found += await _added_latency(gateway, nginx, mock)
        found.append(await _big_body(gateway, meter))
    finally:
        for each in filter(None, (gateway, nginx)):
            each.stop()
    return found


async def _start_time(start_gateway: StartGateway, mock: Contender, core: int, run_dir: Path) -> Verdict:
    """From exec to the last byte of the first answer, the best of a few."""
    times_s = []
    for number in range(_STARTS):
        began = time.perf_counter()
        gateway = start_gateway(mock.port, core, run_dir, f"start-{number}")
        try:
            await gateway.ready()
            await _first_answer(gateway)
            times_s.append(time.perf_counter() - began)
        finally:
            gateway.stop()
    return Verdict(f"`edgegw serve` to the first answer, best of {_STARTS}", min(times_s), _START_S_MAX, " s")


async def _first_answer(gateway: Contender) -> None:
    """The port may accept before anybody answers there (a supervisor listens for its workers), and an answer may be a
    refusal until all is in place: ask until it is one of the provider's."""
    deadline = time.monotonic() + _FIRST_ANSWER_WITHIN_S
    while True:
        try:
            async with asyncio.timeout(_FIRST_ANSWER_WITHIN_S):
                await plain.check(gateway.port, _REQUEST, verbatim=gateway.verbatim)
            return
        except OSError as error:  # TimeoutError is one
            if gateway.process.poll() is not None or time.monotonic() > deadline:
                raise ContenderError(f"{gateway.name} gave no answer ({error}):\n{gateway.complaint()}") from error
            await asyncio.sleep(PORT_POLL_S)


async def _work(port: int, count: int) -> None:
    tally = await plain.send(port, _REQUEST, connections=_CONNECTIONS, count=count)
    if tally.failed or tally.done != count:
        raise ContenderError(f"{tally.failed} of {count} requests failed, first: {tally.first_failure}")


async def _memory(gateway: Contender, many: int) -> list[Verdict]:
    await _work(gateway.port, _FEW_REQUESTS)
    few = memory_of(gateway.pid)
    await _work(gateway.port, many - _FEW_REQUESTS)
    lot = memory_of(gateway.pid)
    idle_mib = await _idle_connections(gateway)
    return [
        Verdict(f"PSS of all processes after {_FEW_REQUESTS:,} requests", few.pss_mib, _PSS_MIB_MAX, " MiB"),
        Verdict(f"PSS of all processes after {many:,} requests", lot.pss_mib, _PSS_MIB_MAX, " MiB"),
        Verdict("their heap grew between the two by", lot.anonymous_mib - few.anonymous_mib, _GROWTH_MIB_MAX, " MiB"),
        Verdict(f"{_IDLE_CONNECTIONS:,} idle keep-alive connections", idle_mib, _IDLE_MIB_MAX, " MiB"),
    ]


async def _idle_connections(gateway: Contender) -> float:
    """MiB that connections cost which have been served once and now wait for their next request."""
    _allow_files(_FILES_NEEDED)
    loop = asyncio.get_running_loop()
    before = memory_of(gateway.pid)
    idle: list[plain.IdleConnection] = []
    try:
        for _ in range(_IDLE_CONNECTIONS):
            _, connection = await loop.create_connection(
                lambda: plain.IdleConnection(_REQUEST), "127.0.0.1", gateway.port
            )
            idle.append(connection)
            if not await connection.answered:
                raise ContenderError(f"connection {len(idle)} of {_IDLE_CONNECTIONS} was not served")
        return memory_of(gateway.pid).pss_mib - before.pss_mib
    finally:
        for connection in idle:
            connection.transport.close()


def _allow_files(needed: int) -> None:
    """Raise the soft limit of this process. Whoever is started later inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ContenderError(f"{needed} open files are needed and {hard} allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


async def _added_latency(gateway: Contender, nginx: Contender, mock: Contender) -> list[Verdict]:
    """One connection, one request at a time, past everybody and through each, in turns. Of every block the median and
    the 99th percentile, of those the lower quartile. nginx has no bar: it shows what this machine does to a proxy."""
    blocks_s: dict[str, list[list[float]]] = {each.name: [] for each in (mock, nginx, gateway)}
    gc.collect()
    gc.disable()  # a pause of our own would be blamed on the gateway
    try:
        for _ in range(_LATENCY_BLOCKS):
            for each in (mock, nginx, gateway):
                tally = await plain.send(each.port, _REQUEST, connections=1, count=_LATENCY_BLOCK)
                if tally.failed:
                    raise ContenderError(f"{tally.failed} requests failed, first: {tally.first_failure}")
                blocks_s[each.name].append(tally.latencies_s)
    finally:
        gc.enable()

    def added_ms(name: str, share: float) -> float:
        through_s, direct_s = (
            lower_quartile([percentile(block, share) for block in blocks_s[each]]) for each in (name, mock.name)
        )
        return (through_s - direct_s) * 1e3

    bars = (("p50", 0.5, _ADDED_P50_MS_MAX), ("p99", 0.99, _ADDED_P99_MS_MAX))
    ours = [
        Verdict(f"added to {what} at one connection", added_ms(gateway.name, at), bar, " ms") for what, at, bar in bars
    ]
    return ours + [Verdict(f"the same by nginx, {what}", added_ms(nginx.name, at), None, " ms") for what, at, _ in bars]


async def _big_body(gateway: Contender, meter: CpuMeter) -> Verdict:
    """CPU of the worker for a request with 1 MB more in it: as long as that, its loop does nothing for others."""
    costs_ms = [await _cost_ms(gateway, meter, size) for size in (_SMALL_BODY_BYTES, _BODY_BYTES)]
    return Verdict("loop time of a 1 MB body", costs_ms[1] - costs_ms[0], _BODY_MS_MAX, " ms")


async def _cost_ms(gateway: Contender, meter: CpuMeter, prompt_bytes: int) -> float:
    message = request(OPENAI_PATH, plain_body("plain", prompt_bytes=prompt_bytes))
    watch = Stopwatch(meter, gateway)
    await watch.quiet()
    before, _ = watch.mark()
    tally = await plain.send(gateway.port, message, connections=1, count=_BODY_REQUESTS)
    after, _ = watch.mark()
    if tally.failed:
        raise ContenderError(f"{tally.failed} requests failed, first: {tally.first_failure}")
    return (after - before) / 1e6 / _BODY_REQUESTS
