"""The reader of upstream replies: tables of what is HTTP and what is not, and the law that it does not matter how the
bytes were cut into reads."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import tried

from edgegw.http.response import FIELDS_READ, Headers, ResponseReader, ends_at_close, is_chunked, tunnel_status

HEAD_BYTES_MAX = 4096
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def reader() -> ResponseReader:
    return ResponseReader(head_bytes_max=HEAD_BYTES_MAX, informational_max=10)


@dataclass
class Outcome:
    status: int
    headers: Headers
    body: bytes
    verdict: str  # complete, complete at eof, cut, trouble
    reusable: bool


def read(parts: list[bytes]) -> Outcome:
    """Feed the parts as a connection would, then the end of the connection."""
    one = reader()
    body, surplus = b"", False
    for part in filter(None, parts):
        if one.ended or one.trouble:
            surplus = surplus or one.ended
            break
        one.feed(part)
        body += one.body
    if one.trouble:
        verdict = "trouble"
    elif one.ended:
        verdict = "complete"
    else:
        verdict = "complete at eof" if one.feed_eof() else "cut"
    return Outcome(one.status, one.headers, body, verdict, one.reusable and not surplus)


def joined(fields: list[tuple[bytes, bytes]]) -> Headers:
    headers: Headers = {}
    for name, value in fields:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# name: (bytes, status shown, body shown, verdict, reusable)
REPLIES: dict[str, tuple[bytes, int, bytes, str, bool]] = {
    "length": (OK + b"Content-Length: 2\r\n\r\nok", 200, b"ok", "complete", True),
    "length zero": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", "complete", True),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", "complete", True),
    "chunked": (CHUNKED + b"2\r\nok\r\n1;x=y\r\n!\r\n0\r\n\r\n", 200, b"ok!", "complete", True),
    "trailers": (CHUNKED + b"2\r\nok\r\n0\r\nx-a: 1\r\n\r\n", 200, b"ok", "complete", True),
    "upper case coding": (OK + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", 200, b"", "complete", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", "complete", True),
    "not modified": (b"HTTP/1.1 304 X\r\nContent-Length: 9\r\n\r\n", 304, b"", "complete", True),
    "redirect": (b"HTTP/1.1 302 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", 302, b"", "complete", True),
    "highest status": (b"HTTP/1.1 599 X\r\nContent-Length: 0\r\n\r\n", 599, b"", "complete", True),
    "offers an upgrade": (
        OK + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        "complete",
        True,
    ),
    "connection: close": (OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", "complete", False),
    "close in a list": (OK + b"Connection: x, Close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", "complete", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", "complete", False),
    "HTTP/1.0 keep-alive": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        "complete",
        False,
    ),
    "early hints": (
        b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
        200,
        b"ok",
        "complete",
        True,
    ),
    "ten announcements, all kinds": (
        b"".join(b"HTTP/1.1 1%02d X\r\n\r\n" % n for n in (0, 2, 3, 4, 5, 50, 96, 97, 98, 99))
        + (OK + b"Content-Length: 2\r\n\r\nok"),
        200,
        b"ok",
        "complete",
        True,
    ),
    "until close, announced": (OK + b"Connection: close\r\n\r\nok", 200, b"ok", "complete at eof", False),
    "until close, HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nok", 200, b"ok", "complete at eof", False),
    "until close, not announced": (OK + b"Server: x\r\n\r\nok", 200, b"ok", "complete at eof", False),
    "nothing": (b"", 0, b"", "cut", False),
    "half a head": (OK + b"Content-", 0, b"", "cut", False),
    "only an announcement": (b"HTTP/1.1 100 Continue\r\n\r\n", 0, b"", "cut", False),
    "short length": (OK + b"Content-Length: 5\r\n\r\nok", 200, b"ok", "cut", False),
    "short length, close": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nok", 200, b"ok", "cut", False),
    "short chunk": (CHUNKED + b"5\r\nok", 200, b"ok", "cut", False),
    "no last chunk": (CHUNKED + b"2\r\nok\r\n", 200, b"ok", "cut", False),
    "no last chunk, close": (
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        200,
        b"ok",
        "cut",
        False,
    ),
    "unfinished trailer": (CHUNKED + b"2\r\nok\r\n0\r\nx: y\r\n", 200, b"ok", "cut", False),
    "second reply": (
        OK + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        200,
        b"ok",
        "complete",
        False,
    ),
    "second reply after chunks": (
        CHUNKED + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        200,
        b"ok",
        "complete",
        False,
    ),
    "a byte too many": (OK + b"Content-Length: 2\r\n\r\nok!", 200, b"ok", "complete", False),
    "a byte too many after chunks": (CHUNKED + b"2\r\nok\r\n0\r\n\r\n!", 200, b"ok", "complete", False),
    "a line end too many": (OK + b"Content-Length: 2\r\n\r\nok\r\n", 200, b"ok", "complete", False),
    "body of a 204": (b"HTTP/1.1 204 X\r\nContent-Length: 2\r\n\r\nok", 204, b"", "complete", False),
    "body after close": (OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok!", 200, b"ok", "complete", False),
    "bad chunk size": (CHUNKED + b"ZZ\r\nok\r\n0\r\n\r\n", 200, b"", "trouble", False),
    "bad chunk end": (CHUNKED + b"2\r\nokk\r\n0\r\n\r\n", 200, b"ok", "trouble", False),
    "SSH": (b"SSH-2.0-OpenSSH_9\r\n", 0, b"", "trouble", False),
    "a blank line first": (b"\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "RTSP": (b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "HTTP/2.0": (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "HTTP/0.9": (b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "status 2000": (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "status 099": (b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "status 600": (b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "status 101": (b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 0, b"", "trouble", False),
    "eleven announcements": (
        b"HTTP/1.1 103 X\r\n\r\n" * 11 + OK + b"Content-Length: 0\r\n\r\n",
        0,
        b"",
        "trouble",
        False,
    ),
    "two lengths": (OK + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\nok", 0, b"", "trouble", False),
    "length and chunks": (
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        0,
        b"",
        "trouble",
        False,
    ),
    "gzip, chunked": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 0, b"", "trouble", False),
    "identity": (OK + b"Transfer-Encoding: identity\r\n\r\nok", 0, b"", "trouble", False),
    "chunked twice": (
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        0,
        b"",
        "trouble",
        False,
    ),
    "chunked in HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        0,
        b"",
        "trouble",
        False,
    ),
    "bare CR in a value": (OK + b"X-Id: a\rSet-Cookie: s=1\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "bare LF between fields": (OK + b"X-Id: a\nSet-Cookie: s=1\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "folded field": (OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "blank before the colon": (OK + b"X : a\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
    "NUL in a value": (OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n", 0, b"", "trouble", False),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies_whole_and_byte_by_byte(name: str) -> None:
    data, status, body, verdict, reusable = REPLIES[name]
    whole = read([data])
    assert (whole.status, whole.body, whole.verdict, whole.reusable) == (status, body, verdict, reusable)
    assert (outcome := read(bytewise(data))).verdict == verdict
    if status:
        assert outcome == whole


@given(st.sampled_from(sorted(REPLIES)), st.lists(st.integers(0, 200), max_size=6))
def test_it_does_not_matter_how_the_bytes_are_cut(name: str, cuts: list[int]) -> None:
    data = REPLIES[name][0]
    edges = [0, *sorted(cut for cut in cuts if cut <= len(data)), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    # A head is refused as soon as it is wrong; whether the reader has seen its status by then is not told to anyone.
    assert read(parts) == read([data]) or REPLIES[name][1] == 0
    assert read(parts).verdict == REPLIES[name][3]


@given(st.sampled_from(sorted(REPLIES)), st.integers(0, 200), st.binary(max_size=3))
@tried(3)
def test_any_damage_has_a_verdict_that_does_not_depend_on_the_cut(name: str, at: int, patch: bytes) -> None:
    data = REPLIES[name][0]
    at = min(at, len(data))
    data = data[:at] + patch + data[at + len(patch) :]
    whole, single = read([data]), read(bytewise(data))
    assert single.verdict == whole.verdict
    assert single.body == whole.body
    assert whole.reusable <= (whole.verdict == "complete")


def test_names_are_lowered_and_values_trimmed() -> None:
    data = (
        OK
        + b"X-Request-ID:  a b \r\nRETRY-AFTER:\tc\t\r\nX-Should-Retry:\r\nrequest-id: \xe9\r\nContent-Length:0\r\n\r\n"
    )
    expected = {
        b"x-request-id": b"a b",
        b"retry-after": b"c",
        b"x-should-retry": b"",
        b"request-id": b"\xe9",
        b"content-length": b"0",
    }
    assert read([data]).headers == expected
    assert read(bytewise(data)).headers == expected


def test_neither_announcements_nor_trailers_become_fields_of_the_reply() -> None:
    data = b"HTTP/1.1 103 X\r\nRetry-After: 1\r\n\r\n" + CHUNKED + b"2\r\nok\r\n0\r\nX-Request-Id: 1\r\n\r\n"
    for parts in ([data], bytewise(data)):
        assert read(parts).headers == {b"transfer-encoding": b"chunked"}


def test_a_repeated_field_is_joined() -> None:
    data = OK + b"X-Request-Id: 1\r\nContent-Length: 0\r\nx-request-id:  2\r\n\r\n"
    assert read([data]).headers == {b"x-request-id": b"1, 2", b"content-length": b"0"}


def test_only_what_is_acted_on_is_read() -> None:
    data = (
        OK + b"Server: Content-Length: 7\r\nx-connection: close\r\nconnection-x: close\r\nContent-Length: 2\r\n\r\nok"
    )
    assert read([data]) == Outcome(200, {b"content-length": b"2"}, b"ok", "complete", True)


@pytest.mark.parametrize("blanks", [0, 1, 2, 5])
def test_empty_lines_behind_an_announcement_are_passed_over(blanks: int) -> None:
    data = b"HTTP/1.1 100 X\r\nx-early: 1\r\n\r\n" + b"\r\n" * blanks + OK + b"Content-Length: 2\r\n\r\nok"
    for parts in ([data], bytewise(data)):
        assert read(parts) == Outcome(200, {b"content-length": b"2"}, b"ok", "complete", True)


def test_another_protocol_behind_an_announcement_is_refused() -> None:
    data = b"HTTP/1.1 100 X\r\n\r\nHTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
    for parts in ([data], bytewise(data)):
        assert (read(parts).status, read(parts).verdict) == (0, "trouble")


NAME = st.one_of(
    st.text("abcXYZ-09", min_size=1, max_size=8).map(lambda name: b"x-" + name.encode()),
    st.sampled_from([b"X-Request-Id", b"retry-after", b"Retry-After-ms", b"x-should-RETRY", b"request-id"]),
)
VALUE = st.text("abc XYZ,;=\u00e9", max_size=12).map(lambda text: text.strip().encode("latin-1"))


@given(
    st.integers(200, 599).filter(lambda status: status not in (204, 304)),
    st.lists(st.tuples(NAME, VALUE), max_size=5),
    st.one_of(st.none(), st.lists(st.binary(min_size=1, max_size=30), max_size=4)),
    st.binary(max_size=60),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_agrees_with_h11(
    status: int, fields: list[tuple[bytes, bytes]], chunks: list[bytes] | None, body: bytes, cuts: list[int]
) -> None:
    """What is valid is read as the strict second opinion reads it, however it is cut, and twice on one connection."""
    head = b"HTTP/1.1 %d X\r\n" % status + b"".join(b"%b: %b\r\n" % field for field in fields)
    if chunks is None:
        data = head + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        data = head + b"transfer-encoding: chunked\r\n\r\n"
        data += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    other = h11.Connection(h11.CLIENT)
    other.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
    other.send(h11.EndOfMessage())
    other.receive_data(data)
    response = other.next_event()
    assert isinstance(response, h11.Response)
    expected = b""
    while isinstance(event := other.next_event(), h11.Data):
        expected += event.data
    assert isinstance(event, h11.EndOfMessage)

    one = reader()
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for _ in range(2):
        got = b""
        for a, b in itertools.pairwise(edges):
            if a < b:
                one.feed(data[a:b])
                got += one.body
        assert (one.trouble, one.ended, one.reusable) == (None, True, True)
        assert (one.status, got) == (response.status_code, expected)
        read_by_other = [(name.lower(), value.strip()) for name, value in response.headers]
        assert one.headers == joined([field for field in read_by_other if field[0] in FIELDS_READ])
        one.reset()


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6), st.data())
def test_between_means_exactly_between_two_chunks(chunks: list[bytes], draw: st.DataObject) -> None:
    """Whenever the reader says `between`, whole chunks may bypass it and everything after still comes out right."""
    coded = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    data = CHUNKED + b"".join(coded) + b"0\r\n\r\n"
    boundaries = {len(CHUNKED) + sum(map(len, coded[:n])): n for n in range(len(coded) + 1)}
    one = reader()
    position, body, expected = 0, b"", b""
    while position < len(data):
        n = boundaries.get(position)
        assert one.between == (n is not None)
        if n is not None and n < len(coded) and draw.draw(st.booleans()):
            position += len(coded[n])  # bypassed
            continue
        size = draw.draw(st.integers(1, len(data) - position))
        one.feed(data[position : position + size])
        body += one.body
        for begin, n in boundaries.items():
            if n < len(coded):
                first = begin + len(b"%x\r\n" % len(chunks[n]))
                expected += chunks[n][max(0, position - first) : max(0, position + size - first)]
        position += size
    assert (one.ended, one.reusable, one.between, one.trouble) == (True, True, False, None)
    assert body == expected


class TestBounds:
    def test_a_head_without_end_is_refused_soon_after_the_bound(self) -> None:
        one = reader()
        one.feed(OK)
        fed = 0
        while not one.trouble:
            one.feed(b"X-%d: %b\r\n" % (fed, b"v" * 90))
            fed += 90
            assert fed < HEAD_BYTES_MAX + 200
        assert "head" in one.trouble

    @pytest.mark.parametrize("field", [b"x" * 2 * HEAD_BYTES_MAX + b": 1", b"x: " + b"v" * 2 * HEAD_BYTES_MAX])
    def test_a_large_head_in_one_read(self, field: bytes) -> None:
        outcome = read([OK + field + b"\r\nContent-Length: 0\r\n\r\n"])
        assert (outcome.status, outcome.verdict) == (0, "trouble")

    def test_a_large_body_behind_a_small_head_is_no_large_head(self) -> None:
        size = 4 * HEAD_BYTES_MAX
        outcome = read([OK + b"Content-Length: %d\r\n\r\n" % size + b"b" * size])
        assert (outcome.verdict, len(outcome.body)) == ("complete", size)

    def test_announcements_without_end(self) -> None:
        assert read([b"HTTP/1.1 103 X\r\n\r\n" * 5000]).verdict == "trouble"

    @pytest.mark.parametrize("void", [b"1;" + b"x" * 100, b"0\r\n" + b"X-T: 1\r\n" * 20])
    def test_chunk_extensions_and_trailers_without_end(self, void: bytes) -> None:
        one = reader()
        one.feed(CHUNKED)
        one.feed(void)
        fed = 0
        while not one.trouble:
            one.feed(b"X-T: 1\r\n" if void[0:1] == b"0" else b"x" * 8)
            fed += 8
            assert fed <= 2 * HEAD_BYTES_MAX
        assert "between" in one.trouble

    def test_a_long_stream_in_small_pieces_is_no_void(self) -> None:
        one = reader()
        one.feed(CHUNKED)
        for _ in range(HEAD_BYTES_MAX):
            for part in (b"1\r\n", b"x", b"\r\n"):
                one.feed(part)
        assert one.trouble is None


def test_one_read_gives_one_body() -> None:
    one = reader()
    one.feed(CHUNKED + b"1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n")
    assert one.body == b"abcdef"
    one.feed(b"1\r\n")
    assert one.body == b""


@pytest.mark.parametrize(
    ("fields", "minor", "expected"),
    [
        ([], 1, False),
        ([(b"transfer-encoding", b"chunked")], 1, True),
        ([(b"transfer-encoding", b"Chunked")], 1, True),
        ([(b"transfer-encoding", b"chunked")], 0, None),
        ([(b"transfer-encoding", b"")], 1, None),
        ([(b"transfer-encoding", b"chunked, chunked")], 1, None),
        ([(b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked")], 1, None),
    ],
)
def test_is_chunked(fields: list[tuple[bytes, bytes]], minor: int, expected: bool | None) -> None:
    assert is_chunked(joined(fields), minor) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], True),
        ([(b"connection", b"keep-alive")], True),
        ([(b"connection", b"close"), (b"content-length", b"3")], False),
        ([(b"transfer-encoding", b"chunked")], False),
    ],
)
def test_ends_at_close(fields: list[tuple[bytes, bytes]], expected: bool) -> None:
    assert ends_at_close(joined(fields)) is expected


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1 200 Connection established\r\n\r\n", 200),
        (b"HTTP/1.0 200\r\nVia: x\r\nproxy-agent: y/1\r\n\r\n", 200),
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n", 407),
        (b"HTTP/1.1 200 OK\r\n", 0),
        (b"HTTP/1.1 200 OK\n\n", 0),
        (b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", 0),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", 0),
        (b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n", 0),
        (b"HTTP/1.1 2000 OK\r\n\r\n", 0),
        (b"HTTP/2 200\r\n\r\n", 0),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", 0),
        (b"", 0),
    ],
)
def test_tunnel_status(head: bytes, status: int) -> None:
    assert tunnel_status(head) == status
