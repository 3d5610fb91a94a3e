"""Where Redis is: the URL of one server, of the sentinels before it, or of a cluster, read into its parts.

Pure, as `addresses.py` is. A part may hold a password at a place where nobody meant it to (`redis://u:p?ss@h`), so a
reason names the part that is wrong and never shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal
from urllib.parse import quote

from msgspec import Struct

from edgegw.settings.addresses import host_and_port
from edgegw.settings.model import Secret
from edgegw.settings.url_parts import IN_A_PASSWORD, VISIBLE, credentials, decoded, options_of
from edgegw.settings.values import Kind

RedisMode = Literal["single", "sentinel", "cluster"]

_PORT = 6379
_SENTINEL_PORT = 26379
_HOSTS_MAX = 100  # of one address: nodes to begin with; the rest of a cluster is found through them

_SCHEMES: dict[str, tuple[RedisMode, bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "unix": ("single", False),
}
_URL = re.compile(r"([A-Za-z+]+)://([^/?#]*)((?:/[^?#]*)?)(?:\?([^#]*))?")
_DATABASE = re.compile(r"0|[1-9][0-9]{0,4}")
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,200}")  # what a Sentinel's configuration takes for the name of a master


class RedisAddress(Struct, frozen=True, kw_only=True):
    """A Redis, or the same protocol by another name. `hosts`: (host, port), IPv6 without brackets; the sentinels in
    mode `sentinel`, some nodes in mode `cluster`, one server in mode `single`, none with a `unix_path`. `tls` goes for
    all of them, with `ca` (a file) instead of the system's authorities. `service` is the sentinels' name for the
    server, and `username` and `password` are for that server; `sentinel_password` is for them."""

    mode: RedisMode
    hosts: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    ca: str | None = None
    username: str | None = None
    password: Secret | None = None
    sentinel_password: Secret | None = None
    service: str | None = None
    db: int = 0
    unix_path: str | None = None

    def __str__(self) -> str:
        """The URL, complete with defaults, without its credentials."""
        return _written(self)

    def __repr__(self) -> str:
        return f"RedisAddress({self})"


def redis_url() -> Kind:
    """The URL of a Redis, kept as a secret: `parse_redis` takes it apart where it is needed."""
    return Kind(
        expected="a Redis address such as redis://host:6379/0",
        read=_read,
        schema={"type": "string", "pattern": r"^([Rr][Ee][Dd][Ii][Ss][Ss]?(\+[A-Za-z]+)?|[Uu][Nn][Ii][Xx])://[!-~]+$"},
        show=_show,
        private=True,
    )


def parse_redis(text: str) -> RedisAddress:
    """The address in a URL: `redis://[user[:password]@]host[:port][/db]`, `redis+sentinel://…@h1,h2/service[/db]`,
    `redis+cluster://…@h1,h2`, each with `rediss` for TLS, or `unix:///path[?db=n]`. Options: `ca` with TLS,
    `sentinel_password` with sentinels. Raises ValueError with a reason that shows nothing of the text, or with none.
    """
    if not VISIBLE.fullmatch(text):
        raise ValueError("a blank, a line break or another character that a URL does not hold")
    found = _URL.fullmatch(text)
    if not found:
        raise ValueError("a fragment (#…) in an address of Redis; " + IN_A_PASSWORD if "#" in text else "")
    scheme, authority, path, query = found[1].lower(), found[2], found[3], found[4]
    if scheme not in _SCHEMES:
        raise ValueError(f"an address of Redis begins with {', '.join(f'{name}://' for name in _SCHEMES)}")
    if "@" in path or "@" in (query or ""):
        raise ValueError(f"an @ behind the host; {IN_A_PASSWORD}")
    mode, tls = _SCHEMES[scheme]
    userinfo, _, hosts = authority.rpartition("@")
    username, password = credentials(userinfo)
    options = options_of(query or "", _known_options(scheme, mode, tls))
    ca, sentinel_password = options.get("ca"), options.get("sentinel_password")
    if ca is not None and not ca.startswith("/"):
        raise ValueError("the option ca is not the absolute path of a file")
    service, db, unix_path = _PATHS[scheme if scheme == "unix" else mode](path)
    if scheme == "unix":
        db = _database(options["db"]) if "db" in options else 0
    return RedisAddress(
        mode=mode,
        hosts=_no_hosts(hosts) if scheme == "unix" else _hosts(hosts, mode),
        tls=tls,
        ca=ca,
        username=username,
        password=password,
        sentinel_password=Secret(sentinel_password) if sentinel_password else None,
        service=service,
        db=db,
        unix_path=unix_path,
    )


def _hosts(text: str, mode: RedisMode) -> tuple[tuple[str, int], ...]:
    several = text.split(",")
    if mode == "single" and len(several) > 1:
        raise ValueError("several hosts: write redis+cluster:// or redis+sentinel:// (rediss+… with TLS)")
    if len(several) > _HOSTS_MAX:
        raise ValueError(f"more than {_HOSTS_MAX} hosts; the first few nodes are enough")
    otherwise = _SENTINEL_PORT if mode == "sentinel" else _PORT
    return tuple(_host(one, otherwise) for one in several)


def _host(text: str, otherwise: int) -> tuple[str, int]:
    if not text:
        raise ValueError("a host is missing")
    try:
        host, port = host_and_port(text)
    except ValueError as reason:
        raise ValueError(str(reason) or f"the host is not one, or not its port; {IN_A_PASSWORD}") from None
    return host, otherwise if port is None else port


def _no_hosts(text: str) -> tuple[tuple[str, int], ...]:
    if text:
        raise ValueError("a unix:// address has three slashes, and then the path: unix:///run/redis.sock")
    return ()


def _path_of_one(path: str) -> tuple[str | None, int, str | None]:
    return None, _database(path.removeprefix("/")), None


def _path_of_sentinels(path: str) -> tuple[str | None, int, str | None]:
    service, _, database = path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("the name of the service is missing: redis+sentinel://host:26379/mymaster")
    if not _SERVICE.fullmatch(service):
        raise ValueError("the name of the service is not one")
    return service, _database(database), None


def _path_of_cluster(path: str) -> tuple[str | None, int, str | None]:
    if path not in ("", "/"):
        raise ValueError("a database number in the address of a cluster, which has no numbered databases")
    return None, 0, None


def _path_of_socket(path: str) -> tuple[str | None, int, str | None]:
    socket = decoded(path, "path")
    if not socket or socket.endswith("/") or not socket.isprintable():
        raise ValueError("the path is not that of a socket: unix:///run/redis.sock")
    return None, 0, socket


# How a path is read: (service, database, path of a socket).
_PATHS: dict[str, Callable[[str], tuple[str | None, int, str | None]]] = {
    "single": _path_of_one,
    "sentinel": _path_of_sentinels,
    "cluster": _path_of_cluster,
    "unix": _path_of_socket,
}


def _database(text: str) -> int:
    if text and not _DATABASE.fullmatch(text):
        raise ValueError("the database is not a number from 0 to 99999")
    return int(text or 0)


def _known_options(scheme: str, mode: RedisMode, tls: bool) -> Sequence[str]:
    known = (("ca", tls), ("sentinel_password", mode == "sentinel"), ("db", scheme == "unix"))
    return [name for name, here in known if here]


def _written(address: RedisAddress) -> str:
    scheme = "unix" if address.unix_path else f"redis{'s' * address.tls}"
    if address.mode != "single":
        scheme = f"{scheme}+{address.mode}"
    userinfo = "***@" if address.username or address.password else ""
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in address.hosts)
    path = {
        "single": quote(address.unix_path) if address.unix_path else f"/{address.db}",
        "sentinel": f"/{address.service}/{address.db}",
        "cluster": "",
    }[address.mode]
    options = [
        *([f"db={address.db}"] if address.unix_path and address.db else []),
        *([f"ca={quote(address.ca)}"] if address.ca else []),
        *(["sentinel_password=***"] if address.sentinel_password else []),
    ]
    return f"{scheme}://{userinfo}{hosts}{path}{'?' if options else ''}{'&'.join(options)}"


def _read(text: str) -> Secret:
    parse_redis(text)
    return Secret(text)


def _show(url: Secret) -> str:
    return str(parse_redis(url.reveal()))
