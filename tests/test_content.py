"""What is kept of an exchange: copied as it leaves, made readable, put down, bounded, found again."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.clock import ManualClock, uuid7
from edgegw.content import answer, porter
from edgegw.content.capture import Capture
from edgegw.content.choice import Choice
from edgegw.content.files import BLOCK_BYTES, CONTENT_DIR, TOLD_DIR, Tray, Trays
from edgegw.content.porter import Porter, TrayPair
from edgegw.content.record import Content
from edgegw.content.wire import HEAD_ROOM_BYTES, ReplyCopy, behind_head, unchunked
from edgegw.exchange import Attempt, Exchange, Target
from edgegw.http.chunked import ChunkedBody
from edgegw.http.date import Date
from edgegw.http.outbox import Outbox
from edgegw.http.reply import JSON, LAST_CHUNK, Reply, chunk
from edgegw.http.request import Request
from edgegw.settings import load_text
from edgegw.trace import Keeping, Sampler

DONE = b"data: [DONE]\n\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
ERROR = b'data: {"error":{"message":"cut","type":"upstream_error"}}\n\n'


# -- the copy of a reply --


class Wire:
    """A client's transport."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None: ...


class Connection:
    """As much of a connection as a reply needs."""

    def __init__(self) -> None:
        self.write_paused = False
        self.outbox = Outbox()
        self.date = Date(lambda: 0)
        self.transport = Wire()

    def finished(self, reply: Reply, keep_alive: bool) -> None: ...

    def abandon(self) -> None: ...

    def break_off(self, reply: Reply) -> None: ...


def request(body: bytes = b"{}", *, http_1_0: bool = False) -> Request:
    return Request(b"POST", b"/v1/chat/completions", headers={}, body=body, http_1_0=http_1_0)


def say(reply: Reply, words: list[tuple[Any, ...]]) -> None:
    for verb, *arguments in words:
        if verb == "wire":
            transport, write = reply.wire()
            write(transport, *arguments)
        else:
            getattr(reply, verb)(*arguments)


TRACES: dict[str, tuple[list[tuple[Any, ...]], bytes]] = {
    "plain": ([("send", 200, JSON, b'{"a":1}')], b'{"a":1}'),
    "a refusal": ([("send", 429, b"retry-after: 1\r\n", b'{"error":{}}')], b'{"error":{}}'),
    "a stream": ([("start", 200, b"", EVENT), ("write", EVENT), ("end", DONE)], EVENT + EVENT + DONE),
    "a stream by the fast lane": ([("start", 200, b"", EVENT), ("wire", chunk(EVENT)), ("end", b"")], EVENT + EVENT),
    "an error event": ([("start", 200, b"", EVENT), ("fail", ERROR)], EVENT + ERROR),
    "probed before the head": ([("probe",), ("probe",), ("start", 200, b"", EVENT), ("end", b"")], EVENT),
    "probed within": ([("start", 200, b"", EVENT), ("probe",), ("end", b"")], EVENT + b":\n\n"),
    "gone before the end": ([("start", 200, b"", EVENT)], EVENT),
    "nothing at all": ([], b""),
}


@pytest.mark.parametrize("name", TRACES)
def test_what_a_client_was_sent_is_read_again(name: str) -> None:
    words, body = TRACES[name]
    connection, copy = Connection(), ReplyCopy(1000)
    reply = Reply(connection, request())
    reply.copy_to(copy.add)
    say(reply, words)
    assert copy.sent == connection.transport.sent
    assert not copy.cut
    found, chunked = behind_head(copy.sent)
    assert (unchunked(found) if chunked else found) == body


@pytest.mark.parametrize("name", TRACES)
def test_a_copied_reply_is_the_same_on_the_wire(name: str) -> None:
    words, _ = TRACES[name]
    plain, copied = Connection(), Connection()
    say(Reply(plain, request()), words)
    reply = Reply(copied, request())
    reply.copy_to(lambda data: None)
    say(reply, words)
    assert plain.transport.sent == copied.transport.sent


