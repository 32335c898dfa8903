"""Rate allocation: which q for which image, so that the dataset meets its budget. Pure NumPy, no files, no codec.

Minimise `sum w_i D_i(q_i)` subject to `sum S_i(q_i) <= B` and `q_i` within limits: at the optimum all images have equal slope on the lower convex
hulls of their curves (Shoham and Gersho 1988), so one multiplier decides everything. Here an image is a row of upgrades, one per step of q, and each
has a key: the logarithm of the error it removes per byte, made to fall along the row by taking the hull. Every upgrade whose key is above one
threshold is bought. What a threshold costs is therefore a sum over upgrades, and a histogram of keys, weighted by bytes, answers it for every one at
once: histograms of shards add up and subtract, so a plan needs memory for the bins and for one shard, however many images there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BudgetInfeasibleError
from pipeline.plan.curves import KEPT_Q, ROUNDING_MSE, Array, CurveSet, Indexes

OBJECTIVES = ("mse", "psnr", "minimum")
_TIE = 1e-3
"""Keys are moved by up to this much, by image, so that a dataset of equal images can be divided too. It costs a millionth of the error."""


def tie_breaks(index: NDArray[np.int64]) -> Array:
    """Small numbers `[N]` that depend on the image's number alone."""
    mixed = np.asarray(index, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(_TIE * ((mixed >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5))


@dataclass(frozen=True)
class Limits:
    """Floors and caps of the images: one number for all, `[N]`, or None where there is none; NaN in an array likewise.

    Attributes:
        min_psnr_db: No image below; where no q reaches it, the original is kept. `max_psnr_db`: no bytes spent beyond.
        min_bpp: Stored bits per pixel, at least (the best q where none has that many); `max_bpp`: at most (q = 0 where none has that few).
        min_q: Least q; `max_q`: largest.

    A floor wins over a cap that contradicts it.
    """

    min_psnr_db: float | Array | None = None
    max_psnr_db: float | Array | None = None
    min_bpp: float | Array | None = None
    max_bpp: float | Array | None = None
    min_q: float | Array | None = None
    max_q: float | Array | None = None

    def take(self, rows: Indexes | slice) -> Limits:
        """Those of some of the images."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Limits(**{name: value[rows] if isinstance(value, np.ndarray) else value for name, value in values.items()})

    def choices(self, curves: CurveSet) -> tuple[Indexes, Indexes]:
        """First and last allowed choice `[N]`; choice J, after all q, is the original."""
        num, best = len(curves), len(curves.q)
        low, high = np.zeros(num, np.intp), np.full(num, best, np.intp)
        slack = 1 + 1e-9

        def bound(value: float | Array | None) -> Array | None:
            return None if value is None else np.asarray(np.broadcast_to(np.asarray(value, np.float64), num))

        def raise_to(count: Indexes, limit: Array, least: int) -> None:
            np.copyto(low, np.maximum(low, np.minimum(count, least)), where=~np.isnan(limit))

        def lower_to(count: Indexes, limit: Array) -> None:
            np.copyto(high, np.minimum(high, np.maximum(count - 1, 0)), where=~np.isnan(limit))

        if (limit := bound(self.min_psnr_db)) is not None:
            raise_to((curves.mse > 255.0**2 * 10 ** (-limit[:, None] / 10) * slack).sum(axis=1), limit, best)
        if (limit := bound(self.max_psnr_db)) is not None:
            lower_to((curves.mse * slack >= 255.0**2 * 10 ** (-limit[:, None] / 10)).sum(axis=1), limit)
        bpp = 8 * curves.stored / np.maximum(curves.pixels, 1)[:, None] if self.min_bpp is not None or self.max_bpp is not None else curves.stored
        if (limit := bound(self.min_bpp)) is not None:
            raise_to((bpp * slack < limit[:, None]).sum(axis=1), limit, best - 1)
        if (limit := bound(self.max_bpp)) is not None:
            lower_to((bpp <= limit[:, None] * slack).sum(axis=1), limit)
        if (limit := bound(self.min_q)) is not None:
            raise_to((curves.q * slack < limit[:, None]).sum(axis=1), limit, best - 1)
        if (limit := bound(self.max_q)) is not None:
            lower_to((curves.q <= limit[:, None] * slack).sum(axis=1), limit)
        return low, np.maximum(low, high)


@dataclass(frozen=True)
class Allocation:
    """A choice of q per image.

    Attributes:
        q: `[N]`; infinite for images kept as their files.
        stored: `[N]`, predicted bytes in the archive.
        mse: `[N]`, predicted.
        clamped: `[N]`, `none`, `floor` (a floor decided) or `cap` (a cap, or the best q there is).
        multiplier: Error per byte at the optimum; the lambda of the manifest.
    """

    q: Array
    stored: Array
    mse: Array
    clamped: NDArray[np.str_]
    multiplier: float

    @property
    def total_bytes(self) -> float:
        """Predicted bytes of all images."""
        return float(self.stored.sum())


@dataclass(frozen=True)
class Upgrades:
    """The steps from each image's least choice to its best, with the keys that decide about them.

    Attributes:
        curves: The images.
        key: `[N, J]`, falling along each row: of the step from choice j to j + 1. Infinite where a floor forbids to stay, -infinite where a step is
            forbidden or buys nothing.
        stored: `[N, J + 1]`, bytes of each choice; the last is the original.
        mse: `[N, J + 1]`.
        kept: `[N]`, the first choice that means keeping the original.
        low: `[N]`, the least choice; `high`: the best.
    """

    curves: CurveSet
    key: Array
    stored: Array
    mse: Array
    kept: Indexes
    low: Indexes
    high: Indexes

    @classmethod
    def of(
        cls, curves: CurveSet, objective: str = "mse", limits: Limits | None = None, weights: Array | None = None, ties: Array | None = None
    ) -> Upgrades:
        """Prepare images for allocation.

        Args:
            curves: The images.
            objective: `mse` (pooled error), `psnr` (mean PSNR) or `minimum` (the worst image's error).
            limits: Floors and caps.
            weights: `[N]`, above 0: importance of an image's error; 1 if not given.
            ties: From `tie_breaks`, or None where equal images may be treated alike.
        """
        original = curves.original[:, None]
        # An original that is not larger than a coded version is always better than it: no loss at all.
        replaced = curves.stored >= original
        stored = np.concatenate((np.minimum(curves.stored, original), original), axis=1)
        mse = np.concatenate((np.where(replaced, 0.0, curves.mse), np.zeros((len(curves), 1))), axis=1)
        kept = (~replaced).sum(axis=1)
        low, high = (limits or Limits()).choices(curves)
        high = np.maximum(np.minimum(high, kept), low)
        error = np.maximum(mse, ROUNDING_MSE) if objective != "mse" else mse * curves.pixels[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            if objective == "minimum":
                key = np.log(error[:, :-1] if weights is None else error[:, :-1] * weights[:, None])
            else:
                if objective == "psnr":
                    error = 10 * np.log10(error)
                if weights is not None:
                    error = error * weights[:, None]
                key = error[:, :-1] - error[:, 1:]
                key /= stored[:, 1:] - stored[:, :-1]
                np.log(key, out=key)
                np.copyto(key, -np.inf, where=np.isnan(key))
        step = np.arange(key.shape[1])
        outside = (step < low[:, None]) | (step >= high[:, None])
        if objective != "minimum":
            within = ~outside[:, 1:] & ~outside[:, :-1]
            _tangent_to_original(key, stored, error, low, kept, np.flatnonzero((kept <= high) & (kept >= low + 2)))
            if len(rows := np.flatnonzero(((key[:, 1:] > key[:, :-1]) & within).any(axis=1))):
                key[rows] = _hull_keys(stored[rows], error[rows], low[rows], high[rows])
        if ties is not None:
            key += ties[:, None]
        np.copyto(key, -np.inf, where=outside)
        np.copyto(key, np.inf, where=step < low[:, None])
        return cls(curves, key, stored, mse, kept, low, high)

    def at(self, threshold: float) -> Allocation:
        """The allocation that buys every upgrade with a key above the threshold."""
        return self.choose(np.maximum((self.key > threshold).sum(axis=1), self.low), threshold)

    def choose(self, choice: Indexes, threshold: float) -> Allocation:
        """The allocation with these choices `[N]`."""
        rows = np.arange(len(choice))
        q = np.where(choice >= self.kept, KEPT_Q, np.append(self.curves.q, KEPT_Q)[choice])
        at_best = (choice == self.high) & (self.high > self.low)
        clamped = np.where(at_best | (q == self.curves.q[-1]), "cap", np.where((choice == self.low) & (self.low > 0), "floor", "none"))
        multiplier = float(np.exp(min(threshold, 700.0))) if np.isfinite(threshold) else 0.0
        return Allocation(q, self.stored[rows, choice], self.mse[rows, choice], clamped.astype("U5"), multiplier)

    def costs(self, choice: Indexes) -> tuple[Array, Array]:
        """Bytes `[N]` of a choice: of the coded image, and of the original where that is kept."""
        stored, kept = self.stored[np.arange(len(choice)), choice], choice >= self.kept
        return np.where(kept, 0.0, stored), np.where(kept, stored, 0.0)


def _tangent_to_original(key: Array, stored: Array, error: Array, low: Indexes, kept: Indexes, rows: Indexes) -> None:
    """Pool, in place, the steps that the hull skips on its way to the original: the usual bend of a hull, found without the chain."""
    rows = rows[key[rows, kept[rows] - 1] > key[rows, kept[rows] - 2]]
    if not len(rows):
        return
    place, end = np.arange(key.shape[1]), kept[rows]
    last = np.arange(len(rows)), end
    s, e = stored[rows], error[rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (e[:, :-1] - e[last][:, None]) / (s[last][:, None] - s[:, :-1])
    slope[(place < low[rows][:, None]) | (place >= end[:, None])] = np.inf
    tangent = slope.argmin(axis=1)
    pooled = (place >= tangent[:, None]) & (place < end[:, None])
    key[rows] = np.where(pooled, np.log(slope.min(axis=1))[:, None], key[rows])


def _hull_keys(stored: Array, error: Array, low: Indexes, high: Indexes) -> Array:
    """Log slopes `[N, J]` of the lower convex hulls through choices low..high: a monotone chain, all images abreast."""
    num, choices = stored.shape
    stack, top = np.zeros((num, choices + 1), np.intp), np.zeros(num, np.intp)  # top: vertices on the stack
    rows = np.arange(num)
    for j in range(choices):
        inside = rows[(j >= low) & (j <= high)]
        active = inside[top[inside] >= 2]
        while len(active):
            b, a = stack[active, top[active] - 1], stack[active, top[active] - 2]
            gained = (error[active, a] - error[active, b]) * (stored[active, j] - stored[active, b])
            offered = (error[active, b] - error[active, j]) * (stored[active, b] - stored[active, a])
            active = active[gained <= offered]
            top[active] -= 1
            active = active[top[active] >= 2]
        stack[inside, top[inside]] = j
        top[inside] += 1
    vertex = np.zeros((num, choices), bool)
    for depth in range(int(top.max())):
        held = rows[top > depth]
        vertex[held, stack[held, depth]] = True
    place = np.arange(choices)
    before = np.maximum.accumulate(np.where(vertex, place, 0), axis=1)[:, :-1]
    after = np.minimum.accumulate(np.where(vertex, place, choices - 1)[:, ::-1], axis=1)[:, ::-1][:, 1:]
    r = rows[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        key = np.log(error[r, before] - error[r, after]) - np.log(stored[r, after] - stored[r, before])
    return np.asarray(np.nan_to_num(key, nan=-np.inf, posinf=np.inf, neginf=-np.inf))


def allocate(
    curves: CurveSet,
    budget_bytes: float,
    *,
    objective: str = "mse",
    limits: Limits | None = None,
    weights: Array | None = None,
) -> Allocation:
    """The best hull allocation of images in memory whose predicted total does not exceed the budget: all upgrades in the order of their keys, up to
    the first that no longer fits. Exact; `threshold_for` is its equal for any number of images.

    Args:
        curves: The images.
        budget_bytes: Bytes for all of them, in the archive.
        objective: See `Upgrades.of`; likewise `limits` and `weights`.
        limits: Floors and caps.
        weights: `[N]`.

    Raises:
        BudgetInfeasibleError: The least total, floors included, exceeds the budget; `least_bytes` and `blame` (image numbers) say by how much and
            through whom.
    """
    upgrades = Upgrades.of(curves, objective, limits, weights)
    least = upgrades.at(np.inf)
    left = budget_bytes - least.total_bytes
    if left < -1e-12 * max(budget_bytes, 0):
        raise infeasible(least.total_bytes, budget_bytes, most_expensive(upgrades))
    image, step = np.nonzero(np.isfinite(upgrades.key))
    key = upgrades.key[image, step]
    order = np.lexsort((step, image, -key))
    image, step, key = image[order], step[order], key[order]
    bought = int(np.searchsorted(np.cumsum(np.diff(upgrades.stored, axis=1)[image, step]), left, side="right"))
    # Between two vertices of a hull one does not stop.
    while 0 < bought < len(key) and image[bought] == image[bought - 1] and key[bought] == key[bought - 1]:
        bought -= 1
    choice = (upgrades.key == np.inf).sum(axis=1) + np.bincount(image[:bought], minlength=len(curves))
    return upgrades.choose(choice, float(key[bought]) if bought < len(key) else -np.inf)


def most_expensive(upgrades: Upgrades, count: int = 5) -> list[int]:
    """Rows whose least choice takes the most bytes per pixel."""
    least = upgrades.at(np.inf)
    return [int(i) for i in np.argsort(-(least.stored / np.maximum(upgrades.curves.pixels, 1)), kind="stable")[:count]]


def infeasible(least_bytes: float, budget_bytes: float, blame: Iterable[int] = (), message: str | None = None) -> BudgetInfeasibleError:
    """The error that says what would do."""
    error = BudgetInfeasibleError(
        message or f"the budget of {budget_bytes:,.0f} bytes cannot be met: the least these images need, floors included, is {least_bytes:,.0f} bytes"
    )
    error.least_bytes = least_bytes
    error.blame = list(blame)
    return error
