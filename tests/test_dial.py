"""The way to a socket: names, addresses, proxies and TLS, with injected resolvers and real sockets on loopback."""

from __future__ import annotations

import asyncio
import base64
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from edgegw.clock import ManualClock
from edgegw.errors import UpstreamFault
from edgegw.http.dial import (
    ADDRESSES_TRIED_MAX,
    RESOLVE_RETRY_S,
    RESOLVE_TTL_S,
    TUNNEL_HEAD_BYTES_MAX,
    Address,
    Dialer,
    Resolver,
    interleave,
    tls_context,
)
from edgegw.http.proxies import Proxies, Proxy

T = TypeVar("T")
WAIT_S = 5.0
V4, V6 = socket.AF_INET, socket.AF_INET6


@dataclass(frozen=True)
class Origin:
    port: int
    scheme: str = "http"
    host: str = "provider.test"


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


class Names:
    """A resolver's answers by host name; an exception is raised. Counts the questions."""

    def __init__(self, answers: Mapping[str, Sequence[str] | Exception]) -> None:
        self.answers = dict(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        await asyncio.sleep(0)
        answer = self.answers.get(host, OSError())
        if isinstance(answer, Exception):
            raise answer
        return [(V6 if ":" in ip else V4, ip, port) for ip in answer]


class Client(asyncio.Protocol):
    """Greets and collects what comes back."""

    def __init__(self) -> None:
        self.received = b""
        self.lost = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(b"hello")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(b"echo " + data)


@asynccontextmanager
async def serving(
    handler: Handler = echo, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[int]:
    """A server on loopback; its port. Handlers are gone when it is."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(handle, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def dialer(
    ips: Sequence[str] = ("127.0.0.1",), *, tls: ssl.SSLContext | None = None, proxies: Proxies | None = None
) -> Dialer:
    names = Names({"provider.test": ips, "other.test": ips, "proxy.test": ips})
    return Dialer(Resolver(ManualClock(), names), tls=tls, proxies=proxies or Proxies())


async def greet(one: Dialer, origin: Origin, *, connect_s: float = 2.0, tls_s: float = 2.0) -> bytes:
    """Connect, say hello, hear what comes back."""
    client = Client()
    await soon(one.connect(origin, client, connect_s=connect_s, tls_s=tls_s))
    try:
        await soon(client.came.wait())
        return client.received
    finally:
        client.transport.abort()
        await soon(client.lost)


async def fault_of(one: Dialer, origin: Origin, *, connect_s: float = 2.0, tls_s: float = 2.0) -> UpstreamFault:
    """The fault of a connect that must fail, which names nobody and blames no sent byte."""
    with pytest.raises(UpstreamFault) as caught:
        await soon(one.connect(origin, Client(), connect_s=connect_s, tls_s=tls_s))
    fault = caught.value
    assert fault.sent is False
    for secret in ("127.0.0.1", ".test", "::1", str(origin.port)):
        assert secret not in fault.message
    return fault


class TestConnect:
    async def test_by_name_by_address_and_by_bracketed_address(self) -> None:
        async with serving() as port:
            assert await greet(dialer(), Origin(port)) == b"echo hello"
            system = Dialer(Resolver(ManualClock()), tls=None, proxies=Proxies())
            for host in ("127.0.0.1", "localhost"):
                assert await greet(system, Origin(port, host=host)) == b"echo hello"

    async def test_ipv6_literal(self) -> None:
        try:
            socket.create_server(("::1", 0), family=V6).close()
        except OSError:
            pytest.skip("no IPv6 loopback here")
        one = Dialer(Resolver(ManualClock()), tls=None, proxies=Proxies())
        async with serving(host="::1") as port:
            for host in ("::1", "[::1]"):
                assert await greet(one, Origin(port, host=host)) == b"echo hello"

    async def test_options_of_the_socket(self) -> None:
        async with serving() as port:
            client = Client()
            await soon(dialer().connect(Origin(port), client, connect_s=2, tls_s=2))
            sock = client.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            client.transport.abort()
            await soon(client.lost)

    async def test_the_second_address_when_the_first_refuses(self) -> None:
        async with serving() as port:
            one = dialer(["127.0.0.2", "127.0.0.1"])
            assert await greet(one, Origin(port)) == b"echo hello"
            # Next time the one that answered comes first.
            assert [ip for _, ip, _ in await one._resolver.addresses("provider.test", port)] == [
                "127.0.0.1",
                "127.0.0.2",
            ]

    async def test_the_second_address_when_the_first_is_silent(self) -> None:
        async with silent_address() as (host, port), serving(port=port):
            assert await greet(dialer([host, "127.0.0.1"]), Origin(port), connect_s=0.1) == b"echo hello"

    async def test_nobody_listens(self) -> None:
        async with serving() as port:
            pass
        assert (await fault_of(dialer(["127.0.0.1", "127.0.0.2"]), Origin(port))).kind == "upstream_connect"

    async def test_nobody_answers(self) -> None:
        async with silent_address() as (host, port):
            assert (await fault_of(dialer([host]), Origin(port), connect_s=0.1)).kind == "upstream_timeout"

    async def test_a_name_that_does_not_exist(self) -> None:
        assert (await fault_of(dialer(), Origin(1, host="nowhere.test"))).kind == "upstream_connect"

    async def test_a_name_that_is_no_name(self) -> None:
        one = Dialer(Resolver(ManualClock()), tls=None, proxies=Proxies())
        assert (await fault_of(one, Origin(1, host="x" * 70 + "\u00e9.test"))).kind == "upstream_connect"

    @pytest.mark.parametrize("ip", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254"])
    async def test_a_name_must_not_lead_into_the_neighbourhood(self, ip: str) -> None:
        assert (await fault_of(dialer([ip]), Origin(80))).kind == "upstream_connect"


@asynccontextmanager
async def silent_address() -> AsyncIterator[tuple[str, int]]:
    """An address where connecting takes for ever: a listener on 127.0.0.3 whose queue is full and never served."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.3", 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = []
        try:
            for _ in range(16):
                filler = socket.socket()
                filler.setblocking(False)
                fillers.append(filler)
                try:
                    async with asyncio.timeout(0.05):
                        await loop.sock_connect(filler, address)
                except TimeoutError:
                    break
            else:
                pytest.skip("this system accepts connections beyond the queue of a listener")
            yield address
        finally:
            for filler in fillers:
                filler.close()


class TestResolver:
    async def test_asks_again_after_a_while_and_not_before(self) -> None:
        clock, names = ManualClock(), Names({"a": ["10.0.0.1"]})
        resolver = Resolver(clock, names)
        assert await resolver.addresses("a", 1) == [(V4, "10.0.0.1", 1)]
        names.answers["a"] = ["10.0.0.2"]
        clock.jump(RESOLVE_TTL_S - 1)
        assert await resolver.addresses("a", 1) == [(V4, "10.0.0.1", 1)]
        clock.jump(2)
        assert await resolver.addresses("a", 1) == [(V4, "10.0.0.2", 1)]
        assert names.asked == 2

    @pytest.mark.parametrize("failure", [OSError(), socket.gaierror(), TimeoutError(), UnicodeError(), []])
    async def test_old_addresses_serve_while_the_resolver_fails(self, failure: Exception | list[str]) -> None:
        clock, names = ManualClock(), Names({"a": ["10.0.0.1"]})
        resolver = Resolver(clock, names)
        first = await resolver.addresses("a", 1)
        names.answers["a"] = failure
        clock.jump(RESOLVE_TTL_S * 100)
        assert await resolver.addresses("a", 1) == first
        assert await resolver.addresses("a", 1) == first
        assert names.asked == 2  # a failing resolver is not asked for each connection
        names.answers["a"] = ["10.0.0.2"]
        clock.jump(RESOLVE_RETRY_S)
        assert await resolver.addresses("a", 1) == [(V4, "10.0.0.2", 1)]

    async def test_a_failure_without_old_addresses_is_not_remembered(self) -> None:
        names = Names({})
        resolver = Resolver(ManualClock(), names)
        for _ in range(2):
            with pytest.raises(UpstreamFault):
                await resolver.addresses("a", 1)
        assert names.asked == 2

    async def test_one_question_however_many_wait(self) -> None:
        names = Names({"a": ["10.0.0.1"]})
        resolver = Resolver(ManualClock(), names)
        answers = await asyncio.gather(*(resolver.addresses("a", 1) for _ in range(10)))
        assert (names.asked, answers) == (1, [[(V4, "10.0.0.1", 1)]] * 10)

    async def test_one_who_leaves_does_not_take_the_answer_from_the_others(self) -> None:
        names = Names({"a": ["10.0.0.1"]})
        resolver = Resolver(ManualClock(), names)
        leaver = asyncio.create_task(resolver.addresses("a", 1))
        stayer = asyncio.create_task(resolver.addresses("a", 1))
        await asyncio.sleep(0)
        leaver.cancel()
        assert await soon(stayer) == [(V4, "10.0.0.1", 1)]
        assert leaver.cancelled()
        assert names.asked == 1


@given(st.lists(st.sampled_from([V4, V6]), min_size=1, max_size=12))
def test_interleave(families: list[int]) -> None:
    addresses: list[Address] = [(family, str(n), 1) for n, family in enumerate(families)]
    result = interleave(addresses + addresses)
    assert len(result) == min(len(addresses), ADDRESSES_TRIED_MAX)
    assert result[0] == addresses[0]
    for family in (V4, V6):
        mine = [address for address in result if address[0] == family]
        assert mine == [address for address in addresses if address[0] == family][: len(mine)]
    if len(set(families)) == 2:
        assert result[1][0] != result[0][0]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = tls_context()
    authority.configure_trust(context)
    return context


class TestTls:
    def server_tls(self, authority: trustme.CA, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(context)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    async def test_good(self, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
        asked_for: list[str | None] = []
        server_tls = self.server_tls(authority, "provider.test")
        server_tls.sni_callback = lambda _, name, __: asked_for.append(name)
        async with serving(tls=server_tls) as port:
            client = Client()
            await soon(dialer(tls=trusting).connect(Origin(port, "https"), client, connect_s=2, tls_s=2))
            await soon(client.came.wait())
            tls = client.transport.get_extra_info("ssl_object")
            assert (client.received, tls.selected_alpn_protocol()) == (b"echo hello", "http/1.1")
            assert asked_for == ["provider.test"]
            client.transport.abort()
            await soon(client.lost)

    async def test_a_rooted_name_is_the_same_name(self, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
        async with serving(tls=self.server_tls(authority, "provider.test")) as port:
            origin = Origin(port, "https", "provider.test.")
            assert await greet(dialer(tls=trusting), origin) == b"echo hello"

    async def test_an_address_in_the_certificate(self, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
        one = Dialer(Resolver(ManualClock()), tls=trusting, proxies=Proxies())
        async with serving(tls=self.server_tls(authority, "127.0.0.1")) as port:
            assert await greet(one, Origin(port, "https", "127.0.0.1")) == b"echo hello"
        async with serving(tls=self.server_tls(authority, "127.0.0.9")) as port:
            fault = await fault_of(one, Origin(port, "https", "127.0.0.1"))
            assert (fault.kind, "another address" in fault.message) == ("upstream_tls", True)

    async def test_wrong_host(self, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
        async with serving(tls=self.server_tls(authority, "other.test")) as port:
            fault = await fault_of(dialer(tls=trusting), Origin(port, "https"))
            assert (fault.kind, "another host name" in fault.message) == ("upstream_tls", True)

    async def test_untrusted(self, authority: trustme.CA) -> None:
        async with serving(tls=self.server_tls(authority, "provider.test")) as port:
            fault = await fault_of(dialer(tls=tls_context()), Origin(port, "https"))
            assert (fault.kind, "trusted authority" in fault.message) == ("upstream_tls", True)

    async def test_the_trust_store_of_the_environment(
        self, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with authority.cert_pem.tempfile() as path:
            monkeypatch.setenv("SSL_CERT_FILE", path)
            context = tls_context()
        async with serving(tls=self.server_tls(authority, "provider.test")) as port:
            assert await greet(dialer(tls=context), Origin(port, "https")) == b"echo hello"

    async def test_too_old_a_version(self, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
        server_tls = self.server_tls(authority, "provider.test")
        server_tls.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            server_tls.maximum_version = ssl.TLSVersion.TLSv1_1
        async with serving(tls=server_tls) as port:
            assert (await fault_of(dialer(tls=trusting), Origin(port, "https"))).kind == "upstream_tls"

    async def test_not_tls_at_all(self, trusting: ssl.SSLContext) -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            await reader.read()

        async with serving(plain) as port:
            assert (await fault_of(dialer(tls=trusting), Origin(port, "https"))).kind == "upstream_tls"

    async def test_closed_during_the_handshake(self, trusting: ssl.SSLContext) -> None:
        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)

        async with serving(close) as port:
            assert (await fault_of(dialer(tls=trusting), Origin(port, "https"))).kind == "upstream_tls"

    async def test_a_handshake_without_end(self, trusting: ssl.SSLContext) -> None:
        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        async with serving(hang) as port:
            fault = await fault_of(dialer(tls=trusting), Origin(port, "https"), tls_s=0.05)
            assert fault.kind == "upstream_timeout"


class TestProxy:
    """A tunnel for both schemes; the proxy's answer is strict or the connection is not used."""

    @asynccontextmanager
    async def proxy(
        self, answer: bytes | None = b"HTTP/1.1 200 OK\r\n\r\n", target: int = 0, url: str = "http://proxy.test:{}"
    ) -> AsyncIterator[tuple[Proxies, list[bytes]]]:
        """A proxy that answers so (None: not at all) and tunnels to the port `target`, and the heads it was sent."""
        heads: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            if answer is None:
                await asyncio.Event().wait()
                return
            writer.write(answer)
            if not target:
                await writer.drain()
                writer.write_eof()
                await reader.read()
                return
            there, back = await asyncio.open_connection("127.0.0.1", target)
            pumps = asyncio.gather(pump(reader, back), pump(there, writer))
            try:
                await pumps
            finally:
                back.transport.abort()

        async with serving(serve) as port:
            yield Proxies.always(Proxy.parse(url.format(port))), heads

    async def test_good_for_http(self) -> None:
        async with serving() as port, self.proxy(target=port) as (proxies, heads):
            assert await greet(dialer(proxies=proxies), Origin(port)) == b"echo hello"
            authority = b"provider.test:%d" % port
            assert heads == [b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (authority, authority)]

    async def test_good_for_https_with_the_providers_own_certificate(self) -> None:
        ca, context = trustme.CA(), tls_context()
        ca.configure_trust(context)
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("provider.test").configure_cert(server_tls)
        async with serving(tls=server_tls) as port, self.proxy(target=port) as (proxies, heads):
            one = dialer(tls=context, proxies=proxies)
            assert await greet(one, Origin(port, "https")) == b"echo hello"
            fault = await fault_of(one, Origin(port, "https", "other.test"))
            assert fault.kind == "upstream_tls"
            assert len(heads) == 2

    async def test_the_name_is_the_proxys_to_resolve(self) -> None:
        async with serving() as port, self.proxy(target=port) as (proxies, _):
            names = Names({"proxy.test": ["127.0.0.1"]})
            one = Dialer(Resolver(ManualClock(), names), tls=None, proxies=proxies)
            assert await greet(one, Origin(port, host="inside.test")) == b"echo hello"
            assert names.asked == 1

    async def test_ipv6_literals_are_bracketed(self) -> None:
        async with serving() as port, self.proxy(target=port) as (proxies, heads):
            await greet(dialer(proxies=proxies), Origin(port, host="2001:db8::1"))
            assert heads[0].startswith(b"CONNECT [2001:db8::1]:%d HTTP/1.1\r\n" % port)

    async def test_authorization_from_the_url(self) -> None:
        async with serving() as port, self.proxy(target=port, url="http://us%40er:p%3Aw@proxy.test:{}") as (px, heads):
            await greet(dialer(proxies=px), Origin(port))
            assert b"\r\nproxy-authorization: Basic %b\r\n" % base64.b64encode(b"us@er:p:w") in heads[0]

    async def test_an_answer_in_pieces(self) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for byte in b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            await echo(reader, writer)

        async with serving(serve) as port:
            proxies = Proxies.always(Proxy("proxy.test", port))
            assert await greet(dialer(proxies=proxies), Origin(9)) == b"echo hello"

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", "407"),
            (b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>", "502"),
            (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", "302"),
            (b"HTTP/1.1 100 Continue\r\n\r\n", "100"),
            (b"SSH-2.0-OpenSSH_9\r\n", "not valid"),
            (b"HTTP/1.1 200 OK\n\n", "not valid"),
            (b"HTTP/1.1 200 OK\r\nX: a\r\n", "not valid"),
            (b"", "not valid"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: v\r\n" * TUNNEL_HEAD_BYTES_MAX + b"\r\n", "not valid"),
            (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "more than"),
        ],
    )
    async def test_a_bad_answer(self, answer: bytes, words: str) -> None:
        async with self.proxy(answer) as (proxies, heads):
            fault = await fault_of(dialer(proxies=proxies), Origin(9))
            assert (fault.kind, words in fault.message) == ("upstream_connect", True)
            assert len(heads) == 1

    async def test_no_answer(self) -> None:
        async with self.proxy(None) as (proxies, _):
            fault = await fault_of(dialer(proxies=proxies), Origin(9), connect_s=0.1)
            assert fault.kind == "upstream_timeout"

    async def test_no_proxy_there(self) -> None:
        async with serving() as port:
            pass
        fault = await fault_of(dialer(proxies=Proxies.always(Proxy("proxy.test", port))), Origin(9))
        assert fault.kind == "upstream_connect"


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


class TestProxyEnvironment:
    PROXY = "http://proxy.test:3128"

    @pytest.mark.parametrize(
        ("environ", "scheme", "host"),
        [
            ({}, "https", None),
            ({"HTTPS_PROXY": "http://a:1"}, "https", "a"),
            ({"HTTPS_PROXY": "http://a:1"}, "http", None),
            ({"HTTP_PROXY": "http://a:1"}, "http", "a"),
            ({"HTTP_PROXY": "http://a:1", "HTTPS_PROXY": "b:2"}, "https", "b"),
            ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "https", "a"),
            ({"https_proxy": "", "HTTPS_PROXY": " http://b:1 "}, "https", "b"),
            ({"HTTPS_PROXY": "http://a:1", "no_proxy": "provider.test"}, "https", None),
            ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "provider.test"}, "https", None),
        ],
    )
    def test_variables(self, environ: Mapping[str, str], scheme: str, host: str | None) -> None:
        proxy = Proxies.from_environment(environ).before(Origin(443, scheme))
        assert (proxy and proxy.host) == host

    @pytest.mark.parametrize(
        ("no_proxy", "host", "direct"),
        [
            ("*", "api.example.com", True),
            ("example.com", "example.com", True),
            ("example.com", "api.example.com", True),
            ("example.com", "API.Example.COM.", True),
            (".example.com", "api.example.com", True),
            (".example.com", "example.com", True),
            ("*.example.com", "api.example.com", True),
            ("EXAMPLE.com.", "api.example.com", True),
            ("example.com", "badexample.com", False),
            ("example.com", "example.com.evil.test", False),
            ("api.example.com", "example.com", False),
            ("a.test, example.com", "example.com", True),
            ("a.test example.com", "example.com", True),
            ("example.com:443", "example.com", True),
            ("example.com:8443", "example.com", False),
            (",, ,", "example.com", False),
            (".", "example.com", False),
            ("10.0.0.0/8", "10.1.2.3", True),
            ("10.0.0.1/8", "10.1.2.3", True),
            ("10.0.0.0/8", "11.1.2.3", False),
            ("10.1.2.3", "10.1.2.3", True),
            ("10.1.2.3:443", "10.1.2.3", True),
            ("10.1.2.3:80", "10.1.2.3", False),
            ("10.1.2", "10.1.2.3", False),
            ("2001:db8::/32", "2001:db8::5", True),
            ("2001:db8::5", "2001:db8::5", True),
            ("[2001:db8::5]", "2001:db8::5", True),
            ("[2001:db8::5]:443", "2001:db8::5", True),
            ("[2001:db8::5]:80", "2001:db8::5", False),
            ("2001:db8::6", "2001:db8::5", False),
            ("", "localhost", True),
            ("", "gpu.localhost", True),
            ("", "127.0.0.53", True),
            ("", "::1", True),
            ("", "notlocalhost", False),
            ("", "10.0.0.1", False),
        ],
    )
    def test_exemptions(self, no_proxy: str, host: str, direct: bool) -> None:
        proxies = Proxies.from_environment({"HTTPS_PROXY": self.PROXY, "NO_PROXY": no_proxy})
        assert (proxies.before(Origin(443, "https", host)) is None) == direct

    @pytest.mark.parametrize(
        "url", ["https://u:pw@a:1", "socks5://a:1", "http://:1", "http://a:x", "a:99999", "http://[::1"]
    )
    def test_a_proxy_that_cannot_be_used_is_said_without_its_password(self, url: str) -> None:
        with pytest.raises(ValueError, match="HTTPS_PROXY: the proxy's URL") as caught:
            Proxies.from_environment({"HTTPS_PROXY": url})
        assert url not in str(caught.value)

    def test_the_password_does_not_show(self) -> None:
        proxy = Proxy.parse("http://user:secret@a:1")
        hidden = (b"user:secret", base64.b64encode(b"user:secret"))
        assert not any(word.decode() in shown for word, shown in itertools.product(hidden, (repr(proxy), str(proxy))))
