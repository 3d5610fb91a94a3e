"""OpenAI Chat Completions as the simulated provider speaks it.

Pure. Shapes and messages follow the platform's documentation and recorded traffic: the first delta carries the role,
`usage: null` stands in every chunk when include_usage was asked, the last chunk has no choices, then [DONE].
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edgegw.simulator.script import Answer, Question, RefusalError, Tool, ToolCall
from edgegw.simulator.wire import Mark, choice_of, decode, schema_of

_IMAGE_TOKENS = 85  # what OpenAI charges for an image of low detail
_STOPS_MAX = 4
_ABSENT = msgspec.Raw(b"null")
_DONE = b"data: [DONE]\n\n"
_FINISH = {"stop": b"stop", "stop_sequence": b"stop", "length": b"length", "tools": b"tool_calls"}
_TOKENS_PER_MINUTE = 2_000_000


class _Url(msgspec.Struct):
    url: str


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    image_url: _Url | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Defined(msgspec.Struct):
    name: str
    parameters: msgspec.Raw = _ABSENT


class _Tool(msgspec.Struct):
    type: str
    function: _Defined | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Chat(msgspec.Struct):
    model: str
    messages: msgspec.Raw
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None


class ChatWire:
    """The Wire of `POST /v1/chat/completions`."""

    def authorize(self, headers: dict[str, str]) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "You didn't provide an API key. Provide it in an Authorization header using Bearer auth."
            raise RefusalError(message, status=401)
        if key.startswith("bad"):
            raise RefusalError("Incorrect API key provided.", status=401, code="invalid_api_key")
        if not headers.get("content-type", "").startswith("application/json"):
            raise RefusalError("Unsupported content type: the body must be application/json.", status=415)

    def read(self, body: bytes) -> Question:
        ask = decode(body, _Chat)
        _check(ask)
        messages = decode(ask.messages, list[_Message], "messages")
        _check_messages(messages)
        tools = tuple(
            Tool(tool.function.name, schema_of(tool.function.parameters))
            for tool in ask.tools or ()
            if tool.function is not None
        )
        last = messages[-1]
        pictures = [
            part.image_url.url
            for message in messages
            if isinstance(message.content, list)
            for part in message.content
            if part.image_url is not None
        ]
        weight = len(bytes(ask.messages)) - sum(map(len, pictures)) + _weight_of_tools(ask.tools)
        bound = ask.max_tokens if ask.max_completion_tokens is None else ask.max_completion_tokens
        return Question(
            ask.model,
            bool(ask.stream),
            _last_text(messages, "user"),
            max(1, weight // 4) + _IMAGE_TOKENS * len(pictures),
            bound,
            ask.stream_options is not None and ask.stream_options.include_usage,
            (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop or ()),
            tools,
            _choice(ask.tool_choice, tools),
            ask.parallel_tool_calls is not False,
            _text(last) if last.role == "tool" else None,
            len(pictures),
        )

    def fields(self, mark: Mark, question: Question) -> bytes:
        return (
            f"x-request-id: {mark.request_id}\r\nopenai-processing-ms: {5 + mark.number % 20}\r\n"
            "openai-version: 2020-10-01\r\n"
            "x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\n"
            "x-ratelimit-reset-requests: 6ms\r\n"
            f"x-ratelimit-limit-tokens: {_TOKENS_PER_MINUTE}\r\n"
            f"x-ratelimit-remaining-tokens: {max(0, _TOKENS_PER_MINUTE - question.prompt_tokens)}\r\n"
            "x-ratelimit-reset-tokens: 1ms\r\n"
        ).encode()

    def plain(self, question: Question, answer: Answer, mark: Mark, usage: bool) -> bytes:
        if answer.calls:
            calls = b",".join(
                b'{"id":%b,"type":"function","function":{"name":%b,"arguments":"%b"}}'
                % (_call_id(mark, call), msgspec.json.encode(call.name), b"".join(call.fragments))
                for call in answer.calls
            )
            message = b'"content":null,"tool_calls":[%b],"refusal":null,"annotations":[]' % calls
        else:
            message = b'"content":"%b","refusal":null,"annotations":[]' % b"".join(answer.tokens)
        return (
            b'{"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,'
            b'"message":{"role":"assistant",%b},"logprobs":null,"finish_reason":"%b"}]%b,'
            b'"service_tier":"default","system_fingerprint":"fp_simulator"}'
        ) % (
            mark.digits.encode(),
            mark.created_s,
            msgspec.json.encode(question.model),
            message,
            _FINISH[answer.finish],
            b',"usage":' + _usage(answer) if usage else b"",
        )

    def events(self, question: Question, answer: Answer, mark: Mark, usage: bool) -> tuple[list[bytes], bytes]:
        begin = (
            b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":%d,"model":%b,'
            b'"service_tier":"default","system_fingerprint":"fp_simulator",'
        ) % (mark.digits.encode(), mark.created_s, msgspec.json.encode(question.model))
        tell = usage and question.include_usage
        tail = b',"usage":null}\n\n' if tell else b"}\n\n"
        head = begin + b'"choices":[{"index":0,"delta":{'
        end = b'},"logprobs":null,"finish_reason":null}]' + tail
        opening = b'"role":"assistant","content":"","refusal":null'
        if answer.calls:
            opening = b'"role":"assistant","content":null,"refusal":null'
        deltas = [b'"content":"%b"' % token for token in answer.tokens]
        for call in answer.calls:
            deltas += _call_deltas(mark, call)
        out = [head + opening + end]
        out += [head + delta + end for delta in deltas]
        out.append(head + b'},"logprobs":null,"finish_reason":"%b"}]' % _FINISH[answer.finish] + tail)
        weights = b"\0" + b"\1" * len(deltas) + b"\0\0"
        if tell:
            out.append(begin + b'"choices":[],"usage":' + _usage(answer) + b"}\n\n")
            weights += b"\0"
        out.append(_DONE)
        return out, weights

    def error_body(self, refusal: RefusalError, mark: Mark) -> bytes:
        error = {"message": refusal.message, "type": refusal.type, "param": refusal.param, "code": refusal.code}
        return msgspec.json.encode({"error": error})

    def error_event(self, mark: Mark) -> bytes:
        return b"data: " + self.error_body(self.failure(500, False), mark) + b"\n\n"

    def failure(self, status: int, quota: bool) -> RefusalError:
        if quota:
            message = "You exceeded your current quota, please check your plan and billing details."
            return RefusalError(message, status=429, type="insufficient_quota", code="insufficient_quota")
        message, type, code = _FAILURES.get(status, _FAILURES[500 if status >= 500 else 400])
        return RefusalError(message, status=status, type=type, code=code)


_FAILURES = {
    400: ("The simulator was told to refuse this request.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("Country, region, or territory not supported.", "request_forbidden", "unsupported_country_region_territory"),
    404: ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    429: ("Rate limit reached for this model on tokens per min (TPM).", "tokens", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request. Sorry about that!", "server_error", None),
    503: ("The engine is currently overloaded, please try again later.", "server_error", "slow_down"),
}


def _check(ask: _Chat) -> None:
    """What a JSON type cannot say."""
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(ask, name)
        if value is not None and value < 1:
            message = f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {value} instead."
            raise RefusalError(message, param=name, code="integer_below_min_value")
    if ask.stream_options is not None and not ask.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise RefusalError(message, param="stream_options")
    if ask.n not in (None, 1):
        raise RefusalError("The simulator gives one choice.", param="n", code="unsupported_value")
    if ask.temperature is not None and not 0 <= ask.temperature <= 2:
        message = "Invalid 'temperature': expected a value between 0 and 2."
        raise RefusalError(message, param="temperature", code="decimal_above_max_value")
    if isinstance(ask.stop, list) and len(ask.stop) > _STOPS_MAX:
        raise RefusalError("Invalid 'stop': array too long.", param="stop", code="array_above_max_length")


def _check_messages(messages: list[_Message]) -> None:
    """Contents are there, and calls and tool messages belong together."""
    if not messages:
        said = "Invalid 'messages': empty array. Expected an array with minimum length 1."
        raise RefusalError(said, param="messages", code="empty_array")
    waiting: set[str] = set()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise RefusalError(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with "
                    "'tool_calls'.",
                    param=f"{where}.role",
                )
            waiting.discard(message.tool_call_id or "")
        elif waiting:
            raise RefusalError(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(waiting)}",
                param=where,
            )
        waiting |= {call.id for call in message.tool_calls or ()}
        if message.content is None and message.role != "assistant":
            said = f"Invalid value for 'content': expected a string, got null. {where}.content"
            raise RefusalError(said, param=f"{where}.content")


def _choice(choice: str | dict[str, Any] | None, tools: tuple[Tool, ...]) -> str:
    if choice is None:
        return "auto"
    if not tools:
        message = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        raise RefusalError(message, param="tool_choice")
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise RefusalError(f"Invalid value: '{choice}'.", param="tool_choice", code="invalid_value")
        return choice
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return choice_of(str(name), tools, "tool_choice")


def _text(message: _Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.text or "" for part in message.content)
    return message.content or ""


def _last_text(messages: list[_Message], role: str) -> str:
    return next((_text(message) for message in reversed(messages) if message.role == role), "")


def _weight_of_tools(tools: list[_Tool] | None) -> int:
    return sum(
        len(tool.function.name) + len(bytes(tool.function.parameters))
        for tool in tools or ()
        if tool.function is not None
    )


def _call_id(mark: Mark, call: ToolCall) -> bytes:
    return b'"call_%b%d"' % (mark.digits.encode(), call.number)


def _call_deltas(mark: Mark, call: ToolCall) -> list[bytes]:
    opening = b'"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]' % (
        call.number,
        _call_id(mark, call),
        msgspec.json.encode(call.name),
    )
    begin = b'"tool_calls":[{"index":%d,"function":{"arguments":"' % call.number
    return [opening, *(begin + fragment + b'"}}]' for fragment in call.fragments)]


def _usage(answer: Answer) -> bytes:
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0%b},'
        b'"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0,'
        b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
    ) % (
        answer.prompt_tokens,
        answer.completion_tokens,
        answer.prompt_tokens + answer.completion_tokens,
        answer.cached,
        b',"cache_write_tokens":%d' % answer.written if answer.written else b"",
        answer.reasoning,
    )
