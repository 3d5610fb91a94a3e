"""A breaker per target: stops asking one that keeps failing, and finds out with one probe when it is well again.

Pure: time and dice are arguments. It does not know what a target is, nor what a failure is (retry.py's table does).

How to read it: `allows()` hands out a Pass; the caller shows that Pass again with how it went (`succeeded`, `failed`,
`released`), exactly once. So a straggler from before the breaker opened can neither close it nor end another's probe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class State(IntEnum):
    CLOSED = 0  # all may pass
    OPEN = 1  # none may pass until the pause is over
    HALF_OPEN = 2  # one probe is out


class Event(IntEnum):
    TRIPPED = 0  # too many failures
    PAUSE_OVER = 1  # somebody asks after the pause: becomes the probe
    RECOVERED = 2  # a probe or a panic attempt succeeded
    RELAPSED = 3  # the probe failed
    RELEASED = 4  # the probe ended without a verdict


class Pass(IntEnum):
    """Leave to try; REFUSED is the falsy one."""

    REFUSED = 0
    NORMAL = 1
    PROBE = 2
    PANIC = 3  # every target is open, and this one is tried all the same


# Aliased: reading a member through its class costs 13 times a plain name in Python 3.11.
_CLOSED, _OPEN, _HALF_OPEN = State
_TRIPPED, _PAUSE_OVER, _RECOVERED, _RELAPSED, _RELEASED = Event
_REFUSED, _NORMAL, _PROBE, _PANIC = Pass

# A miss is a KeyError: no other step is legal.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (_CLOSED, _TRIPPED): _OPEN,
    (_OPEN, _PAUSE_OVER): _HALF_OPEN,
    (_OPEN, _RECOVERED): _CLOSED,
    (_HALF_OPEN, _RECOVERED): _CLOSED,
    (_HALF_OPEN, _RELAPSED): _OPEN,
    (_HALF_OPEN, _RELEASED): _OPEN,
}


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When to open and for how long. Envoy opens at 5 in a row and looks at 10 s; the pauses are between linkerd's 1 s
    and 60 s, longer at first because an overloaded model does not recover within a second."""

    failures_in_a_row: int = 5
    failures_share: float = 0.5
    calls_min: int = 20  # below this many calls in the window a share means nothing
    window_s: float = 10.0
    pause_s: float = 5.0  # doubled by each relapse
    pause_max_s: float = 60.0
    jitter: float = 0.25  # a pause is this share shorter or longer, so that workers do not probe together
    probe_wait_s: float = 60.0  # a probe that is never heard of again does not block the next one for longer


_SLICES = 10  # the window moves in tenths


