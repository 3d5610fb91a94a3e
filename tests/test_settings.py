"""Settings: what the file and the environment come to, and every way in which they can be wrong.

The mistakes are a table: text, place, path, words. The laws: no text makes the loader fail in any other way than with
SettingsError, no mistake shows a secret, and what `describe` prints loads to the same settings.
"""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from edgegw.exchange import RetryPolicy, Target
from edgegw.settings import (
    Address,
    Mistake,
    NoProviderError,
    ProviderSettings,
    RouteSettings,
    Secret,
    ServerSettings,
    Settings,
    SettingsError,
    describe,
    load,
    load_text,
    parse_target,
    schema,
    warnings,
)
from edgegw.settings.environment import PROVIDERS, VARIABLES
from edgegw.settings.fields import ROOT, Field, Named, Section, Spec
from edgegw.settings.schema import default
from edgegw.settings.values import duration, size

HOUSE = Path(__file__).parent.parent
KEYS = {"OPENAI_API_KEY": "sk-open", "ANTHROPIC_API_KEY": "sk-ant"}

EXAMPLE = """\
version: 1
server: {listen: "0.0.0.0:8080", admin: "127.0.0.1:9090", workers: 1, state_dir: .edgegw, drain_timeout: 60s}
providers:
  openai:    {kind: openai, api_key: ${OPENAI_API_KEY}, timeouts: {connect: 2s, first_byte: 60s, idle: 60s}}
  anthropic: {kind: anthropic, api_key: ${ANTHROPIC_API_KEY}}
  local:     {kind: openai-compatible, base_url: "http://127.0.0.1:11434/v1"}
use_cases:
  support_summary: {targets: [openai/gpt-5-mini, anthropic/claude-haiku-4-5], retry: {attempts: 2}}
models:
  smart: {targets: [anthropic/claude-sonnet-4-5, openai/gpt-5]}
  "claude-*": {targets: ["anthropic/*", "openai/gpt-5"]}   # patterns; * in a target is the name asked for
default: {targets: [openai/gpt-5-mini, anthropic/claude-haiku-4-5]}
limits: {tokens_per_minute: ${TOKENS_PER_MINUTE:-50000}}
"""

BASE = """\
version: 1
providers:
  local: {kind: openai-compatible, base_url: "http://127.0.0.1:1/v1"}
"""


def mistakes_of(text: str, environ: Mapping[str, str] | None = None) -> list[Mistake]:
    with pytest.raises(SettingsError) as caught:
        load_text(text, environ or {})
    return caught.value.mistakes


def test_the_example_of_the_issue() -> None:
    settings = load_text(EXAMPLE, KEYS, "edgegw.yaml")
    assert settings.server == ServerSettings()
    assert settings.source == "edgegw.yaml"
    assert list(settings.providers) == ["openai", "anthropic", "local"]
    assert settings.providers["openai"].base_url == "https://api.openai.com/v1"
    assert settings.providers["anthropic"].base_url == "https://api.anthropic.com"
    assert settings.providers["openai"].api_key == Secret("sk-open")
    assert settings.providers["local"] == ProviderSettings(
        name="local", kind="openai-compatible", base_url="http://127.0.0.1:11434/v1"
    )
    assert settings.use_cases["support_summary"].retry == RetryPolicy(attempts=2)
    assert settings.models["claude-*"].parsed == (Target("anthropic", "*"), Target("openai", "gpt-5"))
    assert settings.default == RouteSettings(("openai/gpt-5-mini", "anthropic/claude-haiku-4-5"))
    assert settings.limits.tokens_per_minute == 50_000
    assert settings.sqlite_path == ".edgegw/edgegw.db"
    assert warnings(settings) == []


FULL = """\
version: 1
server:
  listen: "[::1]:81"
  admin: localhost:82
  workers: auto
  state_dir: /var/lib/edgegw
  drain_timeout: 0
  body_max: 1048576
  head_max: 64KiB
  headers_max: 50
  target_max: 8KiB
  head_timeout: 2.5
  body_timeout: 1m
  keep_alive_timeout: 1h
  requests_per_connection_max: 7
  in_flight_max: 8
  total_timeout: 1h
  client_stall_timeout: 1500ms
providers:
  p-1.x:
    kind: openai
    base_url: HTTPS://Example.com:8443/a/b/
    api_key: k
    timeouts: {connect: 1, tls: 2, first_byte: 3, idle: 4, pool: 5}
    connections_max: 9
    keep_alive: 10
    headers: {X-Team: blue team, anthropic-version: 2023-06-01, x-count: 007}
    proxy: "http://user:pw@proxy.internal:3128/"
default: {targets: [p-1.x/a/b], retry: {attempts: 4, attempts_max: 5, base: 1, cap: 2, retry_after_max: 3}}
limits:
storage: {database_url: "sqlite:////data/rows.db", journal: {max: 2GiB, segment: 1MiB}}
"""


