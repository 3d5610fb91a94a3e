"""What no single field can know: rules between settings, each a small generator of complaints.

Pure. A complaint names the path it is about; where that stands in the file is the loader's business, and so is keeping
quiet about a path that was found faulty before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from msgspec import Struct, structs

from edgegw.exchange import RetryPolicy
from edgegw.settings.addresses import host_and_port, is_loopback
from edgegw.settings.fields import PRESETS
from edgegw.settings.mistakes import Complaint, did_you_mean, one_of
from edgegw.settings.model import (
    CaptureSettings,
    OwnPrice,
    ProviderSettings,
    RouteSettings,
    ServerSettings,
    Settings,
    parse_target,
)
from edgegw.settings.tenant_checks import access_complaints, access_warnings
from edgegw.settings.tree import join

_COSTS = ("input", "output", "cached_input", "cache_write", "reasoning")  # in the order of OwnPrice


class Known(Struct, frozen=True):
    """All names that others may refer to, also those whose own settings are faulty. `routes`: use cases, aliases, and
    `default` if there is one."""

    providers: tuple[str, ...]
    routes: tuple[str, ...]


def complaints(settings: Settings, known: Known) -> Iterator[Complaint]:
    """All that is wrong between the settings."""
    yield from _server(settings.server)
    yield from _storage(settings)
    yield from _capture(settings.capture, settings.server.workers)
    yield from _prices(settings.prices, known.providers)
    yield from access_complaints(settings, known.routes)
    if not known.providers:
        yield Complaint("providers", "no provider at all", "name at least one")
    for name, provider in settings.providers.items():
        yield from _provider(join("providers", name), provider)
    for path, name, route in _routes(settings):
        yield from _targets(path, name, route, known.providers)
        yield from _retry(join(path, "retry"), route.retry)


def _routes(settings: Settings) -> Iterator[tuple[str, str, RouteSettings]]:
    """(path, name, route) of each; the name is empty where no pattern can stand."""
    for name, route in settings.use_cases.items():
        yield join("use_cases", name), "", route
    for name, route in settings.models.items():
        yield join("models", name), name, route
    if settings.default is not None:
        yield "default", "", settings.default


def _server(server: ServerSettings) -> Iterator[Complaint]:
    if server.listen.port == server.admin.port:
        message = f"port {server.admin.port} is also the port of server.listen"
        yield Complaint("server.admin", message, "clients and probes need a port each", also=("server.listen",))


def _storage(settings: Settings) -> Iterator[Complaint]:
    storage = settings.storage
    if storage.journal.bytes_max < 2 * storage.journal.segment_bytes:
        path = "storage.journal"
        message = "max must hold at least two segments"
        yield Complaint(path, message, also=(join(path, "max"), join(path, "segment")))
    if storage.journal.adopt and settings.postgres_url is None:
        message = "what others have left can only be stored where they store: in a PostgreSQL"
        yield Complaint("storage.journal.adopt", message, "set storage.database_url to postgresql://…")


def _capture(capture: CaptureSettings, workers: int) -> Iterator[Complaint]:
    """`workers`: 0 for as many as there are CPUs."""
    body_max = join("capture", "body_max")
    if capture.waiting_bytes_max < 3 * capture.body_bytes_max * max(workers, 1):
        path = join("capture", "waiting")
        message = "must hold three times body_max for each worker: a prompt, an answer, and what is around them"
        yield Complaint(path, message, also=(body_max, join("server", "workers")))
    if capture.bytes_max < 2 * capture.body_bytes_max:
        yield Complaint(join("capture", "max"), "must hold twice body_max: a prompt and an answer", also=(body_max,))


def _prices(prices: Mapping[str, OwnPrice], providers: Collection[str]) -> Iterator[Complaint]:
    for target, price in prices.items():
        path = join("prices", target)
        provider, _, _ = target.partition("/")
        if "*" not in provider and provider not in providers:
            hint = did_you_mean(provider, providers) or f"there are: {one_of(providers)}"
            yield Complaint(path, f"there is no provider {provider!r}", hint, also=("providers",))
        costs = [key for key, part in zip(_COSTS, structs.astuple(price), strict=False) if part is not None]
        also = tuple(join(path, key) for key in _COSTS)
        if price.free and costs:
            yield Complaint(path, f"is free, and has {one_of(costs)}", "either the one or the other", also)
        elif not price.free and (price.input is None or price.output is None):
            missing = "input" if price.input is None else "output"
            yield Complaint(join(path, missing), "missing", "a price has input and output, or free: true", also)


def _provider(path: str, provider: ProviderSettings) -> Iterator[Complaint]:
    preset = PRESETS[provider.kind]
    if preset.needs_key and provider.api_key is None:
        message = f"missing, and kind {provider.kind} needs one"
        yield Complaint(join(path, "api_key"), message, f"for example api_key: ${{{provider.kind.upper()}_API_KEY}}")
    if not provider.base_url:
        message = f"missing, and kind {provider.kind} has none of its own"
        yield Complaint(join(path, "base_url"), message, 'for example base_url: "http://127.0.0.1:11434/v1"')
    for name in sorted(preset.headers.intersection(provider.headers)):
        message = f"is a header that kind {provider.kind} writes itself"
        yield Complaint(join(join(path, "headers"), name), message)


def _targets(path: str, name: str, route: RouteSettings, providers: Collection[str]) -> Iterator[Complaint]:
    for at, text in enumerate(route.targets):
        if not text:  # a hole that a faulty target left
            continue
        target = parse_target(text)
        place = join(join(path, "targets"), at)
        if target.provider not in providers:
            hint = did_you_mean(target.provider, providers) or f"there are: {one_of(providers)}"
            yield Complaint(place, f"there is no provider {target.provider!r}", hint, also=("providers",))
        if "*" in target.model and "*" not in name:
            message = "a * stands for the model asked for, and only a pattern in models can have one"
            yield Complaint(place, message, "name the model")


def _retry(path: str, retry: RetryPolicy) -> Iterator[Complaint]:
    if retry.attempts > retry.attempts_max:
        message = f"attempts ({retry.attempts}) is more than attempts_max ({retry.attempts_max})"
        hint = "set both" if retry.attempts_max == RetryPolicy().attempts_max else None
        yield Complaint(path, message, hint, also=(join(path, "attempts"), join(path, "attempts_max")))
    if retry.base_s > retry.cap_s:
        yield Complaint(path, "base is longer than cap", also=(join(path, "base"), join(path, "cap")))


def warnings(settings: Settings, now_ns: int) -> list[str]:
    """What will work, but is hardly meant. One line each. `now_ns`: Unix nanoseconds."""
    return [*_unencrypted(settings.providers), *_never_reached(settings), *access_warnings(settings, now_ns)]


def _unencrypted(providers: Mapping[str, ProviderSettings]) -> Iterator[str]:
    for name, provider in providers.items():
        if provider.base_url.startswith("http://") and not _stays_here(provider.base_url):
            carried = "prompts" if provider.api_key is None else "prompts and the key"
            yield f"{join('providers', name)}.base_url: http:// to another machine: {carried} travel unencrypted"


def _never_reached(settings: Settings) -> Iterator[str]:
    total_s = settings.server.total_timeout_s
    for name, provider in settings.providers.items():
        for key, wait_s in (("first_byte", provider.timeouts.first_byte_s), ("idle", provider.timeouts.idle_s)):
            if wait_s > total_s:
                path = join("providers", name)
                yield f"{path}.timeouts.{key}: {wait_s:g}s is never reached: server.total_timeout is {total_s:g}s"


def _stays_here(base_url: str) -> bool:
    host, _ = host_and_port(base_url.split("/")[2])
    return is_loopback(host) or host.endswith(".localhost")
