"""From the neutral form to a request of Anthropic Messages.

What may be sent depends on the model, and no longer on its age alone: newer ones refuse sampling parameters and budgets
for thinking, older ones efforts and structured outputs. `Capabilities` says it; providers/models.toml holds the table.
What a model cannot take and what changes no meaning is left out and named in `Written.dropped`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from edgegw.dialects.anthropic_schema import fit, has_maps, supported
from edgegw.dialects.anthropic_turns import JSON, cache_control, write_turns
from edgegw.dialects.chat import Request, SealedThinking, Thinking, Tool, ToolCall, Turn
from edgegw.dialects.complaints import unsupported

# The tool that stands in for structured outputs where there are none: its arguments are the answer. No client's tool is
# called like this.
JSON_TOOL = "edgegw_json_output"

# Anthropic takes four cache breakpoints; the last ones save most.
CACHE_MARKS_MAX = 4
USER_ID_CHARS_MAX = 256
# Anthropic's range ends at 1, OpenAI's at 2.
TEMPERATURE_MAX = 1.0
# The smallest budget for thinking that the API takes.
BUDGET_MIN = 1024

_JSON_NUDGE = "Answer with a single JSON object and nothing else: no prose around it, no code fence."
_NO_PARAMETERS = {"type": "object", "properties": {}}
BUDGETS = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
_EFFORTS = {"minimal": "low"}
_EFFORT_BELOW = {"xhigh": "high", "max": "high"}
_SERVICE_TIERS = {"auto": "auto", "priority": "auto", "fast": "auto", "default": "standard_only"}
_FORCED = ("any", "named")
_CHOICES = {"auto": "auto", "none": "none", "any": "any", "named": "tool"}


class Capabilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model takes. `thinking`: of "adaptive", "budget" and "disabled"; `efforts` are those it knows."""

    max_output_tokens: int
    sampling: bool = True
    thinking: tuple[str, ...] = ()
    efforts: tuple[str, ...] = ()
    mid_system: bool = False
    structured_outputs: bool = False
    forced_calls: bool = True


@dataclass(slots=True)
class Written:
    """`body` is the request. `unwrap`: the name of the tool whose arguments are to be read as text, None without."""

    body: bytes
    dropped: tuple[str, ...]
    unwrap: str | None


def unwraps(schema: msgspec.Raw | None, capabilities: Capabilities) -> str | None:
    """The name of the stand-in tool, when an answer in JSON of `schema` has to do with one: the model has no structured
    outputs, or they cannot say it; and it can be made to call the tool."""
    if schema is None or _can_hold(schema, capabilities) or not capabilities.forced_calls:
        return None
    return JSON_TOOL


def _can_hold(schema: msgspec.Raw, capabilities: Capabilities) -> bool:
    return capabilities.structured_outputs and fit([schema]) and not has_maps(schema)


def write(request: Request, model: str, capabilities: Capabilities) -> Written:
    """Raises GatewayError: invalid_value when the turns break a rule of the API, unsupported_parameter for what this
    model cannot be told."""
    dropped = list(request.hints)
    system, messages = write_turns(request.turns, capabilities.mid_system)
    max_tokens = request.max_output_tokens
    if max_tokens is None:
        max_tokens = capabilities.max_output_tokens
    body: JSON = {"model": model, "max_tokens": max_tokens, "messages": messages}
    unwrap = _write_json_answer(request, capabilities, body, system)
    _write_tools(request, unwrap, capabilities, body, dropped)
    if system:
        body["system"] = system
    thinks = _write_thinking(request, capabilities, body, dropped)
    _write_sampling(request, capabilities.sampling and not thinks, body, dropped)
    _write_rest(request, body, dropped)
    _limit_cache_marks(body)
    return Written(msgspec.json.encode(body), tuple(dropped), unwrap)


def _write_json_answer(request: Request, capabilities: Capabilities, body: JSON, system: list[JSON]) -> str | None:
    wish = request.json_answer
    if wish is None:
        return None
    if wish.schema is None:
        system.append({"type": "text", "text": _JSON_NUDGE})
        return None
    unwrap = unwraps(wish.schema, capabilities)
    if unwrap is None and _can_hold(wish.schema, capabilities):
        schema = supported(wish.schema, "response_format.json_schema.schema")
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    elif unwrap is None:
        fitting = f"{_JSON_NUDGE} It must fit this JSON Schema: {bytes(wish.schema).decode()}"
        system.append({"type": "text", "text": fitting})
    return unwrap


def _write_tools(
    request: Request, unwrap: str | None, capabilities: Capabilities, body: JSON, dropped: list[str]
) -> None:
    held = _held(request, unwrap) if request.tools and capabilities.structured_outputs else frozenset()
    if any(tool.strict and index not in held for index, tool in enumerate(request.tools)):
        dropped.append("tools[].function.strict")
    tools = [_tool(tool, index in held, f"tools[{index}].function") for index, tool in enumerate(request.tools)]
    choice: JSON = {}
    if request.tool_choice is not None and tools:
        choice["type"] = _CHOICES[request.tool_choice.mode]
        if request.tool_choice.mode in _FORCED and not capabilities.forced_calls:
            raise unsupported("tool_choice", ": this model cannot be made to call a tool")
        if request.tool_choice.mode == "named":
            choice["name"] = request.tool_choice.name
    if unwrap is not None and request.json_answer is not None:
        description = "Gives the answer. Call it exactly once, with the whole answer as its arguments."
        schema = _with_type(request.json_answer.schema)
        tools.append({"name": unwrap, "description": description, "input_schema": schema})
        if choice.get("type") in (None, "auto"):
            choice = {"type": "any"} if request.tools else {"type": "tool", "name": unwrap}
        elif choice["type"] == "none":
            choice = {"type": "tool", "name": unwrap}
    if not tools:  # the API wants to know the tools of a history; nobody asks for further calls
        tools = [{"name": name, "input_schema": _NO_PARAMETERS} for name in _called(request.turns)]
        choice = {"type": "none"}
    if not tools:
        return
    if not request.parallel_tool_calls and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    body["tools"] = tools
    if choice:
        body["tool_choice"] = choice


