"""Which targets a request goes to: `use_case`, else `model`, else the default, as one Route.

Pure: built once from values of the settings, then asked once per request. It knows nothing of providers but their
names, of the settings but the shape below, and of clients but the two strings they send, which may hold anything.

How a model name resolves: an alias, exactly; the pattern with the most literal characters; `provider/model` of a
configured provider; a bare name that some target carries. A name that is none of these is a 404 that lists what exists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Protocol

from edgegw.errors import GatewayError
from edgegw.exchange import RetryPolicy, Route, Target
from edgegw.pattern import Pattern

NAME_CHARS_MAX = 512  # of a model that no alias spells out: fine-tunes and ARNs stay under 200, paths under 500
FOUND_MAX = 1024  # routes remembered for names found by pattern or provider: clients choose these names, so a bound
LISTED_MAX = 20  # models named in an error
SHOWN_CHARS_MAX = 80  # of a client's own word repeated in an error
GUESSABLE_CHARS_MAX = 64  # did-you-mean is quadratic in a name's length …
GUESSED_AMONG_MAX = 50  # … and linear in the names compared: together at most half a millisecond for a client's typo
GUESS_CHARS_APART = 4  # names further apart in length are not each other's typos
HEADER_CHARS_MAX = 200  # of a route's name, which travels in x-edgegw-route


class Entry(Protocol):
    """One entry of `use_cases`, `models` or `default`: targets written `provider/model`."""

    @property
    def targets(self) -> tuple[str, ...]: ...

    @property
    def retry(self) -> RetryPolicy: ...


class Router:
    """Turns what a request asks for into a Route. Immutable but for a bounded memory of names it has found."""

    def __init__(
        self,
        use_cases: Mapping[str, Entry],
        models: Mapping[str, Entry],
        default: Entry | None,
        providers: Collection[str],
    ) -> None:
        aliases = {name: entry for name, entry in models.items() if "*" not in name}
        patterns = [_Pattern(name, entry) for name, entry in models.items() if "*" in name]
        # sorted() is stable: patterns with as many literal characters stay in the order of the file.
        self._patterns = sorted(patterns, key=lambda pattern: -pattern.literals)
        self._providers = frozenset(providers)
        self._use_cases = {name: _route(f"use_case:{name}", entry) for name, entry in use_cases.items()}
        self._models = {name: _route(f"model:{name}", entry) for name, entry in aliases.items()}
        self._default = None if default is None else _route("default", default)
        entries = [*use_cases.values(), *models.values(), *([] if default is None else [default])]
        targets = list(_fixed_targets(entries))
        self._carried: dict[str, Target] = {}
        for target in targets:
            self._carried.setdefault(target.model, target)
        self._listed = list(dict.fromkeys([*aliases, *map(str, targets)]))
        self._guesses = [*self._listed, *self._carried]
        self._found: dict[str, Route] = {}
        # What targets spell out is known now, so that no client's odd names can push it out of the memory.
        for name in (*map(str, targets), *self._carried):
            if name not in self._models and (route := self._discover(name)) is not None:
                self._models[name] = route

    def resolve(self, use_case: str | None, model: str | None) -> Route:
        """The route of a request. Raises GatewayError `model_not_found` (404) for a model nobody has, and
        `missing_parameter` (400) when neither the request nor the settings name anything."""
        if use_case is not None:
            route = self._use_cases.get(use_case)
            if route is not None:
                return route
        if model is not None:
            route = self._models.get(model) or self._found.get(model)
            return route if route is not None else self._find(model)
        if self._default is not None:
            return self._default
        raise self._nothing_asked(use_case)

    def models(self) -> list[str]:
        """What `GET /v1/models` lists: aliases, then every `provider/model` that a target spells out."""
        return self._listed.copy()

    def _find(self, model: str) -> Route:
        route = self._discover(model)
        if route is None:
            raise self._no_such_model(model)
        if len(self._found) >= FOUND_MAX:
            del self._found[next(iter(self._found))]
        self._found[model] = route
        return route

    def _discover(self, name: str) -> Route | None:
        # Control characters, lone surrogates and novels are nobody's model; they must not reach a provider or a header.
        if not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
            return None
        for pattern in self._patterns:
            if pattern.fits(name):
                return pattern.route(name)
        provider, _, model = name.partition("/")
        target = Target(provider, model) if model and provider in self._providers else self._carried.get(name)
        return None if target is None else Route(_header_safe(f"target:{target}"), (target,))

    def _no_such_model(self, model: str) -> GatewayError:
        message = f"The model `{shown(model)}` does not exist here."
        if len(model) <= GUESSABLE_CHARS_MAX:
            near = [name for name in self._guesses if abs(len(name) - len(model)) <= GUESS_CHARS_APART]
            for guess in get_close_matches(model, near[:GUESSED_AMONG_MAX], n=1):
                message += f" Did you mean `{shown(guess)}`?"
        patterns = [pattern.text for pattern in self._patterns]
        return GatewayError("model_not_found", f"{message} {listing('Models', self._listed + patterns)}", param="model")

    def _nothing_asked(self, use_case: str | None) -> GatewayError:
        message = "The request names no model, and there is no default route."
        if use_case is not None:
            message = f"The use case `{shown(use_case)}` does not exist here. {message}"
            message += f" {listing('Use cases', list(self._use_cases))}"
        return GatewayError("missing_parameter", f"{message} {listing('Models', self._listed)}", param="model")


class _Pattern(Pattern):
    """A model entry with `*` in its name. A `*` in a target stands for the whole name that was asked for."""

    __slots__ = ("_retry", "_route_name", "_targets")

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name)
        self._targets = tuple(map(_target, entry.targets))
        self._retry = entry.retry
        self._route_name = _header_safe(f"pattern:{name}")

    def route(self, name: str) -> Route:
        targets = (Target(target.provider, target.model.replace("*", name)) for target in self._targets)
        return Route(self._route_name, tuple(targets), self._retry)


def _target(written: str) -> Target:
    provider, _, model = written.partition("/")
    return Target(provider, model)


def _route(name: str, entry: Entry) -> Route:
    return Route(_header_safe(name), tuple(map(_target, entry.targets)), entry.retry)


def _fixed_targets(entries: Iterable[Entry]) -> Iterator[Target]:
    return (_target(written) for entry in entries for written in entry.targets if "*" not in written)


def _header_safe(name: str) -> str:
    """Visible ASCII for a header: anything else as the percent-escapes of its UTF-8, the end cut off when too long."""
    if not (name.isascii() and name.isprintable() and " " not in name):
        octets = name.encode("utf-8", "replace")
        name = "".join(chr(octet) if 0x21 <= octet <= 0x7E else f"%{octet:02X}" for octet in octets)
    return name[:HEADER_CHARS_MAX]


def shown(word: str) -> str:
    """A client's word, fit to be repeated to it and to be logged."""
    cut = word[:SHOWN_CHARS_MAX]
    return "".join(char if char.isprintable() else "?" for char in cut) + ("…" if len(word) > SHOWN_CHARS_MAX else "")


def listing(title: str, names: list[str]) -> str:
    if not names:
        return f"{title}: none."
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return f"{title}: {', '.join(map(shown, names[:LISTED_MAX]))}{more}."
