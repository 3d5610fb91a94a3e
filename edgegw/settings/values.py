"""How one scalar is read: numbers, durations, sizes, times, words, names, secrets, digests, targets.

A `Kind` reads the text of a scalar as it stands in the file (after interpolation), so the field decides what a text
means: `0123` is a bad number but a good key. Pure functions from text to value; each raises ValueError with a reason
that does not repeat the text, or with none when `expected` says it all. Who shows what, and where, is the loader's
business; hosts, URLs and header fields are in `addresses.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from msgspec import Struct

from edgegw.settings.model import Secret, parse_target

_DIGITS_MAX = 15  # more than any setting needs, and few enough to stay exact in a JSON number
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNIT_BYTES = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}

_ARTICLE = re.compile(r"^(?:an?|the) ")
_WHOLE = re.compile(r"0|[1-9][0-9]*")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)?")
_SHARE = re.compile(r"(100|[0-9]{1,2}(?:\.[0-9]{1,6})?) ?%")
_SIZE = re.compile(r"([0-9]{1,15}) ?(B|KiB|MiB|GiB)?")
_PRICE = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,12})?")
_VISIBLE = re.compile(r"[!-~]+")
_DIGEST = re.compile(r"sha256:([0-9A-Fa-f]{64})")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)?")
_MOMENT_YEARS = range(1970, 2262)  # whose nanoseconds fit 63 bits, as they do everywhere else

HOW_TO_DIGEST = 'make it with: edgegw keys hash, or printf %s "$KEY" | sha256sum; write sha256: before it'


def _no_hint(text: str) -> str | None:
    return None


class Kind(Struct, frozen=True, kw_only=True):
    """What a scalar is. `expected` finishes the sentence "expected …"; `schema` says it to editors; `show` is the way
    back from a value to a text that `read` takes. `bare`: a quoted text is a string, and this is not one. `private`:
    mistakes do not show the text. `names`: all that is allowed, for a did-you-mean; `hint`: what else to say about a
    text that cannot be read."""

    expected: str
    read: Callable[[str], Any]
    schema: dict[str, Any]
    show: Callable[[Any], str] = str
    bare: bool = False
    private: bool = False
    names: tuple[str, ...] = ()
    hint: Callable[[str], str | None] = _no_hint

    @property
    def type(self) -> str:
        """What stands in a table of types: `expected` without its article."""
        return _ARTICLE.sub("", self.expected)


def whole(low: int, high: int) -> Kind:
    """A whole number in decimal."""

    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text) or len(text) > _DIGITS_MAX or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Kind(expected=f"a whole number from {low} to {high}", read=read, schema=schema, bare=True)


def processes(high: int) -> Kind:
    """A number of processes; `auto` reads as 0, and the loader, who knows the machine, fills it in."""
    number = whole(1, high)

    def read(text: str) -> int:
        return 0 if text == "auto" else int(number.read(text))

    schema = {"anyOf": [number.schema, {"const": "auto"}]}
    return Kind(expected=f"{number.expected}, or auto", read=read, schema=schema, names=("auto",))


def version(supported: int) -> Kind:
    """The version of the file's format; there is only one so far."""

    def read(text: str) -> int:
        if text != str(supported):
            raise ValueError(f"this edgegw reads version {supported}")
        return supported

    return Kind(expected=f"version {supported}", read=read, schema={"const": supported}, bare=True)


def choice(*names: str) -> Kind:
    """One of a few words."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Kind(expected=f"one of {', '.join(names)}", read=read, schema={"enum": list(names)}, names=names)


def boolean() -> Kind:
    """`true` or `false`, and none of YAML's older words for them."""
    words = {"true": True, "false": False}

    def read(text: str) -> bool:
        if text not in words:
            raise ValueError
        return words[text]

    return Kind(
        expected="true or false",
        read=read,
        schema={"type": "boolean"},
        show=lambda value: "true" if value else "false",
        bare=True,
        names=tuple(words),
    )


def duration(low: str, high: str) -> Kind:
    """Seconds as a float, in whole milliseconds; the text has a unit, or is a bare number of seconds."""
    low_ms, high_ms = _milliseconds(low), _milliseconds(high)

    def read(text: str) -> float:
        found_ms = _milliseconds(text)
        if not low_ms <= found_ms <= high_ms:
            raise ValueError
        return found_ms / 1000

    number = {"type": "number", "minimum": low_ms / 1000, "maximum": high_ms / 1000}
    schema = {"anyOf": [number, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}]}
    return Kind(
        expected=f"a duration from {low} to {high}",
        read=read,
        schema=schema,
        show=_show_duration,
        hint=lambda text: None if _DURATION.fullmatch(text) else "written like 500ms, 2s, 1m or 1h",
    )


def _milliseconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if not found:
        raise ValueError
    return round(float(found[1]) * _UNIT_MS[found[2] or "s"])


def _show_duration(seconds: float) -> str:
    if seconds and seconds % 86_400 == 0:
        return f"{seconds / 86_400:.0f}d"
    return f"{seconds:.0f}s" if seconds % 1 == 0 else f"{seconds * 1000:.0f}ms"


def share() -> Kind:
    """A part of the whole, from 0 to 1; the text is in percent."""

    def read(text: str) -> float:
        found = _SHARE.fullmatch(text)
        if not found:
            raise ValueError
        return float(found[1]) / 100

    return Kind(
        expected="a share from 0% to 100%, such as 1%",
        read=read,
        schema={"type": "string", "pattern": f"^{_SHARE.pattern}$"},
        show=lambda value: f"{value * 100:.6f}".rstrip("0").rstrip(".") + "%",
    )


