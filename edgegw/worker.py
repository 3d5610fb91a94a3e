"""The life of a worker process: listens, says how it is once a second, drains when it is told to, and leaves.

The parts are made by app/worker.py; here is only what happens to them over time.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgegw.channel import Channel, ChannelClient, JournalIs
from edgegw.child import Lifeline
from edgegw.clock import Clock
from edgegw.content.capture import Capture
from edgegw.gateway import Gateway
from edgegw.http.server import Server
from edgegw.http.watch import Watch
from edgegw.keys.subscriber import KeySubscriber
from edgegw.ladder import Ladders, Upstream
from edgegw.ledger.durable import Durable
from edgegw.ledger.journal import Journal
from edgegw.limits.limiter import Limiter
from edgegw.process_figures import cpu_s, resident_bytes

# Once a second: the gauges. Four times: a next segment for the journal, ahead of need, and how it is.
VITALS_EVERY_S = 1.0
PREPARE_EVERY_S = 0.25
# How long the first request may wait for the control process, so that it finds its limits there.
CHANNEL_WAIT_S = 1.0
# The same for its keys: without them it could only be told to come again.
KEYS_WAIT_S = 1.0
# After the drain's time is over: for the handlers to write their error events and records.
CANCEL_WAIT_S = 1.0
# A breaker's state is told under its target's name; more than these are only counted.
BREAKERS_TOLD_MAX = 20


class JournalTeller:
    """Says over the channel how the journal is, when it is news to the other end."""

    def __init__(self, channel: Channel, journal: Journal) -> None:
        self._channel = channel
        self._journal = journal
        self._told: JournalIs | None = None
        channel.on_closed(self._forget)

    def tell(self) -> None:
        journal = self._journal
        trouble = journal.trouble or journal.sync_trouble
        state, reason = ("ok", "") if trouble is None else (trouble.state, trouble.reason)
        word = JournalIs(
            state,
            reason,
            journal.full,
            journal.dropped,
            journal.dropped_refusals,
            journal.lost,
            journal.unsynced,
        )
        if word != self._told and self._channel.send(word):
            self._told = word

    def _forget(self) -> None:
        self._told = None


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker is made of."""

    clock: Clock
    watch: Watch
    server: Server
    gateway: Gateway
    ladders: Ladders
    upstreams: Mapping[str, Upstream]
    limiter: Limiter
    channel: ChannelClient
    journal: Journal
    durable: Durable | None  # None: no request waits for the disk
    tally: Path
    keys: KeySubscriber | None  # None: nobody needs a key
    drain_timeout_s: float
    capture: Capture | None  # None: nobody's content is kept

    async def run(self, listening: socket.socket, lifeline: Lifeline) -> int:
        """From the first connection to the last. The exit code."""
        loop = asyncio.get_running_loop()
        told_to_go = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, told_to_go.set)
        loop.add_reader(lifeline.fd, told_to_go.set)
        self.watch.start()
        self.channel.start()
        if await self.channel.wait_open(CHANNEL_WAIT_S) and self.keys is not None:
            await self.keys.wait_complete(KEYS_WAIT_S)
        await self.server.listen(listening)
        teller = JournalTeller(self.channel, self.journal)
        vitals = loop.create_task(self._tell_vitals(teller))
        lifeline.ready()
        await told_to_go.wait()
        loop.remove_reader(lifeline.fd)
        await self._drain()
        vitals.cancel()
        self.limiter.close()
        teller.tell()
        await self.channel.close()
        for upstream in self.upstreams.values():
            await upstream.pool.close()
        self.watch.stop()
        if self.durable is not None:
            self.durable.close()
        self.journal.close()
        if self.capture is not None:
            self.capture.close()
        self.tally.unlink(missing_ok=True)
        return 0

    async def _drain(self) -> None:
        """What is in work may finish; what is not finished in time ends with one error event, and is recorded."""
        server = self.server
        await server.shut_the_door()
        server.drain()
        await server.wait_gone(self.drain_timeout_s)
        server.cancel_work()
        await server.wait_gone(CANCEL_WAIT_S)
        server.abort()

    async def _tell_vitals(self, teller: JournalTeller) -> None:
        now = self.clock.now
        started = self.clock.wall_ns() / 1e9
        due_s = now() + VITALS_EVERY_S
        lag_s = 0.0
        while True:
            asked_s = now()
            await asyncio.sleep(PREPARE_EVERY_S)
            lag_s = max(lag_s, now() - asked_s - PREPARE_EVERY_S)
            self.journal.prepare()
            teller.tell()
            if now() >= due_s:
                due_s += VITALS_EVERY_S
                self.journal.vitals(self._gauges(lag_s, started), self.clock.wall_ns())
                lag_s = 0.0

    def _gauges(self, lag_s: float, started: float) -> dict[str, float]:
        pools = [upstream.pool for upstream in self.upstreams.values()]
        return {
            "in_flight": self.server.in_work,
            "client_connections": len(self.server.connections),
            "upstream_busy": sum(pool.busy for pool in pools),
            "upstream_idle": sum(pool.idle for pool in pools),
            "upstream_waiting": sum(pool.waiting for pool in pools),
            "upstream_waits": sum(pool.waits for pool in pools),
            "upstream_dialled": sum(pool.dialled for pool in pools),
            "breakers_open": self.ladders.breakers_open,
            "loop_lag_seconds": lag_s,
            "resident_bytes": resident_bytes(),
            "cpu_seconds": cpu_s(),
            "started": started,
            "limits_degraded": float(self.limiter.degraded),
            **{f"breaker:{target}": state for target, state in self.ladders.breakers_not_closed(BREAKERS_TOLD_MAX)},
            **({} if self.capture is None else self.capture.gauges()),
        }
