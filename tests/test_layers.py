"""The house stands as docs/architecture.md draws it: who may import whom, and which libraries live where.

An ast walk over the package, against the tables below. A new file fails until it has a place in LAYERS; an import that
is not allowed here is either a mistake or a change of the architecture, and then the table is where it shows.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
PACKAGE = "edgegw"

# Module -> layer, written without the package's name. A module imports only from lower layers, from its own package on
# its own layer (http.* from http.*), and from the siblings on the list after this one.
LAYERS: dict[int, str] = {
    0: """
        __init__ errors exchange clock
        settings.__init__ settings.model settings.values settings.fields settings.addresses settings.url_parts
        settings.redis_address settings.database_address
        settings.tree settings.mistakes settings.checks settings.interpolation settings.document settings.environment
        settings.load settings.schema settings.reference settings.describe settings.specs
        settings.tenant_fields settings.tenant_checks
    """,
    1: """
        access pattern trace routing retry breaker tokens endpoints reply_fields price_table prices client_ids
        http.__init__ http.request http.chunked http.head http.judge http.known_head http.connection http.response
        http.inflate http.outbox http.date http.linger http.reply http.proxies http.sse
        dialects.__init__ dialects.base dialects.chat dialects.complaints dialects.document dialects.openai_chat
        dialects.openai_chat_request dialects.openai_chat_messages dialects.openai_chat_reply
        dialects.openai_chat_stream dialects.openai_chat_accents dialects.openai_chat_writer dialects.texts
        dialects.lenient
        dialects.anthropic_schema dialects.anthropic_turns dialects.anthropic_request dialects.anthropic_messages
        dialects.anthropic_events dialects.anthropic_stream
        providers.__init__ providers.base providers.retry_after providers.models providers.openai providers.anthropic
        providers.compatible providers.registry
        keys.__init__ keys.table keys.store keys.rows
        limits.__init__ limits.words limits.meter limits.bucket limits.lease limits.standing
        limits.redis.__init__ limits.redis.keys limits.redis.script limits.redis.absence limits.redis.tab
        limits.rules limits.holdings limits.turns
        ledger.__init__ ledger.record ledger.encoding ledger.store ledger.usage ledger.assembly
        ledger.postgres.__init__ ledger.postgres.days
        ledger.questions ledger.tables ledger.verify.__init__ ledger.verify.findings ledger.verify.rules
        content.__init__ content.record content.wire content.choice content.store content.answer
        content.mended
        telemetry.__init__ telemetry.family telemetry.names telemetry.seats telemetry.histogram telemetry.cells
        telemetry.metrics telemetry.exposition
        telemetry.variables
        telemetry.semconv telemetry.spans telemetry.wording telemetry.otlp telemetry.otlp_metrics
        telemetry.messages telemetry.fitting
        simulator.__init__ simulator.arguments simulator.rules simulator.script simulator.wire simulator.scene
        simulator.stats simulator.chat_wire simulator.messages_wire simulator.house
    """,
    2: """
        errand leg ladder relay used channel channel_server process_figures logs
        http.watch http.knocks http.uptake http.probe http.client_connection http.server http.dial
        http.upstream_connection http.upstream
        keys.making keys.sqlite keys.postgres keys.place keys.subscriber keys.feed
        limits.authority limits.account limits.accounts limits.limiter limits.tally limits.memory_file
        limits.redis.connection limits.redis.sentinel limits.redis.server limits.redis.servers limits.redis.replicas
        limits.redis.authority
        ledger.segment ledger.identity ledger.room ledger.life
        ledger.journal ledger.durable ledger.syncing ledger.life_reader ledger.reader
        ledger.schema ledger.sqlite_file ledger.sqlite
        ledger.sqlite_retention ledger.upkeep ledger.books
        ledger.verify.kept ledger.verify.lives ledger.verify.rows ledger.verify.verify
        ledger.shipper ledger.adoption ledger.rejected ledger.telling
        ledger.postgres.connection ledger.postgres.schema ledger.postgres.partitions ledger.postgres.store
        ledger.postgres.upkeep ledger.postgres.books
        content.files content.porter content.capture content.sqlite content.postgres content.place content.shipper
        content.courier
        telemetry.export telemetry.collector telemetry.collector_grpc telemetry.console telemetry.tracing
        telemetry.metric_export telemetry.meeting
        simulator.rules_file
    """,
    3: """
        gateway attempts phases
        control.__init__ control.admin control.journals control.limit_figures control.figures control.pulse
        control.process
        simulator.server
    """,
    4: """
        __main__ app.__init__ app.parts app.worker app.books app.telemetry app.control
        cli cli_books cli_content cli_keys cli_migrate cli_options supervisor child doors worker demo show
        healthcheck migrate keys.command content.command simulator.run
    """,
}

# Further siblings: on one layer, across packages. The reason goes with each.
SIBLINGS: dict[str, tuple[str, ...]] = {
    "settings.model": ("exchange",),  # retry policies and targets are the exchange's nouns
    "settings.fields": ("exchange",),
    "settings.checks": ("exchange",),
    "endpoints": ("http.request",),  # paths and methods of a request
    "reply_fields": ("http.reply",),  # header lines of a reply
    "access": ("http.request", "keys.table", "pattern", "routing"),  # from who asks to the routes they may take
    "dialects.texts": ("http.sse",),
    "dialects.openai_chat_stream": ("http.sse",),  # a stream is server-sent events
    "dialects.anthropic_stream": ("http.sse",),
    "providers.base": ("dialects.base", "dialects.openai_chat_reply"),  # a provider is a dialect plus an address
    "providers.models": ("dialects.anthropic_request",),
    "providers.openai": (
        "dialects.base",
        "dialects.openai_chat",
        "dialects.openai_chat_reply",
        "dialects.openai_chat_stream",
    ),
    "providers.anthropic": (
        "dialects.base",
        "dialects.anthropic_messages",
        "dialects.anthropic_request",
        "dialects.anthropic_stream",
        "dialects.openai_chat_request",
        "dialects.openai_chat_writer",
    ),
    "http.client_connection": ("errand",),  # a handler is run on the spot until it has to wait
    "ladder": ("http.upstream", "leg"),  # whom to ask, and how long to wait
    "leg": ("errand", "http.watch"),  # the end of a leg wakes its request; its waits are the watch's
    "relay": ("leg", "http.watch"),  # a leg that streams
    # What is verified is the ledger: a package of its own, within it.
    "ledger.verify.findings": ("ledger.tables",),
    "ledger.verify.rules": ("ledger.questions", "ledger.tables", "ledger.usage"),
    "ledger.verify.kept": ("ledger.life", "ledger.segment"),
    "ledger.verify.lives": ("ledger.books", "ledger.segment"),
    "ledger.verify.rows": ("ledger.books",),
    "ledger.verify.verify": ("ledger.books", "ledger.identity", "ledger.life", "ledger.rejected"),
    "ledger.postgres.books": ("ledger.books", "ledger.schema"),
    "ledger.durable": ("errand",),  # a request waits for the disk in its errand
    "used": ("leg",),  # what was seen of an answer
    "ledger.postgres.schema": ("ledger.schema",),  # the files of both databases are found in one place
    "ledger.postgres.store": ("ledger.schema",),
    "ledger.postgres.upkeep": ("ledger.schema",),
    "keys.sqlite": ("ledger.schema", "ledger.sqlite_file"),  # one database, one schema
    "keys.postgres": ("ledger.schema", "ledger.postgres.connection", "ledger.postgres.schema"),
    "keys.place": ("ledger.schema",),
    "keys.subscriber": ("channel",),  # hears of keys over the channel
    "keys.feed": ("channel", "channel_server"),  # … and says them to every worker
    "channel_server": ("channel", "limits.authority", "limits.tally"),  # the two ends speak the same messages
    "routing": ("pattern",),
    "telemetry.variables": ("trace",),  # one of them is the sampler
    "telemetry.metrics": ("ledger.record",),  # what it adds up
    "telemetry.collector": (
        "http.dial",
        "http.upstream",
        "http.upstream_connection",
    ),  # over connections of our own
    "telemetry.console": ("logs",),  # lines in the shape of the log's
    "telemetry.spans": ("content.record", "ledger.record", "trace"),  # told of records
    "telemetry.wording": ("content.record", "ledger.record", "trace"),
    "telemetry.messages": ("content.answer", "content.mended", "content.record", "content.wire"),  # what was captured
    "telemetry.tracing": ("content.courier",),
    "ledger.record": ("trace",),  # whose trace a request belongs to
    "prices": ("ledger.record", "pattern", "price_table"),  # of an attempt as it stands in the books
    "limits.rules": ("pattern",),
    "limits.redis.absence": ("limits.bucket", "limits.meter"),  # the same shapes and words, counted elsewhere
    "limits.redis.keys": ("limits.meter",),
    "limits.redis.script": ("limits.bucket", "limits.meter"),
    "limits.redis.tab": ("limits.bucket", "limits.meter"),
    "limits.accounts": ("channel",),  # what a lease lacks is asked for over the channel
    "content.wire": ("http.reply", "http.response"),  # takes off what http put on
    "content.answer": ("http.sse",),  # a stream is server-sent events
    "content.sqlite": ("ledger.schema", "ledger.sqlite", "ledger.sqlite_file"),  # one database, one schema
    "content.place": ("keys.place", "ledger.schema"),
    "content.postgres": ("ledger.postgres.connection", "ledger.postgres.schema", "ledger.schema"),
    "gateway": ("attempts", "phases"),
    "app.__init__": ("child", "supervisor"),
    "app.worker": ("worker",),
    "worker": ("child",),
    "supervisor": ("child", "doors"),
    "demo": ("show",),  # ends with the rows, as `edgegw attempts` prints them
    "cli": (
        *("app.__init__", "cli_books", "cli_content", "cli_keys", "cli_migrate", "cli_options", "demo", "healthcheck"),
        "simulator.run",
    ),
    "cli_content": ("cli_options", "content.command", "show"),
    "cli_books": ("cli_options", "show"),
    "cli_keys": ("cli_options", "keys.command"),
    "cli_migrate": ("cli_options", "migrate"),
    "cli_options": ("healthcheck",),  # where the settings have the admin port, as a URL
    "__main__": ("cli",),
}

# Own modules imported inside functions: the command line starts fast because a command loads only what it needs.
# What the control process is made of only when it is configured.
LAZY = {
    *("content.place", "keys.place", "cli", "cli_books", "cli_content", "cli_keys", "cli_migrate", "cli_options"),
    *("migrate", "app.books", "app.control", "app.telemetry"),
}

# What layers 0 and 1 must not have: clock, dice and bytes are arguments.
IMPURE = {
    *("asyncio", "concurrent", "multiprocessing", "sched", "select", "selectors", "signal", "subprocess", "threading"),
    *("http", "mmap", "socket", "socketserver", "sqlite3", "ssl", "fcntl", "logging"),
    *("random", "secrets", "time", "uuid"),
    *("aiohttp", "asyncpg", "opentelemetry", "redis", "hiredis", "uvloop"),
}
# What reads files there, and no more than files: settings come from one.
FILES = {"os", "io", "pathlib", "shutil", "stat", "tempfile", "importlib", "pkgutil"}
MAY_READ_FILES = {
    "settings.document",
    "settings.interpolation",
    "settings.load",
    "providers.models",  # its table comes with the package
    "price_table",
    "limits.redis.script",  # and so does the script
}

# Outside libraries and where they may be. Another module is another place that has to know a library's exceptions.
EVERYWHERE = {"msgspec"}
LIBRARIES: dict[str, set[str]] = {
    "asyncpg": {"ledger.postgres.connection", "ledger.postgres.partitions", "ledger.postgres.schema"},
    "click": {"cli", "cli_books", "cli_content", "cli_keys", "cli_migrate", "cli_options"},
    "hiredis": {"limits.redis.connection"},
    "httptools": {"http.judge", "http.response", "simulator.server"},
    "orjson": {"gateway", "control.admin"},
    "opentelemetry": {"telemetry.collector_grpc"},
    "uvloop": {"app.__init__", "simulator.run"},
    "yaml": {"settings.document", "simulator.rules_file"},
}

# The data plane: nothing that a worker is made of may reach these, not even over others. Neither a database nor a
# collector is ever waited for by a request, and a sidecar stays small.
DATA_PLANE_ROOT = "worker"
NOT_IN_THE_DATA_PLANE = {"sqlite3", "redis", "hiredis", "asyncpg", "aiohttp", "opentelemetry", "yaml", "click"}
NOT_IN_THE_DATA_PLANE_OWN = (
    "control.",
    "telemetry.",
    "simulator.",
    "ledger.sqlite",
    "ledger.postgres.",
    "ledger.shipper",
    "content.sqlite",
    "content.postgres",
    "content.place",
    "content.shipper",
    "content.store",
    "content.courier",
    "content.answer",
    "content.mended",
    "ledger.syncing",
    "ledger.adoption",
    "ledger.rejected",
    "ledger.telling",
    "price",
    "keys.sqlite",
    "keys.postgres",
    "keys.place",
    "keys.feed",
    "keys.making",
    "channel_server",
    "limits.redis.",
)


@dataclass(frozen=True, slots=True)
class Import:
    """`own`: a module of ours, written as in LAYERS. Otherwise `name` is the outside module in full."""

    name: str
    own: bool
    lazy: bool
    line: int


@cache
def modules() -> dict[str, Path]:
    """All modules, named as in LAYERS."""
    top = ROOT / PACKAGE
    return {".".join(path.relative_to(top).with_suffix("").parts): path for path in sorted(top.rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_imports(tree(module), lazy=False))


def _imports(node: ast.AST, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import():
                for alias in child.names:
                    yield _resolved(alias.name, None, lazy, child.lineno)
            case ast.ImportFrom(level=0, module=str(source)):
                for alias in child.names:
                    yield _resolved(source, alias.name, lazy, child.lineno)
            case ast.ImportFrom():
                yield Import("a relative import", own=True, lazy=lazy, line=child.lineno)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _imports(child, lazy=True)
            case ast.expr():
                continue  # half of all nodes, and an import is a statement
            case _:
                yield from _imports(child, lazy)


def _resolved(source: str, name: str | None, lazy: bool, line: int) -> Import:
    """`from edgegw.http import sse` is http.sse when there is such a module, else a name of http.__init__."""
    parts = source.split(".")
    if parts[0] != PACKAGE:
        return Import(source, own=False, lazy=lazy, line=line)
    for candidate in ([*parts[1:], name or ""], parts[1:], [*parts[1:], "__init__"]):
        if ".".join(candidate) in modules():
            return Import(".".join(candidate), own=True, lazy=lazy, line=line)
    return Import(source, own=True, lazy=lazy, line=line)


@cache
def layers() -> dict[str, int]:
    return {module: layer for layer, names in LAYERS.items() for module in names.split()}


def package_of(module: str) -> str:
    return module.rpartition(".")[0]


def allowed(importer: str, imported: str) -> bool:
    mine, theirs = layers().get(importer), layers().get(imported)
    if mine is None or theirs is None or theirs > mine:
        return False
    if theirs < mine or imported in SIBLINGS.get(importer, ()):
        return True
    return package_of(importer) == package_of(imported) != ""


ALL = sorted(modules())


def test_every_module_has_one_place_and_every_place_a_module() -> None:
    placed = [module for names in LAYERS.values() for module in names.split()]
    assert sorted(placed) == sorted(set(placed)), "a module stands twice"
    assert sorted(set(ALL) - set(placed)) == [], "modules without a place in LAYERS"
    assert sorted(set(placed) - set(ALL)) == [], "places without a module"


def test_the_lists_name_nothing_that_is_gone() -> None:
    used = {(module, found.name) for module in ALL for found in imports(module)}
    listed = {(module, sibling) for module, siblings in SIBLINGS.items() for sibling in siblings}
    assert sorted(listed - used) == [], "siblings that are not imported (any more)"
    assert all(layers()[module] == layers()[sibling] for module, sibling in listed)
    places = {(place, library) for library, places in LIBRARIES.items() for place in places}
    in_use = {(module, found.name.split(".")[0]) for module in ALL for found in imports(module) if not found.own}
    assert sorted(places - in_use) == [], "libraries that are not imported there (any more)"
    assert sorted(LAZY | MAY_READ_FILES) == sorted((LAZY | MAY_READ_FILES) & set(ALL))


def test_imports_go_downwards() -> None:
    wrong = [
        f"{module}:{found.line} imports {found.name}"
        for module in ALL
        for found in imports(module)
        if found.own and not allowed(module, found.name)
    ]
    assert wrong == []


def test_own_modules_are_imported_at_the_top() -> None:
    wrong = [
        f"{module}:{found.line} imports {found.name}"
        for module in sorted(set(ALL) - LAZY)
        for found in imports(module)
        if found.own and found.lazy
    ]
    assert wrong == []


def test_no_cycles() -> None:
    """Also among siblings of one package, where the layers do not forbid them."""
    graph = {module: {found.name for found in imports(module) if found.own} for module in ALL}
    remaining = dict(graph)
    while ends := [module for module, needs in remaining.items() if not needs & remaining.keys()]:
        for module in ends:
            del remaining[module]
    assert sorted(remaining) == [], "these import each other in a circle, or are imported by such"


LOWER = [module for module in ALL if layers().get(module, 0) <= 1]


def test_the_lower_layers_import_nothing_impure() -> None:
    wrong = [
        f"{module}:{found.line} imports {found.name}"
        for module in LOWER
        for found in imports(module)
        if not found.own and found.name.split(".")[0] in (IMPURE if module in MAY_READ_FILES else IMPURE | FILES)
    ]
    assert wrong == []


def test_in_the_lower_layers_the_clock_is_an_argument() -> None:
    clocks = [
        f"{module}:{node.lineno}"
        for module in LOWER
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute)
        and node.attr in ("now", "utcnow", "today")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("datetime", "date")
    ]
    assert clocks == []


def test_an_outside_library_stays_in_its_modules() -> None:
    known = sys.stdlib_module_names | EVERYWHERE
    wrong = [
        f"{module}:{found.line} imports {found.name}"
        for module in ALL
        for found in imports(module)
        if not found.own
        and (library := found.name.split(".")[0]) not in known
        and module not in LIBRARIES.get(library, ())
    ]
    assert wrong == []


def reached(root: str) -> dict[str, str]:
    """Everything that importing `root` imports, ours and others', with the importer through which it was reached."""
    seen, waiting = {root: root}, [root]
    while waiting:
        module = waiting.pop()
        for found in imports(module):
            if found.lazy or found.name in seen:
                continue
            seen[found.name] = module
            if found.own:
                waiting.append(found.name)
                package = f"{package_of(found.name)}.__init__"
                if package in modules() and package not in seen:
                    seen[package] = found.name
                    waiting.append(package)
    return seen


