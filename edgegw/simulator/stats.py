"""What the simulator counts: the ground truth that tests and load scripts compare a gateway's books with.

Pure; times are arguments (monotonic seconds, the same clock for all processes of a machine).
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

_KEPT = 100  # of the last requests and disconnects each
_BODY_BYTES_KEPT = 16 * 1024
_MODELS_KEPT = 1_000  # names come from clients; the rest is counted under OTHER
OTHER = "(other)"


@dataclass(slots=True)
class Seen:
    """A request as it arrived."""

    number: int
    path: str
    model: str
    headers: dict[str, str]
    body: bytes  # the beginning of it
    body_bytes: int

    def shown(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "path": self.path,
            "model": self.model,
            "headers": self.headers,
            "body": self.body.decode("utf-8", "replace"),
            "body_bytes": self.body_bytes,
        }


@dataclass(slots=True)
class Served:
    """What became of a request: a line of the log. `id` is what the reply's header says, `client_request_id` what the
    request's did. `whole`: all of a complete answer was written, and then the provider knows what it was asked for in
    tokens; otherwise `completion_tokens` is what was sent until it ended."""

    id: str
    client_request_id: str
    model: str
    stream: bool
    status: int
    prompt_tokens: int
    completion_tokens: int
    whole: bool


@dataclass(slots=True)
class Stats:
    """Counters since the start or the last reset. `open_*` and `connections` are what is going on now."""

    requests: int = 0
    refused: int = 0  # requests that a strict provider would not take
    completed: int = 0  # whole answers, written to the last byte
    cut: int = 0  # answers that ended early by our own doing
    prompt_tokens: int = 0
    completion_tokens: int = 0
    disconnected: int = 0
    connections: int = 0
    connections_accepted: int = 0
    open_requests: int = 0
    open_streams: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    open_by_model: Counter[str] = field(default_factory=Counter)
    most_by_model: Counter[str] = field(default_factory=Counter)  # that were open at once
    by_status: Counter[int] = field(default_factory=Counter)
    disconnects: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    last: deque[Seen] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def arrived(self, path: str, model: str, headers: dict[str, str], body: bytes) -> None:
        self.requests += 1
        self.by_model[self._kept(model)] += 1
        self.last.append(Seen(self.requests, path, model, headers, body[:_BODY_BYTES_KEPT], len(body)))

    def opened(self, model: str, stream: bool) -> None:
        """Work on a request begins; `model` is empty for one that names none."""
        self.open_requests += 1
        self.open_streams += stream
        if model:
            kept = self._kept(model)
            now = self.open_by_model[kept] = self.open_by_model[kept] + 1
            self.most_by_model[kept] = max(self.most_by_model[kept], now)

    def closed(self, model: str, stream: bool) -> None:
        self.open_requests -= 1
        self.open_streams -= stream
        if model:
            self.open_by_model[self._kept(model)] -= 1

    def _kept(self, model: str) -> str:
        return model if model in self.by_model or len(self.by_model) < _MODELS_KEPT else OTHER

    def client_left(self, model: str, tokens: int, now_s: float, last_write_s: float | None) -> None:
        """A client closed its connection before its answer was whole."""
        self.disconnected += 1
        since = None if last_write_s is None else round((now_s - last_write_s) * 1000, 3)
        self.disconnects.append(
            {"model": model, "tokens_sent": tokens, "after_last_write_ms": since, "at_monotonic_s": now_s}
        )

    def reset(self) -> None:
        """Counters to zero; what is open stays counted as open."""
        fresh = Stats(connections=self.connections, open_requests=self.open_requests, open_streams=self.open_streams)
        fresh.open_by_model = +self.open_by_model
        fresh.most_by_model = +self.open_by_model
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def shown(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "by_model": dict(self.by_model),
            "most_open_by_model": dict(self.most_by_model),
            "by_status": {str(status): count for status, count in self.by_status.items()},
            "refused": self.refused,
            "completed": self.completed,
            "cut": self.cut,
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "disconnects": {"count": self.disconnected, "last": list(self.disconnects)},
            "connections": {"open": self.connections, "accepted": self.connections_accepted},
            "open_requests": self.open_requests,
            "open_streams": self.open_streams,
        }
