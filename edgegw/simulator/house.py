"""What the simulator answers to whom: paths, dialects, rules and counters put together, without a connection.

Pure: a request's parts in, a Scene out. `server.py` plays it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edgegw.simulator.chat_wire import ChatWire
from edgegw.simulator.messages_wire import MessagesWire
from edgegw.simulator.rules import STATUS_MEANS, WORDS, Asked, Behaviour, Rules, RulesError
from edgegw.simulator.scene import Scene, refusal, reply, stage
from edgegw.simulator.script import Author, RefusalError, dice
from edgegw.simulator.stats import OTHER, Stats
from edgegw.simulator.wire import Mark, Wire, mark

_MODELS = (
    "gpt-5",
    "gpt-5-mini",
    "claude-sonnet-4-5",
    "claude-haiku-4-5",
    "sim-429",
    "sim-500",
    "sim-cut-5",
    "sim-hang",
)
_CREATED_S = 1_760_000_000
_COUNTED_KEYS_MAX = 10_000  # models with `times`; names come from clients

Answerer = Callable[[bytes, dict[str, str]], Scene]


class House:
    """One simulated provider: its seed, rules, defaults and counters."""

    __slots__ = ("_author", "_base", "_counted", "_number", "_routes", "_rules", "_seed", "stats")

    def __init__(self, seed: int, rules: Rules, base: Behaviour) -> None:
        self._seed = seed
        self._rules = rules
        self._base = base
        self._author = Author(seed)
        self._number = 0
        self._counted: Counter[str] = Counter()
        self.stats = Stats()
        chat, messages = ChatWire(), MessagesWire()
        help_page = _help()
        self._routes: dict[bytes, dict[bytes, Answerer]] = {
            b"/v1/chat/completions": {b"POST": self._answers("/v1/chat/completions", chat)},
            b"/v1/messages": {b"POST": self._answers("/v1/messages", messages)},
            b"/v1/models": {b"GET": _models},
            b"/simulator/stats": {b"GET": lambda body, headers: _json(200, self.stats.shown())},
            b"/simulator/requests": {
                b"GET": lambda body, headers: _json(200, [seen.shown() for seen in self.stats.last])
            },
            b"/simulator/reset": {b"POST": self._reset},
            b"/simulator/help": {b"GET": lambda body, headers: Scene([help_page], [0], 200, whole=False)},
        }

    def answer(self, method: bytes, path: bytes, headers: dict[str, str], body: bytes) -> Scene:
        """The scene for one request; `path` without its query."""
        methods = self._routes.get(path)
        if methods is None:
            error = {"message": "Unknown request URL", "type": "invalid_request_error", "param": None, "code": None}
            return _json(404, {"error": error})
        answerer = methods.get(method)
        if answerer is None:
            return Scene([reply(405, b"allow: %b\r\n" % b", ".join(methods), b"")], [0], 405, whole=False)
        return answerer(body, headers)

    def _answers(self, path: str, wire: Wire) -> Answerer:
        def answerer(body: bytes, headers: dict[str, str]) -> Scene:
            self._number += 1
            stamp = mark(self._seed, self._number)
            scene = self._play(wire, path, headers, body, stamp)
            scene.id, scene.client_id = stamp.request_id, headers.get("x-client-request-id", "")
            self.stats.by_status[scene.status] += 1
            return scene

        return answerer

    def _play(self, wire: Wire, path: str, headers: dict[str, str], body: bytes, stamp: Mark) -> Scene:
        try:
            wire.authorize(headers)
            question = wire.read(body)
            behaviour = self._behaviour(Asked(question.model, path, question.stream, headers), stamp.number)
        except RefusalError as error:
            self.stats.refused += 1
            self.stats.arrived(path, _model_of(body), headers, body)
            return refusal(wire, error, stamp)
        self.stats.arrived(path, question.model, headers, body)
        return stage(wire, question, self._author.answer(question, behaviour.tokens), behaviour, stamp)

    def _behaviour(self, asked: Asked, number: int) -> Behaviour:
        try:
            return self._rules.choose(asked, self._base, lambda throw: dice(self._seed, number, throw), self._count)
        except RulesError as error:
            message = f"The model `{asked.model}` does not exist: {error}"
            kind = "not_found_error" if asked.path == "/v1/messages" else "invalid_request_error"
            raise RefusalError(message, status=404, type=kind, param="model", code="model_not_found") from None

    def _count(self, key: str) -> int:
        counted = self._counted
        if key not in counted and len(counted) >= _COUNTED_KEYS_MAX:
            counted.clear()
        counted[key] += 1
        return counted[key] - 1

    def _reset(self, body: bytes, headers: Mapping[str, str]) -> Scene:
        self.stats.reset()
        self._counted.clear()
        self._number = 0
        return _json(200, {"reset": True})


class _Named(msgspec.Struct):
    model: str = OTHER


def _model_of(body: bytes) -> str:
    """The model of a request that was refused, for the counters."""
    try:
        return msgspec.json.decode(body, type=_Named).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return OTHER


def _json(status: int, value: Any) -> Scene:
    return Scene([reply(status, b"", msgspec.json.encode(value))], [0], status, whole=False)


def _models(body: bytes, headers: Mapping[str, str]) -> Scene:
    """OpenAI's list, or Anthropic's for who sends anthropic-version."""
    if "anthropic-version" in headers:
        claudes = [name for name in _MODELS if not name.startswith("gpt")]
        data: list[dict[str, object]] = [{"type": "model", "id": name, "display_name": name} for name in claudes]
        return _json(200, {"data": data, "has_more": False, "first_id": claudes[0], "last_id": claudes[-1]})
    data = [{"id": name, "object": "model", "created": _CREATED_S, "owned_by": "simulator"} for name in _MODELS]
    return _json(200, {"object": "list", "data": data})


def _help() -> bytes:
    """The vocabulary of model names, from the same table that reads them."""
    lines = [
        "A model name that begins with sim- says how the request is answered: sim-WORD[-NUMBER]-WORD[-NUMBER]…",
        "Any other name gets a good answer. Words, with the number they take when none is given:",
        "",
        f"  {'400 … 599':<20}{STATUS_MEANS}",
    ]
    for name, word in WORDS.items():
        default = f"-{word.default:g}" if word.read is not None else ""
        lines.append(f"  {name + default:<20}{word.means}")
    lines += [
        "",
        "Prompts: 'call the tool' calls the first tool, 'call both tools' or 'call all tools' each of them;",
        "'Repeat: TEXT' answers TEXT. An API key that begins with 'bad' is refused.",
        "",
        "GET /simulator/stats, GET /simulator/requests (the last 100, as they arrived), POST /simulator/reset",
        "",
    ]
    return reply(200, b"", "\n".join(lines).encode(), "text/plain; charset=utf-8")
