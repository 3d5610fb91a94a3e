"""What the control process is made of."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from edgegw.app.books import build_adoption, build_books
from edgegw.app.parts import SystemClock, build_server
from edgegw.app.telemetry import build_metric_exporter, build_tracing, fixed_targets, places, route_names
from edgegw.channel_server import ChannelServer
from edgegw.content.place import content_store
from edgegw.content.shipper import ContentShipper
from edgegw.control import figures
from edgegw.control.admin import Admin, admin_gate
from edgegw.control.journals import Journals
from edgegw.control.limit_figures import LimitFigures
from edgegw.control.process import ControlProcess
from edgegw.control.pulse import Pulse
from edgegw.http.outbox import Outbox
from edgegw.http.watch import Watch
from edgegw.keys.feed import KeyFeed
from edgegw.keys.place import key_store, place_of
from edgegw.ledger.identity import identity
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.syncing import Syncer
from edgegw.ledger.telling import Observer
from edgegw.ledger.upkeep import Upkeeper
from edgegw.limits.authority import MemoryAuthority
from edgegw.limits.memory_file import MemoryFile
from edgegw.limits.rules import Rules
from edgegw.price_table import shipped as shipped_prices
from edgegw.prices import PriceList
from edgegw.settings import Secret, Settings, parse_redis
from edgegw.settings.describe import describe
from edgegw.telemetry import exposition
from edgegw.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from edgegw.limits.redis.authority import RedisAuthority

SETTINGS_HASH_DIGITS = 12


def build_redis_authority(url: Secret, rules: Rules, clock: SystemClock, state_dir: Path) -> RedisAuthority:
    """What it is made of is imported here: a gateway without Redis does not load a Redis client, nor need one."""
    try:
        from edgegw.limits.redis import script
        from edgegw.limits.redis.authority import RedisAuthority
        from edgegw.limits.redis.replicas import ReplicasFile
    except ModuleNotFoundError as error:
        raise SystemExit(f"storage.redis_url needs {error.name}: pip install 'edgegw[redis]'") from None

    address, replica = parse_redis(url.reveal()), secrets.token_hex(8)
    return RedisAuthority(
        address, script.shipped(), rules.limit, rules.without_redis, clock, replica, ReplicasFile(state_dir)
    )


def build_control(
    settings: Settings, channel: socket.socket, loop: asyncio.AbstractEventLoop, *, as_json: bool = False
) -> ControlProcess:
    """`as_json`: what stands on stdout is read by machines."""
    clock = SystemClock()
    watch = Watch(loop, clock.now)
    state_dir = Path(settings.server.state_dir)
    try:
        journal = identity(state_dir)
    except OSError as error:
        raise SystemExit(f"the state directory cannot be used: {error.strerror}") from None
    rules = Rules(settings)
    in_memory = MemoryAuthority(rules.limit, clock)
    redis_url = settings.storage.redis_url
    shared = None if redis_url is None else build_redis_authority(redis_url, rules, clock, state_dir)
    channel_server = ChannelServer(channel, shared or in_memory, clock.wall_ns(), state_dir)
    memory = MemoryFile(state_dir, in_memory, channel_server.unspent) if shared is None else None
    if memory is not None:
        memory.load()
    sync = settings.storage.journal.sync
    syncer = None if sync == "none" else Syncer(state_dir, settings.storage.journal.sync_interval_s)
    journals = Journals(channel_server, state_dir, settings.storage.journal, syncer)
    pulse = Pulse(clock)
    tracing = build_tracing(settings, clock, journal, as_json=as_json)
    metrics = Metrics(
        routes=route_names(settings),
        targets=fixed_targets(settings),
        tenants=settings.tenants,
        called={name: place.convention for name, place in places(settings).items()},
    )
    store, upkeeps = build_books(settings, clock, journal)
    prices = PriceList(settings.prices, settings.providers.values(), shipped_prices())
    upkeeper = Upkeeper(upkeeps, clock)
    traced: list[Observer] = [] if tracing is None else [tracing.spans.observe]
    observers = [metrics.observe, *traced]
    shipper = Shipper(state_dir, store, clock, prices.price, observers)
    adoption = build_adoption(settings, clock, state_dir, prices.price, traced)
    contents = ContentShipper(
        state_dir,
        content_store(place_of(settings), clock.wall_ns),
        clock,
        retention_s=settings.capture.retention_s,
        bytes_max=settings.capture.bytes_max,
        adopt=settings.storage.journal.adopt or (),
        tells=tracing is not None and tracing.contents is not None,
    )
    keys: KeyFeed | None = None
    if settings.auth == "keys":
        keys = KeyFeed(key_store(place_of(settings), clock.wall_ns), channel_server, rules, clock)
    limit_figures = LimitFigures(shared or in_memory, channel_server.unspent, lambda: metrics.tenants)
    processes: dict[str, int | str] = {"control": "self", "supervisor": os.getppid()}
    in_force = sha256(describe(settings).encode()).hexdigest()[:SETTINGS_HASH_DIGITS]
    metric_exporter = build_metric_exporter(metrics, clock, journal)
    metrics.add(
        {
            **figures.of_books(shipper, upkeeper),
            **figures.of_journals(journals),
            **({} if adoption is None else figures.of_adoption(adoption)),
            **figures.of_contents(contents),
            **({} if keys is None else figures.of_keys(keys)),
            **figures.of_limits(limit_figures),
            **({} if shared is None else figures.of_redis(shared)),
            **({} if tracing is None else figures.of_tracing(tracing)),
            **({} if metric_exporter is None else figures.of_metric_export(metric_exporter)),
            **figures.of_processes(processes, clock.wall_ns() / 1e9, pulse.lag_s),
            **figures.of_settings(settings.source, in_force),
        }
    )
    control: ControlProcess

    handler = Admin(lambda: control.readiness(), lambda: exposition.parts(metrics))
    server = build_server(loop, watch, handler.serve, admin_gate, settings.server, Outbox())
    control = ControlProcess(
        watch,
        pulse,
        channel_server,
        memory,
        shared,
        shipper,
        store,
        journals,
        syncer,
        adoption,
        upkeeper,
        contents,
        server,
        keys,
        tracing,
        metric_exporter,
        settings.server.workers,
    )
    return control
