"""The environment as a document: what is set when there is no file, and what overrides a file.

One table of variables. Their texts go through the same fields and checks as those of a file; their mistakes carry the
name of the variable. An empty variable counts as unset, because that is what an unfilled `.env` leaves behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from edgegw.settings.mistakes import Mistake, NoProviderError
from edgegw.settings.model import Address, ServerSettings
from edgegw.settings.tree import Entry, MappingNode, Node, Place, Scalar, SequenceNode

SOURCE = "environment"


class Variable(Struct, frozen=True):
    """`name` sets the field at `path`, or one `part` of the address that stands there. `beside_a_file`: whether it
    counts when there is a file: never of its own, where the file says nothing, or whatever the file says."""

    name: str
    path: tuple[str, ...]
    part: Literal["host", "port"] | None = None
    beside_a_file: Literal["ignored", "fills", "overrides"] = "ignored"


VARIABLES = (
    Variable("EDGEGW_HOST", ("server", "listen"), "host", "overrides"),
    Variable("PORT", ("server", "listen"), "port", "overrides"),
    Variable("EDGEGW_ADMIN_HOST", ("server", "admin"), "host", "overrides"),
    Variable("EDGEGW_ADMIN_PORT", ("server", "admin"), "port", "overrides"),
    Variable("EDGEGW_WORKERS", ("server", "workers")),
    Variable("EDGEGW_STATE_DIR", ("server", "state_dir"), beside_a_file="overrides"),
    Variable("EDGEGW_AUTH", ("auth",), beside_a_file="fills"),
    Variable("EDGEGW_ALLOW_UNAUTHENTICATED", ("server", "allow_unauthenticated"), beside_a_file="fills"),
    Variable("TOKENS_PER_MINUTE", ("limits", "tokens_per_minute")),
    Variable("DATABASE_URL", ("storage", "database_url")),
    Variable("REDIS_URL", ("storage", "redis_url")),
)


class KnownProvider(Struct, frozen=True):
    """A provider that its key alone brings in. `patterns` of model names go to it, and the default to `model`."""

    name: str
    key: str
    base_url: str
    model: str
    patterns: tuple[str, ...]


PROVIDERS = (
    KnownProvider("openai", "OPENAI_API_KEY", "OPENAI_BASE_URL", "gpt-5-mini", ("gpt-*", "o1*", "o3*", "o4*")),
    KnownProvider("anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "claude-haiku-4-5", ("claude-*",)),
)

_NOWHERE = Place(SOURCE)
_ADVICE = (
    "no provider: set OPENAI_API_KEY or ANTHROPIC_API_KEY, or describe your providers in edgegw.yaml; "
    "`edgegw demo` needs neither"
)


def document(environ: Mapping[str, str]) -> MappingNode:
    """All settings from the environment alone. Raises NoProviderError when it holds no provider's key."""
    present = [provider for provider in PROVIDERS if environ.get(provider.key)]
    if not present:
        raise NoProviderError([Mistake(SOURCE, 0, 0, "", _ADVICE)])
    models = {pattern: _route(f"{each.name}/*") for each in present for pattern in each.patterns}
    root = _mapping(
        {
            "version": _constant("1"),
            "providers": _mapping({each.name: _provider(each, environ) for each in present}),
            "models": _mapping(models),
            "default": _route(*(f"{each.name}/{each.model}" for each in present)),
        }
    )
    return _with(root, VARIABLES, environ)


def admin_address(environ: Mapping[str, str]) -> Address:
    """Where the admin port is as far as the variables say, for who cannot read the settings."""
    default, port = ServerSettings().admin, environ.get("EDGEGW_ADMIN_PORT", "")
    return Address(environ.get("EDGEGW_ADMIN_HOST") or default.host, int(port) if port.isdecimal() else default.port)


def overridden(root: MappingNode, environ: Mapping[str, str]) -> MappingNode:
    """The document of a file, with the fields that a deployment may set from outside."""
    counting = (
        variable
        for variable in VARIABLES
        if variable.beside_a_file == "overrides"
        or (variable.beside_a_file == "fills" and not _is_said(root, variable.path))
    )
    return _with(root, tuple(counting), environ)


def _is_said(root: MappingNode, path: tuple[str, ...]) -> bool:
    node: Node | None = root
    for key in path:
        node = node.get(key) if isinstance(node, MappingNode) else None
    return node is not None and not _is_null(node)


def _with(root: MappingNode, variables: tuple[Variable, ...], environ: Mapping[str, str]) -> MappingNode:
    for variable in variables:
        text = environ.get(variable.name)
        if text:
            root = _set(root, variable.path, variable, text)
    return root


def _set(root: MappingNode, path: tuple[str, ...], variable: Variable, text: str) -> MappingNode:
    """`root` with the variable's text at `path`. What is no mapping on the way there is a mistake for the loader."""
    key, *below = path
    there = root.get(key)
    if not below:
        return root.replaced(
            key, _part_of_address(there, variable, text) if variable.part else _of(variable.name, text)
        )
    section = MappingNode(_NOWHERE, ()) if there is None or _is_null(there) else there
    return root.replaced(key, _set(section, tuple(below), variable, text)) if isinstance(section, MappingNode) else root


def _part_of_address(there: Node | None, variable: Variable, text: str) -> Scalar:
    """An address of which the variable says one part, and the other is that of the address that is there already."""
    name = variable.name
    if isinstance(there, Scalar) and ":" in there.text:
        host, _, port = there.text.rpartition(":")
        if there.place.variable:
            name = f"{there.place.variable}, {name}"  # a mistake may be in either
    else:
        host, _, port = str(getattr(ServerSettings(), variable.path[-1])).rpartition(":")
    if variable.part == "port":
        return _of(name, f"{host}:{text}")
    return _of(name, f"[{text}]:{port}" if ":" in text and not text.startswith("[") else f"{text}:{port}")


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def _provider(provider: KnownProvider, environ: Mapping[str, str]) -> MappingNode:
    fields = {"kind": _constant(provider.name), "api_key": _of(provider.key, environ[provider.key])}
    if environ.get(provider.base_url):
        fields["base_url"] = _of(provider.base_url, environ[provider.base_url])
    return _mapping(fields)


def _route(*targets: str) -> MappingNode:
    return _mapping({"targets": SequenceNode(_NOWHERE, tuple(_constant(target) for target in targets))})


def _mapping(values: Mapping[str, Node]) -> MappingNode:
    return MappingNode(_NOWHERE, tuple(Entry(_NOWHERE, key, value) for key, value in values.items()))


def _of(variable: str, text: str) -> Scalar:
    return Scalar(Place(SOURCE, variable=variable), text)


def _constant(text: str) -> Scalar:
    return Scalar(_NOWHERE, text, text)
