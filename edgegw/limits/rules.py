"""What the limits are, and which of them a request counts against: the settings' tables, asked by meter.

The one place that knows how tenants, keys and models inherit: a tenant has the default limits but for its own; a key
and a model have only what is said of them. Built in every worker (what to count) and in the control process (how much
is allowed), from the same settings; limits of keys come and go while it runs.

Pure: values of the settings in, numbers out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgegw.limits.meter import MEASURES, NO_LIMIT, Measure, Meter, Scope, read_meter
from edgegw.pattern import Pattern
from edgegw.settings import OwnLimits, Settings, TenantSettings, WithoutRedis


@dataclass(slots=True)
class _Tenant:
    """What the settings say of a tenant. `patterns` of `models`: the most literal first, of equals a name itself."""

    limits: dict[Measure, int]
    models: dict[str, dict[Measure, int]] = field(default_factory=dict)
    patterns: list[Pattern] = field(default_factory=list)
    weight: int = 1
    without_redis: WithoutRedis = "local"


class Rules:
    """The limits in force. `set_key` is the only change while it lives; a reload builds another."""

    def __init__(self, settings: Settings) -> None:
        default = settings.limits
        inherited = {measure: value for measure in MEASURES if (value := getattr(default, measure.name)) is not None}
        self._default = _Tenant(inherited, without_redis=default.without_redis)
        self._tenants = {name: self._tenant(tenant) for name, tenant in settings.tenants.items()}
        self._keys: dict[str, tuple[str, dict[Measure, int]]] = {}  # by id: the tenant that it is of, and its limits
        for name, tenant in settings.tenants.items():
            for key in tenant.keys.values():
                self.set_key(f"{name}.{key.name}", name, key.limits)

    def meters(self, tenant: str, key_id: str | None, model: str) -> list[tuple[str, int]]:
        """What a request counts against, each with its limit: the tenant's tokens per minute first, always."""
        known = self._tenants.get(tenant, self._default)
        found = [*_of(known.limits, tenant)]
        if key_id is not None and key_id in self._keys:
            owner, limits = self._keys[key_id]  # counted together, whichever tenants it acts for
            found += _of(limits, owner, "key", key_id)
        for pattern in known.patterns:
            if pattern.fits(model):
                found += _of(known.models[pattern.text], tenant, "model", pattern.text)
                break
        return found

    def limit(self, meter: str) -> int:
        """What a meter allows now; NO_LIMIT when there is no such limit any more."""
        taken_apart = read_meter(meter)
        tenant = self._tenants.get(taken_apart.tenant, self._default)
        limits = tenant.limits
        if taken_apart.scope == "key":
            limits = self._keys.get(taken_apart.name, ("", {}))[1]
        elif taken_apart.scope == "model":
            limits = tenant.models.get(taken_apart.name, {})
        return limits.get(taken_apart.measure, NO_LIMIT)

    def without_redis(self, tenant: str) -> WithoutRedis:
        """How the tenant's requests are counted while Redis is away."""
        return self._tenants.get(tenant, self._default).without_redis

    def weight(self, tenant: str) -> int:
        """The tenant's share of a provider's connections, beside the weights of others."""
        return self._tenants.get(tenant, self._default).weight

    def _tenant(self, tenant: TenantSettings) -> _Tenant:
        return _Tenant(
            self._default.limits | _own(tenant.limits),
            {pattern: _own(limits) for pattern, limits in tenant.models.items()},
            sorted(map(Pattern, tenant.models), key=lambda pattern: (-pattern.literals, len(pattern.text))),
            tenant.weight,
            tenant.without_redis or self._default.without_redis,
        )

    def set_key(self, key_id: str, tenant: str, limits: OwnLimits | None) -> None:
        """The limits of a tenant's key from now on; None when it has none."""
        own = {} if limits is None else _own(limits)
        if own:
            self._keys[key_id] = tenant, own
        else:
            self._keys.pop(key_id, None)


def _own(limits: OwnLimits) -> dict[Measure, int]:
    return {measure: value for measure in MEASURES if (value := getattr(limits, measure.name)) is not None}


def _of(limits: dict[Measure, int], tenant: str, scope: Scope = "", name: str = "") -> Iterator[tuple[str, int]]:
    for measure in MEASURES:
        if measure in limits:
            yield Meter(measure, tenant, scope, name).id, limits[measure]
