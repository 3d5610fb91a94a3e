"""What keys cost each request, in microseconds: the door, and what a tenant may. `python -m load.keys`

One thread, no sockets, a table of 10,000 keys. Of several short rounds the lower quartile counts: noise only adds. The
refusals of a key that is unknown, has expired or was revoked are measured beside each other: they must be alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles

from edgegw.access import Access, Doorkeeper
from edgegw.http.request import Request
from edgegw.keys.table import Key, KeyTable, digest_of
from edgegw.routing import Router
from edgegw.settings import AllowSettings, RouteSettings, TenantSettings

ROUNDS = 60
CALLS = 5_000  # per round
KEYS = 10_000
DOOR_US_MAX = 2.0  # the bar
APART_MAX = 0.05  # the medians of refusals, as a share

ROUTE = RouteSettings(("openai/gpt-5-mini",))


def credential(number: int) -> bytes:
    return b"egw_%043d" % number


def table_of_many() -> KeyTable:
    """Every third key has expired, every third was revoked."""
    table = KeyTable()
    for number in range(KEYS):
        ends = {1: (5, None), 2: (None, 5)}.get(number % 3, (None, None))
        key = Key(f"key_{number}", digest_of(credential(number)), "acme", "ci", "", 0, *ends)
        table.put(key)
    return table


def measured(call: Callable[[], object]) -> float:
    """Microseconds per call."""
    started_ns = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - started_ns) / CALLS / 1e3


def main() -> int:
    table = table_of_many()
    door = Doorkeeper(table, time.time_ns, lambda: True)
    request = Request(headers={b"host": b"a", b"authorization": b"Bearer " + credential(3)})
    door.check(request)
    router = Router({}, {"smart": ROUTE, "gpt-*": ROUTE}, ROUTE, {"openai"})
    allow = AllowSettings(routes=("smart",), models=("gpt-*", "claude-*"))
    access = Access({"narrow": TenantSettings(name="narrow", allow=allow)}, closed=True)
    calls: dict[str, Callable[[], object]] = {
        "the door: a valid key": lambda: door.check(request),
        "its tenant": lambda: access.tenant(request, None),
        "route, without allow": lambda: access.route(router, "acme", None, "smart"),
        "route, by allow.routes": lambda: access.route(router, "narrow", None, "smart"),
        "route, by allow.models": lambda: access.route(router, "narrow", None, "gpt-5-mini"),
        "lookup: valid": lambda: table.find(credential_3, 10),
        "lookup: unknown": lambda: table.find(unknown, 10),
        "lookup: expired": lambda: table.find(expired, 10),
        "lookup: revoked": lambda: table.find(revoked, 10),
        "(an empty call)": lambda: None,
    }
    credential_3, expired, revoked, unknown = map(credential, (3, 4, 5, KEYS))
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rounds[name].append(measured(call))
    print(f"{'us per request':24} {'lower quartile':>14} {'median':>8}")
    for name, figures in rounds.items():
        lower, middle, _ = quantiles(figures, n=4)
        print(f"{name:24} {lower:14.2f} {middle:8.2f}")
    lower = quantiles(rounds["the door: a valid key"], n=4)[0]
    refusals = [median(rounds[f"lookup: {kind}"]) for kind in ("unknown", "expired", "revoked")]
    apart = max(refusals) / min(refusals) - 1
    kept = lower <= DOOR_US_MAX
    alike = apart <= APART_MAX
    print(f"the door at most {DOOR_US_MAX:.1f} us: {'kept' if kept else 'MISSED'}")
    print(f"refusals at most {APART_MAX:.0%} apart: {apart:.1%}, {'kept' if alike else 'MISSED'}")
    return 0 if kept and alike else 1


if __name__ == "__main__":
    raise SystemExit(main())
