"""Which journal this is: a name for a state directory that outlives every process, and is no other's; and who has it.

A database may hold the books of many gateways. What each has read so far stands there under this name.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

IDENTITY_FILE = "journal.id"
# Locked (flock) by the gateway whose state directory it is, for as long as it lives, with its process id in it; or by
# one that ships what another has left, with ADOPTED in it.
LOCK_FILE = "lock"
ADOPTED = b"adopted\n"
_NAME = re.compile(r"[0-9a-f]{16}")


def identity(state_dir: Path) -> str:
    """The name, made at the first call; 16 hex digits. OSError when it can be neither read nor made."""
    path = state_dir / IDENTITY_FILE
    name = _read(path)
    if name is not None:
        return name
    state_dir.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f".{IDENTITY_FILE}-{os.getpid()}-{secrets.token_hex(4)}")
    making.write_text(secrets.token_hex(8) + "\n", "ascii")
    try:
        os.link(making, path)  # whoever is first, it is whole and stays
    except FileExistsError:
        if _read(path) is None:  # damaged: a new name only means that what is there is read again
            os.replace(making, path)
    finally:
        making.unlink(missing_ok=True)
    found = _read(path)
    assert found is not None
    return found


def known_identity(state_dir: Path) -> str | None:
    """The name if there is one, for those who only look. OSError when it cannot be read."""
    return _read(state_dir / IDENTITY_FILE)


def _read(path: Path) -> str | None:
    try:
        name = path.read_text("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return name if _NAME.fullmatch(name) else None
