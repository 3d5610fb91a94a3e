"""What clients call their sessions and users: which names count, and that no value does any harm."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import Gateway, Simulator, StartGateway, ask, providers

from edgegw.client_ids import CHARS_MAX, FIELDS, HEADERS, SESSION_HEADERS, USER_HEADERS, told


def fields(**values: object) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()}


ORDINARY = {b"host": b"x", b"content-type": b"application/json", b"user-agent": b"y"}


def test_most_requests_say_neither() -> None:
    assert told(ORDINARY, fields(model="m", messages=[])) == (None, None)


@pytest.mark.parametrize("name", SESSION_HEADERS)
def test_a_session_by_header(name: bytes) -> None:
    assert told({**ORDINARY, name: b"s-1"}, fields(prompt_cache_key="k")) == ("s-1", None)


@pytest.mark.parametrize("name", USER_HEADERS)
def test_a_user_by_header(name: bytes) -> None:
    assert told({**ORDINARY, name: b"u-1"}, fields(user="u-2", prompt_cache_key="k")) == ("k", "u-1")


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        (fields(user="u"), (None, "u")),
        (fields(user="u", safety_identifier="s"), (None, "s")),
        (fields(user=None), (None, None)),
        (fields(user=5, safety_identifier={"a": 1}), (None, None)),
        (fields(user=""), (None, None)),
        (fields(prompt_cache_key=" k "), ("k", None)),
    ],
)
def test_by_fields(said: dict[str, msgspec.Raw], ids: tuple[str | None, str | None]) -> None:
    assert told(ORDINARY, said) == ids


def test_the_first_that_says_something_counts() -> None:
    assert told({b"x-claude-code-session-id": b" ", b"session-id": b"a", b"x-session-id": b"b"}, {}) == ("a", None)


@given(st.sampled_from(sorted(HEADERS)), st.binary(max_size=3000))
def test_a_header_of_any_bytes_is_bounded_and_printable(name: bytes, value: bytes) -> None:
    _check(told({name: value}, {}))


@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=1500) | st.integers() | st.lists(st.text()))
def test_a_field_of_any_kind_is_bounded_and_printable(name: str, value: object) -> None:
    _check(told({}, fields(**{name: value})))


def _check(ids: tuple[str | None, str | None]) -> None:
    for text in ids:
        assert text is None or (text.isprintable() and 0 < len(text) <= CHARS_MAX)


def test_a_field_that_is_no_unicode() -> None:
    assert told({}, {"user": msgspec.Raw(b'"\\ud800"'), "prompt_cache_key": msgspec.Raw(b'"\xff"')})[0] is None


@pytest.mark.system
def test_they_stand_in_the_row_and_go_no_further(simulator: Simulator, gateway: StartGateway) -> None:
    running: Gateway = gateway({"providers": providers(simulator), "default": {"targets": ["sim/good"]}})
    body = {"messages": [{"role": "user", "content": "hi"}], "user": "u-7"}
    headers = {"X-Claude-Code-Session-Id": "s-7", "X-OpenWebUI-User-Id": "Zoë"}
    for given_headers, ids in ((headers, ("s-7", "Zoë")), ({}, (None, "u-7"))):
        answer = ask(
            running.url,
            "POST",
            "/v1/chat/completions",
            body,
            {name: value.encode().decode("latin-1") for name, value in given_headers.items()},
        )
        assert answer.status == 200
        row = running.row(answer.headers["x-request-id"])
        assert (row["session_id"], row["user_id"]) == ids
    for seen in simulator.seen("good"):
        assert not {"x-claude-code-session-id", "x-openwebui-user-id"} & {name.lower() for name in seen["headers"]}
