"""What the simulated model says: a question in, tokens and tool calls out, the same for the same seed.

Pure; knows no dialect, no HTTP, no clock. `Question` is what either dialect reads from a request, `Answer` what either
writes. Texts are kept as the inside of JSON strings (escaped, without quotes), token by token, so that a plain reply
joins them and a stream sends them one by one without encoding anything again.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field

import msgspec

from edgegw.simulator.arguments import fitting

_CALL_TOOL = re.compile(r"call (the|both|all|every) tools?\b", re.IGNORECASE)
_REPEAT = "Repeat: "
_WORDS = re.compile(r"\s*\S+|\s+$")
_QUOTE_CHARS = 60  # of the prompt, quoted at the beginning of an answer
_SEARCHED_CHARS = 2_000  # the end of a long prompt is where it says what to do
_FRAGMENT_CHARS = 9  # of a tool call's arguments: small enough that most are streamed in several pieces
_CALLS_MAX = 8
_MASK_64 = (1 << 64) - 1

_SENTENCES = (
    "The short answer is yes, with two conditions that are easy to check.",
    "First, look at what the caller really needs and leave everything else out.",
    "A good summary names the problem, the cause and the next step.",
    "The numbers point in the same direction as the reports from last week.",
    "It helps to write the rule down once and to keep it in one place.",
    "Most of the delay comes from waiting, not from working.",
    "If the first attempt fails, wait a little and try another way.",
    "Nothing in the log suggests that data was lost.",
    "The customer asked for a refund and received a replacement instead.",
    "Please keep the receipt, since the warranty depends on it.",
    "There are three options, and the second one costs the least.",
    "A clear name saves more time than a long comment.",
    "The meeting was moved to Thursday because the room was taken.",
    "Small steps are faster than they look.",
    "When in doubt, measure it twice and cut it once.",
    "The weather will stay dry until the evening.",
)


class RefusalError(Exception):
    """The request is not one that the provider would take. `type` and `code` are the provider's own words."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code


@dataclass(slots=True)
class Tool:
    """A tool of the request; `schema` is its decoded JSON Schema."""

    name: str
    schema: object


@dataclass(slots=True)
class Question:
    """A request, read. `text` is the last thing the user said, `told` the last tool result when it came after that.
    `choice` is `auto`, `none`, `required` or the name of a tool after `tool:`."""

    model: str
    stream: bool
    text: str
    prompt_tokens: int
    max_tokens: int | None = None
    include_usage: bool = False
    stops: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    parallel: bool = True
    told: str | None = None
    images: int = 0


@dataclass(slots=True)
class ToolCall:
    """One call: `fragments` are the pieces of its JSON arguments, each escaped for a JSON string."""

    number: int
    name: str
    arguments: bytes  # JSON
    fragments: list[bytes]


@dataclass(slots=True)
class Answer:
    """What is said. `finish`: `stop`, `stop_sequence` (with `stop`), `length` or `tools`.
    `cached` and `written` are said to be parts of the prompt, `reasoning` of the answer."""

    tokens: list[bytes]
    finish: str
    prompt_tokens: int
    completion_tokens: int
    calls: list[ToolCall] = field(default_factory=list)
    stop: str | None = None
    cached: int = 0
    written: int = 0
    reasoning: int = 0


