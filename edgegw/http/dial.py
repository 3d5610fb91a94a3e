"""The way to a provider's socket: names to addresses, the tunnel through a proxy (proxies.py), the TCP connection, TLS.

The one place where the gateway chooses whom it talks to. Every address in here comes from the settings or from the
environment the process was started with; there is no parameter that a client's request could reach, and nothing
follows a redirect. Faults leave as `UpstreamFault` with `sent=False` and without a word of where we dialled, because
their messages go to clients as they are.

Knows nothing of HTTP beyond CONNECT, and nothing of pools.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from edgegw.clock import Clock
from edgegw.errors import UpstreamFault
from edgegw.http.proxies import Origin, Proxies, Proxy
from edgegw.http.response import tunnel_status

Address = tuple[int, str, int]
"""Address family, numeric host, port."""

Lookup = Callable[[str, int], Awaitable[Sequence[Address]]]
"""All addresses of a host name, best first; OSError when there are none."""

RESOLVE_TTL_S = 30.0
"""getaddrinfo does not tell the record's own TTL; providers move their addresses within minutes."""

RESOLVE_RETRY_S = 5.0
"""After a failed look-up the old addresses serve this long before the next try."""

RESOLVE_TIMEOUT_S = 5.0
"""One round of the system resolver (resolv.conf's default timeout)."""

ADDRESSES_TRIED_MAX = 6
"""So that a name with many dead addresses ends within a few connect timeouts."""

TUNNEL_HEAD_BYTES_MAX = 16 * 1024

TLS_SHUTDOWN_S = 2.0
"""How long a closed connection waits for the provider's close_notify before it is cut."""

# A long silent answer (reasoning models) must outlive the idle limits of NATs on the way, 240 s and up.
KEEP_ALIVE_PROBES = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))

# Link-local networks and the metadata services of clouds: a name that leads there has been tampered with.
_NEVER_BY_NAME = ("169.254.", "::ffff:169.254.", "fe8", "fe9", "fea", "feb", "fd00:ec2:")

_TLS_REASONS = {
    10: "has expired",
    18: "is self-signed and not trusted",
    19: "is not signed by a trusted authority",
    20: "is not signed by a trusted authority",
    62: "is for another host name",
    64: "is for another address",
}
"""X509_V_ERR_* of OpenSSL (x509_vfy.h); OpenSSL's own words would name the host."""


def tls_context() -> ssl.SSLContext:
    """The context for all providers of a process: the system's trust store (or SSL_CERT_FILE, SSL_CERT_DIR), host names
    checked, TLS 1.2 or later, HTTP/1.1. Costs tens of milliseconds: build one."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


# Names to addresses.


async def system_lookup(host: str, port: int) -> Sequence[Address]:
    """getaddrinfo, in the order in which the system prefers its answers (RFC 6724)."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, str(address[0]), int(address[1])) for family, _, _, _, address in found]


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """Alternate the families, keeping the order within each and the first one first (RFC 8305 section 4), so that a
    family without a route costs one try and not all of them. At most ADDRESSES_TRIED_MAX, without repeats."""
    distinct = list(dict.fromkeys(addresses))
    first = [address for address in distinct if address[0] == addresses[0][0]]
    second = [address for address in distinct if address[0] != addresses[0][0]]
    pairs = chain.from_iterable(zip_longest(first, second))
    return [address for address in pairs if address is not None][:ADDRESSES_TRIED_MAX]


@dataclass(slots=True)
class _Entry:
    addresses: list[Address]
    fresh_until_s: float


class Resolver:
    """A cache of addresses. Asked again after RESOLVE_TTL_S, once however many are waiting; when that fails the old
    addresses stay in use. Holds one entry per host of the settings."""

    def __init__(self, clock: Clock, lookup: Lookup = system_lookup) -> None:
        self._clock = clock
        self._lookup = lookup
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._flights: dict[tuple[str, int], asyncio.Task[list[Address]]] = {}

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Where to try, in this order; never empty. Raises UpstreamFault upstream_connect."""
        key = (host, port)
        entry = self._entries.get(key)
        if entry is not None and self._clock.now() < entry.fresh_until_s:
            return entry.addresses
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_task(self._resolve(key))
            flight.add_done_callback(lambda _: self._flights.pop(key))
        addresses = await asyncio.shield(flight)
        if not addresses:
            raise _fault("upstream_connect", "The provider's host name could not be resolved.")
        return addresses

    def demote(self, host: str, port: int, address: Address) -> None:
        """This address did not answer: until the next look-up it is tried last."""
        entry = self._entries.get((host, port))
        if entry is not None and address in entry.addresses:
            entry.addresses = [other for other in entry.addresses if other != address] + [address]

    async def _resolve(self, key: tuple[str, int]) -> list[Address]:
        entry = self._entries.get(key)
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self._lookup(*key)
        except (OSError, UnicodeError):  # TimeoutError is an OSError; UnicodeError comes from the IDNA codec
            found = ()
        usable = [address for address in found if not _forbidden(key[0], address)]
        if usable:
            entry = self._entries[key] = _Entry(interleave(usable), self._clock.now() + RESOLVE_TTL_S)
        elif entry is not None:
            entry.fresh_until_s = self._clock.now() + RESOLVE_RETRY_S
        return entry.addresses if entry is not None else []


def _forbidden(host: str, address: Address) -> bool:
    """A literal address in the settings is the operator's own word; a name must not lead into the neighbourhood."""
    return host != address[1] and address[1].startswith(_NEVER_BY_NAME)


