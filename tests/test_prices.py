"""What an attempt costs: against genai-prices' own sums, and by laws of our own."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import msgspec
import pytest
from genai_prices import data_snapshot, types
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from edgegw.ledger.record import INTEGER_MAX, AttemptRecord
from edgegw.price_table import PARTS_PER_MICRO, PriceTable, Rates, parts, rates_of, shipped
from edgegw.prices import REMEMBERED_MAX, PriceList, cost_usd_micro
from edgegw.settings import OwnPrice, ProviderSettings
from load import flatten_prices

TABLE = shipped()
# Input, output, cached, cache_write, reasoning: below and above every tier, with and without parts.
USAGES = (
    (1, 0, 0, 0, 0),
    (999, 77, 0, 0, 7),
    (200_001, 1, 3, 5, 0),
    (300_000, 33_333, 150_000, 11, 333),
    (0, 9, 0, 0, 9),
)
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000


def attempt(
    target: str = "openai/gpt-4o",
    usage: tuple[int, int, int, int, int] = (1000, 100, 0, 0, 0),
    served: str | None = None,
    at: datetime = NOON,
) -> AttemptRecord:
    provider, _, model = target.partition("/")
    head = (2, 1, "0197", 1, "primary", provider, model, ns(at), 200, None, None, 1, 2, 3)
    return AttemptRecord(*head, *usage, False, "stop", None, served, False)


def provider(name: str, kind: Any = "openai-compatible", base_url: str = "http://127.0.0.1:1/v1") -> ProviderSettings:
    return ProviderSettings(name=name, kind=kind, base_url=base_url)


PROVIDERS = (
    provider("openai", "openai", "https://api.openai.com/v1"),
    provider("anthropic", "anthropic", "https://api.anthropic.com"),
    provider("moved", "openai", "http://127.0.0.1:1/v1"),
    provider("azure", "openai", "https://mine.openai.azure.com/openai/v1"),
    provider("groq", base_url="https://api.groq.com/openai/v1"),
    provider("router", base_url="https://openrouter.ai/api/v1"),
    provider("deepseek", base_url="https://api.deepseek.com/v1"),
    provider("sonar", base_url="https://api.perplexity.ai"),
    provider("gemini", base_url="https://generativelanguage.googleapis.com/v1beta/openai"),
    provider("local"),
)


def priced(record: AttemptRecord, own: dict[str, OwnPrice] | None = None) -> tuple[int | None, str | None]:
    PriceList(own or {}, PROVIDERS, TABLE).price(record)
    return record.cost_usd_micro, record.price_version


# -- the table --


def test_the_table_is_what_the_script_makes_of_the_package() -> None:
    assert flatten_prices.FILE.read_bytes() == flatten_prices.flattened(), "run: make prices"


def test_the_notice_stands_with_the_data() -> None:
    head = msgspec.json.decode(flatten_prices.FILE.read_bytes())
    assert head["notice"][0] == "The MIT License (MIT)"
    assert TABLE.version == f"genai-prices {head['version']}"


def moments(model: types.ModelInfo) -> list[datetime]:
    """Today, and before and after every change of the model's prices."""
    found = [NOON]
    for each in model.prices if isinstance(model.prices, list) else ():
        match each.constraint:
            case types.StartDateConstraint(start_date=day):
                start = datetime.combine(day, time(), UTC)
                found += [start - timedelta(seconds=1), start]
            case types.TimeOfDateConstraint(start_time=start_time, end_time=end_time):
                for edge in (start_time, end_time):
                    moment = datetime.combine(date(2026, 11, 25), edge).astimezone(UTC)
                    found += [moment - timedelta(seconds=1), moment]
    return found


def names(clause: Any) -> list[str]:
    """Names that a clause is about."""
    match clause:
        case types.ClauseEquals(equals=text) | types.ClauseStartsWith(starts_with=text):
            return [text]
        case types.ClauseContains(contains=text) | types.ClauseEndsWith(ends_with=text):
            return [f"x-{text}"]
        case types.ClauseOr(or_=inner) | types.ClauseAnd(and_=inner):
            return [name for each in inner for name in names(each)]
    return []


def expected(model: types.ModelInfo, whose: types.Provider, usage: tuple[int, ...], at: datetime) -> Decimal:
    keys = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "output_reasoning_tokens")
    found = model.calc_price(types.Usage(**dict(zip(keys, usage, strict=True))), whose, genai_request_timestamp=at)
    return found.total_price


# The longest lists take seconds.
_LISTS = [
    pytest.param(whose, id=whose.id, marks=pytest.mark.system if len(whose.models) > 500 else ()) for whose in providers
]


