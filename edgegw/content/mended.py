"""JSON that was cut somewhere, so that it can be read all the same: what is open is closed, what is half there goes.

A text that was cut stays as far as it goes; a number, a word or a field's name that was cut says nothing and is left
out. Pure.
"""

from __future__ import annotations

import re

# A string, perhaps without its end; a mark; a number or a word.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*("?)|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_CLOSERS = {"{": "}", "[": "]"}
# An escape that was cut, not one that is itself escaped.
_HALF_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u[0-9a-fA-F]{0,3}$")


def mended(body: bytes) -> str:
    """A JSON document from the beginning of one. Of what is no beginning of JSON nothing useful comes."""
    text = body.decode("utf-8", "ignore")
    open_: list[str] = []
    good = 0  # up to here all is whole, but for what is in `open_`
    names = False  # what comes is the name of a field
    for match in _TOKEN.finditer(text):
        token, end = match[0], match.end()
        mark = token[0]
        if mark in _CLOSERS:
            open_.append(_CLOSERS[mark])
            names, good = mark == "{", end
        elif mark in "}]":
            if not open_:
                break
            open_.pop()
            names, good = False, end
        elif mark == ",":
            names = bool(open_) and open_[-1] == "}"
        elif mark == ":":
            names = False
        elif mark == '"' and not match[1]:
            if not names:
                token = _HALF_ESCAPE.sub(r"\1", token)
                return text[: match.start()] + token + '"' + _closed(open_)
            break
        elif not names and (mark == '"' or end < len(text)):
            good = end
    return text[:good] + _closed(open_)


def _closed(open_: list[str]) -> str:
    return "".join(reversed(open_))