def test_every_key_reaches_its_attribute() -> None:
    settings = load_text(FULL, {})
    server, provider = settings.server, settings.providers["p-1.x"]
    assert (server.listen, server.admin) == (Address("::1", 81), Address("localhost", 82))
    assert str(server.listen) == "[::1]:81"
    assert server.workers >= 1
    assert (server.state_dir, server.drain_timeout_s, server.body_bytes_max) == ("/var/lib/edgegw", 0.0, 1 << 20)
    assert (server.head_bytes_max, server.headers_max, server.target_bytes_max) == (64 << 10, 50, 8 << 10)
    assert (server.head_timeout_s, server.body_timeout_s, server.keep_alive_timeout_s) == (2.5, 60.0, 3600.0)
    assert (server.requests_per_connection_max, server.in_flight_max) == (7, 8)
    assert (server.total_timeout_s, server.client_stall_timeout_s) == (3600.0, 1.5)
    assert (provider.name, provider.kind, provider.base_url) == ("p-1.x", "openai", "https://Example.com:8443/a/b")
    assert msgspec.structs.astuple(provider.timeouts) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert (provider.connections_max, provider.keep_alive_s) == (9, 10.0)
    assert provider.headers == {"x-team": "blue team", "anthropic-version": "2023-06-01", "x-count": "007"}
    assert provider.proxy == "http://user:pw@proxy.internal:3128"
    assert settings.default == RouteSettings(("p-1.x/a/b",), RetryPolicy(4, 5, 1.0, 2.0, 3.0))
    assert settings.default.parsed == (Target("p-1.x", "a/b"),)
    assert (settings.storage.journal.bytes_max, settings.storage.journal.segment_bytes) == (2 << 30, 1 << 20)
    assert settings.sqlite_path == "/data/rows.db"


