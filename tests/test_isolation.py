"""Fifty tenants through one gateway at random: nothing of one is ever seen by, or booked on, another.

Every tenant has words of its own (canaries): in its name, the names of its key and model, its prompts and its limits.
Whatever the gateway says, writes and counts is then searched for the words of others. Connections are shared by all
tenants in turn, and both workers serve all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sqlite3
import string
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rig import Gateway, Simulator, StartGateway, ask, eventually

from load.clients import BrokenError, Client, Seen, post
from load.processes import digest, port_of, settings

pytestmark = pytest.mark.system

TENANTS = 50
CLIENTS = 12
LOAD_S = 5.0
MODEL_WORDS = ("sim-500", "sim-429-after-1", "sim-cut-3", "sim-tokens-40-slow-5ms", "sim-error-event-2")


@dataclass(frozen=True, slots=True)
class Tenant:
    """`words` are all of its canaries; nobody else has any of them."""

    name: str
    key_name: str
    model: str
    prompt: str
    credential: str
    limit: int
    requests_per_minute: int | None

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(canary(text) for text in (self.name, self.key_name, self.model, self.prompt, self.credential))

    def settings(self) -> dict[str, Any]:
        limits = {"tokens_per_minute": self.limit}
        if self.requests_per_minute is not None:
            limits["requests_per_minute"] = self.requests_per_minute
        return {
            "limits": limits,
            "keys": {self.key_name: digest(self.credential)},
            "allow": {"routes": [], "models": [self.model, "sim-*"]},
        }


def canary(text: str) -> str:
    return text.rpartition("-")[2]


def people(dice: random.Random) -> list[Tenant]:
    words = set[str]()
    while len(words) < 5 * TENANTS:
        words.add("".join(dice.choices(string.ascii_lowercase, k=12)))
    left = sorted(words)
    dice.shuffle(left)
    return [
        Tenant(
            *(f"tenant-{left.pop()}", f"key-{left.pop()}", f"model-{left.pop()}", f"prompt-{left.pop()}"),
            f"egw-{left.pop()}",
            1_000_003 + 1_009 * number,
            6 if number % 5 == 0 else None,
        )
        for number in range(TENANTS)
    ]


@dataclass(slots=True)
class Sent:
    """A request and what came of it. `named`: what the request itself said, and may hear again."""

    what: str
    tenant: Tenant
    booked_on: str  # the tenant of its row
    named: str
    seen: Seen | None = None
    read: bytes = b""  # of a reply that was broken off


@dataclass(slots=True)
class Crowd:
    """All of them at once, each request by a tenant that the dice choose."""

    tenants: list[Tenant]
    port: int
    dice: random.Random
    sent: list[Sent] = field(default_factory=list)
    all_words: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.all_words = {word for tenant in self.tenants for word in tenant.words}

    async def client(self, until_s: float) -> None:
        client = Client(self.port, again=True)
        deeds: list[Callable[[Tenant, Client], Any]] = [
            self.plain, self.plain, self.stream, self.stream, self.fault, self.stranger, self.other_tenant,
            self.other_model, self.no_json, self.abort, self.models,
        ]  # fmt: skip
        while time.monotonic() < until_s:
            await self.dice.choice(deeds)(self.dice.choice(self.tenants), client)
        client.close()

    def body(self, tenant: Tenant, model: str, **fields: Any) -> bytes:
        content = f"{tenant.prompt} {self.dice.randrange(1000)}"
        return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **fields}).encode()

    async def ask(
        self, what: str, tenant: Tenant, client: Client, request: bytes, booked_on: str | None = None
    ) -> None:
        one = Sent(what, tenant, tenant.name if booked_on is None else booked_on, request.decode())
        self.sent.append(one)
        with contextlib.suppress(BrokenError):  # a plain answer that its provider cuts is an error; a stream may break
            one.seen = await client.ask(request)

    async def plain(self, tenant: Tenant, client: Client) -> None:
        await self.ask("plain", tenant, client, post(tenant.credential, self.body(tenant, tenant.model, max_tokens=9)))

    async def stream(self, tenant: Tenant, client: Client) -> None:
        request = post(
            tenant.credential, self.body(tenant, tenant.model, stream=True, metadata={"tenant": tenant.name})
        )
        await self.ask("stream", tenant, client, request)

    async def fault(self, tenant: Tenant, client: Client) -> None:
        body = self.body(tenant, self.dice.choice(MODEL_WORDS), stream=self.dice.random() < 0.5)
        await self.ask("fault", tenant, client, post(tenant.credential, body))

    async def stranger(self, tenant: Tenant, client: Client) -> None:
        wrong = self.dice.choice([None, f"{tenant.credential}x", tenant.key_name])
        await self.ask("stranger", tenant, client, post(wrong, self.body(tenant, tenant.model)), "")

    async def other_tenant(self, tenant: Tenant, client: Client) -> None:
        other = self.dice.choice(self.tenants)
        if other is tenant:
            return
        if self.dice.random() < 0.5:
            request = post(tenant.credential, self.body(tenant, tenant.model, metadata={"tenant": other.name}))
        else:
            request = post(tenant.credential, self.body(tenant, tenant.model), x_edgegw_tenant=other.name)
        await self.ask("other tenant", tenant, client, request)

    async def other_model(self, tenant: Tenant, client: Client) -> None:
        other = self.dice.choice(self.tenants)
        if other is not tenant:
            await self.ask("other model", tenant, client, post(tenant.credential, self.body(tenant, other.model)))

    async def no_json(self, tenant: Tenant, client: Client) -> None:
        body = self.body(tenant, tenant.model)[: -self.dice.randrange(1, 30)]
        await self.ask("no JSON", tenant, client, post(tenant.credential, body))

    async def abort(self, tenant: Tenant, client: Client) -> None:
        request = post(tenant.credential, self.body(tenant, "sim-tokens-40-slow-5ms", stream=True))
        one = Sent("abort", tenant, tenant.name, request.decode())
        self.sent.append(one)
        one.read = await client.begin(request, self.dice.randrange(1, 2_000))

    async def models(self, tenant: Tenant, client: Client) -> None:
        request = f"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nx-api-key: {tenant.credential}\r\n\r\n".encode()
        one = Sent("models", tenant, tenant.name, request.decode())
        with contextlib.suppress(BrokenError):
            one.seen = await client.ask(request)
            assert tenant.model in one.seen.body.decode()
        self.check(one)

    # -- nothing of others --

    def check(self, one: Sent) -> None:
        said = one.read if one.seen is None else one.seen.head + one.seen.body
        foreign = self.foreign(said.decode(), one.tenant, one.named)
        assert not foreign, f"{one.what} of {one.tenant.name} heard of {foreign}: {said!r}"
        if one.seen is not None and (limit := one.seen.headers.get("x-ratelimit-limit-tokens")) is not None:
            assert int(limit) == one.tenant.limit, f"another limit: {said!r}"
        if one.seen is not None and one.seen.status == 200 and one.what in ("plain", "stream"):
            assert canary(one.tenant.prompt) in one.seen.body.decode().replace('"}}]}', ""), (
                "an answer to another prompt"
            )

    def foreign(self, text: str, tenant: Tenant | None, named: str = "") -> set[str]:
        own = set[str]() if tenant is None else set(tenant.words)
        words = set(re.findall(r"[a-z]{12}", text)) & self.all_words
        return {word for word in words - own if word not in named}


def rows(gateway: Gateway, expected: int) -> list[dict[str, Any]]:
    def select() -> list[dict[str, Any]]:
        with contextlib.closing(sqlite3.connect(f"file:{gateway.state_dir}/edgegw.db?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM requests")]

    return eventually("a row for every request", select, lambda found: len(found) >= expected, 15)


def test_nothing_of_one_tenant_appears_for_another(simulator: Simulator, gateway: StartGateway) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")  # pytest shows it when the test fails
    dice = random.Random(seed)
    tenants = people(dice)
    models = {tenant.model: {"targets": ["sim/sim-tokens-9"]} for tenant in tenants}
    house = gateway(
        settings(
            simulator,
            {tenant.name: tenant.settings() for tenant in tenants},
            workers=2,
            models={**models, "sim-*": {"targets": ["sim/*"]}},
        )
    )
    crowd = Crowd(tenants, port_of(house), dice)

    async def load() -> None:
        until_s = time.monotonic() + LOAD_S
        await asyncio.gather(*(crowd.client(until_s) for _ in range(CLIENTS)))

    asyncio.run(load())
    for one in crowd.sent:
        crowd.check(one)
    statuses = Counter(one.seen.status for one in crowd.sent if one.seen is not None)
    assert {200, 400, 401, 403, 429} <= statuses.keys(), statuses
    kept = rows(house, len(crowd.sent))
    print(f"{len(crowd.sent)} requests, {dict(statuses)}, {len(kept)} rows")
    check_rows(crowd, kept)
    check_what_the_operator_sees(crowd, house, simulator)


def check_rows(crowd: Crowd, kept: list[dict[str, Any]]) -> None:
    """Each request has one, on its own tenant, and no word of others in it."""
    by_name = {tenant.name: tenant for tenant in crowd.tenants}
    assert Counter(row["tenant"] for row in kept) == Counter(one.booked_on for one in crowd.sent)
    by_id = {row["id"]: row for row in kept}
    ids = [one.seen.headers["x-request-id"] for one in crowd.sent if one.seen is not None]
    assert len(ids) == len(set(ids)), "an id of somebody else"
    named = {one.seen.headers["x-request-id"]: one.named for one in crowd.sent if one.seen is not None}
    for one in crowd.sent:
        if one.seen is not None:
            assert by_id[one.seen.headers["x-request-id"]]["tenant"] == one.booked_on, one
    for row in kept:
        tenant = by_name.get(row["tenant"])
        foreign = crowd.foreign(json.dumps(row), tenant, named.get(row["id"], ""))
        assert not foreign, f"{foreign} in {row}"
        assert row["key_id"] == (f"{tenant.name}.{tenant.key_name}" if tenant is not None else None), row


def check_what_the_operator_sees(crowd: Crowd, house: Gateway, simulator: Simulator) -> None:
    """Prompts and credentials are nowhere, names of keys in no label and no line; a provider is told of one tenant at a
    time, and of no key. Tenants are named to the operator, in metrics and in a request's line on stdout."""
    metrics = ask(house.admin_url, "GET", "/metrics").body.decode()
    log = house.running.said
    for tenant in crowd.tenants:
        for text in (tenant.key_name, tenant.prompt, tenant.credential):
            assert canary(text) not in metrics, f"{text} in the metrics"
            assert canary(text) not in log, f"{text} in the log"
    for request in ask(simulator.url, "GET", "/simulator/requests").json:
        said = json.dumps(request)
        owners = [tenant for tenant in crowd.tenants if any(word in said for word in tenant.words)]
        assert len(owners) == 1, f"{[tenant.name for tenant in owners]}: {said}"
        assert canary(owners[0].credential) not in said
    files = [file for file in Path(house.state_dir).rglob("*") if file.is_file()]
    for file in files:
        content = file.read_bytes()
        for tenant in crowd.tenants:
            assert canary(tenant.prompt).encode() not in content, f"a prompt in {file}"
            assert canary(tenant.credential).encode() not in content, f"a credential in {file}"
