"""Settings about tenants, keys and limits for the tests, whole and broken."""

from __future__ import annotations

D1, D2, D3, D4 = (f"sha256:{number:064x}" for number in range(1, 5))

TENANTS = f"""\
version: 1
auth: keys
server: {{listen: "0.0.0.0:8080"}}
providers:
  local: {{kind: openai-compatible, base_url: "http://127.0.0.1:1/v1"}}
use_cases:
  support_summary: {{targets: [local/a]}}
models:
  smart: {{targets: [local/a]}}
  "gpt-*": {{targets: ["local/*"]}}
default: {{targets: [local/a]}}
limits: {{tokens_per_minute: 7, requests_per_minute: 6, concurrent_requests: 5, tokens_per_day: 4, tokens_per_month: 3,
         without_redis: open}}
tenants:
  acme:
    limits:
      tokens_per_minute: 100000
      requests_per_minute: 600
      concurrent_requests: 20
      tokens_per_day: 5000000
      tokens_per_month: 100000000
    models:
      "gpt-5*": {{tokens_per_minute: 20000}}
      any: {{}}
    allow: {{routes: [support_summary, smart, default], models: ["gpt-*", "claude-*"]}}
    keys:
      ci: "{D1}"
      web: {{digest: "{D2}", expires: 2027-01-01, acts_for: [beta, "*"], limits: {{requests_per_minute: 60}}}}
    weight: 2
    without_redis: closed
  Łódź & sons:
    allow: {{routes: [], models: []}}
    keys: {{Web: {{digest: {D3.upper().replace("SHA", "sha")}, expires: 2027-01-01T12:00:01Z}}, ci: {D4}}}
  nobody:
"""

_TENANT = "tenants:\n  acme:\n    "
_KEYS = f"{_TENANT}keys:\n      "
_OPEN = "open to other machines while auth is none: whoever reaches the port may spend your money"

