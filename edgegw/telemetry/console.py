"""A line on stdout for every request, for people: what stands there when no collector is named.

    2026-11-25T18:03:04.120Z 0198… acme use_case:support openai/gpt-5-mini complete 200 812+230 tokens $0.001212 …

Nobody waits for stdout either: it is written to while whoever reads it keeps up, and what does not fit is dropped.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import stat
from collections.abc import Callable, Sequence

import msgspec

from edgegw.ledger.record import AttemptRecord
from edgegw.logs import stamp
from edgegw.telemetry.export import RefusedError
from edgegw.telemetry.spans import Told

LOGGER = "edgegw.request"
# Lines are to be seen soon; a collector's batches take longer to come together.
DELAY_S = 0.2
# POSIX: a pipe that is ready takes this much without blocking, whole.
PIECE_BYTES_MAX = 512 if not hasattr(select, "PIPE_BUF") else select.PIPE_BUF
# A file takes as much as it is given.
FILE_PIECE_BYTES_MAX = 64 << 10
READY_TIMEOUT_S = 1.0
_READY_POLL_S = 0.02


class Console:
    """`fd` is stdout's; `write` is a method of `Lines`. It may be a terminal, a pipe or a file; its flags are left as
    they are, others share it."""

    def __init__(self, fd: int, write: Callable[[Told], bytes]) -> None:
        self._fd = fd
        self._write = write
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    async def pack(self, batch: Sequence[Told]) -> bytes:
        return b"".join(map(self._write, batch))

    async def post(self, packed: bytes) -> int:
        """Raises RefusedError when nobody reads it (any more): a piece of it may have been read."""
        at, most = 0, FILE_PIECE_BYTES_MAX if stat.S_ISREG(os.fstat(self._fd).st_mode) else PIECE_BYTES_MAX
        while at < len(packed):
            await self._ready()
            end = packed.rfind(b"\n", at, at + most) + 1 or at + most
            try:
                at += os.write(self._fd, packed[at:end])
            except OSError as error:
                raise RefusedError(f"stdout: {error.strerror}") from None
        return 0

    async def close(self) -> None:
        """It is not ours to close."""

    async def _ready(self) -> None:
        for _ in range(round(READY_TIMEOUT_S / _READY_POLL_S)):
            if self._poll.poll(0):
                return
            await asyncio.sleep(_READY_POLL_S)
        raise RefusedError("stdout is not read")


class _JsonLine(msgspec.Struct, omit_defaults=True, gc=False):
    """The names of a line for machines, in their order. What is not known is left out."""

    ts: str
    level: str
    logger: str
    message: str
    request_id: str
    trace_id: str
    tenant: str
    stream: bool
    state: str
    status: int
    duration_ms: float
    overhead_ms: float
    use_case: str | None = None
    route: str | None = None
    provider: str | None = None
    model: str | None = None
    error: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    first_token_ms: float | None = None
    attempts: list[dict[str, str | int | float]] | None = None


class Lines:
    """Puts requests into lines. Most come within the same second, whose text is kept."""

    __slots__ = ("_before", "_json", "_second")

    def __init__(self) -> None:
        self._json = msgspec.json.Encoder().encode  # a tenth of what the standard library takes
        self._second = -1
        self._before = ""

    def text(self, told: Told) -> bytes:
        """For people."""
        end, attempts = told.end, told.attempts
        words = [
            self._stamp(end.started_ns),
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
        return (" ".join(words) + "\n").encode("utf-8", "backslashreplace")

    def json(self, told: Told) -> bytes:
        """The same for machines, in the shape of the other lines of the log (logs.py)."""
        end, attempts = told.end, told.attempts
        cost, first_us = end.cost_usd_micro, end.first_token_us
        said = _JsonLine(
            self._stamp(end.started_ns),
            "INFO",
            LOGGER,
            f"{end.state} {end.status}",
            end.id,
            told.trace_id,
            end.tenant,
            end.stream,
            end.state,
            end.status,
            end.duration_us / 1e3,
            end.overhead_us / 1e3,
            end.use_case,
            end.route,
            end.provider,
            end.model,
            end.error_kind,
            end.input_tokens,
            end.output_tokens,
            None if cost is None else cost / 1e6,
            None if first_us is None else first_us / 1e3,
            [_attempt_fields(attempt) for attempt in attempts] if end.attempts > 1 else None,
        )
        try:
            return self._json(said) + b"\n"
        except UnicodeEncodeError:  # a name with half a character in it: no record has one, but who knows
            return json.dumps(msgspec.to_builtins(said)).encode() + b"\n"

    def _stamp(self, wall_ns: int) -> str:
        """As `logs.stamp` has it."""
        second, ms = divmod(wall_ns // 1_000_000, 1000)
        if second != self._second:
            self._before, self._second = stamp(second).removesuffix("000Z"), second
        return f"{self._before}{ms:03d}Z"


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