@pytest.mark.parametrize("whose", _LISTS)
def test_a_price_is_that_of_the_package(whose: types.Provider) -> None:
    """All models by all their names, at all the times when something changes."""
    ours = TABLE.of("", whose.id)
    assert ours is not None
    snapshot = data_snapshot.get_snapshot()
    seen: set[int] = set()
    unknown = 0
    for listed in whose.models:
        for name in {listed.id, *names(listed.match), *(f"{each}-20991231" for each in names(listed.match)[:1])}:
            theirs = whose.find_model(name, all_providers=snapshot.providers)
            found = ours.find(name)
            if theirs is None or found is None:
                assert found is None
                assert theirs is None or _has_no_price(theirs), name
                unknown += theirs is not None
                continue
            if id(theirs) in seen:
                continue
            seen.add(id(theirs))
            for at in moments(theirs):
                for usage in USAGES:
                    rates = found.rates(ns(at), usage[0])
                    cost = cost_usd_micro(rates, *usage)
                    if usage[0] >= sum(usage[2:4]) and (cost is not None or rates.output is not None):
                        wanted = expected(theirs, whose, usage, at) * 1_000_000
                        assert cost == int(wanted.quantize(Decimal(1), ROUND_HALF_EVEN)), (name, at, usage)
    assert seen or unknown or not whose.models


def _has_no_price(model: types.ModelInfo) -> bool:
    """Nothing of what it has a price for is counted in tokens; or it has none and is not said to be free."""
    listed = model.prices if isinstance(model.prices, list) else [types.ConditionalPrice(prices=model.prices)]
    return any(each.prices.input_mtok is None for each in listed)


def test_only_free_models_cost_nothing() -> None:
    free = {
        (whose.id, model.id)
        for whose in providers
        for model in whose.models
        if isinstance(model.prices, types.ModelPrice)
        and not [value for value in vars(model.prices).values() if value is not None]
        and (ours := TABLE.of("", whose.id)) is not None
        and ours.find(model.id) is not None
    }
    assert free
    odd = {pair for pair in free if not pair[1].endswith(":free")}
    assert odd <= {
        *(("github-copilot", name) for name in ("gpt-3.5-turbo", "gpt-4.1", "gpt-4o", "gpt-4o-mini")),
        *(("google", name) for name in ("gemma-3", "gemma-3n", "gemma-4-26b-a4b-it", "gemma-4-31b-it")),
    }


# -- whose price, and of which model --


@pytest.mark.parametrize(
    ("target", "served", "micro"),
    [
        ("openai/gpt-4o", None, 3500),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", 3500),
        ("openai/gpt-4o", "gpt-4o-2024-05-13", 6500),  # what was served counts
        ("openai/gpt-4o", "chatty-7b", 3500),  # unknown: what was asked for
        ("openai/GPT-4o", None, 3500),
        ("openai/chatty-7b", None, None),
        ("openai/chatty-7b", "gpt-4o", 3500),
        ("moved/gpt-4o", None, 3500),  # to an address that nobody knows: the kind counts
        ("azure/my-deployment", "gpt-4o-2024-08-06", 3500),
        ("anthropic/claude-sonnet-4-5-20250929", None, 4500),
        ("anthropic/claude-sonnet-4-5", "claude-sonnet-4-5-20250929", 4500),
        ("groq/llama-3.3-70b-versatile", None, 669),
        ("router/openai/gpt-4o", "openai/gpt-4o-2024-08-06", 3500),
        ("sonar/sonar", None, 13_100),  # by the request, besides
        ("gemini/models/gemini-2.5-flash", None, 550),  # as the list of models calls it, and Vertex
        ("gemini/google/gemini-2.5-flash", "gemini-2.5-flash", 550),
        ("gemini/google/gemini-2.5-flash", None, 550),
        ("gemini/openai/gemini-2.5-flash", None, None),
        ("local/gpt-4o", None, None),
        ("nobody/gpt-4o", None, None),
    ],
)
def test_where_a_price_is_found(target: str, served: str | None, micro: int | None) -> None:
    assert priced(attempt(target, served=served)) == (micro, None if micro is None else TABLE.version)


OWN = {
    "openai/gpt-4o": OwnPrice(input="1", output="2"),
    "openai/gpt-*": OwnPrice(input="3", output="4"),
    "*/gpt-4o-mini": OwnPrice(input="0.000001", output="0"),
    "*": OwnPrice(input="5", output="6"),
    "local/*": OwnPrice(free=True),
}


@pytest.mark.parametrize(
    ("target", "served", "micro"),
    [
        ("openai/gpt-4o", None, 1200),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", 3400),  # the settings know what was served, by a pattern
        ("openai/gpt-4.1", "gpt-4o", 1200),
        ("openai/gpt-5", None, 3400),
        ("openai/gpt-4o-mini", None, 0),  # the longer pattern
        ("openai/o3", None, 5600),
        ("local/llama", None, 0),
        ("local/", None, 0),
        ("nobody/x", None, 5600),
    ],
)
def test_own_prices_come_first(target: str, served: str | None, micro: int) -> None:
    assert priced(attempt(target, served=served), OWN) == (micro, "settings")


