"""A collector that is spoken to in OTLP over HTTP (http/protobuf), over connections of our own pool.

So it goes through the same proxies and the same TLS as a provider, a hanging collector holds no thread, and nothing
more is loaded than a worker has anyway. Knows of spans only how to have them encoded.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from edgegw import __version__
from edgegw.clock import Clock
from edgegw.errors import UpstreamFault
from edgegw.http.dial import Dialer, Resolver, tls_context
from edgegw.http.proxies import Proxies
from edgegw.http.upstream import Pool, PoolLimits
from edgegw.http.upstream_connection import Connection
from edgegw.providers.retry_after import retry_after_s
from edgegw.telemetry.export import AwayError, RefusedError
from edgegw.telemetry.otlp import Encoder, rejected
from edgegw.telemetry.spans import Told
from edgegw.telemetry.variables import Otlp
from edgegw.telemetry.wording import Wording

CONNECT_S = 5.0
KEEP_ALIVE_S = 30.0
# Requests encoded in one go: about a millisecond in which the control process does nothing else.
SLICE = 64
# Bytes compressed in one go: about as long.
SLICE_BYTES = 128 * 1024
# A tenth of a batch is left, in half the time of level 6, which leaves little less.
GZIP_LEVEL = 1
REPLY_BYTES_MAX = 64 * 1024
# The OTLP specification ("Failures"): these ask for another try, all others do not.
TRY_AGAIN = frozenset((429, 502, 503, 504))
_PORTS = {"http": 80, "https": 443}
T = TypeVar("T")
_WORDS = {
    "upstream_tls": "no TLS connection to the collector",
    "upstream_cut": "the collector closed the connection",
    "upstream_garbage": "what the collector says is not HTTP",
    "upstream_timeout": "no connection to the collector in time",
}


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class _Answer:
    """The sink of one reply."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.headers: Mapping[bytes, bytes] = {}
        self.body = b""

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        if len(self.body) < REPLY_BYTES_MAX:
            self.body += data

    def on_end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def on_fault(self, fault: UpstreamFault) -> None:
        if not self.over.done():
            self.over.set_exception(fault)


class OtlpHttp:
    """Sends messages of any signal. Certificates are read when the first connection is made, and again after TLS has
    failed: they may come late, and be renewed."""

    def __init__(self, otlp: Otlp, proxies: Proxies, clock: Clock) -> None:
        url = urlsplit(otlp.url)
        self._origin = _Origin(url.scheme, url.hostname or "", url.port or _PORTS[url.scheme])
        self._otlp = otlp
        self._proxies = proxies
        self._clock = clock
        self._pool: Pool | None = None
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._head = _head(otlp, url.netloc.rpartition("@")[2], target)

    async def request(self, body: bytes) -> bytes:
        """What `post` sends of a message."""
        if self._otlp.gzip:
            body = await _zipped(body)
        return self._head % len(body) + body

    async def post(self, packed: bytes) -> int:
        """How much of it was not taken. Raises AwayError or RefusedError."""
        pool = self._pool = self._pool or self._connected()
        answer, timeout_s = _Answer(), self._otlp.timeout_s
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await pool.open(packed, answer)
                await answer.over
            connection = None
        except TimeoutError:
            raise AwayError(f"no answer from the collector within {timeout_s:g} s") from None
        except UpstreamFault as fault:
            connection = None
            if fault.kind == "upstream_tls":
                await self.close()
            raise AwayError(_WORDS.get(fault.kind, "no connection to the collector")) from None
        finally:
            if connection is not None:
                connection.abort()
        return self._judged(answer)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def _connected(self) -> Pool:
        """Raises AwayError for certificates that cannot be used; it does not say what is in them."""
        tls = _tls(self._otlp) if self._origin.scheme == "https" else None
        connect_s = min(CONNECT_S, self._otlp.timeout_s)
        limits = PoolLimits(connections_max=1, keep_alive_s=KEEP_ALIVE_S, connect_s=connect_s, tls_s=CONNECT_S)
        dialer = Dialer(Resolver(self._clock), tls=tls, proxies=self._proxies)
        return Pool(self._origin, limits=limits, dialer=dialer, clock=self._clock)

    def _judged(self, answer: _Answer) -> int:
        if 200 <= answer.status < 300:
            return rejected(answer.body)
        if answer.status in TRY_AGAIN:
            after_s = retry_after_s(answer.headers, self._clock.wall_ns() / 1e9)
            raise AwayError(f"the collector answered {answer.status}", after_s)
        raise RefusedError(f"the collector answered {answer.status}")


async def worked_out(batch: Sequence[Told], work: Callable[[Sequence[Told]], list[T]]) -> list[T]:
    """What `work` makes of a batch, slice by slice; the loop is everybody's, and leases are waited for at it. Contents
    are read in a thread: one that is long takes a while by itself."""
    done: list[T] = []
    for start in range(0, len(batch), SLICE):
        some = batch[start : start + SLICE]
        if any(told.content is not None for told in some):
            done += await asyncio.to_thread(work, some)
        else:
            done += work(some)
            await asyncio.sleep(0)
    return done


class HttpCollector(OtlpHttp):
    """Sends spans."""

    def __init__(self, otlp: Otlp, proxies: Proxies, wording: Wording, encoder: Encoder, clock: Clock) -> None:
        super().__init__(otlp, proxies, clock)
        self._wording = wording
        self._encoder = encoder

    async def pack(self, batch: Sequence[Told]) -> bytes:
        return await self.request(self._encoder.request(await worked_out(batch, self._encoded)))

    def _encoded(self, batch: Sequence[Told]) -> list[bytes]:
        span, spans_of = self._encoder.span, self._wording.spans_of
        return [span(each) for told in batch for each in spans_of(told)]


async def _zipped(body: bytes) -> bytes:
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    pieces = []
    for start in range(0, len(body), SLICE_BYTES):
        pieces.append(compressor.compress(body[start : start + SLICE_BYTES]))
        await asyncio.sleep(0)
    return b"".join((*pieces, compressor.flush()))


def _head(otlp: Otlp, authority: str, target: str) -> bytes:
    """The head of every request, with a hole for the length of its body."""
    fields = {
        "host": authority,
        "user-agent": f"OTel-OTLP-Exporter-edgegw/{__version__}",
        **dict(otlp.headers),
        "content-type": "application/x-protobuf",
        **({"content-encoding": "gzip"} if otlp.gzip else {}),
    }
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("ascii").replace(b"%", b"%%") + b"\r\ncontent-length: %d\r\n\r\n"


def _tls(otlp: Otlp) -> ssl.SSLContext:
    context = tls_context()
    try:
        if otlp.certificate is not None:
            context = ssl.create_default_context(cafile=otlp.certificate)
        if otlp.client_certificate is not None:
            context.load_cert_chain(otlp.client_certificate, otlp.client_key)
    except OSError as error:  # ssl.SSLError is one
        raise AwayError(f"the certificates for the collector cannot be used: {error.strerror or error}") from None
    return context
