"""`${NAME}`, `${NAME:-default}` and `${file:path}` in a text; `$${` is a plain `${`.

The default stands in for a variable that is unset or empty, as in a shell. What was filled in is not looked at again:
no value can bring in an expression of its own. Reads files and a mapping of variables, and knows no YAML.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping

from edgegw.settings.mistakes import did_you_mean

_SECRET_BYTES_MAX = 64 << 10  # of a ${file:…}: a key, not a volume

_EXPRESSION = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)

Complain = Callable[[str, str | None], None]


def interpolate(text: str, environ: Mapping[str, str], folder: str, complain: Complain) -> str:
    """The text with every expression filled in; relative paths begin in `folder`. Each expression that cannot be
    filled in is told to `complain(message, hint)`, and the result is then of no use."""

    def fill(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        if not found[2]:
            complain("a ${ without its }", "write $${ for a plain ${")
            return ""
        body = found[1]
        return _of_file(body[5:]) if body.startswith("file:") else _of_variable(body)

    def _of_file(name: str) -> str:
        try:
            content = contents(os.path.join(folder, name), _SECRET_BYTES_MAX)
        except ValueError as reason:
            complain(f"${{file:{name}}} cannot be read: {reason}", None)
            return ""
        return content.removesuffix("\n").removesuffix("\r")

    def _of_variable(body: str) -> str:
        found = _VARIABLE.fullmatch(body)
        if not found:
            complain("an expression that is none", "write ${NAME}, ${NAME:-default} or ${file:/path}")
            return ""
        name, default = found[1], found[2]
        value = environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            hint = did_you_mean(name, environ) or f"set it, or give a default: ${{{name}:-…}}"
            complain(f"the environment variable {name} is not set", hint)
        return value or ""

    return _EXPRESSION.sub(fill, text)


def contents(path: str, bytes_max: int) -> str:
    """The UTF-8 text of a regular file. ValueError with the reason: missing, not readable, too large, not a text."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a regular file")  # a pipe would keep us waiting, a device feed us for ever
        with open(path, "rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise ValueError(error.strerror or "not readable") from None
    if len(content) > bytes_max:
        raise ValueError(f"larger than {bytes_max} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
