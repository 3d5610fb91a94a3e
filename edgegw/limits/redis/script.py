"""The script that counts (reserve.lua): what can be asked of it, how that is written, and what its answers mean.

Pure: arguments and answers, no connection.
"""

from __future__ import annotations

import hashlib
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from edgegw.limits.bucket import MICROS_PER_S, PARTS, SLOT_WAIT_S
from edgegw.limits.meter import Measure, Shape

What = Literal["take", "give", "drain", "touch", "beat"]

_SHAPES = {"tpm": b"R", "rpm": b"R", "par": b"S", "day": b"D", "month": b"M"}
ANSWERS_PER_OPERATION = 3

# What Redis says when it does not do what it was asked, by its first word, also where an older one wraps it in the
# words "Error running script". None of these was carried out.
_REFUSALS = (
    *("NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "CROSSSLOT", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "LOADING", "BUSY"),
    *("OOM", "MISCONF", "NOREPLICAS", "NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "UNKILLABLE"),
)
_REFUSAL = re.compile(rf"(?:^|[ :]-?)({'|'.join(_REFUSALS)})\b")


class Answer(NamedTuple):
    """Of one operation, as the script gives it; `rest` is parts of a token or microseconds of a window."""

    granted: int
    level: int
    rest: int


@dataclass(slots=True)
class Tally:
    """Of the calls of the script since the start, to all servers together."""

    calls: int = 0
    operations: int = 0
    answered_s: float = 0.0  # sum over the calls that were answered
    failures: dict[str, int] = field(default_factory=dict)  # by kind: `timeout`, `connection`, a refusal's first word
    absences: int = 0

    def failed(self, kind: str) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + 1


@dataclass(slots=True)
class Operation:
    """One line of a call. `a` and `b` as in the script: need and want for a take, else `a` alone."""

    what: What
    key: bytes
    shape: bytes = b"-"
    limit: int = 0
    a: int = 0
    b: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Script:
    text: bytes
    sha: bytes

    def by_name(self, replica: bytes, operations: Sequence[Operation]) -> tuple[bytes | int | str, ...]:
        """The command as it usually is; NOSCRIPT when the server has not seen the script, or has lost it."""
        return (b"EVALSHA", self.sha, *_arguments(replica, operations))

    def in_full(self, replica: bytes, operations: Sequence[Operation]) -> tuple[bytes | int | str, ...]:
        """The same, with the script itself."""
        return (b"EVAL", self.text, *_arguments(replica, operations))


def shipped() -> Script:
    """The script that comes with the program."""
    text = pkgutil.get_data(__package__ or "", "reserve.lua")
    if text is None:
        raise FileNotFoundError("reserve.lua is missing from the installation")
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


def shape_of(measure: Measure) -> bytes:
    """The script's letter for how a measure is counted."""
    return _SHAPES[measure.code]


def probe(tag: bytes, other: bytes) -> list[Operation]:
    """Operations that write all that we ever write, on keys that begin with these tags and expire within two minutes.
    Two tags of different slots show that it is not a cluster."""
    return [Operation("beat", tag + b"probe"), Operation("give", other + b"try", b"R", limit=1_000, a=-1)]


def answers(reply: object, operations: int) -> list[Answer]:
    """One answer per operation. Raises ValueError for a reply that is none."""
    if not isinstance(reply, list) or len(reply) != ANSWERS_PER_OPERATION * operations:
        raise ValueError(f"not an answer to {operations} operations: {reply!r:.200}")
    return [Answer(*reply[at : at + ANSWERS_PER_OPERATION]) for at in range(0, len(reply), ANSWERS_PER_OPERATION)]


def refusal(message: str) -> str:
    """The kind of an error that Redis replied, in small letters; `other` for what is not on our list."""
    if "user executing the script can't" in message:  # may not do what stands in it; newer ones say NOPERM
        return "noperm"
    found = _REFUSAL.search(message)
    return found[1].lower() if found else "other"


def room_in_s(shape: Shape, need: int, limit: int, answer: Answer) -> float | None:
    """After an answer, in how many seconds `need` would be there if nobody took any; None when never."""
    if need <= answer.level:
        return 0.0
    if need > limit or limit == 0:
        return None
    if shape is Shape.REFILLS:
        missing = (need - answer.level) * PARTS - answer.rest
        return -(-missing // limit) / MICROS_PER_S
    return SLOT_WAIT_S if shape is Shape.SLOTS else answer.rest / MICROS_PER_S


def _arguments(replica: bytes, operations: Sequence[Operation]) -> list[bytes | int | str]:
    arguments: list[bytes | int | str] = [len(operations)]
    arguments += [operation.key for operation in operations]
    arguments.append(replica)
    for one in operations:
        arguments += (one.what, one.shape, one.limit, one.a, one.b, one.held)
    return arguments
