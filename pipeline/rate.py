"""Rate allocation: which q for which image, so that the dataset meets its budget. Pure NumPy, no files, no codec.

Minimise `sum w_i D_i(q_i)` subject to `sum S_i(q_i) <= B` and `q_i` within floors: at the optimum all images have equal slope on the lower convex
hulls of their curves (Shoham and Gersho 1988), so one multiplier, found by bisection, decides everything. Taking the arg-min of `w D + multiplier S`
over a fine grid of q visits exactly the hull's vertices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BudgetInfeasibleError

Array = NDArray[np.float64]

GRID_STEP = 0.125
PASSTHROUGH_Q = np.inf
"""The q of an image that is kept as its original file: no distortion, its own size."""

OBJECTIVES = ("mse", "psnr", "minimum")
_MSE_FLOOR = 255.0**2 * 1e-10
_BISECTIONS = 100


def mse_of_psnr(psnr_db: float) -> float:
    """MSE in 8-bit code values at a PSNR in dB."""
    return float(255.0**2 * 10 ** (-psnr_db / 10))


@dataclass(frozen=True)
class CurveSet:
    """Rate and distortion of many images on one grid of q.

    Attributes:
        q: `[J]`, rising.
        stored: `[N, J]`, bytes in the archive at each q.
        mse: `[N, J]`, in 8-bit code values.
        pixels: `[N]`.
        original: `[N]`, stored bytes if the image is kept as its file.
    """

    q: Array
    stored: Array
    mse: Array
    pixels: Array
    original: Array

    @classmethod
    def from_anchors(cls, q: Array, stored: Array, mse: Array, pixels: Array, original: Array) -> CurveSet:
        """Interpolate logarithms of curves known at the anchors `q` `[A]` to a grid of step 1/8.

        Args:
            q: Anchor rates.
            stored: `[N, A]`, bytes in the archive.
            mse: `[N, A]`.
            pixels: `[N]`.
            original: `[N]`.
        """
        grid = np.arange(q[0], q[-1] + GRID_STEP / 2, GRID_STEP)
        left = np.clip(np.searchsorted(q, grid, side="right") - 1, 0, len(q) - 2)
        t = (grid - q[left]) / (q[left + 1] - q[left])

        def at_grid(values: Array) -> Array:
            logs = np.log(np.maximum(values, 1e-12))
            return np.asarray(np.exp(logs[:, left] * (1 - t) + logs[:, left + 1] * t))

        # Sizes rise and errors fall with q by construction of the gains; a prediction that says otherwise is noise.
        return cls(grid, np.maximum.accumulate(at_grid(stored), axis=1), np.minimum.accumulate(at_grid(mse), axis=1), pixels, original)

    def scaled(self, factor: float) -> CurveSet:
        """The same images, coded sizes multiplied: what the closed loop learned of the prediction."""
        return CurveSet(self.q, self.stored * factor, self.mse, self.pixels, self.original)

    def take(self, rows: NDArray[np.intp]) -> CurveSet:
        """Some of the images."""
        return CurveSet(self.q, self.stored[rows], self.mse[rows], self.pixels[rows], self.original[rows])

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Allocation:
    """A choice of q per image.

    Attributes:
        q: `[N]`; infinite for images kept as their files.
        stored: `[N]`, predicted bytes in the archive.
        mse: `[N]`, predicted.
        clamped: `[N]`, `none`, `floor` (its PSNR floor decided) or `cap` (the best q there is).
        multiplier: MSE per byte at the optimum; the lambda of the manifest.
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


def allocate(
    curves: CurveSet, budget_bytes: float, *, objective: str = "mse", min_psnr_db: float | None = None, weights: Array | None = None
) -> Allocation:
    """Best allocation whose predicted total does not exceed the budget.

    Args:
        curves: The images.
        budget_bytes: Bytes for all of them, in the archive.
        objective: `mse` (pooled error), `psnr` (mean PSNR) or `minimum` (the worst image's PSNR).
        min_psnr_db: Floor for every image.
        weights: `[N]`, importance per image; 1 if not given.

    Raises:
        BudgetInfeasibleError: The least total, floors included, exceeds the budget; `least_bytes` and `blame` (image numbers) say by how much and
            through whom.
    """
    if not len(curves):
        if budget_bytes < 0:
            raise infeasible(0.0, budget_bytes, np.empty(0, np.intp))
        return Allocation(np.empty(0), np.empty(0), np.empty(0), np.empty(0, "U5"), 0.0)
    stored, mse = _choices(curves)
    allowed = np.ones(stored.shape, bool) if min_psnr_db is None else mse <= mse_of_psnr(min_psnr_db)
    # The original file is always allowed: an image whose floor no q reaches is kept as it is.
    cheapest = np.where(allowed, stored, np.inf)
    least = cheapest.min(axis=1)
    if least.sum() > budget_bytes:
        blame = np.argsort(-(least / np.maximum(curves.pixels, 1)))[:5]
        raise infeasible(float(least.sum()), budget_bytes, blame)
    if objective == "minimum":
        choice, multiplier = _raise_worst(cheapest, mse, budget_bytes), 0.0
    else:
        distortion = mse * curves.pixels[:, None] if objective == "mse" else 10 * np.log10(np.maximum(mse, _MSE_FLOOR))
        if weights is not None:
            distortion = distortion * weights[:, None]
        choice, multiplier = _equal_slope(cheapest, distortion, budget_bytes)
    rows = np.arange(len(curves))
    q = np.append(curves.q, PASSTHROUGH_Q)[choice]
    free = cheapest.argmin(axis=1)
    clamped = np.where(np.isclose(q, curves.q[-1]), "cap", np.where((choice == free) & ~allowed[:, 0], "floor", "none"))
    return Allocation(q, stored[rows, choice], mse[rows, choice], clamped.astype("U5"), multiplier)


