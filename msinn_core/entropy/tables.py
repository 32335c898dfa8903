"""Integer CDF tables. They are built once, when a model is packed, and stored in the model file: a decoder never rebuilds them, because one
count that differs between two machines' `erf` destroys every stream after it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msinn_core.errors import CheckpointError

PRECISION_BITS = 16
TOTAL = 1 << PRECISION_BITS

NUM_SCALES = 128
SCALE_MIN = 0.11
SCALE_MAX = 512.0
_SUPPORT_SIGMAS = 5.0
MAX_OFFSET = 1 << 24
"""Of the first symbol of a table, in size: the kernel's sums then stay within int32."""


@dataclass(frozen=True)
class Tables:
    """Cumulative counts of zero-mean distributions over whole numbers, one per scale, escapes included.

    Attributes:
        cdf: `uint32`, all tables one after the other; table t is `cdf[starts[t]:starts[t + 1]]`, rising strictly from 0 to 65536. Its last interval
            is the escape.
        starts: `int32` `[T + 1]`.
        offsets: `int32` `[T]`, the symbol of the first interval.
        thresholds: `float32` `[T - 1]`, rising; a scale `s` uses table `sum(s > thresholds)`.
        lookup: `uint16` `[T, 256]`, the interval that holds cumulative count `256 * b`; derived, exact.

    Raises:
        CheckpointError: The arrays contradict each other.
    """

    cdf: NDArray[np.uint32]
    starts: NDArray[np.int32]
    offsets: NDArray[np.int32]
    thresholds: NDArray[np.float32]
    lookup: NDArray[np.uint16] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if any(array.ndim != 1 for array in (self.cdf, self.starts, self.offsets, self.thresholds)):
            raise CheckpointError("the CDF tables of the model file are no rows of numbers")
        num, starts = len(self.offsets), self.starts.astype(np.int64)
        fits = (
            1 <= num <= 256
            and len(starts) == num + 1
            and len(self.thresholds) == num - 1
            and starts[0] == 0
            and starts[-1] == len(self.cdf)
            and bool((np.diff(starts) >= 3).all())
            and int(np.abs(self.offsets.astype(np.int64)).max()) <= MAX_OFFSET
            and bool(np.isfinite(self.thresholds).all())
            and bool((np.diff(self.thresholds) > 0).all())
        )
        if not fits:
            raise CheckpointError("the CDF tables of the model file contradict each other")
        lookup = np.empty((num, 256), np.uint16)
        for t in range(num):
            table = self.table(t)
            if table[0] != 0 or table[-1] != TOTAL or not bool((np.diff(table.astype(np.int64)) > 0).all()):
                raise CheckpointError(f"CDF table {t} of the model file does not rise from 0 to {TOTAL}")
            lookup[t] = np.searchsorted(table, np.arange(256) * 256, side="right") - 1
        object.__setattr__(self, "lookup", lookup)
        # The kernel relies on what was checked here.
        for array in (self.cdf, self.starts, self.offsets, lookup):
            array.setflags(write=False)

    def table(self, t: int) -> NDArray[np.uint32]:
        """Cumulative counts of table t."""
        return self.cdf[self.starts[t] : self.starts[t + 1]]

    def indexes(self, scales: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Nearest table (in the ratio of scales) for each scale; any shape."""
        return np.searchsorted(self.thresholds, scales, side="left").astype(np.uint8)

    def symbol_bits(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """`(bits, base, size)`: symbol s of table t costs `bits[base[t] + s - offsets[t]]` when `0 <= s - offsets[t] < size[t]`, else
        `bits[base[t] + size[t]]` (escape and about 9 raw bits)."""
        widths = np.diff(self.cdf.astype(np.int64))
        keep = np.ones(len(widths), bool)
        keep[self.starts[1:-1] - 1] = False
        bits = (PRECISION_BITS - np.log2(np.where(keep, widths, 1))).astype(np.float32)
        base = self.starts[:-1].astype(np.int64)
        size = np.diff(self.starts).astype(np.int64) - 2
        bits[base + size] += 9
        return bits, base, size


def quantised_counts(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts of sum 65536, each at least 1, close to the probabilities; the surplus goes where it costs least."""
    counts = np.maximum(1, np.round(probabilities / probabilities.sum() * TOTAL)).astype(np.int64)
    while (excess := int(counts.sum()) - TOTAL) != 0:
        order = np.argsort(-counts, kind="stable")[: max(1, min(abs(excess), int((counts > 64).sum())))]
        counts[order] -= np.sign(excess)
    result: NDArray[np.int64] = counts
    return result


def gaussian_tables(num_scales: int = NUM_SCALES, scale_max: float = SCALE_MAX) -> Tables:
    """Tables of rounded zero-mean Gaussians, scales evenly spaced in the logarithm from 0.11 to `scale_max` symbols.

    Nearest of 128 levels: the scale is off by at most 3.4 %, which costs less than 0.001 bit per symbol.
    """
    scales = np.exp(np.linspace(math.log(SCALE_MIN), math.log(scale_max), num_scales))
    parts, starts, offsets = [], [0], []
    for scale in scales:
        half = math.ceil(_SUPPORT_SIGMAS * scale) + 1
        edges = np.array([math.erfc(-(s - 0.5) / (scale * math.sqrt(2.0))) / 2 for s in range(-half, 1)])
        left = np.diff(edges)
        centre = 1 - 2 * edges[-1]
        inside = np.concatenate((left, [centre], left[::-1]))
        counts = quantised_counts(np.concatenate((inside, [max(0.0, 1 - inside.sum())])))
        parts.append(np.concatenate(([0], np.cumsum(counts))))
        starts.append(starts[-1] + len(parts[-1]))
        offsets.append(-half)
    thresholds = np.sqrt(scales[1:] * scales[:-1])
    return Tables(
        cdf=np.concatenate(parts).astype(np.uint32),
        starts=np.array(starts, np.int32),
        offsets=np.array(offsets, np.int32),
        thresholds=thresholds.astype(np.float32),
    )
