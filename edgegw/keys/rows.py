"""A key as a row of the table `api_keys`, which is the same in every database, and back.

Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgegw.keys.table import Key

# In the order of the fields of a Key; the table has `changed` besides.
KEY_COLUMNS = Key.__struct_fields__


def row_of(key: Key) -> tuple[object, ...]:
    """The values of KEY_COLUMNS; lists and objects as JSON."""
    limits = {name: limit for name, limit in msgspec.structs.asdict(key.limits).items() if limit is not None}
    lists = (msgspec.json.encode(key.acts_for).decode(), msgspec.json.encode(limits).decode())
    return (*msgspec.structs.astuple(key)[:-2], *lists)


def key_of(row: Iterable[object]) -> Key:
    """Raises msgspec.DecodeError when it is none."""
    *plain, acts_for, limits = row
    read = msgspec.json.decode
    return msgspec.convert(dict(zip(KEY_COLUMNS, (*plain, read(str(acts_for)), read(str(limits))), strict=True)), Key)
