"""What `edgegw keys` does: makes, lists, ends and replaces keys in the database that the settings name.

It works on the database itself, whether a gateway runs on it or not; a running one sees the change within a second. A
new key is returned once, to be shown, and is nowhere afterwards.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from edgegw.keys.making import KEY_PREFIX, make_key
from edgegw.keys.place import Place, key_store
from edgegw.keys.sqlite import WRITER_BUSY_S
from edgegw.keys.store import KeyStore, KeyStoreError
from edgegw.keys.table import ANY_TENANT, CREDENTIAL_BYTES_MAX, PREFIX_CHARS, TENANT_CHARS_MAX, Key, digest_of, is_label
from edgegw.ledger.tables import moment, printable
from edgegw.settings import OwnLimits

NAME_CHARS_MAX = 64  # as in the settings
ACTS_FOR_MAX = 16  # tenants; who acts for more acts for `*`
_SPAN = re.compile(r"(\d{1,6})([smhdw])")
SPAN_S_MAX = 100 * 365 * 86_400
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_VISIBLE = re.compile(r"[!-~]+")
_HEAD = ("ID", "TENANT", "NAME", "PREFIX", "CREATED (UTC)", "EXPIRES (UTC)", "STATE")

T = TypeVar("T")


class CommandError(Exception):
    """The command cannot be done; the message is for whoever typed it. `option`: the one that is at fault."""

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


def create(
    place: Place, tenant: str, name: str, expires: str | None, acts_for: tuple[str, ...], limits: dict[str, int | None]
) -> tuple[Key, str]:
    """A new key of a tenant, and its credential. The database is made where there is none. Raises CommandError."""
    now_ns = time.time_ns()
    _check_label(tenant, "--tenant")
    if name:
        _check_label(name, "--name", NAME_CHARS_MAX)
    if len(acts_for) > ACTS_FOR_MAX:
        raise CommandError(f"a key acts for at most {ACTS_FOR_MAX} tenants, or for '{ANY_TENANT}'", "--acts-for")
    for other in acts_for:
        _check_label(other, "--acts-for")
    key, credential = make_key(tenant, name, now_ns, end_ns(expires, now_ns), acts_for, OwnLimits(**limits))

    async def write(store: KeyStore) -> None:
        await store.write([key])

    _with_store(place, write)
    return key, credential


def lines(place: Place, tenant: str | None, as_json: bool) -> Iterator[str]:
    """The keys of a tenant, or of all, as a table or as JSON lines. Raises CommandError."""
    now_ns = time.time_ns()
    keys = [key for key in _all(place) if tenant is None or key.tenant == tenant]
    keys.sort(key=lambda key: (key.tenant, key.name, key.created_ns))
    if as_json:
        return (msgspec.json.encode(_told(key, now_ns)).decode() for key in keys)
    return _table([_HEAD, *(_cells(key, now_ns) for key in keys)])


def revoke(place: Place, which: str) -> tuple[Key, bool]:
    """Ends a key now; also whether it was revoked before. Raises CommandError."""
    key = _find(place, which)
    if key.revoked_ns is not None:
        return key, True

    async def write(store: KeyStore) -> None:
        await store.write([replace(key, revoked_ns=time.time_ns())])

    _with_store(place, write)
    return key, False


def rotate(place: Place, which: str, grace: str, expires: str | None) -> tuple[Key, Key, str]:
    """A successor for a key: the old one with its new end, the new one, and its credential. The new one lives as long
    as the old one was to live, unless `expires` says otherwise. Raises CommandError."""
    now_ns = time.time_ns()
    old = _find(place, which)
    if old.ends_ns <= now_ns:
        raise CommandError(f"{old.id} {'was revoked' if old.revoked_ns else 'has expired'}: create a new one instead")
    last_ns = now_ns + _span_ns(grace, "--grace")
    new_end_ns = end_ns(expires, now_ns)
    if old.expires_ns is not None:
        last_ns = min(old.expires_ns, last_ns)
        new_end_ns = new_end_ns or now_ns + old.expires_ns - old.created_ns
    old = replace(old, expires_ns=last_ns)
    new, credential = make_key(old.tenant, old.name, now_ns, new_end_ns, old.acts_for, old.limits)

    async def write(store: KeyStore) -> None:
        await store.write([new, old])

    _with_store(place, write)
    return old, new, credential


def limit(place: Place, which: str, limits: dict[str, int | None], lifted: tuple[str, ...]) -> Key:
    """A key with other limits from now on: those that are given, without those that are `lifted`. Raises
    CommandError."""
    names = [name.replace("-", "_") for name in lifted]
    for name in names:
        if name not in limits:
            known = ", ".join(known.replace("_", "-") for known in limits)
            raise CommandError(f"not a limit ({known}): {name}", "--none")
        if limits[name] is not None:
            raise CommandError(f"{name.replace('_', '-')} is given as well", "--none")
    key = _find(place, which)
    given = {name: value for name, value in limits.items() if value is not None}
    if not given and not names:
        raise CommandError("say which limit, for example --tokens-per-minute 1000 or --none tokens-per-day")
    changed = replace(key, limits=replace(key.limits, **given | dict.fromkeys(names)))

    async def write(store: KeyStore) -> None:
        await store.write([changed])

    _with_store(place, write)
    return changed


def limits_of(key: Key) -> dict[str, int]:
    """By name, those that it has."""
    return {name: value for name, value in asdict(key.limits).items() if value is not None}


def settings_digest(credential: str) -> str:
    """What the settings file wants of a credential: `sha256:…`. Raises CommandError."""
    if not _VISIBLE.fullmatch(credential):
        raise CommandError("a key is made of visible ASCII characters, without blanks")
    if len(credential) > CREDENTIAL_BYTES_MAX:
        raise CommandError(f"a key has at most {CREDENTIAL_BYTES_MAX} characters")
    return f"sha256:{digest_of(credential.encode()).hex()}"


def end_ns(text: str | None, now_ns: int) -> int | None:
    """Unix nanoseconds of `90d` from now, or of a date or time (UTC unless it says otherwise). Raises CommandError."""
    if text is None:
        return None
    if _SPAN.fullmatch(text) is not None:
        return now_ns + _span_ns(text, "--expires")
    try:
        end = datetime.fromisoformat(text)
        found_ns = int((end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp()) * 10**9
    except (ValueError, OverflowError):
        raise CommandError(f"not a time (90d, 12h, 2027-01-01, 2027-01-01T10:00): {text}", "--expires") from None
    if found_ns <= now_ns:
        raise CommandError(f"is over already: {text}", "--expires")
    return found_ns


def when(ns: int | None) -> str:
    return "never" if ns is None else f"{moment(ns)[:19]} UTC"


def _span_ns(text: str, option: str) -> int:
    span = _SPAN.fullmatch(text)
    if span is None:
        raise CommandError(f"not a span of time (30m, 24h, 7d): {text}", option)
    seconds = int(span[1]) * _UNIT_S[span[2]]
    if seconds > SPAN_S_MAX:
        raise CommandError(f"is more than a hundred years: {text}", option)
    return seconds * 10**9


def _check_label(text: str, option: str, chars_max: int = TENANT_CHARS_MAX) -> None:
    if not is_label(text, chars_max):
        raise CommandError(f"must be 1 to {chars_max} visible characters: {text!r}", option)


def _find(place: Place, which: str) -> Key:
    """By id, by the prefix that listings show, or by the whole key."""
    whole = which.startswith(KEY_PREFIX) and len(which) > PREFIX_CHARS
    digest = digest_of(which.encode("utf-8", "replace"))
    found = [key for key in _all(place) if (key.digest == digest if whole else key.id == which or key.prefix == which)]
    if not found:
        shown = f"{which[:PREFIX_CHARS]}…" if whole else which
        raise CommandError(f"no such key: {shown} (`edgegw keys list` shows ids and prefixes)")
    if len(found) > 1:
        raise CommandError(f"{which} is the prefix of several keys: {', '.join(key.id for key in found)}")
    return found[0]


def _all(place: Place) -> Sequence[Key]:
    if isinstance(place, Path) and not place.is_file():
        raise CommandError(f"no database at {place}: no gateway has run with this state directory, and no key was made")

    async def read(store: KeyStore) -> Sequence[Key]:
        return (await store.changes(0)).keys

    return _with_store(place, read)


def _with_store(place: Place, work: Callable[[KeyStore], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        store = key_store(place, time.time_ns, WRITER_BUSY_S)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except KeyStoreError as error:
        raise CommandError(f"the keys cannot be reached: {error}") from None


def _state(key: Key, now_ns: int) -> str:
    if key.revoked_ns is not None:
        return "revoked"
    return "expired" if key.ends_ns <= now_ns else "active"


def _told(key: Key, now_ns: int) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "prefix": key.prefix,
        "created": _iso(key.created_ns),
        "expires": _iso(key.expires_ns),
        "revoked": _iso(key.revoked_ns),
        "state": _state(key, now_ns),
        "acts_for": key.acts_for,
        "limits": limits_of(key),
    }


def _iso(ns: int | None) -> str | None:
    return None if ns is None else f"{moment(ns)[:19].replace(' ', 'T')}Z"


def _cells(key: Key, now_ns: int) -> tuple[str, ...]:
    created, expires = moment(key.created_ns)[:19], "never" if key.expires_ns is None else moment(key.expires_ns)[:19]
    return key.id, printable(key.tenant), printable(key.name) or "-", key.prefix, created, expires, _state(key, now_ns)


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
