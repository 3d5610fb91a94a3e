"""What the two dialects of the simulator have in common: the contract `Wire`, request marks, and reading JSON strictly.

Pure. A wire turns bytes into a Question and an Answer into bytes; it knows nothing of faults, pace or connections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from edgegw.simulator.script import Answer, Question, RefusalError, Tool, mix

_EPOCH_S = 1_760_000_000  # where `created` starts counting: replies depend on the seed and the order, not on the hour
_AT = re.compile(r" - at `\$\.?(.*?)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")

T = TypeVar("T")


@dataclass(slots=True)
class Mark:
    """What makes one reply differ from the next: its number and hex digits made from it and the seed."""

    number: int
    digits: str

    @property
    def created_s(self) -> int:
        return _EPOCH_S + self.number

    @property
    def request_id(self) -> str:
        """What the provider calls this request, in a header of its reply."""
        return f"req_{self.digits}"


def mark(seed: int, number: int) -> Mark:
    return Mark(number, f"{mix(seed, number):016x}")


class Wire(Protocol):
    """One dialect. `events` gives whole SSE events and, a byte for each of them, how many tokens it carries."""

    def authorize(self, headers: dict[str, str]) -> None:
        """RefusalError when the request's headers would be refused."""

    def read(self, body: bytes) -> Question:
        """RefusalError when the request would be refused."""

    def fields(self, mark: Mark, question: Question) -> bytes:
        """Header lines that every answer carries, each with its CR LF."""

    def plain(self, question: Question, answer: Answer, mark: Mark, usage: bool) -> bytes: ...

    def events(self, question: Question, answer: Answer, mark: Mark, usage: bool) -> tuple[list[bytes], bytes]: ...

    def error_body(self, refusal: RefusalError, mark: Mark) -> bytes: ...

    def error_event(self, mark: Mark) -> bytes: ...

    def failure(self, status: int, quota: bool) -> RefusalError:
        """The error this provider sends with a status."""


def decode(body: bytes | msgspec.Raw, type: type[T], where: str = "") -> T:
    """JSON as `type`; RefusalError with the path of what is wrong, below `where`."""
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _AT.search(message)
        path = found[1] if found else ""
        missing = _MISSING.search(message)
        name = where + path  # the path of a list begins with its index
        if missing:
            name = f"{name}.{missing[1]}" if name else missing[1]
            raise RefusalError(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            ) from None
        said = _AT.sub("", message)
        raise RefusalError(f"Invalid type for '{name}': {said}.", param=name or None, code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusalError(f"We could not parse the JSON body of your request: {error}") from None


def schema_of(raw: msgspec.Raw) -> object:
    """A tool's JSON Schema, decoded; None when the tool has none."""
    return msgspec.json.decode(raw)


def choice_of(name: str, tools: tuple[Tool, ...], param: str) -> str:
    """`tool:NAME` for a forced tool; RefusalError when there is no such tool."""
    if all(tool.name != name for tool in tools):
        raise RefusalError(f"Tool choice '{name}' not found in 'tools' parameter.", param=param)
    return f"tool:{name}"
