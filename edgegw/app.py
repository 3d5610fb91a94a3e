"""The composition roots: what a worker and the control process are made of, and the plan for the supervisor.

The only module that knows everybody, and the only one that constructs.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from edgegw import __version__, endpoints, logs, supervisor
from edgegw.access import Access, Doorkeeper
from edgegw.attempts import Attempts, Upstream
from edgegw.breaker import BreakerPolicy
from edgegw.channel import ChannelClient
from edgegw.channel_server import ChannelServer
from edgegw.child import Lifeline
from edgegw.content.capture import Capture
from edgegw.content.choice import Choice
from edgegw.content.files import Tray
from edgegw.content.place import content_store
from edgegw.content.porter import Porter
from edgegw.content.shipper import ContentShipper
from edgegw.control import figures
from edgegw.control.admin import Admin, admin_gate
from edgegw.control.journals import Journals
from edgegw.control.limit_figures import LimitFigures
from edgegw.control.process import ControlProcess
from edgegw.control.pulse import Pulse
from edgegw.gateway import Gateway
from edgegw.http.client_connection import Waits
from edgegw.http.dial import Dialer, Resolver, tls_context
from edgegw.http.outbox import Outbox
from edgegw.http.proxies import Proxies, Proxy
from edgegw.http.request import Request, RequestLimits
from edgegw.http.server import Server
from edgegw.http.upstream import Pool, PoolLimits
from edgegw.http.watch import Watch
from edgegw.keys.feed import KeyFeed
from edgegw.keys.place import key_store, place_of
from edgegw.keys.subscriber import KeySubscriber
from edgegw.keys.table import KeyTable, settings_keys
from edgegw.ledger.adoption import Adoption
from edgegw.ledger.assembly import Price
from edgegw.ledger.durable import Durable
from edgegw.ledger.identity import identity
from edgegw.ledger.journal import Journal
from edgegw.ledger.schema import migrations
from edgegw.ledger.shipper import Shipper
from edgegw.ledger.sqlite import SqliteStore
from edgegw.ledger.sqlite_retention import SqliteRetention
from edgegw.ledger.syncing import Syncer
from edgegw.ledger.telling import Observer
from edgegw.ledger.upkeep import Upkeep, Upkeeper
from edgegw.leg import LegWaits
from edgegw.limits import tally
from edgegw.limits.accounts import TALLY_CELLS, Accounts
from edgegw.limits.authority import MemoryAuthority
from edgegw.limits.limiter import Limiter
from edgegw.limits.memory_file import MemoryFile
from edgegw.limits.rules import Rules
from edgegw.logs import Log, Role
from edgegw.price_table import shipped as shipped_prices
from edgegw.prices import PriceList
from edgegw.providers import registry
from edgegw.retry import RetryBudget
from edgegw.routing import Router
from edgegw.settings import ProviderSettings, Secret, ServerSettings, Settings, parse_postgres, parse_redis
from edgegw.settings.describe import describe
from edgegw.telemetry import console, exposition, semconv, variables
from edgegw.telemetry.console import Console
from edgegw.telemetry.export import Destination, Exporter
from edgegw.telemetry.metrics import Metrics
from edgegw.telemetry.spans import Place, Spans, Wording
from edgegw.telemetry.tracing import Tracing
from edgegw.tokens import TokenEstimator
from edgegw.trace import Announcer
from edgegw.worker import Worker

if TYPE_CHECKING:
    from edgegw.ledger.postgres.store import PostgresStore
    from edgegw.limits.redis.authority import RedisAuthority
    from edgegw.telemetry.metric_export import MetricExporter

SETTINGS_HASH_DIGITS = 12
STDOUT = 1

logger = logging.getLogger("edgegw")

# A worker makes hardly any cycles: looking for them often costs more than it finds.
GC_THRESHOLDS = (50_000, 20, 100)


class SystemClock:
    """The clock of a process."""

    __slots__ = ("now", "wall_ns")

    def __init__(self) -> None:
        self.now = time.monotonic
        self.wall_ns = time.time_ns


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


# -- a worker --


def _run_worker(settings: Settings, slot: int, listening: socket.socket, lifeline: Lifeline) -> int:
    async def main() -> int:
        worker = build_worker(settings, slot, asyncio.get_running_loop())
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        return await worker.run(listening, lifeline)

    return uvloop.run(main())


def build_worker(settings: Settings, slot: int, loop: asyncio.AbstractEventLoop) -> Worker:
    server_settings = settings.server
    clock = SystemClock()
    dice = random.SystemRandom().getrandbits(64) ^ os.getpid()
    rng = random.Random(dice)
    watch = Watch(loop, clock.now)
    state_dir = Path(server_settings.state_dir)
    journal_settings = settings.storage.journal
    journal = Journal.open(
        state_dir,
        slot,
        wall_ns=clock.wall_ns(),
        pid=os.getpid(),
        segment_bytes=journal_settings.segment_bytes,
        bytes_max=journal_settings.bytes_max,
        when_full=journal_settings.when_full,
        syncs=journal_settings.sync == "always",
    )
    durable: Durable | None = None
    if journal_settings.sync == "always":
        durable = Durable(journal, loop, refuses=journal_settings.when_full == "refuse")
    channel = ChannelClient(str(state_dir / "control.sock"), slot, os.getpid())
    tally_file = tally.path(state_dir, slot, os.getpid())
    accounts = Accounts(channel, clock, server_settings.workers, tally.create(tally_file, TALLY_CELLS))
    rules = Rules(settings)
    limiter = Limiter(accounts, rules, clock)
    estimator = TokenEstimator()
    outbox = Outbox(loop.call_soon)
    closed = settings.auth == "keys"
    gate: Callable[[Request], None] = endpoints.gate
    keys: KeySubscriber | None = None
    if closed:
        table = KeyTable(settings_keys(settings.tenants))
        keys = KeySubscriber(channel, table, rules, limiter.rules_changed)
        gate = closed_gate(Doorkeeper(table, clock.wall_ns, keys.complete))
    upstreams = build_upstreams(settings, rules, clock, outbox)
    attempts = Attempts(upstreams, journal, watch, clock, rng.random, loop, BreakerPolicy(), estimator, durable)
    capture = build_capture(settings, slot, clock)
    gateway = Gateway(
        Router(settings.use_cases, settings.models, settings.default, settings.providers),
        Access(settings.tenants, closed=closed),
        limiter,
        estimator,
        attempts,
        journal,
        clock,
        partial(rng.getrandbits, 74),
        total_timeout_s=server_settings.total_timeout_s,
        in_flight_max=server_settings.in_flight_max,
        capture=capture,
        disk=durable,
    )
    server = build_server(loop, watch, gateway.serve, gate, server_settings, outbox)
    return Worker(
        clock,
        watch,
        server,
        gateway,
        attempts,
        upstreams,
        limiter,
        channel,
        journal,
        durable,
        tally_file,
        keys,
        server_settings.drain_timeout_s,
        capture,
    )


def build_capture(settings: Settings, slot: int, clock: SystemClock) -> Capture | None:
    """None: nobody's content is kept."""
    choice = Choice(settings)
    if not choice.any:
        return None
    server, capture = settings.server, settings.capture
    open_tray = partial(Tray, Path(server.state_dir), slot, capture.waiting_bytes_max // server.workers)
    return Capture(choice, Porter(open_tray), clock, capture.body_bytes_max)


def closed_gate(doorkeeper: Doorkeeper) -> Callable[[Request], None]:
    """What judges a head where keys are asked for: first where it wants to go, then who comes."""

    def gate(request: Request) -> None:
        endpoints.gate(request)
        doorkeeper.check(request)

    return gate


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
        outbox=outbox,
    )


