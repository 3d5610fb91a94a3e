"""The official OpenAI SDK on the simulated provider itself and through the gateway: it must not see a difference.

The traces of the first part run against all peers. The second part is what only the gateway does: its reply headers,
its errors, and an Anthropic provider behind the same client.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionChunk, ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.chat.chat_completion_message_function_tool_call_param import Function
from rig import CLIENT_KEY, PROVIDER_KEY, Gateway, Simulator, StartGateway, providers

pytestmark = pytest.mark.system

RATELIMIT = {f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")}
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How are you?"}]


def tool(name: str, required: str) -> ChatCompletionFunctionToolParam:
    schema: dict[str, object] = {"type": "object", "properties": {required: {"type": "string"}}, "required": [required]}
    return {"type": "function", "function": {"name": name, "description": "…", "parameters": schema}}


TOOLS = [tool("get_weather", "city"), tool("get_time", "zone")]


@pytest.fixture(scope="module")
def running(simulator: Simulator, module_gateways: StartGateway) -> Gateway:
    """One gateway for the module: what fails here on purpose fails on the client's side."""
    return module_gateways(
        {
            "providers": providers(simulator),
            "models": {
                "smart": {"targets": ["claude/claude-sonnet-4-5"]},
                "gpt-*": {"targets": ["sim/*"]},
                "sim-*": {"targets": ["sim/*"]},
            },
            "use_cases": {"support_summary": {"targets": ["sim/gpt-5-mini"]}},
            "default": {"targets": ["sim/gpt-5-mini"]},
            "limits": {"tokens_per_minute": 10_000_000},
        }
    )


@dataclass(slots=True)
class Peer:
    """Something that speaks OpenAI's API, and the model to ask it for."""

    url: str
    model: str


@pytest.fixture(params=["provider", "gateway", "anthropic"])
def peer(request: pytest.FixtureRequest, simulator: Simulator) -> Peer:
    """The provider itself; the same provider behind the gateway; an Anthropic provider behind the gateway."""
    if request.param == "provider":
        return Peer(f"{simulator.url}/v1", "gpt-5-mini")
    running: Gateway = request.getfixturevalue("running")
    return Peer(f"{running.url}/v1", "gpt-5-mini" if request.param == "gateway" else "claude/claude-haiku-4-5")


@pytest.fixture
def sdk(peer: Peer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=peer.url, api_key=CLIENT_KEY, max_retries=0, timeout=20) as sdk:
        yield sdk


@pytest_asyncio.fixture
async def async_sdk(peer: Peer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=peer.url, api_key=CLIENT_KEY, max_retries=0, timeout=20) as sdk:
        yield sdk


@pytest.fixture
def through(running: Gateway) -> Iterator[openai.OpenAI]:
    """The SDK on the gateway."""
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=CLIENT_KEY, max_retries=0, timeout=20) as sdk:
        yield sdk


def said(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# ---- the same trace against all peers


def test_plain(sdk: openai.OpenAI, peer: Peer) -> None:
    answer = sdk.chat.completions.create(model=peer.model, messages=HELLO)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert (choice.message.content or "").startswith("You asked: How are you? ")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_streamed_says_what_plain_says(sdk: openai.OpenAI, peer: Peer) -> None:
    plain = sdk.chat.completions.create(model=peer.model, messages=HELLO)
    with sdk.chat.completions.create(model=peer.model, messages=HELLO, stream=True) as stream:
        chunks = list(stream)
    assert said(chunks) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)  # nobody asked for usage


def test_usage_comes_last_when_asked_for(sdk: openai.OpenAI, peer: Peer) -> None:
    plain = sdk.chat.completions.create(model=peer.model, messages=HELLO)
    with sdk.chat.completions.create(
        model=peer.model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert plain.usage is not None
    assert last.usage.prompt_tokens == plain.usage.prompt_tokens
    assert (last.usage.completion_tokens, last.usage.total_tokens) == (24, plain.usage.total_tokens)


@pytest.mark.parametrize(
    "text", ['héllo — 你好 👩‍👩‍👧 \u2028 \\n "quoted" \t end', "a\r\n\r\ndata: [DONE]\n\nb", "x" * 20_000]
)
def test_text_arrives_unharmed(sdk: openai.OpenAI, peer: Peer, text: str) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"Repeat: {text}"}]
    plain = sdk.chat.completions.create(model=peer.model, messages=asked)
    assert plain.choices[0].message.content == text
    with sdk.chat.completions.create(model=peer.model, messages=asked, stream=True) as stream:
        assert said(list(stream)) == text