# (what, text after BASE unless it begins with a version, environment, place, path, words of message and hint)
MISTAKES: list[tuple[str, str, dict[str, str], str, str, str]] = [
    ("unknown key", "limit: {}", {}, "4:1", "limit", "unknown setting .*did you mean 'limits'"),
    ("unknown key, unlike all", "zzz: 1", {}, "4:1", "zzz", "there are: version, server"),
    ("key at the wrong place", "tokens_per_minute: 5", {}, "4:1", "tokens_per_minute", r"limits\.tokens_per_minute"),
    (
        "unknown key below",
        "server:\n  lisen: 0.0.0.0:80",
        {},
        "5:3",
        "server.lisen",
        "did you mean 'listen'",
    ),
    ("kind", "version: 1\nproviders: {a: {kind: opnai}}", {}, "2:23", "providers.a.kind", "'opnai' .*mean 'openai'"),
    ("list for a mapping", "server: [1]", {}, "4:1", "server", "expected a mapping of settings, found a list"),
    ("text for a mapping", "server: 8080", {}, "4:9", "server", "expected a mapping of settings"),
    ("mapping for a text", "server: {listen: {a: 1}}", {}, "4:10", "server.listen", "address.*found a mapping"),
    ("text for a list", "default: {targets: local/x}", {}, "4:20", "default.targets", "expected a list"),
    ("list in a list", "default: {targets: [[local/x]]}", {}, "4:21", "default.targets[0]", "target.*found a list"),
    ("null in a list", "default: {targets: [~]}", {}, "4:21", "default.targets[0]", "found nothing"),
    ("text for a number", "server: {headers_max: many}", {}, "4:23", "server.headers_max", "whole number .*'many'"),
    ("float for a number", "server: {headers_max: 1e3}", {}, "4:23", "server.headers_max", "whole number"),
    ("octal for a number", "server: {headers_max: 0123}", {}, "4:23", "server.headers_max", "whole number"),
    ("endless number", f"server: {{headers_max: {'9' * 99}}}", {}, "4:23", "server.headers_max", "whole number"),
    ("quoted number", 'server: {headers_max: "50"}', {}, "4:23", "server.headers_max", "string.*remove the quotes"),
    ("number too small", "server: {headers_max: 1}", {}, "4:23", "server.headers_max", "from 10 to"),
    ("workers", "server: {workers: atuo}", {}, "4:19", "server.workers", "or auto.*did you mean 'auto'"),
    ("no workers", "server: {workers: 0}", {}, "4:19", "server.workers", "from 1"),
    ("duration unit", "server: {head_timeout: 2sec}", {}, "4:24", "server.head_timeout", "duration such as 500ms"),
    ("duration sign", "server: {head_timeout: -2s}", {}, "4:24", "server.head_timeout", "duration such as"),
    ("duration nan", "server: {head_timeout: .nan}", {}, "4:24", "server.head_timeout", "duration such as"),
    ("duration zero", "server: {head_timeout: 0s}", {}, "4:24", "server.head_timeout", "from 1ms to 24h, found '0s'"),
    ("duration too long", "server: {head_timeout: 48h}", {}, "4:24", "server.head_timeout", "from 1ms to 24h"),
    ("size unit", "server: {body_max: 20MB}", {}, "4:20", "server.body_max", "size such as 64KiB"),
    ("size too small", "server: {body_max: 1}", {}, "4:20", "server.body_max", "from 1KiB to 1GiB"),
    ("address without port", "server: {listen: 0.0.0.0}", {}, "4:18", "server.listen", "address such as"),
    ("address with a bad port", 'server: {listen: "x:70000"}', {}, "4:18", "server.listen", "1 to 65535, found"),
    ("address with port 0", 'server: {listen: "x:0"}', {}, "4:18", "server.listen", "1 to 65535"),
    ("address with a bad host", 'server: {listen: "1.2.3.400:1"}', {}, "4:18", "server.listen", "not an IP address"),
    ("IPv6 without brackets", 'server: {listen: "::1:80"}', {}, "4:18", "server.listen", "address such as"),
    ("bad IPv6", 'server: {listen: "[:::1]:80"}', {}, "4:18", "server.listen", "not an IP address"),
    ("same port", 'server: {admin: "0.0.0.0:8080"}', {}, "4:17", "server.admin", "also the port of server.listen"),
    ("unset variable", "server: {state_dir: ${DIR}}", {"DIRS": ""}, "4:21", "server.state_dir", "DIR is not.*'DIRS'"),
    ("unset, alone", "server: {state_dir: ${DIR}}", {}, "4:21", "server.state_dir", r"give a default: \$\{DIR:-…\}"),
    ("bad expression", "server: {state_dir: ${1X}}", {}, "4:21", "server.state_dir", "write .*NAME:-default"),
    ("empty expression", "server: {state_dir: a${}}", {}, "4:21", "server.state_dir", "write .*NAME:-default"),
    ("open expression", "server:\n  state_dir: a${X", {}, "5:14", "server.state_dir", "without its }"),
    ("unreadable file", "server: {state_dir: '${file:/no/such}'}", {}, "4:21", "server.state_dir", "No such file"),
    ("folder as file", "server: {state_dir: '${file:/}'}", {}, "4:21", "server.state_dir", "not a regular file"),
    ("device as file", "server: {state_dir: '${file:/dev/zero}'}", {}, "4:21", "server.state_dir", "not a regular"),
    ("expression in a key", "models: {'${A}': {targets: [local/x]}}", {"A": "a"}, "4:10", "models", "values only"),
    ("bad value of a variable", "limits: {tokens_per_minute: ${T}}", {"T": "abc"}, "4:29", "limits.tokens_per_minute",
     r"whole number .*'\$\{T\}'"),
    ("unknown provider", "default: {targets: [locl/x]}", {}, "4:21", "default.targets[0]", "'locl'.*mean 'local'"),
    ("unknown provider, unlike", "default: {targets: [a/x]}", {}, "4:21", "default.targets[0]", "there are: local"),
    ("second target", "models: {a: {targets: [local/x, b/y]}}", {}, "4:33", "models.a.targets[1]", "no provider 'b'"),
    ("target without model", "default: {targets: [local]}", {}, "4:21", "default.targets[0]", "written provider/model"),
    ("target with empty model", "default: {targets: [local/]}", {}, "4:21", "default.targets[0]", "provider/model"),
    ("target with a blank", "default: {targets: ['local/a b']}", {}, "4:21", "default.targets[0]", "no blanks"),
    ("* in a use case", "use_cases: {a: {targets: [local/*]}}", {}, "4:27", "use_cases.a.targets[0]", "only a pattern"),
    ("* in an alias", "models: {a: {targets: [local/*]}}", {}, "4:24", "models.a.targets[0]", "only a pattern"),
    ("* in the default", "default: {targets: [local/*]}", {}, "4:21", "default.targets[0]", "only a pattern"),
    ("no targets", "default: {targets: []}", {}, "4:11", "default.targets", "empty list"),
    ("targets missing", "default: {retry: {attempts: 1}}", {}, "4:1", "default.targets", "missing .*for example"),
    ("targets null", "default: {targets: }", {}, "4:1", "default.targets", "missing"),
    ("route null", "models:\n  a:\n", {}, "5:5", "models.a.targets", "missing"),
    ("bad alias", "models: {a b: {targets: [local/x]}}", {}, "4:10", 'models["a b"]', "visible ASCII"),
    ("place in a pattern", "models: {'x.*': {targets: [a/x]}}", {}, "4:28", 'models["x.*"].targets[0]', "provider"),
    ("attempts", "default: {targets: [local/x], retry: {attempts: 9}}", {}, "4:31", "default.retry", "set both"),
    ("base over cap", "default: {targets: [local/x], retry: {base: 9}}", {}, "4:31", "default.retry", "than cap"),
    ("journal", "storage: {journal: {max: 1MiB}}", {}, "4:11", "storage.journal", "two segments"),
    ("version missing", "providers: {}", {}, "1:1", "version", "missing .*begin with version: 1"),
    ("version unsupported", "version: 2\n", {}, "1:10", "version", "reads version 1, found '2'"),
    ("version quoted", "version: '1'\n", {}, "1:10", "version", "remove the quotes"),
    ("providers missing", "version: 1\n", {}, "1:1", "providers", "missing .*for example"),
    ("providers empty", "version: 1\nproviders: {}", {}, "2:1", "providers", "no provider at all"),
    ("provider null", "version: 1\nproviders:\n  a:", {}, "3:5", "providers.a.kind", "missing .*one of openai"),
    ("provider name", "version: 1\nproviders: {a/b: {kind: openai, api_key: k}}", {}, "2:13", 'providers["a/b"]',
     "a name of letters"),
    ("key missing", "version: 1\nproviders: {a: {kind: anthropic}}", {}, "2:13", "providers.a.api_key",
     "missing.*ANTHROPIC_API_KEY"),
    ("key empty", "version: 1\nproviders: {a: {kind: openai, api_key: ${K}}}", {"K": ""}, "2:13",
     "providers.a.api_key", "missing"),
    ("key with a line break", "version: 1\nproviders: {a: {kind: openai, api_key: ${K}}}", {"K": "a\nb"}, "2:40",
     "providers.a.api_key", "cannot stand in a header$"),
    ("base_url missing", "version: 1\nproviders: {a: {kind: openai-compatible}}", {}, "2:13", "providers.a.base_url",
     "missing.*none of its own"),
    ("syntax", "server: [1", {}, "5:1", "", "not YAML"),
    ("control character", "server: \x07", {}, "4:9", "", "not YAML"),
    ("private use", "server: \ue07b", {}, "4:9", "", "private use"),
    ("second document", "---\nversion: 1", {}, "4:1", "", "second document"),
    ("depth", "server: " + "[" * 20 + "]" * 20, {}, "4:25", "", "16 levels"),
    ("anchor", "server: &s {workers: 2}", {}, "4:9", "server", "anchors and aliases"),
    ("alias", "server: *s", {}, "4:9", "server", "anchors and aliases"),
    ("merge key", "server: {<<: {workers: 2}}", {}, "4:10", "server", "merge keys"),
    ("tag", "server: {state_dir: !!str 5}", {}, "4:21", "server.state_dir", "tags"),
    ("key twice", "server: {workers: 2, workers: 3}", {}, "4:22", "server.workers", "second time, first on line 4"),
    ("a list as key", "server: {[a]: 1}", {}, "4:10", "server", "a key is a single word"),
]  # fmt: skip

