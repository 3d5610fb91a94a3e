"""What our keys in Redis are called, and in which slot of a cluster a key lies.

All meters of a tenant carry the same hash tag, `{tenant}`, so that they lie in one slot and one call can be about
several of them. Names are percent-encoded: whatever they hold, a brace or a colon is ours. Pure.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Container
from itertools import count
from urllib.parse import quote

from edgegw.limits.meter import Meter

PREFIX = "edgegw:"
REPLICAS = b"edgegw:replicas"  # a sorted set: id of a replica -> when it was last heard, in the server's seconds
HASH_SLOTS = 16384


def meter_key(meter: Meter) -> bytes:
    """`edgegw:{acme}:tpm`, `edgegw:{acme}:rpm:key:k1`, …"""
    key = f"{PREFIX}{{{quote(meter.tenant, safe='')}}}:{meter.measure.code}"
    return (f"{key}:{meter.scope}:{quote(meter.name, safe='')}" if meter.scope else key).encode()


def hash_slot(key: bytes) -> int:
    """As in the specification of Redis Cluster: of what stands in the first braces, if something does."""
    start = key.find(b"{") + 1
    end = key.find(b"}", start) if start else -1
    return crc_hqx(key[start:end] if end > start else key, 0) % HASH_SLOTS


def probe_tag(slots: Container[int]) -> bytes:
    """The beginning of keys that lie in one of `slots`, which are not none: for trying one particular node."""
    return next(tag for number in count() if hash_slot(tag := b"%b{%d}:" % (PREFIX.encode(), number)) in slots)
