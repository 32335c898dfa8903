"""What budgets would buy, from the analysis alone: for `msinn plan --curve`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.plan.allocation import Upgrades
from pipeline.plan.findings import Array, Findings
from pipeline.plan.histogram import SlopeHistogram, quick_threshold

_PSNR_BINS = np.linspace(0.0, 120.0, 12_001)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a budget would buy: predicted bytes of the archive, bits per pixel, pooled and mean PSNR, and PSNR of the worst 1 %."""

    counted_bytes: float
    bpp: float
    pooled_psnr_db: float
    mean_psnr_db: float
    p1_psnr_db: float


def outlook(findings: Findings, num_points: int = 9) -> list[Outlook]:
    """What budgets between the least and the most that rates can spend would buy, floors and objective as configured."""
    shards = np.flatnonzero(findings.has_coded).tolist()
    if not shards:
        return []
    wide = SlopeHistogram()
    for upgrades in findings.walk(shards):
        wide.add(upgrades)
    least, most = wide.least(), wide.most()
    budgets = np.geomspace(least, max(most, least * (1 + 1e-6)), num_points)
    points = [_Point(threshold) for threshold in (np.inf, *(quick_threshold(wide, float(budget)) for budget in budgets[1:]))]
    pixels, count = 0.0, 0
    for upgrades in findings.walk(shards):
        pixels += float(upgrades.curves.pixels.sum())
        count += len(upgrades.curves)
        for point in points:
            point.add(upgrades)
    fixed = float(findings.fixed.sum())
    return [point.outlook(fixed, findings.total_pixels, pixels, count) for point in points]


class _Point:
    """Sums over all images at one threshold."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._bytes = self._squares = self._decibels = 0.0
        self._spread = np.zeros(len(_PSNR_BINS) - 1)

    def add(self, upgrades: Upgrades) -> None:
        chosen = upgrades.at(self._threshold)
        psnr = _psnr(chosen.mse)
        self._bytes += chosen.total_bytes
        self._squares += float((chosen.mse * upgrades.curves.pixels).sum())
        self._decibels += float(psnr.sum())
        self._spread += np.histogram(psnr, _PSNR_BINS)[0]

    def outlook(self, fixed_bytes: float, total_pixels: int, coded_pixels: float, count: int) -> Outlook:
        total = self._bytes + fixed_bytes
        worst = _PSNR_BINS[int(np.searchsorted(np.cumsum(self._spread), 0.01 * count, side="right"))]
        pooled = float(_psnr(np.asarray(self._squares / max(coded_pixels, 1))))
        return Outlook(float(total), float(8 * total / max(total_pixels, 1)), pooled, self._decibels / count, float(worst))


def _psnr(mse: Array) -> Array:
    return np.asarray(10 * np.log10(255.0**2 / np.maximum(mse, 1e-5)))
