"""Rows that a database does not take, whenever it is asked: found by halves, and set aside in a file.

    <state_dir>/rejected/2026-11-25.jsonl     one line a row: {"time", "life", "seq", "table", "reason", "row": {…}}

A row is set aside before the checkpoint passes it, so a crash in between sets it aside twice, and never loses it:
`rows_set_aside` gives each once. All files together hold at most `BYTES_MAX`; what comes then is only counted.

Knows rows and files; no database, no loop.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgegw.ledger.record import ATTEMPT_COLUMNS, REQUEST_COLUMNS, AttemptRecord, End, attempt_row, request_row
from edgegw.ledger.store import Batch, RejectedError

REJECTED_DIR = "rejected"
# Some 60,000 rows: whoever has not looked by then will not miss the next ones.
BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Blamed:
    """A row that is refused by itself; its number is that of `Batch.life_of`."""

    number: int
    reason: str


async def write_by_halves(batch: Batch, write: Callable[[Batch], Awaitable[None]], reason: str) -> list[Blamed]:
    """Writes what a database takes of a batch that it has refused as a whole (for `reason`), in ever smaller parts;
    those that stand alone at the end are to blame."""
    blamed: list[Blamed] = []
    refused = [(0, batch.rows, reason)]
    while refused:
        halves: list[tuple[int, int]] = []
        for start, stop, why in refused:
            if stop - start == 1:
                blamed.append(Blamed(start, why))
            else:
                middle = (start + stop) // 2
                halves += [(start, middle), (middle, stop)]
        refused = []
        for start, stop in halves:
            try:
                await write(batch.part(start, stop))
            except RejectedError as error:
                refused.append((start, stop, str(error)))
    return blamed


def lines_of(batch: Batch, blamed: list[Blamed], wall_ns: int) -> list[bytes]:
    """Everything that is needed to put these rows in later."""
    return [_line(batch, one, wall_ns) for one in blamed]


def set_aside(state_dir: Path, lines: list[bytes], wall_ns: int, *, bytes_max: int = BYTES_MAX) -> int:
    """Append lines, durably, as long as there is room; how many did not fit. Raises OSError."""
    directory = state_dir / REJECTED_DIR
    if not directory.is_dir():
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        _sync_directory(state_dir)
    left = bytes_max - sum(file.stat().st_size for file in directory.iterdir())
    fitting: list[bytes] = []
    for line in lines:
        if len(line) > left:
            break
        left -= len(line)
        fitting.append(line)
    if fitting:
        _append(directory / f"{time.strftime('%Y-%m-%d', time.gmtime(wall_ns / 1e9))}.jsonl", b"".join(fitting))
        _sync_directory(directory)
    return len(lines) - len(fitting)


def rows_set_aside(state_dir: Path) -> Iterator[dict[str, Any]]:
    """Each row once. A line that a crash has cut off is passed over: its row is set aside again behind it."""
    seen: set[tuple[object, ...]] = set()
    for path in sorted((state_dir / REJECTED_DIR).glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                try:
                    found = json.loads(line)
                    row = found["row"]
                    key = (found["table"], row.get("id") or row.get("request_id"), row.get("number"))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                if key not in seen:
                    seen.add(key)
                    yield found


def row_of(batch: Batch, one: Blamed) -> End | AttemptRecord:
    """The row that is to blame."""
    of_requests = len(batch.requests)
    return batch.requests[one.number] if one.number < of_requests else batch.attempts[one.number - of_requests]


def _line(batch: Batch, one: Blamed, wall_ns: int) -> bytes:
    record = row_of(batch, one)
    if isinstance(record, End):
        table, row = "requests", dict(zip(REQUEST_COLUMNS, request_row(record), strict=True))
    else:
        table, row = "provider_attempts", dict(zip(ATTEMPT_COLUMNS, attempt_row(record), strict=True))
    said = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_ns / 1e9)),
        "life": batch.life_of(one.number),
        "seq": record.seq,
        "table": table,
        "reason": one.reason,
        "row": row,
    }
    return json.dumps(said).encode() + b"\n"  # ASCII: also what is no UTF-8, and numbers of any size


def _append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # a crash cut a line off
            data = b"\n" + data
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