def test_a_stream_of_http_1_0_has_no_chunks() -> None:
    connection, copy = Connection(), ReplyCopy(1000)
    reply = Reply(connection, request(http_1_0=True))
    reply.copy_to(copy.add)
    say(reply, [("start", 200, b"", EVENT), ("write", EVENT), ("end", b"")])
    assert behind_head(copy.sent) == (EVENT + EVENT, False)


def test_a_body_that_looks_like_a_head_is_a_body() -> None:
    body = b"x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n"
    connection, copy = Connection(), ReplyCopy(1000)
    reply = Reply(connection, request())
    reply.copy_to(copy.add)
    reply.send(200, JSON, body)
    assert behind_head(copy.sent) == (body, False)


def test_a_copy_cut_anywhere_holds_what_came_before() -> None:
    whole = chunk(EVENT) + chunk(b"x" * 300) + LAST_CHUNK
    plain = EVENT + b"x" * 300
    for end in range(len(whole)):
        found = unchunked(whole[:end])
        assert plain.startswith(found)
        assert len(found) >= end - 20


@given(st.lists(st.binary(min_size=1, max_size=300)), st.integers(0, 2000))
def test_chunks_are_taken_off_as_the_strict_decoder_does(pieces: list[bytes], end: int) -> None:
    sent = b"".join(map(chunk, pieces)) + LAST_CHUNK
    strict = ChunkedBody(1 << 62)
    strict.feed(sent[:end])
    assert unchunked(sent[:end]) == strict.body


def test_a_copy_is_bounded_and_says_so() -> None:
    copy = ReplyCopy(10)
    room = HEAD_ROOM_BYTES + 10
    cuts = []
    for data in (b"y" * room, b"z" * 100_000, b"z"):
        copy.add(data)
        cuts.append((copy.cut, copy.size))
    assert cuts == [(False, room), (True, room), (True, room)]
    assert copy.sent == b"y" * room
    across = ReplyCopy(10)
    across.add(b"y" * (room + 1))
    assert (across.cut, across.size) == (True, room)


# -- whose --


def choice(capture: str, tenants: str = "{}", tells: bool = False) -> Choice:
    base = "version: 1\nproviders: {local: {kind: openai-compatible, base_url: 'http://127.0.0.1:1/v1'}}\n"
    return Choice(load_text(f"{base}capture: {capture}\ntenants: {tenants}\n", {}), tells=tells)


def test_nobody_is_captured_by_default() -> None:
    assert not choice("{}").any
    assert choice("{}").mode("anybody", uuid7(1, 1)) == "off"


def test_a_tenant_has_its_own_mode() -> None:
    found = choice("{mode: all}", "{quiet: {capture: off}, faulty: {capture: errors}}")
    id_ = uuid7(1, 1)
    assert [found.mode(name, id_) for name in ("quiet", "faulty", "other")] == ["off", "errors", "all"]
    assert choice("{}", "{loud: {capture: all}}").any


def test_what_is_told_is_another_thing_than_what_is_kept() -> None:
    """`capture.mode` is about keeping alone; what a tenant says of its own goes for both."""
    found = choice(
        "{mode: errors}", "{quiet: {capture: off}, faulty: {capture: errors}, some: {capture: sampled}}", True
    )
    id_ = uuid7(1, 1 << 31)
    names = ("other", "quiet", "faulty", "some")
    assert [found.telling(name, id_) for name in names] == ["all", "off", "errors", "off"]
    assert found.telling("some", uuid7(1, 1)) == "all"
    assert [found.mode(name, id_) for name in names] == ["errors", "off", "errors", "off"]
    assert (found.any, found.keeps, found.tells, found.refusing) == (True, True, True, ["quiet"])
    told_alone = choice("{}", tells=True)
    assert (told_alone.any, told_alone.keeps, told_alone.mode("other", id_)) == (True, False, "off")
    unasked = choice("{mode: all}", "{loud: {capture: all}}")
    assert [unasked.telling(name, id_) for name in ("other", "loud")] == ["off", "off"]


