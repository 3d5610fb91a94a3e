"""Providers that speak OpenAI's dialect with an accent: vLLM, Ollama, Mistral, Groq, OpenRouter and their like."""

from __future__ import annotations

from edgegw.providers.openai import OpenAI

# OpenAI has a code for a prompt that is too long, these say it in prose (vLLM, DeepSeek, Mistral; llama.cpp). The code
# is what sends a request on to a target with a larger window.
_TOO_LONG = ("maximum context length", "exceeds the available context size")


class Compatible(OpenAI):
    """An OpenAI-compatible provider at its base URL; the key is optional (a model on the same host needs none)."""

    __slots__ = ()

    mending = True
    announced = False

    def _words(self, error: object) -> dict[str, str]:
        words = super()._words(error)
        code, message = words.get("code", ""), words.get("message", "")
        if (not code or code.isdecimal()) and any(prose in message for prose in _TOO_LONG):
            words["code"] = "context_length_exceeded"
        return words
