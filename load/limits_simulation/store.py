"""reserve.lua in Python: the same operations on the gateway's own Bucket and Window, for millions of virtual calls.

Takes the arguments that the script gets and gives the answers that it gives, to the last part of a token; replay.py
holds the one against the other in a real Redis. Knows no connection and no clock: `now_us` are the server's
microseconds since 1970, as Redis's TIME.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgegw.limits.bucket import MICROS_PER_S, PARTS, Bucket, Stock, Window

SLOTS_LEASE_S = 15
SLOTS_SWEEP_S = 1
REPLICA_SEEN_S = 5

ANSWERS = 3  # integers per operation
ARGUMENTS = 6  # per operation


@dataclass(slots=True)
class Slots:
    """The slots of one meter: who has how many, and when it was last heard."""

    used: int = 0
    swept_s: int = 0
    has: dict[str, int] = field(default_factory=dict)
    seen_s: dict[str, int] = field(default_factory=dict)
    forgotten_at_s: int = 0

    def sweep(self, replica: str, now_s: int) -> None:
        self.used = self.has.get(replica, 0)
        for other, seen_s in list(self.seen_s.items()):
            if other == replica:
                continue
            if seen_s + SLOTS_LEASE_S > now_s:
                self.used += self.has.get(other, 0)
            else:
                self.has.pop(other, None)
                del self.seen_s[other]
        self.swept_s = now_s


class Store:
    """All that Redis knows of the limits."""

    def __init__(self) -> None:
        self._stocks: dict[bytes, Stock] = {}
        self._slots: dict[bytes, Slots] = {}
        self._replicas: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._stocks) + len(self._slots)

    def forget(self) -> None:
        """A server that restarted without its data."""
        self._stocks.clear()
        self._slots.clear()
        self._replicas.clear()

    def call(self, now_us: int, keys: Sequence[bytes], arguments: Sequence[bytes]) -> list[int]:
        """One call of the script. `arguments` are ARGV: the replica, then six per operation."""
        replica = arguments[0].decode()
        answers: list[int] = []
        for number, key in enumerate(keys):
            what, shape, limit, a, b, held = arguments[1 + ARGUMENTS * number : 1 + ARGUMENTS * (number + 1)]
            if what == b"beat":
                answers += (self._beat(replica, int(a), now_us // MICROS_PER_S), 0, 0)
            elif shape == b"S":
                answers += self._on_slots(
                    key, replica, what, int(limit), int(a), int(b), int(held), now_us // MICROS_PER_S
                )
            else:
                answers += self._on_stock(key, shape, what, int(limit), int(a), int(b), now_us)
        return answers

    def _on_stock(
        self, key: bytes, shape: bytes, what: bytes, limit: int, a: int, b: int, now_us: int
    ) -> tuple[int, int, int]:
        now_s = now_us / MICROS_PER_S
        stock = self._stocks.get(key)
        if stock is None:
            stock = Bucket(limit, now_s) if shape == b"R" else Window(limit, now_s, monthly=shape == b"M")
            self._stocks[key] = stock
        elif stock.limit != limit:
            stock.level(now_s)
            stock.resize(limit, now_s)
        granted = 0
        if what == b"take":
            granted = stock.take_between(a, b, now_s)
        elif what == b"give":
            stock.give(a, now_s)
        elif what == b"drain":
            granted = max(0, min(a, stock.level(now_s)))
            stock.drain(a, now_s)
        level = stock.level(now_s)
        rest = stock._level % PARTS if isinstance(stock, Bucket) else round(stock.resets_s(now_s) * MICROS_PER_S)
        if stock.full(now_s):
            del self._stocks[key]  # says nothing, as in Redis
        return granted, level, rest

    def _on_slots(
        self, key: bytes, replica: str, what: bytes, limit: int, a: int, b: int, held: int, now_s: int
    ) -> tuple[int, int, int]:
        slots = self._slots.get(key)
        if slots is not None and now_s >= slots.forgotten_at_s:
            slots = None
        new = slots is None
        slots = slots or Slots()
        changed = False
        if replica not in slots.has and held > 0:
            slots.used += held
            slots.has[replica] = held
            changed = True
        if not new and now_s >= slots.swept_s + SLOTS_SWEEP_S:
            slots.sweep(replica, now_s)
            changed = True
        mine = slots.has.get(replica, 0)
        level, granted = limit - slots.used, 0
        if what == b"take":
            granted = 0 if level < a or level <= 0 else min(level, max(a, b))
            moved = -granted
        elif what == b"give":
            moved = min(a, mine)
        elif what == b"drain":
            granted = max(0, min(a, level))
            moved = -granted
        else:
            moved = mine - a
            changed = True
        changed = changed or moved != 0
        level, mine = level + moved, mine - moved
        if what == b"give" and level >= limit:
            level = limit
        if changed:
            self._keep(key, slots, replica, mine, limit - level, now_s)
        return granted, level, 0

    def _keep(self, key: bytes, slots: Slots, replica: str, mine: int, used: int, now_s: int) -> None:
        if used <= 0:
            self._slots.pop(key, None)
            return
        slots.used = used
        if mine > 0:
            slots.has[replica] = mine
            slots.seen_s[replica] = now_s
        else:
            slots.has.pop(replica, None)
            slots.seen_s.pop(replica, None)
        slots.forgotten_at_s = now_s + SLOTS_LEASE_S + 5
        self._slots[key] = slots

    def _beat(self, replica: str, leaves: int, now_s: int) -> int:
        if leaves == 1:
            self._replicas.pop(replica, None)
        else:
            self._replicas[replica] = now_s
        for other, seen_s in list(self._replicas.items()):
            if seen_s < now_s - REPLICA_SEEN_S:
                del self._replicas[other]
        return len(self._replicas)
