"""Whose trace a request belongs to (W3C Trace Context, level 1), which ids our spans have, and whether they are kept.

Worker and control process agree on all of it without writing anything down: the trace is the client's, or it has the
request's own id; span ids are a hash of the request's id and the attempt's number; the sampler looks at nothing else.
So a span that is told twice is the same span, and a provider hears of its caller's span before that span exists.

Pure. What a client sends is checked to the letter and otherwise passed over: a bad trace is no reason to refuse a
request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil
from typing import NamedTuple, Protocol

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"

# 2.2.1: lower-case hex; a version after 00 may have more, behind a dash. 2.2.2: version ff is none, ids are not zero.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
TRACEPARENT_CHARS = 55
# 3.3.1.5: what must be passed on at least. What is longer is not passed on at all.
TRACESTATE_CHARS_MAX = 512
TRACESTATE_MEMBERS_MAX = 32
_KEY = rb"[a-z0-9][a-z0-9_*/@-]{0,255}"
_VALUE = rb"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = rb"[ \t]*(?:" + _KEY + rb"=" + _VALUE + rb"[ \t]*)?"  # it may be empty
_TRACESTATE = re.compile(_MEMBER + rb"(?:," + _MEMBER + rb")*")
_SAMPLED = 0x01
_ZEROS = bytes(7)
# The client was told 200, or nothing, and did not get what it was promised.
BROKEN_OFF = frozenset(("truncated", "reset", "error_event", "idle_timeout", "drained", "interrupted"))
_BYTE = tuple(bytes((number,)) for number in range(256))

# OpenTelemetry's consistent probability sampling: the last 56 bits of a trace id are its dice (of a UUIDv7, all of them
# are), and services that look at them so keep the same traces.
_DICE_CHARS = 14
_DICE_SIDES = 1 << 56


class Traced(Protocol):
    """A request, or what is written down about one."""

    @property
    def id(self) -> str: ...

    @property
    def trace(self) -> str | None: ...


class Parent(NamedTuple):
    """The span of the client that a request belongs to. Ids in lower-case hex."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""


def received(traceparent: bytes, tracestate: bytes | None) -> str | None:
    """What a client says of its trace, as it is kept with the exchange: a traceparent of version 00, and if there is a
    tracestate, that behind a semicolon. None when it is no traceparent."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if rest is not None and version == b"00":
        return None
    sampled = int(flags, 16) & _SAMPLED
    parent = f"00-{trace_id.decode()}-{span_id.decode()}-{sampled:02x}"
    if (
        not tracestate
        or len(tracestate) > TRACESTATE_CHARS_MAX
        or tracestate.count(b",") >= TRACESTATE_MEMBERS_MAX
        or _TRACESTATE.fullmatch(tracestate) is None
    ):
        return parent
    return f"{parent};{tracestate.decode()}"


def parent_of(trace: str | None, chars_max: int | None = None) -> Parent | None:
    """The parent in what `received` gave. `chars_max`: texts were cut there on their way; a member of the tracestate
    that was is left out."""
    if trace is None or len(trace) < TRACEPARENT_CHARS:
        return None
    state = trace[TRACEPARENT_CHARS + 1 :]
    if state and chars_max is not None and len(trace) >= chars_max:
        state = state.rpartition(",")[0]
    return Parent(trace[3:35], trace[36:52], trace[54] == "1", state)


def own_trace_id(request_id: str) -> str:
    """The trace of a request whose client named none: its own UUID, which has the right form."""
    return request_id.replace("-", "")


def trace_id(request_id: str, trace: str | None) -> str:
    """The trace that a request belongs to; `trace` is what `received` gave."""
    parent = parent_of(trace)
    return own_trace_id(request_id) if parent is None else parent.trace_id


def about(request: Traced | None) -> dict[str, str] | None:
    """What a line of the log carries that is about this request (`extra`)."""
    if request is None:
        return None
    return {"request_id": request.id, "trace_id": trace_id(request.id, request.trace)}


def span_id(request_id: str) -> bytes:
    """The span of a request."""
    made = blake2b(request_id.encode(), digest_size=8).digest()
    return made if made[:7] != _ZEROS else b"\1" + made[1:]


def attempt_span_id(request_span: bytes, number: int) -> bytes:
    """The span of an attempt, by its number: the request's but for the last byte. They share no number below 256, and
    none is zero."""
    return request_span[:7] + _BYTE[(request_span[7] ^ number) & 0xFF]


class Ended(Protocol):
    """What is looked at of a request that is over; `attempts`: how many."""

    @property
    def status(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def attempts(self) -> int: ...
    @property
    def duration_us(self) -> int: ...


class JustEnded(NamedTuple):
    """The same, of a request that no record tells of yet."""

    status: int
    state: str
    attempts: int
    duration_us: int


@dataclass(frozen=True, slots=True)
class Sampler:
    """Which traces are kept: those that the client keeps (`parent_based`, and it said so), else `ratio` of all.
    `exceptions`: errors and slow requests are kept whatever the dice say."""

    ratio: float = 1.0
    parent_based: bool = True
    exceptions: bool = True
    _least: str = field(init=False, repr=False, compare=False)  # dice that are kept are not less than this

    def __post_init__(self) -> None:
        least = max(0, ceil(_DICE_SIDES * (1 - self.ratio)))
        # As hex digits they are compared as they stand; what no digit reaches keeps none.
        object.__setattr__(self, "_least", "g" if least >= _DICE_SIDES else f"{least:0{_DICE_CHARS}x}")

    def keeps(self, trace_id: str, parent_sampled: bool | None) -> bool:
        """Known when the request comes: what a provider is told. `parent_sampled` is None without a parent."""
        if self.parent_based and parent_sampled is not None:
            return parent_sampled
        return trace_id[-_DICE_CHARS:] >= self._least


def failed(status: int, state: str) -> bool:
    """It is the gateway's failure, or a provider's; what was the client's mistake is none (HTTP conventions)."""
    return status >= 500 or state in BROKEN_OFF


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which requests are told when they are over: those that the sampler keeps, and its exceptions. From `slow_us` on
    a request is slow."""

    sampler: Sampler
    slow_us: int

    def keeps(self, trace_id: str, parent_sampled: bool | None, ended: Ended) -> bool:
        sampler = self.sampler
        return sampler.keeps(trace_id, parent_sampled) or (
            sampler.exceptions
            and (
                ended.duration_us >= self.slow_us
                or ended.attempts > 1
                or ended.state == "failed"
                or failed(ended.status, ended.state)
            )
        )


class Announcer:
    """Tells providers which span calls them."""

    __slots__ = ("_sampler",)

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def announced(self, call: bytes, request_id: str, trace: str | None, number: int) -> bytes:
        """The bytes of an HTTP/1.1 request, with the header fields of attempt `number` behind its first line."""
        parent = parent_of(trace)
        trace_id = own_trace_id(request_id) if parent is None else parent.trace_id
        sampled = self._sampler.keeps(trace_id, None if parent is None else parent.sampled)
        span = attempt_span_id(span_id(request_id), number).hex()
        fields = f"\r\ntraceparent: 00-{trace_id}-{span}-{sampled:02x}\r\n"
        if parent is not None and parent.state:
            fields += f"tracestate: {parent.state}\r\n"
        return call.replace(b"\r\n", fields.encode(), 1)
