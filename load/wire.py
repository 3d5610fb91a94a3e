"""The bytes of the benchmark: what the mock sends, what the client asks, and how either knows that a message is whole.

Both ends take them from here, so that a client can say "this is exactly what the provider sent" about a reply that
came through a proxy. Pure; knows nothing of sockets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Every content event of either dialect carries this text once. It is inside a JSON string, so it survives a
# translation from one dialect to the other, and counting it counts events whatever they are wrapped in.
MARK = b'" token"'

EVENTS_PER_STREAM = 100
EVENT_PACE_S = 0.02

# Guards nothing: everybody listens on loopback. Long, because LiteLLM does not start with a weak one.
CLIENT_KEY = "sk-bench-5f0c1d7ab2e94c63a8d1f7420b9e6c35"

OPENAI_PATH = b"/v1/chat/completions"
ANTHROPIC_PATH = b"/v1/messages"
OPENAI_MODEL = "gpt-5-mini"
ANTHROPIC_MODEL = "claude-haiku-4-5"

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def message_end(data: bytes | bytearray) -> int:
    """Where the first message in `data` ends; 0 while it is not whole. Framed by content-length, or by chunks with
    nothing behind them (we never send a second request before the first reply is whole)."""
    head_end = data.find(_HEAD_END)
    if head_end < 0:
        return 0
    length = _LENGTH.search(data, 0, head_end)
    if length:
        end = head_end + 4 + int(length[1])
        return end if len(data) >= end else 0
    return len(data) if data.endswith(LAST_CHUNK) else 0


def says_close(data: bytes) -> bool:
    """Whether the head of `data` announces that the connection ends with this message."""
    return _CLOSE.search(data, 0, data.find(_HEAD_END)) is not None


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def request(path: bytes, body: bytes) -> bytes:
    return (
        b"POST %b HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (path, CLIENT_KEY.encode(), len(body), body)
    )


def plain_body(use_case: str, model: str = OPENAI_MODEL, prompt_bytes: int = 0) -> bytes:
    """A chat request of an ordinary size, or one whose prompt is `prompt_bytes` long."""
    prompt = b"Hello! Tell me something about proxies, please, and keep it short."
    if prompt_bytes:
        prompt = (prompt * (prompt_bytes // len(prompt) + 1))[:prompt_bytes]
    return (
        b'{"model":"%b","messages":[{"role":"system","content":"You are a helpful assistant."},'
        b'{"role":"user","content":"%b"}],"metadata":{"tenant":"test","use_case":"%b"}}'
        % (model.encode(), prompt, use_case.encode())
    )


def stream_body(use_case: str, model: str) -> bytes:
    """As an OpenAI client asks for a stream."""
    return (
        b'{"model":"%b","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":'
        b'"Hello! Tell me something about proxies."}],"metadata":{"tenant":"test","use_case":"%b"}}'
        % (model.encode(), use_case.encode())
    )


def anthropic_stream_body(model: str) -> bytes:
    """As an Anthropic client asks for the same stream."""
    return (
        b'{"model":"%b","stream":true,"max_tokens":256,"messages":[{"role":"user","content":'
        b'"Hello! Tell me something about proxies."}]}' % model.encode()
    )


_HEAD_COMMON = b"x-request-id: req_123\r\nopenai-processing-ms: 12\r\n"
ANSWER = (
    b'{"id":"chatcmpl-abc","object":"chat.completion","created":1700000000,"model":"gpt-5-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":12,"completion_tokens":96,"total_tokens":108}}'
    % (b"Hello there, this is a mock answer of a normal size. " * 8)
)
PLAIN_REPLY = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n" % (_HEAD_COMMON, len(ANSWER))
    + ANSWER
)


@dataclass(frozen=True, slots=True)
class Script:
    """A streamed reply: head and opening events at once, then one content event per tick, then the closing events.
    All in chunks of HTTP. `terminator` is what only a whole stream of this dialect holds."""

    opening: bytes
    event: bytes
    closing: bytes
    terminator: bytes


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n%btransfer-encoding: chunked\r\n\r\n"
    % _HEAD_COMMON
)


def _openai_chunk(rest: bytes) -> bytes:
    return chunk(
        b'data: {"id":"chatcmpl-abc","object":"chat.completion.chunk","created":1700000000,"model":"gpt-5-mini",%b}\n\n'
        % rest
    )


def _anthropic_event(name: bytes, rest: bytes) -> bytes:
    return chunk(b'event: %b\ndata: {"type":"%b"%b}\n\n' % (name, name, rest))


OPENAI_SCRIPT = Script(
    opening=_STREAM_HEAD
    + _openai_chunk(b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]'),
    event=_openai_chunk(b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]'),
    closing=_openai_chunk(b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]')
    + _openai_chunk(b'"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":100,"total_tokens":112}')
    + chunk(b"data: [DONE]\n\n")
    + LAST_CHUNK,
    terminator=b"data: [DONE]",
)

ANTHROPIC_SCRIPT = Script(
    opening=_STREAM_HEAD
    + _anthropic_event(
        b"message_start",
        b',"message":{"id":"msg_abc","type":"message","role":"assistant","model":"claude-haiku-4-5","content":[],'
        b'"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":12,"output_tokens":1}}',
    )
    + _anthropic_event(b"content_block_start", b',"index":0,"content_block":{"type":"text","text":""}')
    + _anthropic_event(b"ping", b""),
    event=_anthropic_event(b"content_block_delta", b',"index":0,"delta":{"type":"text_delta","text":" token"}'),
    closing=_anthropic_event(b"content_block_stop", b',"index":0')
    + _anthropic_event(
        b"message_delta",
        b',"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":100}',
    )
    + _anthropic_event(b"message_stop", b"")
    + LAST_CHUNK,
    terminator=b"event: message_stop",
)
