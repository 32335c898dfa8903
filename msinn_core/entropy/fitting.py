"""What the entropy coder is given when a model file is made: the weights of the first stream's prediction, and CDF tables fitted to symbols that a
model made: real symbols have heavier tails and, rounded by what they cost, more zeros than the Gaussian by which the model was trained. Packers
only; both are stored and read like any others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msinn_core.entropy.first_stream import CHANNELS, NUM_NEIGHBOURS, ONE, Prediction
from msinn_core.entropy.portable import NEIGHBOURS
from msinn_core.entropy.tables import TOTAL, Tables, gaussian_tables, quantised_counts

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


class FirstStream(NamedTuple):
    """Symbols of a picture's first stream, the network's tables for them, and the positions of a row; see `first_stream.Prediction.residuals`."""

    symbols: NDArray[np.int32]
    indexes: NDArray[np.uint8]
    columns: int


def first_weights(streams: Sequence[FirstStream]) -> NDArray[np.int16]:
    """Weights of the first stream's neighbours, `[48, 7]` in 4096ths: least squares, each symbol in the measure of its surroundings.

    Args:
        streams: Of some pictures at some rates; a few hundred.
    """
    products, targets = np.zeros((CHANNELS, NUM_NEIGHBOURS, NUM_NEIGHBOURS)), np.zeros((CHANNELS, NUM_NEIGHBOURS))
    amplitudes = Prediction(gaussian_tables(), np.zeros((CHANNELS, NUM_NEIGHBOURS), np.int16)).amplitudes / 65536
    for symbols, indexes, columns in streams:
        own = symbols.reshape(-1, columns, CHANNELS).astype(np.float64)
        around = _neighbours(own)
        scale = np.square(around).mean(axis=-1) + 0.3 * np.square(amplitudes[indexes].reshape(own.shape)) + 0.05
        weighted = around / scale[..., None]
        products += np.einsum("rjci,rjck->cik", weighted, around)
        targets += np.einsum("rjci,rjc->ci", weighted, own)
    # A little towards zero: rare channels say nothing.
    ridge = (1e-3 * np.trace(products, axis1=1, axis2=2) / NUM_NEIGHBOURS + 1e-3)[:, None, None] * np.eye(NUM_NEIGHBOURS)
    weights = np.linalg.solve(products + ridge, targets[..., None])[..., 0]
    rounded: NDArray[np.int16] = np.rint(weights * ONE).clip(-32767, 32767).astype(np.int16)
    return rounded


def _neighbours(own: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[rows, columns, channels, 7]`: what lies there; 0 outside."""
    rows, columns = own.shape[:2]
    around = np.zeros((*own.shape, NUM_NEIGHBOURS))
    for n, (up, *shifts, _) in enumerate(NEIGHBOURS):
        for parity, shift in enumerate(shifts):
            mine = np.arange(parity, rows, 2)
            mine = mine[mine + up >= 0]
            there = np.arange(max(0, shift), min(columns, columns + shift))
            if len(there):
                around[mine[:, None], there - shift, :, n] = own[mine[:, None] + up, there]
    return around


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
