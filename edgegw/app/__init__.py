"""The composition roots: what a worker and the control process are made of, and the plan for the supervisor.

The only package that knows everybody, and the only one that constructs: worker.py and control.py say what a process is
made of, books.py and telemetry.py what the control process has for rows and for telling, parts.py what both have.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable

import uvloop

from edgegw import logs, supervisor
from edgegw.app.control import build_control
from edgegw.app.worker import build_worker
from edgegw.child import Lifeline
from edgegw.logs import Log, Role
from edgegw.settings import Settings

# No process makes many cycles: looking for them often costs more than it finds.
GC_THRESHOLDS = (50_000, 20, 100)

STDOUT = 1

logger = logging.getLogger("edgegw")


def serve(settings: Settings, read_again: Callable[[], Settings]) -> int:
    """Runs the gateway until it is stopped; the exit code."""
    wanted = logs.read(os.environ, terminal=os.isatty(STDOUT))
    log = logs.start(wanted, STDOUT)
    for complaint in wanted.complaints:
        logger.warning("%s", complaint)
    return supervisor.run(plan(settings, read_again, log))


def plan(settings: Settings, read_again: Callable[[], Settings], log: Log) -> supervisor.Plan:
    server = settings.server

    def worker(slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
        log.role = Role("worker", slot)
        return _run_worker(settings, slot, listening, lifeline)

    def control(admin: socket.socket, channel: socket.socket, lifeline: Lifeline) -> int:
        log.role = Role("control")
        return _run_control(settings, admin, channel, lifeline, as_json=log.as_json)

    return supervisor.Plan(
        listen=(server.listen.host, server.listen.port),
        admin=(server.admin.host, server.admin.port),
        workers=server.workers,
        state_dir=server.state_dir,
        drain_timeout_s=server.drain_timeout_s,
        worker=worker,
        control=control,
        reload=lambda: plan(read_again(), read_again, log),
    )


def _run_worker(settings: Settings, slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
    async def main() -> int:
        worker = build_worker(settings, slot, asyncio.get_running_loop())
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        return await worker.run(listening, lifeline)

    return uvloop.run(main())


def _run_control(
    settings: Settings, admin: socket.socket, channel: socket.socket, lifeline: Lifeline, *, as_json: bool
) -> int:
    async def main() -> int:
        control = build_control(settings, channel, asyncio.get_running_loop(), as_json=as_json)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        return await control.run(admin, lifeline.fd, lifeline.ready)

    return uvloop.run(main())
