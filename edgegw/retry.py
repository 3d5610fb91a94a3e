"""What follows from a failed attempt: the same target again, the next one, or nothing. A table and one decision.

Pure: it is told the time, the dice and the counts, and answers with what to do and how long to wait first. It never
waits, and knows no provider, pool or breaker.

The reasons behind the table: an attempt is repeated only where repeating may help; a fault of the caller's is the
caller's to mend; and a target that asked us to stay away, or has already had all our patience, is left for another
before it is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from edgegw.errors import UpstreamFault
from edgegw.exchange import RetryPolicy


class Action(IntEnum):
    RETRY_SAME = 0
    NEXT_TARGET = 1
    GIVE_UP = 2


class Health(IntEnum):
    """What a fault says about its target; the breaker is told accordingly (failed, succeeded, released)."""

    ILL = 0  # counts against it
    ALIVE = 1  # it answered, and rightly so
    UNKNOWN = 2  # it was not asked


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row. `order`: the actions worth trying, best first; the first one possible is taken, none means giving up.
    `backoff`: wait before the same target is asked again. `lingers`: after this fault the provider may still be at
    work on (and bill) what it was sent, so the same target is asked again only if the request never left."""

    order: tuple[Action, ...]
    health: Health
    backoff: bool = False
    lingers: bool = False


_SAME, _NEXT = Action.RETRY_SAME, Action.NEXT_TARGET
_ILL = Health.ILL

VERDICTS: dict[str, Verdict] = {
    "upstream_connect": Verdict((_SAME, _NEXT), _ILL, backoff=True),
    "upstream_tls": Verdict((_NEXT,), _ILL),  # a certificate does not mend within a request
    "upstream_busy": Verdict((_NEXT,), Health.UNKNOWN),  # our own pool is full: asking again only lengthens its queue
    "upstream_timeout": Verdict((_NEXT, _SAME), _ILL, backoff=True, lingers=True),
    "upstream_stalled": Verdict((_NEXT, _SAME), _ILL, backoff=True, lingers=True),
    "upstream_cut": Verdict((_SAME, _NEXT), _ILL, backoff=True),
    "upstream_garbage": Verdict((_NEXT, _SAME), _ILL, backoff=True),
    "upstream_auth": Verdict((_NEXT,), _ILL),  # our key is wrong for everybody until somebody changes it
    "upstream_refused": Verdict((), Health.ALIVE),
    "upstream_rate_limited": Verdict((_NEXT, _SAME), _ILL, backoff=True),
    "upstream_quota": Verdict((_NEXT,), _ILL),  # money does not come back within a request
    "upstream_overloaded": Verdict((_NEXT, _SAME), _ILL, backoff=True),
    "upstream_error": Verdict((_SAME, _NEXT), _ILL, backoff=True),
    "internal": Verdict((), Health.UNKNOWN),  # a fault of our own: repeating repeats it, and the target is not to blame
}

# Refusals that are about this target and not about the request: it does not have the model (a mistake in our route),
# or its context window is too small. Another target may well answer, was not the cause, and the refusal cost nothing;
# when none is left the client still gets the provider's own 404 or 400.
_REFUSED_HERE = Verdict((_NEXT,), Health.ALIVE)
_REFUSED_HERE_STATUS = 404
_REFUSED_HERE_CODES = frozenset({"model_not_found", "context_length_exceeded"})

# A provider that names a time for coming back is not asked before; meanwhile any other target is better.
_TOLD_TO_WAIT = (_NEXT, _SAME)

_DOUBLINGS_MAX = 30  # keeps 2**n a float for any count of tries; the cap has long been reached


@dataclass(slots=True)
class Decision:
    """`delay_s`: seconds to wait before acting; above 0 only for RETRY_SAME."""

    action: Action
    delay_s: float = 0.0


def verdict(fault: UpstreamFault) -> Verdict:
    """The row for a fault. Raises KeyError for a kind that no attempt ends with: that is a bug of the caller."""
    if fault.kind == "upstream_refused" and (fault.status == _REFUSED_HERE_STATUS or fault.code in _REFUSED_HERE_CODES):
        return _REFUSED_HERE
    return VERDICTS[fault.kind]


def decide(
    fault: UpstreamFault,
    policy: RetryPolicy,
    *,
    tries_on_target: int,
    attempts_total: int,
    targets_left: int,
    now_s: float,
    deadline_s: float,
    budget_ok: bool,
    dice: float,
) -> Decision:
    """What follows from `fault`, the end of the latest attempt.

    `tries_on_target` and `attempts_total` include that attempt. `targets_left`: how many further targets could be asked
    now. `budget_ok`: the provider's RetryBudget; it holds back retries only, since moving all traffic away from a dead
    provider is what fallbacks are for. `dice` is in [0, 1). Nothing is begun at or after `deadline_s`.
    """
    if attempts_total >= policy.attempts_max or now_s >= deadline_s:
        return Decision(Action.GIVE_UP)
    row = verdict(fault)
    order = _TOLD_TO_WAIT if fault.retry_after_s is not None and _SAME in row.order else row.order
    for action in order:
        if action is _NEXT:
            if targets_left > 0:
                return Decision(_NEXT)
        elif budget_ok and tries_on_target < policy.attempts and not _still_at_work(row, fault):
            delay_s = _delay_s(row, fault, policy, tries_on_target, dice)
            if delay_s is not None and now_s + delay_s < deadline_s:
                return Decision(_SAME, delay_s)
    return Decision(Action.GIVE_UP)


def _still_at_work(row: Verdict, fault: UpstreamFault) -> bool:
    return row.lingers and fault.sent and not fault.status


def _delay_s(row: Verdict, fault: UpstreamFault, policy: RetryPolicy, tries: int, dice: float) -> float | None:
    """Full jitter on an exponential base (AWS Architecture Blog, "Exponential Backoff And Jitter"), on top of what the
    provider asked for, so that everyone told to wait does not come back at once. None: longer than we would wait."""
    asked_s = max(0.0, fault.retry_after_s or 0.0)
    if asked_s > policy.retry_after_max_s:
        return None
    if not row.backoff:
        return asked_s
    return asked_s + dice * min(policy.cap_s, policy.base_s * 2.0 ** min(tries - 1, _DOUBLINGS_MAX))


class RetryBudget:
    """How many retries a provider may have in flight: a share of its live attempts, so that retries cannot multiply an
    outage, and a few at least, so that a quiet gateway can retry at all (Envoy's retry budget: 20 %, 3).

    The caller opens and closes every attempt; a retry is opened when it is decided, before its backoff, so that those
    who wait are counted too.
    """

    __slots__ = ("_at_least", "_share", "live", "retries")

    def __init__(self, share: float = 0.2, at_least: int = 3) -> None:
        self._share = share
        self._at_least = at_least
        self.live = 0
        self.retries = 0

    def allows(self) -> bool:
        """May one more retry begin?"""
        return self.retries < self._at_least or self.retries + 1 <= self.live * self._share

    def opened(self, retry: bool = False) -> None:
        self.live += 1
        if retry:
            self.retries += 1

    def closed(self, retry: bool = False) -> None:
        """The counterpart of `opened`, with the same `retry`, exactly once."""
        self.live -= 1
        if retry:
            self.retries -= 1
