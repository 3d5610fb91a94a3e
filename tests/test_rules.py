"""Which limits there are and what a request counts against: inheritance, patterns, keys that come and go; and the ids
of meters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.limits.meter import BY_CODE, BY_NAME, MEASURES, NO_LIMIT, Meter, Scope, read_meter
from edgegw.limits.rules import Rules
from edgegw.settings import KeySettings, LimitSettings, OwnLimits, Settings, TenantSettings

NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


def found(rules: Rules, tenant: str, key_id: str | None = None, model: str = "m") -> dict[str, int]:
    """What a request counts against, as `code`, `code@key` or `code@model`."""
    told: dict[str, int] = {}
    for id_, limit in rules.meters(tenant, key_id, model):
        meter = read_meter(id_)
        assert meter.tenant == tenant or meter.scope == "key"
        assert limit == rules.limit(id_), "a worker's first guess and the authority's word are the same"
        told[meter.measure.code + (f"@{meter.name}" if meter.scope else "")] = limit
    return told


def tenant(name: str, limits: OwnLimits, **fields: object) -> dict[str, TenantSettings]:
    return {name: TenantSettings(name=name, limits=limits, **fields)}  # type: ignore[arg-type]


def test_without_settings_there_are_tokens_per_minute_and_nothing_else() -> None:
    rules = Rules(Settings())
    assert found(rules, "anybody", "some.key", "gpt-5") == {"tpm": 50_000}
    assert rules.meters("anybody", None, "m")[0][0] == Meter(BY_CODE["tpm"], "anybody").id


def test_a_tenant_has_the_default_limits_but_for_its_own() -> None:
    rules = Rules(
        Settings(
            limits=LimitSettings(tokens_per_minute=1000, requests_per_minute=10, tokens_per_day=9000),
            tenants=tenant("acme", OwnLimits(requests_per_minute=99, concurrent_requests=3, tokens_per_month=10**6)),
        )
    )
    assert found(rules, "acme") == {"tpm": 1000, "rpm": 99, "par": 3, "day": 9000, "month": 10**6}
    assert found(rules, "other") == {"tpm": 1000, "rpm": 10, "day": 9000}


def test_the_tokens_per_minute_of_the_tenant_come_first_always() -> None:
    everything = OwnLimits(**{measure.name: 5 for measure in MEASURES})
    rules = Rules(Settings(tenants=tenant("acme", everything, models={"*": everything})))
    rules.set_key("acme.k", "acme", everything)
    meters = [read_meter(id_) for id_, _ in rules.meters("acme", "acme.k", "m")]
    assert meters[0] == Meter(BY_CODE["tpm"], "acme")
    assert [(meter.scope, meter.measure) for meter in meters] == [
        (scope, measure) for scope in ("", "key", "model") for measure in MEASURES
    ]


def test_a_key_has_only_what_is_said_of_it() -> None:
    keys = {
        "ci": KeySettings(name="ci", digest=b"1" * 32, limits=OwnLimits(requests_per_minute=2)),
        "app": KeySettings(name="app", digest=b"2" * 32),
    }
    rules = Rules(Settings(tenants=tenant("acme", OwnLimits(tokens_per_minute=100), keys=keys)))
    assert found(rules, "acme", "acme.ci") == {"tpm": 100, "rpm@acme.ci": 2}
    assert found(rules, "acme", "acme.app") == {"tpm": 100}
    assert found(rules, "acme", None) == {"tpm": 100}


def test_limits_of_keys_come_and_go() -> None:
    rules = Rules(Settings())
    meter = Meter(BY_CODE["day"], "acme", "key", "k7").id
    assert rules.limit(meter) == NO_LIMIT
    rules.set_key("k7", "acme", OwnLimits(tokens_per_day=500))
    assert found(rules, "acme", "k7") == {"tpm": 50_000, "day@k7": 500}
    rules.set_key("k7", "acme", OwnLimits(tokens_per_day=700, concurrent_requests=1))
    assert found(rules, "acme", "k7") == {"tpm": 50_000, "par@k7": 1, "day@k7": 700}
    assert [read_meter(id_).tenant for id_, _ in rules.meters("beta", "k7", "m")] == ["beta", "acme", "acme"]
    for nothing in (OwnLimits(), None, None):
        rules.set_key("k7", "acme", nothing)
        assert found(rules, "acme", "k7") == {"tpm": 50_000}
        assert rules.limit(meter) == NO_LIMIT, "who still asks for it is not held up"


def test_of_patterns_the_most_literal_counts_and_its_models_count_together() -> None:
    models = {
        "*": OwnLimits(tokens_per_minute=1),
        "gpt-*": OwnLimits(tokens_per_minute=2),
        "gpt-5*": OwnLimits(tokens_per_minute=3),
        "gpt-5": OwnLimits(tokens_per_minute=4),
        "free-*": OwnLimits(),
    }
    rules = Rules(Settings(tenants=tenant("acme", OwnLimits(), models=models)))

    def of_model(model: str) -> dict[str, int]:
        return {code: limit for code, limit in found(rules, "acme", None, model).items() if "@" in code}

    assert of_model("gpt-5") == {"tpm@gpt-5": 4}
    assert of_model("gpt-5-mini") == of_model("gpt-5-nano") == {"tpm@gpt-5*": 3}
    assert of_model("gpt-4") == {"tpm@gpt-*": 2}
    assert of_model("claude") == {"tpm@*": 1}
    assert of_model("free-llama") == {}, "the most literal one says that there is none"
    assert found(rules, "other", None, "gpt-5") == {"tpm": 50_000}, "only acme has limits by model"


def test_limits_that_are_lifted_by_new_settings_hold_nobody_up() -> None:
    before = Rules(
        Settings(tenants=tenant("acme", OwnLimits(concurrent_requests=1), models={"m": OwnLimits(tokens_per_day=1)}))
    )
    after = Rules(Settings())
    lifted = [id_ for id_, _ in before.meters("acme", None, "m")][1:]
    assert [after.limit(id_) for id_ in lifted] == [NO_LIMIT, NO_LIMIT]


def test_weights_and_what_happens_without_redis() -> None:
    rules = Rules(
        Settings(
            limits=LimitSettings(without_redis="open"),
            tenants=tenant("acme", OwnLimits(), weight=5, without_redis="closed") | tenant("beta", OwnLimits()),
        )
    )
    assert [rules.weight(name) for name in ("acme", "beta", "other")] == [5, 1, 1]
    assert [rules.without_redis(name) for name in ("acme", "beta", "other")] == ["closed", "open", "open"]


# -- ids --


@given(st.sampled_from(MEASURES), NAMES, st.sampled_from([("", False), ("key", True), ("model", True)]), NAMES)
def test_an_id_names_one_meter(measure: object, tenant: str, scope: tuple[Scope, bool], name: str) -> None:
    meter = Meter(measure, tenant, scope[0], name if scope[1] else "")  # type: ignore[arg-type]
    assert read_meter(meter.id) == meter


@pytest.mark.parametrize("text", [
    "", "tpm", "xyz\x1ft", "tpm\x1ft\x1fkey", "tpm\x1ft\x1fuser\x1fx", "tpm\x1ft\x1f\x1fx", "tpm\x1ft\x1fkey\x1fa\x1fb",
    "TPM\x1ft",
])  # fmt: skip
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a meter"):
        read_meter(text)


def test_measures_are_the_settings() -> None:
    assert set(BY_NAME) == set(OwnLimits.__struct_fields__)
    assert set(BY_NAME) < set(LimitSettings.__struct_fields__)
