"""The address of PostgreSQL: what it says, what it may not say, and that no credential shows."""

from __future__ import annotations

import re
import string
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings_cases import BASE, mistakes_of

from edgegw.settings import PostgresAddress, Secret, describe, load_text, parse_postgres, schema

DEFAULTS = "application_name=edgegw&connect_timeout=5"
ADDRESSES: list[tuple[str, PostgresAddress, str]] = [  # (URL, what it is, how it is shown)
    (
        "postgresql://h/books",
        PostgresAddress(hosts=(("h", 5432),), database="books"),
        f"postgresql://h:5432/books?sslmode=prefer&target_session_attrs=any&{DEFAULTS}",
    ),
    (
        "POSTGRES://u@[::1]:7/my%20books",
        PostgresAddress(hosts=(("::1", 7),), database="my books", username="u"),
        f"postgresql://***@[::1]:7/my%20books?sslmode=prefer&target_session_attrs=any&{DEFAULTS}",
    ),
    (
        "postgresql+asyncpg://u:a@b%40c%25:d@h/d",  # an @ before the last one is part of the password
        PostgresAddress(hosts=(("h", 5432),), database="d", username="u", password=Secret("a@b@c%:d")),
        f"postgresql://***@h:5432/d?sslmode=prefer&target_session_attrs=any&{DEFAULTS}",
    ),
    (
        "postgresql://u:p@a,b:7/d",
        PostgresAddress(
            hosts=(("a", 5432), ("b", 7)),
            database="d",
            username="u",
            password=Secret("p"),
            target_session_attrs="read-write",
        ),
        f"postgresql://***@a:5432,b:7/d?sslmode=prefer&target_session_attrs=read-write&{DEFAULTS}",
    ),
    (
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=/etc/my%20ca.pem&sslcert=/c&sslkey=/k"
        "&application_name=edge%201&connect_timeout=30",
        PostgresAddress(
            hosts=(("h", 5432),),
            database="d",
            username="u",
            password=Secret("p"),
            sslmode="verify-full",
            sslrootcert="/etc/my ca.pem",
            sslcert="/c",
            sslkey="/k",
            application_name="edge 1",
            connect_timeout_s=30,
        ),
        "postgresql://***@h:5432/d?sslmode=verify-full&sslrootcert=/etc/my%20ca.pem&sslcert=/c&sslkey=/k"
        "&target_session_attrs=any&application_name=edge%201&connect_timeout=30",
    ),
    (
        "postgresql:///d?host=/cloudsql/project:region:name&port=6000",
        PostgresAddress(hosts=(("/cloudsql/project:region:name", 6000),), database="d"),
        "postgresql:///d?host=/cloudsql/project%3Aregion%3Aname&port=6000&sslmode=prefer&target_session_attrs=any"
        f"&{DEFAULTS}",
    ),
]

MISTAKES: list[tuple[str, str]] = [  # (URL, words of the mistake); every secret part has `pw` in it
    ("pw", "expected sqlite:///path, or postgresql://user:password@host/database"),
    ("postgresql:pw@h/d", "expected sqlite:///path, or postgresql://"),
    ("mysql://u:pw@h/d", "expected sqlite:///path, or postgresql://"),
    ("postgresql+psycopg2://u:pw@h/d", "begins with postgresql://"),
    ("postgresql:///pw", "a host is missing"),
    ("postgresql://u:pw@/d", "a host is missing"),
    ("postgresql://a,,b/d", "a host is missing"),
    ("postgresql://" + ",".join(["h"] * 17) + "/d", "more than 16 hosts"),
    ("postgresql://u:pw@h:0/d", "a port is a number from 1 to 65535"),
    ("postgresql://u:pw@h:x/d", "the host is not one, or not its port"),
    ("postgresql://u:pw@1.2.3.400/d", "the host is not an IP address"),
    ("postgresql://u:pw pw@h/d", "a URL does not hold"),
    ("postgresql://u:p/pw@h/d", "an @ behind the host; .*%2F"),
    ("postgresql://u:p?pw@h/d", "an @ behind the host; .*%3F"),
    ("postgresql://u:p#pw@h/d", "a fragment .*%23"),
    ("postgresql://u:p%pw@h/d", "a % in the password that begins no %XX; write it %25"),
    ("postgresql://u:pw%ff@h/d", "the password is not UTF-8"),
    ("postgresql://u:pw@h", "the name of the database is missing: postgresql://host/edgegw"),
    ("postgresql://u:pw@h/", "the name of the database is missing"),
    ("postgresql://u:pw@h/pw/pw", "the name of the database is not one"),
    ("postgresql://h/pw%00", "the name of the database is not one"),
    ("postgresql://h/" + "p" * 64, "the name of the database is not one"),
    ("postgresql://h/d?pw=1", "unknown here; there are: sslmode, "),
    ("postgresql://h/d?sslmod=require", "did you mean sslmode\\?"),
    ("postgresql://h/d?sslroot=/pw", "did you mean sslrootcert\\?"),
    ("postgresql://h/d?sslmode", "the option sslmode has no value"),
    ("postgresql://h/d?sslmode=pw", "the option sslmode is one of disable, allow, prefer, require, verify-ca, verify"),
    ("postgresql://h/d?sslmode=require&sslmode=disable", "the option sslmode stands there twice"),
    ("postgresql://h/d?sslrootcert=pw.pem", "the option sslrootcert is not the absolute path"),
    ("postgresql://h/d?sslkey=/pw.pem", "the option sslkey is there without sslcert"),
    ("postgresql://a,b/d?target_session_attrs=standby", "is one of any, primary, read-write"),
    ("postgresql://h/d?connect_timeout=0", "whole seconds, from 1 to 300"),
    ("postgresql://h/d?connect_timeout=301", "whole seconds, from 1 to 300"),
    ("postgresql://h/d?application_name=pw%0a", "the option application_name is not one"),
    ("postgresql://h/d?host=/run", "a host, and the option host as well"),
    ("postgresql:///d?host=pw", "the option host is not the absolute path"),
    ("postgresql:///d?host=/run&port=65536", "a port is a number from 1 to 65535"),
    ("postgresql://h/d?port=1", "the option port is for a socket's directory"),
]