# As MISTAKES of settings_cases.py: (what, text, environment, place, path, words)
TENANT_MISTAKES: list[tuple[str, str, dict[str, str], str, str, str]] = [
    ("auth word", "auth: key", {}, "4:7", "auth", "one of none, keys, found 'key' .*mean 'keys'"),
    ("auth list", "auth: [keys]", {}, "4:1", "auth", "one of none, keys, found a list"),
    ("older boolean", "server: {allow_unauthenticated: yes}", {}, "4:33", "server.allow_unauthenticated",
     "true or false, found 'yes'"),
    ("older boolean in capitals", "server: {allow_unauthenticated: True}", {}, "4:33", "server.allow_unauthenticated",
     "did you mean 'true'"),
    ("boolean quoted", "server: {allow_unauthenticated: 'true'}", {}, "4:33", "server.allow_unauthenticated",
     "remove the quotes"),
    ("two settings: all", 'server: {listen: "0.0.0.0:80"}', {}, "4:18", "server.listen",
     f"{_OPEN} .listen on 127.0.0.1, set auth: keys, or server.allow_unauthenticated: true"),
    ("two settings: all of IPv6", 'server: {listen: "[::]:80"}', {}, "4:18", "server.listen", _OPEN),
    ("two settings: an address", 'server: {listen: "10.0.0.1:80"}', {}, "4:18", "server.listen", _OPEN),
    ("two settings: a name", 'server: {listen: "127.evil.com:80"}', {}, "4:18", "server.listen", _OPEN),
    ("two settings: none", 'auth: none\nserver: {listen: "h:80", allow_unauthenticated: false}', {}, "5:18",
     "server.listen", _OPEN),
    ("limit of nothing", "limits: {requests_per_minute: 0}", {}, "4:31", "limits.requests_per_minute",
     r"whole number from 1 to 1000000000, found '0' .*allow: \{routes: \[\], models: \[\]\}"),
    ("limit below nothing", "limits: {tokens_per_day: -1}", {}, "4:26", "limits.tokens_per_day", "found '-1'$"),
    ("limit with a unit", "limits: {tokens_per_month: 1M}", {}, "4:28", "limits.tokens_per_month", "whole number"),
    ("limit beyond", f"limits: {{tokens_per_month: {10**12 + 1}}}", {}, "4:28", "limits.tokens_per_month", "to 10000"),
    ("limit name", "limits: {concurrent_request: 1}", {}, "4:10", "limits.concurrent_request", "'concurrent_requests'"),
    ("without_redis", "limits: {without_redis: close}", {}, "4:25", "limits.without_redis", "did you mean 'closed'"),
    ("without_redis of a tenant", f"{_TENANT}without_redis: shut", {}, "6:20", "tenants.acme.without_redis", "local"),
    ("limits of a tenant", f"{_TENANT}limits: 5", {}, "6:13", "tenants.acme.limits", "expected a mapping of settings"),
    ("no limit of a tenant", f"{_TENANT}limits: {{concurrent_requests: 0}}", {}, "6:35",
     "tenants.acme.limits.concurrent_requests", "to block a tenant"),
    ("Redis for all", f"{_TENANT}limits: {{without_redis: open}}", {}, "6:14", "tenants.acme.limits.without_redis",
     "unknown setting .*mean limits.without_redis"),
    ("tenants in a list", "tenants: [acme]", {}, "4:1", "tenants", "expected a mapping of settings, found a list"),
    ("tenant name empty", "tenants: {'': {}}", {}, "4:11", 'tenants[""]', "a tenant's name: printable, at most 256"),
    ("tenant name of control", 'tenants: {"a\\tb": {}}', {}, "4:11", 'tenants["a\tb"]', "printable"),
    ("tenant name endless", f"tenants: {{{'x' * 257}: {{}}}}", {}, "4:11", f"tenants.{'x' * 257}", "at most 256"),
    ("limit beside limits", f"{_TENANT}tokens_per_day: 5", {}, "6:5", "tenants.acme.tokens_per_day",
     "did you mean tenants.acme.limits.tokens_per_day"),
    ("tenant key unknown", f"{_TENANT}alow: {{}}", {}, "6:5", "tenants.acme.alow", "did you mean 'allow'"),
    ("weightless", f"{_TENANT}weight: 0", {}, "6:13", "tenants.acme.weight", "from 1 to 1000"),
    ("model name endless", f"{_TENANT}models: {{{'x' * 257}: {{}}}}", {}, "6:14", f"tenants.acme.models.{'x' * 257}",
     "a model's name"),
    ("model without a limit", f"{_TENANT}models: {{gpt: 5}}", {}, "6:19", "tenants.acme.models.gpt", "a mapping"),
    ("two settings: route", f"{_TENANT}allow: {{routes: [smrt]}}\nmodels: {{smart: {{targets: [local/x]}}}}", {},
     "6:22", "tenants.acme.allow.routes[0]", "no such use case or model alias, found 'smrt' .*did you mean 'smart'"),
    ("two settings: route of none", f"{_TENANT}allow: {{routes: [default]}}", {}, "6:22",
     "tenants.acme.allow.routes[0]", "found 'default' .there are none"),
    ("two settings: no use case", f"{_TENANT}allow: {{routes: [a, bb]}}\nuse_cases: {{a: {{targets: [local/x]}}}}", {},
     "6:25", "tenants.acme.allow.routes[1]", "found 'bb' .there are: a"),
    ("two settings: pattern", f"{_TENANT}allow: {{routes: ['g-*']}}\nmodels: {{'g-*': {{targets: [local/x]}}}}", {},
     "6:22", "tenants.acme.allow.routes[0]", "no such use case or model alias"),
    ("routes of text", f"{_TENANT}allow: {{routes: default}}", {}, "6:21", "tenants.acme.allow.routes",
     r"a list, like \[support_summary, default\]"),
    ("models of nothing", f"{_TENANT}allow: {{models: [~]}}", {}, "6:22", "tenants.acme.allow.models[0]", "nothing"),
    ("acts_for of text", f'{_KEYS}a: {{digest: "{D1}", acts_for: beta}}', {}, "7:104", "tenants.acme.keys.a.acts_for",
     r'a list, like \[beta\] or \["\*"\]'),
    ("digest missing", f"{_KEYS}a: {{expires: 2027-01-01}}", {}, "7:7", "tenants.acme.keys.a.digest",
     "missing .*edgegw keys hash"),
    ("digest null", f"{_KEYS}a:", {}, "7:9", "tenants.acme.keys.a.digest", "missing .*edgegw keys hash"),
    ("digest short", f"{_KEYS}a: sha256:12ab", {}, "7:10", "tenants.acme.keys.a.digest",
     r"sha256: and 64 hexadecimal digits .*edgegw keys hash, or printf %s \"\$KEY\" \| sha256sum"),
    ("digest without its algorithm", f"{_KEYS}a: {D1[7:]}", {}, "7:10", "tenants.acme.keys.a.digest", "sha256: and"),
    ("digest of other letters", f"{_KEYS}a: {D1[:-1]}g", {}, "7:10", "tenants.acme.keys.a.digest", "hexadecimal"),
    ("digest in a list", f"{_KEYS}a: [{D1}]", {}, "7:7", "tenants.acme.keys.a", "a mapping of settings, found a list"),
    ("digest spelled wrong", f"{_KEYS}a: {{diget: {D1}}}", {}, "7:11", "tenants.acme.keys.a.diget", "mean 'digest'"),
    ("key by a name with a dot", f"{_KEYS}a.b: {D1}", {}, "7:7", 'tenants.acme.keys["a.b"]', "64 letters, digits,"),
    ("two settings: digests", f"{_KEYS}a: {D1}\n      b: {{digest: {D1}}}", {}, "8:19", "tenants.acme.keys.b.digest",
     "the same key as tenants.acme.keys.a.digest .*one tenant and one name"),
    ("two settings: digests apart", f"{_KEYS}a: {D1}\n  beta: {{keys: {{a: {D1.replace('sha256:0', 'sha256:0')}}}}}",
     {}, "8:20", "tenants.beta.keys.a.digest", "the same key as tenants.acme.keys.a.digest"),
    ("expiry", f"{_KEYS}a: {{digest: {D1}, expires: tomorrow}}", {}, "7:101", "tenants.acme.keys.a.expires",
     "a day such as 2027-01-01, or a time such as 2027-01-01T12:00:00Z, found 'tomorrow'"),
    ("expiry elsewhere", f"{_KEYS}a: {{digest: {D1}, expires: 2027-01-01T12:00:00+01:00}}", {}, "7:101",
     "tenants.acme.keys.a.expires", "such as 2027"),
    ("expiry: calendar", f"{_KEYS}a: {{digest: {D1}, expires: 2027-02-29}}", {}, "7:101", "tenants.acme.keys.a.expires",
     "there is no such day or time, found '2027-02-29'"),
    ("expiry: end of the calendar", f"{_KEYS}a: {{digest: {D1}, expires: 2999-01-01}}", {}, "7:101",
     "tenants.acme.keys.a.expires", "must be from 1970 to 2261"),
]  # fmt: skip
