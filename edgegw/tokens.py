"""How many tokens a request will use, guessed before it is sent: what the limiter reserves.

The prompt: bytes of the body over a ratio that is learned per model from the usage that comes back. The answer: a
running 90th percentile of what the tenant got from the model so far, at most what the request allows. Both are guesses;
settling charges or gives back the difference, so an error shifts tokens in time and never loses them.

Pure; nothing is parsed: a body is probed for attachments here and there.
"""

from __future__ import annotations

from math import ceil, exp
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

BYTES_PER_TOKEN = 4.0  # English text in OpenAI's and Anthropic's tokenizers, by their own rule of thumb
BYTES_PER_TOKEN_MIN, BYTES_PER_TOKEN_MAX = 1.0, 16.0  # a token is at least a byte; escaped scripts reach 6 per letter
PROMPT_MEMORY = 0.95  # the last 20 requests weigh as much as all before: new models are known within seconds
PROMPT_PRIOR_TOKENS = 500.0  # the rule of thumb weighs as much as this many tokens of experience

OUTPUT_TOKENS = 512  # no experience: above nine answers in ten of a chat, and small enough not to lock out small limits
OUTPUT_ASKED_MAX = (
    4096  # no experience but a bound by the client: a bound is often the model's own (64,000), never used
)
OUTPUT_TRIES = 4  # before so many answers were seen, the larger of guess and experience counts
OUTPUT_STEP_MIN = 0.1  # smallest step of the percentile: up by 9 %, down by 1 %, so it forgets within 100 answers
OUTPUT_FIRST = 2.0  # the first answer is taken for a middling one; the 90th percentile of answers is about twice that

PIECE_TOKENS = 2  # pieces of a stream that are no longer than this on average are a token each

WELL_KNOWN_ANSWERS = 64  # of a tenant and model; from then on a sample is enough
LEARN_EVERY = 8

ATTACHMENT_TOKENS = 1200  # between OpenAI's 765 for 1024 x 1024 in detail and Anthropic's 1,600 for the largest
ATTACHMENT_BYTES_MIN = 4096  # shorter base64 is counted as text, which makes it at most about as many tokens
ENTRIES_MAX = 4096  # models, and pairs of tenant and model: about 1 MiB; the one not used for longest is forgotten

# A backslash as well: some JSON writers escape slashes.
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_\\"
_PROBE_BYTES = 64  # text nearly always has a space, a mark or an umlaut in so many bytes
_STRIDE_BYTES = ATTACHMENT_BYTES_MIN - _PROBE_BYTES  # no attachment fits between two probes
_DATA_URL = b"data:"
_DATA_URL_MARK = b";base64,"
_DATA_URL_HEAD_BYTES_MAX = 256  # a media type with its parameters
_DATA_KEY = b'"data":'
_DATA_KEY_BYTES_MAX = 16  # with the white space behind it


def attachments(body: bytes) -> tuple[int, int]:
    """How many images, files and sounds are in a JSON body as base64, and how many bytes they take together.

    An attachment is a string that is a data URL (OpenAI) or the value of `"data"` (Anthropic; OpenAI's audio). A data
    URL somewhere inside a text is text: that is how providers count it. The body is probed, not read: a megabyte takes
    50 us, one without attachments as long as one with them.
    """
    count = size = 0
    at = _STRIDE_BYTES
    beyond = 0  # where the last string that was looked at ended
    while probe := body[at : at + _PROBE_BYTES]:
        if probe.translate(None, _BASE64):
            at += _STRIDE_BYTES
            continue
        end = body.find(b'"', at)
        if end < 0:
            break
        start = _start_of_base64(body, body.rfind(b'"', beyond, at) + 1)
        if start and end - start >= ATTACHMENT_BYTES_MIN:
            count += 1
            size += end - start
        beyond = end + 1
        at = end + _STRIDE_BYTES
    return count, size


def _start_of_base64(body: bytes, start: int) -> int:
    """Where the base64 begins in the string whose first byte is at `start`; 0 when it is no attachment."""
    opening = start - 1
    if opening < 1 or body[opening - 1 : opening] == b"\\":
        return 0  # a quote inside a text
    if body.startswith(_DATA_URL, start):
        mark = body.find(_DATA_URL_MARK, start, start + _DATA_URL_HEAD_BYTES_MAX)
        return mark + len(_DATA_URL_MARK) if mark > 0 else 0
    before = body[max(0, opening - _DATA_KEY_BYTES_MAX) : opening]
    return start if before.replace(b" ", b"").endswith(_DATA_KEY) else 0