def test_the_data_plane_reaches_no_store_and_no_collector() -> None:
    found = reached(DATA_PLANE_ROOT)
    assert {"gateway", "attempts", "relay", "http.server", "ledger.journal", "limits.limiter"} <= found.keys()
    wrong = {
        name: through
        for name, through in found.items()
        if name.split(".")[0] in NOT_IN_THE_DATA_PLANE or name.startswith(NOT_IN_THE_DATA_PLANE_OWN)
    }
    assert wrong == {}


def test_no_work_at_import_and_no_state() -> None:
    """At the top of a module stand imports, definitions and constants; nothing loops, waits, opens or is rebound."""
    assert [complaint for module in ALL for complaint in _work_at_import(module)] == []


def _work_at_import(module: str) -> Iterator[str]:
    for statement in tree(module).body:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                continue
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                continue
            case ast.Expr(value=ast.Constant()):  # a docstring
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Compare(left=ast.Name(id="__name__"))):
                continue
        yield f"{module}:{statement.lineno}: {ast.unparse(statement)[:80]}"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Global):
            yield f"{module}:{node.lineno}: global"


def test_a_module_opens_with_what_it_is_for() -> None:
    silent = [module for module in ALL if tree(module).body and not ast.get_docstring(tree(module))]
    assert silent == [], "no docstring: what it is for, what it may not know"


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert [module for module in ALL if drawers & set(module.split("."))] == []


def test_the_rules_themselves() -> None:
    """That the walk sees what it should, and that the rule says no."""
    source = """
        from __future__ import annotations
        import asyncio, edgegw.retry
        from edgegw import __version__, breaker
        from edgegw.http import sse
        from edgegw.settings import Settings
        class Shell:
            import time
            async def run(self):
                if self:
                    from edgegw.errors import KINDS
        """
    found = [(item.name, item.own, item.lazy) for item in _imports(ast.parse(dedent(source)), lazy=False)]
    assert found == [
        ("__future__", False, False),
        ("asyncio", False, False),
        ("retry", True, False),
        ("__init__", True, False),
        ("breaker", True, False),
        ("http.sse", True, False),
        ("settings.__init__", True, False),
        ("time", False, False),
        ("errors", True, True),
    ]
    assert allowed("relay", "retry")
    assert allowed("http.upstream", "http.dial")
    assert allowed("supervisor", "doors")
    assert not allowed("retry", "relay")
    assert not allowed("doors", "supervisor")
    assert not allowed("limits.bucket", "routing")
    assert not allowed("relay", "no_such_module")
    assert [item.name for item in _imports(ast.parse("from . import sse"), lazy=False)] == ["a relative import"]
