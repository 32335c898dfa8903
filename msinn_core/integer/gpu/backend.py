"""The backend of a GPU, in torch: arrays are tensors `[N, H, W, C]` on the device, for a batch of pictures of one padded size (INTEGER.md).

Exact on every device: whole numbers in int32 and int64, and float64 products whose partial sums stay below 2^53. Vectors come as NumPy arrays; those
of the model are placed on the device once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msinn_core.integer.arrays import STATE_BITS
from msinn_core.integer.bands import PictureBands, in_bands
from msinn_core.integer.composed import Composed
from msinn_core.integer.gpu.layers import Convolution, TritonLayers
from msinn_core.integer.ops import STATE_LIMIT, Costs, Layer

BAND_BYTES, BAND_POSITIONS = 256 << 20, 2 << 20
"""Of pictures of more than 16 Mpx, which go in bands: activations of one layer, and positions of the half-size grid, that are held at a time.

So many, 8 Mpx, keep a device busy, and what is computed twice at their edges is some 15 % of the post-filter: computed, not measured. A decode holds
54 to 58 bytes a pixel then, and 114 without bands (counted by tensors that are alive).
"""

STATES: NDArray[np.int32] = np.round(np.arange(256) * (1 << STATE_BITS) / 255).astype(np.int32)
"""Of each value of a pixel."""


def on_device(device: torch.device, convolution: Convolution, *, fused: bool = True) -> OnDevice:
    """The backend whose operations between the layers are of the same kind as the layers; without `fused` they are torch's."""
    if fused and isinstance(convolution, TritonLayers):
        from msinn_core.integer.gpu.fused import Fused

        return Fused(device, convolution)
    return OnDevice(device, convolution)


