"""Tensor rearrangements and the small convolution stacks everything else is built from."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def squeeze(x: Tensor) -> Tensor:
    """Space to depth by 2: `[N, C, H, W]` -> `[N, 4C, H/2, W/2]`.

    Output channel `(2*i + j) * C + c` holds input channel `c` at row phase `i`, column phase `j` (not PyTorch's `pixel_unshuffle` order).
    """
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def unsqueeze(x: Tensor) -> Tensor:
    """Inverse of `squeeze`: `[N, 4C, H, W]` -> `[N, C, 2H, 2W]`."""
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def reduced_precision(x: Tensor, dtype: torch.dtype | None) -> torch.autocast | nullcontext[None]:
    """Autocast to `dtype` on the device of `x`; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(x.device.type, dtype=dtype)


def pack(x: Tensor, parity: int) -> Tensor:
    """The checkerboard half of `x` with `(row + col) % 2 == parity`: `[N, C, H, W]` -> `[N, C, H, W/2]`, W even.

    Column `j` of the result holds column `2j + (row + parity) % 2` of `x`.
    """
    even, odd = x[..., parity::2], x[..., 1 - parity :: 2]
    out = even.clone()
    out[..., 1::2, :] = odd[..., 1::2, :]
    return out


def unpack(half: Tensor, parity: int, other: Tensor | None = None) -> Tensor:
    """Inverse of `pack`: `[N, C, H, W/2]` -> `[N, C, H, W]`; the other half is `other` (packed) or zero."""
    n, c, h, w = half.shape
    if other is None:
        other = torch.zeros_like(half)
    first, second = (half, other) if parity == 0 else (other, half)
    rows_even = torch.stack((first[..., 0::2, :], second[..., 0::2, :]), dim=-1)
    rows_odd = torch.stack((second[..., 1::2, :], first[..., 1::2, :]), dim=-1)
    if h % 2 == 0:
        return torch.stack((rows_even, rows_odd), dim=3).reshape(n, c, h, 2 * w)
    out = half.new_zeros((n, c, h, 2 * w))
    out[..., 0::2, :] = rows_even.reshape(n, c, -1, 2 * w)
    out[..., 1::2, :] = rows_odd.reshape(n, c, -1, 2 * w)
    return out


class MaskedConv2d(nn.Conv2d):
    """3x3 convolution restricted to some taps.

    `kind` `edges` sees the 4 edge neighbours (mask A), `corners` the centre and the 4 corners (mask B). After `fold_mask` the weight itself is
    masked and the product with the mask is no longer computed.
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, kind: str) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        edges = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        self.register_buffer("mask", edges if kind == "edges" else 1.0 - edges, persistent=False)
        self.folded = False

    def fold_mask(self) -> None:
        """Mask the stored weight for good; for inference."""
        with torch.no_grad():
            self.weight.mul_(self.mask)
        self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.folded else self.weight * self.mask
        return F.conv2d(x, weight, self.bias, padding=1)


def activation(name: str) -> nn.Module:
    """`gelu` (exact erf form) or `leaky_relu_0.01`."""
    return nn.GELU() if name == "gelu" else nn.LeakyReLU(0.01)


def stack(convs: list[nn.Module], act: str) -> nn.Sequential:
    """`convs` with the activation between them, so that convolutions sit at even indices as in official checkpoints."""
    modules: list[nn.Module] = []
    for conv in convs:
        modules += [conv, activation(act)]
    return nn.Sequential(*modules[:-1])


def conv3x3_stack(in_channels: int, width: int, out_channels: int, num_layers: int, act: str) -> nn.Sequential:
    """`num_layers` 3x3 convolutions, `width` wide between the ends."""
    sizes = [in_channels, *[width] * (num_layers - 1), out_channels]
    return stack([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)], act)
