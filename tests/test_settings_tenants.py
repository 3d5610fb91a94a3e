"""Settings about who may use the gateway: tenants, keys, limits, and whether anybody is asked for a key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from settings_cases import BASE, KEYS, NOW_NS, mistakes_of, unmasked
from tenant_cases import D1, D2, D3, D4, TENANTS

from edgegw.limits import limiter, meter
from edgegw.settings import (
    Address,
    AllowSettings,
    KeySettings,
    OwnLimits,
    SettingsError,
    TenantSettings,
    describe,
    load,
    load_text,
    warnings,
)
from edgegw.settings.addresses import is_loopback
from edgegw.settings.tenant_fields import TENANT_CHARS_MAX
from edgegw.settings.values import digest, moment, printable

DAY_NS = 86_400 * 10**9
YEAR_2027_NS = 1_798_761_600 * 10**9


def bytes_of(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("sha256:"))


def tenant(yaml: str) -> TenantSettings:
    """Tenant acme of a flow mapping."""
    return load_text(f"{BASE}tenants: {{acme: {yaml}}}\n", {}).tenants["acme"]


def test_every_key_reaches_its_attribute() -> None:
    settings = load_text(TENANTS, {})
    assert settings.auth == "keys"
    assert settings.server.listen == Address("0.0.0.0", 8080)
    assert msgspec.structs.astuple(settings.limits) == (7, 6, 5, 4, 3, "open")
    assert list(settings.tenants) == ["acme", "Łódź & sons", "nobody"]
    acme, sons, nobody = settings.tenants.values()
    assert acme == TenantSettings(
        name="acme",
        limits=OwnLimits(
            tokens_per_minute=100_000,
            requests_per_minute=600,
            concurrent_requests=20,
            tokens_per_day=5_000_000,
            tokens_per_month=100_000_000,
        ),
        models={"gpt-5*": OwnLimits(tokens_per_minute=20_000), "any": OwnLimits()},
        allow=AllowSettings(routes=("support_summary", "smart", "default"), models=("gpt-*", "claude-*")),
        keys={
            "ci": KeySettings(name="ci", digest=bytes_of(D1)),
            "web": KeySettings(
                name="web",
                digest=bytes_of(D2),
                expires_ns=YEAR_2027_NS,
                acts_for=("beta", "*"),
                limits=OwnLimits(requests_per_minute=60),
            ),
        },
        weight=2,
        without_redis="closed",
    )
    assert sons.allow == AllowSettings(routes=(), models=())
    assert {key.name: key.digest for key in sons.keys.values()} == {"Web": bytes_of(D3), "ci": bytes_of(D4)}
    assert sons.keys["Web"].expires_ns == YEAR_2027_NS + DAY_NS // 2 + 10**9
    assert nobody == TenantSettings(name="nobody")


@pytest.mark.parametrize("nothing", ["{}", "~", "", "{limits: ~, models: ~, allow: ~, keys: ~}"])
def test_what_is_null_is_not_set(nothing: str) -> None:
    assert tenant(nothing) == TenantSettings(name="acme")
    assert tenant("{limits: {tokens_per_day: ~}, allow: {routes: ~}}") == TenantSettings(name="acme")


def test_an_empty_list_is_not_no_list() -> None:
    assert tenant("{allow: {routes: []}}").allow == AllowSettings(routes=())
    described = describe(load_text(f"{BASE}tenants: {{acme: {{allow: {{models: []}}}}}}\n", {}))
    assert "    allow:\n      models: []\n" in described
    assert "routes" not in described


def test_both_forms_of_a_key_are_the_same() -> None:
    short, long = tenant(f'{{keys: {{a: "{D1}"}}}}'), tenant(f'{{keys: {{a: {{digest: "{D1}"}}}}}}')
    assert short == long == TenantSettings(name="acme", keys={"a": KeySettings(name="a", digest=bytes_of(D1))})
    settings = load_text(f"{BASE}tenants: {{acme: {{keys: {{a: ${{D}}}}}}}}\n", {"D": D1})
    assert settings.tenants["acme"] == short


def test_a_route_that_is_faulty_itself_is_still_known() -> None:
    text = f"{BASE}use_cases: {{a: {{targets: 1}}}}\ndefault: {{targets: 1}}\n"
    assert [each.path for each in mistakes_of(f"{text}tenants: {{t: {{allow: {{routes: [a, default]}}}}}}\n")] == [
        "use_cases.a.targets",
        "default.targets",
    ]


def test_mistakes_of_keys_at_once() -> None:
    text = f"""{BASE}tenants:
  acme:
    keys:
      a: {D1}
      b: {{digest: {D1}, expires: never}}
      c: {{acts_for: [x]}}
      d: hello
  beta:
    keys: {{a: {D2}}}
  gamma:
    keys: {{e: {D2}}}
