"""Counts of whole numbers -> a few bars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Share of the values that the bars of equal width cover; the rest, a long tail, goes into the last one.
_COVERED = 0.99


@dataclass(frozen=True, slots=True)
class Bar:
    """How many values lie from ``low`` to ``high``, both included."""

    low: int
    high: int
    count: int


def histogram(counts: Mapping[int, int], most: int = 24) -> list[Bar]:
    """Return bars of one round width, without gaps, from the lowest value to the highest.

    Args:
        counts: How often each value occurs.
        most: Bars wanted at most; one more where the round edges ask for it.

    Returns:
        The bars; empty when nothing was counted. The last one holds all that lies above, when less than a
        hundredth of the values does.
    """
    if not counts:
        return []
    low, top = min(counts), _quantile(counts, _COVERED)
    width = _round_width((top - low + 1) / most)
    first = low // width
    bars = [0] * (top // width - first + 1)
    for value, count in counts.items():
        bars[min(value // width - first, len(bars) - 1)] += count
    edges = [(first + i) * width for i in range(len(bars) + 1)]
    highs = [*(edge - 1 for edge in edges[1:-1]), max(edges[-1] - 1, max(counts))]
    return [Bar(*bar) for bar in zip(edges, highs, bars, strict=False)]


def _quantile(counts: Mapping[int, int], share: float) -> int:
    wanted, seen = share * sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return max(counts)


def _round_width(least: float) -> int:
    """Return the lowest of 1, 2, 5, 10, 20, 50 ... that is no less than ``least``."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if factor * step >= least:
                return factor * step
        step *= 10
