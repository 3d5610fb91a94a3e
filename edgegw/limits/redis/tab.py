"""What this replica knows of one meter, has of it, and has yet to tell Redis: its tab.

Kept in the control process for every meter lately used. What comes back or is charged is written down here first and
told together a little later (`orders`); while Redis is away it stands here until Redis is back. An order that failed is
written down again when it was certainly not carried out. When nobody knows, the doubt is decided for the limit: what
came back is forgotten, what was charged is charged again.

Slots are different, as they are neither refilled nor forgotten: `held` is how many this replica's workers have, and is
told to Redis as it is (`touch`), which mends any doubt.

Pure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
from typing import ClassVar

from edgegw.limits.bucket import MICROS_PER_S
from edgegw.limits.meter import MINUTE_S, Shape, read_meter
from edgegw.limits.redis.absence import Absence
from edgegw.limits.redis.keys import hash_slot, meter_key
from edgegw.limits.redis.script import Answer, Operation, What, shape_of


class Order(Operation, ABC):
    """An operation, and what follows from how it went. `answered`, `refused` or `lost` is called once; `overdue`
    perhaps before one of them. `tab`: whose, if it is about a meter."""

    __slots__ = ()

    tab: Tab | None

    def leaves(self) -> None:
        """It is sent now, behind all that was sent before."""

    @abstractmethod
    def answered(self, answer: Answer) -> None: ...

    def overdue(self) -> None:
        """The answer takes too long, and may still come."""

    @abstractmethod
    def refused(self) -> None:
        """It was certainly not carried out."""

    @abstractmethod
    def lost(self) -> None:
        """Nobody knows whether it was."""


class Tab:
    __slots__ = (
        "absence",
        "back",
        "charge",
        "drain",
        "fresh_until_s",
        "heard_s",
        "held",
        "key",
        "limit",
        "measure",
        "meter",
        "remaining",
        "shape",
        "slot",
        "taking",
        "tenant",
        "touch",
        "used_s",
    )

    def __init__(self, meter: str) -> None:
        """Raises ValueError when `meter` is no id of one."""
        parsed = read_meter(meter)
        self.meter = meter
        self.measure = parsed.measure
        self.tenant = parsed.tenant
        self.key = meter_key(parsed)
        self.slot = hash_slot(self.key)
        self.shape = shape_of(parsed.measure)
        self.limit = 0  # as it was last told to Redis
        self.remaining = 0  # as Redis said at heard_s (monotonic seconds)
        self.heard_s: float | None = None
        self.fresh_until_s = inf  # of a day or month that ends
        self.used_s = 0.0
        self.back = 0  # to give back
        self.charge = 0  # to charge, into debt if need be
        self.drain = 0  # to charge as far as there is anything
        self.held = 0  # slots only, as are these two
        self.taking = 0  # takes that are under way
        self.touch = False  # Redis is to be told what is held
        self.absence: Absence | None = None

    @property
    def owes(self) -> bool:
        return bool(self.back or self.charge or self.drain or self.touch)

    @property
    def counts_slots(self) -> bool:
        return self.measure.shape is Shape.SLOTS

    def heard(self, limit: int, answer: Answer, now_s: float) -> None:
        self.limit = limit
        self.remaining = answer.level
        self.heard_s = now_s
        if self.measure.shape is Shape.WINDOW:
            self.fresh_until_s = now_s + answer.rest / MICROS_PER_S

    def left(self, limit: int, now_s: float) -> int | None:
        """What should be left for everybody by now; None when that was never heard."""
        if self.heard_s is None or now_s >= self.fresh_until_s:
            return None
        left = self.remaining + limit - self.limit
        if self.measure.shape is Shape.REFILLS:
            left += int((now_s - self.heard_s) * limit / MINUTE_S)
        return min(limit, left)

    def given(self, tokens: int) -> None:
        """Comes back unused; a negative number was used without a lease."""
        if tokens >= 0:
            self.back += tokens
        else:
            self.charge -= tokens

    def gone(self) -> None:
        """Redis is away: for slots what comes back and goes is from now on counted in `held` alone."""
        if self.counts_slots:
            self.held = max(0, self.held + self.charge + self.drain - self.back)
            self.back = self.charge = self.drain = 0

    def orders(self, limit: int) -> list[Order]:
        """What is to be told, and takes it off the tab."""
        orders: list[Order] = []
        if self.back:
            orders.append(self._order(Back, "give", limit, self.back))
        if self.charge:
            orders.append(self._order(Charge, "give", limit, -self.charge))
        if self.drain:
            orders.append(self._order(Drain, "drain", limit, self.drain))
        self.back = self.charge = self.drain = 0
        if self.touch and not self.taking:  # who takes is heard anyway; what is held is known when that is answered
            self.touch = False
            orders.append(self._order(Touch, "touch", limit, 0))  # how many is said when it leaves
        return orders

    def _order(self, kind: type[Settlement], what: What, limit: int, tokens: int) -> Order:
        return kind(what, self.key, self.shape, limit, tokens, tab=self)


class Settlement(Order):
    """What is told afterwards, and nobody waits for."""

    __slots__ = ("_late", "tab")

    tab: Tab
    counts: ClassVar[bool] = True  # changes what is held

    def __init__(self, what: What, key: bytes, shape: bytes, limit: int, tokens: int, *, tab: Tab) -> None:
        super().__init__(what, key, shape, limit, tokens)
        self.tab = tab
        self._late = False

    def leaves(self) -> None:
        tab = self.tab
        self.held = tab.held
        if self.counts and tab.counts_slots:
            tab.held = max(0, tab.held - self.a)

    def answered(self, answer: Answer) -> None:
        """What was late may have been carried out after what was sent later, on another connection."""
        if self._late and self.tab.counts_slots:
            self.tab.touch = True

    def overdue(self) -> None:
        self._late = True

    def refused(self) -> None:
        self._again()

    def lost(self) -> None:
        self._again()

    def _again(self) -> None:
        """Back on the tab. Of slots it is enough to say how many are held."""
        if self.tab.counts_slots:
            self.tab.touch = True
        else:
            self._note(self.tab)

    @abstractmethod
    def _note(self, tab: Tab) -> None: ...


class Back(Settlement):
    __slots__ = ()

    def _note(self, tab: Tab) -> None:
        tab.back += self.a

    def lost(self) -> None:
        self.tab.touch = self.tab.touch or self.tab.counts_slots


class Charge(Settlement):
    __slots__ = ()

    def _note(self, tab: Tab) -> None:
        tab.charge -= self.a


class Drain(Settlement):
    __slots__ = ()

    def _note(self, tab: Tab) -> None:
        tab.drain += self.a


class Touch(Settlement):
    __slots__ = ()

    counts = False

    def leaves(self) -> None:
        super().leaves()
        self.a = self.held

    def _note(self, tab: Tab) -> None:
        tab.touch = True


class Take(Order):
    """Somebody waits for it, until it is overdue. `answer` is called once, with None when this replica has to decide by
    itself, and says whether anybody was still there."""

    __slots__ = ("_answer", "_under_way", "_waited_for", "tab")

    tab: Tab

    def __init__(
        self,
        tab: Tab,
        limit: int,
        need: int,
        want: int,
        answer: Callable[[Answer | None], bool],
    ) -> None:
        super().__init__("take", tab.key, tab.shape, limit, need, want)
        self.tab = tab
        self._answer = answer
        self._waited_for = True
        self._under_way = False

    def leaves(self) -> None:
        self.held = self.tab.held
        self.tab.taking += 1
        self._under_way = True

    def answered(self, answer: Answer) -> None:
        tab = self.tab
        if tab.counts_slots:
            tab.held += answer.granted
        if not self._over(answer) and answer.granted:
            tab.given(answer.granted)
            tab.touch = tab.touch or tab.counts_slots
            if tab.absence is not None:
                tab.gone()

    def overdue(self) -> None:
        self._over(None)

    def refused(self) -> None:
        self._over(None)

    def lost(self) -> None:
        self.tab.touch = self.tab.touch or self.tab.counts_slots
        self._over(None)

    def _over(self, answer: Answer | None) -> bool:
        """Whether somebody was told."""
        if not self._waited_for:
            return False
        self._waited_for = False
        self.tab.taking -= self._under_way
        return self._answer(answer)
