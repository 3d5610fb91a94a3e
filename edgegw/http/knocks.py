"""Who knocks at a door that is about to be shut: connections are not begun any more, and what has begun goes on.

A listening socket that is closed resets whoever waits in its queue, and one that still listens lets more into it. Linux
offers no way to stop in between, but it drops what has come over more hops than a socket says: a bound that no sender's
first packet keeps (they begin with 64 or 128; only at 255 could one get in) and that handshakes under way are not held
to. It needs no privilege, as a filter of packets may. Elsewhere nothing is done here. It knows sockets, and no server.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

# linux/in.h and linux/in6.h: the least time to live, and the least hop limit, of what is taken.
_IP_MINTTL = 21
_IPV6_MINHOPCOUNT = 73
_NOBODY, _ANYBODY = 255, 0


def ignore_knocks(listening: socket.socket) -> None:
    """Whoever connects from now on is not heard, and tries again in a second: when the door is closed."""
    _take(listening, _NOBODY)


def hear(connection: socket.socket) -> None:
    """A connection whose handshake ended after `ignore_knocks` has the bound of its door, and would hear nothing."""
    _take(connection, _ANYBODY)


def _take(sock: socket.socket, hops_left_min: int) -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError):  # gone already
        sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, hops_left_min)  # a socket of IPv6 may serve IPv4 too
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, hops_left_min)