PROVIDER_MISTAKES = [
    ("base_url: ftp://x", "base_url", "begins with https"),
    ("base_url: example.com", "base_url", "URL such as"),
    ("base_url: 'http://'", "base_url", "URL such as"),
    ("base_url: http://u:p@h", "base_url", "no user info"),
    ("base_url: http://h/?a=b", "base_url", "no query"),
    ("base_url: 'http://h/#a'", "base_url", "no fragment"),
    ("base_url: 'http://h h/'", "base_url", "URL such as"),
    ("base_url: 'http://h:99999/'", "base_url", "1 to 65535"),
    ("base_url: 'http://1.2.3/'", "base_url", "not an IP address"),
    ("base_url: 'http://h\\x/'", "base_url", "URL such as"),
    ("proxy: https://h", "proxy", "http://host:3128"),
    ("proxy: http://h/path", "proxy", "http://host:3128"),
    ("headers: {Host: x}", "headers.Host", "writes itself"),
    ("headers: {content-length: 1}", "headers.content-length", "writes itself"),
    ("headers: {Transfer-Encoding: x}", "headers.Transfer-Encoding", "writes itself"),
    ("headers: {connection: x}", "headers.connection", "writes itself"),
    ("headers: {authorization: x}", "headers.authorization", "writes itself"),
    ("headers: {X-Api-Key: x}", "headers.x-api-key", "kind anthropic writes itself"),
    ("headers: {'a b': x}", 'headers["a b"]', "name of a header"),
    ('headers: {a: "x\\r\\ny: z"}', "headers.a", "value of a header"),
    ("headers: {a: ' x'}", "headers.a", "value of a header"),
    ("headers: {a: }", "headers.a", "found nothing"),
    ("headers: {a: x, A: y}", "headers.A", "second time"),
    ("connections_max: 0", "connections_max", "whole number"),
    ("timeouts: {idle: 0}", "timeouts.idle", "must be from 1ms"),
    ("timeouts: {idel: 0}", "timeouts.idel", "did you mean 'idle'"),
    ("storage: 1", "storage", "unknown setting"),
]


def _document(rest: str) -> str:
    return rest if rest.startswith(("version", "providers")) else BASE + rest


