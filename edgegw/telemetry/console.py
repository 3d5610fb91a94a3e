"""A line on stdout for every request, for people: what stands there when no collector is named.

    2026-11-25T18:03:04.120Z 0198… acme use_case:support openai/gpt-5-mini complete 200 812+230 tokens $0.001212 …

Nobody waits for stdout either: it is written to while whoever reads it keeps up, and what does not fit is dropped.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
from collections.abc import Callable, Sequence

import msgspec

from edgegw.ledger.record import AttemptRecord
from edgegw.logs import stamp
from edgegw.telemetry.export import RefusedError
from edgegw.telemetry.spans import Told

LOGGER = "edgegw.request"
_json = msgspec.json.encode  # a tenth of what the standard library takes
# Lines are to be seen soon; a collector's batches take longer to come together.
DELAY_S = 0.2
# POSIX: a pipe that is ready takes this much without blocking, whole.
PIECE_BYTES_MAX = 512 if not hasattr(select, "PIPE_BUF") else select.PIPE_BUF
READY_TIMEOUT_S = 1.0
_READY_POLL_S = 0.02


class Console:
    """`fd` is stdout's; `write` is `line` or `json_line`. It may be a terminal, a pipe or a file; its flags are left as
    they are, others share it."""

    def __init__(self, fd: int, write: Callable[[Told], str]) -> None:
        self._fd = fd
        self._write = write
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    async def pack(self, batch: Sequence[Told]) -> bytes:
        return "".join(map(self._write, batch)).encode("utf-8", "backslashreplace")

    async def post(self, packed: bytes) -> int:
        """Raises RefusedError when nobody reads it (any more): a piece of it may have been read."""
        while packed:
            await self._ready()
            end = packed.rfind(b"\n", 0, PIECE_BYTES_MAX) + 1 or PIECE_BYTES_MAX
            try:
                written = os.write(self._fd, packed[:end])
            except OSError as error:
                raise RefusedError(f"stdout: {error.strerror}") from None
            packed = packed[written:]
        return 0

    async def close(self) -> None:
        """It is not ours to close."""

    async def _ready(self) -> None:
        for _ in range(round(READY_TIMEOUT_S / _READY_POLL_S)):
            if self._poll.poll(0):
                return
            await asyncio.sleep(_READY_POLL_S)
        raise RefusedError("stdout is not read")


def line(told: Told) -> str:
    end, attempts = told.end, told.attempts
    words = [
        stamp(end.started_ns // 1_000_000 / 1000),
        end.id,
        _word(end.tenant),
        _word(end.route or "-"),
        "-" if end.provider is None else _word(f"{end.provider}/{end.model}"),
        end.state,
        str(end.status),
    ]
    if end.error_kind is not None and end.error_kind != end.state:
        words.append(end.error_kind)
    if end.input_tokens is not None:
        words.append(f"{end.input_tokens}+{end.output_tokens or 0} tokens")
    if end.cost_usd_micro:
        words.append(f"${end.cost_usd_micro / 1e6:.6f}")
    words.append(_time(end.duration_us))
    if end.stream and end.first_token_us is not None:
        words.append(f"(first token {_time(end.first_token_us)})")
    words.append(f"(own {_time(end.overhead_us)})")
    if told.parent is not None:
        words.append(f"trace {told.trace_id}")
    if end.attempts > 1:
        words.append(f"{end.attempts} attempts: " + ", ".join(map(_attempt, attempts)))
    return " ".join(words) + "\n"


def json_line(told: Told) -> str:
    """The same for machines, in the shape of the other lines of the log (logs.py). What is not known is left out."""
    end, attempts = told.end, told.attempts
    fields = {
        "ts": stamp(end.started_ns // 1_000_000 / 1000),
        "level": "INFO",
        "logger": LOGGER,
        "message": f"{end.state} {end.status}",
        "request_id": end.id,
        "trace_id": told.trace_id,
        "tenant": end.tenant,
        "use_case": end.use_case,
        "route": end.route,
        "provider": end.provider,
        "model": end.model,
        "stream": end.stream,
        "state": end.state,
        "status": end.status,
        "error": end.error_kind,
        "input_tokens": end.input_tokens,
        "output_tokens": end.output_tokens,
        "cost_usd": None if end.cost_usd_micro is None else end.cost_usd_micro / 1e6,
        "duration_ms": end.duration_us / 1e3,
        "first_token_ms": None if end.first_token_us is None else end.first_token_us / 1e3,
        "overhead_ms": end.overhead_us / 1e3,
        "attempts": [_attempt_fields(attempt) for attempt in attempts] if end.attempts > 1 else None,
    }
    said = {name: value for name, value in fields.items() if value is not None}
    try:
        return _json(said).decode() + "\n"
    except UnicodeEncodeError:  # a name with half a character in it: no record has one, but who knows
        return json.dumps(said) + "\n"


def _attempt_fields(attempt: AttemptRecord) -> dict[str, str | int | float]:
    return {
        "provider": attempt.provider,
        "model": attempt.model,
        "kind": attempt.kind,
        "status": attempt.status,
        "outcome": attempt.error_kind or "ok",
        "duration_ms": attempt.duration_us / 1e3,
    }


def _attempt(attempt: AttemptRecord) -> str:
    target, outcome = _word(f"{attempt.provider}/{attempt.model}"), attempt.error_kind or "ok"
    return f"{target} {attempt.status or '-'} {outcome} {_time(attempt.duration_us)}"


def _time(us: int) -> str:
    return f"{us / 1e3:.1f} ms" if us < 1_000_000 else f"{us / 1e6:.2f} s"


def _word(text: str) -> str:
    """Clients choose names; none of them looks like the end of a line, or like two words."""
    return text if text.isprintable() and " " not in text else ascii(text).replace(" ", r"\x20")[1:-1]
