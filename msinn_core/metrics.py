"""Distortion and rate: MSE, PSNR, MS-SSIM, bpp."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from msinn_core.errors import ConfigError

PSNR_LOSSLESS_DB = 100.0
"""What `psnr_db` returns for identical pictures: finite, so that averages and SQL keep working."""

_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = 161


def mse(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean squared error in 8-bit code values over all samples of two pictures of one shape.

    Raises:
        ConfigError: Shapes differ.
    """
    if a.shape != b.shape:
        raise ConfigError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")
    difference = a.astype(np.int16) - b
    return float(np.mean(np.square(difference, dtype=np.int32), dtype=np.float64))


def psnr_db(mse_value: float) -> float:
    """PSNR in dB for peak 255; 100 dB for identical pictures."""
    return PSNR_LOSSLESS_DB if mse_value <= 0 else min(PSNR_LOSSLESS_DB, 10 * math.log10(255.0**2 / mse_value))


def bpp(num_bytes: int, width: int, height: int) -> float:
    """Bits per pixel."""
    return 8.0 * num_bytes / (width * height)


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Multi-scale SSIM (Wang et al. 2003) of `[H, W]` or `[H, W, 3]` pictures, mean over channels; None if a side is under 161 pixels."""
    if min(a.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    x, y = (torch.from_numpy(np.atleast_3d(p).transpose(2, 0, 1)[:, None].astype(np.float32)) for p in (a, b))
    taps = torch.exp(-((torch.arange(11, dtype=torch.float32) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    product = torch.ones(x.shape[0])
    for scale, weight in enumerate(_MS_SSIM_WEIGHTS):
        similarity, contrast = _ssim(x, y, taps)
        value = similarity if scale == len(_MS_SSIM_WEIGHTS) - 1 else contrast
        product = product * value.clamp_min(0) ** weight
        x, y = (F.avg_pool2d(p, 2, padding=(p.shape[2] % 2, p.shape[3] % 2)) for p in (x, y))
    return float(product.mean())


def _ssim(x: Tensor, y: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    def blur(p: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(p, taps[None, None, None, :]), taps[None, None, :, None])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, covariance = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).mean(dim=(1, 2, 3)), contrast.mean(dim=(1, 2, 3))