@pytest.mark.parametrize(("what", "rest", "environ", "place", "path", "words"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_has_its_place_and_its_words(
    what: str, rest: str, environ: dict[str, str], place: str, path: str, words: str
) -> None:
    found = mistakes_of(_document(rest), environ)
    told = [
        str(mistake)
        for mistake in found
        if (f"{mistake.line}:{mistake.column}", mistake.path) == (place, path) and re.search(words, str(mistake))
    ]
    assert told, f"{what}: {[str(mistake) for mistake in found]}"
    assert "\n" not in told[0]


@pytest.mark.parametrize(("setting", "path", "words"), PROVIDER_MISTAKES, ids=[m[0] for m in PROVIDER_MISTAKES])
def test_mistakes_of_a_provider(setting: str, path: str, words: str) -> None:
    (mistake,) = mistakes_of(f"version: 1\nproviders:\n  a:\n    kind: anthropic\n    api_key: k\n    {setting}\n")
    assert mistake.path == f"providers.a.{path}"
    assert mistake.line == 6
    assert re.search(words, str(mistake)), mistake


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    text = """\
version: 3
servr: {}
providers:
  a: {kind: opnai, api_key: ${UNSET}}
  b: {kind: anthropic, conections_max: 5}
  c: {kind: openai-compatible, base_url: "http://localhost/v1", timeouts: {idle: 1 week}}
default: {targets: [a/x, d/x, e, "c/*"]}
limits: {tokens_per_minute: -1}
limits: {}
"""
    assert [(each.line, each.path) for each in mistakes_of(text)] == [
        (1, "version"),
        (2, "servr"),
        (4, "providers.a.kind"),
        (4, "providers.a.api_key"),
        (5, "providers.b.api_key"),
        (5, "providers.b.conections_max"),
        (6, "providers.c.timeouts.idle"),
        (7, "default.targets[1]"),
        (7, "default.targets[2]"),
        (7, "default.targets[3]"),
        (8, "limits.tokens_per_minute"),
        (9, "limits"),
    ]


@pytest.mark.parametrize("root", ["[1, 2]", "text", "5"])
def test_the_root_is_a_mapping(root: str) -> None:
    (mistake,) = mistakes_of(root)
    assert "expected a mapping of settings" in mistake.message


@pytest.mark.parametrize("nothing", ["", "# only a comment\n", "---\n", "~"])
def test_an_empty_file_lacks_what_is_required(nothing: str) -> None:
    assert [mistake.path for mistake in mistakes_of(nothing)] == ["version", "providers"]


def test_a_faulty_provider_is_still_known_to_targets() -> None:
    (mistake,) = mistakes_of("version: 1\nproviders: {a: {kind: x}}\ndefault: {targets: [a/m]}")
    assert mistake.path == "providers.a.kind"


def test_both_yaml_parsers_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, rest, environ, *_ in MISTAKES:
        fast = mistakes_of(_document(rest), environ)
        with monkeypatch.context() as patch:
            patch.delattr(yaml, "CSafeLoader", raising=False)
            plain = mistakes_of(_document(rest), environ)
        assert [each.path for each in plain] == [each.path for each in fast]
        if not any("not YAML" in each.message for each in fast):  # there, the two parsers have their own words
            assert plain == fast


STATE_DIR = "version: 1\nproviders: {a: {kind: openai-compatible, base_url: http://h}}\nserver: {state_dir: %s}\n"


@pytest.mark.parametrize(
    ("written", "environ", "read"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("a${A}b${B}c", {"A": "1", "B": "2"}, "a1b2c"),
        ("${A:-d}", {}, "d"),
        ("${A:-d}", {"A": ""}, "d"),
        ("${A:-d}", {"A": "x"}, "x"),
        ("${A:-}b", {}, "b"),
        ('${A:-a "b" {c, d: e] #f}', {}, 'a "b" {c, d: e] #f'),
        ('"${A:-\\n}"', {}, "\\n"),  # what stands between the braces is taken as it is
        ("${A}", {"A": "${B} $${C}"}, "${B} $${C}"),  # what was filled in is not looked at again
        ("$${A}", {"A": "x"}, "${A}"),
        ("$A", {"A": "x"}, "$A"),
        ("${A}", {"A": "0123"}, "0123"),
        ("${A}", {"A": "1e5"}, "1e5"),
        ("${A}", {"A": "true"}, "true"),
        ("0123", {}, "0123"),
        ("'null'", {}, "null"),
        ("${A}", {"A": "null"}, ".edgegw"),  # a plain null is a setting left out
        ("${A:-}", {}, ".edgegw"),
        ("", {}, ".edgegw"),
        ("'a''${A}'", {"A": "x"}, "a'x"),
    ],
)
def test_interpolation_of_a_text(written: str, environ: dict[str, str], read: str) -> None:
    assert load_text(STATE_DIR % written, environ).server.state_dir == read


@pytest.mark.parametrize(
    ("written", "environ", "read"),
    [
        ("${T:-7}", {}, 7),
        ("${T:-7}", {"T": "8"}, 8),
        ("${T}0", {"T": "8"}, 80),
        ("${T:-}", {}, 50_000),
        ("9", {}, 9),
    ],
)
def test_a_plain_scalar_is_typed_after_interpolation(written: str, environ: dict[str, str], read: int) -> None:
    text = f"{BASE}limits: {{tokens_per_minute: {written}}}"
    assert load_text(text, environ).limits.tokens_per_minute == read


@pytest.mark.parametrize(
    ("content", "key"),
    [(b"k", "k"), (b"k\n", "k"), (b"k\r\n", "k"), (b"\xef\xbb\xbfk", "k"), (b"0123\n", "0123")],
)
def test_a_key_from_a_file(tmp_path: Path, content: bytes, key: str) -> None:
    (tmp_path / "key").write_bytes(content)
    (tmp_path / "edgegw.yaml").write_text(
        "version: 1\nproviders:\n"
        f"  a: {{kind: openai, api_key: ${{file:{tmp_path / 'key'}}}}}\n"
        "  b: {kind: openai, api_key: ${file:key}}\n"  # beside the settings
    )
    providers = load(str(tmp_path / "edgegw.yaml"), {}).providers
    assert [each.api_key.reveal() for each in providers.values() if each.api_key] == [key, key]


@pytest.mark.parametrize(
    ("content", "words"), [(b"k\n\n", "line break"), (b"\xff", "UTF-8 at byte 0"), (b"k" * 70_000, "larger than")]
)
def test_a_key_file_that_will_not_do(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "key").write_bytes(content)
    (mistake,) = mistakes_of(f"version: 1\nproviders: {{a: {{kind: openai, api_key: '${{file:{tmp_path}/key}}'}}}}")
    assert words in mistake.message
    assert mistake.path == "providers.a.api_key"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2.0), ("500ms", 0.5), ("1m", 60.0), ("1h", 3600.0), ("2", 2.0), ("0.25", 0.25), ("1.5 h", 5400.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration("0s", "24h").read(text) == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("20MiB", 20 << 20), ("64KiB", 64 << 10), ("1 GiB", 1 << 30), ("7B", 7), ("1000", 1000)]
)
def test_sizes(text: str, count: int) -> None:
    assert size("0", "1GiB").read(text) == count


@given(st.integers(0, 86_400_000), st.integers(0, 1 << 50))
def test_what_is_shown_reads_back(milliseconds: int, count: int) -> None:
    durations, sizes = duration("0s", "24h"), size("0", "1024GiB")
    assert durations.read(durations.show(milliseconds / 1000)) == milliseconds / 1000
    if count <= 1 << 40:
        assert sizes.read(sizes.show(count)) == count


def test_a_target_divides_at_its_first_slash() -> None:
    assert parse_target("a/b/c") == Target("a", "b/c")
    for text in ("a", "a/", "/b", ""):
        with pytest.raises(ValueError, match="provider/model"):
            parse_target(text)


SECRET = "s3cret-c0nf1dential"