class Breaker:
    """The state of one target as one worker sees it. `state` and `opens_at_s` are for reading."""

    __slots__ = (
        "_calls",
        "_failures",
        "_in_a_row",
        "_past",
        "_pause_s",
        "_policy",
        "_probe_until_s",
        "_slice_ends_s",
        "opens_at_s",
        "state",
    )

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.state = _CLOSED
        self.opens_at_s = 0.0  # when the pause is over; means nothing while CLOSED
        self._pause_s = policy.pause_s
        self._probe_until_s = 0.0
        self._in_a_row = 0
        self._calls = self._failures = 0  # of the current slice of the window
        self._slice_ends_s = 0.0
        self._past: deque[tuple[int, int]] = deque(maxlen=_SLICES - 1)  # (calls, failures) of the slices before

    def allows(self, now_s: float) -> Pass:
        """A pass for one attempt, or REFUSED. Whoever is handed one must show it again when the attempt is over."""
        if self.state is _CLOSED:
            return _NORMAL
        if not self.ready(now_s):
            return _REFUSED
        if self.state is _OPEN:
            self._step(_PAUSE_OVER)
        self._probe_until_s = now_s + self._policy.probe_wait_s
        return _PROBE

    def ready(self, now_s: float) -> bool:
        """Would `allows` hand out a pass? Changes nothing."""
        if self.state is _CLOSED:
            return True
        return now_s >= (self.opens_at_s if self.state is _OPEN else self._probe_until_s)

    def succeeded(self, now_s: float, leave: Pass = _NORMAL) -> None:
        """The attempt that was made on `leave` was answered."""
        if self.state is _CLOSED:
            if now_s >= self._slice_ends_s:
                self._advance(now_s)
            self._calls += 1
            self._in_a_row = 0
        elif leave is not _NORMAL:
            self._step(_RECOVERED)
            self._forget(now_s)

    def failed(self, now_s: float, dice: float, leave: Pass = _NORMAL) -> None:
        """The attempt that was made on `leave` failed in a way that is the target's fault. `dice` is in [0, 1)."""
        if self.state is _CLOSED:
            if now_s >= self._slice_ends_s:
                self._advance(now_s)
            self._calls += 1
            self._failures += 1
            self._in_a_row += 1
            if self._has_had_enough():
                self._step(_TRIPPED)
                self._pause(now_s, dice)
        elif self.state is _HALF_OPEN and leave is _PROBE:
            self._step(_RELAPSED)
            self._pause_s = min(2 * self._pause_s, self._policy.pause_max_s)
            self._pause(now_s, dice)

    def released(self, leave: Pass = _NORMAL) -> None:
        """The attempt ended without a verdict (the client left, our pool was full): the next to ask may probe."""
        if self.state is _HALF_OPEN and leave is _PROBE:
            self._step(_RELEASED)

    def _step(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    def _pause(self, now_s: float, dice: float) -> None:
        self.opens_at_s = now_s + self._pause_s * (1.0 + self._policy.jitter * (2.0 * dice - 1.0))

    def _has_had_enough(self) -> bool:
        policy = self._policy
        if self._in_a_row >= policy.failures_in_a_row:
            return True
        calls = self._calls + sum(calls for calls, _ in self._past)
        failures = self._failures + sum(failures for _, failures in self._past)
        return calls >= policy.calls_min and failures >= policy.failures_share * calls

    def _advance(self, now_s: float) -> None:
        """Move the window up to `now_s`, one slice at a time, or all at once after a silence longer than itself."""
        slice_s = self._policy.window_s / _SLICES
        if now_s - self._slice_ends_s >= self._policy.window_s:
            self._past.clear()
            self._calls = self._failures = 0
            self._slice_ends_s = now_s + slice_s
        while now_s >= self._slice_ends_s:
            self._past.append((self._calls, self._failures))
            self._calls = self._failures = 0
            self._slice_ends_s += slice_s

    def _forget(self, now_s: float) -> None:
        """A target that is well again starts with a clean sheet."""
        self._pause_s = self._policy.pause_s
        self._in_a_row = 0
        self._calls = self._failures = 0
        self._past.clear()
        self._slice_ends_s = now_s + self._policy.window_s / _SLICES


NOBODY = -1


def choose(breakers: Sequence[Breaker], first: int, now_s: float) -> tuple[int, Pass]:
    """Index and pass of the next target to ask, looking from `first` on; (NOBODY, REFUSED) when there is none.

    The panic rule: when a request has tried nothing yet (`first` is 0) and every target is open, the one that opens
    soonest is tried all the same. A failure there changes nothing; a success closes its breaker.
    """
    for index in range(first, len(breakers)):
        leave = breakers[index].allows(now_s)
        if leave is not _REFUSED:
            return index, leave
    if first or not breakers:
        return NOBODY, _REFUSED
    return min(range(len(breakers)), key=lambda index: breakers[index].opens_at_s), _PANIC


def ready_from(breakers: Sequence[Breaker], first: int, now_s: float) -> int:
    """How many targets from `first` on would be let through now (what retry.decide calls `targets_left`)."""
    return sum(breaker.ready(now_s) for breaker in breakers[first:])
