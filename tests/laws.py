"""How often a law is tried: as often as the profile says (tests/conftest.py), or a multiple of it.

A number of its own would hold in `make check` too, where the profile asks for fewer examples.
"""

from __future__ import annotations

from hypothesis import settings


def tried(times: float) -> settings:
    """`times` as many examples as the profile has: `@tried(3)` for a law whose exceptions are rare."""
    return settings(max_examples=round(times * settings().max_examples))