def test_a_secret_is_shown_to_nobody() -> None:
    secret = Secret(SECRET)
    assert secret.reveal() == SECRET
    assert f"{secret} {secret!r} {secret!s}" == "*** *** ***"
    assert secret == Secret(SECRET)
    assert hash(secret) == hash(Secret(SECRET))
    assert secret != Secret("other")
    assert secret != SECRET
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    for encode in (msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins):
        with pytest.raises(TypeError):
            encode(secret)


def test_settings_show_no_credentials() -> None:
    settings = load_text(
        "version: 1\nproviders:\n  a:\n    kind: openai\n    api_key: ${S}\n"
        "    headers: {x-token: ${S}}\n    proxy: http://user:${S}@h:1\n",
        {"S": SECRET},
    )
    for shown in (repr(settings), str(settings), describe(settings), "\n".join(warnings(settings))):
        assert SECRET not in shown
    assert 'proxy: "http://***@h:1"' in describe(settings)


def test_no_mistake_shows_what_came_from_the_environment() -> None:
    """One document with the secret in every place at once, a variable in the place of each default."""
    for line in (*FULL.splitlines(), *EXAMPLE.splitlines()):
        for found in re.finditer(r"(?<=[:\[,] )[^{}\[\],#]+", line):
            broken = line[: found.start()] + "${S}" + line[found.end() :]
            text = FULL.replace(line, broken) if line in FULL else EXAMPLE.replace(line, broken)
            for secret in (SECRET, f"{SECRET}\n", f"http://{SECRET}@h/?", f"postgresql://{SECRET}"):
                try:
                    shown = repr(load_text(text, {**KEYS, "S": secret}).providers)
                except SettingsError as error:
                    shown = f"{error} {error.mistakes}"
                assert SECRET not in shown, broken


DATABASES = [
    ("database_url: postgresql://u:p@h/d", "PostgreSQL is not built into this version"),
    ("database_url: postgresql+asyncpg://u:p@h/d", "PostgreSQL is not built into this version"),
    ("database_url: mysql://u:p@h/d", "expected sqlite:///path"),
    ("database_url: sqlite:///", "expected sqlite:///path"),
    ("database_url: 'sqlite:///:memory:'", "would be lost"),
    ("redis_url: redis://u:p@h", "Redis is not built into this version"),
]


@pytest.mark.parametrize(("setting", "words"), DATABASES)
def test_what_this_version_cannot_do_is_refused_plainly(setting: str, words: str) -> None:
    (mistake,) = mistakes_of(f"{BASE}storage: {{{setting}}}")
    assert words in mistake.message
    assert "u:p" not in str(mistake)


def test_warnings() -> None:
    settings = load_text(
        "version: 1\nserver: {total_timeout: 30s}\nproviders:\n"
        "  a: {kind: openai-compatible, base_url: 'http://10.0.0.5:8000/v1', api_key: k}\n"
        "  b: {kind: openai-compatible, base_url: 'http://models.internal/v1', timeouts: {first_byte: 5s, idle: 5s}}\n"
        "  c: {kind: openai-compatible, base_url: 'http://[::1]:1', timeouts: {first_byte: 5s, idle: 5s}}\n"
        "  d: {kind: openai-compatible, base_url: 'http://localhost/v1', timeouts: {first_byte: 5s, idle: 5s}}\n"
        "  e: {kind: openai-compatible, base_url: 'http://127.0.0.9:1/', timeouts: {first_byte: 5s, idle: 5s}}\n"
        "  f: {kind: openai-compatible, base_url: 'https://h/', timeouts: {first_byte: 5s, idle: 5s}}\n",
        {},
    )
    assert warnings(settings) == [
        "providers.a.base_url: http:// to another machine: prompts and the key travel unencrypted",
        "providers.b.base_url: http:// to another machine: prompts travel unencrypted",
        "providers.a.timeouts.first_byte: 60s is never reached: server.total_timeout is 30s",
        "providers.a.timeouts.idle: 60s is never reached: server.total_timeout is 30s",
    ]


# The environment alone


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a settings file."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_key_in_the_environment_is_enough(empty: Path) -> None:
    settings = load(None, {"ANTHROPIC_API_KEY": "k"})
    assert settings.source == "environment"
    assert list(settings.providers) == ["anthropic"]
    assert settings.default == RouteSettings(("anthropic/claude-haiku-4-5",))
    assert settings.models == {"claude-*": RouteSettings(("anthropic/*",))}
    assert settings.server == ServerSettings()


def test_all_that_the_environment_can_say(empty: Path) -> None:
    settings = load(
        None,
        {
            **KEYS,
            "OPENAI_BASE_URL": "http://127.0.0.1:9/v1/",
            "ANTHROPIC_BASE_URL": "https://eu.example.com",
            "PORT": "81",
            "EDGEGW_ADMIN_PORT": "82",
            "EDGEGW_WORKERS": "3",
            "EDGEGW_STATE_DIR": "/s",
            "TOKENS_PER_MINUTE": "77",
            "DATABASE_URL": "sqlite:///rows.db",
            "REDIS_URL": "",
        },
    )
    assert [each.base_url for each in settings.providers.values()] == [
        "http://127.0.0.1:9/v1",
        "https://eu.example.com",
    ]
    assert settings.default == RouteSettings(("openai/gpt-5-mini", "anthropic/claude-haiku-4-5"))
    assert list(settings.models) == ["gpt-*", "o1*", "o3*", "o4*", "claude-*"]
    assert settings.server.listen == Address("0.0.0.0", 81)
    assert settings.server.admin == Address("127.0.0.1", 82)
    assert (settings.server.workers, settings.server.state_dir) == (3, "/s")
    assert settings.limits.tokens_per_minute == 77
    assert settings.sqlite_path == "rows.db"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "http", "address such as"),
        ("PORT", "99999", "1 to 65535"),
        ("PORT", "9090", "also the port"),
        ("EDGEGW_ADMIN_PORT", "0", "1 to 65535"),
        ("EDGEGW_WORKERS", "many", "whole number"),
        ("TOKENS_PER_MINUTE", "-1", "whole number"),
        ("OPENAI_API_KEY", "a b", "blank"),
        ("OPENAI_BASE_URL", "example.com", "URL such as"),
        ("DATABASE_URL", "postgresql://u:p@h/d", "PostgreSQL is not built into"),
        ("REDIS_URL", "redis://h", "Redis is not built into"),
    ],
)
def test_a_bad_value_names_its_variable(empty: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {**KEYS, name: value})
    (mistake,) = caught.value.mistakes
    assert str(mistake).startswith(f"environment: {name}: ")
    assert words in mistake.message
    assert value not in str(mistake) or value == "9090"