@pytest.mark.parametrize(("url", "address", "shown"), ADDRESSES, ids=[url for url, *_ in ADDRESSES])
def test_an_address_in_its_parts(url: str, address: PostgresAddress, shown: str) -> None:
    settings = load_text(f"{BASE}storage: {{database_url: '{url}'}}\n", {})
    assert settings.storage.database_url == settings.postgres_url == Secret(url)
    assert parse_postgres(url) == address
    assert str(address) == shown
    assert f'\n  database_url: "{shown}"\n' in describe(settings)
    assert str(parse_postgres(shown)) == shown  # what is shown is an address again
    assert re.search(_pattern(), url)


def _pattern() -> str:
    storage = schema()["properties"]["storage"]["anyOf"][0]
    return str(storage["properties"]["database_url"]["anyOf"][0]["pattern"])


@pytest.mark.parametrize(("url", "words"), MISTAKES, ids=[url[:40] for url, _ in MISTAKES])
def test_a_mistake_names_the_part_and_shows_nothing(url: str, words: str) -> None:
    for text, environ in ((f"'{url}'", {}), ("${D}", {"D": url})):
        (mistake,) = mistakes_of(f"{BASE}storage:\n  database_url: {text}\n", environ)
        assert (mistake.line, mistake.column, mistake.path) == (5, 17, "storage.database_url")
        assert re.search(words, mistake.message), mistake
        assert "pw" not in str(mistake)


def test_no_credential_shows() -> None:
    url = "postgresql://s3cret1:s3cret2@h/d?sslmode=require"
    settings = load_text(f"{BASE}storage: {{database_url: ${{D}}}}", {"D": url})
    address = parse_postgres(url)
    for shown in (repr(settings), describe(settings), repr(address), str(address), f"{address}", f"{[address]}"):
        assert "s3cret" not in shown


def test_a_file_of_sqlite_is_no_postgresql() -> None:
    for url, path in (("sqlite:///rows.db", "rows.db"), ("sqlite:////data/rows.db", "/data/rows.db")):
        settings = load_text(f"{BASE}storage: {{database_url: '{url}'}}\n", {})
        assert settings.postgres_url is None
        assert settings.sqlite_path == path
        assert f'database_url: "{url}"' in describe(settings)
        assert re.search(_pattern(), url)


_HOSTS = st.one_of(
    st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=10).map(lambda text: f"h{text}"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
_PARTS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))


@given(_PARTS, _PARTS, st.lists(st.tuples(_HOSTS, st.integers(1, 65_535)), min_size=1, max_size=4))
def test_whatever_the_credentials_are_they_come_out_as_they_went_in(
    username: str | None, password: str | None, hosts: list[tuple[str, int]]
) -> None:
    userinfo = f"{quote(username or '', safe='')}:{quote(password or '', safe='')}@"
    written = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)
    address = parse_postgres(f"postgresql://{userinfo}{written}/d")
    assert address.username == username
    assert (address.password.reveal() if address.password else None) == password
    assert address.hosts == tuple(hosts)


@given(st.text(st.sampled_from([*"postgresql+:/@?#&=,%[]. 019\x00é"]), max_size=30))
def test_no_text_breaks_it(rest: str) -> None:
    """It is an address, whose shown form is one again, or a ValueError."""
    for text in (rest, f"postgresql://{rest}", f"postgresql://h/{rest}"):
        shown = None
        with suppress(ValueError):
            shown = str(parse_postgres(text))
        assert shown is None or str(parse_postgres(shown)) == shown