def test_a_sample_is_as_large_as_asked_for_and_always_the_same() -> None:
    import random

    dice = random.Random(7)
    ids = [uuid7(1_700_000_000_000_000_000, dice.getrandbits(74)) for _ in range(20_000)]
    sampled = choice("{mode: sampled, sample: 5%}")
    kept = [id_ for id_ in ids if sampled.mode("t", id_) == "all"]
    assert 800 < len(kept) < 1200
    again = choice("{mode: sampled, sample: 5%}")
    assert kept == [id_ for id_ in ids if again.mode("t", id_) == "all"]
    for share, count in (("0%", 0), ("100%", 100)):
        every = choice(f"{{mode: sampled, sample: {share}}}")
        assert sum(every.mode("t", id_) == "all" for id_ in ids[:100]) == count


# -- the worker's side --


def exchange(tenant: str = "t", state: Any = "complete", number: int = 1) -> Exchange:
    found = Exchange(uuid7(1_700_000_000_000_000_000, number), 0, 0.0)
    found.tenant, found.state = tenant, state
    found.attempts = [Attempt(1, "primary", Target("local", "m"), 0, 0.0)]
    return found


def captured(state_dir: Path, directory: str = CONTENT_DIR) -> list[Content]:
    decode = msgspec.msgpack.Decoder(list[Content]).decode
    return [content for path in Trays(state_dir, directory).waiting(100) for content in decode(path.read_bytes())]


def capture_into(tray: Tray, of: Choice) -> Capture:
    return Capture(of, Porter(lambda: TrayPair(tray)), ManualClock(), 64)


def serve(capture: Capture, of: Exchange, body: bytes, answer: bytes) -> None:
    connection = Connection()
    asked = request(body)
    reply = Reply(connection, asked)
    copy = capture.begin(of, reply)
    reply.send(200, JSON, answer)
    if copy is not None:
        capture.end(of, asked, copy)


def test_an_exchange_is_put_down_whole_and_private(tmp_path: Path) -> None:
    capture = capture_into(Tray(tmp_path, 3, 1 << 20), choice("{mode: all}"))
    serve(capture, exchange(), b"p" * 64, b"r" * 64)
    serve(capture, exchange(number=2), b"p" * 65, b"r" * 65)
    capture.close()
    first, second = captured(tmp_path)
    assert (first.request, first.reply, first.request_cut, first.reply_cut) == (b"p" * 64, b"r" * 64, False, False)
    assert (second.request, second.reply) == (first.request, first.reply)
    assert second.request_cut
    assert second.reply_cut
    assert (first.tenant, first.stored_ns) == ("t", ManualClock().wall_ns())
    files = list((tmp_path / CONTENT_DIR).rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in files if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (*files, tmp_path / CONTENT_DIR) if path.is_dir()} == {0o700}
    gauges = capture.gauges()
    assert (gauges["content_kept"], gauges["content_dropped"]) == (2, 0)
    assert gauges["content_waiting_bytes"] in (BLOCK_BYTES, 2 * BLOCK_BYTES)  # in one file or two


def test_errors_means_what_did_not_end_well(tmp_path: Path) -> None:
    capture = capture_into(Tray(tmp_path, 0, 1 << 20), choice("{mode: errors}"))
    states = ("complete", "refused", "failed", "error_event", "client_gone", "drained")
    for number, state in enumerate(states):
        serve(capture, exchange(state=state, number=number), state.encode(), b"")
    capture.close()
    assert [content.request.decode() for content in captured(tmp_path)] == list(states[1:])


def telling_into(state_dir: Path, of: Choice, sampler: Sampler | None = None) -> Capture:
    def open_trays() -> TrayPair:
        kept = Tray(state_dir, 0, 1 << 20) if of.keeps else None
        return TrayPair(kept, Tray(state_dir, 0, 1 << 20, TOLD_DIR))

    return Capture(of, Porter(open_trays), ManualClock(), 64, Keeping(sampler or Sampler(), 10_000_000))


