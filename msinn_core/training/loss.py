"""Rate and distortion of a batch whose samples each have a rate of their own, weighted so that no rate dominates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PEAK = 255.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Per-sample figures of a step, detached, `[N]` each: anchor, bits per pixel, MSE in 8-bit code values, Lagrangian."""

    anchor: Tensor
    bpp: Tensor
    mse: Tensor
    lagrangian: Tensor


class RateDistortion:
    """`bpp + lambda * MSE` per sample, divided by its anchor's running mean.

    The Lagrangian of the best rate is twenty times that of the poorest; divided by their means, every anchor pulls alike.

    Args:
        lambdas: `[A]`, weight of the MSE in 8-bit code values squared.
        device: Where the losses are.
    """

    MEMORY = 0.98

    def __init__(self, lambdas: tuple[float, ...], device: torch.device) -> None:
        self.lambdas = torch.tensor(lambdas, device=device)
        # A fair first guess for natural images; forgotten after a hundred samples per anchor.
        self.means = 0.25 + 1.5 * self.lambdas.sqrt() * 2

    def __call__(self, x: Tensor, x_hat: Tensor, bits: Tensor, anchor: Tensor) -> tuple[Tensor, Sample]:
        """Loss of a batch, a scalar, and its figures.

        Args:
            x: `[N, 3, H, W]` in [0, 1]; so is `x_hat`, not clamped.
            x_hat: What the decoder makes of it.
            bits: `[N, 5]`.
            anchor: `[N]` int64.
        """
        bpp = bits.sum(dim=1) / (x.shape[2] * x.shape[3])
        mse = PEAK**2 * (x_hat - x).square().mean(dim=(1, 2, 3))
        lagrangian = bpp + self.lambdas[anchor] * mse
        return (lagrangian / self.means[anchor]).mean(), Sample(anchor, bpp.detach(), mse.detach(), lagrangian.detach())

    def remember(self, sample: Sample, reduce: Callable[[Tensor], None] | None = None) -> None:
        """Move the running means towards a step that was taken; `reduce` sums over the processes that took it together."""
        count = torch.zeros_like(self.means).index_add_(0, sample.anchor, torch.ones_like(sample.lagrangian))
        total = torch.zeros_like(self.means).index_add_(0, sample.anchor, sample.lagrangian)
        if reduce is not None:
            reduce(count)
            reduce(total)
        share = 1 - self.MEMORY**count
        # In place: a recorded step (`capture`) reads them where they are.
        self.means.copy_(torch.where(count > 0, self.means + share * (total / count.clamp_min(1) - self.means), self.means))
