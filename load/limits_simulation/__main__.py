"""The command line: one run, or runs to compare, as tables and as JSON."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

from load.limits_simulation import comparisons
from load.limits_simulation.figures import Figures, figures
from load.limits_simulation.fleet import Fleet
from load.limits_simulation.plan import Plan
from load.limits_simulation.replay import compare

OBJECTS_BEFORE_GC = 300_000  # nearly nothing here is a cycle
RECORDED_MAX = 200_000  # calls, for --check-script
COMPARISONS: dict[str, Callable[[Plan], Iterator[tuple[str, Figures]]]] = {
    "replicas": comparisons.replicas,
    "faults": comparisons.faults,
    "leases": comparisons.leases,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m load.limits_simulation", description=__doc__)
    for one in fields(Plan):
        if one.name != "record":
            name = "--" + one.name.replace("_", "-")
            if one.type == "bool":
                parser.add_argument(name, action="store_true")
            else:
                kind = {"int": int, "float": float}.get(str(one.type), str)
                parser.add_argument(name, type=kind, default=one.default, metavar=kind.__name__.upper())
    parser.add_argument("--compare", choices=list(COMPARISONS), help="several runs instead of one")
    parser.add_argument("--check-script", action="store_true", help="hold the port of the script against the script")
    parser.add_argument("--json", type=Path, help="all figures, to a file")
    given = vars(parser.parse_args(arguments))
    compared, check, to = given.pop("compare"), given.pop("check_script"), given.pop("json")
    plan = Plan(**given, record=RECORDED_MAX if check else 0)
    gc.set_threshold(OBJECTS_BEFORE_GC)
    logging.disable(logging.WARNING)  # each of a thousand replicas would say that Redis is away
    if check:
        return _check(plan)
    runs = COMPARISONS[compared](plan) if compared else iter([("", comparisons.run(plan))])
    done: dict[str, object] = {}
    for name, found in runs:
        _print(name, found)
        done[name] = asdict(found)
    if to is not None:
        to.write_text(json.dumps({"plan": asdict(plan), "runs": done}, indent=1))
    return 0


def _check(plan: Plan) -> int:
    fleet = Fleet(plan)
    fleet.run()
    found = compare(fleet.redis.recorded)
    faults = sum(figures(fleet).faults.values())
    print(f"{found.calls} calls with {found.operations} operations in a run with {faults} faults:", end=" ")
    print(f"{len(found.differences)} answers of the script differ from the port's")
    for difference in found.differences[:10]:
        print(difference)
    return int(bool(found.differences))


def _print(name: str, found: Figures) -> None:
    print(f"\n{name or 'one run'} ({time.process_time():.0f} s of CPU so far)", ", ".join(_faults(found)))
    print(
        f"  {found.requests_s:.0f} requests/s, {found.asked:.1%} of them ask and wait p50 {found.wait_p50_ms:.1f} ms, "
        f"p99 {found.wait_p99_ms:.1f} ms, at most {found.wait_max_ms:.1f} ms"
    )
    print(
        f"  Redis: {found.calls_s:.0f} calls/s with {found.operations_s:.0f} operations/s, "
        f"{found.operations_per_request:.2f} per request ({found.in_vain:.0%} of the takes in vain)"
    )
    print(
        f"  in hand: one worker at most {found.in_hand_worst:.2%} of a limit; all together, saturated: mean "
        f"{found.in_hand_mean:.2%}, at most {found.in_hand_max:.2%}. Settle error: {found.error_of_reserved:.2%} of "
        "what was reserved"
    )
    print("  class         tenants  requests   refused  with room  elsewhere  used/ideal  overshoot: worst of  tokens")
    for one in found.classes:
        print(
            f"  {one.name:13} {one.tenants:7} {one.requests:9} {one.refused:9} {one.refused_with_room:10}"
            f"  {one.elsewhere:9.2%}  {one.used_of_ideal:10.4f}  {one.overshoot_worst:16.2%} {one.overshoot_tenants:3}"
            f" {one.overshoot_tokens:7}   with settle error {one.with_error_worst:.1%}"
        )
    sys.stdout.flush()


def _faults(found: Figures) -> list[str]:
    return [f"{count} {what}" for what, count in found.faults.items()]


if __name__ == "__main__":
    sys.exit(main())
