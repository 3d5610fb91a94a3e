"""Writes edgegw/providers/prices.json: what the package genai-prices knows, as edgegw/price_table.py reads it.

    make prices

genai-prices (https://github.com/pydantic/genai-prices, MIT) is a program; the gateway wants a few tables of numbers.
Kept of a model: how its names are told, and what the tokens cost that the gateway counts (input, output, read from and
written to a cache, reasoning), and a request as such. Left out: prices of sounds, images, pages and searches, of
service tiers and of batches.

A model without a price for tokens stays in the list, as unknown, because the first model that fits a name counts. One
without any price is free where the data says so of it, and unknown otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import msgspec
from genai_prices import types
from genai_prices.data import providers

PACKAGE = "genai-prices"
FILE = Path(__file__).parent.parent / "edgegw" / "providers" / "prices.json"

# Our name of a rate, and the unit that genai-prices has it under. All are USD per million tokens but the last, which is
# USD per thousand requests there and per million requests here.
UNITS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "reasoning": "output_reasoning_mtok",
    "request": "requests_kcount",
}
_FREE_BY_NAME = ":free"
_FREE_BY_COMMENT = ("free of charge", "included in the subscription")
_FREE_BY_TITLE = "(free)"

_SIGNS: dict[type[Any], tuple[str, str]] = {
    types.ClauseEquals: ("=", "equals"),
    types.ClauseStartsWith: ("^", "starts_with"),
    types.ClauseEndsWith: ("$", "ends_with"),
    types.ClauseContains: ("*", "contains"),
}


def flattened() -> bytes:
    """The text of the file: JSON, a model a line, so that a change of the data can be read."""
    found = distribution(PACKAGE)
    notice = next(file for file in found.files or () if file.name == "LICENSE").read_text()
    head = {"source": PACKAGE, "version": found.version, "notice": notice.strip().splitlines()}
    lines = [_json(head)[:-1] + ',\n"providers":[']
    lines.append(",\n".join(_provider(provider) for provider in providers))
    return ("\n".join(lines) + "\n]}\n").encode()


def _provider(provider: types.Provider) -> str:
    head = {"id": provider.id, "address": provider.api_pattern, "also": provider.fallback_model_providers or []}
    models = ",\n".join(_json(_model(model)) for model in provider.models)
    return _json(head)[:-1] + ',"models":[\n' + models + "\n]}"


def _model(model: types.ModelInfo) -> list[object]:
    """[names, prices]: `prices` is a list of [when, steps], of which the last that applies counts, else the first.
    Empty: unknown."""
    listed = model.prices if isinstance(model.prices, list) else [types.ConditionalPrice(prices=model.prices)]
    prices = [(_when(each.constraint), _steps(each.prices)) for each in listed]
    if all(not any(_values(each.prices)) for each in listed):
        prices = [(None, [(0, {"input": "0", "output": "0"})])] if _is_free(model) else []
    elif not all("input" in rates for _, steps in prices for _, rates in steps):
        prices = []
    return [_names(model.match), prices]


def _is_free(model: types.ModelInfo) -> bool:
    comment = (model.price_comments or "").lower()
    return (
        model.id.endswith(_FREE_BY_NAME)
        or (model.name or "").endswith(_FREE_BY_TITLE)
        or any(words in comment for words in _FREE_BY_COMMENT)
    )


def _values(prices: types.ModelPrice) -> Iterator[object]:
    return (value for value in vars(prices).values() if value is not None)


def _steps(prices: types.ModelPrice) -> list[tuple[int, dict[str, str]]]:
    """[[above, rates]]: what counts from so many input tokens on. With more than `above` the whole request has them."""
    values = {name: value for name, unit in UNITS.items() if (value := getattr(prices, unit)) is not None}
    tiered = [value for value in values.values() if isinstance(value, types.TieredPrices)]
    starts = sorted({0, *(tier.start for value in tiered for tier in value.tiers)})
    return [(start, {name: _rate(name, value, start) for name, value in values.items()}) for start in starts]


def _rate(name: str, value: Decimal | types.TieredPrices, start: int) -> str:
    if isinstance(value, types.TieredPrices):
        value = next((tier.price for tier in reversed(value.tiers) if start and tier.start <= start), value.base)
    return f"{(value * 1000 if name == 'request' else value).normalize():f}"


def _when(constraint: object) -> object:
    """From which day on, or at which hours (from, until; seconds of the day); both in UTC."""
    match constraint:
        case None:
            return None
        case types.StartDateConstraint(start_date=day):
            return day.isoformat()
        case types.TimeOfDateConstraint(start_time=start, end_time=end):
            return [_seconds(start), _seconds(end)]
    raise ValueError(f"an unknown constraint: {constraint}")


def _seconds(moment: time) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    there = datetime.combine(date(2000, 1, 1), aware).astimezone(UTC)
    if there.microsecond:
        raise ValueError(f"a fraction of a second: {moment}")
    return there.hour * 3600 + there.minute * 60 + there.second


def _names(clause: Any) -> object:
    """One sign and a text; or `any` or `all`, and what must fit."""
    if type(clause) in _SIGNS:
        sign, attribute = _SIGNS[type(clause)]
        return sign + getattr(clause, attribute).lower()
    match clause:
        case types.ClauseRegex(regex=regex):
            return "~" + regex
        case types.ClauseOr(or_=inner):
            return ["any", *map(_names, inner)]
        case types.ClauseAnd(and_=inner):
            return ["all", *map(_names, inner)]
    raise ValueError(f"an unknown clause: {clause}")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


if __name__ == "__main__":
    FILE.write_bytes(flattened())
    sys.stdout.write(f"{FILE.name}: {FILE.stat().st_size // 1024} KiB\n")
