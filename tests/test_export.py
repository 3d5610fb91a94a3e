"""Spans on their way: batches, second tries, drops that are counted, and collectors of every temper."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from collector import Answer, Collector, closed_port
from span_records import plain_told, wording

from edgegw.app import SystemClock
from edgegw.clock import ManualClock
from edgegw.http.proxies import Proxies
from edgegw.telemetry.collector import HttpCollector
from edgegw.telemetry.export import AwayError, Exporter, RefusedError
from edgegw.telemetry.otlp import Encoder
from edgegw.telemetry.spans import Told
from edgegw.telemetry.variables import Otlp

WAIT_S = 10.0


class Place:
    """A destination that does what it is told: each of `outcomes` is raised, or returned; then all is taken."""

    def __init__(self, *outcomes: Exception | int) -> None:
        self.outcomes = list(outcomes)
        self.batches: list[list[Told]] = []
        self.tries = 0
        self.closed = False
        self.gate: asyncio.Event | None = None

    async def pack(self, batch: Sequence[Told]) -> Any:
        return list(batch)

    async def post(self, packed: Any) -> int:
        self.tries += 1
        if self.gate is not None:
            await self.gate.wait()
        outcome = self.outcomes.pop(0) if self.outcomes else 0
        if isinstance(outcome, Exception):
            raise outcome
        self.batches.append(packed)
        return outcome

    async def close(self) -> None:
        self.closed = True


async def until(good: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not good():  # noqa: ASYNC110 (what is waited for belongs to the code under test)
            await asyncio.sleep(0.001)


@asynccontextmanager
async def exporting(destination: Any, **bounds: Any) -> AsyncIterator[Exporter]:
    clock = bounds.pop("clock", None) or SystemClock()
    known: dict[str, Any] = {"delay_s": 0.01, "queue_spans_max": 2048, "batch_spans_max": 512, "timeout_s": 30.0}
    exporter = Exporter(destination, clock, lambda: 0.5, **{**known, **bounds})
    running = asyncio.create_task(exporter.run())
    try:
        yield exporter
    finally:
        await exporter.stop(WAIT_S)
        await asyncio.gather(running, return_exceptions=True)


# -- the queue --


async def test_a_batch_goes_when_it_is_full_or_the_delay_is_over() -> None:
    place = Place()
    async with exporting(place, delay_s=60, batch_spans_max=6) as exporter:
        for number in range(7):  # of two spans each
            exporter.offer(plain_told(number))
        await until(lambda: len(place.batches) == 2)
        assert [len(batch) for batch in place.batches] == [3, 3]
        assert exporter.waiting == 2
    assert [len(batch) for batch in place.batches] == [3, 3, 1]  # the rest at the stop
    assert (exporter.tally.sent, exporter.tally.dropped, exporter.waiting) == (14, {}, 0)
    assert place.closed
    async with exporting(Place(), delay_s=0.001) as exporter:
        exporter.offer(plain_told())
        await until(lambda: exporter.tally.sent == 2)


async def test_what_the_queue_cannot_hold_is_dropped_and_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    place, clock = Place(), ManualClock()
    place.gate = asyncio.Event()
    async with exporting(place, clock=clock, queue_spans_max=10, batch_spans_max=4) as exporter:
        exporter.offer(plain_told())
        exporter.offer(plain_told())
        await until(lambda: place.tries == 1)  # four are under way, and count
        for number in range(20):
            exporter.offer(plain_told(number))
        assert exporter.waiting == 10
        assert exporter.tally.dropped == {"queue_full": 34}
        assert len(caplog.records) == 1
        clock.jump(61)
        exporter.offer(plain_told())
        assert [record.getMessage() for record in caplog.records] == [
            "2 spans dropped (queue_full): more come than are taken",
            "34 spans dropped (queue_full): more come than are taken",
        ]
        place.gate.set()
    assert exporter.tally.sent == 10


async def test_a_destination_that_is_away_is_asked_again_until_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgegw.telemetry.export.BACKOFF_MIN_S", 0.001)
    place = Place(*[AwayError("not now")] * 3)
    async with exporting(place) as exporter:
        exporter.offer(plain_told())
        await until(lambda: exporter.tally.sent == 2)
        assert place.tries == 4
    place = Place(*[AwayError("not now")] * 1000)
    async with exporting(place, timeout_s=0.05) as exporter:
        exporter.offer(plain_told())
        await until(lambda: exporter.tally.dropped == {"unreachable": 2})
        assert 2 < place.tries < 1000
        assert exporter.waiting == 0
    assert caplog.records[-1].getMessage() == "2 spans dropped (unreachable): not now"


async def test_a_pause_that_it_asks_for_is_kept_or_not_waited_for() -> None:
    place = Place(AwayError("busy", after_s=0.05))
    async with exporting(place) as exporter:
        begun_s = time.monotonic()
        exporter.offer(plain_told())
        await until(lambda: exporter.tally.sent == 2)
        assert time.monotonic() - begun_s >= 0.05
    place = Place(AwayError("busy", after_s=3600))
    async with exporting(place) as exporter:
        exporter.offer(plain_told())
        await until(lambda: exporter.tally.dropped == {"unreachable": 2})
        assert place.tries == 1


async def test_what_is_refused_or_a_defect_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    place = Place(RefusedError("no"), KeyError("ours"), 1)
    async with exporting(place) as exporter:
        for _ in range(3):
            exporter.offer(plain_told())
            tries = place.tries + 1
            await until(lambda tries=tries: place.tries == tries and not exporter.waiting)  # type: ignore[misc]
    assert exporter.tally.dropped == {"refused": 2, "failed": 2, "rejected": 1}
    assert exporter.tally.sent == 1
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1


async def test_at_the_stop_each_batch_gets_one_try_and_no_pause() -> None:
    place = Place(*[AwayError("not now")] * 100)
    begun_s = time.monotonic()
    async with exporting(place, delay_s=60, batch_spans_max=4) as exporter:
        for number in range(8):
            exporter.offer(plain_told(number))
        await until(lambda: place.tries == 1)
    assert time.monotonic() - begun_s < 2
    assert place.tries in (4, 5)  # the first batch was waiting for its second
    assert exporter.tally.dropped == {"unreachable": 16}


async def test_a_destination_that_hangs_does_not_hold_up_the_stop() -> None:
    place = Place()
    place.gate = asyncio.Event()
    exporter = Exporter(
        place, SystemClock(), lambda: 0.5, delay_s=0.0, queue_spans_max=100, batch_spans_max=2, timeout_s=30
    )
    running = asyncio.create_task(exporter.run())
    for number in range(3):
        exporter.offer(plain_told(number))
    await until(lambda: place.tries == 1)
    await exporter.stop(0.05)
    assert exporter.tally.dropped == {"stopped": 6}
    assert running.cancelled()
    assert place.closed


# -- a collector by HTTP --


def http(url: str, **fields: Any) -> HttpCollector:
    about = (("service.name", "edgegw"),), "edgegw", "0.1.0", "https://schema"
    fields = {"timeout_s": 5.0, **fields}
    return HttpCollector(Otlp(f"{url}/v1/traces", **fields), Proxies(), wording(), Encoder(*about), SystemClock())


async def send(collector: HttpCollector, *told: Told) -> int:
    try:
        return await collector.post(await collector.pack(told))
    finally:
        await collector.close()


@pytest.mark.parametrize("gzip", [False, True])
async def test_a_batch_arrives_whole(gzip: bool) -> None:
    with Collector() as peer:
        collector = http(peer.url, gzip=gzip, headers=(("authorization", "Bearer x%y"), ("x-scope", "a")))
        told = [plain_told(number) for number in range(200)]
        packed = await collector.pack(told)
        assert len(packed) < 60_000 if gzip else len(packed) > 200_000
        assert await collector.post(packed) == 0
        assert await collector.post(await collector.pack(told[:1])) == 0  # over the same connection
        await collector.close()
        assert len(peer.spans) == 402
        assert len({span.id for span in peer.spans}) == 400
        path, headers = peer.requests[0]
        assert path == "/v1/traces"
        assert (headers["authorization"], headers["x-scope"]) == ("Bearer x%y", "a")
        assert headers["host"] == f"localhost:{peer.port}"
        assert headers["user-agent"].startswith("OTel-OTLP-Exporter-edgegw/")
        assert headers.get("content-encoding") == ("gzip" if gzip else None)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_collector_that_asks_for_another_try(status: int) -> None:
    with Collector(Answer(status, {"retry-after": "7"})) as peer:
        with pytest.raises(AwayError, match=str(status)) as error:
            await send(http(peer.url), plain_told())
        assert error.value.after_s == 7


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 500, 301])
async def test_a_collector_that_does_not_want_it(status: int) -> None:
    with Collector(Answer(status, {"location": "http://elsewhere"})) as peer, pytest.raises(RefusedError):
        await send(http(peer.url), plain_told())


async def test_a_collector_that_takes_some() -> None:
    with Collector(Answer(rejected=1)) as peer:
        assert await send(http(peer.url), plain_told()) == 1


async def test_a_collector_that_is_not_there() -> None:
    with pytest.raises(AwayError, match="no connection"):
        await send(http(f"http://127.0.0.1:{closed_port()}"), plain_told())


async def test_a_collector_that_hangs() -> None:
    with Collector(Answer(hang=True), Answer(hang=True)) as peer:
        collector = http(peer.url, timeout_s=0.1)
        packed = await collector.pack([plain_told()])
        for _ in range(2):  # and it does not keep its connection
            with pytest.raises(AwayError, match=r"within 0\.1 s"):
                await collector.post(packed)
        assert await collector.post(packed) == 0
        await collector.close()


async def test_a_collector_that_has_closed_the_connection_meanwhile() -> None:
    peer = Collector()
    with peer:
        collector = http(peer.url)
        assert await collector.post(await collector.pack([plain_told(1)])) == 0
    with Collector(port=peer.port) as again:
        assert await collector.post(await collector.pack([plain_told(2)])) == 0
        assert len(again.spans) == 2
    await collector.close()


async def test_a_collector_over_tls_is_known_by_its_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    context, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "ca.pem"
    authority.issue_cert("localhost").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.cert_pem.write_to_path(str(ours))
    mine, key = tmp_path / "me.pem", tmp_path / "me.key"
    client = authority.issue_cert("gateway@example.org")
    client.cert_chain_pems[0].write_to_path(str(mine))
    client.private_key_pem.write_to_path(str(key))
    with Collector(tls=context) as peer:
        trusted = http(peer.url, certificate=str(ours), client_certificate=str(mine), client_key=str(key))
        assert await send(trusted, plain_told()) == 0
        with pytest.raises(AwayError, match="no TLS connection"):
            await send(http(peer.url), plain_told())


async def test_certificates_may_come_late_and_be_renewed(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "ca.pem"
    authority.issue_cert("localhost").configure_cert(context)
    with Collector(tls=context) as peer:
        collector = http(peer.url, certificate=str(ours))
        packed = await collector.pack([plain_told()])
        with pytest.raises(AwayError, match="certificates for the collector cannot be used"):
            await collector.post(packed)
        other.cert_pem.write_to_path(str(ours))
        with pytest.raises(AwayError, match="no TLS connection"):
            await collector.post(packed)
        authority.cert_pem.write_to_path(str(ours))
        assert await collector.post(packed) == 0
        await collector.close()


async def test_a_slow_collector_costs_nothing_but_drops() -> None:
    """More is offered than it takes: what is offered returns at once, and everything is accounted for."""
    with Collector(*[Answer(hang=True)] * 100) as peer:
        collector = http(peer.url, timeout_s=0.05)
        async with exporting(collector, queue_spans_max=20, batch_spans_max=10, timeout_s=0.1) as exporter:
            begun_s = time.process_time()
            for number in range(1000):
                exporter.offer(plain_told(number % 7))
            assert time.process_time() - begun_s < 0.5
            await until(lambda: not exporter.waiting)
        assert exporter.tally.sent == 0
        assert sum(exporter.tally.dropped.values()) == 2000
