"""Anthropic: requests of an OpenAI client through the neutral form, answers back the same way."""

from __future__ import annotations

from collections.abc import Mapping

from edgegw.dialects import anthropic_messages
from edgegw.dialects.anthropic_request import unwraps, write
from edgegw.dialects.anthropic_stream import AnthropicStream
from edgegw.dialects.base import Ask, Call, PlainReply, StreamReader
from edgegw.dialects.openai_chat_request import schema_wanted, to_neutral
from edgegw.dialects.openai_chat_writer import ChunkWriter, write_answer
from edgegw.errors import UpstreamFault
from edgegw.providers.base import Provider, ProviderSettings
from edgegw.providers.models import ModelTable

API_VERSION = "2023-06-01"


class Anthropic(Provider):
    """api.anthropic.com, or what its base URL says, which may end in /v1 or not."""

    __slots__ = ("_models",)

    def __init__(self, settings: ProviderSettings, models: ModelTable) -> None:
        key = {} if settings.api_key is None else {"x-api-key": settings.api_key.reveal()}
        resource = "/messages" if settings.base_url.rstrip("/").endswith("/v1") else "/v1/messages"
        super().__init__(settings, anthropic_messages.NAME, resource, {**key, "anthropic-version": API_VERSION})
        self._models = models

    def call(self, ask: Ask, model: str, request_id: str) -> Call:
        written = write(to_neutral(ask), model, self._models.capabilities(model))
        return self._call(ask, written.body, request_id, written.dropped)

    def stream(self, ask: Ask, model: str, *, created_s: int) -> StreamReader:
        return AnthropicStream(ChunkWriter(created_s, ask.include_usage), self._unwrap(ask, model), self.masked)

    def plain(self, ask: Ask, model: str, body: bytes, *, created_s: int) -> PlainReply:
        answer = anthropic_messages.read_message(body, self._unwrap(ask, model), self.masked)
        return PlainReply(write_answer(answer, created_s), answer.usage, answer.finish, answer.model)

    def fault(self, status: int, headers: Mapping[bytes, bytes], body: bytes, wall_s: float) -> UpstreamFault:
        """Never verbatim: no client speaks this dialect yet."""
        fault = super().fault(status, headers, body, wall_s)
        fault.verbatim = False
        return fault

    def _words(self, error: object) -> dict[str, str]:
        return anthropic_messages.words_of(error)

    def _unwrap(self, ask: Ask, model: str) -> str | None:
        return unwraps(schema_wanted(ask), self._models.capabilities(model))
