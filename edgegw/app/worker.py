"""What a worker is made of."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgegw import endpoints
from edgegw.access import Access, Doorkeeper
from edgegw.app.parts import SystemClock, build_server
from edgegw.attempts import Attempts
from edgegw.breaker import BreakerPolicy
from edgegw.channel import ChannelClient
from edgegw.content.capture import Capture
from edgegw.content.choice import Choice
from edgegw.content.files import TOLD_DIR, Tray
from edgegw.content.porter import Porter, TrayPair
from edgegw.gateway import Gateway
from edgegw.http.dial import Dialer, Resolver, tls_context
from edgegw.http.outbox import Outbox
from edgegw.http.proxies import Proxies, Proxy
from edgegw.http.request import Request
from edgegw.http.upstream import Pool, PoolLimits
from edgegw.http.watch import Watch
from edgegw.keys.subscriber import KeySubscriber
from edgegw.keys.table import KeyTable, settings_keys
from edgegw.ladder import Ladders, Upstream
from edgegw.ledger.durable import Durable
from edgegw.ledger.journal import Journal
from edgegw.leg import LegWaits
from edgegw.limits import tally
from edgegw.limits.accounts import TALLY_CELLS, Accounts
from edgegw.limits.limiter import Limiter
from edgegw.limits.rules import Rules
from edgegw.providers import registry
from edgegw.retry import RetryBudget
from edgegw.routing import Router
from edgegw.settings import ProviderSettings, Settings
from edgegw.telemetry import variables
from edgegw.tokens import TokenEstimator
from edgegw.trace import Announcer
from edgegw.worker import Worker


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
    ladders = Ladders(upstreams, BreakerPolicy())
    attempts = Attempts(ladders, journal, watch, clock, rng.random, loop, estimator, durable)
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
        ladders,
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
    """None: nobody's content is kept, and none is told."""
    choice = Choice(settings, tells=variables.tells_content(os.environ))
    if not choice.any:
        return None
    server, capture = settings.server, settings.capture
    tray = partial(Tray, Path(server.state_dir), slot, capture.waiting_bytes_max // server.workers)

    def open_trays() -> TrayPair:
        return TrayPair(tray() if choice.keeps else None, tray(TOLD_DIR) if choice.tells else None)

    keeping = variables.keeping(os.environ) if choice.tells else None
    return Capture(choice, Porter(open_trays), clock, capture.body_bytes_max, keeping)


def closed_gate(doorkeeper: Doorkeeper) -> Callable[[Request], None]:
    """What judges a head where keys are asked for: first where it wants to go, then who comes."""

    def gate(request: Request) -> None:
        endpoints.gate(request)
        doorkeeper.check(request)

    return gate


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
