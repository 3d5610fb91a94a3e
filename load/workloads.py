"""The three kinds of work that are measured, and the bars each is held to.

A workload says what is asked of whom, what one unit of work is, and what the gateway may cost in units of a plain
proxy's cost. The bars are those of the design, section 8. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from load.wire import (
    ANTHROPIC_MODEL,
    ANTHROPIC_PATH,
    ANTHROPIC_SCRIPT,
    OPENAI_MODEL,
    OPENAI_PATH,
    OPENAI_SCRIPT,
    anthropic_stream_body,
    plain_body,
    request,
    stream_body,
)

PLAIN_CONNECTIONS = 32
STREAMS = 200


@dataclass(frozen=True, slots=True)
class Bars:
    """The most that the gateway may cost, as a multiple of the proxy's CPU time for the same unit of work."""

    worker_to_envoy: float
    worker_to_nginx: float
    tree_to_envoy: float


@dataclass(frozen=True, slots=True)
class Asking:
    """What a client sends, and what only a whole streamed answer to it holds."""

    request: bytes
    terminator: bytes = b""


@dataclass(frozen=True, slots=True)
class Workload:
    """`asking` for those who speak OpenAI to the client whatever the provider speaks, `asking_through` for those who
    only pass bytes on."""

    name: str
    title: str
    unit: str
    streamed: bool
    asking: Asking
    asking_through: Asking
    bars: Bars

    def asking_of(self, *, translates: bool) -> Asking:
        return self.asking if translates else self.asking_through


_PLAIN = Asking(request(OPENAI_PATH, plain_body("plain")))
_STREAM = Asking(request(OPENAI_PATH, stream_body("plain", OPENAI_MODEL)), OPENAI_SCRIPT.terminator)
_TRANSLATED = Asking(request(OPENAI_PATH, stream_body("translated", ANTHROPIC_MODEL)), OPENAI_SCRIPT.terminator)
_THROUGH = Asking(request(ANTHROPIC_PATH, anthropic_stream_body(ANTHROPIC_MODEL)), ANTHROPIC_SCRIPT.terminator)

WORKLOADS = (
    Workload(
        name="plain",
        title=f"request, not streamed, {PLAIN_CONNECTIONS} connections",
        unit="request",
        streamed=False,
        asking=_PLAIN,
        asking_through=_PLAIN,
        bars=Bars(worker_to_envoy=0.7, worker_to_nginx=4.0, tree_to_envoy=1.0),
    ),
    Workload(
        name="streams",
        title=f"SSE event, {STREAMS} streams at 50 events/s",
        unit="event",
        streamed=True,
        asking=_STREAM,
        asking_through=_STREAM,
        bars=Bars(worker_to_envoy=0.9, worker_to_nginx=1.6, tree_to_envoy=1.0),
    ),
    Workload(
        name="translated",
        title="SSE event, Anthropic upstream, OpenAI client",
        unit="event",
        streamed=True,
        asking=_TRANSLATED,
        asking_through=_THROUGH,
        bars=Bars(worker_to_envoy=1.8, worker_to_nginx=3.0, tree_to_envoy=1.9),
    ),
)
