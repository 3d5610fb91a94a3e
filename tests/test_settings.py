"""Settings: what the file and the environment come to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings_cases import BASE, EXAMPLE, FULL, KEYS, NOW_NS, mistakes_of, unmasked
from tenant_cases import TENANTS

from edgegw.exchange import RetryPolicy, Target
from edgegw.settings import (
    Address,
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
    warnings,
)
from edgegw.settings.values import duration, size

HOUSE = Path(__file__).parent.parent


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
    assert warnings(settings, NOW_NS) == []


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
    [
        ("2s", 2.0),
        ("500ms", 0.5),
        ("1m", 60.0),
        ("2h", 7200.0),
        ("1d", 86_400.0),
        ("2", 2.0),
        ("0.25", 0.25),
        ("1.5 h", 5400.0),
    ],
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
    assert warnings(settings, NOW_NS) == [
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
            "EDGEGW_ADMIN_HOST": "0.0.0.0",
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
    assert settings.server.listen == Address("127.0.0.1", 81)
    assert settings.server.admin == Address("0.0.0.0", 82)
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
        ("OPENAI_API_KEY", "sk b", "blank"),
        ("OPENAI_BASE_URL", "models.internal", "URL such as"),
        ("DATABASE_URL", "postgresql://u:p@h", "name of the database is missing"),
        ("REDIS_URL", "http://h", "begins with redis://"),
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
    assert (settings.server.listen, settings.server.state_dir) == (Address("127.0.0.1", 81), "/s")
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
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=HOUSE)
    assert ran.stdout.strip() == "False", ran.stderr


@pytest.mark.parametrize("text", [EXAMPLE, FULL, TENANTS, BASE + "server: {state_dir: 'null: ${A:-${x}'}", BASE])
def test_what_is_described_loads_to_the_same(text: str) -> None:
    settings = load_text(text, KEYS, "x")
    again = load_text(unmasked(describe(settings)), {}, "x")
    assert describe(again) == describe(settings)
    assert _unmasked(again) == _unmasked(settings)


def _unmasked(settings: Settings) -> Settings:
    providers = {
        name: msgspec.structs.replace(each, api_key=None, headers=dict.fromkeys(each.headers, ""), proxy=None)
        for name, each in settings.providers.items()
    }
    storage = msgspec.structs.replace(settings.storage, redis_url=None)
    return msgspec.structs.replace(settings, providers=providers, storage=storage)
