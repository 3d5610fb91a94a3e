"""From what was asked and answered to the attributes that hold it: the JSON of OpenTelemetry's conventions for
generative AI (0.1.0: gen-ai-input-messages.json, gen-ai-output-messages.json and their kin).

What a client of OpenAI's dialect sent and was sent is read here, as it was captured: perhaps cut, perhaps a stream,
perhaps of a shape that nobody knows. Only what is understood is told. Images, sounds and files are parts without their
bytes. Pure; never raises for what a content holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from edgegw.content.answer import put_together
from edgegw.content.mended import mended
from edgegw.content.record import Content
from edgegw.content.wire import unchunked
from edgegw.telemetry import semconv as names
from edgegw.telemetry.fitting import fitted

JSON = dict[str, Any]

_DATA_URL = re.compile(r"data:([^;,]*)[^,]*,")
_decode = msgspec.json.Decoder().decode
# What the conventions call what OpenAI calls otherwise.
_FINISHES = {"tool_calls": "tool_call", "function_call": "tool_call"}
_INSTRUCTIONS = ("system", "developer")
# What may go wrong with JSON of any shape.
_STRANGE = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


def attributes_of(
    content: Content, *, apart: bool, finish_reason: str | None, bytes_max: int
) -> list[tuple[str, str | tuple[str, ...]]]:
    """`apart`: the provider takes instructions apart from the messages. `finish_reason`: the provider's, where the
    answer has none, because it was cut. `bytes_max`: of one attribute; those that do not hold everything are named in
    one of their own."""
    if content.dialect != "openai_chat":
        return []
    try:
        asked = _asked(content)
        messages, tools = _messages(asked), _tools(asked)
        outputs = [_output(choice, finish_reason) for choice in _objects(_answered(content).get("choices"))]
    except _STRANGE:
        return []
    instructions: list[JSON] = []
    while apart and messages and messages[0]["role"] in _INSTRUCTIONS:
        instructions += messages.pop(0)["parts"]
    told: list[tuple[str, str | tuple[str, ...]]] = []
    cut: list[str] = []
    for name, items, newest, was_cut in (
        (names.SYSTEM_INSTRUCTIONS, instructions, False, False),
        (names.INPUT_MESSAGES, messages, True, content.request_cut),
        (names.OUTPUT_MESSAGES, outputs, False, content.reply_cut),
        (names.TOOL_DEFINITIONS, tools, False, content.request_cut),
    ):
        text, whole = fitted(items, bytes_max, newest=newest)
        if text:
            told.append((name, text))
        if was_cut or not whole:
            cut.append(name)
    if cut:
        told.append((names.CONTENT_CUT, tuple(cut)))
    return told


# -- what was asked --


def _asked(content: Content) -> JSON:
    return _document(mended(content.request) if content.request_cut else content.request)


def _document(body: bytes | str) -> JSON:
    try:
        value = _decode(body)
    except msgspec.DecodeError:  # half a surrogate pair, which is JSON and no Unicode
        text = body if isinstance(body, str) else body.decode("utf-8", "replace")
        value = json.loads(text) if text else {}
    return _object(value)


def _messages(asked: JSON) -> list[JSON]:
    return [_message(message) for message in _objects(asked.get("messages"))]


def _message(message: JSON) -> JSON:
    role = _text(message.get("role"))
    if role in ("tool", "function"):
        parts = [
            {
                "type": "tool_call_response",
                "id": message.get("tool_call_id"),
                "response": _plain(message.get("content")),
            }
        ]
    else:
        parts = _said(message)
    name = message.get("name")
    return {"role": role, "parts": parts, **({"name": name} if isinstance(name, str) else {})}


def _said(message: JSON) -> list[JSON]:
    """Reasoning, text and the like, then calls: of a message of anybody's."""
    parts = [{"type": "reasoning", "content": text} for text in _thoughts(message)]
    parts += _parts(message.get("content"))
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        parts.append({"type": "text", "content": message["refusal"]})
    if isinstance(message.get("audio"), dict):
        parts.append(_blob("audio", None, message["audio"].get("data")))
    parts += map(_call, _objects(message.get("tool_calls")))
    if isinstance(message.get("function_call"), dict):
        parts.append(_call({"function": message["function_call"]}))
    return parts


