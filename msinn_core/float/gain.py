"""Extended gain units: one model, every rate (MSINN section III-C)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msinn_core.config import LATENT_CHANNELS
from msinn_core.errors import ConfigError

MIN_GAIN = 0.01


class _LowerBound(torch.autograd.Function):
    """`max(x, bound)` whose gradient still pulls values back up from below the bound."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """`max(x, bound)` elementwise, trainable from below."""
    out: Tensor = _LowerBound.apply(x, bound)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True, slots=True)
class Gains:
    """The three gains of one q for every latent channel, each `[N or 1, 138, 1, 1]`, channels y5..y1."""

    gain: Tensor
    inv_gain: Tensor
    scale_gain: Tensor

    def level(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gain, inverse gain and scale gain of coding step k."""
        start = sum(LATENT_CHANNELS[:k])
        part = slice(start, start + LATENT_CHANNELS[k])
        return self.gain[:, part], self.inv_gain[:, part], self.scale_gain[:, part]


def interpolate(table: Tensor, q: Tensor) -> Tensor:
    """`v[f]**(1-t) * v[f+1]**t` with f = floor(q), t = q - f; q = A - 1 gives the last anchor itself.

    Args:
        table: `[A, C, 1, 1]`.
        q: `[N]` in [0, A - 1].
    """
    bounded = lower_bound(table, MIN_GAIN)
    floor = q.floor().clamp(max=table.shape[0] - 2)
    t = (q - floor)[:, None, None, None]
    f = floor.long()
    return torch.exp((1 - t) * bounded[f].log() + t * bounded[f + 1].log())


def gains_at(gain: Tensor, inv_gain: Tensor, scale_gain: Tensor, q: float | Tensor, *, checked: bool = True) -> Gains:
    """Gains at a continuous rate index.

    Args:
        gain: Table `[A, 138, 1, 1]`; so are `inv_gain` and `scale_gain`.
        q: A number, or `[N]`, in [0, A - 1], both ends included.
        checked: Look whether it is. Training draws q itself, and looking at a value makes a GPU wait.

    Raises:
        ConfigError: q outside its range or not finite.
    """
    q = torch.as_tensor(q, dtype=torch.float32, device=gain.device).reshape(-1)
    top = gain.shape[0] - 1
    if checked and not bool(((q >= 0) & (q <= top)).all()):
        raise ConfigError(f"q is {q.tolist()}; this model takes 0 to {top}")
    return Gains(interpolate(gain, q), interpolate(inv_gain, q), interpolate(scale_gain, q))
