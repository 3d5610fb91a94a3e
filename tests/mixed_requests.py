"""A mix of everything that can become of a request, sent to a real gateway from several threads.

Which one comes next is drawn from a seed; what becomes of each depends on the moment too (breakers open, retries are
spent): whoever compares figures compares them with the rows.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rig import CLIENT_KEY, Simulator, providers

THREADS = 6
TENANTS = 230  # made up by clients; more than are shown by name
WAIT_S = 30

RULES = """
- {match: {model: flaky}, probability: 0.3, status: 500}
- {match: {model: gate}, probability: 0.3, fault: error-event-0}
- {match: {model: gate-cut}, probability: 0.3, fault: cut-0}
- {match: {model: breaks}, probability: 0.2, fault: cut-3}
- {match: {model: slow}, fault: slow-30ms}
"""

# Model, whether streamed, and how often of a hundred.
MIX: tuple[tuple[str, bool, int], ...] = (
    ("good", False, 22),
    ("good", True, 18),
    ("claude", False, 6),
    ("claude", True, 6),
    ("retried", False, 8),
    ("retried", True, 6),
    ("fallen", False, 4),
    ("saved", True, 8),
    ("broken", True, 4),
    ("bad", False, 3),
    ("parts", True, 4),
    ("sim/named-by-the-client", False, 2),
    ("unheard-of", False, 3),
    ("slow", True, 3),  # and left by the client
    ("good, for a poor tenant", False, 3),
)


def settings(simulator: Simulator) -> dict[str, Any]:
    quick = {"attempts": 2, "base": "5ms", "cap": "20ms"}
    return {
        "providers": providers(simulator),
        "models": {
            "good": {"targets": ["sim/good"]},
            "claude": {"targets": ["claude/good"]},
            "retried": {"targets": ["sim/flaky"], "retry": quick},
            "fallen": {"targets": ["sim/sim-503", "claude/good"], "retry": {"attempts": 1}},
            "saved": {"targets": ["sim/gate", "sim/gate-cut", "claude/good"], "retry": quick},
            "broken": {"targets": ["sim/breaks"], "retry": {"attempts": 1}},
            "bad": {"targets": ["sim/sim-500"], "retry": quick},
            "parts": {"targets": ["sim/sim-cached-5-written-3-reasoning-4"]},
            "slow": {"targets": ["sim/slow"]},
        },
        "tenants": {"acme": {}, "poor": {"limits": {"requests_per_minute": 5}}},
        "limits": {"tokens_per_minute": 10**9},
        "prices": {"sim/good": {"input": "1.25", "output": "10"}, "claude/*": {"input": "3", "output": "15"}},
        "server": {"workers": 2},
    }


def send(url: str, count: int, seed: int = 5) -> None:
    """`count` requests; returns when all are answered, or left."""
    dice = random.Random(seed)
    drawn = dice.choices(MIX, [weight for *_, weight in MIX], k=count)
    tenants = [dice.choice(("acme", f"made-up-{dice.randrange(TENANTS)}")) for _ in drawn]
    work = list(zip(drawn, tenants, strict=True))
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(partial(_one_after_the_other, url), (work[thread::THREADS] for thread in range(THREADS))))


def _one_after_the_other(url: str, work: list[tuple[tuple[str, bool, int], str]]) -> None:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_S)) as connection:
        for (model, stream, _), tenant in work:
            name, poor, _ = model.partition(", for a poor")
            body = {
                "model": name,
                "messages": [{"role": "user", "content": "How are you?"}],
                "metadata": {"tenant": "poor" if poor else tenant},
                **({"stream": True} if stream else {}),
            }
            _one(connection, json.dumps(body), leaves=name == "slow")
            if stream:  # one that broke off ends its connection
                connection.close()


def _one(connection: http.client.HTTPConnection, body: str, *, leaves: bool) -> None:
    headers = {"authorization": f"Bearer {CLIENT_KEY}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    with connection.getresponse() as reply, contextlib.suppress(http.client.IncompleteRead):
        reply.read(1 if leaves else None)


def rules_file(directory: Path) -> Path:
    path = directory / "rules.yaml"
    path.write_text(RULES)
    return path