"""
    assert [(each.line, each.path) for each in mistakes_of(text)] == [
        (8, "tenants.acme.keys.b.digest"),
        (8, "tenants.acme.keys.b.expires"),
        (9, "tenants.acme.keys.c.digest"),
        (10, "tenants.acme.keys.d.digest"),
        (14, "tenants.gamma.keys.e.digest"),
    ]


# What never shows

_RAW_KEYS = st.text("abcdefXYZ0189-_.:/+=$", min_size=8, max_size=80).map(lambda text: f"q{text}Q")


@given(_RAW_KEYS)
@example("sha256:" + "f" * 63)
@example("sha256:" + "f" * 65)
@example("sk-" + "f" * 64)
def test_a_key_in_place_of_its_digest_is_not_shown(raw: str) -> None:
    for written in (f"'{raw}'", f"{{digest: '{raw}'}}", f"{{digest: '{raw}', expires: 2027-01-01}}"):
        (mistake,) = mistakes_of(f"{BASE}tenants: {{acme: {{keys: {{ci: {written}}}}}}}\n")
        assert mistake.path == "tenants.acme.keys.ci.digest"
        assert "edgegw keys hash" in str(mistake)
        assert raw not in str(mistake)


def test_no_digest_shows() -> None:
    settings = load_text(TENANTS, {})
    twice = mistakes_of(f"{BASE}tenants: {{a: {{keys: {{x: {D1}}}}}, b: {{keys: {{x: {D1}}}}}}}\n")
    for shown in (repr(settings), str(settings), describe(settings), *warnings(settings, 2 * NOW_NS), str(twice[0])):
        assert D1.removeprefix("sha256:") not in shown
        assert repr(bytes_of(D1)) not in shown
    assert 'ci:\n        digest: "sha256:***"\n' in describe(settings)


# Warnings


def warned(rest: str, auth: str = "keys") -> list[str]:
    return warnings(load_text(f"{BASE}auth: {auth}\n{rest}", {}), NOW_NS)


def test_what_is_hardly_meant() -> None:
    text = f"""tenants:
  acme:
    limits: {{requests_per_minute: 10}}
    models: {{"gpt-*": {{requests_per_minute: 11, tokens_per_minute: 50001}}, a: {{requests_per_minute: 10}}}}
    keys:
      ci: {{digest: {D1}, expires: 2027-01-15, limits: {{requests_per_minute: 12, tokens_per_day: 7}}}}
      web: {{digest: {D2}, expires: 2027-01-16, acts_for: [beta, acme]}}
      old: {{digest: {D3}, expires: 2027-01-15T07:59:59Z}}
