"""The authority for many replicas: what is counted stands in Redis, and is asked for in few calls.

Implements `Authority` (limits/authority.py). While Redis is there, every answer is Redis' own. While it is away each
tenant is served as its `without_redis` says: `local` (this replica's share, absence.py), `open` or `closed`; and when
it is back, it is told what was admitted meanwhile. Nobody ever waits longer than a call may take (server.py).

Knows no address and no connection. One per control process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from edgegw.clock import Clock
from edgegw.limits.meter import Shape
from edgegw.limits.redis.absence import Absence
from edgegw.limits.redis.keys import REPLICAS, hash_slot
from edgegw.limits.redis.replicas import Beat, ReplicasFile
from edgegw.limits.redis.script import Answer, Script, Tally, room_in_s
from edgegw.limits.redis.server import House, Server
from edgegw.limits.redis.servers import Cluster, OneServer, Servers
from edgegw.limits.redis.tab import Tab, Take
from edgegw.limits.words import Mode, Offer
from edgegw.settings import RedisAddress
from edgegw.settings.model import WithoutRedis

START_WITHIN_S = 1.0  # the first requests find Redis there, if it is; else the gateway starts without
BEAT_EVERY_S = 1.0  # "I am here"; the script takes a replica for gone after five
BEATS_REMEMBERED = 10  # the most replicas seen in so many beats: a Redis that was away finds them one by one
TOUCH_EVERY_S = 5.0  # slots that are held; the script takes them for free again after 15
CLOSED_WAIT_S = 1.0  # what a client is told while nothing is granted: about when Redis may be back
TABS_BEFORE_SWEEP = 20_000  # about 10 MiB
TAB_KEPT_S = 120.0  # unused; what was left of a minute is known again by then

logger = logging.getLogger("edgegw.limits")


class RedisAuthority:
    """`limit` says what a meter allows now, `without_redis` what a tenant gets while Redis is away; `replica` is an id
    of this process that no other one has or had; `replicas_file` remembers how many there were. Build it where its loop
    runs; raises OSError when the file with the certificate authorities cannot be read."""

    def __init__(
        self,
        address: RedisAddress,
        script: Script,
        limit: Callable[[str], int],
        without_redis: Callable[[str], WithoutRedis],
        clock: Clock,
        replica: str,
        replicas_file: ReplicasFile | None = None,
    ) -> None:
        self.tally = Tally()
        self._replicas_file = replicas_file
        self._limit = limit
        self._without_redis = without_redis
        self._clock = clock
        self._tabs: dict[str, Tab] = {}
        self._sweep_at = TABS_BEFORE_SWEEP
        self._slots: set[Tab] = set()  # tabs that count slots
        self._absent: set[Tab] = set()  # tabs with an absence
        self._replicas_seen: deque[int] = deque(
            [1 if replicas_file is None else replicas_file.read()], maxlen=BEATS_REMEMBERED
        )
        self._told_away: set[Server] = set()
        self._started = asyncio.Event()
        self._began_s = clock.now()
        self._caring: asyncio.Task[None] | None = None
        house = House(
            script,
            replica.encode(),
            clock,
            self.tally,
            settle=lambda tab: tab.orders(self._limit(tab.meter)),
            away=self._away,
            here=self._here,
            redirected=lambda *redirection: self._servers.redirected(*redirection),
            apart=lambda orders: self._servers.apart(orders),
        )
        self._servers: Servers = (Cluster if address.mode == "cluster" else OneServer)(address, house)

    # -- the life of it --

    async def start(self) -> None:
        """Returns when Redis is there, or after a second without it."""
        self._servers.start()
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self._started.wait()
        except TimeoutError:
            for server in self._servers.all():
                if not server.here:
                    self._away(server, server.reason)
            if not self._servers.all():
                logger.warning("Redis is away (no node of the cluster answers): limits are kept by this replica alone")
        self._caring = asyncio.get_running_loop().create_task(self._care())

    async def close(self) -> None:
        """Tells what is still to be told. Give everything back before it. Slots that are in use are let go: workers
        that live on say to our successor that they have them."""
        if self._caring is not None:
            self._caring.cancel()
        self._beat(leaves=True)
        for tab in self._tabs.values():
            if tab.counts_slots:
                tab.back, tab.charge, tab.touch, tab.held = 0, 0, True, 0
            if tab.owes and (server := self._servers.of(tab.slot)) is not None:
                server.tell(tab)
        await self._servers.close()

    @property
    def replicas(self) -> int:
        """Lately seen, this one included."""
        return max(self._replicas_seen)

    @property
    def away_s(self) -> float:
        """For how long Redis, or a part of a cluster, has been away; 0 while all of it is there."""
        since = [server.away_since_s for server in self._servers.all() if not server.here]
        if not self._started.is_set():
            since.append(self._began_s)
        return max(0.0, self._clock.now() - min(since)) if since else 0.0

    def status(self) -> dict[str, Any]:
        """For /readyz."""
        away = {server.name: server.reason for server in self._servers.all() if not server.here}
        status: dict[str, Any] = {
            "authority": "redis",
            "state": "away" if self.away_s else "exact",
            "replicas": self.replicas,
            "away_seconds": round(self.away_s, 3),
        }
        return {**status, "reasons": away} if away else status

    # -- what the channel's server asks --

    async def lease(self, meter: str, want: int, need: int) -> Offer:
        tab, limit = self._tab(meter), self._limit(meter)
        server = self._there(tab)
        answer = None if server is None else await self._ask(server, tab, limit, want, need)
        if answer is None:
            return self._alone(tab, limit, want, need)
        wait_s = 0.0 if answer.granted else room_in_s(tab.measure.shape, need, limit, answer)
        resets_s = answer.rest / 1e6 if tab.measure.shape is Shape.WINDOW else 0.0
        return Offer(
            meter, answer.granted, limit, answer.level, inf if wait_s is None else wait_s, resets_s, Mode.EXACT
        )

    def give_back(self, meter: str, tokens: int) -> None:
        tab = self._tab(meter)
        server = self._there(tab)
        if server is not None:
            tab.given(tokens)
            server.tell(tab)
            return
        rest = self._absence(tab).give(tokens, self._now_s(tab))
        if tab.counts_slots:
            tab.held = max(0, tab.held - tokens)
        else:
            tab.given(rest)

    def spent(self, meter: str, tokens: int) -> None:
        tab = self._tab(meter)
        server = self._there(tab)
        if server is None:
            self._absence(tab).spent(tokens, self._now_s(tab))
            tab.held += tokens if tab.counts_slots else 0
            return
        tab.charge += tokens  # whether there was room or not
        server.tell(tab)

    def recall(self, meter: str, level: int) -> None:
        """Redis remembers by itself. What a worker remembers is of use while it is away."""
        tab = self._tab(meter)
        if tab.heard_s is None:
            tab.heard(self._limit(meter), Answer(0, level, 0), self._clock.now())
            tab.fresh_until_s = inf

    def standing(self, meter: str) -> tuple[int, int] | None:
        """As Redis said last, or while it is away as we count ourselves."""
        tab = self._tabs.get(meter)
        if tab is None:
            return None
        limit, absence = self._limit(meter), tab.absence
        left = tab.left(limit, self._clock.now()) if absence is None else absence.level(self._now_s(tab))
        return None if left is None else (limit, left)

    # -- with Redis --

    def _there(self, tab: Tab) -> Server | None:
        """The tab's server when it is there; then what was owed to it is on the tab."""
        server = self._servers.of(tab.slot)
        if server is None or not server.here:
            return None
        if tab.absence is not None:
            self._return(tab, server)
        return server

    async def _ask(self, server: Server, tab: Tab, limit: int, want: int, need: int) -> Answer | None:
        waiting: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

        def answered(answer: Answer | None) -> bool:
            if answer is not None:
                tab.heard(limit, answer, self._clock.now())
            if waiting.done():
                return False
            waiting.set_result(answer)
            return True

        server.ask(Take(tab, limit, need, want, answered), at_once=need > 0)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and (answer := waiting.result()) is not None:
                self.give_back(tab.meter, answer.granted)
            raise

    # -- without --

    def _alone(self, tab: Tab, limit: int, want: int, need: int) -> Offer:
        now_s = self._now_s(tab)
        absence = self._absence(tab)
        rule = self._without_redis(tab.tenant)
        if rule == "closed":
            return Offer(tab.meter, 0, limit, 0, CLOSED_WAIT_S, 0.0, Mode.CLOSED)
        if rule == "open":
            granted, remaining, wait_s, mode = max(want, need), limit, 0.0, Mode.OPEN
            absence.lend(granted)
        else:
            granted, mode = absence.take(need, want, now_s), Mode.LOCAL
            remaining = absence.level(now_s)
            wait_s = inf if need > limit else 0.0 if granted else absence.room_in_s(need, now_s)
        if tab.counts_slots:
            tab.held += granted
        return Offer(tab.meter, granted, limit, remaining, wait_s, absence.resets_s(now_s), mode)

    def _absence(self, tab: Tab) -> Absence:
        """The tab's absence, begun if it has none, with the limit that holds now."""
        limit, now_s = self._limit(tab.meter), self._now_s(tab)
        absence = tab.absence
        if absence is None:
            left = tab.left(limit, self._clock.now())
            absence = tab.absence = Absence(tab.measure, limit, self.replicas, left, now_s)
            tab.gone()
            self._absent.add(tab)
        else:
            absence.limit(limit, now_s)
        return absence

    def _return(self, tab: Tab, server: Server) -> None:
        absence, tab.absence = tab.absence, None
        self._absent.discard(tab)
        if tab.counts_slots:
            tab.touch = True
        elif absence is not None:
            tab.given(-absence.owed(self._now_s(tab)))  # in full: who was back before us may have taken it
            tab.drain += absence.unpaid
        server.tell(tab)

    def _away(self, server: Server, reason: str) -> None:
        if server not in self._told_away:
            self._told_away.add(server)
            logger.warning("Redis is away (%s: %s): limits are kept by this replica alone", server.name, reason)

    def _here(self, server: Server) -> None:
        if server in self._told_away:
            self._told_away.discard(server)
            absent_s = self._clock.now() - server.away_since_s
            logger.warning("Redis is back (%s) after %.1f s: limits are exact again", server.name, absent_s)
        for tab in self._tabs.values():
            if self._servers.of(tab.slot) is not server:
                continue
            tab.touch = tab.touch or (tab.counts_slots and tab.held > 0)
            if tab.absence is not None:
                self._return(tab, server)
            elif tab.owes:
                server.tell(tab)
        if self._servers.of(hash_slot(REPLICAS)) is server:
            self._beat()
        if all(one.here for one in self._servers.all()):
            self._started.set()

    # -- what has to be done now and then --

    async def _care(self) -> None:
        touched_s = self._clock.now()
        while True:
            await asyncio.sleep(BEAT_EVERY_S)
            self._beat()
            if self._replicas_file is not None:
                self._replicas_file.keep(self.replicas)
            for tab in list(self._absent):
                self._there(tab)
            if self._clock.now() - touched_s >= TOUCH_EVERY_S:
                touched_s = self._clock.now()
                self._touch()

    def _beat(self, leaves: bool = False) -> None:
        server = self._servers.of(hash_slot(REPLICAS))
        if server is not None and server.here:
            server.ask(Beat(self._replicas_seen, leaves), at_once=False)

    def _touch(self) -> None:
        for tab in self._slots:
            server = self._servers.of(tab.slot)
            if tab.held and server is not None and server.here:
                tab.touch = True
                server.tell(tab)

    def _now_s(self, tab: Tab) -> float:
        """Of the clock by which the tab's kind of stock is kept."""
        return self._clock.wall_ns() / 1e9 if tab.measure.shape is Shape.WINDOW else self._clock.now()

    def _tab(self, meter: str) -> Tab:
        tab = self._tabs.get(meter)
        if tab is None:
            self._sweep()
            tab = self._tabs[meter] = Tab(meter)
            if tab.counts_slots:
                self._slots.add(tab)
        tab.used_s = self._clock.now()
        return tab

    def _sweep(self) -> None:
        """Forgets unused tabs on which nothing stands, each time twice as many as are in use have gathered."""
        if len(self._tabs) < self._sweep_at:
            return
        used_after_s = self._clock.now() - TAB_KEPT_S
        self._tabs = {
            meter: tab
            for meter, tab in self._tabs.items()
            if tab.used_s > used_after_s or tab.owes or tab.held or tab.taking or tab.absence is not None
        }
        self._slots &= set(self._tabs.values())
        self._sweep_at = max(TABS_BEFORE_SWEEP, 2 * len(self._tabs))
