"""Distortion and rate: MSE, PSNR, MS-SSIM, bpp, BD-rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msinn_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

PSNR_LOSSLESS_DB = 100.0
"""What `psnr_db` returns for identical pictures: finite, so that averages and SQL keep working."""

_MSE_SAMPLES = 1 << 20

_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = 161


def mse(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean squared error in 8-bit code values over all samples of two pictures of one shape.

    Raises:
        ConfigError: Shapes differ.
    """
    if a.shape != b.shape:
        raise ConfigError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")
    total = 0
    # Some rows at a time: differences of a whole picture and their squares would take six times its memory. Sums of whole numbers are exact.
    rows = max(1, _MSE_SAMPLES * len(a) // max(1, a.size))
    for start in range(0, len(a), rows):
        difference = a[start : start + rows].astype(np.int16) - b[start : start + rows]
        total += int(np.square(difference, dtype=np.int32).sum(dtype=np.int64))
    return total / a.size


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
    import torch
    from torch.nn import functional as F

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
    from torch.nn import functional as F

    def blur(p: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(p, taps[None, None, None, :]), taps[None, None, :, None])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, covariance = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).mean(dim=(1, 2, 3)), contrast.mean(dim=(1, 2, 3))


def bd_rate(
    reference: Sequence[tuple[float, float]],
    test: Sequence[tuple[float, float]],
    *,
    window: tuple[float, float] | None = None,
    method: str = "pchip",
) -> float | None:
    """Bjontegaard delta rate: mean difference of rate at equal quality, in percent; negative where `test` needs fewer bits.

    Args:
        reference: Points (bpp, PSNR in dB) of the curve compared with.
        test: Points of the curve in question.
        window: Range of PSNR; the whole overlap if not given.
        method: `pchip` or `akima`, interpolation of log rate over PSNR (JVET-AH: both agree on smooth curves, neither overshoots as cubics do).

    Returns:
        Percent, or None where a curve has fewer than two points of rising quality, or they do not overlap, or do not cover `window`.

    Raises:
        ConfigError: An unknown method.
    """
    from scipy.integrate import trapezoid
    from scipy.interpolate import Akima1DInterpolator, PchipInterpolator

    if method not in ("pchip", "akima"):
        raise ConfigError(f"no interpolation {method!r}; choose pchip or akima")
    curves = []
    for points in (reference, test):
        rising = _pareto(points)
        if len(rising) < 2:
            return None
        rates, quality = np.array(rising).T
        make = PchipInterpolator if method == "pchip" or len(rising) < 3 else Akima1DInterpolator
        curves.append((quality[0], quality[-1], make(quality, np.log(rates))))
    low, high = max(c[0] for c in curves), min(c[1] for c in curves)
    if window is not None:
        if window[0] < low or window[1] > high:
            return None
        low, high = window
    if high <= low:
        return None
    grid = np.linspace(low, high, 1001)
    difference = np.asarray(curves[1][2](grid)) - np.asarray(curves[0][2](grid))
    return 100 * math.expm1(float(trapezoid(difference, grid) / (high - low)))


def _pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points sorted by rate, without those that spend more for less."""
    rising: list[tuple[float, float]] = []
    for rate, quality in sorted(points):
        if not rising or quality > rising[-1][1]:
            rising.append((rate, quality))
    return rising
