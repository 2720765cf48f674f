"""Percentiles of the histograms that load.c fills: 64 equal steps in each power of two (see histogram.h)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

STEP_BITS = 6
STEPS = 1 << STEP_BITS


def middle(index: int) -> float:
    """Return the middle of the values that are counted at a place."""
    power, step = divmod(index, STEPS)
    if power == 0:
        return float(step)
    return ((STEPS + step) << (power - 1)) + ((1 << (power - 1)) - 1) / 2


def merged(histograms: Iterable[Iterable[tuple[int, int]]]) -> Counter[int]:
    """Add up histograms that were reported as pairs of place and count."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        for index, count in histogram:
            total[index] += count
    return total


def percentile(histogram: Mapping[int, int], share: float) -> float | None:
    """Return the value below which this share (0 to 1) of all values lies, None if there are none."""
    total = sum(histogram.values())
    wanted, seen = share * total, 0
    for index in sorted(histogram):
        seen += histogram[index]
        if seen >= wanted:
            return middle(index)
    return None
