"""How a key comes to be: 32 random bytes as text behind `egw_`. Only who asked for it ever sees it."""

from __future__ import annotations

import base64
import secrets

from edgegw.keys.table import PREFIX_CHARS, Key, digest_of
from edgegw.settings.model import OwnLimits

KEY_PREFIX = "egw_"  # by which people and secret scanners tell what they found
KEY_BYTES = 32
ID_PREFIX = "key_"  # no id of the settings looks so: theirs have a dot
ID_BYTES = 10


def make_key(
    tenant: str, name: str, created_ns: int, expires_ns: int | None, acts_for: tuple[str, ...], limits: OwnLimits
) -> tuple[Key, str]:
    """A new key, and its credential: 47 characters, to be shown once."""
    credential = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    key = Key(
        ID_PREFIX + base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower(),
        digest_of(credential.encode()),
        tenant,
        name,
        credential[:PREFIX_CHARS],
        created_ns,
        expires_ns,
        None,
        acts_for,
        limits,
    )
    return key, credential
