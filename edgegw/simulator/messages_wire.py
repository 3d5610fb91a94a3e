"""Anthropic Messages as the simulated provider speaks it.

Pure. Strict where the real one is: max_tokens and anthropic-version are required, unknown fields are refused, text
blocks are not empty, every tool_use is answered by a tool_result in the next turn and no tool_result comes unasked.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

import msgspec

from edgegw.simulator.script import Answer, Question, RefusalError, Tool, ToolCall
from edgegw.simulator.wire import Mark, choice_of, decode, schema_of

_IMAGE_TOKENS = 85
_PICTURES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_FINISH = {"stop": b"end_turn", "stop_sequence": b"stop_sequence", "length": b"max_tokens", "tools": b"tool_use"}
_ABSENT = msgspec.Raw(b"null")
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


class _Source(msgspec.Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    source: _Source | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[dict[str, Any]] | None = None


class _Turn(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    input_schema: msgspec.Raw = _ABSENT
    type: str = "custom"


class _Choice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    user_id: str | None = None


class _Messages(msgspec.Struct, forbid_unknown_fields=True):
    """The whole vocabulary of the API; fields the simulator ignores are Raw."""

    model: str
    messages: msgspec.Raw
    max_tokens: int
    system: str | list[_Block] | None = None
    stream: bool = False
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    stop_sequences: list[str] | None = None
    metadata: _Metadata | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    thinking: msgspec.Raw = _ABSENT
    output_config: msgspec.Raw = _ABSENT
    service_tier: msgspec.Raw = _ABSENT
    speed: msgspec.Raw = _ABSENT
    cache_control: msgspec.Raw = _ABSENT
    container: msgspec.Raw = _ABSENT
    inference_geo: msgspec.Raw = _ABSENT
    diagnostics: msgspec.Raw = _ABSENT
    user_profile_id: msgspec.Raw = _ABSENT


class MessagesWire:
    """The Wire of `POST /v1/messages`."""

    def authorize(self, headers: dict[str, str]) -> None:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key") or (bearer if scheme.lower() == "bearer" else "")
        if not key.strip():
            raise RefusalError("x-api-key header is required", status=401, type="authentication_error")
        if key.startswith("bad"):
            raise RefusalError("invalid x-api-key", status=401, type="authentication_error")
        if not headers.get("anthropic-version"):
            raise RefusalError("anthropic-version: header is required")

    def read(self, body: bytes) -> Question:
        ask = decode(body, _Messages)
        turns = decode(ask.messages, list[_Turn], "messages")
        if ask.max_tokens < 1:
            raise RefusalError("max_tokens: Input should be greater than or equal to 1")
        if ask.temperature is not None and not 0 <= ask.temperature <= 1:
            raise RefusalError("temperature: range: 0..1")
        if isinstance(ask.system, list):
            _check_blocks(ask.system, "system")
        pictures = _check_turns(turns, bool(ask.tools))
        tools = tuple(Tool(tool.name, schema_of(tool.input_schema)) for tool in ask.tools or ())
        for number, tool in enumerate(tools):
            if isinstance(tool.schema, dict) and tool.schema.get("type") != "object":
                raise RefusalError(f"tools.{number}.custom.input_schema.type: Field required")
        weight = len(bytes(ask.messages)) - sum(map(len, pictures)) + _weight_of_system(ask.system)
        weight += sum(len(tool.name) + len(bytes(tool.input_schema)) for tool in ask.tools or ())
        return Question(
            ask.model,
            ask.stream,
            _last_text(turns),
            max(1, weight // 4) + _IMAGE_TOKENS * len(pictures),
            ask.max_tokens,
            True,
            tuple(ask.stop_sequences or ()),
            tools,
            _choice(ask.tool_choice, tools),
            ask.tool_choice is None or not ask.tool_choice.disable_parallel_tool_use,
            _told(turns[-1]),
            len(pictures),
        )

    def fields(self, mark: Mark, question: Question) -> bytes:
        return (
            f"request-id: {mark.request_id}\r\nanthropic-organization-id: simulator\r\n"
            "anthropic-ratelimit-requests-limit: 4000\r\nanthropic-ratelimit-requests-remaining: 3999\r\n"
            "anthropic-ratelimit-requests-reset: 2026-11-23T09:30:00Z\r\n"
            "anthropic-ratelimit-tokens-limit: 400000\r\n"
            f"anthropic-ratelimit-tokens-remaining: {max(0, 400_000 - question.prompt_tokens)}\r\n"
            "anthropic-ratelimit-tokens-reset: 2026-11-23T09:30:00Z\r\n"
        ).encode()

    def plain(self, question: Question, answer: Answer, mark: Mark, usage: bool) -> bytes:
        blocks = [
            b'{"type":"tool_use","id":%b,"name":%b,"input":%b}'
            % (_call_id(mark, call), msgspec.json.encode(call.name), call.arguments)
            for call in answer.calls
        ]
        if answer.tokens:
            blocks = [b'{"type":"text","text":"%b"}' % b"".join(answer.tokens)]
        return (
            b'{"id":"msg_%b","type":"message","role":"assistant","model":%b,"content":[%b],'
            b'"stop_reason":"%b","stop_sequence":%b%b}'
        ) % (
            mark.digits.encode(),
            msgspec.json.encode(question.model),
            b",".join(blocks),
            _FINISH[answer.finish],
            msgspec.json.encode(answer.stop),
            b',"usage":' + _usage(answer, answer.completion_tokens) if usage else b"",
        )

    def events(self, question: Question, answer: Answer, mark: Mark, usage: bool) -> tuple[list[bytes], bytes]:
        start = (
            b'{"type":"message_start","message":{"id":"msg_%b","type":"message","role":"assistant","model":%b,'
            b'"content":[],"stop_reason":null,"stop_sequence":null%b}}'
        ) % (
            mark.digits.encode(),
            msgspec.json.encode(question.model),
            b',"usage":' + _usage(answer, 1) if usage else b"",
        )
        out = [_event(b"message_start", start), _PING]
        weights = bytearray(2)
        if answer.tokens:
            begin = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
            begin += b'{"type":"text_delta","text":"'
            out.append(_block_start(0, b'{"type":"text","text":""}'))
            out += [begin + token + b'"}}\n\n' for token in answer.tokens]
            out.append(_block_stop(0))
            weights += b"\0" + b"\1" * len(answer.tokens) + b"\0"
        for call in answer.calls:
            events = _call_events(mark, call)
            out += events
            weights += b"\1" * (len(events) - 1) + b"\0"
        finish = b'{"type":"message_delta","delta":{"stop_reason":"%b","stop_sequence":%b}%b}' % (
            _FINISH[answer.finish],
            msgspec.json.encode(answer.stop),
            b',"usage":{%b"output_tokens":%d}' % (_details(answer), answer.completion_tokens) if usage else b"",
        )
        out += [_event(b"message_delta", finish), _event(b"message_stop", b'{"type":"message_stop"}')]
        return out, bytes(weights) + b"\0\0"

    def error_body(self, refusal: RefusalError, mark: Mark) -> bytes:
        error = {"type": refusal.type, "message": refusal.message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": f"req_{mark.digits}"})

    def error_event(self, mark: Mark) -> bytes:
        return _event(b"error", self.error_body(self.failure(529, False), mark))

    def failure(self, status: int, quota: bool) -> RefusalError:
        if quota:
            return RefusalError("Your credit balance is too low.", status=429, type="billing_error")
        type, message = _FAILURES.get(status, _FAILURES[500 if status >= 500 else 400])
        return RefusalError(message, status=status, type=type)


_FAILURES = {
    400: ("invalid_request_error", "The simulator was told to refuse this request."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "model: no such model"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}


def _check_turns(turns: list[_Turn], with_tools: bool) -> list[str]:
    """Checks every turn; gives the data or addresses of the pictures in them."""
    if not turns:
        raise RefusalError("messages: at least one message is required")
    pictures: list[str] = []
    waiting: set[str] = set()
    for number, turn in enumerate(turns):
        blocks = turn.content if isinstance(turn.content, list) else [_Block("text", turn.content)]
        where = f"messages.{number}.content"
        pictures += _check_blocks(blocks, where)
        given = {block.tool_use_id or "" for block in blocks if block.type == "tool_result"}
        if unasked := given - waiting:
            raise RefusalError(f"{where}: unexpected `tool_use_id` found in `tool_result` blocks: {', '.join(unasked)}")
        if missing := waiting - given:
            found = f"messages.{number - 1}: `tool_use` ids were found without `tool_result` blocks immediately after"
            raise RefusalError(f"{found}: {', '.join(missing)}.")
        waiting = {block.id or "" for block in blocks if block.type == "tool_use"}
        if (given or waiting) and not with_tools:
            raise RefusalError("Requests which include `tool_use` or `tool_result` blocks must define tools.")
    return pictures


def _check_blocks(blocks: list[_Block], where: str) -> list[str]:
    pictures = []
    for number, block in enumerate(blocks):
        if block.type == "text" and not (block.text or "").strip():
            raise RefusalError(f"{where}.{number}: text content blocks must be non-empty")
        if block.type == "tool_use" and (block.id is None or block.name is None or block.input is None):
            raise RefusalError(f"{where}.{number}.tool_use: id, name and input are required")
        if block.type == "image":
            pictures.append(_picture(block.source, f"{where}.{number}.image.source"))
    return pictures


def _picture(source: _Source | None, where: str) -> str:
    if source is None:
        raise RefusalError(f"{where}: Field required")
    if source.type == "url" and source.url:
        return source.url
    if source.type != "base64" or source.data is None:
        raise RefusalError(f"{where}: needs base64 data or a url")
    if source.media_type not in _PICTURES:
        raise RefusalError(f"{where}.base64.media_type: Input should be one of {', '.join(_PICTURES)}")
    try:
        base64.b64decode(source.data, validate=True)
    except binascii.Error:
        raise RefusalError(f"{where}.base64.data: Invalid base64") from None
    return source.data


def _choice(choice: _Choice | None, tools: tuple[Tool, ...]) -> str:
    if choice is None:
        return "auto"
    if not tools:
        raise RefusalError("tool_choice: may only be specified while providing tools")
    if choice.type == "tool":
        return choice_of(choice.name or "", tools, "tool_choice")
    return {"any": "required"}.get(choice.type, choice.type)


def _last_text(turns: list[_Turn]) -> str:
    for turn in reversed(turns):
        if turn.role == "user":
            if isinstance(turn.content, str):
                return turn.content
            if texts := [block.text or "" for block in turn.content if block.type == "text"]:
                return "".join(texts)
    return ""


def _told(turn: _Turn) -> str | None:
    """The text of the last tool result, when the conversation ends with one."""
    if isinstance(turn.content, str) or not turn.content or turn.content[-1].type != "tool_result":
        return None
    content = turn.content[-1].content
    if isinstance(content, list):
        return "".join(str(block.get("text", "")) for block in content)
    return content or ""


def _weight_of_system(system: str | list[_Block] | None) -> int:
    return sum(len(block.text or "") for block in system) if isinstance(system, list) else len(system or "")


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, data)


def _block_start(index: int, block: bytes) -> bytes:
    data = b'{"type":"content_block_start","index":%d,"content_block":%b}' % (index, block)
    return _event(b"content_block_start", data)


def _block_stop(index: int) -> bytes:
    return _event(b"content_block_stop", b'{"type":"content_block_stop","index":%d}' % index)


def _call_id(mark: Mark, call: ToolCall) -> bytes:
    return b'"toolu_%b%d"' % (mark.digits.encode(), call.number)


def _call_events(mark: Mark, call: ToolCall) -> list[bytes]:
    block = b'{"type":"tool_use","id":%b,"name":%b,"input":{}}' % (_call_id(mark, call), msgspec.json.encode(call.name))
    deltas = [
        _event(
            b"content_block_delta",
            b'{"type":"content_block_delta","index":%d,"delta":{"type":"input_json_delta","partial_json":"%b"}}'
            % (call.number, fragment),
        )
        for fragment in call.fragments
    ]
    return [_block_start(call.number, block), *deltas, _block_stop(call.number)]


def _usage(answer: Answer, output: int) -> bytes:
    return (
        b'{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,'
        b'"output_tokens":%d,%b"service_tier":"standard"}'
    ) % (
        answer.prompt_tokens - answer.cached - answer.written,
        answer.written,
        answer.cached,
        output,
        _details(answer) if output == answer.completion_tokens else b"",
    )


def _details(answer: Answer) -> bytes:
    return b'"output_tokens_details":{"thinking_tokens":%d},' % answer.reasoning if answer.reasoning else b""