def build_upstreams(settings: Settings, rules: Rules, clock: SystemClock, outbox: Outbox) -> dict[str, Upstream]:
    resolver = Resolver(clock)
    providers = settings.providers.values()
    secure = any(provider.base_url.startswith("https://") for provider in providers)
    tls = tls_context() if secure else None
    from_environment = Proxies.from_environment(os.environ)
    announcer = Announcer(variables.sampler(os.environ))

    def upstream(provider: ProviderSettings) -> Upstream:
        proxies = Proxies.always(Proxy.parse(provider.proxy)) if provider.proxy else from_environment
        timeouts = provider.timeouts
        built = registry.build(provider)
        pool = Pool(
            built.origin,
            limits=PoolLimits(
                provider.connections_max, timeouts.pool_s, provider.keep_alive_s, timeouts.connect_s, timeouts.tls_s
            ),
            dialer=Dialer(resolver, tls=tls, proxies=proxies),
            clock=clock,
            outbox=outbox,
            weights=rules.weight,
        )
        waits = LegWaits(timeouts.first_byte_s, timeouts.idle_s)
        return Upstream(built, pool, RetryBudget(), waits, announcer if provider.trace else None)

    return {provider.name: upstream(provider) for provider in providers}


# -- the control process --


def _run_control(
    settings: Settings, admin: socket.socket, channel: socket.socket, lifeline: Lifeline, *, as_json: bool
) -> int:
    async def main() -> int:
        control = build_control(settings, channel, asyncio.get_running_loop(), as_json=as_json)
        gc.collect()
        gc.freeze()
        return await control.run(admin, lifeline.fd, lifeline.ready)

    return uvloop.run(main())


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


