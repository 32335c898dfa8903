"""Curves of images: bytes and error over q, on a grid. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indexes = NDArray[np.intp]

GRID_STEP = 0.125
KEPT_Q = np.inf
"""The q of an image that is kept as its original file, in arrays of rates and in stored plans: above every other, no distortion, its own size."""
DRAWN = -1
"""In place of a model's number: AVIF codes the image, and no model."""
ROUNDING_MSE = 1 / 12
"""The error that pixels of 8 bits have before anybody codes them. Nobody is served by less: without this floor the logarithm of no error at all, an
original that is kept, would outweigh everything."""


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
        """Lay natural cubic splines through the logarithms of curves known at the anchors `q` `[A]`, on a grid of step 1/8.

        Args:
            q: Anchor rates.
            stored: `[N, A]`, bytes in the archive.
            mse: `[N, A]`.
            pixels: `[N]`.
            original: `[N]`.
        """
        grid = np.arange(q[0], q[-1] + GRID_STEP / 2, GRID_STEP)
        weights = _spline(q, grid)

        def at_grid(values: Array) -> Array:
            found = np.log(np.maximum(values, 1e-12)) @ weights
            return np.asarray(np.exp(found, out=found))

        def ordered(values: Array, ahead: np.ufunc) -> Array:
            # Sizes rise and errors fall with q by construction of the gains; a prediction that says otherwise is noise.
            broken = np.flatnonzero((ahead(values[:, 1:], values[:, :-1]) != values[:, 1:]).any(axis=1))
            values[broken] = ahead.accumulate(values[broken], axis=1)
            return values

        return cls(grid, ordered(at_grid(stored), np.maximum), ordered(at_grid(mse), np.minimum), pixels, original)

    def take(self, rows: Indexes) -> CurveSet:
        """Some of the images."""
        return CurveSet(self.q, self.stored[rows], self.mse[rows], self.pixels[rows], self.original[rows])

    def __len__(self) -> int:
        return len(self.pixels)


def _spline(knots: Array, at: Array) -> Array:
    """Matrix `[A, J]` that takes values at the knots to a natural cubic spline's values at other places."""
    n, h = len(knots), np.diff(knots)
    system = np.eye(n)
    right = np.zeros((n, n))
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i, i - 1 : i + 2] = 6 / h[i - 1], -6 / h[i - 1] - 6 / h[i], 6 / h[i]
    curvature = np.linalg.solve(system, right)
    left = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, n - 2)
    a, b = (knots[left + 1] - at) / h[left], (at - knots[left]) / h[left]
    values = np.eye(n)
    bent = ((a**3 - a)[:, None] * curvature[left] + (b**3 - b)[:, None] * curvature[left + 1]) * (h[left] ** 2)[:, None] / 6
    return np.asarray((a[:, None] * values[left] + b[:, None] * values[left + 1] + bent).T)


def q_for_psnr(curves: CurveSet, psnr_db: float) -> Array:
    """Per image, the least q predicted to reach a PSNR (the best q where none does), on the continuous curve."""
    target = np.log(mse_of_psnr(psnr_db))
    logs = np.log(np.maximum(curves.mse, 1e-12))
    j = (logs > target).sum(axis=1)
    inner = np.clip(j, 1, len(curves.q) - 1)
    rows = np.arange(len(curves))
    above, below = logs[rows, inner - 1], logs[rows, inner]
    share = (above - target) / np.maximum(above - below, 1e-12)
    between = curves.q[inner - 1] + share * (curves.q[inner] - curves.q[inner - 1])
    return np.asarray(np.where(j == 0, curves.q[0], np.where(j == len(curves.q), curves.q[-1], between)))
