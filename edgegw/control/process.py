"""The life of the control process: channel, shipper, admin port; and the order in which they end.

It may die and come back at any time: workers go on without it, and what they wrote is read from where the books say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgegw.channel_server import ChannelServer
from edgegw.content.shipper import ContentShipper
from edgegw.control.admin import Readiness
from edgegw.control.journals import Journals
from edgegw.control.pulse import Pulse
from edgegw.http.server import Server
from edgegw.http.watch import Watch
from edgegw.keys.feed import KeyFeed
from edgegw.ledger.adoption import Adoption
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.store import Store
from edgegw.ledger.syncing import Syncer
from edgegw.ledger.upkeep import Upkeeper
from edgegw.limits.memory_file import MemoryFile
from edgegw.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from edgegw.telemetry.metric_export import MetricExporter

# For shipping what the workers left; what is not shipped by then is shipped at the next start.
SHIP_TIMEOUT_S = 10.0
CONTENT_TIMEOUT_S = 2.0
# For the last spans; what is not exported by then is dropped.
EXPORT_TIMEOUT_S = 5.0

logger = logging.getLogger("edgegw.control")


class SharedLimits(Protocol):
    """An authority that many gateways share."""

    async def start(self) -> None:
        """Returns soon, whether what is shared is there or not."""
        ...

    async def close(self) -> None: ...

    def status(self) -> dict[str, Any]:
        """For /readyz; at least `authority` and `state`."""
        ...


@dataclass(frozen=True, slots=True)
class ControlProcess:
    """What the control process is made of."""

    watch: Watch
    pulse: Pulse
    channel: ChannelServer
    memory: MemoryFile | None
    shared: SharedLimits | None
    shipper: Shipper
    store: Store
    journals: Journals
    syncer: Syncer | None  # None: the kernel writes when it likes
    adoption: Adoption | None  # None: no journal but ours
    upkeeper: Upkeeper
    contents: ContentShipper
    admin: Server
    keys: KeyFeed | None  # None: nobody needs a key
    tracing: Tracing | None  # None: nobody wants to see requests
    metric_exporter: MetricExporter | None  # None: /metrics is enough
    workers_wanted: int

    async def run(self, admin: socket.socket, lifeline_fd: int, ready: Any) -> int:
        """Until it is told to go, or the supervisor is gone. The exit code: 1 when the books cannot be kept."""
        loop = asyncio.get_running_loop()
        told_to_go = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, told_to_go.set)
        loop.add_reader(lifeline_fd, told_to_go.set)
        self.watch.start()
        if self.shared is not None:
            await self.shared.start()
        await self.channel.start()
        await self.admin.listen(admin)
        if self.tracing is not None:
            self.tracing.start()
        if self.metric_exporter is not None:
            self.metric_exporter.start()
        shipping = loop.create_task(self.shipper.run())
        shipping.add_done_callback(lambda _: told_to_go.set())
        adopting = None if self.adoption is None else loop.create_task(self.adoption.run())
        syncing = None if self.syncer is None else loop.create_task(self.syncer.run())
        keeping = loop.create_task(self.upkeeper.run())
        beating = loop.create_task(self.pulse.run())
        self.contents.start()
        remembering = None if self.memory is None else loop.create_task(self.memory.run())
        feeding = loop.create_task(self.keys.run()) if self.keys is not None else None
        if feeding is not None:
            feeding.add_done_callback(lambda _: told_to_go.set())
        ready()
        await told_to_go.wait()
        keeping.cancel()
        beating.cancel()
        if remembering is not None:
            remembering.cancel()
        if adopting is not None:
            adopting.cancel()
        loop.remove_reader(lifeline_fd)
        code = 0
        if shipping.done():
            logger.error("the ledger cannot be kept: %s", shipping.exception())
            code = 1
        else:
            await self.shipper.stop(SHIP_TIMEOUT_S)
        await self.contents.stop(CONTENT_TIMEOUT_S)
        if self.tracing is not None:
            await self.tracing.stop(EXPORT_TIMEOUT_S)
        if self.metric_exporter is not None:
            await self.metric_exporter.stop(EXPORT_TIMEOUT_S)
        if feeding is not None:
            code = await _end(feeding) or code
        if adopting is not None:
            await asyncio.wait((adopting,))
        if self.syncer is not None and syncing is not None:
            syncing.cancel()
            await self.syncer.sync()
            self.syncer.close()
        if self.memory is not None:
            self.memory.save(leaving=True)
        await self.channel.close()
        if self.shared is not None:
            await self.shared.close()
        self.admin.drain()
        self.admin.abort()
        await self.store.close()
        await self.contents.close()
        self.watch.stop()
        return code

    def readiness(self) -> Readiness:
        """A worker is there and takes requests. What else is wrong is told, and takes nobody out of service."""
        workers = self.channel.workers
        tally = self.shipper.tally
        details: dict[str, Any] = {
            "workers": {"wanted": self.workers_wanted, "connected": len(workers)},
            "limits": {"authority": "memory", "state": "exact"} if self.shared is None else self.shared.status(),
            "ledger": {
                "state": "failing" if tally.failing else "ok",
                "lag_seconds": round(self.shipper.lag_s, 3),
                "rows": tally.rows,
                "rejected": tally.rejected,
            },
            "journal": self.journals.details(),
        }
        if self.adoption is not None:
            adopted = self.adoption.adopted
            details["adoption"] = {
                "state": "idle" if adopted.shipping is None else "shipping",
                "journals": adopted.journals,
                "rows": adopted.rows,
                "failures": adopted.failures,
            }
        details["content"] = self.contents.details()
        if self.keys is not None:
            details["keys"] = self.keys.details()
        return Readiness(bool(workers) and not self.journals.refusing, details)


async def _end(feeding: asyncio.Task[None]) -> int:
    """Ends the feed of keys; 1 when it had ended by itself, which is a defect: the next control process tries anew."""
    if feeding.done():
        logger.error("keys cannot be told: %r", feeding.exception())
        return 1
    feeding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await feeding
    return 0