def places(settings: Settings) -> dict[str, Place]:
    return {each.name: Place.of(each.name, each.kind, each.base_url) for each in settings.providers.values()}


def build_tracing(settings: Settings, clock: SystemClock, instance: str, *, as_json: bool) -> Tracing | None:
    """As OpenTelemetry's variables have it. A collector's client is loaded only when one is named."""
    wanted = variables.read(os.environ, instance)
    for complaint in wanted.complaints:
        logger.warning("%s", complaint)
    dice = random.Random(secrets.randbits(64)).random

    def exporter(destination: Destination, delay_s: float) -> Exporter:
        return Exporter(
            destination,
            clock,
            dice,
            delay_s=delay_s,
            queue_spans_max=wanted.queue_spans_max,
            batch_spans_max=wanted.batch_spans_max,
            timeout_s=wanted.export_timeout_s,
        )

    exporters = []
    if "otlp" in wanted.exporters:
        exporters.append(exporter(build_collector(wanted, Wording(places(settings)), clock), wanted.delay_s))
    if "console" in wanted.exporters:
        exporters.append(
            exporter(
                Console(STDOUT, console.json_line if as_json else console.line), min(console.DELAY_S, wanted.delay_s)
            )
        )
    if not exporters:
        return None
    slow_us = round(wanted.slow_s * 1e6)
    return Tracing(Spans(wanted.sampler, slow_us, [exporter.offer for exporter in exporters]), exporters)


def build_collector(wanted: variables.TraceSettings, wording: Wording, clock: SystemClock) -> Destination:
    about = wanted.resource, semconv.SCOPE, __version__, semconv.SCHEMA_URL
    if wanted.otlp.protocol == "http/protobuf":
        from edgegw.telemetry.collector import HttpCollector
        from edgegw.telemetry.otlp import Encoder

        proxies = Proxies.from_environment(os.environ)
        return HttpCollector(wanted.otlp, proxies, wording, Encoder(*about), clock)
    try:
        from edgegw.telemetry.collector_grpc import GrpcCollector, ReadableSpans
    except ModuleNotFoundError as error:
        raise SystemExit(f"OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs {error.name}: pip install 'edgegw[grpc]'") from None

    return GrpcCollector(wanted.otlp, wording, ReadableSpans(*about))


def build_metric_exporter(metrics: Metrics, clock: SystemClock, instance: str) -> MetricExporter | None:
    """None: nobody wants metrics but from /metrics."""
    wanted = variables.read_metrics(os.environ, instance)
    for complaint in wanted.complaints:
        logger.warning("%s", complaint)
    if wanted.otlp is None:
        return None
    from edgegw.telemetry.collector import OtlpHttp
    from edgegw.telemetry.metric_export import MetricExporter
    from edgegw.telemetry.otlp_metrics import MetricEncoder

    encoder = MetricEncoder(wanted.resource, semconv.SCOPE, __version__, semconv.SCHEMA_URL, clock.wall_ns())
    collector = OtlpHttp(wanted.otlp, Proxies.from_environment(os.environ), clock)
    return MetricExporter(metrics, encoder, collector, clock, wanted.interval_s, wanted.timeout_s)