def _thoughts(message: JSON) -> Iterator[str]:
    """Several fields hold the same, by several providers' customs: the first one that holds any."""
    for field in ("reasoning_content", "reasoning"):
        text = message.get(field)
        if isinstance(text, str) and text:
            yield text
            return
    details = message.get("reasoning_details") or message.get("thinking_blocks")
    for detail in _objects(details):
        text = detail.get("text", detail.get("thinking"))
        if isinstance(text, str) and text:
            yield text


def _parts(content: Any) -> list[JSON]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}] if content else []
    return [_PARTS.get(_text(part.get("type")), _unknown)(part) for part in _objects(content)]


def _unknown(part: JSON) -> JSON:
    """Nobody knows what is in it, or how much."""
    return {"type": _text(part.get("type"))}


def _text_part(part: JSON) -> JSON:
    return {"type": "text", "content": _text(part.get("text", part.get("refusal")))}


def _thinking(part: JSON) -> JSON:
    return {"type": "reasoning", "content": _plain(part.get("thinking"))}


def _image(part: JSON) -> JSON:
    image = part.get("image_url")
    url = _text(image.get("url") if isinstance(image, dict) else image)
    match = _DATA_URL.match(url)
    if match is not None:
        return _blob("image", match[1], url[match.end() :])
    return {"type": "uri", "modality": "image", "uri": url}


def _audio(part: JSON) -> JSON:
    audio = _object(part.get("input_audio"))
    kind = audio.get("format")
    return _blob("audio", f"audio/{kind}" if isinstance(kind, str) else None, audio.get("data"))


def _file(part: JSON) -> JSON:
    file = _object(part.get("file"))
    if isinstance(file.get("file_id"), str):
        return {"type": "file", "modality": "document", "file_id": file["file_id"]}
    data = _text(file.get("file_data"))
    match = _DATA_URL.match(data)
    return _blob("document", match[1] if match else None, data[match.end() :] if match else data)


def _blob(modality: str, mime_type: str | None, data: Any) -> JSON:
    """`left_out`: how many characters of base64."""
    blob: JSON = {"type": "blob", "modality": modality, "content": "", "left_out": len(_text(data))}
    return {**blob, "mime_type": mime_type} if mime_type else blob


_PARTS: dict[str, Callable[[JSON], JSON]] = {
    "text": _text_part,
    "refusal": _text_part,
    "thinking": _thinking,
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
}


def _call(call: JSON) -> JSON:
    """Of a function, or of a tool that takes any text (`custom`)."""
    function = _object(call.get("function") or call.get("custom"))
    arguments = function.get("arguments", function.get("input"))
    if isinstance(arguments, str):
        with suppress(msgspec.DecodeError):  # cut, or no JSON: as it is
            arguments = _decode(arguments)
    return {"type": "tool_call", "id": call.get("id"), "name": _text(function.get("name")), "arguments": arguments}


def _tools(asked: JSON) -> list[JSON]:
    functions = [{"type": "function", "function": function} for function in _objects(asked.get("functions"))]
    return [_tool(tool) for tool in (*_objects(asked.get("tools")), *functions)]


def _tool(tool: JSON) -> JSON:
    kind = _text(tool.get("type"))
    inner = tool.get(kind)
    said = inner if isinstance(inner, dict) else tool
    found = {"type": kind, "name": _text(said.get("name") or kind)}
    return {**found, **{key: said[key] for key in ("description", "parameters") if said.get(key) is not None}}


# -- what was answered --


def _answered(content: Content) -> JSON:
    reply = unchunked(content.reply) if content.chunked else content.reply
    if content.stream and reply[:1] != b"{":  # one that failed at once is no stream
        return put_together(reply)
    return _document(mended(reply) if content.reply_cut else reply)


def _output(choice: JSON, finish_reason: str | None) -> JSON:
    message = _object(choice.get("message"))
    finish = choice.get("finish_reason") or finish_reason
    finish = _FINISHES.get(finish, finish) if isinstance(finish, str) else "error"
    return {"role": _text(message.get("role")) or "assistant", "parts": _said(message), "finish_reason": finish}


# -- values of any shape --


def _object(value: Any) -> JSON:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> Sequence[JSON]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _plain(content: Any) -> str:
    """All text of a content of parts, as one."""
    if isinstance(content, str):
        return content
    return "".join(_text(part.get("text")) for part in _objects(content))
