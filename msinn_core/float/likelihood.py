"""Bits of whole-number symbols under a zero-mean Gaussian, accurate in the tail so that gradients never vanish there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from msinn_core.float.gain import lower_bound

SCALE_MIN = 0.11
"""Floor of the Gaussian scale, in symbols (Balle et al. 2018)."""

_INV_SQRT2 = 1.0 / math.sqrt(2.0)
_LIKELIHOOD_MIN = 1e-9


def gaussian_bits(symbols: Tensor, scales: Tensor) -> Tensor:
    """`-log2(Phi((s + 1/2) / scale) - Phi((s - 1/2) / scale))`, elementwise, at least 0.

    Args:
        symbols: Real or whole numbers, any shape.
        scales: Same shape; floored at 0.11.

    Both ends are evaluated on the side of the tail (erfc of a positive argument), so 10-sigma symbols keep a finite cost and a gradient; the
    difference of two `erf` is exactly zero there in float32.
    """
    scales = lower_bound(scales, SCALE_MIN)
    distance = symbols.abs()
    near = 0.5 * torch.erfc((distance - 0.5) * _INV_SQRT2 / scales)
    far = 0.5 * torch.erfc((distance + 0.5) * _INV_SQRT2 / scales)
    return -torch.log2(lower_bound(near - far, _LIKELIHOOD_MIN))
