"""The parts of a URL that names a server and may hold a password: who logs in, and the options behind the question
mark.

Pure. A password may stand at a place where nobody meant it to (`scheme://u:p?ss@h`), so a reason names the part that is
wrong and never shows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from urllib.parse import unquote

from edgegw.settings.model import Secret

VISIBLE = re.compile(r"[!-~]+")
IN_A_PASSWORD = "/ ? # @ and % in a password are written %2F %3F %23 %40 %25"

_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def credentials(userinfo: str) -> tuple[str | None, Secret | None]:
    """Of `user:password`. What is empty is not there: `:@host` is what a password that was never set leaves behind."""
    username, _, password = userinfo.partition(":")
    plain = decoded(password, "password")
    return decoded(username, "user") or None, Secret(plain) if plain else None


def options_of(query: str, known: Sequence[str]) -> dict[str, str]:
    """The options by their names, each at most once. Raises ValueError."""
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in known:
            raise ValueError(f"an option (?…) that is unknown here; {_instead_of(name, known)}")
        if name in options:
            raise ValueError(f"the option {name} stands there twice")
        if not equals or not value:
            raise ValueError(f"the option {name} has no value")
        options[name] = decoded(value, f"option {name}")
    return options


def decoded(text: str, part: str) -> str:
    """Without its %XX. Raises ValueError."""
    if _STRAY_PERCENT.search(text):
        raise ValueError(f"a % in the {part} that begins no %XX; write it %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"the {part} is not UTF-8") from None


def _instead_of(name: str, known: Sequence[str]) -> str:
    if not known:
        return "there are none with this scheme"
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}? There are: {', '.join(known)}" if near else f"there are: {', '.join(known)}"