def size(low: str, high: str) -> Kind:
    """Bytes as an int; the text has a unit, or is a bare number of bytes."""
    low_bytes, high_bytes = _bytes(low), _bytes(high)

    def read(text: str) -> int:
        found_bytes = _bytes(text)
        if not low_bytes <= found_bytes <= high_bytes:
            raise ValueError
        return found_bytes

    number = {"type": "integer", "minimum": low_bytes, "maximum": high_bytes}
    schema = {"anyOf": [number, {"type": "string", "pattern": f"^{_SIZE.pattern}$"}]}
    return Kind(
        expected=f"a size from {low} to {high}",
        read=read,
        schema=schema,
        show=_show_size,
        hint=lambda text: None if _SIZE.fullmatch(text) else "written like 64KiB, 20MiB or 1GiB",
    )


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError
    return int(found[1]) * _UNIT_BYTES[found[2] or "B"]


def _show_size(count: int) -> str:
    unit = next(unit for unit, factor in _UNIT_BYTES.items() if count % factor == 0)
    return f"{count // _UNIT_BYTES[unit]}{unit}"


def price(high: int) -> Kind:
    """USD per million tokens, read to its decimals as they stand there."""

    def read(text: str) -> str:
        if not _PRICE.fullmatch(text) or Decimal(text) > high:
            raise ValueError
        return text

    number = {"type": "number", "minimum": 0, "maximum": high}
    return Kind(
        expected=f"a price in USD per million tokens, from 0 to {high}",
        read=read,
        schema={"anyOf": [number, {"type": "string", "pattern": f"^{_PRICE.pattern}$"}]},
        hint=lambda text: None if _PRICE.fullmatch(text) else "written like 2.5, with at most 12 decimals",
    )


def matching(pattern: str, expected: str) -> Kind:
    """A text that fits `pattern` from end to end. The pattern is read by Python and by editors (ECMA 262)."""
    whole_text = re.compile(pattern)

    def read(text: str) -> str:
        if not whole_text.fullmatch(text):
            raise ValueError
        return text

    return Kind(expected=expected, read=read, schema={"type": "string", "pattern": f"^(?:{pattern})$"})


def label() -> Kind:
    """The name of a route: visible ASCII, because it is told in a reply header."""
    return matching("[!-~]{1,200}", "a name of at most 200 visible ASCII characters")


def printable(characters_max: int, expected: str) -> Kind:
    """A name in any script. (Editors are told of control characters only: their patterns do not know all the rest.)"""

    def read(text: str) -> str:
        if not text or len(text) > characters_max or not text.isprintable():
            raise ValueError
        return text

    return Kind(
        expected=f"{expected}: printable, at most {characters_max} characters",
        read=read,
        schema={"type": "string", "pattern": f"^[^\\x00-\\x1f\\x7f-\\x9f]{{1,{characters_max}}}$"},
    )


def moment() -> Kind:
    """A day, which is its first moment in UTC, or a time in UTC. Read to Unix nanoseconds."""

    def read(text: str) -> int:
        if not _MOMENT.fullmatch(text):
            raise ValueError
        try:
            found = datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC)
        except ValueError:
            raise ValueError("there is no such day or time") from None
        if found.year not in _MOMENT_YEARS:
            raise ValueError(f"must be from {_MOMENT_YEARS.start} to {_MOMENT_YEARS.stop - 1}")
        return int(found.timestamp()) * 1_000_000_000

    return Kind(
        expected="a day such as 2027-01-01, or a time such as 2027-01-01T12:00:00Z",
        read=read,
        schema={"type": "string", "pattern": f"^{_MOMENT.pattern}$"},
        show=show_moment,
    )


def show_moment(wall_ns: int) -> str:
    """The way back from `moment`."""
    text = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return text.removesuffix("T00:00:00Z")


def digest() -> Kind:
    """`sha256:` and 64 hexadecimal digits, read to 32 bytes. Never shown: whoever wrote something else here may well
    have written the key itself."""

    def read(text: str) -> bytes:
        found = _DIGEST.fullmatch(text)
        if not found:
            raise ValueError
        return bytes.fromhex(found[1])

    return Kind(
        expected="the digest of a key, sha256: and 64 hexadecimal digits",
        read=read,
        schema={"type": "string", "pattern": f"^{_DIGEST.pattern}$"},
        show=lambda _: "sha256:***",
        private=True,
        hint=lambda _: HOW_TO_DIGEST,
    )


def secret() -> Kind:
    """Visible ASCII, because it is going to stand in a header (RFC 9110, 5.5). A number is a text here as well."""

    def read(text: str) -> Secret:
        if not _VISIBLE.fullmatch(text):
            raise ValueError("holds a blank, a line break or another character that cannot stand in a header")
        return Secret(text)

    return Kind(expected="a key", read=read, schema={"type": ["string", "number"]}, private=True)


def target() -> Kind:
    """`provider/model`, in visible ASCII: the provider's name goes into reply headers."""

    def read(text: str) -> str:
        parse_target(text)
        if not _VISIBLE.fullmatch(text):
            raise ValueError("a target holds no blanks and nothing beyond ASCII")
        return text

    schema = {"type": "string", "pattern": "^[!-.0-~]+/[!-~]+$"}
    return Kind(expected="a target, written provider/model", read=read, schema=schema)
