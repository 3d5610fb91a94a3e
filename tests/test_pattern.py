"""Names with a `*`, against the slow and obvious way of reading them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgegw.pattern import Pattern

TEXT = st.text("ab*", max_size=8)
NAME = st.text("ab*.\n", max_size=14)


@given(TEXT, NAME)
def test_a_star_stands_for_any_text(text: str, name: str) -> None:
    obvious = re.compile(".*".join(re.escape(piece) for piece in text.split("*")), re.DOTALL)
    assert Pattern(text).fits(name) == (obvious.fullmatch(name) is not None)


@pytest.mark.parametrize(("text", "fitting", "other"), [
    ("gpt-5", ("gpt-5",), ("gpt-5-mini", "gpt", "", "GPT-5")), ("*", ("", "gpt-5", "*"), ()),
    ("gpt-5*", ("gpt-5", "gpt-5-mini"), ("gpt-4", "xgpt-5")), ("*-mini", ("gpt-5-mini", "-mini"), ("gpt-5", "mini")),
    ("claude-*-4*", ("claude-haiku-4-5", "claude--4"), ("claude-4", "claude-haiku-3")), ("", ("",), ("a",)),
    ("ab*ba", ("abba", "abxba"), ("aba",)), ("a*a*a", ("aaa", "abaa"), ("aa",)), ("**", ("", "x"), ()),
    ("gpt-5.1", ("gpt-5.1",), ("gpt-5x1",)),
])  # fmt: skip
def test_what_fits_and_what_does_not(text: str, fitting: tuple[str, ...], other: tuple[str, ...]) -> None:
    pattern = Pattern(text)
    assert [name for name in fitting if not pattern.fits(name)] == []
    assert [name for name in other if pattern.fits(name)] == []


def test_the_more_literal_the_more_letters_are_given() -> None:
    texts = ["*", "gpt-5", "gpt-*", "*-*"]
    assert sorted(texts, key=lambda text: -Pattern(text).literals) == ["gpt-5", "gpt-*", "*-*", "*"]


def test_a_name_made_to_be_slow_is_not() -> None:
    pattern, name = Pattern("*a" * 100 + "*b"), "a" * 20_000
    started_s = time.perf_counter()
    assert not pattern.fits(name)
    assert time.perf_counter() - started_s < 0.5, "a regular expression would take years"
