"""What came of one request, as its client saw it: how a stream is read and timed, what is wrong with a reply, and the
line that is kept of it.

Everything the report says is made of these lines, after the run. Pure: bytes and moments in, an outcome out; knows
neither locust nor sockets, so that both the generator and the program that judges it can import it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Literal

End = Literal["whole", "broken", "silent", "left", "none"]
# whole: all of an answer, or of an error. broken: a stream that ended with its one error event. silent: a stream that
# ended with neither. left: we hung up, as planned. none: no reply.

DONE = b"[DONE]"
_DATA = b"data:"


@dataclass(frozen=True, slots=True)
class Told:
    """What the simulator was told to take. With `None` of these nothing is known, as with a real provider."""

    latency_ms: float
    pace_ms: float

    def first_ms(self) -> float:
        return self.latency_ms

    def total_ms(self, tokens: int, *, stream: bool) -> float:
        """A stream does not pause before its first token; a plain answer takes as long as all of them would."""
        return self.latency_ms + self.pace_ms * max(0, tokens - stream)


@dataclass(frozen=True, slots=True)
class Wish:
    """A kind of request. `planned`: statuses that are as they should be. `faulty`: its provider fails at times, so that
    nobody knows how long it takes, and its stream may break off with an error event. `leaves_after`: the client hangs
    up after so many tokens. `direct`: asked of the provider itself, for comparison."""

    kind: str
    weight: int
    body: bytes
    stream: bool = False
    planned: frozenset[int] = frozenset({200})
    faulty: bool = False
    leaves_after: int | None = None
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A line of the record. `at_s` is Unix time of sending. `added_*`: beyond what the simulator was told to take.
    `own_ms`: the gateway's share as it says itself (`server-timing`). `problem`: why it is not as it should be."""

    at_s: float
    kind: str
    tenant: str
    direct: bool
    stream: bool
    status: int
    end: End
    request_id: str
    total_ms: float
    ttft_ms: float | None
    gaps_ms: tuple[float, ...]
    added_ms: float | None
    added_ttft_ms: float | None
    own_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    problem: str | None

    @property
    def ended_s(self) -> float:
        return self.at_s + self.total_ms / 1e3

    def line(self) -> str:
        return json.dumps(astuple(self), separators=(",", ":")) + "\n"


def outcome_of(line: str) -> Outcome:
    fields = json.loads(line)
    fields[10] = tuple(fields[10])
    return Outcome(*fields)


class StreamReader:
    """Takes the events of a stream one by one, with the moment of each (monotonic seconds)."""

    def __init__(self) -> None:
        self.tokens = 0  # events with content
        self.first_s: float | None = None
        self.gaps_ms: list[float] = []
        self.usage: dict[str, Any] | None = None
        self.faults = 0
        self.done = False
        self.after_end = 0  # events behind the end
        self._last_s = 0.0

    def event(self, event: bytes, now_s: float) -> None:
        """One event without the empty line behind it. Comments pass."""
        if not event.startswith(_DATA):
            return
        data = event[len(_DATA) :].strip()
        if self.done or self.faults:
            self.after_end += 1
        elif data == DONE:
            self.done = True
        else:
            self._told(data, now_s)

    def _told(self, data: bytes, now_s: float) -> None:
        try:
            told = json.loads(data)
        except ValueError:
            self.after_end += 1  # no such event belongs anywhere
            return
        if "error" in told:
            self.faults = 1
            return
        if told.get("usage"):
            self.usage = told["usage"]
        delta = (told.get("choices") or [{}])[0].get("delta", {})
        if delta.get("content") or delta.get("tool_calls"):
            if self.first_s is None:
                self.first_s = now_s
            else:
                self.gaps_ms.append((now_s - self._last_s) * 1e3)
            self._last_s = now_s
            self.tokens += 1

    @property
    def end(self) -> End:
        """Of a stream whose connection has nothing more to say."""
        if self.after_end:
            return "silent"  # whatever that was, it is not one of the two ends that were promised
        if self.faults:
            return "broken"
        return "whole" if self.done else "silent"


def problem_of(wish: Wish, status: int, end: End, headers: Mapping[str, str], *, usage: bool) -> str | None:
    """Why a reply is not as it should be; None when it is. Of headers, which are lower-case, two are asked for."""
    if end == "none":
        return "no reply"
    if end == "silent":
        return "silent end of a stream"
    if not wish.direct and "x-request-id" not in headers:
        return "no x-request-id"
    if status not in wish.planned:
        return f"status {status}"
    if end == "broken" and not wish.faulty:
        return "stream broke off with an error"
    if status == 429 and "retry-after" not in headers:
        return "429 without retry-after"
    if status == 200 and end == "whole" and not usage:
        return "no usage"
    return None


def own_share_ms(headers: Mapping[str, str]) -> float | None:
    """`server-timing: gw;dur=0.123, upstream;dur=…`"""
    name, _, value = headers.get("server-timing", "").partition(",")[0].partition(";dur=")
    return float(value) if name == "gw" and value else None
