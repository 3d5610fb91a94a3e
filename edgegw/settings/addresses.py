"""How the scalars of the network are read: addresses to listen on, URLs of providers and proxies, headers.

Kinds like those of `values.py`, and as pure. What ends up in a request head or a connect call is bounded to characters
that cannot change its meaning.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address

from edgegw.settings.model import Address
from edgegw.settings.values import Kind

_PORT_MAX = 65_535
_HEADERS_OF_THE_GATEWAY = frozenset(
    (
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    )
)

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?)(?::([0-9]{1,5}))?")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://((?:(?![/?#\\])[!-~])*)(/[!-~]*)?")
_LOOKS_LIKE_IPV4 = re.compile(r"[0-9.]+")
_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z\-]+"  # RFC 9110, 5.6.2: token
_FIELD_VALUE = r"[!-~](?:[ \t!-~]*[!-~])?"  # RFC 9110, 5.5, without obs-text


def address() -> Kind:
    """`host:port`, an IPv6 host in brackets."""
    schema = {"type": "string", "pattern": "^.+:[0-9]+$"}
    return Kind(expected="an address such as 127.0.0.1:8080", read=_read_address, schema=schema)


def base_url() -> Kind:
    """An http or https URL with a host and perhaps a path. Its trailing slash goes: paths are appended to it."""
    schema = {"type": "string", "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\\]+(/[^?#]*)?$"}
    expected = "a URL such as https://api.example.com/v1"
    return Kind(expected=expected, read=_read_base_url, schema=schema, private=True)


def proxy() -> Kind:
    """`http://[user:password@]host[:port]`."""
    schema = {"type": "string", "pattern": "^[Hh][Tt][Tt][Pp]://[^/?#]+/?$"}
    expected = "a proxy such as http://host:3128"
    return Kind(expected=expected, read=_read_proxy, schema=schema, show=_show_proxy, private=True)


def header_name() -> Kind:
    """A field name, in lower case, that is not one of the gateway's own."""
    return Kind(
        expected="the name of a header",
        read=_read_header_name,
        schema={"pattern": f"^{_FIELD_NAME}$", "not": {"enum": sorted(_HEADERS_OF_THE_GATEWAY)}},
    )


def header_value() -> Kind:
    """A field value. It may well be a credential, so it is never shown."""
    return Kind(
        expected="the value of a header (visible ASCII, blanks only inside)",
        read=_read_header_value,
        schema={"type": ["string", "number"], "pattern": f"^{_FIELD_VALUE}$"},
        show=_show_nothing,
        private=True,
    )


def _read_address(text: str) -> Address:
    host, port = host_and_port(text)
    if port is None:
        raise ValueError
    return Address(host, port)


def _read_base_url(text: str) -> str:
    if "?" in text or "#" in text:
        raise ValueError("a base_url has no query and no fragment")
    scheme, authority, path = _split(text)
    if scheme not in ("http", "https"):
        raise ValueError("a base_url begins with https:// or http://")
    if "@" in authority:
        raise ValueError("a base_url has no user info; a key belongs in api_key")
    host_and_port(authority)
    return f"{scheme}://{authority}{path.rstrip('/')}"


def _read_proxy(text: str) -> str:
    scheme, authority, path = _split(text)
    if scheme != "http" or path not in ("", "/"):
        raise ValueError
    host_and_port(authority.rpartition("@")[2])
    return f"{scheme}://{authority}"


def _show_proxy(url: str) -> str:
    scheme, authority, _ = _split(url)
    _, at, host = authority.rpartition("@")
    return f"{scheme}://***@{host}" if at else url


def _show_nothing(_: str) -> str:
    return "***"


def _read_header_name(text: str) -> str:
    name = text.lower()
    if name in _HEADERS_OF_THE_GATEWAY:
        raise ValueError("is a header that the gateway writes itself")
    if not re.fullmatch(_FIELD_NAME, name):
        raise ValueError
    return name


def _read_header_value(text: str) -> str:
    if not re.fullmatch(_FIELD_VALUE, text):
        raise ValueError
    return text


def _split(url: str) -> tuple[str, str, str]:
    """Scheme in lower case, authority, path; ValueError when it is not a URL of visible ASCII."""
    found = _URL.fullmatch(url)
    if not found:
        raise ValueError
    return found[1].lower(), found[2], found[3] or ""


def host_and_port(authority: str) -> tuple[str, int | None]:
    """Of `host`, `host:port` or `[::1]:port`: the host without brackets, and the port if one is given.

    Raises ValueError with a reason that does not repeat the text, or with none.
    """
    found = _AUTHORITY.fullmatch(authority)
    if not found:
        raise ValueError
    host, port = found[1], found[2]
    try:
        if host.startswith("["):
            host = str(IPv6Address(host[1:-1]))
        elif _LOOKS_LIKE_IPV4.fullmatch(host):
            host = str(IPv4Address(host))
    except AddressValueError:
        raise ValueError("the host is not an IP address") from None
    if port is not None and not 1 <= int(port) <= _PORT_MAX:
        raise ValueError(f"a port is a number from 1 to {_PORT_MAX}")
    return host, None if port is None else int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it: an address of 127.0.0.0/8, `::1`, or `localhost`, and no other name."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
