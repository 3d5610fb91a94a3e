"""A worker for test_shipper.py to kill: writes exchanges, many at a time, and says on stdout what it has written.

    python ledger_writer.py STATE_DIR LIFE SEED

One line per record, after the record: `b ID`, `t ID NUMBER`, `a ID NUMBER`, `e ID STATE`. Never ends by itself.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from ledger_traces import OTHER, conclude, finish, make_attempt, make_exchange, open_journal

from edgegw.exchange import Exchange

OPEN_MAX = 20


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main(state_dir: Path, life: int, seed: int) -> None:
    dice = random.Random(seed)
    journal = open_journal(state_dir, life)
    going: list[Exchange] = []
    number = life * 1_000_000
    while True:
        if len(going) < OPEN_MAX and dice.random() < 0.4:
            number += 1
            exchange = make_exchange(number, tenant="t" * dice.randrange(1, 200))
            journal.begin(exchange, make_attempt(exchange))
            say("b", exchange.id)
            going.append(exchange)
        if not going:
            continue
        exchange = dice.choice(going)
        attempt = exchange.attempts[-1]
        finish(attempt, error="upstream_error" if dice.random() < 0.3 else None)
        goes_on = attempt.error_kind and attempt.number < 3
        if not goes_on and dice.random() < 0.6:  # as a gateway does it: both at once
            conclude(exchange)
            journal.end(exchange)
            say("a", exchange.id, attempt.number)
            say("e", exchange.id, exchange.state)
            going.remove(exchange)
            continue
        journal.attempt(exchange, attempt)
        say("a", exchange.id, attempt.number)
        if goes_on:
            attempt = make_attempt(exchange, "fallback", OTHER, "upstream_error")
            journal.try_(exchange, attempt)
            say("t", exchange.id, attempt.number)
        elif dice.random() < 0.8:
            conclude(exchange)
            journal.end(exchange)
            say("e", exchange.id, exchange.state)
            going.remove(exchange)
        else:  # stays open with a finished attempt until it is killed
            going.remove(exchange)
        if dice.random() < 0.02:
            journal.prepare()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