def test_what_is_told_is_not_kept_and_what_is_kept_is_not_told(tmp_path: Path) -> None:
    of = choice("{mode: off}", "{kept: {capture: all}, faulty: {capture: errors}, quiet: {capture: off}}", tells=True)
    capture = telling_into(tmp_path, of)
    for number, (tenant, state) in enumerate(
        (("kept", "complete"), ("faulty", "complete"), ("faulty", "failed"), ("quiet", "failed"), ("other", "complete"))
    ):
        serve(capture, exchange(tenant, state, number), f"{tenant} {state}".encode(), b"")
    refused = exchange("other", "refused", 9)
    refused.attempts = []  # no span for it
    serve(capture, refused, b"refused", b"")
    capture.close()
    kept, told = ([each.request.decode() for each in captured(tmp_path, name)] for name in (CONTENT_DIR, TOLD_DIR))
    assert kept == ["kept complete", "faulty failed"]
    assert told == ["kept complete", "faulty failed", "other complete"]
    assert capture.gauges()["content_kept"] == 5


def test_where_nothing_is_kept_there_is_no_place_for_it(tmp_path: Path) -> None:
    capture = telling_into(tmp_path, choice("{}", tells=True))
    serve(capture, exchange(), b"p", b"a")
    capture.close()
    assert [each.request for each in captured(tmp_path, TOLD_DIR)] == [b"p"]
    assert not (tmp_path / CONTENT_DIR).exists()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / TOLD_DIR).rglob("*.msgpack")} == {0o600}


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        (Sampler(0.0), ["retried", "failed", "slow", "sampled"]),  # the exceptions, and what the client keeps
        (Sampler(0.0, exceptions=False), ["sampled"]),
        (Sampler(0.0, parent_based=False, exceptions=False), []),
    ],
)
def test_of_what_has_no_span_nothing_is_put_down(tmp_path: Path, sampler: Sampler, told: list[str]) -> None:
    capture = telling_into(tmp_path, choice("{}", tells=True), sampler)
    of = {
        name: exchange(number=number) for number, name in enumerate(("plain", "retried", "failed", "slow", "sampled"))
    }
    of["retried"].attempts *= 2
    of["failed"].state = "failed"
    of["slow"].duration_s = 10.0
    of["sampled"].trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for name, each in of.items():
        serve(capture, each, name.encode(), b"")
    capture.close()
    assert [each.request.decode() for each in captured(tmp_path, TOLD_DIR)] == told


