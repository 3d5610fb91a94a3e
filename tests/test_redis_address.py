"""The address of Redis: what it says, what it may not say, and that no credential shows."""

from __future__ import annotations

import re
import string
from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settings_cases import BASE, mistakes_of

from edgegw.settings import RedisAddress, Secret, describe, load_text, parse_redis, schema

ADDRESSES: list[tuple[str, RedisAddress, str]] = [  # (URL, what it is, how it is shown)
    ("redis://h", RedisAddress(mode="single", hosts=(("h", 6379),)), "redis://h:6379/0"),
    ("REDIS://h/", RedisAddress(mode="single", hosts=(("h", 6379),)), "redis://h:6379/0"),
    ("redis://[::1]:7/15", RedisAddress(mode="single", hosts=(("::1", 7),), db=15), "redis://[::1]:7/15"),
    (
        "redis://:pw@h:1",
        RedisAddress(mode="single", hosts=(("h", 1),), password=Secret("pw")),
        "redis://***@h:1/0",
    ),
    ("redis://:@h", RedisAddress(mode="single", hosts=(("h", 6379),)), "redis://h:6379/0"),
    ("redis://u@h", RedisAddress(mode="single", hosts=(("h", 6379),), username="u"), "redis://***@h:6379/0"),
    (
        "redis://u:a@b%40c%25:d@h",  # an @ before the last one is part of the password
        RedisAddress(mode="single", hosts=(("h", 6379),), username="u", password=Secret("a@b@c%:d")),
        "redis://***@h:6379/0",
    ),
    (
        "rediss://h?ca=/etc/my%20ca.pem",
        RedisAddress(mode="single", hosts=(("h", 6379),), tls=True, ca="/etc/my ca.pem"),
        "rediss://h:6379/0?ca=/etc/my%20ca.pem",
    ),
    (
        "redis+sentinel://u:p@h1,h2:7/mymaster/3?sentinel_password=s%26s",
        RedisAddress(
            mode="sentinel",
            hosts=(("h1", 26379), ("h2", 7)),
            username="u",
            password=Secret("p"),
            sentinel_password=Secret("s&s"),
            service="mymaster",
            db=3,
        ),
        "redis+sentinel://***@h1:26379,h2:7/mymaster/3?sentinel_password=***",
    ),
    (
        "rediss+sentinel://h/m?sentinel_password=s&ca=/c",
        RedisAddress(
            mode="sentinel",
            hosts=(("h", 26379),),
            tls=True,
            ca="/c",
            sentinel_password=Secret("s"),
            service="m",
        ),
        "rediss+sentinel://h:26379/m/0?ca=/c&sentinel_password=***",
    ),
    (
        "redis+cluster://h1:1,[::2]",
        RedisAddress(mode="cluster", hosts=(("h1", 1), ("::2", 6379))),
        "redis+cluster://h1:1,[::2]:6379",
    ),
    (
        "rediss+cluster://:p@h/?ca=/c",
        RedisAddress(mode="cluster", hosts=(("h", 6379),), tls=True, ca="/c", password=Secret("p")),
        "rediss+cluster://***@h:6379?ca=/c",
    ),
    ("unix:///run/r.sock", RedisAddress(mode="single", unix_path="/run/r.sock"), "unix:///run/r.sock"),
    (
        "unix://u:p@/run/r%20r.sock?db=2",
        RedisAddress(mode="single", unix_path="/run/r r.sock", username="u", password=Secret("p"), db=2),
        "unix://***@/run/r%20r.sock?db=2",
    ),
]

