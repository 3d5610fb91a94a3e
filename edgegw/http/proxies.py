"""Which proxy stands before a provider, by the settings or by the environment that the process was started with.

HTTP_PROXY, HTTPS_PROXY and NO_PROXY as curl understands them. What a proxy is asked for is dial.py's business. A URL of
a proxy may hold a password: no error and no repr shows it.

Pure: the environment is an argument.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote_to_bytes, urlsplit

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


class Origin(Protocol):
    """Whom to talk to, from the settings: `scheme` is `http` or `https`, `host` a name or an address."""

    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that is asked for tunnels. `authorization` is the value of proxy-authorization, or empty."""

    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)

    @staticmethod
    def parse(url: str) -> Proxy:
        """From `http://[user:password@]host[:port]`, or `host:port`. ValueError, without the URL in it."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            raise ValueError("the proxy's URL cannot be read") from None
        if parts.scheme != "http" or not host:
            raise ValueError("the proxy's URL must be http://[user:password@]host[:port]")
        if parts.username is None:
            return Proxy(host, port)
        user, password = unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or "")
        return Proxy(host, port, b"Basic " + base64.b64encode(user + b":" + password))


class Proxies:
    """Which proxy, if any, stands before an origin. Made once from HTTP_PROXY, HTTPS_PROXY and NO_PROXY (lower case
    wins, as in curl), or from the one proxy that a provider's settings name."""

    __slots__ = ("_by_scheme", "_exempt")

    def __init__(self, by_scheme: Mapping[str, Proxy] | None = None, no_proxy: str = "") -> None:
        self._by_scheme = dict(by_scheme or {})
        self._exempt = [rule for rule in no_proxy.replace(",", " ").lower().split() if rule]

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> Proxies:
        """ValueError names the variable that cannot be read, not its value."""

        def value(name: str) -> str:
            return (environ.get(name) or environ.get(name.upper()) or "").strip()

        by_scheme = {}
        for scheme in ("http", "https"):
            name = f"{scheme}_proxy"
            if url := value(name):
                try:
                    by_scheme[scheme] = Proxy.parse(url)
                except ValueError as error:
                    raise ValueError(f"{name.upper()}: {error}") from None
        return Proxies(by_scheme, value("no_proxy"))

    @staticmethod
    def always(proxy: Proxy) -> Proxies:
        """The proxy of a provider's settings: for every origin, loopback aside."""
        return Proxies({"http": proxy, "https": proxy})

    def before(self, origin: Origin) -> Proxy | None:
        """The proxy to ask for a tunnel to `origin`, None to go there directly. Loopback is always direct: a proxy's
        own loopback is never meant."""
        proxy = self._by_scheme.get(origin.scheme)
        if proxy is None:
            return None
        host = origin.host.lower().rstrip(".")
        ip = _ip(host)
        if host == "localhost" or host.endswith(".localhost") or (ip is not None and ip.is_loopback):
            return None
        return None if any(_exempts(rule, host, ip, origin.port) for rule in self._exempt) else proxy


def _ip(host: str) -> _Ip | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _exempts(rule: str, host: str, ip: _Ip | None, port: int) -> bool:
    """One entry of NO_PROXY: `*`, a name (with its subdomains; a leading `.` or `*.` is ignored), an address or a
    network, each with an optional port."""
    if rule == "*":
        return True
    try:
        network = ipaddress.ip_network(rule.strip("[]"), strict=False)
    except ValueError:
        network = None
    if network is not None:
        return ip is not None and ip in network
    name, colon, digits = rule.rpartition(":")
    if colon and digits.isdigit():
        return int(digits) == port and _exempts(name, host, ip, port)
    name = rule.removeprefix("*").removeprefix(".").rstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
