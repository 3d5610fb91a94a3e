"""Settings files for the tests, whole and broken, and where the mistakes of the broken ones are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count

import pytest
from tenant_cases import TENANT_MISTAKES

from edgegw.settings import Mistake, SettingsError, load_text

NOW_NS = 1_800_000_000 * 10**9  # 2027-01-15, for what expires
KEYS = {"OPENAI_API_KEY": "sk-open", "ANTHROPIC_API_KEY": "sk-ant"}

EXAMPLE = """\
version: 1
server: {listen: "127.0.0.1:8080", admin: "127.0.0.1:9090", workers: 1, state_dir: .edgegw, drain_timeout: 60s}
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


FULL = """\
version: 1
auth: none
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
  allow_unauthenticated: true
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
models:
limits: {tokens_per_minute: 9, requests_per_minute: 8, concurrent_requests: 7, without_redis: open}
tenants:
  acme:
    limits: {tokens_per_day: 6, tokens_per_month: 5}
    models: {"gpt-5*": {tokens_per_minute: 4}}
    allow: {routes: [default], models: ["gpt-*"]}
    keys:
      ci: sha256:0000000000000000000000000000000000000000000000000000000000000001
      web: {digest: "sha256:0000000000000000000000000000000000000000000000000000000000000002", acts_for: [beta]}
    weight: 3
  beta: {allow: {routes: [], models: []}, without_redis: closed, capture: errors}
prices:
  p-1.x/a/b: {input: 2.50, output: 10, cached_input: 0.000000000001, cache_write: "3.75", reasoning: 100000}
  "*/a*": {free: true}
storage:
  database_url: "sqlite:////data/rows.db"
  redis_url: rediss://user:pw@redis.internal:6380/1
  retention: 90d
  journal: {max: 2GiB, segment: 1MiB}
capture: {mode: sampled, sample: 2.5%, body_max: 1MiB, waiting: 4GiB, retention: 36h, max: 3MiB}
"""


# (what, text after BASE unless it begins with a version, environment, place, path, words of message and hint)
MISTAKES: list[tuple[str, str, dict[str, str], str, str, str]] = [
    ("unknown key", "limit: {}", {}, "4:1", "limit", "unknown setting .*did you mean 'limits'"),
    ("unknown key, unlike all", "zzz: 1", {}, "4:1", "zzz", "there are: version, auth, server"),
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
    ("duration unit", "server: {head_timeout: 2sec}", {}, "4:24", "server.head_timeout", "to 24h, .*2sec.*like 500ms"),
    ("duration sign", "server: {head_timeout: -2s}", {}, "4:24", "server.head_timeout", "duration from .*written"),
    ("duration nan", "server: {head_timeout: .nan}", {}, "4:24", "server.head_timeout", "duration from .*written"),
    ("duration zero", "server: {head_timeout: 0s}", {}, "4:24", "server.head_timeout", "from 1ms to 24h, found '0s'"),
    ("duration too long", "server: {head_timeout: 48h}", {}, "4:24", "server.head_timeout", "from 1ms to 24h"),
    ("share above the whole", "capture: {sample: 101%}", {}, "4:19", "capture.sample", "from 0% to 100%, such as 1%"),
    ("share without its unit", "capture: {sample: 0.01}", {}, "4:19", "capture.sample", "from 0% to 100%, such as 1%"),
    ("two settings: waiting", "capture: {waiting: 1MiB, body_max: 1MiB}", {}, "4:20", "capture.waiting", "three times"),
    ("two settings: content", "capture: {max: 1MiB, body_max: 1MiB}", {}, "4:16", "capture.max", "twice body_max"),
    ("mode of capture", "capture: {mode: on}", {}, "4:17", "capture.mode", "one of off, errors, sampled, all"),
    ("duration too short", "storage: {retention: 60}", {}, "4:22", "storage.retention", "from 1h to 36500d"),
    ("size unit", "server: {body_max: 20MB}", {}, "4:20", "server.body_max", "a size from .*like 64KiB"),
    ("size too small", "server: {body_max: 1}", {}, "4:20", "server.body_max", "from 1KiB to 1GiB"),
    ("address without port", "server: {listen: 0.0.0.0}", {}, "4:18", "server.listen", "address such as"),
    ("address with a bad port", 'server: {listen: "x:70000"}', {}, "4:18", "server.listen", "1 to 65535, found"),
    ("address with port 0", 'server: {listen: "x:0"}', {}, "4:18", "server.listen", "1 to 65535"),
    ("address with a bad host", 'server: {listen: "1.2.3.400:1"}', {}, "4:18", "server.listen", "not an IP address"),
    ("IPv6 without brackets", 'server: {listen: "::1:80"}', {}, "4:18", "server.listen", "address such as"),
    ("bad IPv6", 'server: {listen: "[:::1]:80"}', {}, "4:18", "server.listen", "not an IP address"),
    ("same port", 'server: {admin: "127.0.0.1:8080"}', {}, "4:17", "server.admin", "also the port of server.listen"),
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
    ("journal adopts", "storage: {journal: {adopt: [/a/*]}}", {}, "4:21", "storage.journal.adopt", "in a PostgreSQL"),
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
    *TENANT_MISTAKES,
    ("price of a pattern alone", "prices: {gpt-*: {free: true}}", {}, "4:10", 'prices["gpt-*"]',
     "written provider/model"),
    ("price of an unknown provider", "prices: {locl/a: {free: true}}", {}, "4:10", 'prices["locl/a"]',
     "no provider 'locl' .did you mean 'local'"),
    ("price below nothing", "prices: {local/a: {input: -1, output: 1}}", {}, "4:27", 'prices["local/a"].input',
     "from 0 to 100000.*found '-1'"),
    ("price beyond all", "prices: {local/a: {input: 1, output: 100000.01}}", {}, "4:38", 'prices["local/a"].output',
     "from 0 to 100000"),
    ("price in words", "prices: {local/a: {input: 1e3, output: 1}}", {}, "4:27",
     'prices["local/a"].input', "like 2.5"),
    ("price too fine", "prices: {local/a: {input: 0.0000000000001, output: 1}}", {}, "4:27", 'prices["local/a"].input',
     "at most 12 decimals"),
    ("price of something else", "prices: {local/a: {cached: 1}}", {}, "4:20", 'prices["local/a"].cached',
     "unknown setting .did you mean 'cached_input'"),
    ("price without output", "prices: {local/a: {input: 1}}", {}, "4:27", 'prices["local/a"].output',
     "missing .a price has input and output, or free"),
    ("price without anything", "prices: {local/a: {}}", {}, "4:10", 'prices["local/a"].input', "missing"),
    ("free and not", "prices: {local/a: {input: 1, free: true}}", {}, "4:10", 'prices["local/a"]',
     "is free, and has input"),
    ("price as a number", "prices: {local/a: 5}", {}, "4:19", 'prices["local/a"]', "expected a mapping of settings"),
]  # fmt: skip


def document(rest: str) -> str:
    """A whole file from a line of MISTAKES."""
    return rest if rest.startswith(("version", "providers")) else BASE + rest


def mistakes_of(text: str, environ: Mapping[str, str] | None = None) -> list[Mistake]:
    """All that is wrong with a text that has mistakes."""
    with pytest.raises(SettingsError) as caught:
        load_text(text, environ or {})
    return caught.value.mistakes


def unmasked(text: str) -> str:
    """What `describe` made, with something in place of what it masks: for digests 1, 2, … in their order."""
    numbers = count(1)
    return re.sub(r"sha256:\*\*\*", lambda _: f"sha256:{next(numbers):064x}", text).replace('"***"', "k")