def mix(seed: int, number: int) -> int:
    """64 even bits from two numbers (the finaliser of splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return z ^ (z >> 31)


def dice(seed: int, number: int, throw: int) -> float:
    """The `throw`-th throw of request `number`, in [0, 1)."""
    return mix(mix(seed, number), throw) / (1 << 64)


def escaped(text: str) -> bytes:
    """The inside of a JSON string."""
    return msgspec.json.encode(text)[1:-1]


class Author:
    """Answers questions. Everything it says follows from the seed and the question."""

    __slots__ = ("_pool", "_seed", "_starts")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        sentences = sorted(_SENTENCES, key=lambda sentence: mix(seed, zlib.crc32(sentence.encode())))
        self._starts: list[int] = []
        self._pool: list[bytes] = []
        for sentence in sentences:
            self._starts.append(len(self._pool))
            self._pool += [escaped(word) for word in _WORDS.findall(" " + sentence)]

    def answer(self, question: Question, tokens: int) -> Answer:
        """`tokens` is the length of a text answer that nothing else bounds; max_tokens bounds texts, not tool calls."""
        if called := _called(question):
            calls = [_call(number, tool) for number, tool in enumerate(called)]
            # A call costs one token for its name and one for each piece of its arguments.
            spent = sum(1 + len(call.fragments) for call in calls)
            return Answer([], "tools", question.prompt_tokens, spent, calls)
        words, finish = self._words(question, tokens)
        stop = None
        if question.stops:
            words, stop = _stopped(words, question.stops)
            finish = "stop_sequence" if stop is not None else finish
        return Answer(words, finish, question.prompt_tokens, len(words), stop=stop)

    def _words(self, question: Question, tokens: int) -> tuple[list[bytes], str]:
        bound = question.max_tokens
        if question.told is None and question.text.startswith(_REPEAT):
            words = [escaped(word) for word in _WORDS.findall(question.text[len(_REPEAT) :])]
            return (words, "stop") if bound is None or len(words) <= bound else (words[:bound], "length")
        finish = "stop"
        if bound is not None and bound < tokens:
            tokens, finish = bound, "length"
        words = [escaped(word) for word in _WORDS.findall(_opening(question))[:tokens]]
        missing = tokens - len(words)
        pool = self._pool
        theme = zlib.crc32(question.text[-_SEARCHED_CHARS:].encode()) ^ self._seed
        start = self._starts[theme % len(self._starts)]
        while missing > 0:
            words += pool[start : start + missing]
            missing = tokens - len(words)
            start = 0
        if words and finish == "stop" and not words[-1].endswith(b"."):
            words[-1] = words[-1].rstrip(b",:") + b"."
        return words, finish


def _opening(question: Question) -> str:
    """The first words of an answer show what reached the model."""
    if question.told is not None:
        return f"The tool said: {_quote(question.told)}"
    images = "" if not question.images else f" I see {question.images} image{'s' if question.images > 1 else ''}."
    return f"You asked: {_quote(question.text)}{images}"


def _quote(text: str) -> str:
    cut = " ".join(text[: _QUOTE_CHARS * 2].split())
    if len(cut) > _QUOTE_CHARS:
        return cut[:_QUOTE_CHARS].rstrip() + "…"
    return cut if cut.endswith((".", "?", "!")) else cut + "."


def _stopped(words: list[bytes], stops: tuple[str, ...]) -> tuple[list[bytes], str | None]:
    """The words before the first stop sequence, and which it was."""
    text = msgspec.json.decode(b'"' + b"".join(words) + b'"', type=str)
    found = [(at, stop) for stop in stops if stop and (at := text.find(stop)) >= 0]
    if not found:
        return words, None
    at, stop = min(found)
    return [escaped(word) for word in _WORDS.findall(text[:at])], stop


def _called(question: Question) -> tuple[Tool, ...]:
    """The tools this question makes the model call: forced ones, else those the user asks for in so many words."""
    tools, choice = question.tools, question.choice
    if not tools or choice == "none":
        return ()
    if choice.startswith("tool:"):
        return tuple(tool for tool in tools if tool.name == choice[5:])
    asked = None if question.told is not None else _CALL_TOOL.search(question.text[-_SEARCHED_CHARS:])
    if asked is not None and asked[1].lower() != "the" and question.parallel:
        return tools[:_CALLS_MAX]
    return tools[:1] if asked is not None or choice == "required" else ()


def _call(number: int, tool: Tool) -> ToolCall:
    arguments = msgspec.json.encode(fitting(tool.schema))
    text = arguments.decode()
    pieces = [text[at : at + _FRAGMENT_CHARS] for at in range(0, len(text), _FRAGMENT_CHARS)]
    return ToolCall(number, tool.name, arguments, [escaped(piece) for piece in pieces])