class PromptEstimator:
    """Prompt tokens from bytes. Per model two fading sums, bytes and tokens; their quotient is the ratio, so that a
    long prompt, where the ratio is clearest, counts for more than a short one."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float, float]] = {}  # bytes, tokens, and their ratio within its bounds

    def ratio(self, model: str) -> float:
        """Bytes per token."""
        sums = self._sums.get(model)
        return BYTES_PER_TOKEN if sums is None else sums[2]

    def estimate(self, model: str, body_bytes: int, attached: int = 0, attached_bytes: int = 0) -> int:
        """`attached` of the body's parts, together `attached_bytes`, are images and the like: charged flat."""
        if not attached:
            return ceil(body_bytes / self.ratio(model))
        text_bytes = max(0, body_bytes - attached_bytes)
        return ceil(text_bytes / self.ratio(model)) + attached * ATTACHMENT_TOKENS

    def learn(self, model: str, text_bytes: int, tokens: int) -> None:
        """A prompt without attachments turned out to have so many tokens."""
        if text_bytes <= 0 or tokens <= 0:
            return
        sums = self._sums.pop(model, None) or (BYTES_PER_TOKEN * PROMPT_PRIOR_TOKENS, PROMPT_PRIOR_TOKENS)
        _make_room(self._sums)
        all_bytes = sums[0] * PROMPT_MEMORY + text_bytes
        all_tokens = sums[1] * PROMPT_MEMORY + tokens
        ratio = min(max(all_bytes / all_tokens, BYTES_PER_TOKEN_MIN), BYTES_PER_TOKEN_MAX)
        self._sums[model] = (all_bytes, all_tokens, ratio)


class OutputEstimator:
    """Answer tokens: a running 90th percentile per tenant and model.

    Each answer above it raises it by 0.9 steps, each below lowers it by 0.1, on a logarithmic scale: it stands still
    where one answer in ten lies above, whatever their size. The step shrinks as 1 / answers down to OUTPUT_STEP_MIN.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, int]] = {}  # the percentile, and after how many answers

    def estimate(self, tenant: str, model: str, asked_max: int | None = None) -> int:
        """`asked_max` is the client's own bound on the answer."""
        known = self._known.get((tenant, model))
        if known is None:
            return OUTPUT_TOKENS if asked_max is None else min(asked_max, OUTPUT_ASKED_MAX)
        expected = ceil(known[0])
        if known[1] < OUTPUT_TRIES:
            expected = max(expected, OUTPUT_TOKENS)
        return expected if asked_max is None else min(asked_max, expected)

    def knows(self, tenant: str, model: str) -> bool:
        """Enough answers were seen for the step to have reached its smallest, several times over."""
        known = self._known.get((tenant, model))
        return known is not None and known[1] >= WELL_KNOWN_ANSWERS

    def learn(self, tenant: str, model: str, tokens: int) -> None:
        """An answer of so many tokens; one without any says nothing."""
        if tokens <= 0:
            return
        key = (tenant, model)
        known = self._known.pop(key, None)
        if known is None:
            _make_room(self._known)
            self._known[key] = (OUTPUT_FIRST * tokens, 1)
            return
        percentile, answers = known
        step = max(OUTPUT_STEP_MIN, 1.0 / answers)
        factor = exp(0.9 * step) if tokens > percentile else exp(-0.1 * step)
        self._known[key] = (max(1.0, percentile * factor), answers + 1)


class TokenEstimator:
    """Both together, as the gateway uses them. One per worker."""

    __slots__ = ("_answers", "output", "prompt")

    def __init__(self) -> None:
        self._answers = 0
        self.prompt = PromptEstimator()
        self.output = OutputEstimator()

    def estimate(self, tenant: str, model: str, body: bytes, max_output_tokens: int | None, choices: int = 1) -> int:
        """Tokens to reserve for a request: at least 1. `choices` answers are wanted: bounded each, learned together."""
        asked_max = None if max_output_tokens is None else max(0, max_output_tokens) * max(1, choices)
        return max(1, self.prompt_tokens(model, body) + self.output.estimate(tenant, model, asked_max))

    def prompt_tokens(self, model: str, body: bytes) -> int:
        size = len(body)
        if size <= _STRIDE_BYTES:  # too short for an attachment
            return self.prompt.estimate(model, size)
        return self.prompt.estimate(model, size, *attachments(body))

    def answer_tokens(self, model: str, pieces: int, text_bytes: int) -> int:
        """Of an answer that nobody counted: it came in so many pieces with text, none if it was not streamed. Most
        providers send a token a piece; where pieces are longer, the bytes tell."""
        by_bytes = ceil(text_bytes / self.prompt.ratio(model))
        return pieces if by_bytes < PIECE_TOKENS * pieces else by_bytes

    def learn(self, tenant: str, model: str, body: bytes, input_tokens: int, output_tokens: int) -> None:
        """What the provider counted. Prompts with attachments say nothing about the ratio. Of what is well known only
        every LEARN_EVERYth request is looked at: a sample tells a percentile and a ratio as well as all would."""
        self._answers += 1
        if self._answers % LEARN_EVERY and self.output.knows(tenant, model):
            return
        self.output.learn(tenant, model, output_tokens)
        if not attachments(body)[0]:
            self.prompt.learn(model, len(body), input_tokens)


def _make_room(entries: dict[K, V]) -> None:
    """Drops the entry that was not learned for longest (entries move to the end when they learn)."""
    if len(entries) >= ENTRIES_MAX:
        del entries[next(iter(entries))]
