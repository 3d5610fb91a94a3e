"""What a simulated request gets: its pace, its length and its fault, from the model's name and a list of rules.

Pure: knows no bytes, no sockets, no clock. Two sources say how to behave, and both write the same words:

- the model's name: `sim-429-after-3`, `sim-cut-5`, `sim-tokens-200-slow-20ms` (WORDS is the whole vocabulary);
- a list of rules (`Rules.build`), of which the first that matches is taken.

Rules are laid over the defaults first, the words of the name over both.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

_NAMES_REMEMBERED = 1_000  # model names come from clients; the cache must not grow with them
_TOKENS_MAX = 100_000
_SECONDS_MAX = 3_600.0


class Fault(IntEnum):
    """What goes wrong. Those that take a number of tokens do it after `Behaviour.after` of them."""

    NONE = 0
    STATUS = 1  # an error status with the body the real provider sends
    QUOTA = 2  # 429 that no retry will cure
    HANG = 3  # no answer, ever
    STALL = 4  # silence in the middle
    CUT = 5  # the connection is closed in the middle
    TRUNCATE = 6  # HTTP ends cleanly, the answer does not
    RESET = 7  # TCP reset
    ERROR_EVENT = 8  # an error inside a 200
    GARBAGE = 9  # something that is not JSON where JSON should be
    HTML = 10  # a proxy's error page
    EMPTY = 11  # 200 and nothing
    REDIRECT = 12  # somewhere else
    NOISE = 13  # not HTTP at all


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one request is answered. `times`: only so many requests get the fault, later ones are answered well."""

    latency_s: float = 0.0
    pace_s: float = 0.0
    tokens: int = 24
    fault: Fault = Fault.NONE
    after: int = 0
    status: int = 200
    retry_after_s: float | None = None
    times: int | None = None
    usage: bool = True  # False: the provider does not say what was used
    cached: int = 0  # of the prompt's tokens, said to be read from a cache
    written: int = 0  # … and put into one
    reasoning: int = 0  # of the answer's tokens, said to be reasoning
    drip_bytes: int = 0  # > 0: bytes leave in pieces of this size, wherever that cuts
    close: bool = False  # connection: close after the reply

    @property
    def harmless(self) -> Behaviour:
        return replace(self, fault=Fault.NONE, status=200, retry_after_s=None, times=None)


class RulesError(ValueError):
    """A word, a rule or a value nobody understands; the message says where."""


def seconds(text: object) -> float:
    """`50ms`, `2s`, `1m`, or a bare number of seconds."""
    found = _DURATION.fullmatch(str(text).strip())
    if found is None or isinstance(text, bool):
        raise RulesError(f"not a duration (50ms, 2s, 1m): {text!r}")
    value = float(found[1]) * _UNITS_S[found[2] or "s"]
    if value > _SECONDS_MAX:
        raise RulesError(f"a duration is at most {_SECONDS_MAX:.0f}s: {text!r}")
    return value


def _count(text: object) -> int:
    if isinstance(text, bool) or not _DIGITS.fullmatch(str(text)):
        raise RulesError(f"not a whole number: {text!r}")
    if (value := int(str(text))) > _TOKENS_MAX:
        raise RulesError(f"a number is at most {_TOKENS_MAX}: {text!r}")
    return value


def _status(text: object) -> int:
    if not 400 <= (value := _count(text)) <= 599:
        raise RulesError(f"not an error status (400 to 599): {text!r}")
    return value


_DIGITS = re.compile(r"[0-9]{1,9}")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0}

