"""A cluster before its edge gateways: many tenants, few of which ask for most; plain and streamed, tool calls, large
prompts, clients that leave in the middle of a stream, and providers that fail and are asked again or replaced.

`make load-edge` runs it against the simulator and judges it; by hand, with a file of keys:
`build/locust/bin/locust -f load/locust_edge.py --host http://gw-1:8080,http://gw-2:8080 --keys keys.json`.
A tenant whose name begins with `narrow` is expected to be refused (429) for part of what it asks.
"""

from __future__ import annotations

from typing import Any

from load.locust_outcome import Wish
from load.locust_user import GatewayUser, Tenant, chat, tenants_of

NARROW = "narrow"
NARROW_SHARE = 0.06  # of all requests, whatever its place among the tenants
SKEW = 1.0  # the n-th tenant asks 1 / n^SKEW as much as the first: Zipf's law
PROMPT_BYTES = 48_000
LEAVES_AFTER = 5  # tokens
FAILED = frozenset({200, 502, 503})  # when every try of a faulty target fails

PHRASE = "the late order was sent from the second warehouse on a rainy day and nobody signed for it"
TOOL = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Looks an order up",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}, "customer": {"type": "string"}},
            "required": ["number", "customer"],
        },
    },
}


class Client(GatewayUser):
    host = "http://127.0.0.1:8080"

    def cast(self) -> tuple[list[Tenant], list[float]]:
        options = self.environment.parsed_options
        tenants = tenants_of(options) or [Tenant("default")]
        everyday = wishes(options.model, direct=self.stage.direct is not None, faults=bool(options.faults))
        refused = [
            Wish("limited", 1, chat(options.model, "May I?"), planned=frozenset({200, 429})),
            Wish("limited", 1, chat(options.model, "May I?", stream=True), True, frozenset({200, 429})),
        ]
        for tenant in tenants:
            tenant.wishes = refused if tenant.name.startswith(NARROW) else everyday
        return tenants, shares([tenant.name for tenant in tenants])


def shares(names: list[str]) -> list[float]:
    """How much each of the tenants asks."""
    ample = [name for name in names if not name.startswith(NARROW)]
    narrow = len(names) - len(ample)
    zipf = {name: 1 / number**SKEW for number, name in enumerate(ample, start=1)}
    unit = (1 - NARROW_SHARE * bool(narrow)) / (sum(zipf.values()) or 1.0)
    return [zipf[name] * unit if name in zipf else NARROW_SHARE / narrow for name in names]


def wishes(model: str, *, direct: bool, faults: bool) -> list[Wish]:
    text = "Which of our orders are late, and why? Answer in two sentences."
    long = f"{PHRASE}, " * (PROMPT_BYTES // len(PHRASE))
    tools: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "find_order"}}}
    found = [
        Wish("plain", 24, chat(model, text)),
        Wish("streamed", 34, chat(model, text, stream=True), stream=True),
        Wish("tool call", 6, chat(model, "Where is order 17 of Smith?", **tools)),
        Wish("tool call, streamed", 6, chat(model, "Where is order 17 of Smith?", stream=True, **tools), stream=True),
        Wish("large prompt", 6, chat(model, long, stream=True), stream=True),
        Wish("left early", 8, chat(model, text, stream=True), stream=True, leaves_after=LEAVES_AFTER),
    ]
    if faults:
        found += [
            Wish("flaky", 4, chat("flaky", text), faulty=True, planned=FAILED),
            Wish("flaky, streamed", 4, chat("flaky", text, stream=True), stream=True, faulty=True, planned=FAILED),
            Wish("fallback", 2, chat("down", text), faulty=True),
            Wish("cut, streamed", 2, chat("cutting", text, stream=True), stream=True, faulty=True, planned=FAILED),
        ]
    if direct:
        found += [
            Wish("plain", 3, chat(model, text), direct=True),
            Wish("streamed", 5, chat(model, text, stream=True), stream=True, direct=True),
        ]
    return found
