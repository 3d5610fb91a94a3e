"""What admission costs: the limiter's calls of one request, in microseconds. `python -m load.admission`

One thread, no sockets: an authority that says yes at once stands in for the channel, so that what is measured is what
every request pays. Of several short rounds the lower quartile counts: noise only adds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

from edgegw.channel import Message, Ready
from edgegw.limits.lease import Offer, Want
from edgegw.limits.limiter import Limiter
from edgegw.tokens import TokenEstimator

ROUNDS = 30
CALLS = 5_000  # per round
TENANTS = 100
LIMIT = 600_000_000
RESERVE_AND_SETTLE_US_MAX = 3.0  # the bar

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
            offer = Offer(message.tenant, max(message.tokens, message.need), LIMIT, LIMIT // 2)
            asyncio.get_running_loop().call_soon(self._handlers[Offer], offer)
        return True

    def open(self) -> None:
        self._handlers[Ready](Ready(1, 1))


def measured(call: Callable[[int], object]) -> float:
    """Microseconds per call."""
    started_ns = time.perf_counter_ns()
    for number in range(CALLS):
        call(number)
    return (time.perf_counter_ns() - started_ns) / CALLS / 1e3


async def main() -> int:
    channel = Generous()
    limiter = Limiter(channel, lambda tenant: LIMIT, SystemClock())
    channel.open()
    estimator = TokenEstimator()
    names = [f"tenant-{number}" for number in range(TENANTS)]
    for name in names:
        limiter.settle(await limiter.reserve(name, 5_000_000), 0)  # in hand, as in the midst of steady use
    missed = 0

    def reserve_and_settle(number: int) -> None:
        nonlocal missed
        grant = limiter.reserve_now(names[number % TENANTS], 600)
        if grant is None:
            missed += 1
        else:
            limiter.settle(grant, 250)

    calls: dict[str, Callable[[int], object]] = {
        "reserve_now + settle": reserve_and_settle,
        "headers": lambda number: limiter.headers(names[number % TENANTS]),
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
    lower = quantiles(rounds["reserve_now + settle"], n=4)[0]
    kept = lower <= RESERVE_AND_SETTLE_US_MAX
    print(f"asked {channel.wants} times for {ROUNDS * CALLS} reservations, {missed} had to wait")
    print(f"reserve_now + settle at most {RESERVE_AND_SETTLE_US_MAX:.1f} us: {'kept' if kept else 'MISSED'}")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
