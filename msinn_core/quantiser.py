"""Rate-aware rounding: a symbol moves one step towards zero where that saves more bits than it costs in error.

Plain rounding minimises the error alone. With `J = bits + DISTORTION_WEIGHT * error**2` (error in quantisation steps) the encoder gives up a
little accuracy exactly where the predicted distribution makes it dear. Decoders are not concerned: they read symbols. At the anchors' own slope the
weight would be `6 / ln 2 = 8.7` (a uniform quantiser at high rate); on validation tiles 20 to 40 measured best, since every later prediction
leans on the values this would blur: -2.0 % BD-rate over the whole range, -2.6 % at the low end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msinn_core.entropy.tables import Tables

DISTORTION_WEIGHT = 28.0
"""Bits that one squared quantisation step of error is worth."""

TOP = 15
"""Larger symbols use the table entry of this one."""


def widened_zone(tables: Tables) -> NDArray[np.float32]:
    """How much further than 1/2 below its value a symbol is rounded down: `[num_tables, 16]`, by magnitude; 0 for magnitude 0.

    `(v - (r - 1))**2 - (v - r)**2 = 2 (v - r) + 1`, so r gives way to r - 1 where `v - r < -1/2 + saved bits / (2 weight)`.
    """
    bits, base, size = tables.symbol_bits()
    magnitudes = np.arange(TOP + 1)
    table = np.arange(len(base))[:, None]
    position = magnitudes - tables.offsets[:, None]
    cost = bits[base[table] + np.where((position >= 0) & (position < size[:, None]), position, size[:, None])]
    saved = np.diff(cost, axis=1).clip(0)
    zone: NDArray[np.float32] = np.concatenate((np.zeros((len(base), 1)), saved / (2 * DISTORTION_WEIGHT)), axis=1).clip(0, 0.9).astype(np.float32)
    return zone
