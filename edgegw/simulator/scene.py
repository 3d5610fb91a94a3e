"""One reply as the connection will play it: frames of bytes, their pace, and how it ends.

Pure. This is where faults happen: a good answer is written by its wire, then cut, garbled or replaced. A frame is what
one step of the clock sends; the first holds the head and everything up to the first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from edgegw.simulator.rules import Behaviour, Fault
from edgegw.simulator.script import Answer, Question, RefusalError
from edgegw.simulator.wire import Mark, Wire

_LAST_CHUNK = b"0\r\n\r\n"
_GARBAGE = b'data: {"id":"chatcmpl-garbled","choices":[{"index":0,"delta":{"con\n\n'
_HTML = (
    b"<!DOCTYPE html>\n<html><head><title>%d | Bad gateway</title></head>\n"
    b"<body><center><h1>%d Bad Gateway</h1></center><hr><center>cloud-proxy</center></body></html>\n"
)
_NOISE = b"SSH-2.0-OpenSSH_9.6\r\n"
_REASONS = {
    200: "OK",
    302: "Found",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    529: "Overloaded",
}


class Ending(IntEnum):
    """What follows the last frame."""

    COMPLETE = 0
    CLOSE = 1  # FIN in the middle of the message
    RESET = 2  # RST
    SILENCE = 3  # the connection stays open and nothing comes


@dataclass(slots=True)
class Scene:
    """`counts[i]` tokens go out with `frames[i]`. `whole`: the client gets a complete answer from this. `id` and
    `client_id`: what we call the request, and what who asked calls it; empty for what is no model's answer."""

    frames: list[bytes]
    counts: list[int]
    status: int
    ending: Ending = Ending.COMPLETE
    latency_s: float = 0.0
    pace_s: float = 0.0
    stream: bool = False
    whole: bool = True
    close: bool = False
    model: str = ""
    prompt_tokens: int = 0
    id: str = ""
    client_id: str = ""


def reply(status: int, fields: bytes, body: bytes, kind: str = "application/json") -> bytes:
    """A whole HTTP/1.1 response. `fields` are header lines with their CR LF."""
    return head(status, kind, fields + b"content-length: %d\r\n" % len(body)) + body


def head(status: int, kind: str, fields: bytes) -> bytes:
    reason = _REASONS.get(status, "Status")
    return f"HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\n".encode() + fields + b"\r\n"


def refusal(wire: Wire, error: RefusalError, mark: Mark) -> Scene:
    """The answer to a request that the provider would not take."""
    body = wire.error_body(error, mark)
    return Scene([reply(error.status, wire.fields(mark, _NOBODY), body)], [0], error.status, whole=False)


_NOBODY = Question("", False, "", 0)


def stage(wire: Wire, question: Question, answer: Answer, behaviour: Behaviour, mark: Mark) -> Scene:
    """The reply to a good request under this behaviour."""
    answer.cached = min(behaviour.cached, answer.prompt_tokens)
    answer.written = min(behaviour.written, answer.prompt_tokens - answer.cached)
    answer.reasoning = min(behaviour.reasoning, answer.completion_tokens)
    fields = wire.fields(mark, question) + (b"connection: close\r\n" if behaviour.close else b"")
    replaced = _REPLACED.get(behaviour.fault)
    if replaced is not None:
        scene = replaced(wire, question, behaviour, mark, fields)
        scene.latency_s += behaviour.latency_s
    elif question.stream:
        scene = _streamed(wire, question, answer, behaviour, mark, fields)
    else:
        scene = _plain(wire, question, answer, behaviour, mark, fields)
    scene.stream = question.stream and scene.status == 200
    scene.model = question.model
    scene.prompt_tokens = question.prompt_tokens if scene.status == 200 and scene.frames else 0
    scene.close = behaviour.close
    if behaviour.drip_bytes:
        _drip(scene, behaviour.drip_bytes)
    return scene


# ---- instead of an answer

Replacement = Callable[[Wire, Question, Behaviour, Mark, bytes], Scene]