def cheapest(curves: CurveSet, *, min_psnr_db: float | None = None) -> Allocation:
    """The least bytes that the floors allow, whatever the budget: what is left to do when part of a dataset turned out larger than planned."""
    if not len(curves):
        return Allocation(np.empty(0), np.empty(0), np.empty(0), np.empty(0, "U5"), 0.0)
    stored, mse = _choices(curves)
    if min_psnr_db is not None:
        stored = np.where(mse <= mse_of_psnr(min_psnr_db), stored, np.inf)
    rows, choice = np.arange(len(curves)), stored.argmin(axis=1)
    q = np.append(curves.q, PASSTHROUGH_Q)[choice]
    return Allocation(q, stored[rows, choice], mse[rows, choice], np.full(len(curves), "floor", "U5"), 0.0)


def infeasible(least_bytes: float, budget_bytes: float, blame: NDArray[np.intp]) -> BudgetInfeasibleError:
    """The error that says what would do."""
    error = BudgetInfeasibleError(
        f"the budget of {budget_bytes:,.0f} bytes cannot be met: the least these images need, floors included, is {least_bytes:,.0f} bytes"
    )
    error.least_bytes = least_bytes  # type: ignore[attr-defined]
    error.blame = [int(i) for i in blame]  # type: ignore[attr-defined]
    return error


def _choices(curves: CurveSet) -> tuple[Array, Array]:
    """Stored bytes and MSE per image and choice; the last choice is the original file."""
    stored = np.concatenate((curves.stored, curves.original[:, None]), axis=1)
    # An original that is not larger than a coded version is always better than it: no loss at all.
    mse = np.concatenate((curves.mse, np.zeros((len(curves), 1))), axis=1)
    stored[:, :-1] = np.where(stored[:, :-1] >= stored[:, -1:], np.inf, stored[:, :-1])
    return stored, mse


def _equal_slope(stored: Array, distortion: Array, budget: float) -> tuple[NDArray[np.intp], float]:
    """Arg-min of `distortion + multiplier * stored` for the least multiplier that meets the budget."""
    rows = np.arange(len(stored))

    def at(multiplier: float) -> NDArray[np.intp]:
        return np.asarray((distortion + multiplier * stored).argmin(axis=1))

    finite = np.where(np.isfinite(stored), stored, 0)
    low, high = 0.0, max(1e-12, float(np.ptp(distortion)))
    if stored[rows, best := np.where(np.isfinite(stored), distortion, np.inf).argmin(axis=1)].sum() <= budget:
        return best, 0.0
    while stored[rows, at(high)].sum() > budget and high < 1e30:
        high *= 16
    choice = at(high)
    if stored[rows, choice].sum() > budget:
        return stored.argmin(axis=1), high
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low > 0 else high / 64
        tried = at(middle)
        if finite[rows, tried].sum() <= budget:
            high, choice = middle, tried
        else:
            low = middle
        if low > 0 and high / low < 1 + 1e-9:
            break
    return choice, high


def _raise_worst(stored: Array, mse: Array, budget: float) -> NDArray[np.intp]:
    """Each image's cheapest choice at or below one MSE, the least MSE that meets the budget."""
    finite_mse = np.where(np.isfinite(stored), mse, np.inf)

    def at(limit: float) -> NDArray[np.intp]:
        within = np.where(mse <= limit, stored, np.inf)
        reachable = np.isfinite(within).any(axis=1)
        return np.where(reachable, within.argmin(axis=1), finite_mse.argmin(axis=1))

    rows = np.arange(len(stored))
    low, high = np.log(_MSE_FLOOR), np.log(255.0**2)
    choice = at(255.0**2)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        tried = at(float(np.exp(middle)))
        if stored[rows, tried].sum() <= budget:
            high, choice = middle, tried
        else:
            low = middle
    return choice


def q_for_psnr(curves: CurveSet, psnr_db: float) -> Array:
    """Per image, the least q predicted to reach a PSNR (the best q where none does), on the continuous curve."""
    target = np.log(mse_of_psnr(psnr_db))
    out = np.empty(len(curves))
    for i, row in enumerate(np.log(np.maximum(curves.mse, _MSE_FLOOR))):
        reached = np.flatnonzero(row <= target)
        if not len(reached):
            out[i] = curves.q[-1]
        elif reached[0] == 0:
            out[i] = curves.q[0]
        else:
            j = reached[0]
            share = (row[j - 1] - target) / max(row[j - 1] - row[j], 1e-12)
            out[i] = curves.q[j - 1] + share * (curves.q[j] - curves.q[j - 1])
    return out
