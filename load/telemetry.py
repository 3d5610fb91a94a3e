"""What telling costs the control process, traces and metrics: us of CPU per request, on top of keeping the books.

    python -m load.telemetry [--requests 20000] [--rounds 9] [--strict]

The observers and the exporters of the product, put together as app/ does it, are told the records of plain requests
(one attempt each) in this process; a collector that takes everything runs in another one. A figure is the CPU time of
this process, all threads, from the first record told to the last span taken, per request: the lower quartile of rounds
that take turns. The line with metrics and nothing else is a part of all the others. What real gateways take, worker and
control process apart, is bench_telemetry.py's to say.

Where prompts and answers are told, a process in the workers' place puts files of eight requests down (a prompt of 2 KB,
an answer of 1 KB, plain or in 100 events), and the courier fetches them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any, Self

import click
import msgspec
import uvloop

from edgegw import __version__
from edgegw.clock import uuid7
from edgegw.content.choice import Choice
from edgegw.content.courier import Courier
from edgegw.content.files import TOLD_DIR, Tray
from edgegw.content.record import Content
from edgegw.http.proxies import Proxies
from edgegw.ledger.record import AttemptRecord, End
from edgegw.settings import Settings
from edgegw.telemetry import semconv, variables
from edgegw.telemetry.collector import HttpCollector
from edgegw.telemetry.console import Console, Lines
from edgegw.telemetry.export import Destination, Exporter
from edgegw.telemetry.meeting import Meeting
from edgegw.telemetry.metrics import Metrics
from edgegw.telemetry.otlp import Encoder
from edgegw.telemetry.spans import Spans
from edgegw.telemetry.wording import Place, Wording

WALL_NS = 1_750_000_000_000_000_000
TENANTS = 50
# Told in one go, as the shipper does with a portion of what it reads.
PORTION = 128


@dataclass(frozen=True, slots=True)
class Case:
    """`bar_us`: what it may cost, metrics included. `answer`: of every request, where content is told."""

    name: str
    environ: Mapping[str, str]
    bar_us: float | None = None
    answer: bytes | None = None
    as_json: bool = False


ONE_PERCENT = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
GZIP = {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
SMALL = {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "32"}
CONTENT = {"OTEL_TRACES_EXPORTER": "otlp", variables.CONTENT: "SPAN_ONLY"}
PROMPT = json.dumps({"model": "smart", "messages": [{"role": "user", "content": "twelve bytes " * 157}]}).encode()
ANSWER = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ten bytes " * 100}, "finish_reason": "stop"}]
}
PLAIN = json.dumps(ANSWER).encode()
EVENT = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_750_000_000, "model": "gpt-5-mini"}
CHOICE = {"index": 0, "delta": {"content": "ten bytes "}, "finish_reason": None}
STREAM = (b"data: " + json.dumps({**EVENT, "choices": [CHOICE]}).encode() + b"\n\n") * 100 + b"data: [DONE]\n\n"
# Requests in one file.
FILE = 8
CASES = (
    Case("metrics alone", {"OTEL_TRACES_EXPORTER": "none"}),
    Case("OTLP, all", {"OTEL_TRACES_EXPORTER": "otlp"}, 40),
    Case("OTLP, all, gzip", {"OTEL_TRACES_EXPORTER": "otlp", **GZIP}, 40),
    Case("OTLP, all, batches of 16 requests", {"OTEL_TRACES_EXPORTER": "otlp", **SMALL}),
    Case("OTLP, all, 2 KB asked, 1 KB answered", CONTENT, answer=PLAIN),
    Case("OTLP, all, 2 KB asked, 100 events", CONTENT, answer=STREAM),
    Case("OTLP, 1 %", {"OTEL_TRACES_EXPORTER": "otlp", **ONE_PERCENT}, 10),
    Case("OTLP, 1 %, gzip", {"OTEL_TRACES_EXPORTER": "otlp", **GZIP, **ONE_PERCENT}, 10),
    Case("lines on stdout, text", {"OTEL_TRACES_EXPORTER": "console"}),
    Case("lines on stdout, JSON", {"OTEL_TRACES_EXPORTER": "console"}, as_json=True),
)


def records(count: int) -> list[tuple[AttemptRecord, End]]:
    """Plain requests as the assembler completes them, 0.1 ms apart."""
    return [_request(number) for number in range(count)]


def _request(number: int) -> tuple[AttemptRecord, End]:
    at_ns, tenant = WALL_NS + number * 100_000, f"tenant-{number % TENANTS}"
    id_ = uuid7(at_ns, number * 0x9E3779B97F4A7C15F39C % 2**74)
    used: dict[str, Any] = {
        "input_tokens": 400 + number % 800,
        "output_tokens": 100 + number % 300,
        "cached_tokens": 256,
        "cache_write_tokens": 0,
        "reasoning_tokens": 64,
        "estimated": False,
        "cost_usd_micro": 1_212 + number % 999,
        "version": 2,
        "seq": number,
        "tenant": tenant,
        "use_case": "support_summary",
        "provider": "openai",
        "model": "gpt-5-mini",
        "status": 200,
        "error_kind": None,
        "first_token_us": 420_000 + number % 9_999,
        "duration_us": 801_000 + number % 99_999,
    }
    attempt = AttemptRecord(
        request_id=id_,
        number=1,
        kind="primary",
        started_ns=at_ns + 90_000,
        retry_reason=None,
        first_byte_us=410_000,
        finish_reason="stop",
        upstream_request_id=f"req_{number * 0x9E3779B97F4A7C15:032x}",
        upstream_model="gpt-5-mini-2025-08-07",
        reused=True,
        **used,
    )
    end = End(
        id=id_,
        started_ns=at_ns,
        route="use_case:support_summary",
        dialect="openai_chat",
        model_asked="smart",
        stream=True,
        state="complete",
        attempts=1,
        first_byte_us=410_100,
        overhead_us=700 + number % 300,
        bytes_in=2_310,
        bytes_out=1_404 + number % 5_000,
        **used,
    )
    return attempt, end


class Workers:
    """A process that puts content down when it is told to: for a portion of the requests, in their order."""

    def __init__(self, state_dir: Path, work: list[tuple[AttemptRecord, End]], answer: bytes) -> None:
        mine, theirs = socket.socketpair()
        self._line = mine
        self._pid = os.fork()
        if self._pid:
            theirs.close()
            return
        mine.close()
        tray = Tray(state_dir, 0, 1 << 30, TOLD_DIR)
        for start in range(0, len(work), PORTION):
            if not theirs.recv(1):
                break
            ends = [end for _, end in work[start : start + PORTION]]
            for first in range(0, len(ends), FILE):
                some = [
                    Content(
                        end.id,
                        end.tenant,
                        end.started_ns,
                        "openai_chat",
                        answer is STREAM,
                        PROMPT,
                        False,
                        answer,
                        False,
                    )
                    for end in ends[first : first + FILE]
                ]
                tray.put(some[0].request_id, msgspec.msgpack.encode(some), len(some))
            theirs.send(b".")
        os._exit(0)

    def put_some(self) -> None:
        self._line.send(b".")
        self._line.recv(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._line.close()
        os.waitpid(self._pid, 0)


class _Clock:
    now, wall_ns = staticmethod(time.monotonic), staticmethod(time.time_ns)


def destination(wanted: variables.TraceSettings, case: Case, stdout: int) -> Destination:
    if "console" in wanted.exporters:
        lines = Lines()
        return Console(stdout, lines.json if case.as_json else lines.text)
    wording = Wording({"openai": Place.of("openai", "openai", "https://api.openai.com/v1")})
    encoder = Encoder(wanted.resource, semconv.SCOPE, __version__, semconv.SCHEMA_URL)
    return HttpCollector(wanted.otlp, Proxies(), wording, encoder, _Clock())


async def tell(case: Case, port: int, work: list[tuple[AttemptRecord, End]], stdout: int) -> float:
    """CPU seconds."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", **case.environ}
    wanted = variables.read(environ, "benchmark")
    exporter = Exporter(
        destination(wanted, case, stdout),
        _Clock(),
        lambda: 0.5,
        delay_s=wanted.delay_s,
        queue_spans_max=wanted.queue_spans_max,
        batch_spans_max=wanted.batch_spans_max,
        timeout_s=wanted.export_timeout_s,
    )
    sink, told = exporter.offer, contextlib.ExitStack()
    workers: Workers | None = None
    courier: Courier | None = None
    if case.answer is not None:
        state_dir = Path(told.enter_context(TemporaryDirectory()))
        workers = told.enter_context(Workers(state_dir, work, case.answer))
        meeting = Meeting(exporter.offer, Choice(Settings(), tells=True), _Clock())
        courier = Courier(state_dir, meeting.bring, lambda: True, _Clock())
        courier.start()
        sink = meeting.offer
    observers = [Metrics().observe]
    if wanted.exporters:
        observers.append(Spans(wanted.sampler, round(wanted.slow_s * 1e6), [sink]).observe)
    running = asyncio.create_task(exporter.run())
    gc.collect()
    gc.freeze()
    started_s = time.process_time()
    for start in range(0, len(work), PORTION):
        if workers is not None:
            workers.put_some()
        portion = [record for request in work[start : start + PORTION] for record in request]
        for observe in observers:
            observe(portion)
        await asyncio.sleep(0)
        while workers is not None and meeting.waiting:  # noqa: ASYNC110 (nobody tells of it)
            await asyncio.sleep(0.005)
        while exporter.waiting > wanted.queue_spans_max - 2 * PORTION:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    if courier is not None:
        await courier.stop(30)
    await exporter.stop(30)
    spent_s = time.process_time() - started_s
    gc.unfreeze()
    await running
    told.close()
    if case.answer is not None and meeting.tally.attached < len(work):
        raise click.ClickException(f"{case.name}: requests did not meet their content: {meeting.tally}")
    if exporter.tally.dropped:
        raise click.ClickException(f"{case.name}: spans were dropped: {exporter.tally.dropped}")
    return spent_s