Changes = dict[str, Any]  # fields of Behaviour and their new values


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a model name. `change` makes the changes of its argument; `default` stands in for a missing one;
    a word without `read` takes none."""

    means: str
    change: Callable[[Any], Changes]
    read: Callable[[object], Any] | None = None
    default: Any = None


def _fault(fault: Fault, means: str, default: int | None = None, status: int = 200) -> Word:
    """A fault; with a default it takes a number of tokens."""
    if default is None:
        return Word(means, lambda _: {"fault": fault, "status": status})
    return Word(means, lambda after: {"fault": fault, "after": after, "status": status}, _count, default)


WORDS: dict[str, Word] = {
    "fail": Word(
        "the first N requests for this model get a 500, later ones an answer",
        lambda times: {"fault": Fault.STATUS, "status": 500, "times": times},
        _count,
        1,
    ),
    "times": Word("the fault hits only the first N requests for this model", lambda n: {"times": n}, _count, 1),
    "after": Word("Retry-After of the error", lambda s: {"retry_after_s": s}, seconds, 1.0),
    "quota": _fault(Fault.QUOTA, "429 insufficient_quota, which no retry cures", status=429),
    "hang": _fault(Fault.HANG, "takes the request and never answers"),
    "stall": _fault(Fault.STALL, "goes silent after N tokens", 3),
    "cut": _fault(Fault.CUT, "closes the connection after N tokens", 5),
    "truncate": _fault(Fault.TRUNCATE, "ends the HTTP message after N tokens, without finish or terminator", 5),
    "reset": _fault(Fault.RESET, "resets the connection after N tokens; 0: before any byte", 0),
    "error-event": _fault(Fault.ERROR_EVENT, "an error event inside a 200, after N tokens", 0),
    "garbage": _fault(Fault.GARBAGE, "an event that is not JSON after N tokens (plain: half a JSON body)", 0),
    "html": Word("a proxy's HTML page with this status", lambda s: {"fault": Fault.HTML, "status": s}, _status, 502),
    "empty": _fault(Fault.EMPTY, "200 with no body at all"),
    "redirect": _fault(Fault.REDIRECT, "302 to another place", status=302),
    "noise": _fault(Fault.NOISE, "bytes that are not HTTP"),
    "slow": Word("pause between tokens", lambda s: {"pace_s": s}, seconds, 0.2),
    "latency": Word("pause before the answer", lambda s: {"latency_s": s}, seconds, 1.0),
    "tokens": Word("length of the answer, still bounded by max_tokens", lambda n: {"tokens": n}, _count, 24),
    "drip": Word("the bytes leave in pieces of N, wherever that cuts", lambda n: {"drip_bytes": n}, _count, 7),
    "cached": Word("N of the prompt's tokens are said to come from a cache", lambda n: {"cached": n}, _count, 10),
    "written": Word("N of the prompt's tokens are said to go into a cache", lambda n: {"written": n}, _count, 10),
    "reasoning": Word("N of the answer's tokens are said to be reasoning", lambda n: {"reasoning": n}, _count, 10),
    "nousage": Word("says nothing about usage", lambda _: {"usage": False}),
    "close": Word("connection: close after the reply", lambda _: {"close": True}),
}
STATUS_MEANS = "that error status, with the body the real provider sends"


def changes(words: str) -> Changes:
    """The changes that `429-after-3`, `cut-5`, `tokens-200-slow-20ms` ask for; RulesError on an unknown word."""
    out: Changes = {}
    parts = words.split("-")
    at = 0
    while at < len(parts):
        part = parts[at]
        at += 1
        if len(part) == 3 and part.isdigit():
            out |= {"fault": Fault.STATUS, "status": _status(part)}
            continue
        if at < len(parts) and f"{part}-{parts[at]}" in WORDS:
            part = f"{part}-{parts[at]}"
            at += 1
        word = WORDS.get(part)
        if word is None:
            raise RulesError(f"no such word: {part!r}; there are a status and {', '.join(WORDS)}")
        value = word.default
        if word.read is not None and at < len(parts) and parts[at][:1].isdigit() and not _is_status(parts[at], part):
            value = word.read(parts[at])
            at += 1
        out |= word.change(value)
    return out


def _is_status(part: str, word: str) -> bool:
    """`sim-nousage-429` means a status; `sim-tokens-429` means a length. Only words with a number keep theirs."""
    return WORDS[word].read is None and len(part) == 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What a rule may look at. Header names are lower-case."""

    model: str
    path: str
    stream: bool
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a rules file: all of `match` must hold, then the dice decide, then `change` applies."""

    model: str
    path: str
    stream: bool | None
    headers: tuple[tuple[str, str], ...]
    probability: float
    times: int | None
    change: Changes

    def matches(self, asked: Asked) -> bool:
        return (
            fnmatch.fnmatchcase(asked.model, self.model)
            and fnmatch.fnmatchcase(asked.path, self.path)
            and (self.stream is None or self.stream is asked.stream)
            and all(fnmatch.fnmatchcase(asked.headers.get(name, ""), glob) for name, glob in self.headers)
        )


class Rules:
    """The rules of a file, in order, and the words of model names, remembered once read."""

    __slots__ = ("_names", "_rules")

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self._rules = rules
        self._names: dict[str, Changes] = {}

    @classmethod
    def build(cls, entries: object) -> Rules:
        """From a decoded list of mappings; RulesError names the entry and the key at fault."""
        if entries is None:
            return cls()
        if not isinstance(entries, list):
            raise RulesError("a rules file is a list of rules")
        return cls(tuple(_rule(number, entry) for number, entry in enumerate(entries, 1)))

    def choose(
        self, asked: Asked, base: Behaviour, dice: Callable[[int], float], count: Callable[[str], int]
    ) -> Behaviour:
        """How to answer. `dice(k)` is the k-th throw of this request, in [0, 1). `count(key)` says how often it was
        called with that key before, and counts. RulesError: the model's name has a word that nobody knows."""
        chosen = base
        for number, rule in enumerate(self._rules):
            if not rule.matches(asked) or dice(number) >= rule.probability:
                continue
            if rule.times is not None and count(f"rule {number}") >= rule.times:
                continue
            chosen = replace(base, **rule.change)
            break
        named = self._changes_of(asked.model)
        if not named:
            return chosen
        chosen = replace(chosen, **named)
        if chosen.times is not None and count(f"model {asked.model}") >= chosen.times:
            return chosen.harmless
        return chosen

    def _changes_of(self, model: str) -> Changes:
        if not model.startswith("sim-"):
            return {}
        known = self._names.get(model)
        if known is None:
            known = changes(model[4:])
            if len(self._names) < _NAMES_REMEMBERED:
                self._names[model] = known
        return known


