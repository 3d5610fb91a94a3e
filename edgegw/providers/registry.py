"""From an entry of the settings to a Provider."""

from __future__ import annotations

from collections.abc import Callable

from edgegw.providers.anthropic import Anthropic
from edgegw.providers.base import Provider, ProviderSettings
from edgegw.providers.compatible import Compatible
from edgegw.providers.models import shipped
from edgegw.providers.openai import OpenAI

KINDS: dict[str, Callable[[ProviderSettings], Provider]] = {
    "openai": OpenAI,
    "openai-compatible": Compatible,
    "anthropic": lambda settings: Anthropic(settings, shipped()),
}


def build(settings: ProviderSettings) -> Provider:
    """Raises ValueError when the settings hold what cannot be sent, KeyError for a kind that nobody speaks."""
    return KINDS[settings.kind](settings)
