"""Histograms as integer arrays, and the bounds of each that we keep. Pure."""

from __future__ import annotations

from bisect import bisect_left

# Upper bounds in microseconds, or tokens. Durations reach to the longest total timeout; our own share is a fraction of
# a millisecond, and its tail is what matters.
DURATION_BOUNDS_US: tuple[int, ...] = (5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000)
DURATION_BOUNDS_US += (5_000_000, 10_000_000, 30_000_000, 60_000_000, 120_000_000, 300_000_000, 600_000_000)
OVERHEAD_BOUNDS_US: tuple[int, ...] = (50, 100, 200, 300, 500, 750, 1_000, 2_000, 5_000, 10_000, 50_000, 250_000)
OVERHEAD_BOUNDS_US += (1_000_000,)
# Those of the semantic conventions for generative AI; first tokens of reasoning models take longer than these foresee.
ATTEMPT_BOUNDS_US = tuple(10_000 << power for power in range(14))
FIRST_TOKEN_BOUNDS_US: tuple[int, ...] = (1_000, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 250_000)
FIRST_TOKEN_BOUNDS_US += (500_000, 750_000, 1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000)
FIRST_TOKEN_BOUNDS_US += (20_000_000, 60_000_000, 300_000_000)
PER_TOKEN_BOUNDS_US: tuple[int, ...] = (10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000, 400_000)
PER_TOKEN_BOUNDS_US += (500_000, 750_000, 1_000_000, 2_500_000)
TOKEN_BOUNDS = tuple(4**power for power in range(14))


class Histogram:
    """Counts per bucket, and the sum; `le` is inclusive. `one`: so many units make 1 of what is shown."""

    __slots__ = ("bounds", "counts", "one", "sum")

    def __init__(self, bounds: tuple[int, ...], one: int = 1_000_000) -> None:
        self.bounds = bounds
        self.one = one
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    def observe(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
