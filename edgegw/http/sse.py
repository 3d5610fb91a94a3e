"""Event streams (WHATWG HTML, 9.2 "Server-sent events"): bytes in, whole events out.

`Splitter` cuts a stream into whole raw events, each with its blank line, for those who pass bytes on. `Decoder` reads
them: event type, data, last id. Both live on bytes, because U+2028, U+0085 and their kin are no line ends here, and
both take line ends LF, CR and CRLF at any place where a read may cut them.

Knows nothing of any provider, and nothing of JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A picture of 4,096 pixels a side in one event (delta.images, as OpenRouter has it) fits; a peer that never sends a
# blank line must not fill the memory.
EVENT_BYTES_MAX = 32 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_LINE_END_BYTES = b"\r\n"

# Two line ends in a row. Atomic groups: CRLF is one line end and must never be read as two.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLongError(ValueError):
    """An event passed EVENT_BYTES_MAX before its blank line came. The stream cannot be read any further."""


@dataclass(slots=True)
class Event:
    """One dispatched event. `event` is "message" when the stream named no type; `id` is the last id seen, or ""."""

    event: str
    data: str
    id: str


class Splitter:
    """Cuts a byte stream into raw events.

    What `feed` gives out, joined, is the stream as it came (less one leading BOM) up to the last blank line. A piece
    is an event with its blank line, a comment with its own, or spare line ends. The work is linear in the bytes fed,
    however they are cut.
    """

    __slots__ = ("_fresh", "_held", "_tail")

    def __init__(self) -> None:
        self._fresh = True  # the first three bytes, where a BOM may stand, have not passed
        self._held = bytearray()  # the beginning of an event whose blank line is still to come
        self._tail = b""  # the line end that `_held` ends with: half a blank line, perhaps

    @property
    def pending(self) -> bytes:
        """The bytes held back: an event without its blank line. Empty between two events."""
        return bytes(self._held)

    @property
    def at_rest(self) -> bool:
        return not self._held

    def feed(self, data: bytes) -> list[bytes]:
        """The whole events that end in `data`; a read of exactly one comes back as is. Raises EventTooLongError."""
        if self._fresh:
            data = self._without_bom(data)
        if not self._held:
            if 0 < data.find(b"\n\n") == len(data) - 2 < EVENT_BYTES_MAX and b"\r" not in data:
                return [data]
            return self._cut(data, 0, [])
        window = self._tail + data
        match = _BLANK_LINE.search(window)
        if match is None:
            self._hold(data, window)
            return []
        end = match.end()
        self._held += data[: end - len(self._tail)]
        if len(self._held) > EVENT_BYTES_MAX:
            raise EventTooLongError(f"an event of more than {EVENT_BYTES_MAX} bytes")
        first = bytes(self._held)
        self._held.clear()
        return self._cut(window, end, [first])

    def _cut(self, data: bytes, start: int, pieces: list[bytes]) -> list[bytes]:
        """Cuts what follows `start`, where an event begins; holds the rest."""
        size = len(data)
        plain = b"\r" not in data
        while start < size:
            if plain:
                found = data.find(b"\n\n", start)
                end = found + 2 if found >= 0 else 0
            else:
                match = _BLANK_LINE.search(data, start)
                end = match.end() if match else 0
            if not end:
                rest = data[start:]
                if rest.strip(_LINE_END_BYTES):
                    self._hold(rest, rest)
                else:
                    pieces.append(rest)  # spare line ends begin no event
                break
            if end - start > EVENT_BYTES_MAX:
                raise EventTooLongError(f"an event of more than {EVENT_BYTES_MAX} bytes")
            pieces.append(data[start:end])
            start = end
        return pieces

    def _hold(self, data: bytes, window: bytes) -> None:
        self._held += data
        if len(self._held) > EVENT_BYTES_MAX:
            raise EventTooLongError(f"an event of more than {EVENT_BYTES_MAX} bytes")
        self._tail = window[len(window.rstrip(_LINE_END_BYTES)) :]

    def _without_bom(self, data: bytes) -> bytes:
        """Takes one BOM off the beginning of the stream, be it cut or not."""
        data = bytes(self._held) + data
        self._held.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._held += data
            return b""
        self._fresh = False
        return data.removeprefix(_BOM)


class Decoder:
    """Decodes a stream into events, as an EventSource does, less the reconnecting."""

    __slots__ = ("_last_id", "_splitter")

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._last_id = ""

    def feed(self, data: bytes) -> list[Event]:
        """The events that end in `data`, in order. Raises EventTooLongError."""
        events = []
        for raw in self._splitter.feed(data):
            event = self._read(raw)
            if event is not None:
                events.append(event)
        return events

    def close(self) -> None:
        """The stream has ended. An event without its blank line is dropped, as the standard says."""
        self._splitter = Splitter()
        self._last_id = ""

    def _read(self, raw: bytes) -> Event | None:
        kind = b""
        data: list[bytes] = []
        for name, value in fields(raw):
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value
            elif name == b"id" and b"\0" not in value:
                self._last_id = value.decode("utf-8", "replace")
        if not data:
            return None
        text = b"\n".join(data).decode("utf-8", "replace")
        return Event(kind.decode("utf-8", "replace") or "message", text, self._last_id)


def fields(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a raw event, comments left out: ("data", "x") for "data: x", "data:x"; ("data", "") for "data"."""
    lines = _LINE_END.split(raw) if b"\r" in raw else raw.split(b"\n")
    found = []
    for line in lines:
        name, _, value = line.partition(b":")
        if name:
            found.append((name, value[1:] if value[:1] == b" " else value))
    return found


def data_of(raw: bytes) -> bytes | None:
    """The data of a raw event, None when it has none (a comment, a heartbeat, spare line ends)."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return raw[6:-2]
    data = [value for name, value in fields(raw) if name == b"data"]
    return b"\n".join(data) if data else None
