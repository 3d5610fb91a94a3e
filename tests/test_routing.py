"""Routing: which route a request takes, in the order the settings promise, whatever names clients send."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw import routing
from edgegw.errors import GatewayError
from edgegw.exchange import RetryPolicy, Route, Target
from edgegw.routing import Router

ONCE, TWICE = RetryPolicy(attempts=1), RetryPolicy()


@dataclass(frozen=True, slots=True)
class Entry:
    targets: tuple[str, ...]
    retry: RetryPolicy = TWICE


DEFAULT = Entry(("openai/gpt-5-mini", "anthropic/claude-haiku-4-5"))
PROVIDERS = {"openai", "anthropic", "local"}


def router(default: Entry | None = DEFAULT) -> Router:
    return Router(
        {"support_summary": Entry(("openai/gpt-5-mini", "anthropic/claude-haiku-4-5"), ONCE)},
        {
            "smart": Entry(("anthropic/claude-sonnet-4-5", "openai/gpt-5"), ONCE),
            "openai/gpt-5": Entry(("local/standin",)),
            "claude-*": Entry(("anthropic/*", "openai/gpt-5")),
            "claude-*-latest": Entry(("anthropic/pinned",), ONCE),
            "*-latest": Entry(("openai/*",)),
            "ft:*": Entry(("local/tuned-*",)),
            "org": Entry(("local/meta-llama/llama-3",)),
        },
        default,
        PROVIDERS,
    )


# use case, model -> the route's name and targets
TABLE = [
    ("support_summary", None, "use_case:support_summary", ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]),
    ("support_summary", "smart", "use_case:support_summary", ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]),
    ("support_summary", "no-such", "use_case:support_summary", ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]),
    ("unknown", "smart", "model:smart", ["anthropic/claude-sonnet-4-5", "openai/gpt-5"]),
    ("unknown", None, "default", ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]),
    (None, None, "default", ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]),
    (None, "smart", "model:smart", ["anthropic/claude-sonnet-4-5", "openai/gpt-5"]),
    # an alias before everything else, also one that looks like a target
    (None, "openai/gpt-5", "model:openai/gpt-5", ["local/standin"]),
    # patterns: the longest by literal characters; * in a target is the whole name asked for
    (None, "claude-opus-4", "pattern:claude-*", ["anthropic/claude-opus-4", "openai/gpt-5"]),
    (None, "claude-x-latest", "pattern:claude-*-latest", ["anthropic/pinned"]),
    (None, "gpt-4o-latest", "pattern:*-latest", ["openai/gpt-4o-latest"]),
    (None, "ft:a/b", "pattern:ft:*", ["local/tuned-ft:a/b"]),
    (None, "claude-", "pattern:claude-*", ["anthropic/claude-", "openai/gpt-5"]),
    # patterns before provider/model and before names that a target carries
    (None, "openai/x-latest", "pattern:*-latest", ["openai/openai/x-latest"]),
    (None, "claude-haiku-4-5", "pattern:claude-*", ["anthropic/claude-haiku-4-5", "openai/gpt-5"]),
    # provider/model, of any configured provider, with slashes in the model
    (None, "local/never-mentioned", "target:local/never-mentioned", ["local/never-mentioned"]),
    (None, "local/a/b", "target:local/a/b", ["local/a/b"]),
    # a bare name that some target carries
    (None, "gpt-5-mini", "target:openai/gpt-5-mini", ["openai/gpt-5-mini"]),
    (None, "meta-llama/llama-3", "target:local/meta-llama/llama-3", ["local/meta-llama/llama-3"]),
    (None, "pinned", "target:anthropic/pinned", ["anthropic/pinned"]),
]


@pytest.mark.parametrize(("use_case", "model", "name", "targets"), TABLE)
def test_which_route(use_case: str | None, model: str | None, name: str, targets: list[str]) -> None:
    built = router()
    route = built.resolve(use_case, model)
    assert (route.name, [str(target) for target in route.targets]) == (name, targets)
    assert built.resolve(use_case, model) is route


def test_retry_policies_come_with_their_entry() -> None:
    built = router()
    asked = [built.resolve(None, name).retry for name in ("smart", "claude-x-latest", "claude-x", "local/x", None)]
    assert asked == [ONCE, ONCE, TWICE, TWICE, TWICE]


def test_ties_between_patterns_go_by_order() -> None:
    built = Router({}, {"a*": Entry(("p/first",)), "*b": Entry(("p/second",))}, None, {"p"})
    assert built.resolve(None, "ab").name == "pattern:a*"


@pytest.mark.parametrize("model", ["nothing", "", "azure/gpt-5", "openai/", "/gpt-5", "/", "SMART", " smart"])
@pytest.mark.parametrize("use_case", [None, "unknown"])
def test_an_unknown_model_is_a_404_even_with_a_default(model: str, use_case: str | None) -> None:
    with pytest.raises(GatewayError) as raised:
        router().resolve(use_case, model)
    error = raised.value
    assert (error.kind, error.status, error.param) == ("model_not_found", 404, "model")
    assert "smart, openai/gpt-5, org, openai/gpt-5-mini" in error.message


@pytest.mark.parametrize(
    ("typo", "meant"), [("smrat", "smart"), ("gpt-5-mni", "gpt-5-mini"), ("opnai/gpt-5", "openai/gpt-5")]
)
def test_a_typo_is_met_with_a_guess(typo: str, meant: str) -> None:
    with pytest.raises(GatewayError, match=f"Did you mean `{meant}`"):
        router().resolve(None, typo)


def test_nothing_asked_and_no_default() -> None:
    with pytest.raises(GatewayError, match="names no model, and there is no default route") as raised:
        router(default=None).resolve(None, None)
    assert (raised.value.kind, raised.value.status, raised.value.param) == ("missing_parameter", 400, "model")
    with pytest.raises(GatewayError, match="use case `nope` does not exist here") as raised:
        router(default=None).resolve("nope", None)
    assert raised.value.param == "model"
    assert "Use cases: support_summary." in raised.value.message


def test_an_empty_router_says_that_there_is_nothing() -> None:
    with pytest.raises(GatewayError, match=r"Models: none\."):
        Router({}, {}, None, ()).resolve(None, "gpt-5")


def test_the_list_in_an_error_is_bounded() -> None:
    built = Router({}, {f"model-{number:03}": DEFAULT for number in range(300)}, None, PROVIDERS)
    with pytest.raises(GatewayError) as raised:
        built.resolve(None, "x")
    assert raised.value.message.count("model-") == routing.LISTED_MAX
    assert "and 282 more" in raised.value.message


def test_models_for_the_listing() -> None:
    listed = router().models()
    assert listed == [
        "smart",
        "openai/gpt-5",
        "org",
        "openai/gpt-5-mini",
        "anthropic/claude-haiku-4-5",
        "anthropic/claude-sonnet-4-5",
        "local/standin",
        "anthropic/pinned",
        "local/meta-llama/llama-3",
    ]
    for name in listed:
        router().resolve(None, name)
    listed.clear()
    assert router().models()


def test_clients_cannot_fill_the_memory_nor_push_out_what_the_settings_name() -> None:
    built = router()
    before = [built.resolve(*asked) for asked in ((None, "gpt-5-mini"), (None, "smart"), ("support_summary", None))]
    for number in range(3 * routing.FOUND_MAX):
        built.resolve(None, f"claude-{number}")
    assert len(built._found) == routing.FOUND_MAX
    after = [built.resolve(*asked) for asked in ((None, "gpt-5-mini"), (None, "smart"), ("support_summary", None))]
    assert all(old is new for old, new in zip(before, after, strict=True))


HOSTILE = [
    "claude-\r\nx-evil: 1",
    "claude-\0",
    "local/\ud800",
    "local/a\u2028b",
    "claude-" + "x" * 10_000,
    "local/" + "\x1b[2J",
    "*" * 9_999,
    "\u202eclaude-x",
]


@pytest.mark.parametrize("model", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_reach_nobody_and_errors_are_safe(model: str) -> None:
    with pytest.raises(GatewayError) as raised:
        router().resolve(model, model)
    assert raised.value.kind == "model_not_found"
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 1500
    raised.value.message.encode()


def test_names_of_routes_fit_a_header() -> None:
    built = Router({"résumé \r\n": DEFAULT}, {"模*": Entry(("local/*",))}, None, PROVIDERS)
    assert built.resolve("résumé \r\n", None).name == "use_case:r%C3%A9sum%C3%A9%20%0D%0A"
    assert built.resolve(None, "模型") == Route("pattern:%E6%A8%A1*", (Target("local", "模型"),))
    assert built.resolve(None, "local/ü").name == "target:local/%C3%BC"
    assert len(built.resolve(None, "local/" + "ü" * 500).name) == routing.HEADER_CHARS_MAX


# -- laws --


def answer(use_case: str | None, model: str | None) -> Route | GatewayError:
    try:
        return router().resolve(use_case, model)
    except GatewayError as error:
        return error


@given(use_case=st.none() | st.text(max_size=30), model=st.none() | st.text(max_size=600))
def test_any_request_gets_a_route_that_is_safe_to_use_or_a_clean_error(use_case: str | None, model: str | None) -> None:
    route = answer(use_case, model)
    if isinstance(route, GatewayError):
        assert route.kind == "model_not_found"
        assert route.message.isprintable()
        return
    assert route.name.isascii()
    assert route.name.isprintable()
    assert " " not in route.name
    assert route.targets
    assert all(target.provider in PROVIDERS and target.model.isprintable() for target in route.targets)


@given(pattern=st.text("ab*", min_size=1, max_size=8), name=st.text("ab", max_size=10))
def test_patterns_match_like_globs(pattern: str, name: str) -> None:
    """The oracle is fnmatch; the alphabet has none of what it would treat differently."""
    if "*" not in pattern:
        pattern += "*"
    built = Router({}, {pattern: Entry(("p/*",))}, None, {"p"})
    try:
        matched = built.resolve(None, name) == Route(f"pattern:{pattern}", (Target("p", name),))
    except GatewayError:
        matched = False
    assert matched == (fnmatchcase(name, pattern) and name != "")