def test_own_prices_of_what_was_asked_come_before_the_table() -> None:
    own = {"openai/gpt-4o": OwnPrice(input="1", output="2", cached="0.5", cache_write="8", reasoning="16")}
    record = attempt("openai/gpt-4o", (1000, 100, 100, 10, 1), "gpt-4o-2024-08-06")
    assert priced(record, own) == (890 + 50 + 80 + 99 * 2 + 16, "settings")


def test_without_a_table_only_own_prices_count() -> None:
    record = attempt()
    PriceList({}, PROVIDERS, None).price(record)
    assert (record.cost_usd_micro, record.price_version) == (None, None)


def test_a_price_by_the_time_of_day() -> None:
    dear, cheap = (priced(attempt("deepseek/deepseek-chat", at=NOON.replace(hour=hour)))[0] for hour in (12, 20))
    assert (dear, cheap) == (270 + 110, 135 + 55)


def test_what_was_found_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = PriceList(OWN, PROVIDERS, TABLE)
    asked: list[str] = []
    found = prices._find

    def find(_: PriceList, provider: str, model: str, served: str | None) -> object:
        asked.append(model)
        return found(provider, model, served)

    monkeypatch.setattr(PriceList, "_find", find)
    for _ in range(3):
        prices.price(attempt("openai/gpt-4o"))
    assert asked == ["gpt-4o"]
    for number in range(REMEMBERED_MAX + 5):
        prices.price(attempt(f"nobody/{number}"))
    assert len(prices._found) == REMEMBERED_MAX


# -- sums --


def test_the_rounding() -> None:
    """Half to even: of many halves as many go up as down."""
    half = Rates(PARTS_PER_MICRO // 2, 0, 0, 0, 0)
    assert [cost_usd_micro(half, count, 0) for count in (1, 3, 5, 7)] == [0, 2, 2, 4]
    assert cost_usd_micro(Rates(PARTS_PER_MICRO // 2 + 1, 0, 0, 0, 0), 1, 0) == 1
    assert cost_usd_micro(Rates(PARTS_PER_MICRO, 0, 0, 0, 0), 2**62, 0) == 2**62
    assert cost_usd_micro(Rates(PARTS_PER_MICRO, 0, 0, 0, 0), 2**63, 0) == INTEGER_MAX


def test_output_that_nobody_sells_is_unknown_and_not_free() -> None:
    embedding = rates_of({"input": "0.02"})
    assert cost_usd_micro(embedding, 1_000_000, 0) == 20_000
    assert cost_usd_micro(embedding, 1_000_000, 1) is None


_tokens = st.integers(0, 10**9)
_prices = st.decimals(0, 100_000, places=12, allow_nan=False).map(lambda price: f"{price:f}")


@given(_tokens, _tokens, _tokens, _tokens, _tokens, st.tuples(*[_prices] * 5))
def test_a_cost_lies_between_all_at_the_lowest_and_all_at_the_highest_price(
    input_: int, output: int, cached: int, written: int, reasoning: int, each: tuple[str, ...]
) -> None:
    """Parts are never counted twice, whatever a provider says of them."""
    rates = rates_of(dict(zip(("input", "output", "cached", "cache_write", "reasoning"), each, strict=True)))
    cost = cost_usd_micro(rates, input_, output, cached, written, reasoning)
    assert cost is not None
    ins, outs = (rates.input, rates.cached, rates.cache_write), (rates.output or 0, rates.reasoning)
    lowest = input_ * min(ins) + output * min(outs)
    highest = input_ * max(ins) + output * max(outs)
    assert lowest // PARTS_PER_MICRO <= cost <= highest // PARTS_PER_MICRO + 1


@given(_prices)
def test_decimals_are_kept_exactly(price: str) -> None:
    assert Decimal(parts(price)) == Decimal(price) * PARTS_PER_MICRO


@given(st.text(max_size=40))
def test_no_name_is_too_odd(name: str) -> None:
    assert TABLE.of("https://openrouter.ai/api/v1", None) is not None
    record = attempt()
    record.model, record.upstream_model = name, name[::-1]
    PRICES.price(record)


PRICES = PriceList(OWN, PROVIDERS, TABLE)


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        PriceTable(b'{"source":"x"}')


def test_every_pattern_of_the_table_can_be_used() -> None:
    for whose in msgspec.json.decode(flatten_prices.FILE.read_bytes())["providers"]:
        re.compile(whose["address"])
        for clause, _ in whose["models"]:
            for text in [clause] if isinstance(clause, str) else clause[1:]:
                if isinstance(text, str) and text.startswith("~"):
                    re.compile(text[1:])
