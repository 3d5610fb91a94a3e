"""Clients that never pause: half of what they ask for is streamed, some hang up in the middle, some tries must fail.

They remember of each reply what the books are to say of it (served.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass, field
from typing import Any

from load.clients import HOST, BrokenError, Client, Seen, post
from load.served import Reply

REFUSED_PAUSE_S = 0.1
PAUSE_S = 0.06  # of a client between two requests, at most

# What the simulator does to models that are called so.
RULES = """
- {match: {model: "flaky*", path: "/v1/chat/*"}, probability: 0.2, status: 500}
- {match: {model: "flaky*", path: "/v1/chat/*"}, probability: 0.1, fault: reset-0}
- {match: {model: "flaky*"}, probability: 0.1, fault: cut-4}
- {match: {model: "flaky*"}, probability: 0.1, status: 429, retry_after: 20ms}
"""
SIMULATED = ("--latency", "8ms", "--pace", "4ms", "--tokens", "16")


@dataclass(frozen=True, slots=True)
class Wish:
    """A kind of request. `leaves`: the client hangs up somewhere in the middle."""

    weight: int
    model: str
    stream: bool
    leaves: bool = False
    fields: tuple[tuple[str, Any], ...] = ()


WISHES = (
    Wish(30, "steady", stream=False),
    Wish(20, "steady", stream=True, fields=(("stream_options", {"include_usage": True}),)),
    Wish(12, "steady-too", stream=True),
    Wish(8, "steady", stream=True, leaves=True),
    Wish(3, "steady", stream=False, leaves=True),
    Wish(12, "flaky", stream=False),
    Wish(12, "flaky-too", stream=True),
    Wish(2, "sim-400", stream=False),
    Wish(1, "", stream=False),  # refused before anybody is asked
)


def request_of(wish: Wish, number: int) -> bytes:
    body = {
        "model": wish.model,
        "messages": [{"role": "user", "content": f"How are you, number {number}?"}],
        "metadata": {"tenant": f"tenant-{number % 3}"},
        **({"stream": True} if wish.stream else {}),
        **dict(wish.fields),
    }
    return post(None, json.dumps(body).encode())


@dataclass(slots=True)
class Crowd:
    """All clients together, and what they have seen."""

    port: int
    dice: random.Random
    going: asyncio.Event = field(default_factory=asyncio.Event)
    busy: int = 0
    asked: int = 0
    answered: int = 0
    replies: list[Reply] = field(default_factory=list)

    async def client(self) -> None:
        with contextlib.closing(Client(self.port)) as client:
            while True:
                await self.going.wait()
                self.busy += 1
                try:
                    await self._one(client)
                except BrokenError as error:
                    self.asked -= isinstance(error.__cause__, ConnectionRefusedError)  # a restart: nobody was there
                    await asyncio.sleep(REFUSED_PAUSE_S)
                finally:
                    self.busy -= 1
                await asyncio.sleep(PAUSE_S * self.dice.random())

    async def _one(self, client: Client) -> None:
        (wish,) = self.dice.choices(WISHES, [wish.weight for wish in WISHES])
        self.asked += 1
        request = request_of(wish, self.asked)
        if wish.leaves:
            await self._leave(request)
            return
        seen = await client.ask(request)
        self.answered += 1
        if "x-request-id" in seen.headers:
            self.replies.append(reply_of(seen, wish))

    async def _leave(self, request: bytes) -> None:
        """Hangs up before the head, behind it, or amidst the events."""
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(HOST, self.port)
            writer.write(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.08 * self.dice.random()):
                    while await reader.read(4096):
                        pass
            writer.transport.abort()

    async def rest(self) -> None:
        self.going.clear()
        while self.busy:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def reply_of(seen: Seen, wish: Wish) -> Reply:
    whole, usage = True, None
    if seen.headers.get("content-type", "").startswith("text/event-stream"):
        events = [line[6:] for line in seen.body.split(b"\n") if line.startswith(b"data: ")]
        whole = bool(events) and events[-1].strip() == b"[DONE]"
        for event in events[-3:]:
            if b'"usage":{' in event.replace(b" ", b""):
                usage = json.loads(event)["usage"]
    elif seen.status == 200:
        usage = seen.json.get("usage")
    tokens = None if not usage else (usage["prompt_tokens"], usage["completion_tokens"])
    return Reply(seen.headers["x-request-id"], seen.status, whole, tokens)
