"""What worker and control process both are made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edgegw.http.client_connection import Waits
from edgegw.http.date import Date
from edgegw.http.outbox import Outbox
from edgegw.http.request import RequestLimits
from edgegw.http.server import Server
from edgegw.http.watch import Watch
from edgegw.settings import ServerSettings


class SystemClock:
    """The clock of a process."""

    __slots__ = ("now", "wall_ns")

    def __init__(self) -> None:
        self.now = time.monotonic
        self.wall_ns = time.time_ns


def build_server(
    loop: asyncio.AbstractEventLoop,
    watch: Watch,
    handler: Callable[..., object],
    gate: Callable[..., None],
    settings: ServerSettings,
    outbox: Outbox,
) -> Server:
    return Server(
        loop,
        watch,
        handler,  # type: ignore[arg-type]
        gate,
        limits=RequestLimits(
            head_bytes_max=settings.head_bytes_max,
            headers_max=settings.headers_max,
            target_bytes_max=settings.target_bytes_max,
            body_bytes_max=settings.body_bytes_max,
        ),
        waits=Waits(
            settings.head_timeout_s,
            settings.body_timeout_s,
            settings.keep_alive_timeout_s,
            settings.client_stall_timeout_s,
        ),
        requests_per_connection_max=settings.requests_per_connection_max,
        date=Date(time.time_ns),
        outbox=outbox,
    )