def test_without_any_key_it_says_what_to_do(empty: Path) -> None:
    with pytest.raises(NoProviderError) as caught:
        load(None, {"OPENAI_API_KEY": "", "PORT": "81"})
    for words in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "edgegw.yaml", "edgegw demo"):
        assert words in str(caught.value)


def test_which_file_is_read(empty: Path) -> None:
    def write(name: str, tokens: int) -> str:
        (empty / name).write_text(f"{BASE}limits: {{tokens_per_minute: {tokens}}}\n")
        return name

    write("edgegw.yaml", 1)
    assert load(None, KEYS).limits.tokens_per_minute == 1
    environ = {**KEYS, "EDGEGW_CONFIG": write("other.yaml", 2)}
    assert load(None, environ).limits.tokens_per_minute == 2
    assert load(write("third.yaml", 3), environ).limits.tokens_per_minute == 3
    with pytest.raises(SettingsError, match=r"^missing\.yaml: cannot be read: No such file"):
        load("missing.yaml", environ)


def test_what_a_deployment_may_override() -> None:
    environ = {"PORT": "81", "EDGEGW_STATE_DIR": "/s", "TOKENS_PER_MINUTE": "5", "EDGEGW_WORKERS": "7"}
    settings = load_text(BASE, environ)
    assert (settings.server.listen, settings.server.state_dir) == (Address("0.0.0.0", 81), "/s")
    assert (settings.limits.tokens_per_minute, settings.server.workers) == (50_000, 1)  # only where the file asks
    local = f'{BASE}server: {{listen: "[::1]:80", headers_max: 11}}'
    assert load_text(local, environ).server.listen == Address("::1", 81)
    assert load_text(local, environ).server.headers_max == 11
    (mistake,) = mistakes_of(local, {"PORT": "x"})
    assert mistake.path == "PORT"


