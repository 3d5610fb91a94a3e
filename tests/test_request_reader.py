"""The reading side of client connections: whole requests come out, however the bytes are cut, and nothing else does."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import tried

from edgegw.endpoints import gate
from edgegw.errors import GatewayError
from edgegw.http.connection import READY_BODY_BYTES_MAX, READY_MAX, RequestReader
from edgegw.http.request import Request, RequestLimits

BODY = b'{"model":"m"}'
CHAT = (b"/v1/chat/completions", BODY, 200)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 13\r\n\r\n"
POST = HEAD + BODY
GET = b"GET /v1/models HTTP/1.1\r\nHost: edge.test\r\n\r\n"
CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\n" + BODY[:5] + b"\r\n8\r\n" + BODY[5:] + b"\r\n0\r\nX-Trailer: t\r\n\r\n"
)


def reader(**limits: int) -> RequestReader:
    return RequestReader(RequestLimits(**limits), gate)


def read(*pieces: bytes, **limits: int) -> list[Request]:
    subject = reader(**limits)
    for piece in pieces:
        subject.feed(piece)
    return subject.ready


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def outcome(requests: list[Request]) -> list[tuple[bytes, bytes, int]]:
    return [(r.path, r.body, r.error.status if r.error else 200) for r in requests]


@pytest.mark.parametrize(
    ("wire", "want"),
    [
        (POST, [(b"/v1/chat/completions", BODY, 200)]),
        (CHUNKED, [(b"/v1/chat/completions", BODY, 200)]),
        (
            POST + GET + CHUNKED,
            [CHAT, (b"/v1/models", b"", 200), CHAT],
        ),
        (b"\r\n" + GET, [(b"/v1/models", b"", 200)]),
        (b"GET http://edge.test/v1/models?x=1 HTTP/1.1\r\nHost: edge.test\r\n\r\n", [(b"/v1/models", b"", 200)]),
        (b"GET /nope HTTP/1.1\r\nHost: e\r\n\r\n" + GET, [(b"/nope", b"", 404), (b"/v1/models", b"", 200)]),
        (b"GET /v1/models HTTP/1.0\r\n\r\n" + GET, [(b"/v1/models", b"", 200)]),
        (CHUNKED.replace(b"chunked", b"\tchunked \t"), [CHAT]),
        (b"OPTIONS * HTTP/1.1\r\nHost: e\r\n\r\n" + GET, [(b"*", b"", 200), (b"/v1/models", b"", 200)]),
        # What follows a POST that says nothing about its body may be meant as one.
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\n\r\n" + BODY + GET, [(b"/v1/chat/completions", b"", 200)]),
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"
            b"Content-Length: 13\r\n\r\n" + BODY + GET,
            [(b"/v1/chat/completions", BODY, 200)],
        ),
    ],
)
def test_whole_and_byte_by_byte_give_the_same_requests(wire: bytes, want: list[tuple[bytes, bytes, int]]) -> None:
    assert outcome(read(wire)) == want
    assert outcome(read(*bytewise(wire))) == want


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"GET /v1/models\r\n", 400),
        (b"GET /v1/models HTTP/2.0\r\nHost: e\r\n\r\n", 505),
        (b"GET /v1/models HTTP/1.2\r\nHost: e\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /v1/models HTTP/1.32\r\nHost: e\r\n\r\n", 400),
        (b"BREW /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 501),
        (b"get /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 501),
        (b"SOURCE /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 501),
        (b"B" * 20_000 + b" / HTTP/1.1\r\nHost: e\r\n\r\n", 414),
        (b"GE(T /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"\nGET /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"\rGET /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: e\r\n \t\r\nTransfer-Encoding: chunked\t\r\n\r\n", 400),
        (b"OPTIONS /v1/models RTSP/1.0\r\nHost: e\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xc2\xa5", 400),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: u@e\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: e\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n", 400),
        (b"GET /v1/models?a  HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"GET /v1/models?a#b HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"GET //v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"GET /v1/../models HTTP/1.1\r\nHost: e\r\n\r\n", 400),
        (b"POST http://169.254.169.254/x HTTP/1.1\r\nHost: e\r\nContent-Length: 0\r\n\r\n", 400),
        (b"TRACE /v1/models HTTP/1.1\r\nHost: e\r\n\r\n", 501),
        (b"CONNECT e:443 HTTP/1.1\r\nHost: e:443\r\n\r\n", 501),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.0\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nExpect: 200-maybe\r\nContent-Length: 3\r\n\r\n", 417),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: 9999999999999999999\r\n\r\n", 413),
        (b"PUT /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: 5\r\n\r\n", 405),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n", 415),
    ],
)
def test_refused_once_and_nothing_after_it_is_read(wire: bytes, status: int) -> None:
    for pieces in ([wire + GET], [wire, GET], [*bytewise(wire), GET]):
        requests = read(*pieces)
        assert [r.error.status for r in requests if r.error] == [status], requests
        assert len(requests) == 1
        assert not requests[0].keep_alive


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"GET /v1/models", "request line"),
        (b"\x16\x03\x01\x00\xa5\x01\x00", "TLS"),
        (b"FOO / HTTP/1.1", "method"),
        (b"GET / HTTP/3.0", "HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: e\r\nX : y", "line 2 has white space before its colon"),
        (b"GET / HTTP/1.1\r\nHost: e\r\n x: y", "line 2 begins with white space"),
        (b"GET / HTTP/1.1\r\nHost: e\r\nX", "line 2 has no colon"),
        (b"GET / HTTP/1.1\r\nHost: e\r\nA: b\nX: y", "line 2 has a bare CR or LF"),
        (b"GET / HTTP/1.1\r\nHost: e\r\nX{}: y", "line 2 has a name"),
        (b"GET / HTTP/1.1\r\nHost: e\r\nX: a\0b", "line 2 has control characters"),
        (b"GET / HTTP/1.1\r\nHost: e\r\nContent-Length: 5\r\nContent-Length: 6", "how long the body is"),
    ],
)
def test_who_is_refused_is_told_where_the_trouble_is(line: bytes, words: str) -> None:
    error = read(line + b"\r\n\r\n")[0].error
    assert error is not None
    assert words in error.message


@pytest.mark.parametrize("wire", [b"HEAD * HTTP/1.1\r\nHost: e\r\n\r\n", b"HEAD / HTTP/1.1\r\nX\r\n\r\n"])
def test_the_refusal_of_a_head_has_no_body(wire: bytes) -> None:
    assert [[r.method for r in read(*pieces)] for pieces in ([wire], bytewise(wire))] == [[b"HEAD"]] * 2


def test_what_follows_a_known_head_is_its_own_request() -> None:
    first, second, third = read(POST, POST, b"GET /v1/mo", b"\0")
    assert (first.error, second.error, second.keep_alive) == (None, None, True)
    assert third.error is not None
    assert (third.path, third.body) == (b"", b"")


def test_many_requests_in_one_read_are_read_a_few_at_a_time() -> None:
    subject, taken = reader(), []
    subject.feed(GET * 1000 + POST)
    subject.feed(POST + GET[:5])
    subject.eof()
    while subject.ready:
        assert len(subject.ready) <= READY_MAX
        taken += subject.ready
        subject.ready.clear()
        subject.go_on()
    assert outcome(taken) == [*[(b"/v1/models", b"", 200)] * 1000, CHAT, CHAT, (b"", b"", 400)]
    assert subject.dead


def test_many_chunks_in_one_read_are_read_a_few_at_a_time() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n"
    subject = reader()
    subject.feed(head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n" + GET)
    turns = 0
    while subject.held and not subject.ready:
        turns += 1
        subject.go_on()
    assert turns > 1
    assert outcome(subject.ready[:2]) == [(b"/v1/chat/completions", b"x" * 20_000, 200), (b"/v1/models", b"", 200)]


def test_large_bodies_are_not_read_ahead() -> None:
    large = HEAD.replace(b"13", b"%d" % (READY_BODY_BYTES_MAX + 1)) + b"x" * (READY_BODY_BYTES_MAX + 1)
    subject = reader()
    subject.feed(large + large)
    assert (len(subject.ready), len(subject.held)) == (1, len(large))


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"identity", b"Identity", b""])
def test_a_compressed_body_is_refused_and_says_what_is_taken(coding: bytes) -> None:
    error = read(POST.replace(b"\r\n\r\n", b"\r\nContent-Encoding: " + coding + b"\r\n\r\n"))[0].error
    if coding.lower() in (b"", b"identity"):
        assert error is None
    else:
        assert error is not None
        assert (error.status, error.headers) == (415, ((b"accept-encoding", b"identity"),))


def test_the_body_is_not_read_when_its_length_is_over_the_limit() -> None:
    subject = reader(body_bytes_max=10)
    subject.feed(HEAD)
    assert subject.dead
    assert subject.ready[0].error is not None
    assert subject.ready[0].error.status == 413
    assert subject.ready[0].path == b"/v1/chat/completions"


def test_a_chunked_body_is_refused_once_it_has_grown_past_the_limit() -> None:
    error = read(CHUNKED, body_bytes_max=6)[0].error
    assert error is not None
    assert error.status == 413


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        (b"".join(b"X-%d: v\r\n" % i for i in range(120)), 431),
        (b"X: v\r\n" * 120, 431),
        (b"X-Big: " + b"x" * 40_000 + b"\r\n", 431),
    ],
)
def test_heads_are_bounded(extra: bytes, status: int) -> None:
    wire = b"GET /v1/models HTTP/1.1\r\nHost: e\r\n" + extra + b"\r\n"
    for pieces in ([wire], [wire[i : i + 1000] for i in range(0, len(wire), 1000)]):
        error = read(*pieces)[0].error
        assert error is not None
        assert error.status == status


def test_a_large_body_in_the_same_read_is_not_taken_for_a_large_head() -> None:
    body = b"x" * 60_000
    wire = b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: 60000\r\n\r\n" + body
    assert outcome(read(wire)) == [(b"/v1/chat/completions", body, 200)]


def test_long_targets() -> None:
    assert outcome(read(b"GET /v1/models?q=" + b"a" * 8000 + b" HTTP/1.1\r\nHost: e\r\n\r\n"))[0][2] == 200
    assert outcome(read(b"GET /v1/models?q=" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: e\r\n\r\n"))[0][2] == 414


def test_chunk_extensions_are_bounded() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n"
    error = read(head, *[b"1;" + b"e" * 1000 + b"\r\nx\r\n"] * 100)[0].error
    assert error is not None
    assert error.status == 400


@pytest.mark.parametrize("size", [b"FFFFFFFFFFFFFFFF", b"100000039", b"ffffffffffffffffffffffffffff"])
def test_a_chunk_that_says_it_is_too_large_is_refused_before_it_comes(size: bytes) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n"
    error = read(head + size + b"\r\n" + BODY)[0].error
    assert error is not None
    assert error.status in (400, 413)


def test_trailers_are_not_believed() -> None:
    wire = CHUNKED.replace(b"X-Trailer: t", b"Authorization: Bearer other")
    assert b"authorization" not in read(wire)[0].headers


def test_expectation_is_announced_only_while_the_body_is_awaited() -> None:
    subject = reader()
    subject.feed(HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    awaited = subject.wants_continue, len(subject.ready)
    assert awaited == (True, 0)
    subject.feed(BODY)
    assert not subject.wants_continue
    assert outcome(subject.ready) == [(b"/v1/chat/completions", BODY, 200)]


@pytest.mark.parametrize(("wire", "left"), [(HEAD + BODY[:5], 1), (HEAD[:20], 1), (POST, 1), (b"", 0)])
def test_end_of_input_never_completes_a_message(wire: bytes, left: int) -> None:
    subject = reader()
    subject.feed(wire)
    subject.eof()
    assert len(subject.ready) == left
    complete = wire == POST
    assert all((request.error is None) is complete for request in subject.ready)


TOKENS = st.sampled_from(
    [b"POST", b"GET", b" ", b"/v1/models", b" HTTP/1.1", b"\r\n", b"\n", b"Host: e", b"Content-Length: ", b"0", b"13",
     b"Transfer-Encoding: chunked", b"\r\n\r\n", b":", b"\x00", b"x", BODY, POST, GET, CHUNKED, b"0\r\n\r\n", b"\t",
     b";"]
)  # fmt: skip


HEADS = [
    HEAD,
    b"POST /v1/chat/completions?a HTTP/1.1\r\nhost: e\r\nx-content-length: 13\r\ncontent-length:  13 \r\nx:13\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nCONTENT-LENGTH:\t13\r\nAuthorization: Bearer sk-13\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nExpect: 100-continue\r\nContent-Length: 13\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 13\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nX: " + b"x" * 5000 + b"\r\nContent-Length: 13\r\n\r\n",
]


@given(
    st.sampled_from(HEADS),
    st.integers(0, 200),
    st.integers(0, 3),
    st.sampled_from([b"", b"0", b"1", b"13", b"9" * 30, b" ", b"\r", b"\n", b"\r\n", b"-", b"a", b":", b"\xe9", b"\0"]),
    st.sampled_from([BODY, BODY[:5], b"", BODY * 3, BODY + b"\r\n" + GET]),
)
@tried(5)
def test_a_head_that_is_much_like_the_last_one_is_read_like_one_that_is_not(
    head: bytes, at: int, gone: int, patch: bytes, body: bytes
) -> None:
    """What a connection remembers of its last head changes nothing: the second request is as on a new connection."""
    data = head[:at] + patch + head[at + gone :] + body
    fresh, used = reader(body_bytes_max=10_000), reader(body_bytes_max=10_000)
    used.feed(head + BODY)
    assert [request.error for request in used.ready] == [None]
    used.ready.clear()
    for piece in (data, GET):
        fresh.feed(piece)
        used.feed(piece)
    assert list(map(everything, used.ready)) == list(map(everything, fresh.ready))
    for mark in ("dead", "at_rest", "mid_head", "mid_body", "wants_continue", "body_size"):
        assert getattr(used, mark) == getattr(fresh, mark)


def everything(request: Request) -> tuple[object, ...]:
    error = request.error
    return (
        *(request.method, request.path, request.query, request.headers, request.body),
        *(request.http_1_0, request.keep_alive, error and error.kind),
    )


def test_the_same_head_with_another_length() -> None:
    for size in (1, 13, 200, 10_000):
        body = b"x" * size
        first, second = read(POST, HEAD.replace(b"13", b"%d" % size) + body)
        assert (second.body, second.error, second.headers) == (
            body,
            None,
            {**first.headers, b"content-length": b"%d" % size},
        )


def test_a_known_head_with_too_large_a_body_is_refused() -> None:
    assert outcome(read(POST, HEAD.replace(b"13", b"14"), body_bytes_max=13)) == [CHAT, (*CHAT[:1], b"", 413)]


def test_a_known_head_is_judged_by_the_gate_each_time() -> None:
    """A key that the gate found, and may not find any more."""
    keys = iter(["first", "second"])

    def doorkeeper(request: Request) -> None:
        request.key = next(keys, None)
        if request.key is None:
            raise GatewayError("unauthorized", "No key.")

    subject = RequestReader(RequestLimits(), doorkeeper)
    for _ in range(4):
        subject.feed(POST)
    assert [request.key for request in subject.ready] == ["first", "second", None]
    assert subject.ready[-1].error is not None
    assert subject.ready[-1].error.status == 401
    assert subject.dead


@tried(3)
@given(st.lists(TOKENS, max_size=12), st.randoms())
def test_any_segmentation_gives_the_same_and_a_strict_parser_agrees(tokens: list[bytes], dice: object) -> None:
    """Law: what comes out does not depend on how bytes were cut; and what we accept, h11 accepts too."""
    wire = b"".join(tokens)
    whole = outcome(read(wire))
    assert whole == outcome(read(*bytewise(wire)))
    accepted = [row for row in whole if row[2] == 200]
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(wire.removeprefix(b"\r\n"))  # RFC 9112 2.2 allows an empty line here, h11 does not
    for path, body, _ in accepted:
        event = peer.next_event()
        assert isinstance(event, h11.Request)
        assert event.target.partition(b"?")[0] == path
        pieces = b""
        while not isinstance(event := peer.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            pieces += event.data
        assert pieces == body
        if peer.their_state is h11.MUST_CLOSE:
            break
        peer = _next(peer)


def _next(peer: h11.Connection) -> h11.Connection:
    """h11 wants the reply before it reads on; a fresh parser is fed what is left."""
    left = peer.trailing_data[0].removeprefix(b"\r\n")
    fresh = h11.Connection(h11.SERVER)
    fresh.receive_data(left)
    return fresh
