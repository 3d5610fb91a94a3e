"""What a run says: figures per class of tenants and for all, from the books. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from load.limits_simulation.books import Account, Book
from load.limits_simulation.fleet import Fleet


@dataclass(slots=True)
class OfClass:
    """Shares are of a limit, or as said. Overshoot is over the whole run, the others after the warm-up."""

    name: str
    tenants: int
    requests: int
    admitted: int
    refused: int
    refused_with_room: int  # though the truth had room for all of it
    elsewhere: float  # what there was when somebody was refused: mean share of the limit
    used_of_ideal: float  # tokens used / tokens that one exact counter would have let through
    overshoot_worst: float
    overshoot_tenants: int
    overshoot_tokens: int  # in the unit of the tight meter
    with_error_worst: float


@dataclass(slots=True)
class Figures:
    requests_s: float
    asked: float  # share of requests that had to wait for an answer
    wait_p50_ms: float
    wait_p99_ms: float
    wait_max_ms: float
    calls_s: float  # of the script, at Redis
    operations_s: float
    operations_per_request: float
    in_vain: float  # share of the takes
    in_hand_worst: float  # of one worker, share of a limit
    in_hand_mean: float  # of all workers together, of saturated tenants
    in_hand_max: float
    error_of_reserved: float  # tokens used beyond the estimate / tokens reserved
    classes: list[OfClass]
    operations: dict[str, float] = field(default_factory=dict)  # a second, by kind
    refusals: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def overshoot_worst(self) -> float:
        return max(one.overshoot_worst for one in self.classes)

    def of(self, name: str) -> OfClass | None:
        return next((one for one in self.classes if one.name == name), None)


def figures(fleet: Fleet) -> Figures:
    seen, seconds = fleet.seen, fleet.counted_s
    requests = seen.at_once + seen.asked
    waits = sorted(seen.waited_s) or [0.0]
    counted = {kind: count for kind, count in seen.operations.items() if kind != "take in vain"}
    operations = sum(counted.values())
    accounts = list(fleet.books.accounts.values())
    by_class: dict[str, list[Account]] = {}
    for account in accounts:
        by_class.setdefault(account.tenant.kind.name, []).append(account)
    return Figures(
        requests_s=requests / seconds,
        asked=_share(seen.asked, requests),
        wait_p50_ms=1e3 * waits[len(waits) // 2],
        wait_p99_ms=1e3 * waits[int(len(waits) * 0.99)],
        wait_max_ms=1e3 * waits[-1],
        calls_s=seen.calls / seconds,
        operations_s=operations / seconds,
        operations_per_request=_share(operations, requests),
        in_vain=_share(seen.operations["take in vain"], seen.operations["take"]),
        in_hand_worst=seen.worst_in_hand,
        in_hand_mean=mean(seen.in_hand) if seen.in_hand else 0.0,
        in_hand_max=max(seen.in_hand, default=0.0),
        error_of_reserved=_share(sum(one.error for one in accounts), sum(one.reserved for one in accounts)),
        classes=[_of_class(name, by_class[name], fleet.books.meters) for name in sorted(by_class)],
        operations={kind: count / seconds for kind, count in counted.items()},
        refusals=dict(seen.refusals),
        faults=dict(seen.faults),
    )


def _of_class(name: str, accounts: Sequence[Account], meters: dict[str, Book]) -> OfClass:
    all_books = [meters[meter] for account in accounts for meter, _ in account.tenant.meters]
    tight = [meters[account.tenant.tight] for account in accounts]
    rooms = [room for account in accounts for room in account.room_when_refused]
    return OfClass(
        name=name,
        tenants=len(accounts),
        requests=sum(one.requests for one in accounts),
        admitted=sum(one.admitted for one in accounts),
        refused=sum(one.refused for one in accounts),
        refused_with_room=sum(one.refused_with_room for one in accounts),
        elsewhere=mean(rooms) if rooms else 0.0,
        used_of_ideal=_share(sum(one.tokens for one in accounts), sum(one.ideal_tokens for one in accounts)),
        overshoot_worst=max(book.overshoot / book.limit for book in all_books),
        overshoot_tenants=sum(book.overshoot > 0 for book in all_books),
        overshoot_tokens=sum(book.overshoot_sum for book in tight),
        with_error_worst=max(book.with_error / book.limit for book in all_books),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
