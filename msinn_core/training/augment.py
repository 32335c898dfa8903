"""What happened to pictures before they were archived, done to crops where they lie: other colours, and JPEG. Results are 8-bit."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

PEAK = 255

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92), (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)  # fmt: skip
"""Example tables of the JPEG standard (ITU-T T.81, K.1), which encoders scale by quality."""

_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


def rounded(x: Tensor) -> Tensor:
    """Code values 0..255 as float: what an 8-bit file holds of `x`."""
    return x.round().clamp(0, PEAK)


def recolour(x: Tensor, gamma: Tensor, gain: Tensor) -> Tensor:
    """Another exposure, contrast and white balance, clipped.

    Args:
        x: Code values `[N, 3, H, W]` in 0..255.
        gamma: `[N]`, exponent of values in [0, 1].
        gain: `[N, 3]`, factor of each colour.
    """
    return rounded((x / PEAK) ** gamma[:, None, None, None] * gain[:, :, None, None] * PEAK)


@cache
def _constant(values: tuple[tuple[float, ...], ...] | tuple[float, ...], device: torch.device) -> Tensor:
    """Sent once: sending waits for all that the device has yet to do."""
    return torch.tensor(values, dtype=torch.float32).to(device)


@cache
def _inverse(device: torch.device) -> Tensor:
    inverse: Tensor = torch.linalg.inv(torch.tensor(_YCBCR))
    return inverse.to(device)


def _tables(quality: Tensor, base: tuple[tuple[int, ...], ...]) -> Tensor:
    """Quantisation tables `[N, 1, 1, 64]` as libjpeg scales them."""
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    table = _constant(base, quality.device).flatten()
    return ((table * scale[:, None] + 50) / 100).floor().clamp(1, PEAK)[:, None, None]


@cache
def _basis(device: torch.device) -> Tensor:
    """The orthonormal DCT of 8 x 8 samples, `[64, 64]`: row k is the picture of coefficient k."""
    n = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) / 2
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows).float().to(device)


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """`[N, C, H, W]`, sides multiples of 8, through quantised DCT coefficients."""
    batch, channels, height, width = plane.shape
    basis = _basis(plane.device)
    blocks = (plane - 128).reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(batch, channels, -1, 64)
    blocks = ((blocks @ basis.T / table).round() * table) @ basis + 128
    return rounded(blocks.reshape(batch, channels, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(plane.shape))


def jpeg(x: Tensor, quality: Tensor, *, subsampled: bool) -> Tensor:
    """Pictures as JPEG files give them back, up to the rounding inside a decoder.

    Args:
        x: Code values `[N, 3, H, W]` in 0..255, sides multiples of 16.
        quality: `[N]` float32, whole numbers 1 to 100, on the device of `x`.
        subsampled: Chroma at half the resolution each way (4:2:0), else 4:4:4.

    Returns:
        Code values 0..255, whole numbers as float32.
    """
    matrix = _constant(_YCBCR, x.device)
    offset = _constant((0.0, 128.0, 128.0), x.device)[:, None, None]
    ycbcr = rounded(torch.einsum("ij,njhw->nihw", matrix, x) + offset)
    luma, chroma = ycbcr[:, :1], ycbcr[:, 1:]
    if subsampled:
        chroma = rounded(F.avg_pool2d(chroma, 2))
    luma, chroma = _quantised(luma, _tables(quality, _LUMA)), _quantised(chroma, _tables(quality, _CHROMA))
    if subsampled:
        # Bilinear at half-pixel places is what libjpeg calls fancy upsampling.
        chroma = rounded(F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False))
    return rounded(torch.einsum("ij,njhw->nihw", _inverse(x.device), torch.cat((luma, chroma), 1) - offset))
