"""What is counted when a provider does not count, or not to the end: an answer always, a refusal never."""

from __future__ import annotations

import json
from math import ceil
from typing import Any

import pytest
from test_relay import DONE, ERROR, FINISH, LAST, ROLE, USAGE, Rig, chunked, event, head

from edgegw.dialects.texts import text_bytes, text_bytes_of_body, text_bytes_of_events
from edgegw.exchange import Usage
from edgegw.leg import Leg
from edgegw.relay import StreamLeg
from edgegw.tokens import TokenEstimator
from edgegw.used import used

BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 346 + b'"}]}'
PROMPT = ceil(len(BODY) / 4)
PLAIN = head(transfer_encoding="chunked", content_type="application/json")


def count(leg: Leg, said: Usage | None = None) -> Usage | None:
    """As attempts.py asks: what the leg has heard, or was `said` in a whole plain answer."""
    heard = leg.heard
    usage = said if heard is None else heard.usage
    finished = heard is not None and heard.finish_reason is not None
    whole = finished or (leg.over and not leg.gone and leg.fault is None)
    return used(usage, whole, leg, leg.fault, TokenEstimator(), "m", BODY)


def words(count: int, tokens: int = 1) -> list[bytes]:
    """Events of a stream, each of so many tokens of four bytes."""
    return [event(content=" abc" * tokens) for _ in range(count)]


def one_by_one(*events: bytes) -> list[bytes]:
    return [head(), *(chunked(each) for each in events)]


def at_once(*events: bytes) -> list[bytes]:
    """In reads of three events, as a fast provider's arrive."""
    return [head(), *(chunked(*events[at : at + 3]) for at in range(0, len(events), 3))]


@pytest.mark.parametrize("cut", [one_by_one, at_once])
@pytest.mark.parametrize("sent", [1, 2, 5, 40, 300])
def test_a_client_that_leaves_has_used_a_token_per_event(cut: Any, sent: int) -> None:
    with Rig() as rig:
        rig.feed(*cut(ROLE, *words(sent)))
        rig.reply.lost()
        assert rig.leg.gone
        assert count(rig.leg) == Usage(PROMPT, sent, estimated=True)


@pytest.mark.parametrize(("cut", "tokens"), [(one_by_one, 3), (one_by_one, 20), (at_once, 20), (at_once, 100)])
@pytest.mark.parametrize("sent", [2, 5, 40, 300])
def test_long_events_count_by_their_text(cut: Any, sent: int, tokens: int) -> None:
    """Of providers that send whole sentences at a time, within a tenth."""
    with Rig() as rig:
        rig.feed(*cut(ROLE, *words(sent, tokens)))
        rig.reply.lost()
        usage = count(rig.leg)
        assert usage is not None
        assert usage.output == pytest.approx(sent * tokens, rel=0.1)


@pytest.mark.parametrize("events", [[ROLE], []], ids=["a role", "nothing"])
def test_a_client_that_leaves_before_content_has_used_its_prompt(events: list[bytes]) -> None:
    with Rig() as rig:
        rig.feed(*one_by_one(*events))
        rig.reply.lost()
        assert count(rig.leg) == Usage(PROMPT, 0, estimated=True)


def test_a_client_that_leaves_without_waiting_for_the_end_has_used_what_was_said() -> None:
    """Many leave as soon as they have seen the usage, or the finish."""
    with Rig() as rig:
        rig.feed(*one_by_one(ROLE, *words(5), FINISH, USAGE))
        rig.reply.lost()
        assert rig.leg.gone
        assert count(rig.leg) == Usage(7, 5)


@pytest.mark.parametrize("cut", [one_by_one, at_once])
def test_a_whole_stream_without_usage(cut: Any) -> None:
    with Rig() as rig:
        rig.feed(*cut(ROLE, *words(9), FINISH, DONE), LAST)
        assert rig.leg.over
        assert rig.leg.fault is None
        assert count(rig.leg) == Usage(PROMPT, 9, estimated=True)


def test_a_stream_that_is_cut() -> None:
    with Rig() as rig:
        rig.feed(*one_by_one(ROLE, *words(5)))
        rig.connection.connection_lost(None)
        assert rig.leg.fault is not None
        assert count(rig.leg) == Usage(PROMPT, 5, estimated=True)


