"""Where the rows are: a file of SQLite, or the URL of a PostgreSQL database, read into its parts.

Pure, as `addresses.py` is. The URL of a PostgreSQL may hold a password, so each URL is kept as a secret, and a reason
names the part that is wrong and never shows it.
"""

from __future__ import annotations

import re
from typing import Any, get_args
from urllib.parse import quote

from msgspec import Struct

from edgegw.settings.addresses import host_and_port
from edgegw.settings.model import SQLITE, Secret, SessionAttribute, SslMode
from edgegw.settings.url_parts import IN_A_PASSWORD, VISIBLE, credentials, decoded, options_of
from edgegw.settings.values import Kind

_PORT = 5432
_PORT_MAX = 65_535
_HOSTS_MAX = 16  # of one address: a primary and its standbys
_NAME_BYTES_MAX = 63  # of a database, an application or a role: what PostgreSQL keeps of it
_CONNECT_TIMEOUT_S = 5
_CONNECT_TIMEOUT_MAX_S = 300

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
_FILES = ("sslrootcert", "sslcert", "sslkey")
_OPTIONS = ("sslmode", *_FILES, "target_session_attrs", "application_name", "connect_timeout", "host", "port")
_URL = re.compile(r"[A-Za-z0-9+]+://([^/?#]*)((?:/[^?#]*)?)(?:\?([^#]*))?")
_WHOLE = re.compile(r"[1-9][0-9]{0,4}")


class PostgresAddress(Struct, frozen=True, kw_only=True):
    """A database of a PostgreSQL. `hosts`: (host, port) of the servers that it may be on, IPv6 without brackets, or the
    absolute path of the directory where the socket is. `sslmode` and the files (absolute paths) mean what they mean to
    libpq. `username` and `password` None: as PGUSER, PGPASSWORD or ~/.pgpass say."""

    hosts: tuple[tuple[str, int], ...]
    database: str
    username: str | None = None
    password: Secret | None = None
    sslmode: SslMode = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    target_session_attrs: SessionAttribute = "any"
    application_name: str = "edgegw"
    connect_timeout_s: int = _CONNECT_TIMEOUT_S

    @property
    def tls_options(self) -> dict[str, str]:
        """`sslmode` and the files that are set, by their names in a URL."""
        files = {name: getattr(self, name) for name in _FILES}
        return {"sslmode": self.sslmode, **{name: path for name, path in files.items() if path}}

    @property
    def place(self) -> str:
        """Host, port and name, for messages."""
        return f"{_authority(self)}/{self.database}"

    def __str__(self) -> str:
        """The URL, complete with defaults, without its credentials."""
        return _written(self)

    def __repr__(self) -> str:
        return f"PostgresAddress({self})"


def database_url() -> Kind:
    """`sqlite:///relative/path`, `sqlite:////absolute/path`, or what `parse_postgres` takes apart; a secret."""
    return Kind(
        expected="sqlite:///path, or postgresql://user:password@host/database",
        read=_read,
        schema={"type": "string", "pattern": r"^([Ss][Qq][Ll][Ii][Tt][Ee]:///.|[Pp][Oo][Ss][Tt][Gg][Rr][Ee][Ss])"},
        show=_show,
        private=True,
    )


def parse_postgres(text: str) -> PostgresAddress:
    """The address in a URL: `postgresql://[user[:password]@]host[:port][,…]/database[?options]`, or
    `postgresql:///database?host=/directory/of/the/socket`. Raises ValueError with a reason that shows nothing of the
    text, or with none.
    """
    if not VISIBLE.fullmatch(text):
        raise ValueError("a blank, a line break or another character that a URL does not hold")
    found = _URL.fullmatch(text)
    if not found:
        raise ValueError("a fragment (#…) in an address of PostgreSQL; " + IN_A_PASSWORD if "#" in text else "")
    authority, path, query = found[1], found[2], found[3] or ""
    if _scheme(text) not in _SCHEMES:
        raise ValueError("an address of PostgreSQL begins with postgresql://")
    if "@" in path or "@" in query:
        raise ValueError(f"an @ behind the host; {IN_A_PASSWORD}")
    userinfo, _, hosts = authority.rpartition("@")
    username, password = credentials(userinfo)
    options = options_of(query, _OPTIONS)
    places = _hosts(hosts, options)
    files = {name: _file(name, options[name]) for name in _FILES if name in options}
    if "sslkey" in files and "sslcert" not in files:
        raise ValueError("the option sslkey is there without sslcert")
    return PostgresAddress(
        hosts=places,
        database=_database(path),
        username=username,
        password=password,
        sslmode=_one_of("sslmode", options.get("sslmode", "prefer"), get_args(SslMode)),
        target_session_attrs=_one_of(
            "target_session_attrs",
            # Of several servers only the one that takes writes is of use.
            options.get("target_session_attrs", "read-write" if len(places) > 1 else "any"),
            get_args(SessionAttribute),
        ),
        application_name=_name("option application_name", options.get("application_name", "edgegw")),
        connect_timeout_s=_seconds(options.get("connect_timeout", str(_CONNECT_TIMEOUT_S))),
        **files,
    )


