"""What one worker holds of each meter, known to the unit when it dies.

The control process counts what it leased to the worker and what came back. What was spent of it the worker itself
counts, in its tally, which outlives it. The difference is unspent, whatever was still under way between the two: a
lease that the worker never read is unspent, and so is what it gave back into a broken channel. So a death loses nothing
and admits nothing twice. Requests that died with the worker keep what was reserved for them, as their providers went on
counting; but of slots, which are nothing but requests that run, all come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgegw.limits.meter import Shape, read_meter


@dataclass(slots=True)
class _Held:
    place: int
    base: int  # what the tally said there when nothing was leased
    slots: bool
    leased: int = 0  # and not given back


class Holdings:
    """Of one worker, from its first word to its last. `tally` is the worker's; None: it has none that we can read."""

    __slots__ = ("_held", "_meter_at", "_tally")

    def __init__(self, tally: Sequence[int] | None) -> None:
        self._tally = tally
        self._held: dict[str, _Held] = {}
        self._meter_at: dict[int, str] = {}

    def asked(self, meter: str, place: int) -> None:
        """A word from the worker, who counts nothing at a place that is new to it before it is answered. Whichever
        meter had the place before is forgotten, and where the meter was before: all of it had come back."""
        before = self._meter_at.get(place)
        if before == meter:
            return
        if before is not None:
            del self._held[before]
        elsewhere = self._held.get(meter)
        if elsewhere is not None:
            del self._meter_at[elsewhere.place]
        self._meter_at[place] = meter
        base = 0 if self._tally is None else self._tally[place]
        self._held[meter] = _Held(place, base, read_meter(meter).measure.shape is Shape.SLOTS)

    def leased(self, meter: str, amount: int) -> None:
        """More (or, negative, less) is leased to the worker."""
        held = self._held.get(meter)
        if held is not None:
            held.leased += amount

    def unspent(self) -> dict[str, int]:
        """What the worker could still spend at this moment; a negative amount is a debt that it has not told yet. Slots
        are none of this: they are held by requests."""
        tally = self._tally
        if tally is None:  # nobody knows: rather lost (the refill mends it) than admitted twice
            return {}
        found = {
            meter: held.leased - tally[held.place] + held.base for meter, held in self._held.items() if not held.slots
        }
        return {meter: amount for meter, amount in found.items() if amount}

    def returned(self) -> dict[str, int]:
        """The worker is gone: what goes back to the authority. Forgets everything."""
        back = self.unspent()
        back |= {meter: held.leased for meter, held in self._held.items() if held.slots and held.leased}
        self._held.clear()
        self._meter_at.clear()
        return back
