"""Rate-aware rounding: a symbol moves one step towards zero where that saves more bits than it costs in error.

Plain rounding minimises the error alone. With `J = bits + DISTORTION_WEIGHT * error**2` (error in quantisation steps) the encoder gives up a
little accuracy exactly where the predicted distribution makes it dear. Decoders are not concerned: they read symbols. At the anchors' own slope the
weight would be `6 / ln 2 = 8.7` (a uniform quantiser at high rate); on validation tiles 20 to 40 measured best, since every later prediction
leans on the values this would blur: -2.0 % BD-rate over the whole range, -2.6 % at the low end.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msinn_core.entropy.tables import Tables
from msinn_core.likelihood import gaussian_bits

DISTORTION_WEIGHT = 28.0
"""Bits that one squared quantisation step of error is worth."""

_TOP = 15
"""Larger symbols use the table entry of this one."""


def widened_zone(tables: Tables) -> NDArray[np.float32]:
    """How much further than 1/2 below its value a symbol is rounded down: `[num_tables, 16]`, by magnitude; 0 for magnitude 0.

    `(v - (r - 1))**2 - (v - r)**2 = 2 (v - r) + 1`, so r gives way to r - 1 where `v - r < -1/2 + saved bits / (2 weight)`.
    """
    bits, base, size = tables.symbol_bits()
    magnitudes = np.arange(_TOP + 1)
    table = np.arange(len(base))[:, None]
    position = magnitudes - tables.offsets[:, None]
    cost = bits[base[table] + np.where((position >= 0) & (position < size[:, None]), position, size[:, None])]
    saved = np.diff(cost, axis=1).clip(0)
    zone: NDArray[np.float32] = np.concatenate((np.zeros((len(base), 1)), saved / (2 * DISTORTION_WEIGHT)), axis=1).clip(0, 0.9).astype(np.float32)
    return zone


def rate_aware_round(exact: Tensor, indexes: Tensor, zone: Tensor) -> Tensor:
    """Whole-number symbols of real values.

    Args:
        exact: Values in quantisation steps, any shape.
        indexes: Their tables, int64 of the same shape.
        zone: `widened_zone` on the same device.
    """
    rounded = torch.round(exact)
    magnitude = rounded.abs()
    wider = zone.flatten()[indexes * zone.shape[1] + magnitude.clamp(max=_TOP).to(torch.int64)]
    return rounded - torch.sign(rounded) * (exact.abs() - magnitude < wider - 0.5)


@torch.no_grad()
def rate_aware_round_continuous(exact: Tensor, scales: Tensor) -> Tensor:
    """The same with Gaussian bits in place of tables: for training, where scales are continuous."""
    rounded = torch.round(exact)
    lower = rounded - torch.sign(rounded)
    saved = gaussian_bits(rounded, scales) - gaussian_bits(lower, scales)
    cost = DISTORTION_WEIGHT * ((exact - lower).square() - (exact - rounded).square())
    return torch.where(saved > cost, lower, rounded)
