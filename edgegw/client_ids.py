"""How the programs of clients name their session and their user: one table, for the books alone.

Nothing is decided by these names, and nobody vouches for them: a client may write what it likes. They go into the
row of a request, so that its cost can be told by session or by user, and nowhere else.

A header counts before a field of the body, and of several the first of its list. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

# By header, in lower case.
SESSION_HEADERS = (
    b"x-claude-code-session-id",  # Claude Code
    b"session-id",  # Codex CLI
    b"session_id",  # older ones of it
    b"x-session-id",  # opencode, and what many write themselves
    b"x-openwebui-chat-id",  # Open WebUI, when it is told to forward
    b"x-librechat-conversation-id",  # LibreChat, as its settings are usually written
    b"x-kilocode-taskid",  # Kilo Code
    b"x-client-session-id",  # GitHub Copilot CLI
    b"x-cagent-session-id",  # Docker's agent
    b"helicone-session-id",  # written for Helicone
    b"x-litellm-session-id",  # written for LiteLLM
    b"x-conversation-id",
    b"conversation_id",
)
USER_HEADERS = (
    b"x-openwebui-user-id",
    b"x-librechat-user-id",
    b"helicone-user-id",
    b"x-litellm-end-user-id",
    b"x-user-id",
)
# By top-level field of the request. A prompt_cache_key is a session's with agents (Codex, opencode), which is what most
# of those are who set it.
SESSION_FIELDS = ("prompt_cache_key",)
USER_FIELDS = ("safety_identifier", "user")

HEADERS = frozenset(SESSION_HEADERS + USER_HEADERS)
FIELDS = frozenset(SESSION_FIELDS + USER_FIELDS)

# Longer than any id; the books cut at 512 bytes.
CHARS_MAX = 512

_TEXT = msgspec.json.Decoder(str)


def told(headers: Mapping[bytes, bytes], fields: Mapping[str, msgspec.Raw]) -> tuple[str | None, str | None]:
    """The session and the user of a request, None for what it does not say. Most requests say neither, and two looks
    at their names tell it."""
    if HEADERS.isdisjoint(headers) and FIELDS.isdisjoint(fields):
        return None, None
    return (
        _of_headers(headers, SESSION_HEADERS) or _of_fields(fields, SESSION_FIELDS),
        _of_headers(headers, USER_HEADERS) or _of_fields(fields, USER_FIELDS),
    )


def _of_headers(headers: Mapping[bytes, bytes], names: tuple[bytes, ...]) -> str | None:
    for name in names:
        value = headers.get(name)
        if value is not None and (text := _clean(value[: 4 * CHARS_MAX].decode("utf-8", "replace"))):
            return text
    return None


def _of_fields(fields: Mapping[str, msgspec.Raw], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = fields.get(name)
        try:
            text = _clean(_TEXT.decode(value)) if value is not None else ""
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # the provider's to complain about
        if text:
            return text
    return None


def _clean(text: str) -> str:
    """Without what cannot be printed, and bounded."""
    text = text[:CHARS_MAX].strip()
    return text if text.isprintable() else "".join(filter(str.isprintable, text))
