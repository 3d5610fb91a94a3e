"""The head of a request as lines: its fields, and what is wrong with one that is no HTTP/1.1.

llhttp says of a head only that it is not valid. Who wrote the client wants to know where, and the status depends on it
(an unknown method is a 501, another version a 505). So of a refused head the first line that is not as it should be is
looked for here, slowly.

Pure: bytes in, errors out.
"""

from __future__ import annotations

import re

from edgegw.errors import GatewayError
from edgegw.http.request import METHODS, SINGLETONS, RequestLimits

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = re.compile(rb"(%b) [!-~]+( HTTP/[0-9]\.[0-9])" % _TOKEN)
_BEGINNING_OF_LINE = re.compile(rb"%b(?: [!-~]*(?: [HTP/0-9.]{0,8})?)?\r?" % _TOKEN)
_NAME = re.compile(_TOKEN)
_NO_TEXT = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")
END_OF_LINE = b"\r\n"
_VERSIONS = (b" HTTP/1.1", b" HTTP/1.0")
VERSION_BYTES = len(_VERSIONS[0])
_METHOD_AND_VERSION_BYTES_MAX = 64
_TLS_HANDSHAKE = b"\x16\x03"


def check_size(head: bytes, line_end: int, limits: RequestLimits) -> None:
    """Of a head, or what has come of it; `line_end` is that of the request line, -1 before it has come."""
    if (line_end if line_end >= 0 else len(head)) > limits.target_bytes_max + _METHOD_AND_VERSION_BYTES_MAX:
        raise GatewayError("target_too_long", "The request target is too long.")
    if len(head) > limits.head_bytes_max:
        raise GatewayError("head_too_large", "The request head is too large.")


def check_line(head: bytes, line_end: int) -> None:
    """llhttp takes a line without a version for HTTP/0.9, and any protocol's version for one of HTTP."""
    if head[line_end - VERSION_BYTES : line_end] not in _VERSIONS:
        raise what_is_wrong(head)


def read_fields(lines: bytes, headers: dict[bytes, bytes], headers_max: int) -> None:
    """The fields of a valid head. A repeated one is joined by a comma, where that is possible (RFC 9110 5.3)."""
    if not lines:
        return
    fields = lines.split(END_OF_LINE)
    if len(fields) > headers_max:
        raise GatewayError("head_too_large", "The request has too many headers.")
    for line in fields:
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        if name in headers:
            if name in SINGLETONS:
                raise GatewayError("bad_http", f"The {name.decode()} header is repeated.")
            value = headers[name] + b", " + value
        headers[name] = value


def may_become_a_line(head: bytes) -> bool:
    """Whether what has come of a request line looks like one so far, be the method unknown or the version another."""
    return _BEGINNING_OF_LINE.fullmatch(head) is not None


def what_is_wrong(head: bytes) -> GatewayError:
    """Why a head, or what has come of it, is refused."""
    line, *fields = head.split(END_OF_LINE)
    match = _LINE.fullmatch(line)
    if match is None:
        if head.startswith(_TLS_HANDSHAKE):
            return _bad("This port speaks HTTP without TLS.")
        return _bad("The request line is malformed.")
    if match[2] not in _VERSIONS:
        return GatewayError("http_version", "Only HTTP/1.1 and HTTP/1.0 are supported.")
    if match[1] not in METHODS:
        return GatewayError("not_implemented", "This method is not implemented.")
    for number, field in enumerate(fields, 1):
        if not field and number < len(fields):
            break
        complaint = _about_field(field, whole=number < len(fields))
        if complaint is not None:
            return _bad(f"Header line {number} {complaint}.")
    return _bad("Content-Length and Transfer-Encoding do not say clearly how long the body is.")


def _about_field(field: bytes, whole: bool) -> str | None:
    """What is wrong with one header line, `whole` or not."""
    name, colon, value = field.partition(b":")
    if b"\r" in field[:-1] or b"\n" in field or (whole and b"\r" in field):
        return "has a bare CR or LF"
    if field[:1] in (b" ", b"\t"):
        return "begins with white space (folded lines are not taken)"
    if not colon:
        return "has no colon" if whole else None
    if name[-1:] in (b" ", b"\t"):
        return "has white space before its colon"
    if not _NAME.fullmatch(name):
        return "has a name with characters that are not allowed in it"
    if _NO_TEXT.search(value.removesuffix(b"\r")):
        return "has control characters in it"
    return None


def _bad(message: str) -> GatewayError:
    return GatewayError("bad_http", message)