def test_length_and_stop(sdk: openai.OpenAI, peer: Peer) -> None:
    short = sdk.chat.completions.create(model=peer.model, messages=HELLO, max_tokens=3)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("You asked: How", "length")
    stopped = sdk.chat.completions.create(model=peer.model, messages=HELLO, stop=["are"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("You asked: How ", "stop")


def test_a_tool_is_called_and_told(sdk: openai.OpenAI, peer: Peer) -> None:
    asked: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is the weather?"},
    ]
    first = sdk.chat.completions.create(
        model=peer.model,
        messages=asked,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "some city"})
    function: Function = {"name": call.function.name, "arguments": call.function.arguments}
    asked.append({"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]})
    asked.append({"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"})
    second = sdk.chat.completions.create(model=peer.model, messages=asked, tools=TOOLS)
    third = sdk.chat.completions.create(model=peer.model, messages=asked)  # as in OpenAI's own examples
    for answer in (second, third):
        assert (answer.choices[0].message.content or "").startswith("The tool said: 21 degrees and sunny.")


def test_tool_choice_required_and_none(sdk: openai.OpenAI, peer: Peer) -> None:
    forced = sdk.chat.completions.create(model=peer.model, messages=HELLO, tools=TOOLS, tool_choice="required")
    assert forced.choices[0].finish_reason == "tool_calls"
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Call the tool"}]
    without = sdk.chat.completions.create(model=peer.model, messages=asked, tools=TOOLS, tool_choice="none")
    assert without.choices[0].finish_reason == "stop"


def test_parallel_tools_streamed(sdk: openai.OpenAI, peer: Peer) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Please call both tools."}]
    fragments: dict[int, str] = {0: "", 1: ""}
    with sdk.chat.completions.stream(model=peer.model, messages=asked, tools=TOOLS) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                fragments[event.index] += event.arguments_delta
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    names = [call.function.name for call in message.tool_calls]
    assert names == ["get_weather", "get_time"]
    assert len({call.id for call in message.tool_calls}) == 2
    assert [call.function.arguments for call in message.tool_calls] == list(fragments.values())
    assert json.loads(fragments[0]) == {"city": "some city"}
    assert json.loads(fragments[1]) == {"zone": "some zone"}


async def test_many_at_once_do_not_mix(async_sdk: openai.AsyncOpenAI, peer: Peer) -> None:
    async def one(number: int) -> str | None:
        asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"Repeat: number {number}"}]
        if number % 2:
            answer = await async_sdk.chat.completions.create(model=peer.model, messages=asked)
            return answer.choices[0].message.content
        async with await async_sdk.chat.completions.create(model=peer.model, messages=asked, stream=True) as stream:
            return said([chunk async for chunk in stream])

    answers = await asyncio.gather(*map(one, range(30)))
    assert answers == [f"number {number}" for number in range(30)]


async def test_tools_streamed_async(async_sdk: openai.AsyncOpenAI, peer: Peer) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Call the tool."}]
    async with async_sdk.chat.completions.stream(model=peer.model, messages=asked, tools=TOOLS) as stream:
        async for _ in stream:
            pass
        choice = (await stream.get_final_completion()).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "some city"}