def is_postgres(text: str) -> bool:
    """Whether it is, or means to be, the URL of a PostgreSQL."""
    return _scheme(text).partition("+")[0] in ("postgresql", "postgres") and "://" in text


def _hosts(text: str, options: dict[str, str]) -> tuple[tuple[str, int], ...]:
    directory, port = options.get("host"), options.get("port")
    if directory is None:
        if port is not None:
            raise ValueError("the option port is for a socket's directory (host=/…); write host:port")
        several = text.split(",")
        if len(several) > _HOSTS_MAX:
            raise ValueError(f"more than {_HOSTS_MAX} hosts")
        return tuple(_host(one) for one in several)
    if text:
        raise ValueError("a host, and the option host as well")
    if not directory.startswith("/") or not directory.isprintable():
        raise ValueError("the option host is not the absolute path of a socket's directory")
    if port is not None and (not _WHOLE.fullmatch(port) or int(port) > _PORT_MAX):
        raise ValueError(f"a port is a number from 1 to {_PORT_MAX}")
    return ((directory, _PORT if port is None else int(port)),)


def _host(text: str) -> tuple[str, int]:
    if not text:
        raise ValueError("a host is missing")
    try:
        host, port = host_and_port(text)
    except ValueError as reason:
        raise ValueError(str(reason) or f"the host is not one, or not its port; {IN_A_PASSWORD}") from None
    return host, _PORT if port is None else port


def _database(path: str) -> str:
    name = decoded(path.removeprefix("/"), "name of the database")
    if not name:
        raise ValueError("the name of the database is missing: postgresql://host/edgegw")
    return _name("name of the database", name)


def _name(part: str, text: str) -> str:
    if not text.isprintable() or len(text.encode()) > _NAME_BYTES_MAX or "/" in text:
        raise ValueError(f"the {part} is not one")
    return text


def _file(name: str, path: str) -> str:
    if not path.startswith("/") or not path.isprintable():
        raise ValueError(f"the option {name} is not the absolute path of a file")
    return path


def _one_of(name: str, text: str, known: tuple[str, ...]) -> Any:
    if text not in known:
        raise ValueError(f"the option {name} is one of {', '.join(known)}")
    return text


def _seconds(text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) > _CONNECT_TIMEOUT_MAX_S:
        raise ValueError(f"the option connect_timeout is whole seconds, from 1 to {_CONNECT_TIMEOUT_MAX_S}")
    return int(text)


def _written(address: PostgresAddress) -> str:
    userinfo = "***@" if address.username or address.password else ""
    socket = [f"host={quote(host)}&port={port}" for host, port in address.hosts if host.startswith("/")]
    authority = userinfo if socket else userinfo + _authority(address)
    options = [
        *socket,
        *(f"{name}={quote(value)}" for name, value in address.tls_options.items()),
        f"target_session_attrs={address.target_session_attrs}",
        f"application_name={quote(address.application_name)}",
        f"connect_timeout={address.connect_timeout_s}",
    ]
    return f"postgresql://{authority}/{quote(address.database)}?{'&'.join(options)}"


def _authority(address: PostgresAddress) -> str:
    return ",".join(f"{_bracketed(host)}:{port}" for host, port in address.hosts)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("/") else host


def _scheme(text: str) -> str:
    return text.partition("://")[0].lower()


def _read(text: str) -> Secret:
    scheme = _scheme(text)
    if is_postgres(text):
        parse_postgres(text)
        return Secret(text)
    path = text.removeprefix(SQLITE)
    if scheme != "sqlite" or path == text or not path.strip("/").isprintable() or not path or path.endswith("/"):
        raise ValueError
    if path == ":memory:":
        raise ValueError("rows kept in memory would be lost with the process; use sqlite:///path or none")
    return Secret(text)


def _show(url: Secret) -> str:
    text = url.reveal()
    return text if text.startswith(SQLITE) else str(parse_postgres(text))