def test_importing_settings_loads_no_yaml_parser() -> None:
    program = (
        "import sys, edgegw.settings; edgegw.settings.load(None, {'OPENAI_API_KEY': 'k'}); print('yaml' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd="/")
    assert ran.stdout.strip() == "False", ran.stderr


# Laws

_YAML_WORDS = st.sampled_from(
    ["version: 1", "providers:", "server:", "limits: ", "{", "}", "[", "]", "${", "}", ":", ",", "- ", "&a", "*a", "!x"]
    + [
        "\n",
        "\n  ",
        "\t",
        "'",
        '"',
        "#",
        "|",
        ">",
        "<<",
        "? ",
        "%",
        "@",
        "`",
        "a",
        "1",
        "~",
        "\x00",
        "\ue07b",
        "é",
        "\r",
    ]
)


@given(st.lists(_YAML_WORDS, max_size=25).map("".join))
@examples(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_no_text_breaks_the_loader(text: str) -> None:
    with pytest.raises(SettingsError):
        load_text(text, {})


@given(st.data())
@examples(deadline=None)
def test_a_damaged_file_is_valid_or_has_mistakes_with_places(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(FULL)))
    end = data.draw(st.integers(start, min(start + 12, len(FULL))))
    text = FULL[:start] + data.draw(st.text(max_size=4)) + FULL[end:]
    try:
        load_text(text, {})
    except SettingsError as error:
        assert error.mistakes
        assert all(each.line >= 1 and each.column >= 1 for each in error.mistakes)


@pytest.mark.parametrize("text", [EXAMPLE, FULL, BASE + "server: {state_dir: 'null: ${A:-${x}'}", BASE])
def test_what_is_described_loads_to_the_same(text: str) -> None:
    settings = load_text(text, KEYS, "x")
    again = load_text(describe(settings), {}, "x")
    assert describe(again) == describe(settings)
    assert _unmasked(again) == _unmasked(settings)


def _unmasked(settings: Settings) -> Settings:
    providers = {
        name: msgspec.structs.replace(each, api_key=None, headers=dict.fromkeys(each.headers, ""), proxy=None)
        for name, each in settings.providers.items()
    }
    return msgspec.structs.replace(settings, providers=providers)


# The schema


def _says(document: Any, value: Any, root: Any) -> bool:
    """Whether `value` is valid by `document`: the part of JSON Schema that we write, any other keyword is an error."""
    for keyword, rule in document.items():
        if not _KEYWORDS[keyword](rule, value, document, root):
            return False
    return True


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def _is_type(rule: str | list[str], value: Any) -> bool:
    names = [rule] if isinstance(rule, str) else rule
    return not isinstance(value, bool) and any(isinstance(value, _TYPES[name]) for name in names)


def _conditional(document: Any, value: Any, root: Any) -> bool:
    return not _says(document["if"], value, root) or _says(document["then"], value, root)


def _others(rule: Any, value: Any, document: Any, root: Any) -> bool:
    others = [part for key, part in value.items() if key not in document.get("properties", {})] if _dict(value) else []
    return not others if rule is False else all(_says(rule, part, root) for part in others)


def _dict(value: Any) -> bool:
    return isinstance(value, dict)


_KEYWORDS: dict[str, Any] = {
    "type": lambda rule, value, d, r: _is_type(rule, value),
    "enum": lambda rule, value, d, r: value in rule,
    "const": lambda rule, value, d, r: value == rule,
    "pattern": lambda rule, value, d, r: not isinstance(value, str) or re.search(rule, value) is not None,
    "minimum": lambda rule, value, d, r: not isinstance(value, int | float) or value >= rule,
    "maximum": lambda rule, value, d, r: not isinstance(value, int | float) or value <= rule,
    "minItems": lambda rule, value, d, r: not isinstance(value, list) or len(value) >= rule,
    "required": lambda rule, value, d, r: not _dict(value) or all(key in value for key in rule),
    "anyOf": lambda rule, value, d, r: any(_says(each, value, r) for each in rule),
    "allOf": lambda rule, value, d, r: all(_says(each, value, r) for each in rule),
    "not": lambda rule, value, d, r: not _says(rule, value, r),
    "if": lambda rule, value, d, r: _conditional(d, value, r),
    "then": lambda rule, value, d, r: "if" in d,
    "$ref": lambda rule, value, d, r: _says(r["$defs"][rule.removeprefix("#/$defs/")], value, r),
    "items": lambda rule, value, d, r: not isinstance(value, list) or all(_says(rule, each, r) for each in value),
    "propertyNames": lambda rule, value, d, r: not _dict(value) or all(_says(rule, each, r) for each in value),
    "additionalProperties": _others,
    "properties": lambda rule, value, d, r: (
        not _dict(value) or all(_says(part, value[key], r) for key, part in rule.items() if key in value)
    ),
    **dict.fromkeys(("$schema", "$defs", "title", "description", "default"), lambda rule, value, d, r: True),
}


def _as_an_editor_sees_it(text: str) -> Any:
    """Editors know no bare `${…}`, so it is quoted for them; dates and octals stay texts."""
    loader = type("Texts", (yaml.SafeLoader,), {})
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return yaml.load(re.sub(r"(?<=[ \[])(\$\{[^}]*\})", r'"\1"', text), Loader=loader)


@pytest.mark.parametrize(
    "text", [EXAMPLE, FULL, BASE, describe(load_text(FULL, {}))], ids=["example", "full", "base", "told"]
)
def test_the_schema_accepts_what_the_loader_accepts(text: str) -> None:
    document = schema()
    assert _says(document, _as_an_editor_sees_it(text), document)


# What an editor cannot know: YAML's own rules, variables, files, and what one setting means for another.
_BEYOND_THE_SCHEMA = re.compile(
    "unset|expression|file|variable|unknown provider|second target|\\* in|place in|same port|attempts|base over|journal|"
    "key empty|key with|syntax|control|private|second doc|depth|anchor|alias|merge|tag|twice|list as key|providers empty|"
    "bad host|bad port|port 0|bad IPv6|octal|too long|too small|duration zero|no targets|null|quoted|IPv6 without"
)


@pytest.mark.parametrize("case", [m for m in MISTAKES if not _BEYOND_THE_SCHEMA.search(m[0])], ids=lambda case: case[0])
def test_the_schema_refuses_what_the_loader_refuses(case: tuple[str, str, dict[str, str], str, str, str]) -> None:
    document = schema()
    assert not _says(document, _as_an_editor_sees_it(_document(case[1])), document)


def _rows(section: Section = ROOT, path: str = "") -> Iterator[tuple[str, Section, Field]]:
    for field in section.fields:
        here = f"{path}.{field.key}" if path else field.key
        yield here, section, field
        inner: Spec = field.spec.item if isinstance(field.spec, Named) else field.spec
        if isinstance(inner, Section):
            yield from _rows(inner, here)


def test_the_schema_tells_every_setting_with_its_default() -> None:
    text = msgspec.json.encode(schema()).decode()
    for path, section, field in _rows():
        assert msgspec.json.encode(field.doc).decode() in text, path
        value = default(section, field)
        assert value is None or f'"default":{msgspec.json.encode(value).decode()}' in text, path
    assert schema()["properties"]["server"]["anyOf"][0]["properties"]["drain_timeout"]["default"] == "60s"


# What is written about it


def test_the_page_tells_every_setting_with_its_default() -> None:
    page = (HOUSE / "docs" / "settings.md").read_text()
    for path, section, field in _rows():
        if not isinstance(field.spec, Section | Named):
            value = default(section, field)
            shown = "" if value is None else f"`{value}`"
            assert f"| `{field.key}` | {shown} | {field.doc} |" in page, path
    for variable in VARIABLES:
        assert f"| `{variable.name}` |" in page


def test_the_example_of_the_environment_names_every_variable() -> None:
    example = (HOUSE / ".env.example").read_text()
    names = [variable.name for variable in VARIABLES]
    names += [name for provider in PROVIDERS for name in (provider.key, provider.base_url)]
    for name in (*names, "EDGEGW_CONFIG"):
        assert re.search(rf"^(# )?{name}=", example, re.MULTILINE), name
