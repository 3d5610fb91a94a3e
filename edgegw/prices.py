"""What an attempt cost: its tokens by their kind, at the price that its model had when it began.

A price is looked for in the settings first (`prices`), then in the table that comes with the program (price_table.py).
In both the model is first the one that the provider says it served, then the one that was asked of it. An attempt whose
model has no price costs None, never 0.

Money is whole micro-dollars. An attempt's cost is added up exactly and rounded once, half to even: rounding up at every
half would make the sum of many small requests too large.

Pure. Who keeps it may ask for every attempt: what was found for a model is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgegw.ledger.record import INTEGER_MAX, AttemptRecord
from edgegw.pattern import Pattern
from edgegw.price_table import PARTS_PER_MICRO, Price, Prices, PriceTable, ProviderPrices, Rates, rates_of
from edgegw.settings import OwnPrice, ProviderSettings

OWN = "settings"

# Where our kinds of provider find their prices in the table when their address does not say.
TABLE_OF_KIND = {"openai": "openai", "anthropic": "anthropic"}

# Names come from clients and from providers: so many are remembered, the one that came first is forgotten.
REMEMBERED_MAX = 4096

_HALF = PARTS_PER_MICRO // 2
_Asked = tuple[str, str, str | None]


class PriceList:
    """All prices in force: one per control process."""

    __slots__ = ("_found", "_own", "_patterns", "_tables")

    def __init__(
        self, own: Mapping[str, OwnPrice], providers: Iterable[ProviderSettings], table: PriceTable | None
    ) -> None:
        """`own`: prices of the settings, by provider/model or a pattern of it. `table`: None for none but these."""
        self._own = {target: _of_settings(price) for target, price in own.items()}
        patterns = [Pattern(target) for target in own if "*" in target]
        self._patterns = sorted(patterns, key=lambda pattern: (-pattern.literals, len(pattern.text)))
        self._tables: dict[str, ProviderPrices] = {}
        for provider in providers:
            known = None if table is None else table.of(provider.base_url, TABLE_OF_KIND.get(provider.kind))
            if known is not None:
                self._tables[provider.name] = known
        self._found: dict[_Asked, Prices | None] = {}

    def price(self, attempt: AttemptRecord) -> None:
        """Sets `cost_usd_micro` and `price_version` of an attempt whose tokens were counted; leaves both None where no
        price is known."""
        asked = (attempt.provider, attempt.model, attempt.upstream_model)
        try:
            prices = self._found[asked]
        except KeyError:
            prices = self._remember(asked)
        if prices is None:
            return
        rates = prices.always or prices.rates(attempt.started_ns, attempt.input_tokens or 0)
        cost = cost_usd_micro(
            rates,
            attempt.input_tokens or 0,
            attempt.output_tokens or 0,
            attempt.cached_tokens or 0,
            attempt.cache_write_tokens or 0,
            attempt.reasoning_tokens or 0,
        )
        if cost is not None:
            attempt.cost_usd_micro, attempt.price_version = cost, prices.version

    def _remember(self, asked: _Asked) -> Prices | None:
        if len(self._found) >= REMEMBERED_MAX:
            del self._found[next(iter(self._found))]
        found = self._found[asked] = self._find(*asked)
        return found

    def _find(self, provider: str, asked: str, served: str | None) -> Prices | None:
        models = (asked,) if served is None or served == asked else (served, asked)
        for model in models:
            own = self._of_own(f"{provider}/{model}")
            if own is not None:
                return own
        table = self._tables.get(provider)
        if table is None:
            return None
        return next((found for model in models if (found := table.find(model)) is not None), None)

    def _of_own(self, target: str) -> Prices | None:
        """The price of this very target, else of the pattern that says most."""
        found = self._own.get(target)
        if found is not None:
            return found
        return next((self._own[pattern.text] for pattern in self._patterns if pattern.fits(target)), None)


def cost_usd_micro(
    rates: Rates, input_: int, output: int, cached: int = 0, cache_write: int = 0, reasoning: int = 0
) -> int | None:
    """`cached` and `cache_write` are parts of `input_`, `reasoning` of `output`: counted once, and never more than
    their whole has. None when there is output and nobody knows its price."""
    if rates.output is None and output:
        return None
    if cached > input_:
        cached = input_
    if cached + cache_write > input_:
        cache_write = input_ - cached
    if reasoning > output:
        reasoning = output
    cost = (
        (input_ - cached - cache_write) * rates.input
        + cached * rates.cached
        + cache_write * rates.cache_write
        + (output - reasoning) * (rates.output or 0)
        + reasoning * rates.reasoning
        + rates.request
    )
    micro, rest = divmod(cost, PARTS_PER_MICRO)
    if rest > _HALF or (rest == _HALF and micro & 1):
        micro += 1
    return micro if micro < INTEGER_MAX else INTEGER_MAX


def _of_settings(price: OwnPrice) -> Prices:
    known = {name: value for name in Rates.__struct_fields__ if (value := getattr(price, name, None)) is not None}
    if price.free:
        known = {"input": "0", "output": "0"}
    return Prices.of(OWN, (Price(((0, rates_of(known)),)),))
