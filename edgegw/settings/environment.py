"""The environment as a document: what is set when there is no file, and what overrides a file.

One table of variables. Their texts go through the same fields and checks as those of a file; their mistakes carry the
name of the variable. An empty variable counts as unset, because that is what an unfilled `.env` leaves behind.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from edgegw.settings.mistakes import Mistake, NoProviderError
from edgegw.settings.tree import Entry, MappingNode, Node, Place, Scalar, SequenceNode

SOURCE = "environment"


class Variable(Struct, frozen=True):
    """`name` sets the field at `path`. A `host` makes an address of a port. `overrides`: also what a file says."""

    name: str
    path: tuple[str, str]
    doc: str
    host: str | None = None
    overrides: bool = False


VARIABLES = (
    Variable("PORT", ("server", "listen"), "The port clients are served on.", host="0.0.0.0", overrides=True),
    Variable("EDGEGW_ADMIN_PORT", ("server", "admin"), "The port of probes and metrics.", host="127.0.0.1"),
    Variable("EDGEGW_WORKERS", ("server", "workers"), "Worker processes, or auto."),
    Variable("EDGEGW_STATE_DIR", ("server", "state_dir"), "Where journal and rows are kept.", overrides=True),
    Variable("TOKENS_PER_MINUTE", ("limits", "tokens_per_minute"), "Tokens of a tenant, per minute."),
    Variable("DATABASE_URL", ("storage", "database_url"), "Where rows are kept, if not in the state directory."),
    Variable("REDIS_URL", ("storage", "redis_url"), "Limits shared between gateways."),
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


def overridden(root: MappingNode, environ: Mapping[str, str]) -> MappingNode:
    """The document of a file, with the fields that a deployment may set from outside."""
    return _with(root, tuple(variable for variable in VARIABLES if variable.overrides), environ)


def _with(root: MappingNode, variables: tuple[Variable, ...], environ: Mapping[str, str]) -> MappingNode:
    for variable in variables:
        text = environ.get(variable.name)
        if not text:
            continue
        name, key = variable.path
        section = root.get(name)
        if section is None or (isinstance(section, Scalar) and section.is_null):
            section = MappingNode(_NOWHERE, ())
        if isinstance(section, MappingNode):
            if variable.host is not None:
                text = f"{_host(section.get(key), variable.host)}:{text}"
            root = root.replaced(name, section.replaced(key, _of(variable.name, text)))
    return root


def _host(address: Node | None, otherwise: str) -> str:
    """The host of an address that is there already: a port from outside leaves it alone."""
    written = address.text.rpartition(":")[0] if isinstance(address, Scalar) else ""
    return written or otherwise


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
