"""What the admin port serves: is the process alive, is the gateway ready, and the metrics.

Liveness depends on nothing but the loop that answers. Readiness says whether traffic should come here: a worker is
connected, nobody is draining, and not every worker refuses what comes (journals.py says when). The state of the
database and of the limits' authority is told in the details, and does not make a gateway unready (a database that is
away would then take every replica out at once).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from edgegw.endpoints import check
from edgegw.errors import GatewayError
from edgegw.http.reply import JSON, Reply
from edgegw.http.request import Request

ADMIN_ENDPOINTS: dict[bytes, tuple[bytes, ...]] = {
    b"/livez": (b"GET", b"HEAD"),
    b"/readyz": (b"GET", b"HEAD"),
    b"/metrics": (b"GET", b"HEAD"),
}
_METRICS_TYPE = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


@dataclass(frozen=True, slots=True)
class Readiness:
    ready: bool
    details: dict[str, Any]


def admin_gate(request: Request) -> None:
    check(request, ADMIN_ENDPOINTS)


class Admin:
    """The handler of the admin server."""

    def __init__(self, readiness: Callable[[], Readiness], metrics: Callable[[], Iterator[bytes]]) -> None:
        self._readiness = readiness
        self._metrics = metrics

    async def serve(self, request: Request, reply: Reply) -> None:
        if request.error is not None:
            self._refuse(request.error, reply)
        elif request.path == b"/livez":
            reply.send(200, JSON, b'{"status":"alive"}')
        elif request.path == b"/readyz":
            readiness = self._readiness()
            status = "ready" if readiness.ready else "not ready"
            body = orjson.dumps({"status": status, **readiness.details})
            reply.send(200 if readiness.ready else 503, JSON, body)
        else:
            parts = []
            for part in self._metrics():
                parts.append(part)
                await asyncio.sleep(0)  # a long page holds up nobody's limits and rows
            reply.send(200, _METRICS_TYPE, b"".join(parts))

    def _refuse(self, error: GatewayError, reply: Reply) -> None:
        fields = JSON + b"".join(b"%b: %b\r\n" % field for field in error.headers)
        reply.send(error.status, fields, orjson.dumps({"error": error.message}))
