"""Keys as values, and the table in which a credential is looked up.

A credential is known by the SHA-256 of the whole of it, so the table gives nobody a key. What is unknown, what has
expired and what was revoked takes the same steps to the same answer: neither its words nor its time tell them apart.

Pure: credentials, keys and the time come in as arguments. Where keys are kept, and how a table learns of changes, is
others' business.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Protocol

from msgspec import Struct

from edgegw.settings.model import OwnLimits, TenantSettings

CREDENTIAL_BYTES_MAX = 512  # ours have 47; room for keys that were made elsewhere, and none for a head full of one
PREFIX_CHARS = 12  # of a key, shown in listings: `egw_` and 48 of its 256 bits
ANY_TENANT = "*"  # in acts_for
NEVER_NS = 2**63 - 1
TENANT_CHARS_MAX = 256  # as settings and limits have it


class Key(Struct, frozen=True):
    """One key, of the settings or of the database. `digest`: 32 bytes. Times are Unix nanoseconds; None: not set.
    `prefix` is empty where the credential was never seen (settings)."""

    id: str
    digest: bytes
    tenant: str
    name: str = ""
    prefix: str = ""
    created_ns: int = 0
    expires_ns: int | None = None
    revoked_ns: int | None = None
    acts_for: tuple[str, ...] = ()
    limits: OwnLimits = OwnLimits()

    @property
    def limits_now(self) -> OwnLimits | None:
        """What is counted for it: nothing of a key that was revoked, or that has no limits of its own."""
        return None if self.revoked_ns is not None or self.limits == OwnLimits() else self.limits

    @property
    def ends_ns(self) -> int:
        """When it stops to be valid, or did."""
        return min(NEVER_NS if end is None else end for end in (self.expires_ns, self.revoked_ns))

    def may_act_for(self, tenant: str) -> bool:
        return tenant == self.tenant or tenant in self.acts_for or ANY_TENANT in self.acts_for


class KeyLimits(Protocol):
    """Who has to know what a key may use (limits/rules.py)."""

    def set_key(self, key_id: str, tenant: str, limits: OwnLimits | None) -> None: ...


def digest_of(credential: bytes) -> bytes:
    return sha256(credential).digest()


def is_label(text: str, chars_max: int = TENANT_CHARS_MAX) -> bool:
    """Whether a text can be the name of a tenant (or a key): it stands in limits, rows and listings."""
    return 0 < len(text) <= chars_max and text.isprintable() and text == text.strip()


def settings_keys(tenants: Mapping[str, TenantSettings]) -> Iterator[Key]:
    """The keys that stand in the settings. Their ids are `<tenant>.<name>`."""
    for tenant in tenants.values():
        for key in tenant.keys.values():
            yield Key(
                f"{tenant.name}.{key.name}",
                key.digest,
                tenant.name,
                key.name,
                expires_ns=key.expires_ns,
                acts_for=key.acts_for,
                limits=key.limits,
            )


class KeyTable:
    """All keys that a worker knows. `fixed` are those of the settings: they stay, and of a credential that is also in
    the database it is they that count."""

    __slots__ = ("_by_digest", "_fixed", "_keys", "_nobody")

    def __init__(self, fixed: Iterable[Key] = ()) -> None:
        self._nobody = (bytes(32), 0, Key("", bytes(32), ""))
        self._by_digest: dict[bytes, tuple[bytes, int, Key]] = {}
        self._keys: dict[str, Key] = {}  # those of the database, by id
        for key in fixed:
            self._by_digest.setdefault(key.digest, (key.digest, key.ends_ns, key))
        self._fixed = frozenset(self._by_digest)

    def __len__(self) -> int:
        """Keys of the database, valid or not."""
        return len(self._keys)

    def find(self, credential: bytes, now_ns: int) -> Key | None:
        """The key of a credential, when it is valid now."""
        if len(credential) > CREDENTIAL_BYTES_MAX:
            return None
        digest = sha256(credential).digest()
        known, ends_ns, key = self._by_digest.get(digest, self._nobody)
        # `&` and not `and`: both are looked at, whatever the first one says.
        return key if compare_digest(digest, known) & (now_ns < ends_ns) else None

    def put(self, key: Key) -> Key | None:
        """A key of the database, new or changed; returns what it was. One that has ended stays, so that its refusal is
        as any other."""
        old = self._keys.get(key.id)
        if old is not None:
            self._forget(old)
        self._keys[key.id] = key
        if key.digest not in self._fixed:
            self._by_digest[key.digest] = (key.digest, key.ends_ns, key)
        return old

    def retain(self, ids: Container[str]) -> list[Key]:
        """Drops the keys of the database that are not among `ids`; returns them."""
        gone = [key for id_, key in self._keys.items() if id_ not in ids]
        for key in gone:
            del self._keys[key.id]
            self._forget(key)
        return gone

    def _forget(self, key: Key) -> None:
        if key.digest not in self._fixed:
            self._by_digest.pop(key.digest, None)
