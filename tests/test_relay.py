"""The relay: whatever way an upstream's bytes are cut, the client gets the same stream, once, and never a false end.

A real upstream connection (its parser and its fast lane) and a real Reply; only the two sockets are stand-ins.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.clock import ManualClock
from edgegw.dialects.openai_chat_stream import OpenAIChatStream
from edgegw.http.date import Date
from edgegw.http.outbox import Outbox
from edgegw.http.reply import Reply
from edgegw.http.request import Request
from edgegw.http.upstream_connection import Connection
from edgegw.http.watch import Watch
from edgegw.leg import ERROR_BODY_BYTES_MAX, LegWaits, PlainLeg
from edgegw.relay import GATE_WAIT_S, StreamLeg

CRLF = "\r\n"
WAITS = LegWaits(first_byte_s=10.0, idle_s=20.0)


def event(**delta: Any) -> bytes:
    finish = delta.pop("finish", None)
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return _data({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


ROLE = event(role="assistant", content="")
WORDS = [event(content=word) for word in ("Hello", " w\u00f6rld", ' "error": ', " [DONE] ", " bye")]
FINISH = event(finish="stop")
USAGE = _data(
    {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }
)
DONE = b"data: [DONE]\n\n"
ERROR = _data({"error": {"message": "overloaded", "type": "server_error", "code": None}})
STREAM = [ROLE, *WORDS, FINISH, USAGE, DONE]


class FakeTransport:
    """Either end's socket: remembers what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = self.reading_paused = False

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    close = abort

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False


class FakePool:
    """The owner of the connection."""

    def __init__(self) -> None:
        self.kept = self.forgotten = 0

    def keep(self, connection: Connection) -> None:
        self.kept += 1

    def forget(self, connection: Connection, state: object) -> None:
        self.forgotten += 1

    def redial(self, connection: Connection) -> None:
        raise AssertionError("a fresh connection is never redialled")

    def gone(self, connection: Connection) -> None:
        pass


