"""Has a client gone, or does it only send no more? A FIN says either.

A client that only half-closed still wants its answer (RFC 9112 9.6); one that has gone should not cost another token. A
gone one answers anything it is sent with a reset. So it is sent something that means nothing (reply.probe), and its
socket is looked at a few times: the loop, which has seen the FIN, does not read from it any more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

LOOKS_S = (0.01, 0.03, 0.25, 1.0)
_TCP_CLOSE = 7  # TCP_INFO's state after a reset (linux/tcp_states.h)


def abort_if_gone(
    transport: asyncio.Transport,
    loop: asyncio.AbstractEventLoop,
    wanted: Callable[[], bool],
    looks_s: tuple[float, ...] = LOOKS_S,
) -> None:
    """Looks now, and after each of `looks_s`, as long as the answer is `wanted`."""
    if transport.is_closing() or not wanted():
        return
    sock = transport.get_extra_info("socket")
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
        transport.abort()
    elif looks_s:
        loop.call_later(looks_s[0], abort_if_gone, transport, loop, wanted, looks_s[1:])
