"""The integer operations of INTEGER.md on arrays of one picture, `[H, W, C]`, where no compiler was at hand: float64 over whole numbers, in torch.

Every partial sum is below 2^53, so that every order of summation is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from msinn_core.integer.arrays import I16, I32, NumpyArrays
from msinn_core.integer.ops import DENSE, EDGES, POINT, STATE_LIMIT, Costs, Layer


class Float64Layers:
    """Products in float64 over whole numbers: every partial sum is below 2^53, so that every order of summation gives the same bits."""

    def __init__(self) -> None:
        self._weights: dict[int, tuple[Layer, Tensor, Tensor, Tensor]] = {}

    def _placed(self, layer: Layer, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if id(layer) not in self._weights:
            weight, bias, shift = (torch.from_numpy(np.asarray(a)).to(device, torch.float64) for a in (layer.weight, layer.bias, layer.shift))
            self._weights[id(layer)] = layer, weight.transpose(0, 1).mT.contiguous(), bias, shift
        return self._weights[id(layer)][1:]

    def __call__(self, x: Tensor, layer: Layer, parity: int, add: Tensor | None) -> Tensor:
        weight, sums, shift = self._placed(layer, x.device)
        for tap, of_tap in zip(_taps(x.double(), layer.kind, parity), weight, strict=True):
            sums = sums + tap @ of_tap
        out = torch.floor(torch.ldexp(sums, -shift) + 0.5).clamp(-32768, 32767)
        if layer.leaky:
            out = torch.where(out < 0, torch.floor((out * 164 + 8192) / 16384), out)
        if add is not None:
            out = (out + add).clamp(-32768, 32767)
        return out.to(torch.int16)


def _taps(x: Tensor, kind: int, parity: int) -> list[Tensor]:
    """The inputs of every tap, `[N, H, W, C]` each, zero outside the pictures."""
    if kind == POINT:
        return [x]
    h, w = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))

    def at(row: int, column: int) -> Tensor:
        return padded[:, 1 + row : 1 + row + h, 1 + column : 1 + column + w]

    if kind == DENSE:
        return [at(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    # In a checkerboard half, column j of a row is column 2j + offset of the picture, and the offset changes from row to row.
    offset = (torch.arange(h, device=x.device) + parity)[:, None, None] % 2 == 1

    def beside(row: int, step: int) -> Tensor:
        return torch.where(offset, at(row, step), at(row, step - 1))

    if kind == EDGES:
        return [at(-1, 0), beside(0, 0), beside(0, 1), at(1, 0)]
    return [beside(-1, 0), beside(-1, 1), at(0, 0), beside(1, 0), beside(1, 1)]


class Portable(NumpyArrays):
    """Float64 over whole numbers, in torch.

    Args:
        device: Where convolutions run.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.name = f"torch {torch.__version__}, float64"
        self.device = torch.device(device)
        self._layers = Float64Layers()

    def _to(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, torch.float64)

    @staticmethod
    def _shifted(value: Tensor, shift: Tensor) -> Tensor:
        """`(value + 2^(shift-1)) >> shift`; `shift` of 0 changes nothing."""
        return torch.floor(torch.ldexp(value, -shift) + torch.where(shift > 0, 0.5, 0.0))

    @torch.inference_mode()
    def conv(self, x: I16, layer: Layer, *, parity: int = 0, add: I16 | None = None) -> I16:
        inputs, addend = torch.from_numpy(x)[None].to(self.device), None if add is None else torch.from_numpy(add)[None].to(self.device)
        out: I16 = self._layers(inputs, layer, parity, addend)[0].cpu().numpy()
        return out

    @torch.inference_mode()
    def unit(
        self,
        z: I32,
        st: I16,
        table: I32,
        t_shift: int,
        matrix: NDArray[np.float64],
        bias: NDArray[np.float64],
        affine: bool,
        second: I32 | None = None,
    ) -> I32:
        if second is not None:
            z = self.joined(z, second)
        half = z.shape[2] // 2
        state, t = self._to(z), self._to(st[..., half:] if affine else st)
        z2 = state[..., half:]
        if affine:
            z2 = torch.floor(z2 * self._to(table[st[..., :half].astype(np.int64) + 32768]) / 2**20 + 0.5)
        v = torch.cat((state[..., :half], z2 - t * 2**t_shift), dim=2).clamp(-STATE_LIMIT, STATE_LIMIT)
        x = torch.floor(v @ self._to(matrix) / 2**20 + 0.5) - self._to(bias)
        return x.clamp(-STATE_LIMIT, STATE_LIMIT).to(torch.int32).cpu().numpy()

    def narrow(self, x: I32, shift: I32) -> I16:
        return ((x.astype(np.int64) + ((1 << shift) >> 1)) >> shift).clip(-32768, 32767).astype(np.int16)

    def levels(self, parameters: I16, log2: I32, log_gain: I32, first: int, step: int, tables: int) -> NDArray[np.uint8]:
        scales = parameters[..., : parameters.shape[2] // 2].astype(np.int64)
        value = np.where(scales > 0, log2[scales.clip(0)].astype(np.int64) + log_gain - first, 0)
        return (value.clip(0, tables * step - 1) // step).astype(np.uint8)

    def dequantise(self, symbols: I32, parameters: I16, inv_gain: I32, mean_shift: int) -> I32:
        means = parameters[..., parameters.shape[2] // 2 :].astype(np.int64) << mean_shift
        y: I32 = np.clip(means + ((symbols.astype(np.int64) * inv_gain + 128) >> 8), -STATE_LIMIT, STATE_LIMIT).astype(np.int32)
        return y

    def refine(self, y: I32, prediction: I16, table: I16, inv_gain: I32) -> None:
        entry = table[(prediction.astype(np.int64) + 32768) >> 4].astype(np.int64)
        y += ((entry * inv_gain + (1 << 23)) >> 24).astype(np.int32)

    def mix(self, x: I32, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> I32:
        """`M x + bias`."""
        z: I32 = np.clip(np.floor(x @ matrix + bias + 0.5), -STATE_LIMIT, STATE_LIMIT).astype(np.int32)
        return z

    def couple(self, z: I32, st: I16, reciprocal: NDArray[np.float32], t_shift: int, affine: bool) -> None:
        """Forward coupling in place."""
        half = z.shape[2] // 2
        value = z[..., half:] + (st[..., half:] if affine else st).astype(np.float64) * 2**t_shift
        if affine:
            value = np.floor(value * reciprocal[st[..., :half].astype(np.int64) + 32768] + 0.5)
        z[..., half:] = value.clip(-STATE_LIMIT, STATE_LIMIT)

    def quantise(
        self, y: I32, parameters: I16, indexes: NDArray[np.uint8], gain: NDArray[np.float32], zone: NDArray[np.float32], mean_shift: int
    ) -> I32:
        """Rate-aware rounding of `(y - mean) * gain`; `gain` `[C]` per Q16 unit, `zone` `[256, 16]`."""
        means = parameters[..., parameters.shape[2] // 2 :].astype(np.int32) << mean_shift
        exact = (y - means).astype(np.float32) * gain
        size = np.abs(exact)
        rounded = np.rint(size)
        rounded -= size - rounded < zone[indexes, np.minimum(rounded, 15).astype(np.int64)] - np.float32(0.5)
        symbols: I32 = np.where(exact < 0, -rounded, rounded).astype(np.int32)
        return symbols

    def tally(
        self,
        y: I32,
        parameters: I16,
        mean_shift: int,
        log2: I32,
        first: int,
        step: int,
        log_gain: I32,
        gain: NDArray[np.float32],
        inv_gain: NDArray[np.float32],
        zone: NDArray[np.float32],
        costs: Costs,
        stride: int,
    ) -> NDArray[np.float64]:
        """As `Compiled.tally`."""
        bits, base, size, offsets = costs
        y, parameters = np.ascontiguousarray(y[::stride, ::stride]), np.ascontiguousarray(parameters[::stride, ::stride])
        means = parameters[..., y.shape[2] :].astype(np.int32) << mean_shift
        out = []
        for log_gain_at, gain_at, inv_at in zip(log_gain, gain, inv_gain, strict=True):
            indexes = self.levels(parameters, log2, log_gain_at, first, step, len(base))
            symbols = self.quantise(y, parameters, indexes, gain_at, zone, mean_shift)
            error = (y - means).astype(np.float64) - symbols * inv_at
            position, size_of = symbols.astype(np.int64) - offsets[indexes], size[indexes]
            position = np.where((position >= 0) & (position < size_of), position, size_of)
            out.append((float(bits[base[indexes] + position].sum(dtype=np.float64)), float(np.square(error).sum())))
        return np.array(out)
