"""Clients that go on asking while the processes of their gateway are killed, again and again, by seeded dice."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
from collections.abc import Callable
from itertools import count

from rig import Gateway, eventually

CLIENTS = 4
SEED = 4711
WAIT_S = 15.0


def kill_under_load(gateway: Gateway, ask_once: Callable[[int, int], None], deaths: int) -> None:
    """Calls `ask_once(client, turn)` in a few threads, where it may fail as clients of a dying server do, and kills a
    worker or the control process each time 20 to 60 more have been answered. All are up when it returns."""
    stop = threading.Event()

    def client(number: int) -> None:
        for turn in count():
            if stop.is_set():
                return
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask_once(number, turn)
                heard[number] += 1

    heard = [0] * CLIENTS
    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for each in clients:
        each.start()
    dice = random.Random(SEED)
    try:
        for _ in range(deaths):
            enough = sum(heard) + dice.randrange(20, 60)
            eventually("answers", lambda: sum(heard), lambda count: count >= enough, WAIT_S)  # noqa: B023
            pids = [pid for pid in (gateway.control_pid(), *gateway.worker_pids()) if pid]
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(pids), signal.SIGKILL)
    finally:
        stop.set()
        for each in clients:
            each.join()
    eventually("a control process", gateway.control_pid, bool, WAIT_S)
