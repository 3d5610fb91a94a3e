"""OpenAI Chat Completions streamed, from a provider that speaks it to a client that speaks it: bytes pass untouched.

Every whole event is looked at once with a typed decode that skips what we do not act on, and passes as it came. Three
things do not pass: the usage-only event that is due to our own asking, an error event (the relay says it in our own
words, or tries elsewhere), and everything from [DONE] on.

The usage-only event. We ask every provider for usage (`stream_options.include_usage`), also for clients that did not.
What the asking adds is to be taken out again, and no more. OpenAI documents what it adds: one last event with usage and
no choices, and `"usage": null` in all events before it (API reference, "stream_options"). So a usage-only event is
withheld when an earlier event of the stream had a null usage; without that signature the provider tells usage to
everybody, and the event passes. Compatible servers (vLLM and others) send no nulls: of them it is always withheld.

The fast lane. Once `feed` has opened the stream and is at rest, a relay may pass a read without it that holds exactly
one whole event, a JSON object, if none of `needles` is in it, and, while `withholding`, if it has no `"usage"` or a
`"usage":null`: `feed` would have given it back as it is. The last such events must then be told to `recall` before the
next `feed` or `end`, which finds finish, usage and signature in them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgegw.dialects.lenient import strict_json
from edgegw.dialects.openai_chat_accents import ACCENTED, Accents
from edgegw.dialects.openai_chat_reply import Mask, fault_of, is_error, is_something, read_usage, unmasked
from edgegw.errors import UpstreamFault
from edgegw.exchange import Usage
from edgegw.http.sse import EventTooLongError, Splitter, data_of, fields

DONE_EVENT = b"data: [DONE]\n\n"

_DONE = b"[DONE]"
_DATA = b"data:"
_ERROR_TYPE = (b"event", b"error")
_OBJECT_START = b"{"


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None
    delta: dict[str, msgspec.Raw] | None = None


class _Groq(msgspec.Struct, gc=False):
    usage: msgspec.Raw = msgspec.Raw()


class _Chunk(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    x_groq: _Groq | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)
_ANYTHING = msgspec.json.Decoder()
_ABSENT = msgspec.Raw()
_NULL = msgspec.Raw(b"null")
_NO_USAGE = (_ABSENT, _NULL)

# What an event that needs a look of `feed` has in it.
_FAULTY = (b'"error"', b"event: error", b"event:error")


class OpenAIChatStream:
    """The StreamReader of a transparent stream. `choices` is how many answers the client asked for.

    With `mending`, habits of compatible providers are set right (openai_chat_accents.py). With `announced`, the
    usage-only event is withheld only after a null usage. `mask` takes keys out of error texts.
    """

    __slots__ = (
        "_accents",
        "_choices",
        "_due",
        "_finished",
        "_mask",
        "_splitter",
        "done",
        "events",
        "fault",
        "finish_reason",
        "model",
        "needles",
        "opened",
        "transparent",
        "usage",
        "withholding",
    )

    def __init__(
        self,
        choices: int = 1,
        withholding: bool = False,
        mending: bool = False,
        announced: bool = False,
        mask: Mask = unmasked,
    ) -> None:
        self.opened = False
        self.done = False
        self.fault: UpstreamFault | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.events = 0
        self.transparent = True
        self.needles: tuple[bytes, ...] = _FAULTY + ACCENTED if mending else _FAULTY
        self.withholding = withholding
        self._accents = Accents() if mending else None
        self._due = not announced  # a usage-only event would be due to our asking
        self._choices = choices
        self._mask = mask
        self._finished: set[int] = set()  # indexes of the choices whose finish reason has come
        self._splitter = Splitter()

    @property
    def last(self) -> bytes:
        return DONE_EVENT

    @property
    def at_rest(self) -> bool:
        return self._splitter.at_rest

    def _over(self) -> bool:
        return self.done or self.fault is not None

    def feed(self, data: bytes) -> bytes:
        if self.done or self.fault is not None:
            return b""
        if self.events and self._splitter.at_rest and _is_one_line(data):
            return self._look_at(data, data[6:-2])
        try:
            raw_events = self._splitter.feed(data)
        except EventTooLongError as error:
            self.fault = UpstreamFault("upstream_garbage", f"The provider sent {error}.", status=200)
            return b""
        if len(raw_events) == 1:
            return self._pass(raw_events[0])
        passed = []
        for raw in raw_events:
            passed.append(self._pass(raw))
            if self._over():
                break
        return b"".join(passed)

    def end(self) -> bytes:
        """A finish reason makes the reply complete even without [DONE]; a last event may lack its blank line."""
        if self._over():
            return b""
        rest = self._splitter.pending
        passed = self._pass_unfinished(rest) if rest.strip() else b""
        if self._over():
            return passed
        if len(self._finished) >= self._choices:
            self.done = True
        elif self.events:
            self.fault = UpstreamFault(
                "upstream_cut", "The provider's answer ended before it was complete.", status=200
            )
        else:
            self.fault = UpstreamFault("upstream_garbage", "The provider's answer is not an event stream.", status=200)
        return passed

    def recall(self, raw_events: Iterable[bytes]) -> None:
        for raw_event in raw_events:
            if not self._may_forget(raw_event):
                self._recall(raw_event)

    def _may_forget(self, raw_event: bytes) -> bool:
        """True of an event that surely tells no model, finish or usage: a look at its bytes is a fifth of a decode."""
        if b'"usage":null' in raw_event:
            self._due = True
        elif b'"usage"' in raw_event:
            return False
        return self._choices == 1 and self.model is not None and b'"finish_reason":null' in raw_event

    def _recall(self, raw_event: bytes) -> None:
        for raw in Splitter().feed(raw_event):
            data = data_of(raw) or b""
            try:
                chunk = _CHUNK.decode(data)
            except msgspec.ValidationError:
                continue
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                try:
                    chunk = _CHUNK.decode(strict_json(data) or b"")
                except (msgspec.DecodeError, RecursionError):
                    continue
            self._note(chunk)

    def _pass(self, raw: bytes) -> bytes:
        """What the client gets for one raw event: the event, or nothing."""
        data = data_of(raw)
        if data is None:
            return raw
        if not raw.startswith(_DATA) and _ERROR_TYPE in fields(raw):
            self._fail_with(data)
            return b""
        return self._look_at(raw, data)

    def _look_at(self, raw: bytes, data: bytes) -> bytes:
        try:
            chunk = _CHUNK.decode(data)
        except msgspec.ValidationError:
            return self._pass_loosely(raw, data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            document = None if data.strip() == _DONE else strict_json(data)
            if document is None:
                self._end_with(data)
                return b""
            data = document
            try:
                chunk = _CHUNK.decode(data)
            except (msgspec.DecodeError, RecursionError):
                return self._pass_loosely(raw, data)
        if chunk.error != _ABSENT and is_something(chunk.error):
            self.fault = fault_of(self._mask(bytes(chunk.error)))
            return b""
        if not chunk.choices and is_error(data):
            self.fault = fault_of(self._mask(data))
            return b""
        self.events += 1
        withheld = self._note(chunk) and self.withholding and self._due and not chunk.choices
        if not self.opened and chunk.choices:
            self.opened = any(_carries(choice) for choice in chunk.choices)
        if self._accents is not None and any(needle in raw for needle in ACCENTED):
            return self._accents.mended(raw, data)
        return b"" if withheld else raw

    def _note(self, chunk: _Chunk) -> bool:
        """Keeps what the books want of an event; True when it told usage."""
        if self.model is None:
            self.model = chunk.model or None
        for choice in chunk.choices or ():
            if choice.finish_reason:
                self._finished.add(choice.index)
                if self.finish_reason is None or choice.index == 0:
                    self.finish_reason = choice.finish_reason
        usage = chunk.usage
        if usage == _NULL:
            self._due = True
        if chunk.x_groq is not None and usage in _NO_USAGE:
            usage = chunk.x_groq.usage
        if usage in _NO_USAGE:
            return False
        self.usage = read_usage(usage) or self.usage
        return True

    def _fail_with(self, data: bytes) -> None:
        """An event of the type "error", whatever its data are."""
        try:
            found = _ANYTHING.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = data.decode("utf-8", "replace")
        if isinstance(found, dict):
            found = found.get("error") or found
        self.fault = fault_of(self._mask(msgspec.json.encode(found)))

    def _end_with(self, data: bytes) -> None:
        """Data that is no JSON: the terminator, or garbage. Empty ones are a heartbeat, which no SDK can read."""
        data = data.strip()
        if not data:
            return
        if data != _DONE:
            self.fault = UpstreamFault("upstream_garbage", "The provider sent an event that is not JSON.", status=200)
        elif not self.events:
            self.fault = UpstreamFault("upstream_garbage", "The provider's answer is empty.", status=200)
        else:
            self.done = True

    def _pass_loosely(self, raw: bytes, data: bytes) -> bytes:
        """An event with other types than we know: passes when it is a JSON object, and counts as content."""
        try:
            found = _ANYTHING.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self._end_with(data)
            return b""
        if found.get("error"):
            self.fault = fault_of(self._mask(msgspec.json.encode(found["error"])))
            return b""
        self.events += 1
        self.opened = True
        return raw

    def _pass_unfinished(self, rest: bytes) -> bytes:
        """The end of a stream whose last event has no blank line, or of a body that never was a stream."""
        data = rest.strip() if rest.lstrip().startswith(_OBJECT_START) else data_of(rest)
        if data is None:
            return b""
        try:
            found = _ANYTHING.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if data.strip() == _DONE:
                self._end_with(data)
            return b""
        if data_of(rest) is not None:
            return self._pass(rest.rstrip(b"\r\n") + b"\n\n")
        if isinstance(found, dict) and found.get("error"):
            self.fault = fault_of(self._mask(msgspec.json.encode(found["error"])))
        return b""


def _is_one_line(data: bytes) -> bool:
    """Whether a read is exactly one event of one `data: {…}` line: most are, and need no cutting."""
    return (
        data.find(b"\n") == len(data) - 2
        and data.startswith(b"data: {")
        and data.endswith(b"\n\n")
        and b"\r" not in data
    )


def _carries(choice: _Choice) -> bool:
    """Whether a choice of an event holds anything but a role: text, a tool call, a refusal, reasoning, a finish."""
    if choice.finish_reason:
        return True
    return choice.delta is not None and any(
        name != "role" and is_something(value) for name, value in choice.delta.items()
    )
