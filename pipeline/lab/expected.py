"""What a budget will ask of a dataset, foreseen from a sample: which rates its images will have, and how many bytes they will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msinn_core.codec import Codec
from msinn_core.picture import Picture
from pipeline.plan.config import Budget

_PICTURES = 24
_BELOW, _ABOVE = 2.0, 3.0
"""Of the rate that meets a total for all images alike: how far a plan spreads single images, and, upwards, what a better model buys."""

_AROUND = 1.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """What is foreseen.

    Attributes:
        q_range: Least and largest rate index that most images will have.
        coded_bytes: Of all images, with the general model.
    """

    q_range: tuple[float, float]
    coded_bytes: float


def expected(
    budget: Budget, codec: Codec, pictures: Sequence[NDArray[np.uint8]], *, pixels: float, source_bytes: int, kept_bytes: float = 0.0
) -> Expected:
    """Foresee.

    Args:
        budget: Of the run.
        codec: Of the general model.
        pictures: Some of the dataset's, uint8 `[H, W, 3]`.
        pixels: Of the images that are coded, estimated.
        source_bytes: Of all files.
        kept_bytes: Of those that are kept as they are, estimated; a total pays for them first.
    """
    chosen = pictures[:_PICTURES]
    found = [codec.analyse(Picture(pixels=np.ascontiguousarray(picture))) for picture in chosen]
    sizes = np.array([picture.shape[0] * picture.shape[1] for picture in chosen], np.float64)
    bpp = 8 * sum(curve.bytes for curve in found) / sizes.sum()
    psnr_db = np.mean([10 * np.log10(255**2 / np.maximum(curve.mse, 1e-3)) for curve in found], axis=0)
    rates = np.arange(len(bpp), dtype=np.float64)
    if budget.is_total:
        total = max(0.0, float(budget.total_bytes(pixels=round(pixels), source_bytes=source_bytes)) - kept_bytes)
        q = _at(8 * total / max(pixels, 1.0), bpp, rates)
        return Expected(_range(q - _BELOW, q + _ABOVE, codec.q_max), total)
    if budget.kind == "psnr":
        each = [_at(budget.value, 10 * np.log10(255**2 / np.maximum(curve.mse, 1e-3)), rates) for curve in found]
        q = _at(budget.value, np.asarray(psnr_db), rates)
        return Expected(_range(min(each) - _AROUND, max(each) + _AROUND, codec.q_max), float(np.interp(q, rates, bpp)) * pixels / 8)
    q = budget.value
    return Expected(_range(q - _AROUND, q + _AROUND, codec.q_max), float(np.interp(q, rates, bpp)) * pixels / 8)


def _at(value: float, rising: Array, rates: Array) -> float:
    """The rate at which a curve has a value; the nearest end beyond it."""
    return float(np.interp(value, np.maximum.accumulate(rising), rates))


def _range(low: float, high: float, q_max: float) -> tuple[float, float]:
    """At least two rates wide: a comparison of models needs curves that overlap."""
    low, high = max(0.0, low), min(q_max, high)
    return min(low, max(0.0, high - 2 * _AROUND)), max(high, min(q_max, low + 2 * _AROUND))
