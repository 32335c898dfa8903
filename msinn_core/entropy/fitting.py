"""CDF tables fitted to symbols that a model made: real symbols have heavier tails and, rounded by what they cost, more zeros than the Gaussian by
which the model was trained. Packers only; the tables are stored and read like any others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msinn_core.entropy.tables import TOTAL, Tables, quantised_counts

Counts = NDArray[np.int64]

STRENGTHS = tuple(4.0**k for k in range(2, 10))
"""Symbols that the prior is worth, in each table: those that are tried."""

_GROUPS_PER_SUPPORT = 40
"""Magnitudes are counted together in groups of an eighth of the scale (half the support is five): those of narrow tables one by one, those of wide
ones with the prior's shape inside a group."""


def histogram(tables: Tables, symbols: NDArray[np.int32], indexes: NDArray[np.uint8]) -> Counts:
    """How often each interval of the tables is used, `[len(tables.cdf) - 1]`, escapes at the end of each table; both arguments flat."""
    _, base, size = tables.symbol_bits()
    position = symbols - tables.offsets[indexes].astype(np.int64)
    escaped = (position < 0) | (position >= size[indexes])
    counts: Counts = np.bincount(base[indexes] + np.where(escaped, size[indexes], position), minlength=len(tables.cdf) - 1)
    return counts


def blended(prior: Tables, counts: Counts, strength: float) -> Tables:
    """Tables of the prior's intervals, each as likely as its `counts` and `strength` symbols of the prior say together.

    Both signs of a symbol are counted as one: the flow's latents have no side. The escape is a group of its own.

    Args:
        prior: Tables that are symmetric, such as `gaussian_tables()`.
        counts: A `histogram` over the same intervals.
        strength: Symbols per table.
    """
    cdf = prior.cdf.copy()
    for t, (start, end) in enumerate(zip(prior.starts[:-1], prior.starts[1:], strict=True)):
        widths = np.diff(prior.cdf[start:end].astype(np.int64))
        half = -int(prior.offsets[t])
        group = np.abs(np.arange(len(widths)) - half) // max(1, half // _GROUPS_PER_SUPPORT)
        group[-1] = group.max() + 1
        expected = np.bincount(group, widths) / TOTAL
        likelier = 1 + np.bincount(group, counts[start : end - 1]) / np.maximum(strength * expected, 1e-9)
        cdf[start + 1 : end] = np.cumsum(quantised_counts(widths * likelier[group]))
    return Tables(cdf, prior.starts.copy(), prior.offsets.copy(), prior.thresholds.copy())


def fitted(prior: Tables, counts: Sequence[Counts]) -> Tables:
    """`blended` with all counts, at the strength by which every half of them predicts the other best.

    Args:
        prior: As for `blended`.
        counts: One histogram a picture. Of a single picture, which cannot predict another, the greatest strength is taken.
    """
    halves = [np.sum(counts[i::2], axis=0, dtype=np.int64) for i in range(2)]

    def bits(strength: float) -> float:
        return sum(float(halves[1 - i] @ blended(prior, halves[i], strength).symbol_bits()[0]) for i in range(2))

    strength = min(STRENGTHS, key=bits) if len(counts) > 1 else STRENGTHS[-1]
    return blended(prior, halves[0] + halves[1], strength)