# Connecting.


class Dialer:
    """Connects protocols to origins. One `tls` context and one `resolver` serve the whole process; `tls` may be None
    when no origin is https (building a context is not free)."""

    def __init__(self, resolver: Resolver, *, tls: ssl.SSLContext | None, proxies: Proxies) -> None:
        self._resolver = resolver
        self._tls = tls
        self._proxies = proxies

    async def connect(self, origin: Origin, protocol: asyncio.Protocol, *, connect_s: float, tls_s: float) -> None:
        """Returns when `protocol.connection_made()` was called. `connect_s` bounds each address and the proxy's answer,
        `tls_s` the handshake. Raises UpstreamFault upstream_connect, upstream_tls or upstream_timeout, `sent=False`."""
        host = _bare(origin.host)
        proxy = self._proxies.before(origin)
        if proxy is None:
            sock = await self._reach(host, origin.port, connect_s)
        else:
            sock = await self._reach(proxy.host, proxy.port, connect_s)
        try:
            if proxy is not None:
                await _open_tunnel(sock, proxy, host, origin.port, connect_s)
            if origin.scheme == "https":
                await self._hand_over_tls(sock, protocol, host, tls_s)
            else:
                await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
        except BaseException:
            sock.close()
            raise

    async def _reach(self, host: str, port: int, connect_s: float) -> socket.socket:
        """A connected socket to the first address that answers."""
        failure: OSError | None = None
        for address in list(await self._resolver.addresses(host, port)):
            try:
                return await _connect(address, connect_s)
            except OSError as error:
                self._resolver.demote(host, port, address)
                failure = error
        if isinstance(failure, TimeoutError):
            raise _fault("upstream_timeout", "Connecting to the provider took too long.")
        raise _fault("upstream_connect", "The provider could not be reached.")

    async def _hand_over_tls(self, sock: socket.socket, protocol: asyncio.Protocol, host: str, tls_s: float) -> None:
        assert self._tls is not None, "an https origin needs a TLS context"
        try:
            async with asyncio.timeout(tls_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: protocol,
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=host,
                    ssl_shutdown_timeout=TLS_SHUTDOWN_S,
                )
        except ssl.SSLCertVerificationError as error:
            reason = _TLS_REASONS.get(error.verify_code, "could not be verified")
            raise _fault("upstream_tls", f"The provider's TLS certificate {reason}.") from None
        except TimeoutError:
            raise _fault("upstream_timeout", "The TLS handshake with the provider took too long.") from None
        except OSError:  # SSLError is an OSError
            raise _fault("upstream_tls", "The TLS handshake with the provider failed.") from None


async def _connect(address: Address, connect_s: float) -> socket.socket:
    family, host, port = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE_PROBES:
            if (option := getattr(socket, name, None)) is not None:  # not every system has them
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        async with asyncio.timeout(connect_s):
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _open_tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int, answer_s: float) -> None:
    """CONNECT (RFC 9110 9.3.6), for plain http too: the prepared request then needs no other form. Afterwards the
    socket is the provider's; a byte too many from the proxy would pass for the provider's, so there must be none."""
    authority = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode("ascii")
    lines = [b"CONNECT %b HTTP/1.1" % authority, b"host: %b" % authority]
    if proxy.authorization:
        lines.append(b"proxy-authorization: " + proxy.authorization)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(answer_s):
            await loop.sock_sendall(sock, b"\r\n".join([*lines, b"", b""]))
            head = b""
            while b"\r\n\r\n" not in head and len(head) <= TUNNEL_HEAD_BYTES_MAX:
                data = await loop.sock_recv(sock, TUNNEL_HEAD_BYTES_MAX)
                if not data:
                    break
                head += data
    except TimeoutError:
        raise _fault("upstream_timeout", "The proxy took too long to open a tunnel to the provider.") from None
    except OSError:
        raise _fault("upstream_connect", "The proxy closed the connection.") from None
    end = head.find(b"\r\n\r\n") + 4
    status = tunnel_status(head[:end])
    if not status:
        raise _fault("upstream_connect", "The proxy's answer is not valid HTTP.")
    if not 200 <= status <= 299:
        raise _fault("upstream_connect", f"The proxy refused a tunnel to the provider (HTTP status {status}).")
    if len(head) > end:
        raise _fault("upstream_connect", "The proxy sent more than the answer to CONNECT.")


def _bare(host: str) -> str:
    """Without the brackets of an IPv6 literal and the dot of a rooted name: what DNS, TLS and certificates expect."""
    return host.removeprefix("[").removesuffix("]").rstrip(".")


def _fault(kind: str, message: str) -> UpstreamFault:
    return UpstreamFault(kind, message, sent=False)
