"""A client of the gateway for locust: one keep-alive connection, requests by dice, and every reply read to its end.

Streams are read event by event. Locust's statistics get three entries for each kind of request: the whole of it
(`POST`), the time to the first token (`TTFT`) and the gaps between tokens (`gap`); the record gets a line
(locust_outcome.py).
geventhttpclient, which parses HTTP in C, is used directly: HttpUser costs more than the gateway, and FastHttpUser wraps
the same client without letting us stamp events.

Runs in the venv of load/locust.lock. Knows nothing of the gateway's code.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from gevent import GreenletExit
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from locust import User, between, events
from locust.exception import StopUser
from locust.runners import STATE_RUNNING, STATE_SPAWNING

from load.locust_outcome import End, Outcome, StreamReader, Told, Wish, own_share_ms, problem_of

PATH = "/v1/chat/completions"
ANSWER_WITHIN_S = 60.0  # of silence; what is slower is a failure of its own
CONNECT_WITHIN_S = 10.0
BLOCK_BYTES = 65_536
REFUSED_PAUSE_S = 0.5  # after a 429: no client that reads retry-after comes again at once
SEED = 7


@dataclass(slots=True)
class Tenant:
    """`key`: what it says it is with; without one its name goes into the request's metadata."""

    name: str
    key: str | None = None
    wishes: Sequence[Wish] = ()


@dataclass(slots=True)
class Stage:
    """What all users of a run share."""

    hosts: list[str]
    direct: str | None
    told: Told | None
    record: TextIO | None
    dice: random.Random = field(default_factory=lambda: random.Random(SEED))
    numbers: itertools.count[int] = field(default_factory=itertools.count)


@dataclass(slots=True)
class _Reply:
    """What there is of a reply so far."""

    reader: StreamReader = field(default_factory=StreamReader)
    answer: Any = None
    usage: dict[str, Any] | None = None
    end: End = "none"
    why: str = ""


class UnplannedError(Exception):
    """For locust's list of failures."""


def add_options(parser: Any, **_: Any) -> None:
    group = parser.add_argument_group("edgegw")
    group.add_argument("--record", default="", help="File that gets a line for each request")
    group.add_argument("--keys", default="", help="JSON file {tenant: key}; the first tenants ask most")
    group.add_argument("--model", default="gpt-5-mini", help="Model to ask for")
    group.add_argument("--direct", default="", help="Address of the provider itself, asked now and then for comparison")
    group.add_argument("--told-latency-ms", type=float, default=-1.0, help="What the simulator was told; -1: not known")
    group.add_argument("--told-pace-ms", type=float, default=0.0, help="Between two tokens")
    group.add_argument("--faults", type=int, default=0, help="1: the provider is the simulator with its rules")


def set_stage(environment: Any, **_: Any) -> None:
    """Locust's `init`: the options are known, no user is there yet."""
    options = environment.parsed_options
    told = Told(options.told_latency_ms, options.told_pace_ms) if options.told_latency_ms >= 0 else None
    record = Path(options.record).open("w", encoding="utf-8") if options.record else None  # noqa: SIM115
    environment.stage = Stage([], options.direct or None, told, record)
    environment.events.quit.add_listener(lambda **_: record.close() if record is not None else None)


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(set_stage)


def tenants_of(options: Any) -> list[Tenant]:
    """Of the file with keys, in its order."""
    if not options.keys:
        return []
    keys = json.loads(Path(options.keys).read_text("utf-8"))
    return [Tenant(name, key) for name, key in keys.items()]


def chat(model: str, text: str, **fields: Any) -> bytes:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body).encode()