async def test_async_stream_with_usage(async_sdk: openai.AsyncOpenAI, peer: Peer) -> None:
    async with await async_sdk.chat.completions.create(
        model=peer.model, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert said(chunks).startswith("You asked: How are you? ")


# ---- what the gateway adds


def test_reply_headers(through: openai.OpenAI, running: Gateway) -> None:
    raw = through.chat.completions.with_raw_response.create(model="gpt-5-mini", messages=HELLO)
    headers = raw.headers
    assert UUID7.fullmatch(headers["x-request-id"])
    assert headers["x-edgegw-provider"] == "sim"
    assert headers["x-edgegw-model"] == "gpt-5-mini"
    assert headers["x-edgegw-attempts"] == "1"
    assert re.search(r"\bgw;dur=[0-9.]+", headers["server-timing"])
    assert set(headers) >= RATELIMIT
    row = running.row(headers["x-request-id"])
    assert (row["state"], row["status"], row["attempts"]) == ("complete", 200, 1)
    usage = raw.parse().usage
    assert usage is not None
    assert (row["input_tokens"], row["output_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    (attempt,) = running.attempts(headers["x-request-id"])
    assert (attempt["kind"], attempt["target"], attempt["error_kind"]) == ("primary", "sim/gpt-5-mini", None)
    assert attempt["finish_reason"] == "stop"


def test_streams_have_the_headers_and_rows_too(through: openai.OpenAI, running: Gateway) -> None:
    raw = through.chat.completions.with_raw_response.create(model="gpt-5-mini", messages=HELLO, stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert set(raw.headers) >= RATELIMIT | {"x-edgegw-route", "x-edgegw-attempts", "server-timing"}
    with raw.parse() as stream:
        chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    row = running.row(raw.headers["x-request-id"])
    assert (row["state"], row["stream"], row["output_tokens"]) == ("complete", 1, 24)  # counted though not shown


@pytest.mark.parametrize(
    ("model", "metadata", "route", "target"),
    [
        ("smart", {}, "model:smart", "claude/claude-sonnet-4-5"),
        ("gpt-9", {}, "pattern:gpt-*", "sim/gpt-9"),
        ("sim/anything", {}, "target:sim/anything", "sim/anything"),
        ("claude-sonnet-4-5", {}, "target:claude/claude-sonnet-4-5", "claude/claude-sonnet-4-5"),
        ("smart", {"use_case": "support_summary"}, "use_case:support_summary", "sim/gpt-5-mini"),
        ("smart", {"use_case": "never_heard_of"}, "model:smart", "claude/claude-sonnet-4-5"),
    ],
)
def test_routes(
    through: openai.OpenAI, running: Gateway, model: str, metadata: dict[str, str], route: str, target: str
) -> None:
    raw = through.chat.completions.with_raw_response.create(
        model=model, messages=HELLO, metadata={"tenant": "acme", **metadata}
    )
    assert raw.headers["x-edgegw-route"] == route
    assert f"{raw.headers['x-edgegw-provider']}/{raw.headers['x-edgegw-model']}" == target
    row = running.row(raw.headers["x-request-id"])
    assert (row["tenant"], row["route"], row["model_asked"]) == ("acme", route, model)


def test_the_provider_sees_its_own_key_and_nothing_of_ours(through: openai.OpenAI, simulator: Simulator) -> None:
    metadata = {"tenant": "acme", "use_case": "nothing", "theirs": "kept"}
    model = "gpt-seen-by-provider"
    through.chat.completions.create(
        model=model, messages=HELLO, metadata=metadata, extra_headers={"x-internal": "1", "cookie": "a=b"}
    )
    (seen,) = simulator.seen(model)
    assert seen["headers"]["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert CLIENT_KEY not in json.dumps(seen)
    assert not {"x-internal", "cookie", "x-stainless-lang"} & set(seen["headers"])
    sent = json.loads(seen["body"])
    assert sent["model"] == model
    assert sent["metadata"] == {"theirs": "kept"}


def test_fields_nobody_knows_pass_untouched(through: openai.OpenAI, simulator: Simulator) -> None:
    model = "gpt-with-odd-fields"
    odd = {"new_this_month": {"deep": [1, 2.50, "ü"]}, "logit_bias": {"50256": -100}}
    through.chat.completions.create(model=model, messages=HELLO, extra_body=odd)
    sent = json.loads(simulator.seen(model)[0]["body"])
    assert {name: sent[name] for name in odd} == odd


def test_models(through: openai.OpenAI) -> None:
    names = [model.id for model in through.models.list()]
    assert {"smart", "sim/gpt-5-mini", "claude/claude-sonnet-4-5"} <= set(names)
    assert not [name for name in names if "*" in name]


# ---- errors as the SDK sees them


def test_an_unknown_model_is_a_404_that_lists_what_exists(
    through: openai.OpenAI, running: Gateway, simulator: Simulator
) -> None:
    before = simulator.stats()["requests"]
    with pytest.raises(openai.NotFoundError) as caught:
        through.chat.completions.create(model="smrt", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "smart" in caught.value.message
    assert "sim/gpt-5-mini" in caught.value.message
    row = running.row(caught.value.response.headers["x-request-id"])
    assert (row["state"], row["status"], row["attempts"]) == ("refused", 404, 0)
    assert simulator.stats()["requests"] == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_the_provider_refuses_is_the_callers_400(
    through: openai.OpenAI, running: Gateway, simulator: Simulator, stream: bool
) -> None:
    model = f"gpt-refused-{stream}"
    with pytest.raises(openai.BadRequestError) as caught:
        through.chat.completions.create(model=model, messages=HELLO, temperature=3, stream=stream)
    assert (caught.value.param, caught.value.code) == ("temperature", "decimal_above_max_value")
    assert simulator.count(model) == 1  # neither retried nor tried elsewhere
    headers = caught.value.response.headers
    row = running.row(headers["x-request-id"])
    assert (row["status"], row["attempts"], row["error_kind"]) == (400, 1, "upstream_refused")
    assert headers["x-upstream-request-id"].startswith("req_")


def test_an_upstream_401_is_our_502(through: openai.OpenAI, running: Gateway) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        through.chat.completions.create(model="locked/gpt-5", messages=HELLO)
    assert caught.value.status_code == 502
    assert caught.value.type == "upstream_auth_error"
    assert "bad-key" not in caught.value.response.text
    row = running.row(caught.value.response.headers["x-request-id"])
    assert (row["state"], row["status"], row["error_kind"]) == ("failed", 502, "upstream_auth")
    assert [attempt["status"] for attempt in running.attempts(row["id"])] == [401] * row["attempts"]


# ---- an Anthropic provider behind the OpenAI client


def test_system_messages_reach_anthropic_as_system(through: openai.OpenAI, simulator: Simulator) -> None:
    model = "claude-told-by-system"
    asked: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        *HELLO,
    ]
    through.chat.completions.create(model=f"claude/{model}", messages=asked, max_completion_tokens=77)
    (seen,) = simulator.seen(model)
    assert seen["path"] == "/v1/messages"
    assert seen["headers"]["anthropic-version"] == "2023-06-01"
    assert PROVIDER_KEY in (seen["headers"].get("x-api-key"), seen["headers"].get("authorization", "")[7:])
    sent = json.loads(seen["body"])
    assert "Be brief." in json.dumps(sent["system"])
    assert "Be kind." in json.dumps(sent["system"])
    assert [turn["role"] for turn in sent["messages"]] == ["user"]
    assert (sent["model"], sent["max_tokens"]) == (model, 77)


def test_a_picture_reaches_anthropic_as_base64(through: openai.OpenAI, simulator: Simulator) -> None:
    model = "claude-with-picture"
    asked: list[ChatCompletionMessageParam] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            ],
        }
    ]
    answer = through.chat.completions.create(model=f"claude/{model}", messages=asked)
    assert "I see 1 image." in (answer.choices[0].message.content or "")
    content: list[dict[str, Any]] = json.loads(simulator.seen(model)[0]["body"])["messages"][0]["content"]
    (source,) = [block["source"] for block in content if block["type"] == "image"]
    assert source == {"type": "base64", "media_type": "image/png", "data": PIXEL}


def test_hints_anthropic_cannot_carry_are_named(through: openai.OpenAI) -> None:
    raw = through.chat.completions.with_raw_response.create(
        model="smart", messages=HELLO, frequency_penalty=0.5, seed=1
    )
    assert {"frequency_penalty", "seed"} <= set(re.split(r", ?", raw.headers["x-edgegw-dropped"]))


def test_what_changes_the_meaning_is_refused_for_anthropic(through: openai.OpenAI, simulator: Simulator) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        through.chat.completions.create(model="claude/claude-asked-for-two", messages=HELLO, n=2)
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_parameter")
    assert simulator.count("claude-asked-for-two") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_anthropic_is_an_error_of_openai(through: openai.OpenAI, running: Gateway, stream: bool) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        through.chat.completions.create(model=f"claude/sim-529-tokens-{20 + stream}", messages=HELLO, stream=stream)
    assert caught.value.status_code == 503
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["x-should-retry"] == "false"
    row = running.row(caught.value.response.headers["x-request-id"])
    assert {attempt["status"] for attempt in running.attempts(row["id"])} == {529}
