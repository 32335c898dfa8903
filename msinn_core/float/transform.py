"""The bijective transform: invertible units (actnorm, permutation, coupling) and its four levels (MSINN section III-A)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msinn_core.config import LEVEL_CHANNELS, MsinnConfig
from msinn_core.float.layers import reduced_precision, squeeze, unsqueeze


class ActNorm(nn.Module):
    """Per-channel `(x + bias) * exp(logs)`."""

    inited: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))
        # Official checkpoints carry this flag of their data-dependent initialisation; ours starts at the identity.
        self.register_buffer("inited", torch.ones((), dtype=torch.uint8))


class InvertibleConv1x1(nn.Module):
    """Learned square matrix over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Of a network without values (see `checkpoint.float_network`) only the shape counts.
        bare = torch.get_default_device().type == "meta"
        weight = torch.empty(channels, channels) if bare else torch.linalg.qr(torch.randn(channels, channels))[0].contiguous()
        self.weight = nn.Parameter(weight)


class FixedPermutation(nn.Module):
    """Output channel `i` is input channel `indices[i]`. `shuffle` stores its random order with the weights; the others follow from the size."""

    indices: Tensor

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        if kind == "shuffle":
            order = torch.randperm(channels)
        elif kind == "reverse":
            order = torch.arange(channels - 1, -1, -1)
        else:  # cross: the two halves interleaved
            order = torch.arange(channels).reshape(2, channels // 2).t().reshape(-1)
        self.register_buffer("indices", order, persistent=kind == "shuffle")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with LeakyReLU after each, plus a 1x1 skip."""

    def __init__(self, in_channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.conv1(x), 0.01)
        result: Tensor = F.leaky_relu(self.conv2(out), 0.01) + self.skip(x)
        return result


class ZeroConv1x1(nn.Module):
    """1x1 convolution that starts at zero, so that a coupling starts as the identity."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class InvertibleUnit(nn.Module):
    """actnorm, permutation, coupling, in this order forward. `fold` merges the first two and their inverse into one 1x1 convolution each."""

    def __init__(self, channels: int, hidden: int, config: MsinnConfig) -> None:
        super().__init__()
        self.affine = config.coupling == "affine"
        half = channels // 2
        self.actnorm = ActNorm(channels) if config.actnorm else None
        self.permute: InvertibleConv1x1 | FixedPermutation
        if config.permutation == "invconv":
            self.permute = InvertibleConv1x1(channels)
        else:
            self.permute = FixedPermutation(channels, config.permutation)
        self.block = nn.Sequential(ResidualBlock(half, hidden), ZeroConv1x1(hidden, channels if self.affine else half))
        self._folded: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        self.reduced: torch.dtype | None = None
        self.inverter: Callable[[Tensor], Tensor] | None = None
        """In place of `torch.linalg.inv` in training: a library's inverse waits for the GPU."""

    def _matrix(self) -> Tensor:
        if isinstance(self.permute, InvertibleConv1x1):
            return self.permute.weight
        indices = self.permute.indices
        return F.one_hot(indices, len(indices)).float()

    def _inverse(self, matrix: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.inv(matrix) if self.inverter is None or not self.training else self.inverter(matrix)
        return inverse

    def _linear(self, inverse: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Weight `[C, C]` and bias `[C]` of actnorm and permutation as one map, or of its inverse."""
        matrix = self._matrix().to(dtype)
        if self.actnorm is None:
            bias, logs = matrix.new_zeros(len(matrix)), matrix.new_zeros(len(matrix))
        else:
            bias, logs = self.actnorm.bias.flatten().to(dtype), self.actnorm.logs.flatten().to(dtype)
        if inverse:
            return torch.exp(-logs)[:, None] * self._inverse(matrix), -bias
        weight = matrix * torch.exp(logs)
        return weight, weight @ bias

    def fold(self) -> None:
        """Compute both linear maps once, in float64; the parameters must not change afterwards."""
        with torch.no_grad():
            forward, inverse = (
                (weight.float()[:, :, None, None].contiguous(), bias.float().contiguous())
                for weight, bias in (self._linear(False, torch.float64), self._linear(True, torch.float64))
            )
        self._folded = (forward, inverse)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # `.to(device)` must move the folded maps too.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._folded is not None:
            self._folded = tuple((fn(w), fn(b)) for w, b in self._folded)  # type: ignore[assignment]
        return self

    def _mix(self, x: Tensor, inverse: bool) -> Tensor:
        if self._folded is not None:
            weight, bias = self._folded[inverse]
        else:
            weight, bias = self._linear(inverse)
            weight = weight[:, :, None, None]
        return F.conv2d(x, weight, bias)

    def _couple(self, z1: Tensor) -> tuple[Tensor | None, Tensor]:
        with reduced_precision(z1, self.reduced):
            out = self.block(z1).float()
        if not self.affine:
            return None, out
        s, t = out.chunk(2, dim=1)
        return 2 * torch.sigmoid(s) - 1, t

    def forward(self, x: Tensor) -> Tensor:
        z1, z2 = self._mix(x, inverse=False).chunk(2, dim=1)
        log_scale, shift = self._couple(z1)
        z2 = z2 + shift
        return torch.cat((z1, z2 if log_scale is None else z2 * torch.exp(log_scale)), dim=1)

    def inverse(self, z: Tensor) -> Tensor:
        """Exact inverse of `forward` up to float rounding."""
        z1, z2 = z.chunk(2, dim=1)
        log_scale, shift = self._couple(z1)
        if log_scale is not None:
            z2 = z2 * torch.exp(-log_scale)
        return self._mix(torch.cat((z1, z2 - shift), dim=1), inverse=True)


class Level(nn.Sequential):
    """Invertible units of one level; named by number, as in official checkpoints."""

    def __init__(self, level: int, config: MsinnConfig) -> None:
        units = [InvertibleUnit(LEVEL_CHANNELS[level], config.hidden[level], config) for _ in range(config.depths[level])]
        super().__init__(*units)

    def inverse(self, z: Tensor) -> Tensor:
        for unit in reversed(list(self)):
            z = unit.inverse(z)  # type: ignore[operator]
        return z


def analysis(levels: list[Level], x: Tensor) -> list[Tensor]:
    """`g_a`: `[N, 3, H, W]` -> latents in coding order y5, y4, y3, y2, y1."""
    latents = []
    for level in levels:
        y, x = level(squeeze(x)).chunk(2, dim=1)
        latents.append(y)
    latents.append(x)
    return latents[::-1]


def synthesis(levels: list[Level], latents: list[Tensor]) -> Tensor:
    """`g_s`, the inverse of `analysis`: latents y5..y1 -> `[N, 3, H, W]`."""
    x = latents[0]
    for level, y in zip(reversed(levels), latents[1:], strict=True):
        x = unsqueeze(level.inverse(torch.cat((y, x), dim=1)))
    return x