class GatewayUser(User):  # type: ignore[misc]
    """Subclasses say in `cast` which tenants there are and in which proportion, and with what wishes."""

    abstract = True
    wait_time = between(0.2, 0.6)

    def cast(self) -> tuple[list[Tenant], list[float]]:
        raise NotImplementedError

    def on_start(self) -> None:
        stage: Stage = self.environment.stage
        if not stage.hosts:
            stage.hosts = [host.strip() for host in (self.environment.host or self.host).split(",")]
        self.stage = stage
        self.tenants, self.weights = self.cast()
        self._urls = {False: stage.hosts[next(stage.numbers) % len(stage.hosts)], True: stage.direct}
        self._clients: dict[bool, Any] = {}  # by whether they go straight to the provider

    def on_stop(self) -> None:
        for client in self._clients.values():
            client.close()

    def ask(self) -> None:
        if self.environment.runner.state not in (STATE_SPAWNING, STATE_RUNNING):
            raise StopUser  # locust kills who pauses; who wakes up at that moment would die in the midst of a request
        dice = self.stage.dice
        (tenant,) = dice.choices(self.tenants, self.weights)
        (wish,) = dice.choices(tenant.wishes, [wish.weight for wish in tenant.wishes])
        reply = _Reply()
        at_s, sent_s = time.time(), time.perf_counter()
        try:
            self._play(wish, tenant, reply)
        except GreenletExit:  # locust waits for what is under way, but not for ever
            reply.end, reply.why = "none", "still open when the run was over"
            raise
        finally:
            outcome = self._outcome(wish, tenant, reply, at_s, sent_s)
            if self.stage.record is not None:
                self.stage.record.write(outcome.line())
            self._tell(outcome, len(wish.body))
        if outcome.status == 429:
            time.sleep(REFUSED_PAUSE_S)  # gevent's

    tasks = (ask,)

    def _play(self, wish: Wish, tenant: Tenant, reply: _Reply) -> None:
        headers = {"content-type": "application/json", "authorization": f"Bearer {tenant.key or 'none'}"}
        client = self._clients.get(wish.direct)
        if client is None:
            client = self._clients[wish.direct] = _client(self._urls[wish.direct])
        try:
            answer = reply.answer = client.request("POST", PATH, body=wish.body, headers=headers)
            if str(answer.get("content-type", "")).startswith("text/event-stream"):
                reply.end = _read_stream(answer, reply.reader, wish.leaves_after)
                reply.usage = reply.reader.usage
            else:
                data = json.loads(answer.read())
                reply.end, reply.usage = "whole", data.get("usage")
        except (OSError, ValueError, HTTPParseError) as error:  # TimeoutError is an OSError
            reply.end = "silent" if reply.reader.tokens else "none"
            reply.why = f"{type(error).__name__}: {error}"
            client.close()
            del self._clients[wish.direct]  # a connection that broke is not given back to its pool of one

    def _outcome(self, wish: Wish, tenant: Tenant, reply: _Reply, at_s: float, sent_s: float) -> Outcome:
        total_ms = (time.perf_counter() - sent_s) * 1e3
        reader, answer, usage, end = reply.reader, reply.answer, reply.usage, reply.end
        headers = {name.lower(): value for name, value in answer.headers} if answer is not None else {}
        status = answer.status_code if answer is not None else 0
        ttft_ms = None if reader.first_s is None else (reader.first_s - sent_s) * 1e3
        input_tokens, output_tokens = (usage["prompt_tokens"], usage["completion_tokens"]) if usage else (None, None)
        added_ms = added_ttft_ms = None
        told = self.stage.told
        if told is not None and not wish.faulty and status == 200:
            if ttft_ms is not None:
                added_ttft_ms = ttft_ms - told.first_ms()
            if end == "whole" and output_tokens is not None:
                added_ms = total_ms - told.total_ms(output_tokens, stream=wish.stream)
        problem = problem_of(wish, status, end, headers, usage=usage is not None)
        return Outcome(
            at_s=round(at_s, 4),
            kind=wish.kind,
            tenant=tenant.name,
            direct=wish.direct,
            stream=wish.stream,
            status=status,
            end=end,
            request_id="" if wish.direct else headers.get("x-request-id", ""),
            total_ms=round(total_ms, 2),
            ttft_ms=_rounded(ttft_ms),
            gaps_ms=tuple(round(gap, 2) for gap in reader.gaps_ms),
            added_ms=_rounded(added_ms),
            added_ttft_ms=_rounded(added_ttft_ms),
            own_ms=own_share_ms(headers),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            problem=f"{problem} ({reply.why})" if problem and reply.why else problem,
        )

    def _tell(self, outcome: Outcome, length: int) -> None:
        """Locust's own statistics."""
        fire = self.environment.events.request.fire
        name = outcome.kind if not outcome.direct else f"{outcome.kind}, not through the gateway"
        failure = UnplannedError(outcome.problem) if outcome.problem else None
        common = {"name": name, "context": {}}
        fire(request_type="POST", response_time=outcome.total_ms, response_length=length, exception=failure, **common)
        if outcome.ttft_ms is not None:
            fire(request_type="TTFT", response_time=outcome.ttft_ms, response_length=0, exception=None, **common)
        for gap_ms in outcome.gaps_ms:
            fire(request_type="gap", response_time=gap_ms, response_length=0, exception=None, **common)


def _client(url: str | None) -> Any:
    return HTTPClient.from_url(
        url,
        concurrency=1,
        block_size=BLOCK_BYTES,
        connection_timeout=CONNECT_WITHIN_S,
        network_timeout=ANSWER_WITHIN_S,
    )


def _read_stream(answer: Any, reader: StreamReader, leaves_after: int | None) -> End:
    """To its end, or until the client has seen enough."""
    while event := answer.readline(b"\n\n"):
        reader.event(event, time.perf_counter())
        if leaves_after is not None and reader.tokens >= leaves_after:
            answer.release()  # the message is not complete, so this closes the connection
            return "left"
    return reader.end


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
