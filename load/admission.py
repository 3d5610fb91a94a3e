"""What admission costs: the limiter's calls of one request, in microseconds. `python -m load.admission`

One thread, no sockets: an authority that says yes at once stands in for the channel, so that what is measured is what
every request pays. Of several short rounds the lower quartile counts: noise only adds. Besides the usual request, which
counts against its tenant's tokens per minute alone, one of a key with limits of its own: three meters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

from edgegw.channel import Message, Ready
from edgegw.limits.account import Allowance
from edgegw.limits.accounts import Accounts
from edgegw.limits.limiter import Limiter
from edgegw.limits.meter import BY_CODE, Meter
from edgegw.limits.words import Offer, Want
from edgegw.tokens import TokenEstimator

ROUNDS = 30
WARM_S = 1.0
CALLS = 5_000  # per round
TENANTS = 100
LIMIT = 600_000_000
RESERVE_AND_SETTLE_US_MAX = 5.0  # the bar, for one meter

ONE = "reserve + settle, one"

BODY = (
    b'{"model":"gpt-5-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user",'
    b'"content":"Hello! Tell me something about proxies, please, and keep it short."}],"metadata":{"tenant":"t"}}'
)


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall_ns(self) -> int:
        return time.time_ns()


class Generous:
    """A channel whose authority grants everything, in the next turn of the loop as the real one would."""

    def __init__(self) -> None:
        self.wants = 0
        self._handlers: dict[type[Any], Callable[[Any], None]] = {}

    def handle(self, kind: type[Any], handler: Callable[[Any], None]) -> None:
        self._handlers[kind] = handler

    def on_closed(self, handler: Callable[[], None]) -> None:
        """It never closes."""

    def send(self, message: Message) -> bool:
        if isinstance(message, Want):
            self.wants += 1
            asyncio.get_running_loop().call_soon(self.grant, message.meter, max(message.amount, message.need))
        return True

    def grant(self, meter: str, amount: int) -> None:
        self._handlers[Offer](Offer(meter, amount, LIMIT, LIMIT // 2))

    def open(self) -> None:
        self._handlers[Ready](Ready(1, 1))


class Meters:
    """One meter for a request without a key, three for one with a key."""

    def meters(self, tenant: str, key_id: str | None, model: str) -> list[tuple[str, int]]:
        meters = [Meter(BY_CODE["tpm"], tenant)]
        if key_id is not None:
            meters += [Meter(BY_CODE["rpm"], tenant, "key", key_id), Meter(BY_CODE["day"], tenant, "key", key_id)]
        return [(meter.id, LIMIT) for meter in meters]


def measured(call: Callable[[int], object]) -> float:
    """Microseconds per call."""
    started_ns = time.perf_counter_ns()
    for number in range(CALLS):
        call(number)
    return (time.perf_counter_ns() - started_ns) / CALLS / 1e3


async def main() -> int:
    channel, clock = Generous(), SystemClock()
    limiter = Limiter(Accounts(channel, clock), Meters(), clock)
    channel.open()
    estimator = TokenEstimator()
    names = [f"tenant-{number}" for number in range(TENANTS)]
    missed = 0

    def allowances(key_id: str | None) -> list[Allowance]:
        return [limiter.allowance(name, key_id, "gpt-5-mini") for name in names]

    single, several = allowances(None), allowances("k1")
    warm_s = clock.now() + WARM_S  # until there are leases, as in the midst of steady use
    while clock.now() < warm_s:
        for allowance in (*single, *several):
            for _ in range(10):
                (limiter.reserve_now(allowance, 600) or await limiter.reserve(allowance, 600)).settle(250)
        await asyncio.sleep(0)

    def reserve_and_settle(key_id: str | None) -> Callable[[int], None]:
        def call(number: int) -> None:
            nonlocal missed
            reservation = limiter.reserve_now(limiter.allowance(names[number % TENANTS], key_id, "gpt-5-mini"), 600)
            if reservation is None:
                missed += 1
            else:
                reservation.settle(250)

        return call

    calls: dict[str, Callable[[int], object]] = {
        ONE: reserve_and_settle(None),
        "reserve + settle, three": reserve_and_settle("k1"),
        "header lines": lambda number: single[number % TENANTS].lines(clock.now()),
        "header lines, three": lambda number: several[number % TENANTS].lines(clock.now()),
        "estimate": lambda number: estimator.estimate(names[number % TENANTS], "gpt-5-mini", BODY, None),
        "learn": lambda number: estimator.learn(names[number % TENANTS], "gpt-5-mini", BODY, 60, 250),
        "(an empty call)": lambda number: names[number % TENANTS],
    }
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rounds[name].append(measured(call))
            await asyncio.sleep(0)
    print(f"{'us per request':24} {'lower quartile':>14} {'median':>8}")
    for name, figures in rounds.items():
        lower, middle, _ = quantiles(figures, n=4)
        print(f"{name:24} {lower:14.2f} {middle:8.2f}")
    limiter.close()
    lower = quantiles(rounds[ONE], n=4)[0]
    kept = lower <= RESERVE_AND_SETTLE_US_MAX
    print(f"asked {channel.wants} times for {2 * ROUNDS * CALLS} reservations, {missed} had to wait")
    print(f"{ONE} at most {RESERVE_AND_SETTLE_US_MAX:.1f} us: {'kept' if kept else 'MISSED'}")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