def _error(wire: Wire, question: Question, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    error = wire.failure(behaviour.status, behaviour.fault is Fault.QUOTA)
    if (wait_s := behaviour.retry_after_s) is not None:
        fields += b"retry-after: %d\r\n" % math.ceil(wait_s)
        if wait_s != int(wait_s):
            fields += b"retry-after-ms: %d\r\n" % round(wait_s * 1000)
    body = wire.error_body(error, mark)
    return Scene([reply(behaviour.status, fields, body)], [0], behaviour.status, whole=False)


def _html(wire: Wire, question: Question, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    body = _HTML % (behaviour.status, behaviour.status)
    return Scene([reply(behaviour.status, b"", body, "text/html")], [0], behaviour.status, whole=False)


def _redirect(wire: Wire, question: Question, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    location = b"location: http://127.0.0.1:1/elsewhere\r\n"
    return Scene([reply(302, fields + location, b"", "text/plain")], [0], 302, whole=False)


def _empty(wire: Wire, question: Question, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    kind = "text/event-stream" if question.stream else "application/json"
    return Scene([reply(200, fields, b"", kind)], [0], 200, whole=False)


def _noise(wire: Wire, question: Question, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    return Scene([_NOISE], [0], 0, Ending.CLOSE, whole=False)


def _hang(wire: Wire, question: Question, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    return Scene([], [], 0, Ending.SILENCE, whole=False)


_REPLACED: dict[Fault, Replacement] = {
    Fault.STATUS: _error,
    Fault.QUOTA: _error,
    Fault.HTML: _html,
    Fault.REDIRECT: _redirect,
    Fault.EMPTY: _empty,
    Fault.NOISE: _noise,
    Fault.HANG: _hang,
}

_ENDINGS = {Fault.CUT: Ending.CLOSE, Fault.RESET: Ending.RESET, Fault.STALL: Ending.SILENCE}


# ---- an answer that goes wrong, or does not


def _plain(wire: Wire, question: Question, answer: Answer, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    body = wire.plain(question, answer, mark, behaviour.usage)
    latency_s = behaviour.latency_s + behaviour.pace_s * answer.completion_tokens  # a real one thinks before it speaks
    fault = behaviour.fault
    if fault is Fault.ERROR_EVENT:
        body = wire.error_body(wire.failure(500, False), mark)
    elif fault in (Fault.GARBAGE, Fault.TRUNCATE):
        body = body[: len(body) // 2]
    whole = fault is Fault.NONE
    message = reply(200, fields, body)
    if fault in _ENDINGS:
        # With no token before the fault not one byte leaves, otherwise the head and half the body.
        message = message[: len(message) - len(body) + len(body) // 2] if behaviour.after else b""
    frames, counts = ([message], [answer.completion_tokens if whole else 0]) if message else ([], [])
    return Scene(frames, counts, 200, _ENDINGS.get(fault, Ending.COMPLETE), latency_s, whole=whole)


def _streamed(wire: Wire, question: Question, answer: Answer, behaviour: Behaviour, mark: Mark, fields: bytes) -> Scene:
    events, weights = wire.events(question, answer, mark, behaviour.usage)
    fault = behaviour.fault
    ending = _ENDINGS.get(fault, Ending.COMPLETE)
    if fault is not Fault.NONE:
        place = _place(weights, behaviour.after)
        rest = (events[place:], weights[place:]) if fault is Fault.GARBAGE else ([], b"")
        inserted = {Fault.GARBAGE: [_GARBAGE], Fault.ERROR_EVENT: [wire.error_event(mark)]}.get(fault, [])
        events = events[:place] + inserted + rest[0]
        weights = weights[:place] + bytes(len(inserted)) + rest[1]
    scene = Scene([], [], 200, ending, behaviour.latency_s, behaviour.pace_s, whole=fault is Fault.NONE)
    if fault is Fault.RESET and not behaviour.after:
        return scene
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    opening = head(200, "text/event-stream; charset=utf-8", fields + b"transfer-encoding: chunked\r\n")
    _fill(scene, opening, chunks, weights)
    if ending is Ending.COMPLETE:
        scene.frames[-1] += _LAST_CHUNK
    return scene


def _place(weights: bytes, after: int) -> int:
    """The index behind the `after`-th token; the last token's when there are fewer; 0 tokens: before the first."""
    first = weights.find(1)
    if first < 0:
        return 1  # an answer without a token still opens
    at = first
    for _ in range(after):
        following = weights.find(1, at)
        if following < 0:
            break
        at = following + 1
    return at


def _fill(scene: Scene, opening: bytes, chunks: list[bytes], weights: bytes) -> None:
    """One frame per token, with what follows it and carries none; the first also takes all that stands before."""
    start, end = 0, weights.find(1) + 1
    while True:
        following = weights.find(1, end) if end else -1
        stop = following if following >= 0 else len(chunks)
        scene.frames.append(opening + b"".join(chunks[start:stop]))
        scene.counts.append(sum(weights[start:stop]))
        if following < 0:
            return
        opening, start, end = b"", stop, stop + 1


def _drip(scene: Scene, size: int) -> None:
    """The same bytes in pieces of `size`; a frame's tokens count with its last piece."""
    frames, counts = [], []
    for frame, count in zip(scene.frames, scene.counts, strict=True):
        pieces = [frame[at : at + size] for at in range(0, len(frame), size)]
        frames += pieces
        counts += [0] * (len(pieces) - 1) + [count]
    scene.frames, scene.counts = frames, counts
