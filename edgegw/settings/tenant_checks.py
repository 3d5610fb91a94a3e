"""Rules between settings about who may use the gateway: who reaches it, what their keys and permissions refer to.

Generators of complaints and warnings, as in `checks.py`, which asks for them. Pure: the time is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from edgegw.settings import environment
from edgegw.settings.addresses import is_loopback
from edgegw.settings.mistakes import Complaint, did_you_mean, one_of
from edgegw.settings.model import KeySettings, LimitSettings, OwnLimits, Settings, TenantSettings
from edgegw.settings.tree import join
from edgegw.settings.values import show_moment

_MEASURES = OwnLimits.__struct_fields__
_CLOSE_IT = "listen on 127.0.0.1, set auth: keys, or server.allow_unauthenticated: true"
_CLOSE_IT_HERE = "leave EDGEGW_HOST out, set EDGEGW_AUTH=keys, or EDGEGW_ALLOW_UNAUTHENTICATED=true"


def access_complaints(settings: Settings, routes: Collection[str]) -> Iterator[Complaint]:
    """What is wrong with who may use the gateway. `routes`: all names of `allow.routes` that mean something."""
    yield from _open_to_all(settings)
    yield from _digest_twice(settings)
    for name, tenant in settings.tenants.items():
        yield from _unknown_routes(join(join("tenants", name), "allow"), tenant.allow.routes or (), routes)


def access_warnings(settings: Settings, now_ns: int) -> Iterator[str]:
    """What is hardly meant, a line each. `now_ns`: Unix nanoseconds."""
    for name, tenant in settings.tenants.items():
        path = join("tenants", name)
        if tenant.keys and settings.auth == "none":
            yield f"{path}.keys: nobody is asked for a key: auth is none"
        yield from _above_tenant(path, tenant, settings.limits)
        for key in tenant.keys.values():
            yield from _odd_key(join(join(path, "keys"), key.name), name, key, now_ns)


def _open_to_all(settings: Settings) -> Iterator[Complaint]:
    server = settings.server
    if settings.auth == "keys" or server.allow_unauthenticated or is_loopback(server.listen.host):
        return
    yield Complaint(
        "server.listen",
        "open to other machines while auth is none: whoever reaches the port may spend your money",
        _CLOSE_IT_HERE if settings.source == environment.SOURCE else _CLOSE_IT,
        also=("auth", "server.allow_unauthenticated"),
    )


def _digest_twice(settings: Settings) -> Iterator[Complaint]:
    """A key is found by its digest alone, so it belongs to one tenant and has one name."""
    seen: dict[bytes, str] = {}
    for tenant in settings.tenants.values():
        keys = join(join("tenants", tenant.name), "keys")
        for key in tenant.keys.values():
            path = join(join(keys, key.name), "digest")
            first = seen.setdefault(key.digest, path)
            if first != path:
                yield Complaint(path, f"the same key as {first}", "a key has one tenant and one name", also=(first,))


def _unknown_routes(path: str, allowed: Collection[str], routes: Collection[str]) -> Iterator[Complaint]:
    for at, name in enumerate(allowed):
        if name and name not in routes:  # an empty one is the hole that a faulty name left
            there_are = f"there are: {one_of(routes)}" if routes else "there are none"
            hint = did_you_mean(name, routes) or there_are
            place = join(join(path, "routes"), at)
            message = "there is no such use case or model alias"
            yield Complaint(place, message, hint, also=("use_cases", "models"), shows=True)


def _above_tenant(path: str, tenant: TenantSettings, otherwise: LimitSettings) -> Iterator[str]:
    """Limits of a key or model that the tenant's own would stop first."""
    parts = [(join(join(path, "models"), name), limits) for name, limits in tenant.models.items()]
    parts += [(join(join(path, "keys"), name), key.limits) for name, key in tenant.keys.items()]
    for measure in _MEASURES:
        whole = getattr(tenant.limits, measure) or getattr(otherwise, measure)
        for place, limits in parts:
            part = getattr(limits, measure)
            if part is not None and whole is not None and part > whole:
                yield f"{place}: {measure} {part} is never reached: the tenant's is {whole}"


def _odd_key(path: str, tenant: str, key: KeySettings, now_ns: int) -> Iterator[str]:
    if key.expires_ns is not None and key.expires_ns <= now_ns:
        yield f"{path}: expired ({show_moment(key.expires_ns)}): it is refused"
    if tenant in key.acts_for:
        yield f"{path}: acts_for names the key's own tenant, for which it acts anyway"
