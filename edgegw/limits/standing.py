"""How a limit is told to a client: the x-ratelimit-* fields, and the two ways of saying no.

The words and forms are OpenAI's (platform documentation, "Rate limits"), which SDKs and people know how to read.
Pure: text from numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from edgegw.errors import GatewayError

LINES = b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\nx-ratelimit-reset-tokens: %b\r\n"


@dataclass(slots=True)
class Standing:
    """Where a tenant stands, in tokens per minute. `reset_s`: until all of the limit is there again."""

    limit: int
    remaining: int
    reset_s: float

    def lines(self) -> bytes:
        """As header lines, each ended by CRLF."""
        return LINES % (self.limit, self.remaining, duration(self.reset_s))

    def fields(self) -> tuple[tuple[bytes, bytes], ...]:
        return (
            (b"x-ratelimit-limit-tokens", b"%d" % self.limit),
            (b"x-ratelimit-remaining-tokens", b"%d" % self.remaining),
            (b"x-ratelimit-reset-tokens", duration(self.reset_s)),
        )


def no_room(tenant: str, tokens: int, standing: Standing, wait_s: float) -> GatewayError:
    """The 429: `tokens` would exceed the limit now, and should fit in `wait_s`."""
    wait_ms = max(1, ceil(wait_s * 1e3))
    return GatewayError(
        "rate_limited",
        f"Rate limit reached for tenant {tenant} on tokens per min (TPM): Limit {standing.limit}, "
        f"Used {standing.limit - standing.remaining}, Requested {tokens}. "
        f"Please try again in {duration(wait_ms / 1e3).decode()}.",
        headers=(
            (b"retry-after", b"%d" % -(-wait_ms // 1000)),
            (b"retry-after-ms", b"%d" % wait_ms),
            *standing.fields(),
        ),
    )


def too_large(tenant: str, tokens: int, limit: int) -> GatewayError:
    """The 413: waiting would not help."""
    return GatewayError(
        "never_fits",
        f"Request too large for tenant {tenant} on tokens per min (TPM): Limit {limit}, Requested {tokens}. "
        "The input or output tokens must be reduced in order to run successfully.",
    )


def duration(seconds: float) -> bytes:
    """As in OpenAI's x-ratelimit-reset-*: `0s`, `120ms`, `1.2s`, `6m0s`, `1h0m5s`. Rounded up: to the millisecond, and
    from a minute on to the second."""
    ms = ceil(seconds * 1e3 - 1e-6)  # - 1e-6: what is a whole millisecond but for the last bit of a float stays one
    if ms < 1_000:
        return b"%dms" % ms if ms > 0 else b"0s"
    if ms < 60_000:
        return b"%gs" % (ms / 1e3)
    minutes, whole_s = divmod(-(-ms // 1_000), 60)
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, whole_s) if hours else b"%dm%ds" % (minutes, whole_s)