def test_of_a_tenant_that_is_off_nothing_is_copied(tmp_path: Path) -> None:
    capture = capture_into(Tray(tmp_path, 0, 1 << 20), choice("{mode: all}", "{t: {capture: off}}"))
    reply = Reply(Connection(), request())
    assert capture.begin(exchange(), reply) is None
    assert isinstance(reply._outbox, Outbox)
    capture.close()


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be put down is held up to a bound; what comes then is dropped, and counted."""
    monkeypatch.setattr(porter, "PENDING_BYTES_MAX", 1000)
    well = threading.Event()

    class Stuck(Tray):
        def put(self, name: str, data: bytes, exchanges: int) -> None:
            assert well.wait(10)
            super().put(name, data, exchanges)

    capture = capture_into(Stuck(tmp_path, 0, 1 << 20), choice("{mode: all}"))
    for number in range(20):
        serve(capture, exchange(number=number), b"p" * 60, b"r" * 40)
    assert capture.gauges()["content_dropped"] > 10
    well.set()
    capture.close()
    gauges = capture.gauges()
    assert gauges["content_kept"] + gauges["content_dropped"] == 20
    assert len(captured(tmp_path)) == gauges["content_kept"] > 0


def test_a_full_tray_drops_counts_and_recovers(tmp_path: Path) -> None:
    tray = Tray(tmp_path, 0, 3 * BLOCK_BYTES)
    for number in range(5):
        tray.put(f"{number}", b"x" * 100, 1)
    assert (tray.kept, tray.dropped, tray.waiting_bytes) == (3, 2, 3 * BLOCK_BYTES)
    for path in Trays(tmp_path).waiting(3)[:2]:
        path.unlink()
    tray.put("5", b"x" * (BLOCK_BYTES + 1), 1)
    assert (tray.kept, tray.dropped, tray.waiting_bytes) == (4, 2, 3 * BLOCK_BYTES)


def test_a_worker_that_comes_after_finds_what_waits(tmp_path: Path) -> None:
    Tray(tmp_path, 0, 3 * BLOCK_BYTES).put("a", b"x", 1)
    Tray(tmp_path, 1, 3 * BLOCK_BYTES).put("b", b"x", 1)
    assert Tray(tmp_path, 0, 3 * BLOCK_BYTES).waiting_bytes == BLOCK_BYTES


def test_a_disk_that_says_no_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / CONTENT_DIR).write_text("in the way")
    tray = Tray(tmp_path, 0, 1 << 20)
    tray.put("a", b"x", 1)
    assert (tray.kept, tray.dropped, tray.waiting_bytes) == (0, 1, 0)
    (tmp_path / CONTENT_DIR).unlink()
    tray.put("b", b"x", 1)
    assert (tray.kept, tray.dropped) == (1, 1)


def test_a_disk_that_takes_a_part_of_a_file_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tray, write = Tray(tmp_path, 0, 1 << 20), os.write
    monkeypatch.setattr("edgegw.content.files.os.write", lambda fd, data: write(fd, data[:3]))
    tray.put("a", b"xxxx", 1)
    assert (tray.kept, tray.dropped) == (0, 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_dead_worker_left_unfinished_is_removed(tmp_path: Path) -> None:
    clock = ManualClock()
    Tray(tmp_path, 0, 1 << 20).put("whole", b"x", 1)
    unfinished = tmp_path / CONTENT_DIR / "0" / "half.msgpack.tmp"
    unfinished.write_bytes(b"x")
    trays = Trays(tmp_path)
    for path in (unfinished, *trays.all()):
        os.utime(path, ns=(clock.wall_ns(), clock.wall_ns()))
    assert [path.stem for path in trays.all()] == ["whole"]
    assert trays.tidy(clock.wall_ns() + 59 * 10**9, 0) == 0
    assert unfinished.exists()
    assert trays.tidy(clock.wall_ns() + 61 * 10**9, 0) == 0
    assert not unfinished.exists()
    assert trays.tidy(clock.wall_ns(), clock.wall_ns() + 1) == 1
    assert list(trays.all()) == []


def test_only_one_holds_the_files(tmp_path: Path) -> None:
    Tray(tmp_path, 0, 1 << 20)
    trays = Trays(tmp_path)
    with trays.held() as first, Trays(tmp_path).held() as second:
        assert (first, second) == (True, False)
    with trays.held() as again:
        assert again


# -- as people read it --


def content(reply: bytes, stream: bool = True) -> Content:
    return Content("id", "t", 0, "openai_chat", stream, b'{"model":"m"}', False, reply, False)


def events(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks)


def delta(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def test_a_stream_is_put_together() -> None:
    stream = events(
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(content="lo"),
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"id": "c", "model": "m", "choices": [], "usage": {"total_tokens": 3}},
    )
    whole = json.loads(answer.reply_text(content(stream + b"data: [DONE]\n\n")))
    assert whole == {
        "id": "c",
        "model": "m",
        "usage": {"total_tokens": 3},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    }


def test_tool_calls_are_put_together() -> None:
    stream = events(
        delta(tool_calls=[{"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
    )
    [choice] = answer.put_together(stream)["choices"]
    assert choice["message"]["tool_calls"] == [
        {"index": 0, "id": "x", "type": "function", "function": {"arguments": '{"a":1}', "name": "f"}}
    ]


def test_a_stream_that_ends_badly_is_put_together_as_far_as_it_goes() -> None:
    whole = answer.put_together(events(delta(content="Hel")) + ERROR + b'data: {"choices":[{"ind')
    assert whole["error"]["message"] == "cut"
    assert whole["choices"][0]["message"]["content"] == "Hel"


def test_what_is_no_stream_is_shown_as_it_is() -> None:
    assert json.loads(answer.reply_text(content(b'{"error":{}}'))) == {"error": {}}
    assert answer.reply_text(content(b'{"a": "cut', stream=False)) == '{"a": "cut'
    assert answer.reply_text(content(b"")) == ""
    assert answer.reply_text(content(b"\xff", stream=False)) == "�"
    for strange in (b'data: {"choices":[1]}\n\n', b'data: {"choices":[{"delta":{"tool_calls":[1]}}]}\n\n'):
        assert answer.reply_text(content(strange)) == strange.decode()
