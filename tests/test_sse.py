"""The event stream decoder and splitter: traces of the standard, and laws that hold however a stream is cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.http import sse
from edgegw.http.sse import Decoder, Event, EventTooLongError, Splitter, data_of

TRACES = [
    (b"data: a\n\n", [Event("message", "a", "")]),
    (b"data:a\r\rdata: b\r\n\r\n", [Event("message", "a", ""), Event("message", "b", "")]),
    (b"data: a\ndata:  b\n\n", [Event("message", "a\n b", "")]),
    (b"data\n\n", [Event("message", "", "")]),
    (b"event: x\nid: 7\ndata: a\n\ndata: b\n\n", [Event("x", "a", "7"), Event("message", "b", "7")]),
    (b"event: ping\n\ndata: a\n\n", [Event("message", "a", "")]),
    (b"id: 1\x002\ndata: a\n\n", [Event("message", "a", "")]),
    (b": note\n\n\n\ndata: a\n: note\nretry: 5\n\n", [Event("message", "a", "")]),
    (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [Event("message", "a", "")]),
    (b"data: a\n\ndata: b\n", [Event("message", "a", "")]),
    ("data: a\u2028b\x85\n\n".encode(), [Event("message", "a\u2028b\x85", "")]),
    (b"data: \xff\n\n", [Event("message", "\ufffd", "")]),
    (b"data: a\r\n\ndata: b\n\r\ndata: c\n\r", [Event("message", x, "") for x in "abc"]),
]


@pytest.mark.parametrize(("raw", "events"), TRACES)
def test_decodes_whole_and_byte_by_byte_and_at_every_cut(raw: bytes, events: list[Event]) -> None:
    cuts = [[raw], [raw[at : at + 1] for at in range(len(raw))]]
    cuts += [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    for parts in cuts:
        decoder = Decoder()
        assert [event for part in parts for event in decoder.feed(part)] == events, parts


PIECES = st.sampled_from([b"\n", b"\r", b"\r\n", b"data: x", b"data: yy", b":", b"z", b"\xef\xbb\xbf", b"\n\n"])


@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_a_cut_stream_decodes_like_a_whole_one_and_loses_no_byte(raw: bytes, sizes: list[int]) -> None:
    whole = Decoder().feed(raw)
    decoder, splitter = Decoder(), Splitter()
    events: list[Event] = []
    pieces: list[bytes] = []
    at = turn = 0
    while at < len(raw):
        size = sizes[turn % len(sizes)]
        events += decoder.feed(raw[at : at + size])
        pieces += splitter.feed(raw[at : at + size])
        at, turn = at + size, turn + 1
    assert events == whole
    assert b"".join(pieces) + splitter.pending == raw.removeprefix(b"\xef\xbb\xbf")
    assert splitter.at_rest == (not splitter.pending)


def test_the_splitter_gives_back_a_read_of_one_event_as_it_is() -> None:
    splitter = Splitter()
    event = b"data: {}\n\n"
    assert splitter.feed(event)[0] is event
    assert splitter.feed(event)[0] is event


def test_the_splitter_gives_out_nothing_before_an_event_is_whole() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\n") == []
    assert splitter.pending == b"data: a\n"
    assert not splitter.at_rest
    assert splitter.feed(b"\ndata: b") == [b"data: a\n\n"]
    assert splitter.feed(b"\r\n\r") == [b"data: b\r\n\r"]
    assert splitter.feed(b"\n") == [b"\n"]
    assert splitter.at_rest


@pytest.mark.parametrize("size", [1000, 100_000])
def test_an_event_without_end_is_refused_at_the_bound(size: int) -> None:
    splitter = Splitter()
    for _ in range(sse.EVENT_BYTES_MAX // size):
        splitter.feed(b"x" * size)
    with pytest.raises(EventTooLongError):
        splitter.feed(b"x" * size)


def test_a_whole_event_over_the_bound_is_refused() -> None:
    with pytest.raises(EventTooLongError):
        Splitter().feed(b"data: " + b"x" * sse.EVENT_BYTES_MAX + b"\n\n")


def test_the_work_is_linear_in_the_bytes() -> None:
    """A 300 kB event byte by byte: quadratic copying would take minutes."""
    splitter, begun = Splitter(), time.process_time()
    for _ in range(300_000):
        splitter.feed(b"x")
    assert splitter.feed(b"\n\n") == [b"x" * 300_000 + b"\n\n"]
    assert time.process_time() - begun < 10


def test_close_forgets_an_unfinished_event() -> None:
    decoder = Decoder()
    decoder.feed(b"id: 3\ndata: a")
    decoder.close()
    assert decoder.feed(b"data: b\n\n") == [Event("message", "b", "")]


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data: {}\r\n\r\n", b"{}"),
        (b"event: x\ndata: a\ndata: b\n\n", b"a\nb"),
        (b": ping\n\n", None),
        (b"\n", None),
    ],
)
def test_data_of_a_raw_event(raw: bytes, data: bytes | None) -> None:
    assert data_of(raw) == data
