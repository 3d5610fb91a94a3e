"""Providers that speak OpenAI's dialect with an accent: vLLM, Ollama, Mistral, Groq, OpenRouter and their like."""

from __future__ import annotations

from edgegw.providers.openai import OpenAI


class Compatible(OpenAI):
    """An OpenAI-compatible provider at its base URL; the key is optional (a model on the same host needs none)."""

    __slots__ = ()

    mending = True
    announced = False
