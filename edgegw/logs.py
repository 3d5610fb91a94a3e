"""How the processes of a gateway speak: one line for each event on stdout, for people on a terminal, else JSON.

Set up once, before the first fork, for the standard library's `logging`, which the rest of the program uses; a child
then says what it has become. Nobody waits for whoever reads: what a full pipe does not take is dropped, and told when
there is room again. Nothing here knows settings: a value that is formatted says of itself what may be seen (`Secret` in
settings/model.py).

What is about one request is logged with its ids: `extra=trace.about(exchange)`, or `about(record)` of ledger/record.py.
Who logs passes them, and no context variable does: an errand runs in the context of whatever connection wakes it, which
is that of the request for which this connection was once opened.
"""

from __future__ import annotations

import json
import logging
import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
FORMATS = ("json", "text")
# What a record may carry beside its message.
EXTRAS = ("request_id", "trace_id")
LINE_BYTES_MAX = 32 * 1024  # nobody needs more of a traceback
# POSIX: a pipe that is ready takes this much without blocking, and whole, whoever else writes to it.
PIECE_BYTES_MAX = select.PIPE_BUF


@dataclass(frozen=True, slots=True)
class Wanted:
    level: str
    format: Literal["json", "text"]
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Role:
    """Which process speaks."""

    name: str
    slot: int | None = None

    def __str__(self) -> str:
        return self.name if self.slot is None else f"{self.name}{self.slot}"


def read(environ: Mapping[str, str], *, terminal: bool) -> Wanted:
    """`LOG_LEVEL` and `LOG_FORMAT`; what cannot be read is told and passed over."""
    complaints = []
    level = environ.get("LOG_LEVEL", "").strip().upper() or "INFO"
    if level not in LEVELS:
        complaints.append(f"LOG_LEVEL: expected one of {', '.join(LEVELS)}, found {level!r}")
        level = "INFO"
    by_itself = "text" if terminal else "json"
    form = environ.get("LOG_FORMAT", "").strip().lower() or by_itself
    if form not in FORMATS:
        complaints.append(f"LOG_FORMAT: expected json or text, found {form!r}")
        form = by_itself
    return Wanted(level, "json" if form == "json" else "text", tuple(complaints))


class Log(logging.Handler):
    """Writes records to a file descriptor. `role` is set by each process when it knows what it is."""

    def __init__(self, fd: int, *, as_json: bool) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._unsaid = 0
        self.as_json = as_json
        self.role = Role("supervisor")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.json_line(record) if self.as_json else self.text_line(record)
        except Exception as error:  # a message whose arguments do not fit: the event is told all the same
            line = f"{record.levelname} {record.name}: {record.msg!r} ({type(error).__name__} in the log)"
        if not self._wrote(line):
            self._unsaid += 1
        elif self._unsaid:
            unsaid, self._unsaid = self._unsaid, 0
            text = "%d lines of the log found nobody who read them"
            self.emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (unsaid,), None))

    def _wrote(self, line: str) -> bool:
        """False when nobody reads, or not fast enough: that must neither stop nor end the gateway."""
        data = line.encode("utf-8", "backslashreplace")[:LINE_BYTES_MAX] + b"\n"
        try:
            for start in range(0, len(data), PIECE_BYTES_MAX):
                if not self._poll.poll(0):
                    return False
                os.write(self._fd, data[start : start + PIECE_BYTES_MAX])
        except OSError:
            return False
        return True

    def json_line(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": stamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            "role": self.role.name,
        }
        if self.role.slot is not None:
            fields["slot"] = self.role.slot
        fields |= {name: value for name in EXTRAS if (value := getattr(record, name, None)) is not None}
        exception = _exception(record)
        if exception:
            fields["exception"] = exception[: LINE_BYTES_MAX // 4]  # cut here, so that the line stays JSON
        return json.dumps(fields, ensure_ascii=False, default=str)

    def text_line(self, record: logging.LogRecord) -> str:
        line = f"{stamp(record.created)} {record.levelname} {self.role} {record.name}: {record.getMessage()}"
        if (request_id := getattr(record, "request_id", None)) is not None:
            line += f" (request {request_id})"
        exception = _exception(record)
        return f"{line}\n{exception}" if exception else line


def start(wanted: Wanted, fd: int) -> Log:
    """From now on everything that is logged in this process, and in its children, goes to `fd`."""
    log = Log(fd, as_json=wanted.format == "json")
    logging.basicConfig(level=wanted.level, handlers=[log], force=True)
    return log


def stamp(wall_s: float) -> str:
    """In UTC, to the millisecond."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exception(record: logging.LogRecord) -> str:
    """The traceback, and the stack if one was asked for; empty without."""
    formatter = logging.Formatter()
    parts = [] if not record.exc_info else [formatter.formatException(record.exc_info)]
    return "\n".join((*parts, record.stack_info) if record.stack_info else parts)
