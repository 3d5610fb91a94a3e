"""The table of prices that comes with the program (providers/prices.json): whose prices count, and which a model has.

The file is made of the data of the package genai-prices by `make prices`, and read as that package reads its own: the
provider is the first whose address fits, the model the first of the provider that fits the name, then the first of
those it passes on (Azure has OpenAI's models); names in lower case; a day written -20251211 also as -2025-12-11. One
thing is ours: a name that nothing fits is tried without the provider's own prefix (`models/gemini-…`,
`google/gemini-…`).

Pure: bytes in, rates out. Only the providers that are asked for are taken apart.
"""

from __future__ import annotations

import pkgutil
import re
from datetime import UTC, date, datetime

import msgspec

# A rate is a whole number of parts: so many make a micro-dollar. USD per million tokens are micro-dollars per token,
# and the finest price in the table has 18 decimals.
PARTS_PER_MICRO = 10**18
DECIMALS_MAX = 18

_NS_PER_S = 1_000_000_000
_NS_PER_DAY = 86_400 * _NS_PER_S
_COMPACT_DAY = re.compile(r"(-)(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


class Rates(msgspec.Struct, frozen=True, gc=False):
    """Parts per token of each kind; `output` is None where nobody sells any. `request`: parts of each request."""

    input: int
    output: int | None
    cached: int
    cache_write: int
    reasoning: int
    request: int = 0


class Price(msgspec.Struct, frozen=True):
    """What a model costs at some time. `steps`: (above, rates), from the largest bound to 0; a request of more input
    tokens than `above` has these rates as a whole. It counts from `since_ns` on (Unix nanoseconds), and, if `hours` has
    any, only within these nanoseconds of a day, from and until."""

    steps: tuple[tuple[int, Rates], ...]
    since_ns: int = 0
    hours: tuple[int, int] | None = None

    def applies(self, wall_ns: int) -> bool:
        if self.hours is None:
            return wall_ns >= self.since_ns
        start, end = self.hours
        at = wall_ns % _NS_PER_DAY
        return start <= at < end if start <= end else at >= start or at < end

    def rates(self, input_tokens: int) -> Rates:
        steps = self.steps
        for above, rates in steps:
            if input_tokens > above:
                return rates
        return steps[-1][1]


class Prices(msgspec.Struct, frozen=True):
    """What a model costs, told by `version`. Of `each` the first that applies counts, else the last. `always`: the one
    set of rates, where time and length change nothing."""

    version: str
    each: tuple[Price, ...]
    always: Rates | None

    @classmethod
    def of(cls, version: str, each: tuple[Price, ...]) -> Prices:
        only = each[0].steps[0][1] if len(each) == 1 and len(each[0].steps) == 1 else None
        return cls(version, each, only)

    def rates(self, wall_ns: int, input_tokens: int) -> Rates:
        each = self.each
        for price in each:
            if price.applies(wall_ns):
                return price.rates(input_tokens)
        return each[-1].rates(input_tokens)


_When = str | tuple[int, int] | None
_Steps = list[tuple[int, dict[str, str]]]


class _Model(msgspec.Struct, array_like=True, gc=False):
    names: msgspec.Raw
    prices: msgspec.Raw


class _Provider(msgspec.Struct):
    id: str
    address: str
    also: list[str]
    models: msgspec.Raw


class _File(msgspec.Struct):
    source: str
    version: str
    notice: list[str]
    providers: list[_Provider]


_Clause = str | list["_Clause"]
_MODELS = msgspec.json.Decoder(list[_Model])
_CLAUSE = msgspec.json.Decoder()
_PRICES = msgspec.json.Decoder(list[tuple[_When, _Steps]])


class PriceTable:
    """The whole table; `of` gives a provider's part."""

    __slots__ = ("_providers", "version")

    def __init__(self, text: bytes) -> None:
        """`text` is JSON as `make prices` writes it. Raises msgspec.DecodeError when it is not."""
        file = msgspec.json.decode(text, type=_File)
        self.version = f"{file.source} {file.version}"
        self._providers = {provider.id: provider for provider in file.providers}

    def of(self, base_url: str, otherwise: str | None) -> ProviderPrices | None:
        """The prices of who is at an address, else of the provider `otherwise`; None when nobody knows them."""
        found = next((each for each in self._providers.values() if re.match(each.address, base_url)), None)
        if found is None and otherwise is not None:
            found = self._providers.get(otherwise)
        if found is None:
            return None
        further = (self._providers[name] for name in found.also if name in self._providers)
        prefixes = (f"publishers/{found.id}/models/", "models/", f"{found.id}/")
        return ProviderPrices(self.version, [bytes(each.models) for each in (found, *further)], prefixes)


class ProviderPrices:
    """A provider's models, in their order. What `find` gives is made anew each time: for those who keep it."""

    __slots__ = ("_models", "_prefixes", "_version")

    def __init__(self, version: str, models: list[bytes], prefixes: tuple[str, ...]) -> None:
        self._version = version
        self._prefixes = prefixes
        self._models = [
            (_CLAUSE.decode(model.names), bytes(model.prices)) for each in models for model in _MODELS.decode(each)
        ]

    def find(self, model: str) -> Prices | None:
        """What a model costs, by any of its names; None when it is not known."""
        name = model.lower()
        found = self._first(name)
        if found is None:
            bare = (name.removeprefix(prefix) for prefix in self._prefixes if name.startswith(prefix))
            found = next((prices for each in bare if (prices := self._first(each)) is not None), None)
        listed = _PRICES.decode(found) if found is not None else []
        each = tuple(_price(when, steps) for when, steps in reversed(listed))
        return Prices.of(self._version, each) if each else None

    def _first(self, name: str) -> bytes | None:
        """Of the first model that fits a name, as it stands or with its day written in full."""
        dated = _COMPACT_DAY.sub(_with_dashes, name)
        for spelt in (name,) if dated == name else (name, dated):
            for names, prices in self._models:
                if _fits(names, spelt):
                    return prices
        return None


def shipped() -> PriceTable:
    """The table that comes with the program."""
    text = pkgutil.get_data("edgegw.providers", "prices.json")
    if text is None:
        raise FileNotFoundError("prices.json is missing from the installation")
    return PriceTable(text)


def parts(price: str) -> int:
    """A price of at most DECIMALS_MAX decimals (USD per million tokens) as parts per token, exactly."""
    whole, _, fraction = price.partition(".")
    return int(whole + fraction.ljust(DECIMALS_MAX, "0"))


def _fits(names: _Clause, name: str) -> bool:
    if isinstance(names, list):
        of = all if names[0] == "all" else any
        return of(_fits(clause, name) for clause in names[1:])
    sign, text = names[0], names[1:]
    if sign == "=":
        return name == text
    if sign == "^":
        return name.startswith(text)
    if sign == "$":
        return name.endswith(text)
    if sign == "*":
        return text in name
    return re.search(text, name) is not None


def _with_dashes(match: re.Match[str]) -> str:
    year, month, day = match[2], match[3], match[4]
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return match[0]
    return f"-{year}-{month}-{day}"


def _price(when: _When, steps: _Steps) -> Price:
    ladder = tuple((above, rates_of(rates)) for above, rates in reversed(steps))
    match when:
        case None:
            return Price(ladder)
        case str():
            day = datetime.fromisoformat(when).replace(tzinfo=UTC)
            return Price(ladder, since_ns=int(day.timestamp()) * _NS_PER_S)
        case start_s, end_s:
            return Price(ladder, hours=(start_s * _NS_PER_S, end_s * _NS_PER_S))


def rates_of(prices: dict[str, str]) -> Rates:
    """Rates from prices as texts. What has no price of its own costs what its whole costs: tokens from a cache those of
    the input, reasoning those of the output."""
    known = {name: parts(price) for name, price in prices.items()}
    input_, output = known["input"], known.get("output")
    return Rates(
        input_,
        output,
        known.get("cached", input_),
        known.get("cache_write", input_),
        known.get("reasoning", output or 0),
        known.get("request", 0),
    )
