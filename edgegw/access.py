"""Who asks, and what they may: a credential's key from the head of a request, then its tenant, then its route.

Pure: the table of keys, the time and the settings come in as values. It never says more than the caller may know: what
is wrong with a key, whether another tenant exists, and what others may use is told nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgegw.errors import GatewayError
from edgegw.exchange import Route
from edgegw.http.request import Request
from edgegw.keys.table import Key, KeyTable, is_label
from edgegw.pattern import Pattern
from edgegw.routing import HEADER_CHARS_MAX, Router, listing, shown
from edgegw.settings.model import AllowSettings, TenantSettings

# The tenant of requests that name none: one app beside its sidecar should not have to.
DEFAULT_TENANT = "default"
# The tenant in the row of a request that came without a valid key. No tenant can have this name.
STRANGER = ""
TENANT_HEADER = b"x-edgegw-tenant"

_BEARER = b"Bearer "
_HOW_TO = "Send it as `Authorization: Bearer KEY`, or as `x-api-key: KEY`."
_CHALLENGE = ((b"www-authenticate", b"Bearer"),)
_SOON = ((b"retry-after", b"1"),)
# Of a route's name, when it was the model that led there.
_BY_MODEL = ("model:", "pattern:", "target:")


def credential_of(headers: Mapping[bytes, bytes]) -> bytes:
    """The credential that a request came with. Raises GatewayError 401: none, or two that differ."""
    authorization, api_key = headers.get(b"authorization"), headers.get(b"x-api-key")
    if authorization is None:
        if not api_key:
            raise _unauthorized(f"This gateway wants a key. {_HOW_TO}")
        return api_key
    if authorization[:7] == _BEARER:  # as nearly everybody writes it
        token = authorization[7:].lstrip(b" ")
    else:
        scheme, _, token = authorization.partition(b" ")
        token = token.lstrip(b" ") if scheme.lower() == b"bearer" else b""
    if not token:
        raise _unauthorized(f"The Authorization header holds no key. {_HOW_TO}")
    if api_key and api_key != token:
        raise _unauthorized("The Authorization and x-api-key headers hold different keys. Send one of them.")
    return token


class Doorkeeper:
    """Judges the head of a request, before its body is read: finds the key it came with, or refuses it.

    `complete` says whether all keys are known: a worker that has just started may not know them yet, and then cannot
    tell who is unknown.
    """

    def __init__(self, table: KeyTable, wall_ns: Callable[[], int], complete: Callable[[], bool]) -> None:
        self._find = table.find
        self._wall_ns = wall_ns
        self._complete = complete

    def check(self, request: Request) -> None:
        """Sets `request.key`. Raises GatewayError 401, and 503 while it cannot be known."""
        key = self._find(credential_of(request.headers), self._wall_ns())
        if key is None:
            if not self._complete():
                message = "Keys are still being loaded, and this one is not known yet. Try again in a second."
                raise GatewayError("overloaded", message, headers=_SOON)
            raise _unauthorized("The key is not valid: it is unknown, has expired or was revoked.")
        request.key = key


class Access:
    """What tenants may, as the settings say. `closed`: nobody comes in without a key."""

    def __init__(self, tenants: Mapping[str, TenantSettings], *, closed: bool) -> None:
        self._closed = closed
        self._permits = {
            name: _Permit(tenant.allow)
            for name, tenant in tenants.items()
            if tenant.allow.routes is not None or tenant.allow.models is not None
        }
        self.stranger = STRANGER if closed else DEFAULT_TENANT

    def tenant(self, request: Request, asked: str | None) -> str:
        """The tenant that a request counts for; `asked` is its `metadata.tenant`. Raises GatewayError 400, 401, 403."""
        key: Key | None = request.key
        if key is None and self._closed:  # the gate has seen to it; should it ever not have, nobody comes in
            raise _unauthorized(f"This gateway wants a key. {_HOW_TO}")
        param = "metadata.tenant"
        if asked is None:
            header = request.headers.get(TENANT_HEADER)
            if not header:
                return DEFAULT_TENANT if key is None else key.tenant
            param = TENANT_HEADER.decode()
            asked = _label(header, param)
        if key is not None and not key.may_act_for(asked):
            raise GatewayError("forbidden", "This key may not act for the tenant that the request names.", param=param)
        return asked

    def route(self, router: Router, tenant: str, use_case: str | None, model: str | None) -> Route:
        """The route of a request, if its tenant may take it. Raises GatewayError 400, 403, 404."""
        permit = self._permits.get(tenant)
        return router.resolve(use_case, model) if permit is None else permit.route(router, use_case, model)

    def models(self, router: Router, tenant: str) -> list[str]:
        """What `GET /v1/models` lists for a tenant."""
        permit, names = self._permits.get(tenant), router.models()
        if permit is None:
            return names
        return [name for name in names if permit.allows(router.resolve(None, name), name)]


class _Permit:
    """What a tenant may whose settings say so. It hears of nothing else, not even in a 404."""

    def __init__(self, allow: AllowSettings) -> None:
        routes, models = allow.routes or (), allow.models or ()
        kinds = ("use_case:", "model:")
        self._routes = frozenset(f"{kind}{name}"[:HEADER_CHARS_MAX] for kind in kinds for name in routes) | (
            {"default"} & set(routes)
        )
        self._models = tuple(map(Pattern, models))
        self._listing = " ".join((listing("Allowed routes", list(routes)), listing("Allowed models", list(models))))

    def allows(self, route: Route, model: str | None) -> bool:
        """A model counts where it was the model that led there: beside a use case it decides nothing."""
        name = route.name
        return name in self._routes or (model is not None and name.startswith(_BY_MODEL) and self._lists(model))

    def route(self, router: Router, use_case: str | None, model: str | None) -> Route:
        try:
            route = router.resolve(use_case, model)
        except GatewayError as error:
            raise self._unresolved(error.kind, model) from None
        if not self.allows(route, model):
            if route.name.startswith("use_case:"):
                raise self._refusal(f"the use case `{shown(use_case or '')}`", "metadata.use_case")
            raise self._refusal_of_model(model)
        return route

    def _lists(self, model: str) -> bool:
        return any(pattern.fits(model) for pattern in self._models)

    def _unresolved(self, kind: str, model: str | None) -> GatewayError:
        if model is None:
            return GatewayError(kind, f"The request names no model, and there is no default route. {self._listing}")
        if not self._lists(model):  # whether others may use such a model is nothing to this one
            return self._refusal_of_model(model)
        return GatewayError(kind, f"The model `{shown(model)}` does not exist here. {self._listing}", param="model")

    def _refusal_of_model(self, model: str | None) -> GatewayError:
        return self._refusal("the default route" if model is None else f"the model `{shown(model)}`", "model")

    def _refusal(self, what: str, param: str) -> GatewayError:
        message = f"This tenant may not use {what}. {self._listing}"
        return GatewayError("model_not_allowed", message, param=param)


def _unauthorized(message: str) -> GatewayError:
    return GatewayError("unauthorized", message, headers=_CHALLENGE)


def _label(header: bytes, param: str) -> str:
    try:
        label = header.decode()
    except UnicodeDecodeError:
        label = ""
    if not is_label(label):
        raise GatewayError("invalid_value", f"The {param} header is no name of a tenant.", param=param)
    return label