class FakeClient:
    """The client's connection, as far as a Reply knows it."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.write_paused = False
        self.outbox = Outbox()
        self.date = Date(lambda: 0)
        self.finished_with: bool | None = None

    def finished(self, reply: Reply, keep_alive: bool) -> None:
        self.finished_with = keep_alive

    def abandon(self) -> None:
        pass

    def break_off(self, reply: Reply) -> None:
        raise AssertionError("nothing fails here")


class Rig:
    """One attempt under way."""

    def __init__(self, *, withholding: bool = False, stream: bool = True, http_1_0: bool = False) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.watch = Watch(self.loop, self.clock.now)
        self.client = FakeClient()
        self.reply = Reply(self.client, Request(method=b"POST", http_1_0=http_1_0))
        self.reader = OpenAIChatStream(withholding=withholding)
        deadline_s = self.clock.now() + 600
        self.leg: StreamLeg | PlainLeg
        if stream:
            self.leg = StreamLeg(
                self.reply,
                self.watch,
                self.clock.now,
                WAITS,
                deadline_s,
                self.reader,
                lambda: b"x-f: 1\r\n",
            )
        else:
            self.leg = PlainLeg(self.reply, self.watch, self.clock.now, WAITS, deadline_s)
        self.pool = FakePool()
        self.upstream = FakeTransport()
        self.connection = Connection(cast(Any, self.pool), Outbox(), head_bytes_max=65536, informational_max=10)
        self.connection.connection_made(cast(Any, self.upstream))
        self.connection.start(b"POST / HTTP/1.1\r\n\r\n", self.leg)
        self.leg.sent(self.connection)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()

    def feed(self, *pieces: bytes) -> Rig:
        for piece in pieces:
            if not self.upstream.aborted:
                self.connection.data_received(piece)
        return self

    def pass_time(self, seconds: float) -> None:
        self.clock.jump(seconds)
        self.watch.now_s = self.clock.now()
        if self.leg.expires_s <= self.clock.now():
            self.leg.expire(self.clock.now())

    @property
    def sent(self) -> bytes:
        return b"".join(self.client.transport.written)

    @property
    def body(self) -> bytes:
        """What the client has of the stream, chunks taken off."""
        raw, out = self.sent.partition(b"\r\n\r\n")[2], b""
        while raw:
            size, _, raw = raw.partition(b"\r\n")
            out += raw[: int(size, 16)]
            assert raw[int(size, 16) :].startswith(b"\r\n")
            raw = raw[int(size, 16) + 2 :]
        return out

    @property
    def whole(self) -> bytes:
        """That, and the end that is sent when the books are closed."""
        assert isinstance(self.leg, StreamLeg)
        return self.body + self.leg.last


def head(**fields: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in fields.items()}
    lines = {"content-type": "text/event-stream", "transfer-encoding": "chunked", **given}
    return f"HTTP/1.1 200 OK{CRLF}{''.join(f'{name}: {value}{CRLF}' for name, value in lines.items())}{CRLF}".encode()


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


LAST = b"0\r\n\r\n"
WIRE = head() + chunked(*STREAM) + LAST


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % len(data) for place in at)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(st.integers(0, len(WIRE)), max_size=40), st.booleans())
def test_any_segmentation_gives_the_client_the_same_stream(at: list[int], withholding: bool) -> None:
    with Rig(withholding=withholding) as rig:
        rig.feed(*cut(WIRE, at))
        leg = rig.leg
        assert isinstance(leg, StreamLeg)
        want = b"".join(STREAM[:-2] if withholding else STREAM[:-1])
        assert rig.body + leg.last == want + DONE
        assert leg.last.endswith(DONE)
        assert leg.fault is None
        assert rig.leg.over
        assert rig.reader.usage is not None
        assert (rig.reader.usage.input, rig.reader.usage.output) == (7, 5)
        assert rig.reader.finish_reason == "stop"
        assert rig.pool.kept == 1
        assert not rig.upstream.aborted


@pytest.mark.parametrize("withholding", [False, True])
def test_one_chunk_a_read_takes_the_fast_lane_and_says_the_same(withholding: bool) -> None:
    with Rig(withholding=withholding) as rig:
        rig.feed(head(), *(chunked(part) for part in STREAM[:-1]), chunked(DONE) + LAST)
        leg = rig.leg
        assert isinstance(leg, StreamLeg)
        assert leg._passed_events >= 4
        assert rig.body + leg.last == b"".join(STREAM[:-2] if withholding else STREAM[:-1]) + DONE
        assert rig.reader.usage is not None
        assert rig.reader.usage.total == 12
        assert rig.reader.finish_reason == "stop"


def test_nothing_is_shown_before_content_and_then_all_of_it_in_one_write() -> None:
    with Rig() as rig:
        rig.feed(head(), chunked(b": ping\n\n"), chunked(ROLE))
        assert rig.sent == b""
        assert not rig.reply.started
        rig.feed(chunked(WORDS[0]))
        assert len(rig.client.transport.written) == 1
        assert rig.body == b": ping\n\n" + ROLE + WORDS[0]


def test_an_error_before_content_can_still_be_retried() -> None:
    for pieces in ([ROLE, ERROR], [ERROR], [ERROR, DONE]):
        with Rig() as rig:
            rig.feed(head() + chunked(*pieces))
            assert rig.leg.fault is not None
            assert not rig.reply.started
            assert rig.sent == b""
            assert rig.leg.over


def test_an_error_after_content_is_not_passed_and_ends_the_leg() -> None:
    with Rig() as rig:
        rig.feed(head(), *(chunked(part) for part in (ROLE, WORDS[0], WORDS[1], ERROR, WORDS[2])))
        assert rig.leg.fault is not None
        assert rig.reply.started
        assert ERROR not in rig.body
        assert WORDS[2] not in rig.body
        assert rig.upstream.aborted


def test_content_and_error_in_one_read_were_never_shown() -> None:
    with Rig() as rig:
        rig.feed(head() + chunked(ROLE, WORDS[0], ERROR))
        assert rig.leg.fault is not None
        assert not rig.reply.started


@pytest.mark.parametrize("after", [1, 2, 3, len(STREAM) - 3])
@pytest.mark.parametrize("how", ["clean", "cut", "reset"])
def test_a_stream_that_ends_too_early_never_looks_complete(after: int, how: str) -> None:
    with Rig() as rig:
        rig.feed(head(), *(chunked(part) for part in STREAM[:after]))
        if how == "clean":
            rig.feed(LAST)
        elif how == "cut":
            rig.connection.eof_received()
        else:
            rig.connection.connection_lost(ConnectionResetError())
        assert rig.leg.fault is not None
        assert rig.leg.over
        assert DONE not in rig.body
        assert LAST not in rig.sent
        assert rig.reply.started is (after > 1)


@pytest.mark.parametrize("data", [b'{"message":"bad"}', b'{"error":{"message":"bad"}}', b"bad", b'"bad"'])
@pytest.mark.parametrize("field", [b"event: error", b"event:error"])
def test_an_event_that_is_called_an_error_is_one(data: bytes, field: bytes) -> None:
    with Rig() as rig:
        rig.feed(head(), chunked(ROLE, WORDS[0]), chunked(field + b"\ndata: " + data + b"\n\n"), chunked(DONE), LAST)
        assert rig.body == ROLE + WORDS[0]
        assert rig.leg.fault is not None
        assert rig.leg.fault.message == "bad"


def test_empty_data_are_a_heartbeat_and_do_not_reach_the_client() -> None:
    with Rig() as rig:
        rig.feed(head(), *map(chunked, (b"data:\n\n", ROLE, WORDS[0], b"data: \n\n", b"data\n\n", FINISH, DONE)), LAST)
        assert rig.leg.fault is None
        assert rig.whole == ROLE + WORDS[0] + FINISH + DONE


def test_what_follows_the_terminator_is_dropped() -> None:
    with Rig() as rig:
        rig.feed(head(), *(chunked(part) for part in [*STREAM, event(content="evil")]), LAST)
        leg = rig.leg
        assert isinstance(leg, StreamLeg)
        assert b"evil" not in rig.sent + leg.last


def test_a_terminator_without_the_end_of_the_message_costs_the_connection_not_the_answer() -> None:
    with Rig() as rig:
        rig.feed(head(), *(chunked(part) for part in STREAM))
        assert rig.leg.over
        assert rig.leg.fault is None
        rig.pass_time(3)
        assert rig.upstream.aborted


def test_the_waits() -> None:
    with Rig() as rig:  # for the head
        rig.pass_time(9)
        assert not rig.leg.over
        rig.pass_time(2)
        assert rig.leg.fault is not None
        assert rig.leg.fault.kind == "upstream_timeout"
    with Rig() as rig:  # between events
        rig.feed(head(), chunked(ROLE), chunked(WORDS[0]))
        rig.pass_time(15)
        rig.feed(chunked(b": ping\n\n"))  # a heartbeat counts
        rig.pass_time(15)
        assert not rig.leg.over
        rig.pass_time(6)
        assert rig.leg.fault is not None
        assert rig.leg.fault.kind == "upstream_stalled"
        assert rig.upstream.aborted


def test_the_gate_opens_after_a_while_without_content() -> None:
    with Rig() as rig:
        rig.feed(head(), chunked(ROLE))
        rig.pass_time(GATE_WAIT_S + 0.1)
        assert rig.reply.started
        assert rig.body == ROLE


def test_a_defect_of_ours_at_the_gate_ends_the_leg_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(_: StreamLeg) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(StreamLeg, "_commit", defect)
    with Rig() as rig:
        rig.feed(head(), chunked(ROLE))
        rig.pass_time(GATE_WAIT_S + 0.1)
        assert rig.leg.over
        assert rig.leg.fault is not None
        assert rig.leg.fault.kind == "internal"
        assert type(rig.leg.fault.__cause__) is ZeroDivisionError
        assert rig.upstream.aborted


def test_a_wait_that_raises_is_told_once_and_harms_no_other() -> None:
    class Waiter:
        def __init__(self, failing: bool) -> None:
            self.expires_s = 0.0
            self.failing = failing
            self.expired = 0

        def expire(self, now_s: float) -> None:
            self.expired += 1
            if self.failing:
                raise ZeroDivisionError

    complaints: list[BaseException] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    watch = Watch(loop, ManualClock().now)
    waiters = [Waiter(failing) for failing in (True, False, False)]
    for waiter in waiters:
        watch.add(waiter)
    for _ in range(2):
        watch._tick()
    watch.stop()
    loop.close()
    assert [waiter.expired for waiter in waiters] == [1, 2, 2]
    assert [type(error) for error in complaints] == [ZeroDivisionError]


def test_a_slow_client_is_not_held_against_the_provider() -> None:
    with Rig() as rig:
        rig.feed(head(), chunked(ROLE), chunked(WORDS[0]))
        assert rig.reply.on_pause is not None
        rig.reply.on_pause()
        rig.client.write_paused = True
        assert rig.upstream.reading_paused
        rig.pass_time(25)
        rig.pass_time(25)
        assert rig.leg.fault is None
        assert rig.reply.on_resume is not None
        rig.reply.on_resume()
        assert not rig.upstream.reading_paused


def test_a_client_that_leaves_takes_the_upstream_with_it() -> None:
    with Rig() as rig:
        rig.feed(head(), chunked(ROLE), chunked(WORDS[0]))
        rig.reply.lost()
        assert rig.upstream.aborted
        assert rig.leg.gone
        assert rig.leg.over


@pytest.mark.parametrize("document", [b'{"error":{"message":"no"}}', b"<html>captive</html>", b"[1]"])
def test_a_document_instead_of_a_stream_is_collected_not_shown(document: bytes) -> None:
    with Rig() as rig:
        rig.feed(head() + chunked(document) + LAST)
        assert rig.leg.body == document
        assert rig.sent == b""


def test_a_compressed_stream_is_decompressed_as_it_comes() -> None:
    packed = gzip.compress(b"".join(STREAM))
    dice = random.Random(7)
    pieces = cut(packed, [dice.randrange(len(packed)) for _ in range(20)])
    with Rig() as rig:
        rig.feed(head(content_encoding="gzip"), *(chunked(piece) for piece in pieces), LAST)
        assert rig.whole == b"".join(STREAM)


def test_several_members_in_one_read_are_one_stream() -> None:
    packed = b"".join(map(gzip.compress, STREAM))
    with Rig() as rig:
        rig.feed(head(content_encoding="gzip") + chunked(packed) + LAST)
        assert rig.whole == b"".join(STREAM)


@pytest.mark.parametrize("stream", [True, False])
def test_a_bomb_is_not_unpacked(stream: bool) -> None:
    with Rig(stream=stream) as rig:
        rig.feed(head(content_encoding="gzip") + chunked(gzip.compress(bytes(100_000_000), 1)) + LAST)
        assert rig.leg.fault is not None
        assert "too large" in rig.leg.fault.message
        assert rig.upstream.aborted


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("size", [ERROR_BODY_BYTES_MAX - 1, ERROR_BODY_BYTES_MAX + 1, 1_000_000])
def test_of_an_error_without_end_the_beginning_is_enough(stream: bool, size: int) -> None:
    text = b'{"error":' + b"x" * size
    with Rig(stream=stream) as rig:
        rig.feed(head().replace(b"200 OK", b"400 No"), chunked(text[:100]), chunked(text[100:]))
        if not rig.leg.over:  # it may go on for ever, but not for longer than an answer may be silent
            rig.pass_time(WAITS.idle_s + 1)
        assert (rig.leg.status, rig.leg.fault, rig.leg.over) == (400, None, True)
        assert rig.leg.body == text[:ERROR_BODY_BYTES_MAX]
        assert rig.upstream.aborted


def test_http_1_0_clients_get_no_chunks() -> None:
    with Rig(http_1_0=True) as rig:
        rig.feed(head(), *(chunked(part) for part in STREAM), LAST)
        leg = rig.leg
        assert isinstance(leg, StreamLeg)
        assert rig.sent.partition(b"\r\n\r\n")[2] + leg.last == b"".join(STREAM)


def test_a_plain_reply_is_collected_whole() -> None:
    with Rig(stream=False) as rig:
        rig.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", b"56789")
        assert rig.leg.body == b"0123456789"
        assert rig.leg.fault is None
        assert rig.pool.kept == 1
    with Rig(stream=False) as rig:
        rig.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234")
        rig.connection.eof_received()
        assert rig.leg.fault is not None
        assert rig.leg.fault.kind == "upstream_cut"
