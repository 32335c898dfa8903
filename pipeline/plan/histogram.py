"""What a threshold costs: sums over upgrades as histograms, which add up and subtract, and the threshold that a budget buys. Pure NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pipeline.plan.allocation import Upgrades, infeasible

_KEYS = (-64.0, 64.0)
_BINS, _NARROW_BINS = 16_384, 8192


class SlopeHistogram:
    """Bytes of upgrades by key, between two keys; what every threshold between them would cost.

    Args:
        low: Least key; upgrades below are left out.
        high: Largest; upgrades from here are in the base.
        bins: How many.
    """

    def __init__(self, low: float = _KEYS[0], high: float = _KEYS[1], bins: int = _BINS) -> None:
        self.low, self.high = low, high
        self._scale = bins / (high - low)
        self._coded, self._kept = np.zeros(bins), np.zeros(bins)
        self._base_coded = self._base_kept = 0.0
        self.images = 0

    def add(self, upgrades: Upgrades, sign: int = 1) -> None:
        """Count a shard's images in, or out again with `sign=-1`."""
        key = upgrades.key
        # Comparison, not bins, decides at the edges, so that `Upgrades.at(high)` is the base.
        bought = (key > self.high).sum(axis=1)
        coded, kept = upgrades.costs(bought)
        self._base_coded += sign * float(coded.sum())
        self._base_kept += sign * float(kept.sum())
        self.images += sign * len(key)
        inside = (key <= self.high) & (key > max(self.low, -np.inf)) & np.isfinite(key)
        size = np.diff(upgrades.stored, axis=1)[inside]
        bins = np.minimum(((key[inside] - self.low) * self._scale).astype(np.intp), len(self._coded) - 1)
        self._coded += sign * np.bincount(bins, size, len(self._coded))
        # The step that replaces a coded image by its original: the coded bytes go, the original's come.
        rows = np.flatnonzero((upgrades.kept > upgrades.low) & (upgrades.kept <= upgrades.high))
        replacing = key[rows, upgrades.kept[rows] - 1]
        some = (replacing <= self.high) & (replacing > self.low) & np.isfinite(replacing)
        rows, replacing = rows[some], replacing[some]
        bins = np.minimum(((replacing - self.low) * self._scale).astype(np.intp), len(self._coded) - 1)
        original = sign * np.bincount(bins, upgrades.stored[rows, -1], len(self._coded))
        self._coded -= original
        self._kept += original

    def least(self, factor: float = 1.0) -> float:
        """Bytes of the base, coded sizes multiplied by `factor`."""
        return factor * self._base_coded + self._base_kept

    def most(self, factor: float = 1.0) -> float:
        """Bytes with every upgrade between the two keys."""
        return self.least(factor) + float(factor * self._coded.sum() + self._kept.sum())

    def cost(self, threshold: float, factor: float = 1.0) -> float:
        """Bytes at a threshold, bins divided in proportion."""
        if threshold == -np.inf:
            return self.most(factor)
        place = float(np.clip((min(threshold, self.high) - self.low) * self._scale, 0, len(self._coded)))
        full = int(np.ceil(place))
        above = factor * self._coded[full:].sum() + self._kept[full:].sum()
        cut = (full - place) * (factor * self._coded[full - 1] + self._kept[full - 1]) if full else 0.0
        return self.least(factor) + float(above + cut)

    def bracket(self, budget_bytes: float, factor: float = 1.0) -> tuple[float, float, float]:
        """The bin in which the budget ends.

        Returns:
            Its lower and upper key, and the share of it (from above) that the budget pays for: 1 with the lowest bin if everything is paid for.
        """
        totals = self.least(factor) + np.cumsum((factor * self._coded + self._kept)[::-1])
        paid = int(np.searchsorted(np.maximum.accumulate(totals), budget_bytes, side="right"))
        width = 1 / self._scale
        if paid == len(totals):
            return self.low, self.low + width, 1.0
        before = totals[paid - 1] if paid else self.least(factor)
        upper = self.high - paid * width
        share = (budget_bytes - before) / max(totals[paid] - before, 1e-300)
        return upper - width, upper, float(np.clip(share, 0.0, 1.0))


Chunks = Callable[[], Iterable[Upgrades]]


def threshold_for(chunks: Chunks, budget_bytes: float, factor: float = 1.0, wide: SlopeHistogram | None = None) -> float:
    """The least threshold whose cost does not exceed the budget, from two walks over the images and the memory of one chunk.

    Args:
        chunks: Gives all images, a chunk at a time; called again for the second walk.
        budget_bytes: For all of them.
        factor: Of coded sizes.
        wide: Histogram of all images, if there is one: saves the first walk.

    Raises:
        BudgetInfeasibleError: See `infeasible`; `blame` is empty.
    """
    if wide is None:
        wide = SlopeHistogram()
        for chunk in chunks():
            wide.add(chunk)
    if wide.least(factor) > budget_bytes * (1 + 1e-12):
        raise infeasible(wide.least(factor), budget_bytes)
    if wide.most(factor) <= budget_bytes:
        return -np.inf
    low, high, _ = wide.bracket(budget_bytes, factor)
    # One bin more on either side: bins and comparisons may round differently at the edges.
    narrow = SlopeHistogram(low - (high - low), high + (high - low), _NARROW_BINS)
    for chunk in chunks():
        narrow.add(chunk)
    return narrow.bracket(budget_bytes, factor)[1]


def quick_threshold(wide: SlopeHistogram, budget_bytes: float, factor: float = 1.0) -> float:
    """As `threshold_for` from the histogram alone, interpolating within the last bin: for datasets too large to walk over at every revision.

    Raises:
        BudgetInfeasibleError: As there.
    """
    if wide.least(factor) > budget_bytes * (1 + 1e-12):
        raise infeasible(wide.least(factor), budget_bytes)
    if wide.most(factor) <= budget_bytes:
        return -np.inf
    low, high, share = wide.bracket(budget_bytes, factor)
    return high - share * (high - low)