"""
    assert warned(text) == [
        'tenants.acme.models["gpt-*"]: tokens_per_minute 50001 is never reached: the tenant\'s is 50000',
        'tenants.acme.models["gpt-*"]: requests_per_minute 11 is never reached: the tenant\'s is 10',
        "tenants.acme.keys.ci: requests_per_minute 12 is never reached: the tenant's is 10",
        "tenants.acme.keys.ci: expired (2027-01-15): it is refused",
        "tenants.acme.keys.web: acts_for names the key's own tenant, for which it acts anyway",
        "tenants.acme.keys.old: expired (2027-01-15T07:59:59Z): it is refused",
    ]


def test_keys_that_nobody_is_asked_for() -> None:
    text = f"tenants: {{acme: {{keys: {{ci: {D1}}}}}, beta: {{}}, 'c d': {{keys: {{ci: {D2}}}}}}}\n"
    assert warned(text) == []
    assert warned(text, auth="none") == [
        "tenants.acme.keys: nobody is asked for a key: auth is none",
        'tenants["c d"].keys: nobody is asked for a key: auth is none',
    ]
    assert warned("", auth="keys") == []  # keys may be in the database


# Who reaches it


@pytest.mark.parametrize(
    ("host", "stays"),
    [
        ("127.0.0.1", True),
        ("127.255.0.3", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("128.0.0.1", False),
        ("127.example.com", False),
        ("localhost.example.com", False),
        ("gateway", False),
    ],
)
def test_without_keys_it_serves_this_machine_only(host: str, stays: bool) -> None:
    assert is_loopback(host) is stays
    written = f"[{host}]:1" if ":" in host else f"{host}:1"
    for auth, allowed in (("keys", "false"), ("none", "true"), ("keys", "true")):
        text = f"{BASE}auth: {auth}\nserver: {{listen: '{written}', allow_unauthenticated: {allowed}}}\n"
        assert load_text(text, {}).server.listen == Address(host, 1)
    closed = f"{BASE}server: {{listen: '{written}'}}\n"
    if stays:
        assert load_text(closed, {}).server.listen == Address(host, 1)
    else:
        (mistake,) = mistakes_of(closed)
        assert mistake.path == "server.listen"
        assert "whoever reaches the port may spend your money" in mistake.message
    faulty = f"{BASE}auth: kys\nserver: {{listen: '{written}'}}\n"  # one mistake, not two
    assert [each.path for each in mistakes_of(faulty)] == ["auth"]


def test_the_admin_port_may_be_open() -> None:
    """Probes come from elsewhere, and spend nothing."""
    assert load_text(f"{BASE}server: {{admin: '0.0.0.0:9090'}}\n", {}).server.admin == Address("0.0.0.0", 9090)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without a settings file."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("environ", "listen"),
    [
        ({}, Address("127.0.0.1", 8080)),
        ({"PORT": "81"}, Address("127.0.0.1", 81)),
        ({"EDGEGW_HOST": "localhost"}, Address("localhost", 8080)),
        ({"EDGEGW_HOST": "0.0.0.0", "EDGEGW_AUTH": "keys"}, Address("0.0.0.0", 8080)),
        ({"EDGEGW_HOST": "::", "PORT": "81", "EDGEGW_ALLOW_UNAUTHENTICATED": "true"}, Address("::", 81)),
        ({"EDGEGW_HOST": "[::1]", "PORT": "81"}, Address("::1", 81)),
    ],
)
def test_host_and_port_from_the_environment(empty: None, environ: dict[str, str], listen: Address) -> None:
    assert load(None, {**KEYS, **environ}).server.listen == listen


@pytest.mark.parametrize(
    ("environ", "variable", "words"),
    [
        ({"EDGEGW_HOST": "0.0.0.0"}, "EDGEGW_HOST", "EDGEGW_AUTH=keys, or EDGEGW_ALLOW_UNAUTHENTICATED=true"),
        ({"EDGEGW_HOST": "0.0.0.0", "PORT": "81"}, "EDGEGW_HOST, PORT", "may spend your money"),
        ({"EDGEGW_HOST": "0.0.0.0", "EDGEGW_ALLOW_UNAUTHENTICATED": "1"}, "EDGEGW_ALLOW_UNAUTHENTICATED", "true or fa"),
        ({"EDGEGW_HOST": "1.2.3"}, "EDGEGW_HOST", "not an IP address"),
        ({"EDGEGW_HOST": "0.0.0.0:81"}, "EDGEGW_HOST", "not an IP address"),
        ({"EDGEGW_HOST": "http://h"}, "EDGEGW_HOST", "address such as"),
        ({"EDGEGW_HOST": "::1", "PORT": "x"}, "EDGEGW_HOST, PORT", "address such as"),
        ({"EDGEGW_AUTH": "key"}, "EDGEGW_AUTH", "did you mean 'keys'"),
    ],
)
def test_a_bad_variable_is_named(empty: None, environ: dict[str, str], variable: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {**KEYS, **environ})
    (mistake,) = caught.value.mistakes
    assert mistake.path == variable
    assert words in str(mistake)


def test_what_a_deployment_may_say_beside_a_file() -> None:
    environ = {"EDGEGW_AUTH": "keys", "EDGEGW_HOST": "0.0.0.0", "EDGEGW_ALLOW_UNAUTHENTICATED": "true"}
    silent = load_text(BASE, environ)
    assert (silent.auth, silent.server.allow_unauthenticated) == ("keys", True)
    assert silent.server.listen == Address("0.0.0.0", 8080)
    listens = load_text(f"{BASE}auth:\nserver: {{listen: '[::1]:81', allow_unauthenticated: }}\n", environ)
    assert (listens.auth, listens.server.allow_unauthenticated) == ("keys", True)  # a null says nothing
    assert listens.server.listen == Address("0.0.0.0", 81)
    said = f"{BASE}auth: none\nserver: {{allow_unauthenticated: false}}\n"
    (mistake,) = mistakes_of(said, environ)
    assert mistake.path == "EDGEGW_HOST"  # neither of the other two has a say over the file
    weak = load_text(f"{BASE}auth: keys\n", {"EDGEGW_AUTH": "none"})
    assert weak.auth == "keys"


# Laws


def test_a_tenant_is_named_as_the_limiter_has_it() -> None:
    assert TENANT_CHARS_MAX == limiter.TENANT_CHARS_MAX


def test_what_can_be_limited_is_what_is_measured() -> None:
    assert OwnLimits.__struct_fields__ == tuple(measure.name for measure in meter.MEASURES)


@given(st.text(max_size=300))
def test_a_name_is_printable(name: str) -> None:
    good = 0 < len(name) <= TENANT_CHARS_MAX and name.isprintable()
    try:
        assert printable(TENANT_CHARS_MAX, "x").read(name) == name
    except ValueError:
        assert not good
    else:
        assert good


@given(st.datetimes(datetime(1970, 1, 1), datetime(2261, 12, 31, 23, 59, 59)))
@example(datetime(2027, 1, 1))
@example(datetime(2028, 2, 29, 23, 59, 59))
def test_a_moment_reads_back(at: datetime) -> None:
    kind, at = moment(), at.replace(microsecond=0, tzinfo=UTC)
    wall_ns = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) * 10**9
    assert kind.read(at.strftime("%Y-%m-%dT%H:%M:%SZ")) == wall_ns
    assert kind.read(kind.show(wall_ns)) == wall_ns
    assert wall_ns < 1 << 63
    assert kind.read(f"{at:%Y-%m-%d}") == wall_ns // DAY_NS * DAY_NS


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_is_read_in_either_case(found: bytes) -> None:
    assert digest().read(f"sha256:{found.hex()}") == digest().read(f"sha256:{found.hex().upper()}") == found


_LIMITS = st.fixed_dictionaries({}, optional=dict.fromkeys(OwnLimits.__struct_fields__, st.integers(1, 10**6)))
_NAMES = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="$"), min_size=1, max_size=20
).filter(str.isprintable)
_LISTS = st.one_of(st.none(), st.lists(_NAMES, max_size=3))


@given(st.data())
def test_whatever_a_tenant_is_what_is_described_loads_to_the_same(data: st.DataObject) -> None:
    """Written as JSON, which is YAML."""
    keys = {
        f"k{at}": {
            "digest": f"sha256:{at + 1:064x}",
            "acts_for": data.draw(st.lists(_NAMES, max_size=2)),
            "limits": data.draw(_LIMITS),
        }
        for at in range(data.draw(st.integers(0, 2)))
    }
    written: dict[str, Any] = {
        "limits": data.draw(_LIMITS),
        "models": data.draw(st.dictionaries(_NAMES, _LIMITS, max_size=2)),
        "allow": {"models": data.draw(_LISTS)},
        "keys": keys,
        "weight": data.draw(st.integers(1, 1_000)),
    }
    name = data.draw(_NAMES)
    document = {
        "version": 1,
        "providers": {"p": {"kind": "openai-compatible", "base_url": "http://127.0.0.1:1"}},
        "tenants": {name: written},
    }
    settings = load_text(msgspec.json.encode(document).decode(), {})
    (found,) = settings.tenants.values()
    assert found.name == name
    assert found.weight == written["weight"]
    assert list(found.models) == list(written["models"])
    assert load_text(unmasked(describe(settings)), {}) == settings
