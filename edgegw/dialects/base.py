"""What every dialect gives and takes: the contracts between dialects, providers and the relay.

Nothing here knows a wire format. All bytes, no I/O: who reads sockets feeds a `StreamReader`, who writes them sends
what it gives back.

The values are msgspec's structs: every request makes each of them once, and they cost a third of a dataclass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec

from edgegw.errors import UpstreamFault
from edgegw.exchange import Usage


class Ask(msgspec.Struct, gc=False):
    """A client's request, read. Named fields are those we act on; everything else stays raw.

    `model` is None when the client left it to the route. `max_output_tokens` is the client's own bound, None without
    one; `choices` how many answers it wants. `fields` are the top-level fields of `body` in their order, verbatim.
    `only_labels`: its metadata is known to hold our labels and nothing of the client's own.
    """

    dialect: str
    model: str | None
    stream: bool
    include_usage: bool
    tenant: str | None
    use_case: str | None
    max_output_tokens: int | None
    choices: int
    fields: dict[str, msgspec.Raw]
    body: bytes
    only_labels: bool = False


class Call(msgspec.Struct, gc=False):
    """A whole HTTP/1.1 request, head and body, ready for one write.

    `dropped` names the request fields that the target's dialect cannot carry and that change no meaning (hints). What
    would change the meaning is refused with a 400 instead.
    """

    data: bytes
    dropped: tuple[str, ...] = ()


class PlainReply(msgspec.Struct, gc=False):
    """An answer that was not streamed. `body` is what the client gets, in its own dialect."""

    body: bytes
    usage: Usage | None
    finish_reason: str | None
    model: str | None


class StreamReader(Protocol):
    """Reads one attempt's streamed reply: upstream body bytes in, client body bytes out. A pure state machine.

    `opened`: an event that carries content (text, tool call, refusal, reasoning, audio, or a finish) has been seen.
    `done`: the reply is complete. `fault`: an error event, garbage, or a truncation found by `end`; nothing comes out
    after it. `last`: the client's terminator, to be sent when the books are closed, never part of what `feed` gives.
    `transparent`: events without any of `needles` pass untouched. `withholding`: the client did not ask for usage, so
    the usage-only event is kept from it. `at_rest`: between two events, nothing held back. `events`: so far, about as
    many as the client has got. `usage` is `estimated` while only a part of it was told.
    """

    opened: bool
    done: bool
    fault: UpstreamFault | None
    usage: Usage | None
    finish_reason: str | None
    model: str | None
    events: int
    transparent: bool
    needles: tuple[bytes, ...]
    withholding: bool

    @property
    def last(self) -> bytes: ...

    @property
    def at_rest(self) -> bool: ...

    def feed(self, data: bytes) -> bytes:
        """What the client gets for `data`: whole events only; b"" while one is incomplete, and after `done` or a fault.

        Of a transparent stream the very object `data` comes back when it holds exactly one whole event that passes.
        """

    def end(self) -> bytes:
        """The upstream ended cleanly: completes the reply (sets `done`), or sets `fault`. Gives the last bytes."""

    def recall(self, raw_events: Iterable[bytes]) -> None:
        """Folds in usage, finish reason and model of raw events that went past `feed`, oldest first."""