@click.command()
@click.option("--requests", "count", default=20_000, show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--strict", is_flag=True, help="Exit with 1 when a bar is missed.")
def main(count: int, rounds: int, strict: bool) -> None:
    """Measure traces and metrics."""
    work = records(count)
    figures: dict[str, list[float]] = {case.name: [] for case in CASES}
    stdout = os.open(os.devnull, os.O_WRONLY)
    with subprocess.Popen([sys.executable, "-m", "load.collector", "0"], stdout=subprocess.PIPE) as collector:
        assert collector.stdout is not None
        port = int(collector.stdout.readline())
        try:
            for _ in range(rounds + 1):  # the first one warms up
                for case in CASES:
                    figures[case.name].append(uvloop.run(tell(case, port, work, stdout)) / count * 1e6)
        finally:
            collector.kill()
    missed = False
    click.echo(f"{'us of CPU per request':36} {'quartile':>9} {'best':>7} {'bar':>5}")
    for case in CASES:
        taken = figures[case.name][1:]
        quartile = quantiles(taken, n=4)[0] if len(taken) > 1 else taken[0]
        missed |= case.bar_us is not None and quartile > case.bar_us
        bar = "" if case.bar_us is None else f"{case.bar_us:g}"
        click.echo(f"{case.name:36} {quartile:9.1f} {min(taken):7.1f} {bar:>5}")
    raise SystemExit(1 if strict and missed else 0)


if __name__ == "__main__":
    main()
