"""The words that workers and authority exchange about a meter; the channel carries them.

A `meter` is an id (meter.py); amounts are in its unit, tokens or requests. Values and nothing more: what a worker does
with them is lease.py and limiter.py, what the authority does is authority.py.
"""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct


class Mode(IntEnum):
    """How an authority counts: as it should, or because it cannot reach what it shares with other replicas, by its own
    share, not at all, or by refusing."""

    EXACT = 0
    LOCAL = 1
    OPEN = 2
    CLOSED = 3


class Want(Struct, array_like=True, tag=1, gc=False):
    """Worker: "`amount` of this meter, or at least `need`." Answered by one Offer.

    `place` is the meter's cell in the worker's tally (tally.py): what was spent of it, readable after the worker's
    death. Whoever had that place before has given everything back."""

    meter: str
    amount: int
    need: int
    place: int


class Offer(Struct, array_like=True, tag=2, gc=False):
    """Authority: `granted` are yours (0: there was no room for `need`, there will be in `retry_after_s`, inf: never).

    `remaining` is what is left for everybody after that; below zero is a debt. `resets_s`: until a day or month ends,
    0 for what is counted otherwise. `mode`: how the authority counts at the moment.
    """

    meter: str
    granted: int
    limit: int
    remaining: int
    retry_after_s: float = 0.0
    resets_s: float = 0.0
    mode: int = 0  # a Mode


class GiveBack(Struct, array_like=True, tag=3, gc=False):
    """Worker: `amount` is for the authority to add (negative: more was used than was leased). `leased`: how much less I
    hold of what I was leased; the same, except for what was never leased (0) and for what an ended day or month made
    worthless (then `amount` is 0)."""

    meter: str
    amount: int
    leased: int


class Spent(Struct, array_like=True, tag=4, gc=False):
    """Worker: so much was admitted unasked while you were away."""

    meter: str
    amount: int


class Recall(Struct, array_like=True, tag=5, gc=False):
    """Worker, to an authority that started anew: by what your predecessor told me, this would now be left."""

    meter: str
    level: int