def build_books(
    settings: Settings, clock: SystemClock, state_dir: Path
) -> tuple[SqliteStore | PostgresStore, list[Upkeep]]:
    """Where the rows go, and what is to be done there now and then."""
    try:
        journal = identity(state_dir)
    except OSError as error:
        raise SystemExit(f"the state directory cannot be used: {error.strerror}") from None
    retention_s = settings.storage.retention_s
    url = settings.postgres_url
    if url is None:
        durable = settings.storage.journal.sync != "none"
        in_file = SqliteStore(Path(settings.sqlite_path), migrations("sqlite"), clock, journal, durable=durable)
        return in_file, [] if retention_s is None else [SqliteRetention(in_file.file, retention_s)]
    try:
        from edgegw.ledger.postgres.store import PostgresStore
        from edgegw.ledger.postgres.upkeep import PostgresUpkeep
    except ModuleNotFoundError as error:
        raise SystemExit(f"storage.database_url needs {error.name}: pip install 'edgegw[postgres]'") from None

    address, known = parse_postgres(url.reveal()), migrations("postgres")
    store = PostgresStore(address, known, clock, journal)
    return store, [PostgresUpkeep(address, known, clock, retention_s)]


def build_adoption(
    settings: Settings, clock: SystemClock, state_dir: Path, price: Price, observers: Sequence[Observer]
) -> Adoption | None:
    """Who ships what gateways that are gone have left, into the database that is theirs and ours."""
    patterns, url = settings.storage.journal.adopt, settings.postgres_url
    if not patterns or url is None:
        return None
    from edgegw.ledger.postgres.store import PostgresStore  # build_books has seen that it is there

    address, known = parse_postgres(url.reveal()), migrations("postgres")

    def store_for(journal: str) -> PostgresStore:
        return PostgresStore(address, known, clock, journal)

    return Adoption(state_dir, patterns, store_for, clock, price, observers)


def route_names(settings: Settings) -> set[str]:
    """As routing.py writes them, but for those of targets that only clients name."""
    names = {f"use_case:{name}" for name in settings.use_cases}
    names |= {f"pattern:{name}" if "*" in name else f"model:{name}" for name in settings.models}
    return names | {f"target:{provider}/{model}" for provider, model in fixed_targets(settings)} | {"default"}


def fixed_targets(settings: Settings) -> set[tuple[str, str]]:
    """The targets that the settings spell out."""
    routes = [*settings.use_cases.values(), *settings.models.values()]
    routes += [] if settings.default is None else [settings.default]
    targets = {(target.provider, target.model) for route in routes for target in route.parsed}
    return {(provider, model) for provider, model in targets if "*" not in model}


def build_control(
    settings: Settings, channel: socket.socket, loop: asyncio.AbstractEventLoop, *, as_json: bool = False
) -> ControlProcess:
    """`as_json`: what stands on stdout is read by machines."""
    clock = SystemClock()
    watch = Watch(loop, clock.now)
    state_dir = Path(settings.server.state_dir)
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
    tracing = build_tracing(settings, clock, identity(state_dir), as_json=as_json)
    metrics = Metrics(
        routes=route_names(settings),
        targets=fixed_targets(settings),
        tenants=settings.tenants,
        called={name: place.convention for name, place in places(settings).items()},
    )
    store, upkeeps = build_books(settings, clock, state_dir)
    prices = PriceList(settings.prices, settings.providers.values(), shipped_prices())
    upkeeper = Upkeeper(upkeeps, clock)
    traced: list[Observer] = [] if tracing is None else [tracing.spans.observe]
    shipper = Shipper(state_dir, store, clock, prices.price, [metrics.observe, *traced])
    adoption = build_adoption(settings, clock, state_dir, prices.price, traced)
    contents = ContentShipper(
        state_dir,
        content_store(place_of(settings), clock.wall_ns),
        clock,
        retention_s=settings.capture.retention_s,
        bytes_max=settings.capture.bytes_max,
        adopt=settings.storage.journal.adopt or (),
    )
    keys: KeyFeed | None = None
    if settings.auth == "keys":
        keys = KeyFeed(key_store(place_of(settings), clock.wall_ns), channel_server, rules, clock)
    limit_figures = LimitFigures(shared or in_memory, channel_server.unspent, lambda: metrics.tenants)
    processes: dict[str, int | str] = {"control": "self", "supervisor": os.getppid()}
    in_force = sha256(describe(settings).encode()).hexdigest()[:SETTINGS_HASH_DIGITS]
    metric_exporter = build_metric_exporter(metrics, clock, identity(state_dir))
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