MISTAKES: list[tuple[str, str]] = [  # (URL, words of the mistake); every secret part has `pw` in it
    ("pw", "such as redis://host:6379/0"),
    ("h:6379", "such as redis://host:6379/0"),
    ("http://u:pw@h", "begins with redis://, rediss://, redis\\+sentinel://.* unix://"),
    ("valkey://u:pw@h", "begins with redis://"),
    ("rediss+unix://u:pw@/s", "begins with redis://"),
    ("redis://", "a host is missing"),
    ("redis://u:pw@", "a host is missing"),
    ("redis://h1,h2", "several hosts: write redis\\+cluster://"),
    ("redis+cluster://h1,,h2", "a host is missing"),
    ("redis+cluster://" + ",".join(["h"] * 101), "more than 100 hosts"),
    ("redis://u:pw@h:0", "a port is a number from 1 to 65535"),
    ("redis://u:pw@h:x", "the host is not one, or not its port"),
    ("redis://u:pw@1.2.3.400", "the host is not an IP address"),
    ("redis://u:pw pw@h", "a URL does not hold"),
    ("redis://u:p/pw@h", "an @ behind the host; .*%2F"),
    ("redis://u:p?pw@h", "an @ behind the host; .*%3F"),
    ("redis://u:p#pw@h", "a fragment .*%23"),
    ("redis://u:p%pw@h", "a % in the password that begins no %XX; write it %25"),
    ("redis://p%pw@h", "a % in the user"),
    ("redis://u:pw%ff@h", "the password is not UTF-8"),
    ("redis://h/pw", "the database is not a number"),
    ("redis://h/01", "the database is not a number"),
    ("redis://h/1/2", "the database is not a number"),
    ("redis://h?pw=1", "an option .* unknown here; there are none"),
    ("redis://h?ca=/c", "an option .* unknown here; there are none"),
    ("redis://h?db=1", "an option .* unknown here; there are none"),
    ("rediss://h?pw=1", "an option .* unknown here; there are: ca"),
    ("rediss://h?ca", "the option ca has no value"),
    ("rediss://h?ca=", "the option ca has no value"),
    ("rediss://h?ca=/a&ca=/b", "the option ca stands there twice"),
    ("rediss://h?ca=c.pem", "the option ca is not the absolute path"),
    ("rediss+cluster://h?sentinel_password=pw", "unknown here; there are: ca"),
    ("redis+sentinel://h", "the name of the service is missing: .*/mymaster"),
    ("redis+sentinel://h/", "the name of the service is missing"),
    ("redis+sentinel://h//0", "the name of the service is missing"),
    ("redis+sentinel://h/pw%20pw", "the name of the service is not one"),
    ("redis+sentinel://h/m/x", "the database is not a number"),
    ("redis+sentinel://h/m?sentinel_password=%pw", "a % in the option sentinel_password"),
    ("redis+cluster://h/1", "a cluster, which has no numbered databases"),
    ("unix://run/r.sock", "three slashes"),
    ("unix://", "not that of a socket"),
    ("unix:///run/", "not that of a socket"),
    ("unix:///r%00", "not that of a socket"),
    ("unix:///s?db=x", "the database is not a number"),
    ("unix:///s?ca=/c", "unknown here; there are: db"),
]


@pytest.mark.parametrize(("url", "address", "shown"), ADDRESSES, ids=[url for url, *_ in ADDRESSES])
def test_an_address_in_its_parts(url: str, address: RedisAddress, shown: str) -> None:
    settings = load_text(f"{BASE}storage: {{redis_url: '{url}'}}\n", {})
    assert settings.storage.redis_url == Secret(url)
    assert parse_redis(url) == address
    assert str(address) == shown
    assert re.fullmatch(r'[\s\S]*\n  redis_url: "(.+)"\n[\s\S]*', describe(settings))
    assert parse_redis(shown).hosts == address.hosts  # what is shown is an address again
    assert re.search(_pattern(), url)


def _pattern() -> str:
    storage = schema()["properties"]["storage"]["anyOf"][0]
    return str(storage["properties"]["redis_url"]["anyOf"][0]["pattern"])


@pytest.mark.parametrize(("url", "words"), MISTAKES, ids=[url[:40] for url, _ in MISTAKES])
def test_a_mistake_names_the_part_and_shows_nothing(url: str, words: str) -> None:
    for text, environ in ((f"'{url}'", {}), ("${R}", {"R": url})):
        (mistake,) = mistakes_of(f"{BASE}storage:\n  redis_url: {text}\n", environ)
        assert (mistake.line, mistake.column, mistake.path) == (5, 14, "storage.redis_url")
        assert re.search(words, mistake.message), mistake
        assert "pw" not in str(mistake)


def test_no_credential_shows() -> None:
    url = "rediss+sentinel://s3cret1:s3cret2@h/m?sentinel_password=s3cret3"
    settings = load_text(f"{BASE}storage: {{redis_url: ${{R}}}}", {"R": url})
    address = parse_redis(url)
    for shown in (repr(settings), describe(settings), repr(address), str(address), f"{address}", f"{[address]}"):
        assert "s3cret" not in shown
    assert "rediss+sentinel://***@h:26379/m/0?sentinel_password=***" in describe(settings)


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
    address = parse_redis(f"redis+cluster://{userinfo}{written}")
    assert address.username == username
    assert (address.password.reveal() if address.password else None) == password
    assert address.hosts == tuple(hosts)


@given(st.text(st.sampled_from([*"redis+:/@?#&=,%[]. 019ahuixnlctr\x00é"]), max_size=30))
def test_no_text_breaks_it(rest: str) -> None:
    """It is an address, whose shown form is one again, or a ValueError."""
    for text in (rest, f"redis://{rest}", f"rediss+sentinel://{rest}", f"unix://{rest}"):
        shown = None
        with suppress(ValueError):
            shown = str(parse_redis(text))
        assert shown is None or str(parse_redis(shown)) == shown