def _called(turns: list[Turn]) -> list[str]:
    """The names of the tools that were called, each once."""
    calls = (block for turn in turns for block in turn.blocks if isinstance(block, ToolCall))
    return list(dict.fromkeys(call.name for call in calls))


def _held(request: Request, unwrap: str | None) -> frozenset[int]:
    """Which of the request's tools its model can be held to, beside the answer: all that can be, or none."""
    held = {
        index: tool.schema
        for index, tool in enumerate(request.tools)
        if tool.strict and tool.schema is not None and not has_maps(tool.schema)
    }
    answer = request.json_answer.schema if request.json_answer is not None and unwrap is None else None
    schemas = [*held.values(), *(() if answer is None else (answer,))]
    return frozenset(held) if fit(schemas) else frozenset()


def _tool(tool: Tool, strict: bool, path: str) -> JSON:
    written: JSON = {"name": tool.name, "input_schema": _with_type(tool.schema)}
    if tool.description:
        written["description"] = tool.description
    if strict and tool.schema is not None:
        written["input_schema"] = {"type": "object", **supported(tool.schema, f"{path}.parameters")}
        written["strict"] = True
    if tool.cache:
        written["cache_control"] = cache_control(tool.cache)
    return written


def _with_type(schema: msgspec.Raw | None) -> Any:
    """The schema as it came; the API wants it to say that arguments are an object."""
    if schema is None:
        return _NO_PARAMETERS
    fields = msgspec.json.decode(schema, type=dict[str, msgspec.Raw])
    return schema if "type" in fields else {"type": "object", **fields}


def _write_thinking(request: Request, capabilities: Capabilities, body: JSON, dropped: list[str]) -> bool:
    """Whether the model is told to think. A forced tool call and thinking exclude each other: the call wins."""
    effort = request.effort
    if effort is None:
        return False
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    if "adaptive" in capabilities.thinking:
        return _write_effort(effort, forced, capabilities, body)
    if effort == "none":
        return False
    budget = min(BUDGETS[effort], max(BUDGET_MIN, body["max_tokens"] // 2))
    possible = "budget" in capabilities.thinking and not forced and budget < body["max_tokens"]
    if not possible or _in_tool_loop_without_thinking(request.turns):
        dropped.append("reasoning_effort")
        return False
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    return True


def _write_effort(effort: str, forced: bool, capabilities: Capabilities, body: JSON) -> bool:
    if effort == "none" and "disabled" in capabilities.thinking:
        body["thinking"] = {"type": "disabled"}
        return False
    level = _EFFORTS.get(effort, effort)
    if level not in capabilities.efforts:
        level = _EFFORT_BELOW.get(level, "low")
    if level in capabilities.efforts:
        body["output_config"] = {**body.get("output_config", {}), "effort": level}
    thinks = effort != "none" and not forced
    if thinks:
        body["thinking"] = {"type": "adaptive"}
    return thinks


def _in_tool_loop_without_thinking(turns: list[Turn]) -> bool:
    """Whether the conversation stands behind tool calls that came without thinking: the API then refuses a budget."""
    for turn in reversed(turns):
        if turn.role == "assistant":
            calls = any(isinstance(block, ToolCall) for block in turn.blocks)
            return calls and not any(isinstance(block, Thinking | SealedThinking) for block in turn.blocks)
    return False


def _write_sampling(request: Request, allowed: bool, body: JSON, dropped: list[str]) -> None:
    """Newer models take one of the two at most."""
    if request.temperature is not None:
        if allowed:
            body["temperature"] = min(request.temperature, TEMPERATURE_MAX)
        else:
            dropped.append("temperature")
    if request.top_p is not None:
        if allowed and request.temperature is None:
            body["top_p"] = request.top_p
        else:
            dropped.append("top_p")


def _write_rest(request: Request, body: JSON, dropped: list[str]) -> None:
    stop = [word for word in request.stop if word.strip()]
    if stop:
        body["stop_sequences"] = stop
    if len(stop) < len(request.stop):
        dropped.append("stop")
    if request.user is not None:
        if len(request.user) <= USER_ID_CHARS_MAX:
            body["metadata"] = {"user_id": request.user}
        else:
            dropped.append("user")
    if request.service_tier is not None:
        tier = _SERVICE_TIERS.get(request.service_tier)
        if tier is None:
            dropped.append("service_tier")
        else:
            body["service_tier"] = tier
    if request.stream:
        body["stream"] = True


def _limit_cache_marks(body: JSON) -> None:
    """Keeps the last breakpoints, in the order in which Anthropic reads a request: tools, system, messages."""
    blocks = [*body.get("tools", ()), *body.get("system", ())]
    for message in body["messages"]:
        blocks += message["content"]
    marked = [block for block in blocks if "cache_control" in block]
    for block in marked[:-CACHE_MARKS_MAX]:
        del block["cache_control"]
