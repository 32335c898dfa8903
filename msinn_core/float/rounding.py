"""Rate-aware rounding (`quantiser`) of tensors: with tables, as our encoders do, and with continuous scales, for training."""

from __future__ import annotations

import torch
from torch import Tensor

from msinn_core.float.likelihood import gaussian_bits
from msinn_core.quantiser import DISTORTION_WEIGHT, TOP


def rate_aware_round(exact: Tensor, indexes: Tensor, zone: Tensor) -> Tensor:
    """Whole-number symbols of real values.

    Args:
        exact: Values in quantisation steps, any shape.
        indexes: Their tables, int64 of the same shape.
        zone: `widened_zone` on the same device.
    """
    rounded = torch.round(exact)
    magnitude = rounded.abs()
    wider = zone.flatten()[indexes * zone.shape[1] + magnitude.clamp(max=TOP).to(torch.int64)]
    return rounded - torch.sign(rounded) * (exact.abs() - magnitude < wider - 0.5)


@torch.no_grad()
def rate_aware_round_continuous(exact: Tensor, scales: Tensor) -> Tensor:
    """The same with Gaussian bits in place of tables: for training, where scales are continuous."""
    rounded = torch.round(exact)
    lower = rounded - torch.sign(rounded)
    saved = gaussian_bits(rounded, scales) - gaussian_bits(lower, scales)
    cost = DISTORTION_WEIGHT * ((exact - lower).square() - (exact - rounded).square())
    return torch.where(saved > cost, lower, rounded)
