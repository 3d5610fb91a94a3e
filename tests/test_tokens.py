"""The estimators: laws of what they learn, and what a body's attachments count."""

from __future__ import annotations

import base64
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw import tokens
from edgegw.tokens import OutputEstimator, PromptEstimator, TokenEstimator, attachments

PICTURE = base64.b64encode(bytes(range(256)) * 400).decode()


def openai_image(data: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def anthropic_image(data: str) -> dict[str, object]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def anthropic_image_sorted(data: str) -> dict[str, object]:
    return {"source": {"data": data, "media_type": "image/png", "type": "base64"}, "type": "image"}


def openai_sound(data: str) -> dict[str, object]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


@pytest.mark.parametrize("part", [openai_image, anthropic_image, anthropic_image_sorted, openai_sound])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_attachments_are_found_and_measured(part: object, separators: tuple[str, str]) -> None:
    assert callable(part)
    content = [{"type": "text", "text": "What is on these?"}, part(PICTURE), part(PICTURE)]
    body = json.dumps({"messages": [{"role": "user", "content": content}]}, separators=separators).encode()
    assert attachments(body) == (2, 2 * len(PICTURE))


@pytest.mark.parametrize("body", [
    b"",
    b'{"data": "' + b"plain words, not base64 at all " * 100 + b'"}',
    b'{"text": "an url begins with data:image/png;base64, and then come ' + b"words " * 300 + b'"}',
    b'{"data": "' + b"A" * 5000,  # no end
    b'{"data": [1, 2, 3], "x": "' + b"y" * 1000 + b'"}',
    b'{"data": "QUJD"}' + b" " * 1000,
    b'"data"' * 500,
    b";base64," * 500,
])  # fmt: skip
def test_what_is_no_attachment_is_text(body: bytes) -> None:
    assert attachments(body) == (0, 0)


SIZES = st.integers(tokens.ATTACHMENT_BYTES_MIN, 3 * tokens.ATTACHMENT_BYTES_MIN)
PARTS = st.sampled_from([openai_image, anthropic_image, anthropic_image_sorted, openai_sound])


@given(st.lists(st.tuples(PARTS, SIZES, st.integers(0, 9000)), max_size=4))
def test_an_attachment_is_found_wherever_it_stands(parts: list[tuple[object, int, int]]) -> None:
    content: list[object] = []
    for part, size, before in parts:
        assert callable(part)
        content += [{"type": "text", "text": "some words " * (before // 11) + "." * (before % 11)}, part("Ab+/" * size)]
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    assert attachments(body) == (len(parts), sum(4 * size for _, size, _ in parts))


def test_what_is_short_or_inside_a_text_is_text() -> None:
    short = PICTURE[: tokens.ATTACHMENT_BYTES_MIN - 1]
    texts = [
        f"![it](data:image/png;base64,{PICTURE})",
        json.dumps({"data": PICTURE, "url": f"data:image/png;base64,{PICTURE}"}),
        PICTURE,
        "data:" + PICTURE,
    ]
    content = [openai_image(short), *({"type": "text", "text": text} for text in texts), openai_image(PICTURE)]
    assert attachments(json.dumps(content).encode()) == (1, len(PICTURE))


def test_a_writer_may_escape_slashes() -> None:
    body = json.dumps(openai_image(PICTURE + "/")).replace("/", "\\/").encode()
    assert attachments(body)[0] == 1


@given(st.binary(max_size=3000))
def test_any_bytes_can_be_searched(body: bytes) -> None:
    body = body + b';base64,"data":"' + body + b"A" * 5000 + b'"' + body
    count, size = attachments(body)
    assert 0 <= size <= len(body)
    assert count * tokens.ATTACHMENT_BYTES_MIN <= size


def test_a_megabyte_of_picture_counts_as_a_picture() -> None:
    data = base64.b64encode(b"\x89PNG" * 262_144).decode()
    body = json.dumps({"messages": [{"role": "user", "content": [openai_image(data)]}]}).encode()
    estimate = TokenEstimator().prompt_tokens("gpt-5", body)
    assert tokens.ATTACHMENT_TOKENS < estimate < tokens.ATTACHMENT_TOKENS + 50


@given(st.floats(1.2, 15.0), st.lists(st.integers(1_000, 100_000), min_size=120, max_size=120))
def test_the_ratio_of_a_model_is_learned(truth: float, sizes: list[int]) -> None:
    estimator = PromptEstimator()
    for size in sizes:
        estimator.learn("m", size, max(1, round(size / truth)))
    assert estimator.ratio("m") == pytest.approx(truth, rel=0.06)
    assert estimator.estimate("m", 10_000) == pytest.approx(10_000 / truth, rel=0.07)
    assert estimator.ratio("other") == tokens.BYTES_PER_TOKEN


@given(st.lists(st.tuples(st.integers(-5, 10**9), st.integers(-5, 10**9)), max_size=50))
def test_the_ratio_stays_within_its_bounds(seen: list[tuple[int, int]]) -> None:
    estimator = PromptEstimator()
    for text_bytes, count in seen:
        estimator.learn("m", text_bytes, count)
    assert tokens.BYTES_PER_TOKEN_MIN <= estimator.ratio("m") <= tokens.BYTES_PER_TOKEN_MAX


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.2])
@pytest.mark.parametrize("median", [8.0, 300.0, 9000.0])
def test_one_answer_in_ten_is_longer_than_expected(median: float, spread: float) -> None:
    dice = random.Random(7)
    estimator = OutputEstimator()
    above = 0
    answers = [max(1, round(median * dice.lognormvariate(0.0, spread))) for _ in range(3000)]
    for number, answer in enumerate(answers):
        if number >= 200:
            above += answer > estimator.estimate("t", "m")
        estimator.learn("t", "m", answer)
    if spread:
        assert above / 2800 == pytest.approx(0.1, abs=0.03)
    else:
        assert median <= estimator.estimate("t", "m") <= 1.12 * median + 1


def test_a_change_of_habit_is_followed_within_a_hundred_answers() -> None:
    estimator = OutputEstimator()
    for _ in range(300):
        estimator.learn("t", "m", 100)
    for _ in range(40):
        estimator.learn("t", "m", 2000)
    assert estimator.estimate("t", "m") >= 1900
    for _ in range(320):
        estimator.learn("t", "m", 100)
    assert estimator.estimate("t", "m") <= 112


def test_the_clients_bound_caps_the_expectation_and_is_never_required() -> None:
    estimator = OutputEstimator()
    assert estimator.estimate("t", "m") == tokens.OUTPUT_TOKENS
    assert estimator.estimate("t", "m", 16) == 16
    assert estimator.estimate("t", "m", 64_000) == tokens.OUTPUT_ASKED_MAX
    for _ in range(50):
        estimator.learn("t", "m", 700)
    assert 700 <= estimator.estimate("t", "m", 64_000) <= 800
    assert estimator.estimate("t", "m", 16) == 16
    assert estimator.estimate("other", "m") == tokens.OUTPUT_TOKENS


def test_the_first_answers_do_not_lower_the_expectation_below_the_default() -> None:
    estimator = OutputEstimator()
    estimator.learn("t", "m", 1)
    assert estimator.estimate("t", "m") == tokens.OUTPUT_TOKENS
    estimator.learn("t", "m", 0)  # a failure says nothing
    for _ in range(3):
        estimator.learn("t", "m", 1)
    assert estimator.estimate("t", "m") < 10


def test_what_is_remembered_is_bounded_and_the_longest_unused_goes_first() -> None:
    estimator = TokenEstimator()
    for number in range(tokens.ENTRIES_MAX + 10):
        estimator.learn("t", f"m{number}", b"x" * 1000, 100, 100)
        estimator.learn("t", "kept", b"x" * 1000, 100, 100)
    assert len(estimator.prompt._sums) == len(estimator.output._known) == tokens.ENTRIES_MAX
    assert estimator.prompt.ratio("kept") > 9
    assert estimator.prompt.ratio("m0") == tokens.BYTES_PER_TOKEN
    assert estimator.prompt.ratio(f"m{tokens.ENTRIES_MAX + 9}") > 4


def test_the_whole_estimate() -> None:
    estimator = TokenEstimator()
    assert estimator.estimate("t", "m", b"x" * 400, 100) == 200
    assert estimator.estimate("t", "m", b"x" * 400, 100, choices=3) == 400
    assert estimator.estimate("t", "m", b"x" * 400, None) == 100 + tokens.OUTPUT_TOKENS
    assert estimator.estimate("t", "m", b"", 0) == 1
    assert estimator.estimate("t", "m", b"", -5) == 1


def test_prompts_with_pictures_do_not_spoil_the_ratio() -> None:
    estimator = TokenEstimator()
    body = json.dumps({"messages": [{"role": "user", "content": [openai_image(PICTURE)]}]}).encode()
    for _ in range(50):
        estimator.learn("t", "m", body, 800, 100)
    assert estimator.prompt.ratio("m") == tokens.BYTES_PER_TOKEN
    assert estimator.output.estimate("t", "m") < 200
