"""Cheap clients: one request at a time on a keep-alive connection, the reply read to its last byte, and timed.

Costs some 100 us a request, so that what is measured is the gateways. Knows HTTP/1.1 as the gateway writes it: with a
length, in chunks, or until the connection closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
ANSWER_WITHIN_S = 60.0  # a reply that takes longer is a failure of its own
HEAD_MAX = 1 << 20


class BrokenError(Exception):
    """The connection ended or said nonsense where a reply was due."""


@dataclass(slots=True)
class Seen:
    """A reply. Header names are lower-case; times are monotonic seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_s: float
    ended_s: float
    head: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def took_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def own_s(self) -> float:
        """The gateway's own share of an answer, as it says itself (`server-timing`); 0 when it does not."""
        name, _, value = self.headers.get("server-timing", "").partition(",")[0].partition(";dur=")
        return float(value) / 1e3 if name == "gw" else 0.0


def chat(credential: str, model: str, text: str, **fields: Any) -> bytes:
    """The bytes of a chat completion's request."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return post(credential, json.dumps(body).encode())


def post(credential: str | None, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: gateway", "content-type: application/json"]
    if credential is not None:
        lines.append(f"authorization: Bearer {credential}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


class Client:
    """One connection, opened when it is needed. `again`: a request that finds its used connection closed is sent once
    more on a new one, as most clients do."""

    def __init__(self, port: int, *, again: bool = False) -> None:
        self.port = port
        self._again = again
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Seen:
        """Raises BrokenError; the next request opens a new connection."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                used = self._streams is not None
                try:
                    return await self._ask(request)
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
                    if begun or not (self._again and used):
                        raise
                    self.close()
                    return await self._ask(request)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:  # TimeoutError is an OSError
            self.close()
            raise BrokenError(f"{type(error).__name__}: {error}") from error
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, request: bytes) -> Seen:
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self.port, limit=HEAD_MAX)
        reader, writer = self._streams
        sent_s = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._body(reader, headers)
        seen = Seen(int(first.split()[1]), headers, body, sent_s, time.monotonic(), head)
        if headers.get("connection") == "close":
            self.close()
        return seen

    async def _body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return await reader.read()
        pieces = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        return b"".join(pieces)

    async def begin(self, request: bytes, bytes_max: int) -> bytes:
        """Sends a request, reads at most so many bytes of the reply, and hangs up."""
        with contextlib.suppress(OSError):
            self.close()
            reader, writer = await asyncio.open_connection(HOST, self.port)
            self._streams = reader, writer
            writer.write(request)
            read = await reader.read(bytes_max)
            writer.transport.abort()
            self._streams = None
            return read
        return b""
