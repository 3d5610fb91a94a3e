"""What is kept of an exchange whose tenant is captured: the prompt and the answer, and who they belong to.

A `Content` is made by the worker that served the exchange, waits as a file (files.py) and becomes a row of
`request_contents`. No headers and no keys are in it. Pure: knows no file and no database.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Content(msgspec.Struct, array_like=True, gc=False):
    """Fields are only ever appended. `request` is the body as the client sent it, `reply` what the client was sent:
    the body behind the head, and with `chunked` in the framing of HTTP (wire.py takes it off). `*_cut`: there was more.
    `stored_ns`: when it was put down, Unix nanoseconds."""

    request_id: str
    tenant: str
    stored_ns: int
    dialect: str
    stream: bool
    request: bytes
    request_cut: bool
    reply: bytes
    reply_cut: bool
    chunked: bool = False

    @property
    def size(self) -> int:
        """What it counts against the bound of the table."""
        return len(self.request) + len(self.reply)


# The columns of `request_contents`, in the order of `content_row`.
COLUMNS = (
    "request_id",
    "tenant",
    "stored_ns",
    "bytes",
    "dialect",
    "stream",
    "request_cut",
    "reply_cut",
    "request",
    "reply",
)


def content_row(content: Content) -> tuple[Any, ...]:
    """Values for COLUMNS. The reply's framing has been taken off."""
    return (
        content.request_id,
        content.tenant,
        content.stored_ns,
        content.size,
        content.dialect,
        content.stream,
        content.request_cut,
        content.reply_cut,
        content.request,
        content.reply,
    )


def content_of(row: tuple[Any, ...]) -> Content:
    """The way back, from a row in the order of COLUMNS."""
    id_, tenant, stored_ns, _, dialect, stream, request_cut, reply_cut, request, reply = row
    return Content(
        str(id_),
        tenant,
        stored_ns,
        dialect,
        bool(stream),
        bytes(request),
        bool(request_cut),
        bytes(reply),
        bool(reply_cut),
    )