class OnDevice(Composed):
    """See `network.Backend`.

    Args:
        device: Where everything is computed.
        convolution: How layers are.
    """

    def __init__(self, device: torch.device, convolution: Convolution) -> None:
        self.device = device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        self.name = f"{gpu}, torch {torch.__version__}, {type(convolution).__name__}"
        self._convolution = convolution
        self._constants: dict[int, tuple[Any, Tensor]] = {}

    lead: tuple[int, ...] = (1,)

    def to_host(self, x: Tensor) -> NDArray[Any]:
        host: NDArray[Any] = x.cpu().numpy()
        return host

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)

    def _constant(self, array: NDArray[Any]) -> Tensor:
        """Of the model: placed once."""
        if id(array) not in self._constants:
            self._constants[id(array)] = array, self.to_device(array)
        return self._constants[id(array)][1]

    def _per_channel(self, vector: NDArray[Any] | Tensor) -> Tensor:
        """`[C]`, or `[N, C]` with a row per picture, to be broadcast over `[N, H, W, C]`. Those of a batch are placed already: placing waits."""
        placed = vector if isinstance(vector, Tensor) else self.to_device(vector)
        return placed if placed.ndim == 1 else placed[:, None, None, :]

    # Arithmetic ------------------------------------------------------------------------------------------------------------------------------------

    def conv(self, x: Tensor, layer: Layer, *, parity: int = 0, add: Tensor | None = None) -> Tensor:
        return self._convolution(x, layer, parity, add)

    def narrow(self, x: Tensor, shift: NDArray[np.int32]) -> Tensor:
        by = self._constant(shift)
        return ((x + ((1 << by) >> 1)) >> by).clamp_(-32768, 32767).to(torch.int16)

    def unit(
        self,
        z: Tensor,
        st: Tensor,
        table: NDArray[np.int32],
        t_shift: int,
        matrix: NDArray[np.float64],
        bias: NDArray[np.float64],
        affine: bool,
        second: Tensor | None = None,
    ) -> Tensor:
        if second is not None:
            z = self.joined(z, second)
        half = z.shape[-1] // 2
        z2 = z[..., half:].long()
        if affine:
            factor = self._constant(table)[st[..., :half].to(torch.int32) + 32768]
            z2 = (z2 * factor + (1 << 19)) >> 20
        moved = z2 - (st[..., -half:].long() << t_shift)
        v = torch.cat((z[..., :half], moved), dim=-1).clamp_(-STATE_LIMIT, STATE_LIMIT)
        sums = v.double() @ self._constant(matrix)
        x = sums.mul_(2.0**-20).add_(0.5).floor_().sub_(self._constant(bias))
        return x.clamp_(-STATE_LIMIT, STATE_LIMIT).to(torch.int32)

    def levels(self, parameters: Tensor, log2: NDArray[np.int32], log_gain: NDArray[np.int32], first: int, step: int, tables: int) -> Tensor:
        scales = parameters[..., : parameters.shape[-1] // 2].to(torch.int32)
        value = self._constant(log2)[scales.clamp(min=0)] + (self._per_channel(log_gain) - first)
        value = torch.where(scales > 0, value, 0).clamp_(0, tables * step - 1)
        return torch.div(value, step, rounding_mode="floor").to(torch.uint8)

    def dequantise(self, symbols: Tensor, parameters: Tensor, inv_gain: NDArray[np.int32], mean_shift: int) -> Tensor:
        means = parameters[..., parameters.shape[-1] // 2 :].to(torch.int32) << mean_shift
        y = means + ((symbols.long() * self._per_channel(inv_gain) + 128) >> 8)
        return y.clamp_(-STATE_LIMIT, STATE_LIMIT).to(torch.int32)

    def refine(self, y: Tensor, prediction: Tensor, table: NDArray[np.int16], inv_gain: NDArray[np.int32]) -> None:
        entry = self._constant(table)[(prediction.to(torch.int32) + 32768) >> 4].long()
        y += ((entry * self._per_channel(inv_gain) + (1 << 23)) >> 24).to(torch.int32)

    def mix(self, x: Tensor, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> Tensor:
        z = (x.double() @ self._constant(matrix)).add_(self._constant(bias)).add_(0.5).floor_()
        return z.clamp_(-STATE_LIMIT, STATE_LIMIT).to(torch.int32)

    def couple(self, z: Tensor, st: Tensor, reciprocal: NDArray[np.float32], t_shift: int, affine: bool) -> None:
        half = z.shape[-1] // 2
        value = z[..., half:].double() + st[..., -half:].double() * 2.0**t_shift
        if affine:
            value = (value * self._constant(reciprocal)[st[..., :half].to(torch.int32) + 32768]).add_(0.5).floor_()
        z[..., half:] = value.clamp_(-STATE_LIMIT, STATE_LIMIT).to(torch.int32)

    def quantise(
        self, y: Tensor, parameters: Tensor, indexes: Tensor, gain: NDArray[np.float32], zone: NDArray[np.float32], mean_shift: int
    ) -> Tensor:
        means = parameters[..., y.shape[-1] :].to(torch.int32) << mean_shift
        exact = (y - means).float() * self._per_channel(gain)
        size = exact.abs()
        rounded = size.round()
        wider = self._constant(zone).flatten()[indexes.to(torch.int32) * zone.shape[1] + rounded.clamp(max=15).to(torch.int32)]
        rounded -= (size - rounded < wider - 0.5).float()
        return torch.where(exact < 0, -rounded, rounded).to(torch.int32)

    def tally(
        self, y: Tensor, parameters: Tensor, mean_shift: int, log2: NDArray[np.int32], first: int, step: int, log_gain: NDArray[np.int32],
        gain: NDArray[np.float32], inv_gain: NDArray[np.float32], zone: NDArray[np.float32], costs: Costs, stride: int,
    ) -> NDArray[np.float64]:  # fmt: skip
        bits, base, size, offsets = (self._constant(array) for array in costs)
        y, parameters = y[:, ::stride, ::stride].contiguous(), parameters[:, ::stride, ::stride].contiguous()
        residual = (y - (parameters[..., y.shape[-1] :].to(torch.int32) << mean_shift)).double()
        out = []
        for log_gain_at, gain_at, inv_at in zip(log_gain, gain, inv_gain, strict=True):
            indexes = self.levels(parameters, log2, log_gain_at, first, step, len(costs[1]))
            symbols = self.quantise(y, parameters, indexes, gain_at, zone, mean_shift)
            error = residual - symbols.double() * self._per_channel(inv_at).double()
            table = indexes.to(torch.int32)
            position, size_of = symbols - offsets[table], size[table]
            position = torch.where((position >= 0) & (position < size_of), position, size_of)
            of_each = (1, 2, 3)
            cost = bits[base[table] + position].sum(dim=of_each, dtype=torch.float64)
            out.append(torch.stack((cost, error.square().sum(dim=of_each)), dim=-1))
        result: NDArray[np.float64] = torch.stack(out, dim=1).cpu().numpy()
        return result

    # Moving values about ---------------------------------------------------------------------------------------------------------------------------

    def squeeze(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)

    def unsqueeze(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        return x.reshape(n, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)

    def half(self, x: Tensor, parity: int) -> Tensor:
        n, h, w, c = x.shape
        out = x.new_empty((n, h, w // 2, c))
        out[:, 0::2], out[:, 1::2] = x[:, 0::2, parity::2], x[:, 1::2, 1 - parity :: 2]
        return out

    def whole(self, half: Tensor, parity: int, other: Tensor) -> Tensor:
        n, h, w, c = half.shape
        out = half.new_empty((n, h, 2 * w, c))
        out[:, 0::2, parity::2], out[:, 1::2, 1 - parity :: 2] = half[:, 0::2], half[:, 1::2]
        out[:, 0::2, 1 - parity :: 2], out[:, 1::2, parity::2] = other[:, 0::2], other[:, 1::2]
        return out

    def halved(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, 0::2], x[:, 1::2])
        return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2]).contiguous()

    def shuffled(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        return x.reshape(n, h, w, c // 4, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(n, 2 * h, 2 * w, c // 4)

    def unshuffled(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, 4 * c)

    def joined(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=-1)

    def channels(self, x: Tensor, start: int, stop: int) -> Tensor:
        return x[..., start:stop].contiguous()

    def constant(self, values: NDArray[np.int16], shape: tuple[int, ...]) -> Tensor:
        return self._constant(values).expand(*shape, len(values)).contiguous()

    def looked_up(self, table: NDArray[np.int16], x: Tensor) -> Tensor:
        return self._constant(table)[x.to(torch.int32) + 32768]

    def positive(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    def even(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] % 2 == 0 else torch.cat((x, x.new_zeros((*x.shape[:-1], 1))), dim=-1)

    def mean(self, x: Tensor) -> Tensor:
        count = x.shape[1] * x.shape[2]
        sums = 2 * x.sum(dim=(1, 2), dtype=torch.int64, keepdim=True) + count
        return torch.div(sums, 2 * count, rounding_mode="floor").to(torch.int16)

    def gated(self, x: Tensor, table: NDArray[np.int16], index: Tensor, add: Tensor) -> Tensor:
        gate = self._constant(table)[(index.to(torch.int32) + 32768) >> 4].to(torch.int32)
        return (((x.to(torch.int32) * gate + (1 << 14)) >> 15) + add).clamp_(-32768, 32767).to(torch.int16)

    def corrected(self, x: Tensor | None, correction: Tensor | None, shift: int) -> Tensor:
        assert x is not None or correction is not None
        if correction is not None:
            moved = correction.to(torch.int32) << shift
            x = moved if x is None else x + moved
        assert x is not None
        return ((x.clamp(0, 1 << STATE_BITS) * 255 + (1 << (STATE_BITS - 1))) >> STATE_BITS).to(torch.uint8)

    def state_of(self, pixels: Tensor) -> Tensor:
        return self._constant(STATES)[pixels.to(torch.int32)]

    def in_bands(self, x: Tensor, radius: int, width: int, run: Callable[..., Tensor], *beside: Tensor) -> Tensor:
        found: Tensor = in_bands(x, radius, width, run, *beside, held=BAND_BYTES)
        return found

    def settle(self, x: Tensor) -> None:
        """Nothing: what is free is of use to the next batch."""

    def pictured(self, height: int, width: int) -> PictureBands | None:
        """All at once, but for pictures that are large themselves: what a batch holds is bounded by its size."""
        return PictureBands.of(height, width, BAND_POSITIONS)