def _glob(value: object) -> str:
    if not isinstance(value, str):
        raise RulesError(f"not a pattern: {value!r}")
    return value


def _probability(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RulesError(f"not a probability (0 to 1): {value!r}")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise RulesError(f"not true or false: {value!r}")
    return value


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise RulesError("header is a mapping of names to patterns")
    return tuple((str(name).lower(), _glob(glob)) for name, glob in value.items())


# What a rule may say: key -> changes of Behaviour.
_SAYS: dict[str, Callable[[object], Changes]] = {
    "fault": lambda value: changes(str(value)),
    "status": lambda value: {"fault": Fault.STATUS, "status": _status(value)},
    "retry_after": lambda value: {"retry_after_s": seconds(value)},
    "latency": lambda value: {"latency_s": seconds(value)},
    "pace": lambda value: {"pace_s": seconds(value)},
    "tokens": lambda value: {"tokens": _count(value)},
}
# What it may match on, and what else it may hold: key -> reader of the value.
_MATCHES: dict[str, Callable[[object], Any]] = {"model": _glob, "path": _glob, "stream": _flag, "header": _headers}
_HOLDS: dict[str, Callable[[object], Any]] = {"probability": _probability, "times": _count}


def _rule(number: int, entry: object) -> Rule:
    def read(where: str, table: Mapping[str, Callable[[object], Any]], values: Mapping[str, object]) -> dict[str, Any]:
        out = {}
        for key in values.keys() & table.keys():
            try:
                out[key] = table[key](values[key])
            except RulesError as error:
                raise RulesError(f"rule {number}, {where}{key}: {error}") from None
        return out

    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        raise RulesError(f"rule {number}: not a mapping")
    match = entry.get("match") or {}
    if not isinstance(match, dict):
        raise RulesError(f"rule {number}, match: not a mapping")
    known = [*_SAYS, *_HOLDS, "match"]
    for key in [*(k for k in entry if k not in known), *(k for k in match if k not in _MATCHES)]:
        raise RulesError(f"rule {number}: no such key: {key!r}; there are {', '.join([*known, *_MATCHES])}")
    says = read("", _SAYS, entry)
    holds = read("", _HOLDS, entry)
    when = read("match.", _MATCHES, match)
    change: Changes = {}
    for key in _SAYS:
        change |= says.get(key, {})
    if "fault" in says:  # a status beside a fault only sets its status: an html page with a 503
        change["fault"] = says["fault"].get("fault", change.get("fault", Fault.NONE))
    times = holds.get("times", change.pop("times", None))
    return Rule(
        when.get("model", "*"),
        when.get("path", "*"),
        when.get("stream"),
        when.get("header", ()),
        holds.get("probability", 1.0),
        times,
        change,
    )
