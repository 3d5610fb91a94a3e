"""What reading, editing and relaying cost in the OpenAI dialect, in microseconds. `python -m load.dialects`

One thread, no sockets. Of several short rounds the lower quartile counts: noise only adds. A hot loop flatters: inside
a gateway the same code finds cold caches and takes two to three times as long, so what counts is how much it does.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from collections.abc import Callable
from statistics import quantiles

from edgegw.dialects import openai_chat
from edgegw.providers.base import Provider
from edgegw.providers.registry import build
from edgegw.tokens import TokenEstimator

ROUNDS = 15
ROUND_S = 0.02
REQUEST_ID = "0197c2f4-4a44-7cc2-8d9e-3f8b3c1f1a10"
# The bars: reading and writing a small request; the same with the estimate for one of a megabyte.
SMALL_US_MAX = 3.0
LARGE_US_MAX = 1500.0

SMALL = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello! Tell me something about proxies, please, and keep it short."},
    ],
    "metadata": {"tenant": "test", "use_case": "support_summary"},
}
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1767709715,"model":"gpt-4o-mini-2024-07-18",'
    b'"choices":[{"index":0,"delta":{"content":" brown"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
ANSWER = (
    b'{"id":"chatcmpl-1","model":"gpt-4o-mini","choices":[{"index":0,"message":{"role":"assistant","content":"Hello."},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":30,"completion_tokens":20,"total_tokens":50}}'
)


class Settings:
    name = "openai"
    kind = "openai"
    base_url = "https://api.openai.com/v1"
    api_key = None

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}


def cost_us(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    times: list[float] = []
    calls = 1
    while len(times) < ROUNDS:
        begun = time.process_time()
        for _ in range(calls):
            work()
        spent_s = time.process_time() - begun
        if spent_s < ROUND_S:
            calls *= 2
        else:
            times.append(spent_s / calls * 1e6)
    return quantiles(times, n=4)[0]


def compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def saying(*texts: str) -> dict[str, object]:
    return {**SMALL, "messages": [{"role": "user", "content": text} for text in texts]}


def large_bodies() -> dict[str, bytes]:
    """A megabyte each."""
    dice = random.Random(1)
    words = ["the", "quick", "brown", "fox", '"jumps"', "over;", "5", "lazy\n", "(dogs)", "data"]
    text = " ".join(dice.choices(words, k=190_000))[:1_000_000]
    url = "data:image/png;base64," + base64.b64encode(dice.randbytes(750_000)).decode()
    picture = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {
        "one text": compact(saying(text)),
        "200 texts": compact(saying(*(text[at : at + 5000] for at in range(0, len(text), 5000)))),
        "one picture": compact({**SMALL, "messages": [{"role": "user", "content": picture}]}),
        "with white space": json.dumps(saying(text)).encode(),
        "umlauts": compact(saying("Grüße aus Köln. " * 56_000)),
    }


def carry(provider: Provider, body: bytes) -> bytes:
    return provider.call(openai_chat.read(body), "gpt-5-mini", REQUEST_ID).data


def carry_and_estimate(provider: Provider, estimator: TokenEstimator, body: bytes) -> bytes:
    ask = openai_chat.read(body)
    estimator.estimate("t", "gpt-5-mini", ask.body, ask.max_output_tokens, ask.choices)
    return provider.call(ask, "gpt-5-mini", REQUEST_ID).data


def main() -> int:
    provider, estimator = build(Settings()), TokenEstimator()
    small, missed = compact(SMALL), False

    def show(name: str, work: Callable[[], object], most_us: float | None = None) -> None:
        nonlocal missed
        spent_us = cost_us(work)
        missed |= most_us is not None and spent_us > most_us
        print(f"{name:44} {spent_us:8.2f} us" + ("" if most_us is None else f"   (at most {most_us:g})"))

    asked = openai_chat.read(small)
    streamed = openai_chat.read(compact({**SMALL, "stream": True}))
    reader = provider.stream(streamed, "gpt-5-mini", created_s=0)
    reader.feed(EVENT)
    four, eight = EVENT * 4, [EVENT] * 8
    show("request: read", lambda: openai_chat.read(small))
    show("request: call", lambda: provider.call(asked, "gpt-5-mini", REQUEST_ID))
    show("request: read and call", lambda: carry(provider, small), SMALL_US_MAX)
    spaced = json.dumps(SMALL).encode()
    show("request with white space: read and call", lambda: carry(provider, spaced))
    show("answer: plain", lambda: provider.plain(asked, "gpt-5-mini", ANSWER, created_s=0))
    show("stream: feed one event", lambda: reader.feed(EVENT))
    show("stream: feed four events in one read", lambda: reader.feed(four))
    show("stream: recall eight events", lambda: reader.recall(eight))
    for name, body in large_bodies().items():
        show(
            f"1 MB, {name}: read, estimate and call",
            lambda body=body: carry_and_estimate(provider, estimator, body),  # type: ignore[misc]
            LARGE_US_MAX,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
