"""`msinn bench plan`: plans of very many simulated images, against the exact solver on the first of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import numpy as np

from pipeline.plan.allocation import Upgrades, allocate, tie_breaks
from pipeline.plan.curves import CurveSet
from pipeline.plan.histogram import SlopeHistogram, quick_threshold, threshold_for

_CHUNK = 8192
_EXACTLY = 100_000


def bench_plan(num_images: int, *, objective: str) -> None:
    """Print time, memory and errors of a plan whose budget is three times the least.

    Args:
        num_images: How many are simulated.
        objective: See `CompressConfig`.
    """
    started = time.perf_counter()
    _, threshold = _planned(num_images, objective)
    took = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{num_images:,} images planned in {took:.1f} s (curves made on the way), peak memory {memory:.2f} GiB, threshold {threshold:.6f}")
    few = min(_EXACTLY, num_images)
    wide, threshold = _planned(few, objective)
    budget = wide.least() * 3
    quick = sum(part.at(threshold).total_bytes for part in _parts(few, objective))
    exact_threshold = threshold_for(lambda: _parts(few, objective), budget, wide=wide)
    walked = sum(part.at(exact_threshold).total_bytes for part in _parts(few, objective))
    every = [_curves(start, min(_CHUNK, few - start)) for start in range(0, few, _CHUNK)]
    together = CurveSet(every[0].q, *(np.concatenate([getattr(one, name) for one in every]) for name in ("stored", "mse", "pixels", "original")))
    exact = allocate(together, budget, objective=objective).total_bytes
    print(f"{few:,} images against the exact solver: histogram {100 * (quick / exact - 1):+.5f} %, walked twice {100 * (walked / exact - 1):+.5f} %")


def _curves(start: int, count: int) -> CurveSet:
    """Exponents differ between images and from anchor to anchor; a tenth of the curves is not convex, as with photographs."""
    rng = np.random.default_rng(start)
    pixels = rng.uniform(2e5, 1.2e7, count)
    rise, fall = rng.normal(0.29, 0.04, (count, 1)), rng.normal(0.42, 0.06, (count, 1))
    size = rng.normal(-3.4, 0.6, (count, 1)) + np.log(pixels)[:, None] + np.cumsum(rng.normal(rise, 0.015, (count, 12)), axis=1)
    error = rng.normal(4.2, 0.7, (count, 1)) - np.cumsum(rng.normal(fall, 0.015, (count, 12)), axis=1)
    original = np.exp(size[:, 6]) * rng.uniform(1, 20, count)
    return CurveSet.from_anchors(np.arange(12.0), np.exp(size) + 768, np.exp(error), pixels, original)


def _parts(num_images: int, objective: str) -> Iterator[Upgrades]:
    for start in range(0, num_images, _CHUNK):
        count = min(_CHUNK, num_images - start)
        yield Upgrades.of(_curves(start, count), objective, ties=tie_breaks(np.arange(start, start + count)))


def _planned(num_images: int, objective: str) -> tuple[SlopeHistogram, float]:
    wide = SlopeHistogram()
    for part in _parts(num_images, objective):
        wide.add(part)
    return wide, quick_threshold(wide, wide.least() * 3)
