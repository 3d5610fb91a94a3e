"""OpenAI: the dialect of most clients at its own source, so requests and replies pass nearly untouched."""

from __future__ import annotations

from edgegw.dialects import openai_chat
from edgegw.dialects.base import Ask, Call, PlainReply, StreamReader
from edgegw.dialects.openai_chat_reply import read_plain
from edgegw.dialects.openai_chat_stream import OpenAIChatStream
from edgegw.providers.base import Provider, ProviderSettings

RESOURCE = "/chat/completions"


class OpenAI(Provider):
    """api.openai.com, or what its base URL says."""

    __slots__ = ()

    mending = False  # OpenAI's own events need no setting right
    announced = True  # and have a null usage where the usage-only event is due to our asking

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(settings, openai_chat.NAME, RESOURCE, bearer(settings))

    def call(self, ask: Ask, model: str, request_id: str) -> Call:
        return self._call(ask, openai_chat.edit(ask, model, include_usage=True), request_id)

    def stream(self, ask: Ask, model: str, *, created_s: int) -> StreamReader:
        return OpenAIChatStream(ask.choices, not ask.include_usage, self.mending, self.announced, self.masked)

    def plain(self, ask: Ask, model: str, body: bytes, *, created_s: int) -> PlainReply:
        return read_plain(body, self.masked)


def bearer(settings: ProviderSettings) -> dict[str, str]:
    """The key as a bearer token; no field at all without a key."""
    return {} if settings.api_key is None else {"authorization": f"Bearer {settings.api_key.reveal()}"}
