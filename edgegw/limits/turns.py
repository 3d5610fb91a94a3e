"""Whose turn it is: places that several tenants share, who holds how many of them, and who waits for the next.

The policy, in the order in which it asks:

1. *Who holds least for its weight.* A freed place goes to the waiting tenant with the lowest level (places held by
   weight), as water fills the lowest vessel first: max-min fairness of places held. Turns alone would not do: a tenant
   whose answers take a minute would hold sixty times what one with answers of a second does.
2. *Whose turn has come.* A level is a whole round (a tenant of weight 3 holds 0, 1 or 2 places at level 0), for places
   that are fewer than the sum of the weights cannot be divided by weight, only taken in turns. The turns are those of a
   weighted fair queue: of the tenants that are due, the one whose turn ends first (WF2Q+, Bennett and Zhang 1997).
3. Within a tenant, first come first served.

No place is kept empty for anybody and none is taken back: who comes to a full house gets what falls free next. Absence
earns nothing: who comes back starts with the present turn, and nobody is ever owed more than one. Nor does leaving:
a turn that was taken is remembered until it is over.

Pure: no clock (time is counted in turns), no loop; a waiter is anything hashable. An operation costs O(log n) in the
tenants that wait, times the number of *different* weights among them; a tenant that neither holds nor waits, nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)

WAITING_MAX = 1_000
"""All waiters of one provider. With as many connections they are what `server.in_flight_max` lets in (2,000)."""

WAITING_PER_TENANT_MAX = 500
"""Waiters of one tenant; never more than there is room left, so that k tenants that flood leave 1 / (k + 1) of it."""

DEBTORS_MAX = 1_000
"""Tenants that have left with a turn not yet over; past that their debts, one turn at most, are forgiven."""

LAP = 720_720 << 20
"""A turn of weight 1, in parts. 720,720 is divided by all numbers to 16, so that usual weights are not rounded."""

Entry = tuple[int, int, int, "Line[W]"]


class Line(Generic[W]):
    """The waiters of one tenant. `start`: when its next turn begins. `entry`: where it stands among its peers."""

    __slots__ = ("entry", "start", "tenant", "waiters", "weight")

    def __init__(self, tenant: str, weight: int, start: int) -> None:
        self.tenant = tenant
        self.weight = weight
        self.start = start
        self.waiters: OrderedDict[W, None] = OrderedDict()
        self.entry: Entry[W] | None = None


class Peers(Generic[W]):
    """The lines of one weight, by places held, then by turn. A heap: what is outdated lies there until it surfaces."""

    __slots__ = ("_heap", "lines")

    def __init__(self) -> None:
        self.lines = 0
        self._heap: list[Entry[W]] = []

    def put(self, line: Line[W], held: int, number: int) -> None:
        """In, or to where it belongs now. `number` decides between equals: the older goes first."""
        if line.entry is None:
            self.lines += 1
        line.entry = (held, line.start, number, line)
        heappush(self._heap, line.entry)
        if len(self._heap) > 2 * self.lines + 16:
            self._heap = [entry for entry in self._heap if entry[3].entry is entry]
            heapify(self._heap)

    def take_out(self, line: Line[W]) -> None:
        line.entry = None
        self.lines -= 1

    def first(self) -> Entry[W]:
        """There must be one."""
        heap = self._heap
        while heap[0][3].entry is not heap[0]:
            heappop(heap)
        return heap[0]


class Turns(Generic[W]):
    """`gone` says of a waiter that it will not take a place any more; it is passed over and costs its tenant no turn.

    `held` is places by tenant, without zeros. Whoever hands out places while nobody waits may count in it directly.
    """

    __slots__ = (
        "_gone",
        "_lines",
        "_now",
        "_number",
        "_owed",
        "_peers",
        "_per_tenant_max",
        "_turn",
        "_waiting_max",
        "_weight",
        "held",
        "waiting",
    )

    def __init__(
        self,
        gone: Callable[[W], bool] = lambda waiter: False,
        *,
        waiting_max: int = WAITING_MAX,
        per_tenant_max: int = WAITING_PER_TENANT_MAX,
    ) -> None:
        self._gone = gone
        self._waiting_max = waiting_max
        self._per_tenant_max = per_tenant_max
        self._lines: dict[str, Line[W]] = {}  # those in which somebody waits
        self._peers: dict[int, Peers[W]] = {}  # the same by weight
        self._owed: dict[str, int] = {}  # where the next turn of those starts who left before this one was over
        self._weight = 0  # of all lines
        self._now = 0  # when the present turn began, in parts of a turn of weight 1
        self._turn = 0  # how long it takes
        self._number = 0
        self.held: dict[str, int] = {}
        self.waiting = 0

    # -- places --

    def take(self, tenant: str) -> None:
        """The tenant holds one place more. For a place that nobody waited for; `next` counts by itself."""
        held = self.held
        held[tenant] = held.get(tenant, 0) + 1

    def give_back(self, tenant: str) -> None:
        """The tenant holds one place less. If somebody waits it is to be handed on: `next`."""
        held = self.held
        left = held[tenant] - 1
        if left:
            held[tenant] = left
        else:
            del held[tenant]
        if self.waiting and (line := self._lines.get(tenant)) is not None:
            self._put(line)

    # -- waiters --

    def join(self, tenant: str, weight: int, waiter: W) -> bool:
        """`waiter` waits from now on, behind the others of its tenant. False: too many do already. The weight holds for
        as long as the tenant has waiters."""
        line = self._lines.get(tenant)
        mine = 0 if line is None else len(line.waiters)
        if mine >= self._per_tenant_max or mine >= self._waiting_max - self.waiting:
            return False
        if line is None:
            line = self._open(tenant, weight)
        line.waiters[waiter] = None
        self.waiting += 1
        return True

    def leave(self, tenant: str, waiter: W) -> None:
        """`waiter` waits no longer. Harmless when it does not wait."""
        line = self._lines.get(tenant)
        if line is not None and waiter in line.waiters:
            del line.waiters[waiter]
            self.waiting -= 1
            if not line.waiters:
                self._close(line)

    def next(self) -> W | None:
        """The waiter whose turn it is; it waits no longer and its tenant holds one place more. None: nobody waits."""
        self._now += self._turn
        self._turn = 0
        while self.waiting:
            line = self._first()
            waiter = line.waiters.popitem(last=False)[0]
            self.waiting -= 1
            gone = self._gone(waiter)
            if not gone:
                self.take(line.tenant)
                self._begin(line)
            if not line.waiters:
                self._close(line)
            elif not gone:
                self._put(line)
            if not gone:
                return waiter
        return None

    def dismiss(self) -> list[W]:
        """All waiters, who wait no longer. Nobody's places change."""
        waiters = [waiter for line in self._lines.values() for waiter in line.waiters]
        self._lines.clear()
        self._peers.clear()
        self._weight = self.waiting = 0
        self._forget()
        return waiters

    # -- lines --

    def _open(self, tenant: str, weight: int) -> Line[W]:
        line = self._lines[tenant] = Line(tenant, weight, max(self._now, self._owed.pop(tenant, 0)))
        if weight not in self._peers:
            self._peers[weight] = Peers()
        self._weight += weight
        self._put(line)
        return line

    def _close(self, line: Line[W]) -> None:
        peers = self._peers[line.weight]
        peers.take_out(line)
        if not peers.lines:
            del self._peers[line.weight]
        del self._lines[line.tenant]
        self._weight -= line.weight
        if not self._lines:
            self._forget()
        elif line.start > self._now:
            self._owe(line)

    def _put(self, line: Line[W]) -> None:
        self._number += 1
        self._peers[line.weight].put(line, self.held.get(line.tenant, 0), self._number)

    def _owe(self, line: Line[W]) -> None:
        owed, now = self._owed, self._now
        owed[line.tenant] = line.start
        if len(owed) > DEBTORS_MAX:
            open_ones = {tenant: start for tenant, start in owed.items() if start > now}
            self._owed = open_ones if len(open_ones) <= DEBTORS_MAX // 2 else {}

    def _forget(self) -> None:
        """Nobody waits: turns are counted anew when there is something to share again."""
        self._owed.clear()
        self._now = self._turn = self._number = 0

    # -- turns --

    def _first(self) -> Line[W]:
        peers = self._peers
        entries = [same.first() for same in peers.values()]
        if len(entries) == 1:
            return entries[0][3]
        unit = min(peers)
        return min(entries, key=lambda entry: self._rank(entry, unit))[3]

    def _rank(self, entry: Entry[W], unit: int) -> tuple[int, bool, int, int]:
        """`unit` is the smallest weight that waits: a level is what gives each tenant of that weight one place."""
        held, start, number, line = entry
        level = held * unit // line.weight
        if start <= self._now:
            return level, False, start + LAP // line.weight, number
        return level, True, start, number

    def _begin(self, line: Line[W]) -> None:
        """Its turn. All who wait have theirs at the same time, so the larger their weights the sooner it is over."""
        lap = LAP // line.weight
        start = max(line.start, self._now - lap)
        line.start = start + lap
        self._now = max(self._now, start)
        self._turn = LAP // self._weight + 1  # rounded up, else who is due would seem not to be