def test_a_stream_that_is_cut_before_its_content_was_under_way() -> None:
    with Rig() as rig:
        rig.feed(*one_by_one(ROLE))
        rig.connection.connection_lost(None)
        assert count(rig.leg) == Usage(PROMPT, 0, estimated=True)


def test_an_error_before_content_is_a_refusal_and_used_nothing() -> None:
    with Rig() as rig:
        rig.feed(head() + chunked(ROLE, ERROR))
        assert rig.leg.fault is not None
        assert count(rig.leg) is None


def test_an_error_after_content_ends_an_answer_that_was_used() -> None:
    with Rig() as rig:
        rig.feed(*one_by_one(ROLE, *words(3), ERROR))
        assert rig.leg.fault is not None
        assert count(rig.leg) == Usage(PROMPT, 3, estimated=True)


def test_a_stall_has_used_what_came() -> None:
    with Rig() as rig:
        rig.feed(*one_by_one(ROLE, *words(3)))
        rig.pass_time(25)
        assert rig.leg.fault is not None
        assert rig.leg.fault.kind == "upstream_stalled"
        assert count(rig.leg) == Usage(PROMPT, 3, estimated=True)


@pytest.mark.parametrize("status", [b"400 Bad Request", b"500 No", b"302 Found", b"204 No Content"])
def test_a_refusal_used_nothing(status: bytes) -> None:
    with Rig() as rig:
        rig.feed(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        assert count(rig.leg) is None


def test_before_a_reply_nothing_is_known() -> None:
    with Rig() as rig:
        rig.reply.lost()
        assert count(rig.leg) is None


# -- not streamed --


def plain(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"id": "c", "model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}).encode()


def test_a_plain_answer_without_usage_counts_by_its_text() -> None:
    with Rig(stream=False) as rig:
        rig.feed(PLAIN + chunked(plain("abcd" * 25)) + LAST)
        assert rig.leg.over
        assert count(rig.leg) == Usage(PROMPT, 25, estimated=True)
        assert count(rig.leg, Usage(3, 2)) == Usage(3, 2)
        assert count(rig.leg, Usage(0, 2, estimated=True)) == Usage(PROMPT, 2, estimated=True)
        assert count(rig.leg, Usage(3, 0, estimated=True)) == Usage(3, 25, estimated=True)
        assert count(rig.leg, Usage(3, 0)) == Usage(3, 0)


def test_half_a_plain_answer_counts_by_what_came() -> None:
    with Rig(stream=False) as rig:
        half = plain("abcd" * 250)[:500]
        rig.feed(PLAIN + chunked(half))
        rig.connection.connection_lost(None)
        assert rig.leg.fault is not None
        assert count(rig.leg) == Usage(PROMPT, ceil(len(half) / 4), estimated=True)


# -- what is text --


def test_words_are_text_in_every_dialect() -> None:
    assert text_bytes({"choices": [{"message": {"role": "assistant", "content": "né"}}]}) == 3
    assert text_bytes({"choices": [{"delta": {"tool_calls": [{"id": "x", "function": {"arguments": "{}"}}]}}]}) == 2
    assert text_bytes({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hello"}}) == 5
    assert text_bytes({"type": "response.output_text.delta", "delta": "hello", "item_id": "msg_1"}) == 5
    assert text_bytes({"content": [{"type": "text", "text": "ab"}, {"type": "thinking", "thinking": "c"}]}) == 3
    assert text_bytes({"content": ["ab", {"input": {"city": "Paris"}}]}) == 2
    assert text_bytes_of_body(b"<html>") == 6
    assert text_bytes_of_events(ROLE + event(content="abc") + FINISH + DONE + b"data: {") == [
        (len(ROLE), 0),
        (len(event(content="abc")), 3),
        (len(FINISH), 0),
    ]


def test_nothing_is_measured_when_the_provider_has_said_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(_: Leg) -> tuple[int, int]:
        raise AssertionError("measured")

    monkeypatch.setattr(StreamLeg, "volume", measured)
    with Rig() as rig:
        rig.feed(head(), *(chunked(each) for each in (ROLE, *words(5), FINISH, USAGE, DONE)), LAST)
        assert count(rig.leg) == Usage(7, 5)
