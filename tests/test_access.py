"""Who asks and what they may, without a wire: credentials, tenants named, routes allowed; and what a refusal tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.access import DEFAULT_TENANT, STRANGER, Access, Doorkeeper, credential_of
from edgegw.errors import GatewayError
from edgegw.http.request import Request
from edgegw.keys.table import Key, KeyTable, digest_of
from edgegw.routing import Router
from edgegw.settings import AllowSettings, RouteSettings, TenantSettings

ROUTER = Router(
    {"support": RouteSettings(("a/one",)), "secret": RouteSettings(("b/hidden",))},
    {
        "smart": RouteSettings(("a/one",)),
        "private": RouteSettings(("b/hidden",)),
        "gpt-*": RouteSettings(("a/*",)),
        "claude-*": RouteSettings(("b/*",)),
    },
    RouteSettings(("a/one",)),
    {"a", "b"},
)


def refusal(error: pytest.ExceptionInfo[GatewayError]) -> tuple[str, int, str | None]:
    return error.value.kind, error.value.status, error.value.param


# -- the credential --


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ({b"authorization": b"Bearer egw_a"}, b"egw_a"),
        ({b"authorization": b"bearer egw_a"}, b"egw_a"),
        ({b"authorization": b"BEARER   egw_a"}, b"egw_a"),
        ({b"authorization": b"Bearer  egw_a"}, b"egw_a"),
        ({b"x-api-key": b"egw_a"}, b"egw_a"),
        ({b"authorization": b"Bearer egw_a", b"x-api-key": b"egw_a"}, b"egw_a"),
        ({b"authorization": b"Bearer egw_a", b"x-api-key": b""}, b"egw_a"),
    ],
)
def test_how_a_key_is_sent(headers: dict[bytes, bytes], credential: bytes) -> None:
    assert credential_of(headers) == credential


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "Send it as"),
        ({b"x-api-key": b""}, "Send it as"),
        ({b"authorization": b""}, "holds no key"),
        ({b"authorization": b"Bearer"}, "holds no key"),
        ({b"authorization": b"egw_a"}, "holds no key"),
        ({b"authorization": b"Basic dTpw"}, "holds no key"),
        ({b"authorization": b"Basic dTpw", b"x-api-key": b"egw_a"}, "holds no key"),
        ({b"authorization": b"Bearer egw_a", b"x-api-key": b"egw_b"}, "different keys"),
    ],
)
def test_what_is_no_key(headers: dict[bytes, bytes], told: str) -> None:
    with pytest.raises(GatewayError, match=told) as error:
        credential_of(headers)
    assert refusal(error) == ("unauthorized", 401, None)
    assert error.value.headers == ((b"www-authenticate", b"Bearer"),)


@given(st.dictionaries(st.sampled_from([b"authorization", b"x-api-key"]), st.binary(max_size=80)))
def test_any_headers_give_a_credential_or_a_401_that_repeats_nothing(headers: dict[bytes, bytes]) -> None:
    said = {
        "This gateway wants a key. Send it as `Authorization: Bearer KEY`, or as `x-api-key: KEY`.",
        "The Authorization header holds no key. Send it as `Authorization: Bearer KEY`, or as `x-api-key: KEY`.",
        "The Authorization and x-api-key headers hold different keys. Send one of them.",
    }
    try:
        found, refused = credential_of(headers), None
    except GatewayError as error:
        found, refused = b"", error
    assert found if refused is None else (refused.kind, refused.message in said) == ("unauthorized", True)


# -- the door --


def asked(credential: bytes) -> Request:
    return Request(headers={b"x-api-key": credential})


def test_the_door_opens_for_valid_keys_and_refuses_all_others_alike() -> None:
    table = KeyTable()
    table.put(Key("key_1", digest_of(b"good"), "acme"))
    table.put(Key("key_2", digest_of(b"old"), "acme", expires_ns=10))
    table.put(Key("key_3", digest_of(b"gone"), "acme", revoked_ns=10))
    door = Doorkeeper(table, lambda: 10, lambda: True)
    request = asked(b"good")
    door.check(request)
    assert request.key.id == "key_1"
    refusals = []
    for credential in (b"unknown", b"old", b"gone", b"x" * 4000):
        request = asked(credential)
        with pytest.raises(GatewayError) as error:
            door.check(request)
        assert request.key is None
        refusals.append((refusal(error), error.value.message, error.value.headers))
    assert len(set(refusals)) == 1
    assert refusals[0][0] == ("unauthorized", 401, None)


def test_who_is_unknown_cannot_be_told_before_all_keys_are() -> None:
    table = KeyTable(
        [Key("acme.ci", digest_of(b"fixed"), "acme"), Key("acme.x", digest_of(b"old"), "acme", "", "", 0, 5)]
    )
    door = Doorkeeper(table, lambda: 10, lambda: False)
    door.check(asked(b"fixed"))
    for credential in (b"unknown", b"old"):
        with pytest.raises(GatewayError, match="being loaded") as error:
            door.check(asked(credential))
        assert refusal(error) == ("overloaded", 503, None)
        assert error.value.headers == ((b"retry-after", b"1"),)
    with pytest.raises(GatewayError, match="wants a key"):  # that needs no knowledge
        door.check(Request())


# -- the tenant --


def coming(key: Key | None = None, header: bytes | None = None) -> Request:
    return Request(headers={} if header is None else {b"x-edgegw-tenant": header}, key=key)


ACME = Key("key_1", bytes(32), "acme", acts_for=("beta",))
TRUSTED = Key("key_2", bytes(32), "acme", acts_for=("*",))


@pytest.mark.parametrize(
    ("key", "header", "asked", "tenant"),
    [
        (None, None, None, DEFAULT_TENANT),
        (None, b"", None, DEFAULT_TENANT),
        (None, b"beta", None, "beta"),
        (None, b"beta", "gamma", "gamma"),
        (None, "é".encode(), None, "é"),
        (ACME, None, None, "acme"),
        (ACME, b"acme", None, "acme"),
        (ACME, b"beta", None, "beta"),
        (ACME, None, "beta", "beta"),
        (TRUSTED, b"anybody", None, "anybody"),
        (TRUSTED, None, "anybody", "anybody"),
    ],
)
def test_the_tenant_a_request_counts_for(key: Key | None, header: bytes | None, asked: str | None, tenant: str) -> None:
    access = Access({}, closed=key is not None)
    assert access.tenant(coming(key, header), asked) == tenant


@pytest.mark.parametrize(
    ("header", "asked", "refused"),
    [
        (None, "gamma", ("forbidden", 403, "metadata.tenant")),
        (None, "acme2", ("forbidden", 403, "metadata.tenant")),
        (None, "*", ("forbidden", 403, "metadata.tenant")),
        (None, DEFAULT_TENANT, ("forbidden", 403, "metadata.tenant")),
        (b"gamma", None, ("forbidden", 403, "x-edgegw-tenant")),
        (b"\xff", None, ("invalid_value", 400, "x-edgegw-tenant")),
        (b"a\x1fb", None, ("invalid_value", 400, "x-edgegw-tenant")),
        (b"t" * 300, None, ("invalid_value", 400, "x-edgegw-tenant")),
    ],
)
def test_a_tenant_that_a_key_may_not_name(
    header: bytes | None, asked: str | None, refused: tuple[str, int, str]
) -> None:
    access = Access({"gamma": TenantSettings(name="gamma")}, closed=True)
    with pytest.raises(GatewayError) as error:
        access.tenant(coming(ACME, header), asked)
    assert refusal(error) == refused
    assert "gamma" not in error.value.message


def test_a_tenant_that_exists_is_refused_as_one_that_does_not() -> None:
    access = Access({"gamma": TenantSettings(name="gamma")}, closed=True)
    messages = set()
    for name in ("gamma", "nobody"):
        with pytest.raises(GatewayError) as error:
            access.tenant(coming(ACME), name)
        messages.add(error.value.message)
    assert len(messages) == 1


def test_nobody_comes_in_without_a_key_even_past_the_gate() -> None:
    with pytest.raises(GatewayError) as error:
        Access({}, closed=True).tenant(coming(), "acme")
    assert error.value.kind == "unauthorized"
    assert (Access({}, closed=True).stranger, Access({}, closed=False).stranger) == (STRANGER, DEFAULT_TENANT)


# -- the route --


def access_of(routes: tuple[str, ...] | None, models: tuple[str, ...] | None) -> Access:
    allow = AllowSettings(routes=routes, models=models)
    return Access({"acme": TenantSettings(name="acme", allow=allow)}, closed=True)


@pytest.mark.parametrize(
    ("routes", "models", "use_case", "model", "taken"),
    [
        (None, None, "secret", None, "use_case:secret"),
        (("support",), None, "support", None, "use_case:support"),
        (("support",), None, "support", "claude-x", "use_case:support"),  # the use case decides
        (("smart",), None, None, "smart", "model:smart"),
        (("default",), None, None, None, "default"),
        (("default",), None, "no such", None, "default"),
        (None, ("gpt-*",), None, "gpt-5", "pattern:gpt-*"),
        (None, ("gpt-5",), None, "gpt-5", "pattern:gpt-*"),
        (None, ("a/*",), None, "a/one", "target:a/one"),
        (None, ("sm*",), None, "smart", "model:smart"),
        (("support",), ("gpt-*",), None, "gpt-5", "pattern:gpt-*"),
        (None, ("*",), None, "private", "model:private"),
    ],
)
def test_what_a_tenant_may(
    routes: tuple[str, ...] | None,
    models: tuple[str, ...] | None,
    use_case: str | None,
    model: str | None,
    taken: str,
) -> None:
    access = access_of(routes, models)
    assert access.route(ROUTER, "acme", use_case, model).name == taken
    assert access.route(ROUTER, "other", "secret", None).name == "use_case:secret"


@pytest.mark.parametrize(
    ("routes", "models", "use_case", "model", "refused"),
    [
        (("support",), None, "secret", None, ("model_not_allowed", 403, "metadata.use_case")),
        (("support",), None, None, "smart", ("model_not_allowed", 403, "model")),
        (("support",), None, None, None, ("model_not_allowed", 403, "model")),
        (None, ("gpt-*",), None, "claude-x", ("model_not_allowed", 403, "model")),
        (None, ("gpt-*",), "secret", "gpt-5", ("model_not_allowed", 403, "metadata.use_case")),  # no back door
        (None, ("gpt-*",), None, None, ("model_not_allowed", 403, "model")),
        (None, ("gpt-*",), None, "a/one", ("model_not_allowed", 403, "model")),
        (None, ("gpt-*", "x-*"), None, "x-1", ("model_not_found", 404, "model")),
        (None, ("gpt-*",), None, "x-1", ("model_not_allowed", 403, "model")),  # as one that others have
        ((), (), None, "smart", ("model_not_allowed", 403, "model")),
        ((), None, "support", None, ("model_not_allowed", 403, "metadata.use_case")),
        (("smart",), None, None, "default", ("model_not_allowed", 403, "model")),
    ],
)
def test_what_a_tenant_may_not(
    routes: tuple[str, ...] | None,
    models: tuple[str, ...] | None,
    use_case: str | None,
    model: str | None,
    refused: tuple[str, int, str],
) -> None:
    with pytest.raises(GatewayError) as error:
        access_of(routes, models).route(ROUTER, "acme", use_case, model)
    assert refusal(error) == refused
    for name in (*(routes or ()), *(models or ())):
        assert name in error.value.message, "it lists what is allowed"
    assert not {"hidden", "private"} & set(error.value.message.replace("`", " ").split())


def test_without_a_default_the_refusal_lists_only_what_is_allowed() -> None:
    router = Router({"secret": RouteSettings(("b/hidden",))}, {"gpt-*": RouteSettings(("a/*",))}, None, {"a", "b"})
    with pytest.raises(GatewayError) as error:
        access_of(None, ("gpt-*",)).route(router, "acme", None, None)
    assert error.value.kind == "missing_parameter"
    assert "gpt-*" in error.value.message
    assert "hidden" not in error.value.message


@pytest.mark.parametrize(
    ("routes", "models", "listed"),
    [
        (None, None, ["smart", "private", "a/one", "b/hidden"]),
        (("smart",), None, ["smart"]),
        (("smart",), ("b/*",), ["smart", "b/hidden"]),
        (None, ("a/*", "priv*"), ["private", "a/one"]),
        ((), (), []),
        (("support",), None, []),
    ],
)
def test_the_models_a_tenant_is_shown(
    routes: tuple[str, ...] | None, models: tuple[str, ...] | None, listed: list[str]
) -> None:
    assert access_of(routes, models).models(ROUTER, "acme") == listed
