"""Every way in which settings can be wrong: told at once, each in its place, never with a secret in it.

The laws: no text makes the loader fail in any other way than with SettingsError, and no mistake shows what came from
the environment.
"""

from __future__ import annotations

import pickle
import re

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from settings_cases import BASE, EXAMPLE, FULL, KEYS, MISTAKES, NOW_NS, document, mistakes_of

from edgegw.settings import Secret, SettingsError, describe, load_text, warnings

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
    ("timeouts: {idle: 0}", "timeouts.idle", "a duration from 1ms"),
    ("timeouts: {idel: 0}", "timeouts.idel", "did you mean 'idle'"),
    ("storage: 1", "storage", "unknown setting"),
]


@pytest.mark.parametrize(("what", "rest", "environ", "place", "path", "words"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_has_its_place_and_its_words(
    what: str, rest: str, environ: dict[str, str], place: str, path: str, words: str
) -> None:
    found = mistakes_of(document(rest), environ)
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
        fast = mistakes_of(document(rest), environ)
        with monkeypatch.context() as patch:
            patch.delattr(yaml, "CSafeLoader", raising=False)
            plain = mistakes_of(document(rest), environ)
        assert [each.path for each in plain] == [each.path for each in fast]
        if not any("not YAML" in each.message for each in fast):  # there, the two parsers have their own words
            assert plain == fast


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
    for shown in (repr(settings), str(settings), describe(settings), "\n".join(warnings(settings, NOW_NS))):
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
    ("database_url: postgresql+psycopg2://u:p@h/d", "begins with postgresql://"),
    ("database_url: mysql://u:p@h/d", "expected sqlite:///path"),
    ("database_url: sqlite:///", "expected sqlite:///path"),
    ("database_url: 'sqlite:///:memory:'", "would be lost"),
]


@pytest.mark.parametrize(("setting", "words"), DATABASES)
def test_what_is_no_database_is_refused_plainly(setting: str, words: str) -> None:
    (mistake,) = mistakes_of(f"{BASE}storage: {{{setting}}}")
    assert words in mistake.message
    assert "u:p" not in str(mistake)


# Laws

_YAML_WORDS = st.sampled_from([
    "version: 1", "providers:", "server:", "limits: ", "{", "}", "[", "]", "${", "}", ":", ",", "- ", "&a", "*a", "!x",
    "\n", "\n  ", "\t", "'", '"', "#", "|", ">", "<<", "? ", "%", "@", "`", "a", "1", "~", "\x00", "\ue07b", "é", "\r",
])  # fmt: skip


@given(st.lists(_YAML_WORDS, max_size=25).map("".join))
@examples(suppress_health_check=[HealthCheck.too_slow])
def test_no_text_breaks_the_loader(text: str) -> None:
    with pytest.raises(SettingsError):
        load_text(text, {})


@given(st.data())
def test_a_damaged_file_is_valid_or_has_mistakes_with_places(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(FULL)))
    end = data.draw(st.integers(start, min(start + 12, len(FULL))))
    text = FULL[:start] + data.draw(st.text(max_size=4)) + FULL[end:]
    mistakes = []
    try:
        settings = load_text(text, {})
    except SettingsError as error:
        mistakes = error.mistakes
    else:
        assert settings.providers
    assert all(each.line >= 1 and each.column >= 1 for each in mistakes)
