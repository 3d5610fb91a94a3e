"""How a limit is told to a client: the x-ratelimit-* fields, and the ways of saying no.

The words and forms are OpenAI's (platform documentation, "Rate limits"), which SDKs and people know how to read; a
refusal also carries Anthropic's (API documentation, "Rate limits"). Pure: text from numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil

from edgegw.errors import GatewayError
from edgegw.limits.meter import Meter, Shape, Unit

_TOKEN_LINES = b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\nx-ratelimit-reset-tokens: %b\r\n"
LINES: dict[Unit, bytes] = {"tokens": _TOKEN_LINES, "requests": _TOKEN_LINES.replace(b"tokens", b"requests")}
_WAY_S = 0.05  # so old may be what we know: without it a day would end at 00:00:01
RETRY_WITHIN_S = 60.0  # a client's library is told to wait itself for what is over so soon


@dataclass(slots=True)
class Standing:
    """Where somebody stands. `reset_s`: until all of the limit is there again."""

    limit: int
    remaining: int
    reset_s: float

    def lines(self, unit: Unit) -> bytes:
        """As header lines, each ended by CRLF."""
        return LINES[unit] % (self.limit, self.remaining, duration(self.reset_s))

    def fields(self, unit: Unit, wall_s: float) -> tuple[tuple[bytes, bytes], ...]:
        """In OpenAI's words and in Anthropic's, which have the moment of the reset; `wall_s` are Unix seconds."""
        name = unit.encode()
        limit, remaining = b"%d" % self.limit, b"%d" % self.remaining
        reset = datetime.fromtimestamp(ceil(wall_s + self.reset_s - _WAY_S), UTC)
        moment = reset.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
        return (
            (b"x-ratelimit-limit-" + name, limit),
            (b"x-ratelimit-remaining-" + name, remaining),
            (b"x-ratelimit-reset-" + name, duration(self.reset_s)),
            (b"anthropic-ratelimit-" + name + b"-limit", limit),
            (b"anthropic-ratelimit-" + name + b"-remaining", remaining),
            (b"anthropic-ratelimit-" + name + b"-reset", moment),
        )


@dataclass(slots=True)
class Refusal:
    """A request that `meter` has no room for now; it should fit in `wait_s` (inf: never). `closed`: nobody can tell,
    and this tenant is not to be served uncounted."""

    meter: Meter
    amount: int
    standing: Standing
    wait_s: float
    closed: bool = False

    def error(self, wall_s: float) -> GatewayError:
        """What the client is told. `wall_s` are Unix seconds."""
        if self.closed:
            return _unavailable(self.wait_s)
        if self.amount > self.standing.limit:
            return too_large(self.meter, self.amount, self.standing.limit)
        return _no_room(self.meter, self.amount, self.standing, self.wait_s, wall_s)


def too_large(meter: Meter, amount: int, limit: int) -> GatewayError:
    """The 413: waiting would not help."""
    return GatewayError(
        "never_fits",
        f"Request too large for {meter.whose} on {meter.measure.spoken}: Limit {limit}, Requested {amount}. "
        "The input or output tokens must be reduced in order to run successfully.",
    )


def _no_room(meter: Meter, amount: int, standing: Standing, wait_s: float, wall_s: float) -> GatewayError:
    measure = meter.measure
    asked = f", Requested {amount}" if measure.unit == "tokens" else ""
    return GatewayError(
        "rate_limited",
        f"Rate limit reached for {meter.whose} on {measure.spoken}: Limit {standing.limit}, "
        f"Used {standing.limit - standing.remaining}{asked}. "
        f"Please try again in {duration(_milliseconds(wait_s) / 1e3).decode()}.",
        type=measure.unit,
        headers=(
            *_come_back(wait_s),
            (b"x-should-retry", b"true" if wait_s <= RETRY_WITHIN_S else b"false"),
            *(() if measure.shape is Shape.SLOTS else standing.fields(measure.unit, wall_s)),
        ),
    )


def _unavailable(wait_s: float) -> GatewayError:
    message = "The rate limits cannot be counted at the moment, and this tenant is not served without them."
    return GatewayError("overloaded", message, headers=_come_back(wait_s))


def _come_back(wait_s: float) -> tuple[tuple[bytes, bytes], ...]:
    """`retry-after` in whole seconds and `retry-after-ms`, both rounded up."""
    wait_ms = _milliseconds(wait_s)
    return (b"retry-after", b"%d" % -(-wait_ms // 1000)), (b"retry-after-ms", b"%d" % wait_ms)


def _milliseconds(wait_s: float) -> int:
    return max(1, ceil(wait_s * 1e3))


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
